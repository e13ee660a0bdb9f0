"""Every op's vjp along random directions, over shapes and attributes that hypothesis draws.

For scores f(x) = ⟨v, op(x)⟩ with random v the map is the gradient of f, so ⟨map, u⟩ is the slope of f along
u: (f(x + hu) − f(x − hu)) / 2h, taken in float64 by ONNX's reference implementation.  x keeps away from
kinks: its values are distinct, and none is near 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from agreement import BOUND
from builder import NEWEST, Builder
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from gbp import Explainer
from gbp.ops import PARSERS

Array = NDArray[Any]
Shape = tuple[int, ...]
Net = Callable[[Builder, str], str]
Draw = Callable[[st.SearchStrategy[Any]], Any]

#: Half the distance over which a slope is taken; values of x lie some hundred times as far apart.
STEP = 1e-6
DIRECTIONS = 3


@dataclass(frozen=True)
class Drawn:
    """`net` appends the op to a tensor of `shape`.

    `by_oracle`: onnx's reference implementation is wrong here, `test_ops` says how; `oracle` takes its place.
    """

    shape: Shape
    net: Net
    opset: int = NEWEST
    by_oracle: bool = False


# --- Shapes and attributes ----------------------------------------------------------------------------------

sizes = st.integers(1, 7)
channels = st.sampled_from((1, 2, 3, 5, 6, 8, 17))
planes = st.tuples(st.integers(1, 3), channels, sizes, sizes)
rows = st.tuples(st.integers(1, 3), st.integers(1, 19))
shapes = rows | st.tuples(st.integers(1, 3), channels, sizes) | planes


def drawn(build: Callable[[Draw], Drawn]) -> st.SearchStrategy[Drawn]:
    """The strategy of a function that draws."""
    return st.composite(build)()


def plain(
    op: str, of: st.SearchStrategy[Shape] = shapes, **attributes: st.SearchStrategy[Any]
) -> st.SearchStrategy[Drawn]:
    """The op of one input, and attributes each drawn on its own."""

    def build(draw: Draw) -> Drawn:
        values = {name: draw(strategy) for name, strategy in attributes.items()}
        return Drawn(draw(of), lambda b, x: b.node(op, x, **values))

    return drawn(build)


def built(
    method: Callable[..., str],
    of: st.SearchStrategy[Shape] = shapes,
    opsets: Sequence[int] = (NEWEST,),
    reference_since: int = 0,
    **options: st.SearchStrategy[Any],
) -> st.SearchStrategy[Drawn]:
    """What a method of Builder appends, with options each drawn on its own.

    `reference_since`: the opset since which onnx's reference implementation is right.
    """

    def build(draw: Draw) -> Drawn:
        values = {name: draw(strategy) for name, strategy in options.items()}
        opset = draw(st.sampled_from(opsets))
        return Drawn(draw(of), lambda b, x: method(b, x, **values), opset, opset < reference_since)

    return drawn(build)


def window(draw: Draw, plane: Sequence[int], *, pool: bool) -> dict[str, Any]:
    """Attributes of a window that fits the plane; a pool's is never in the padding alone."""
    kernel, strides, dilations = (draw(st.tuples(*[st.integers(1, most)] * 2)) for most in (4, 3, 2))
    attributes = {"kernel_shape": kernel, "strides": strides}
    auto_pad = draw(st.sampled_from(("NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")))
    pads = [0] * 4
    if auto_pad == "NOTSET":
        pads = [draw(st.integers(0, kernel[i % 2] - 1 if pool else 3)) for i in range(4)]
        attributes["pads"] = pads
    else:
        attributes["auto_pad"] = auto_pad
    if not pool or not (any(pads) or auto_pad.startswith("SAME")):
        attributes["dilations"] = dilations
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, attributes.get("dilations", (1, 1)), strict=True)]
    fits = (n + pads[i] + pads[i + 2] >= extents[i] for i, n in enumerate(plane))
    assume(auto_pad.startswith("SAME") or all(fits))
    return attributes


def _conv(draw: Draw) -> Drawn:
    group, each, filters = draw(st.integers(1, 3)), draw(channels), draw(st.integers(1, 9))
    if draw(st.booleans()):  # depthwise
        group, each = group * each, 1
    shape = (draw(st.integers(1, 3)), group * each, draw(sizes), draw(sizes))
    attributes = window(draw, shape[2:], pool=False)
    kernel = attributes.pop("kernel_shape")
    bias = draw(st.booleans())

    def net(b: Builder, x: str) -> str:
        return b.conv(x, group * filters, kernel, group=group, bias=bias, **attributes)

    return Drawn(shape, net, by_oracle=attributes.get("auto_pad") == "SAME_LOWER")


def pools(op: str, **options: st.SearchStrategy[Any]) -> st.SearchStrategy[Drawn]:
    def build(draw: Draw) -> Drawn:
        shape = draw(planes)
        attributes = window(draw, shape[2:], pool=True)
        attributes |= {name: draw(strategy) for name, strategy in options.items()}
        strays = attributes.get("auto_pad") == "SAME_LOWER" or attributes.get("ceil_mode")
        return Drawn(shape, lambda b, x: b.node(op, x, **attributes), by_oracle=bool(strays))

    return drawn(build)


def broadcasts(op: str) -> st.SearchStrategy[Drawn]:
    """The op of x and another operand, on either side: a constant, or a tensor computed from x."""

    def other(draw: Draw, shape: Shape) -> Net:
        match draw(st.sampled_from(("constant", "itself", "scaled", "pooled", "plane"))):
            case "pooled" if len(shape) == 4:
                return lambda b, x: b.node("GlobalAveragePool", x)
            case "plane" if len(shape) == 4:
                return lambda b, x: b.conv(x, 1, 1)
            case "itself":
                return lambda b, x: x
            case "scaled":
                return lambda b, x: b.mul(x, b.constant(b.noise(*shape[-1:])))
            case _:
                sides = [draw(st.sampled_from((1, n))) for n in shape[1:]]
                sides = sides[draw(st.integers(0, len(sides))) :]
                return lambda b, x: b.constant(b.noise(*sides))

    def build(draw: Draw) -> Drawn:
        shape = draw(shapes)
        second, swapped = other(draw, shape), draw(st.booleans())
        return Drawn(shape, lambda b, x: b.node(op, *[x, second(b, x)][:: -1 if swapped else 1]))

    return drawn(build)


def _axis(draw: Draw, shape: Shape) -> int:
    """Any but the batch, counted from either end."""
    axis = draw(st.integers(1, len(shape) - 1))
    return axis - len(shape) if draw(st.booleans()) else axis


def softmaxes(op: str) -> st.SearchStrategy[Drawn]:
    def build(draw: Draw) -> Drawn:
        shape, opset = draw(shapes), draw(st.sampled_from((12, NEWEST)))
        axis = _axis(draw, shape)
        # Before opset 13 the sum runs over all axes from this one on.
        return Drawn(shape, lambda b, x: b.node(op, x, axis=axis), opset, by_oracle=opset < 13)

    return drawn(build)


def _clip(draw: Draw) -> Drawn:
    lo, hi = draw(st.sampled_from((None, -0.513, 0.0))), draw(st.sampled_from((None, 0.487, 6.0)))
    return Drawn(draw(shapes), lambda b, x: b.clip(x, lo, hi), draw(st.sampled_from((7, 11, NEWEST))))


def _concat(draw: Draw) -> Drawn:
    shape = draw(shapes)
    axis, scaled = _axis(draw, shape), draw(st.lists(st.booleans(), min_size=1, max_size=4))

    def net(b: Builder, x: str) -> str:
        y = b.mul(x, b.constant(b.noise(*shape[-1:])))
        return b.concat(*(y if each else x for each in scaled), axis=axis)

    return Drawn(shape, net)


def _split(draw: Draw) -> Drawn:
    """Some of the parts, which are of one rank, one after another."""
    shape = draw(shapes)
    axis = draw(st.integers(1, len(shape) - 1))
    cut = draw(st.integers(1, max(1, shape[axis] - 1)))
    parts = [cut, shape[axis] - cut] if cut < shape[axis] else [cut]
    picked = draw(st.lists(st.integers(0, len(parts) - 1), min_size=1, max_size=3))

    def net(b: Builder, x: str) -> str:
        pieces = b.split(x, parts, axis)
        return b.concat(*(pieces[i] for i in picked), axis=axis)

    return Drawn(shape, net, draw(st.sampled_from((7, 13, NEWEST))))


def _gemm(draw: Draw) -> Drawn:
    outputs = draw(st.integers(1, 19))
    c_shape = draw(st.sampled_from(((), (1,), (outputs,), (1, outputs))))
    attributes = {name: draw(st.floats(-2, 2, width=16)) for name in ("alpha", "beta")}
    transposed = draw(st.integers(0, 1))
    return Drawn(draw(rows), lambda b, x: b.gemm(x, outputs, c_shape, transB=transposed, **attributes))


def _lrn(draw: Draw) -> Drawn:
    numbers = {name: draw(st.floats(0.25, 2, width=16)) for name in ("alpha", "beta", "bias")}
    size = draw(st.integers(1, 7))
    return Drawn(draw(planes), lambda b, x: b.node("LRN", x, size=size, **numbers), by_oracle=True)


def _pad(draw: Draw) -> Drawn:
    shape = draw(shapes)
    before, after = ([0, *(draw(st.integers(0, 3)) for _ in shape[1:])] for _ in range(2))
    return Drawn(shape, lambda b, x: b.pad(x, before + after, 0.5), draw(st.sampled_from((7, 11, NEWEST))))


def _reshape(draw: Draw) -> Drawn:
    shape = draw(shapes)
    first = draw(st.sampled_from([n for n in range(1, 20) if math.prod(shape[1:]) % n == 0]))
    target = draw(st.sampled_from(((0, -1), (0, first, -1), (0, -1, first), (0, 0, -1), (0, first, 1, -1))))
    return Drawn(shape, lambda b, x: b.reshape(x, *target))


def _squeeze(draw: Draw) -> Drawn:
    shape = list(draw(planes))
    axes = draw(st.lists(st.integers(1, 3), unique=True, min_size=1, max_size=2))
    for axis in axes:
        shape[axis] = 1
    return Drawn(tuple(shape), lambda b, x: b.squeeze(x, *axes), draw(st.sampled_from((7, 13, NEWEST))))


def _transpose(draw: Draw) -> Drawn:
    shape = draw(shapes)
    perm = (0, *draw(st.permutations(range(1, len(shape)))))
    return Drawn(shape, lambda b, x: b.transpose(x, *perm))


#: A strategy for each op that gbp knows.
STRATEGIES: dict[str, st.SearchStrategy[Drawn]] = {
    "Add": broadcasts("Add"),
    "AveragePool": pools("AveragePool", ceil_mode=st.integers(0, 1), count_include_pad=st.integers(0, 1)),
    "BatchNormalization": built(
        Builder.batchnorm, opsets=(9, 14, NEWEST), reference_since=14, epsilon=st.floats(1e-5, 1)
    ),
    "Clip": drawn(_clip),
    "Concat": drawn(_concat),
    "Conv": drawn(_conv),
    "Dropout": built(Builder.dropout, opsets=(7, NEWEST)),
    "Flatten": plain("Flatten", axis=st.just(1)),
    "Gemm": drawn(_gemm),
    "GlobalAveragePool": plain("GlobalAveragePool", planes),
    "GlobalMaxPool": plain("GlobalMaxPool", planes),
    "Identity": plain("Identity"),
    "LRN": drawn(_lrn),
    "LogSoftmax": softmaxes("LogSoftmax"),
    "MatMul": built(Builder.matmul, rows, outputs=st.integers(1, 19)),
    "MaxPool": pools("MaxPool", ceil_mode=st.integers(0, 1)),
    "Mul": broadcasts("Mul"),
    "Pad": drawn(_pad),
    "ReduceMean": built(
        Builder.reduce_mean,
        planes,
        (13, NEWEST),
        axes=st.sampled_from(((2, 3), (-1, 2))),
        keepdims=st.integers(0, 1),
    ),
    "Relu": plain("Relu"),
    "Reshape": drawn(_reshape),
    "Softmax": softmaxes("Softmax"),
    "Split": drawn(_split),
    "Squeeze": drawn(_squeeze),
    "Sum": broadcasts("Sum"),
    "Transpose": drawn(_transpose),
    "Unsqueeze": built(lambda b, x, axis: b.unsqueeze(x, axis), opsets=(7, NEWEST), axis=st.integers(1, 2)),
}


# --- The law ------------------------------------------------------------------------------------------------


def distinct(shape: Shape, rng: np.random.Generator) -> Array:
    """Values between 0.1 and 1 and their negatives, no two of one magnitude."""
    magnitudes = rng.permutation(np.linspace(0.1, 1, math.prod(shape)))
    return (magnitudes * rng.choice((-1, 1), magnitudes.size)).reshape(shape).astype(np.float32)


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float64 in place of float32."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(float), tensor.name))
    return model


def forward(model: onnx.ModelProto, by_oracle: bool) -> Callable[[Array], float]:
    """The sum of all samples' scores in float64."""
    if by_oracle:
        output = model.graph.output[0].name
        return lambda x: float(oracle.Run(model, x).values[output].sum())
    evaluator = ReferenceEvaluator(in_double(model))
    return lambda x: float(evaluator.run(None, {"x": x})[0].sum())


def test_every_op_has_a_strategy() -> None:
    assert STRATEGIES.keys() == PARSERS.keys()


@pytest.mark.parametrize("op", STRATEGIES)
@settings(max_examples=25)
@given(data=st.data())
def test_the_map_is_the_slope(op: str, data: st.DataObject) -> None:
    case: Drawn = data.draw(STRATEGIES[op])
    b = Builder(case.opset)
    model = b.model(b.head(case.net(b, b.input(*case.shape)), 1))
    assert op in {node.op_type for node in model.graph.node}
    rng = np.random.default_rng(1)
    x = distinct(case.shape, rng)
    gradient = Explainer(model).explain(x, rule="vanilla").map
    x = x.astype(float)
    f = forward(model, case.by_oracle)
    for u in rng.standard_normal((DIRECTIONS, *case.shape)):
        slope = (f(x + STEP * u) - f(x - STEP * u)) / (2 * STEP)
        rounding = 1e-15 * (1 + abs(f(x))) / STEP
        error = abs(np.vdot(gradient, u) - slope)
        assert error <= BOUND * np.linalg.norm(gradient) * np.linalg.norm(u) + rounding
