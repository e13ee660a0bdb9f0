"""Rectifiers and activations in parts: the op and its parts have one map under every rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from agreement import RULES, assert_close
from builder import Builder
from onnx import TensorProto, helper, numpy_helper

from gbp import Attribution, Explainer, InputError
from gbp.importer.load import build, open_model
from gbp.passes.name_activations import name_activations

Net = Callable[[Builder, str], str]
#: A number as the file's constant; the tensor; or an op of these.
Part = Any

x = "x"


def say(b: Builder, part: Part, name: str, dtype: Any = np.float32) -> str:
    """Write `part`, a tuple of an op and its operands, with `name` for x."""
    if isinstance(part, str):
        return name
    if isinstance(part, tuple):
        op, *operands = part
        attributes = operands.pop() if isinstance(operands[-1], dict) else {}
        written = [say(b, operand, name, dtype) for operand in operands]
        if op == "Clip":  # bounds are attributes before opset 11
            lo, hi = (None if v is None else float(dtype(v)) for v in (*operands[1:], None)[:2])
            return b.clip(written[0], lo, hi)
        if op == "Cast" and "to" not in attributes:
            attributes = {"to": TensorProto.FLOAT}
        return b.node(op, *written, **attributes)
    values = np.asarray(part, np.float64).astype(dtype).astype(np.float32)
    return b.constant(values) if part is not None else ""


def commuted(part: Part) -> Part:
    """The same with the operands of what commutes in the other order."""
    if not isinstance(part, tuple):
        return part
    op, *operands = part
    operands = [commuted(operand) for operand in operands]
    turned = {
        "Greater": "Less",
        "Less": "Greater",
        "GreaterOrEqual": "LessOrEqual",
        "LessOrEqual": "GreaterOrEqual",
    }
    if op in ("Add", "Mul", "Max", "Min", *turned):
        operands.reverse()
    return (turned.get(op, op), *operands)


SHAPES = {2: (3, 6), 3: (2, 6, 7), 4: (2, 6, 5, 4), 5: (2, 6, 3, 4, 2)}


def network(
    part: Part, *, opset: int = 13, rank: int = 4, dtype: Any = np.float32, twice: bool = True
) -> onnx.ModelProto:
    """Between two dense layers, so that gradients of both signs meet it, twice."""
    b = Builder(opset=opset)
    y = b.input(*SHAPES[rank])
    for _ in range(1 + twice):
        y = say(b, part, _mixed(b, y), dtype)
    return b.model(b.head(y))


def _mixed(b: Builder, y: str) -> str:
    if len(b.shapes[y]) == 2:
        return b.gemm(y, 6)
    return b.conv(y, 6, 1)


def maps(model: onnx.ModelProto, shape: tuple[int, ...], **options: Any) -> Iterator[tuple[str, Attribution]]:
    explainer = Explainer(model, **options)
    image = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    for rule in RULES:
        yield rule, explainer.explain(image, rule=rule, target=1)


def assert_one_map(written: onnx.ModelProto, known: onnx.ModelProto, rank: int = 4, **options: Any) -> None:
    ours, theirs = maps(written, SHAPES[rank], **options), maps(known, SHAPES[rank], **options)
    for (rule, a), (_, b) in zip(ours, theirs, strict=True):
        assert_close(a.scores, b.scores.astype(np.float64), f"{rule} scores")
        assert_close(a.map, b.map.astype(np.float64), f"{rule} map")
        assert [n.split(":")[0] for n in a.notes] == [n.split(":")[0] for n in b.notes]


def mask(op: str, of: Part = x, theta: float = 0.0) -> Part:
    return ("Cast", (op, of, theta))


def threshold(theta: float) -> Part:
    return ("ThresholdedRelu", x, {"alpha": theta})


RELU, RELU6 = ("Relu", x), ("Clip", x, 0, 6)

#: How it is written → the op that it is, and the first opset that can say so.
RECTIFIERS: dict[str, tuple[Part, Part, int]] = {
    "max": (("Max", x, 0), RELU, 8),
    "leaky of slope 0": (("LeakyRelu", x, {"alpha": 0.0}), RELU, 6),
    "prelu of slope 0": (("PRelu", x, 0), RELU, 9),
    "elu of 0": (("Elu", x, {"alpha": 0.0}), RELU, 6),
    "thresholded at 0": (threshold(0.0), RELU, 10),
    "where": (("Where", ("Greater", x, 0), x, 0), RELU, 9),
    "where not": (("Where", ("Not", ("Greater", x, 0)), 0, x), RELU, 9),
    "where cast": (("Where", ("Cast", ("Greater", x, 0), {"to": TensorProto.BOOL}), x, 0), RELU, 9),
    "by truth of a rectifier": (("Mul", x, ("Cast", ("Cast", RELU, {"to": TensorProto.BOOL}))), RELU, 9),
    "where less": (("Where", ("Less", x, 0), 0, x), RELU, 9),
    "where at least": (("Where", ("GreaterOrEqual", x, 0), x, 0), RELU, 16),
    "by mask": (("Mul", x, mask("Greater")), RELU, 9),
    "by other mask": (("Mul", x, ("Sub", 1, mask("Less"))), RELU, 9),
    "by sign": (("Mul", ("Mul", x, ("Add", ("Sign", x), 1)), 0.5), RELU, 9),
    "by absolute value": (("Mul", ("Add", x, ("Abs", x)), 0.5), RELU, 7),
    "minus the negative part": (("Sub", x, ("Min", x, 0)), RELU, 8),
    "negated": (("Neg", ("Min", ("Neg", x), 0)), RELU, 8),
    "clip from 0": (("Clip", x, 0), RELU, 7),
    "hard sigmoid": (("HardSigmoid", x, {"alpha": 1.0, "beta": 0.0}), ("Clip", x, 0, 1), 6),
    "min of relu": (("Min", RELU, 6), RELU6, 8),
    "min of max": (("Min", ("Max", x, 0), 6), RELU6, 8),
    "max of min": (("Max", ("Min", x, 6), 0), RELU6, 8),
    "clip of relu": (("Clip", RELU, None, 6), RELU6, 7),
    "relu of clip": (("Relu", ("Clip", x, None, 6)), RELU6, 7),
    "where of where": (("Where", ("Greater", x, 6), 6, ("Where", ("Greater", x, 0), x, 0)), RELU6, 9),
    "difference of relus": (("Sub", RELU, ("Relu", ("Sub", x, 6))), RELU6, 7),
    "up to 255": (("Min", RELU, 255), ("Clip", x, 0, 255), 8),
    "fused guard": (("Clip", x, 1e-6), ("Clip", RELU, 1e-6), 7),
    "fused guard by max": (("Max", x, 1e-6), ("Max", RELU, 1e-6), 8),
    "fused guard up to 6": (("Clip", x, 1e-5, 6), ("Clip", RELU6, 1e-5), 7),
    "keras threshold": (("Mul", x, mask("Greater", theta=0.7)), threshold(0.7), 10),
    "keras threshold, negative": (("Mul", x, mask("Greater", theta=-0.7)), threshold(-0.7), 10),
    "keras threshold by where": (
        ("Add", ("Mul", x, mask("Greater", theta=0.3)), ("Mul", 0, ("Cast", ("Not", ("Greater", x, 0.3))))),
        threshold(0.3),
        10,
    ),
    "threshold by where": (("Where", ("Greater", x, 0.3), x, 0), threshold(0.3), 10),
    "threshold by difference": (("Where", ("Greater", ("Sub", x, 0.3), 0), x, 0), threshold(0.3), 10),
    "threshold up to 6": (
        ("Clip", ("Mul", x, mask("Greater", theta=0.7)), 0, 6),
        ("Min", threshold(0.7), 6),
        10,
    ),
    "large threshold": (("Where", ("Greater", x, 60), x, 0), threshold(60.0), 10),
}


def by_erf(root: float = 2**0.5) -> Part:
    return ("Add", ("Erf", ("Div", x, root)), 1)


def exp(*terms: Part) -> Part:
    return ("Exp", *terms)


_SHIFTED = ("Clip", ("Add", x, 3), 0, 6)
_CUBIC = ("Mul", ("Add", x, ("Mul", 0.044715, ("Pow", x, 3))), (2 / np.pi) ** 0.5)
_STABLE = ("Add", ("Max", x, 0), ("Log", ("Add", 1, exp(("Neg", ("Abs", x))))))
_ELU = ("Sub", exp(x), 1)

ACTIVATIONS: dict[str, tuple[Part, Part, int]] = {
    "sigmoid": (("Div", 1, ("Add", 1, exp(("Neg", x)))), ("Sigmoid", x), 7),
    "sigmoid by reciprocal": (("Reciprocal", ("Add", exp(("Neg", x)), 1)), ("Sigmoid", x), 7),
    "sigmoid by quotient": (("Div", exp(x), ("Add", exp(x), 1)), ("Sigmoid", x), 7),
    "sigmoid by tanh": (("Add", ("Mul", ("Tanh", ("Mul", x, 0.5)), 0.5), 0.5), ("Sigmoid", x), 7),
    "tanh by sigmoid": (("Sub", ("Mul", 2, ("Sigmoid", ("Mul", 2, x))), 1), ("Tanh", x), 7),
    "softplus": (("Log", ("Add", exp(x), 1)), ("Softplus", x), 7),
    "softplus without overflow": (_STABLE, ("Softplus", x), 8),
    "softplus of tensorflow": (
        ("Where", ("Greater", x, 20), x, ("Log", ("Add", exp(x), 1))),
        ("Softplus", x),
        9,
    ),
    "softsign": (("Div", x, ("Add", ("Abs", x), 1)), ("Softsign", x), 7),
    "leaky by max": (("Max", x, ("Mul", x, 0.1)), ("LeakyRelu", x, {"alpha": 0.1}), 8),
    "leaky by where": (("Where", ("Greater", x, 0), x, ("Mul", x, 0.3)), ("LeakyRelu", x, {"alpha": 0.3}), 9),
    "leaky by relus": (
        ("Sub", RELU, ("Mul", 0.2, ("Relu", ("Neg", x)))),
        ("LeakyRelu", x, {"alpha": 0.2}),
        7,
    ),
    "leaky steeper below": (("Min", x, ("Mul", x, 1.5)), ("LeakyRelu", x, {"alpha": 1.5}), 8),
    "leaky falling": (
        ("Add", RELU, ("Mul", 0.2, ("Relu", ("Neg", x)))),
        ("LeakyRelu", x, {"alpha": -0.2}),
        7,
    ),
    "leaky by absolute value": (
        ("Add", ("Mul", x, 0.55), ("Mul", ("Abs", x), 0.45)),
        ("LeakyRelu", x, {"alpha": 0.1}),
        7,
    ),
    "elu": (("Where", ("Greater", x, 0), x, _ELU), ("Elu", x), 9),
    "elu by relus": (("Sub", RELU, ("Relu", ("Sub", 1, exp(x)))), ("Elu", x), 7),
    "elu of 0.7": (("Where", ("Greater", x, 0), x, ("Mul", 0.7, _ELU)), ("Elu", x, {"alpha": 0.7}), 9),
    "selu": (
        ("Mul", 1.0507009873554805, ("Where", ("Greater", x, 0), x, ("Mul", 1.6732632423543772, _ELU))),
        ("Selu", x),
        9,
    ),
    "celu": (
        ("Add", ("Max", x, 0), ("Min", 0, ("Mul", 2, ("Sub", exp(("Div", x, 2)), 1)))),
        ("Celu", x, {"alpha": 2.0}),
        12,
    ),
    "quick gelu": (("Mul", x, ("Sigmoid", ("Mul", x, 1.702))), ("Swish", x, {"alpha": 1.702}), 24),
    "swish by exp": (("Div", x, ("Add", 1, exp(("Mul", x, -1.5)))), ("Swish", x, {"alpha": 1.5}), 24),
    "gelu": (("Mul", ("Mul", x, by_erf()), 0.5), ("Gelu", x), 20),
    "gelu by tanh": (
        ("Mul", ("Mul", 0.5, x), ("Add", 1, ("Tanh", _CUBIC))),
        ("Gelu", x, {"approximate": "tanh"}),
        20,
    ),
    "hardswish": (("Div", ("Mul", x, _SHIFTED), 6), ("HardSwish", x), 14),
    "hardsigmoid": (("Div", _SHIFTED, 6), ("HardSigmoid", x, {"alpha": 1 / 6, "beta": 0.5}), 7),
    "hardsigmoid of keras": (("Clip", ("Add", ("Mul", x, 0.2), 0.5), 0, 1), ("HardSigmoid", x), 7),
    "soft shrink": (
        ("Sub", ("Relu", ("Sub", x, 0.5)), ("Relu", ("Sub", ("Neg", x), 0.5))),
        ("Shrink", x, {"bias": 0.5}),
        9,
    ),
    "hard shrink": (("Where", ("Greater", ("Abs", x), 0.5), x, 0), ("Shrink", x), 9),
}


def _ways(cases: dict[str, tuple[Part, Part, int]]) -> Iterator[Any]:
    """Each at the first opset that can say it and at newer ones, and with its operands in the other order."""
    for name, (written, known, since) in cases.items():
        for opset in sorted({since, max(13, since), 22 if since < 22 else since}):
            yield pytest.param(written, known, opset, id=f"{name}, opset {opset}")
        if commuted(written) != written:
            yield pytest.param(commuted(written), known, max(13, since), id=f"{name}, commuted")


@pytest.mark.parametrize(("written", "known", "opset"), list(_ways(RECTIFIERS)))
def test_a_rectifier_is_one_whatever_it_is_called(written: Part, known: Part, opset: int) -> None:
    assert_one_map(network(written, opset=opset), network(known, opset=max(opset, 10)))


@pytest.mark.parametrize("rank", [2, 3, 5])
@pytest.mark.parametrize("name", ["where", "by mask", "max of min", "keras threshold", "prelu of slope 0"])
def test_rectifiers_of_other_ranks(name: str, rank: int) -> None:
    written, known, _ = RECTIFIERS[name]
    assert_one_map(network(written, rank=rank), network(known, rank=rank), rank)


@pytest.mark.parametrize("activations", ["gradient", "clamp"])
@pytest.mark.parametrize(("written", "known", "opset"), list(_ways(ACTIVATIONS)))
def test_an_activation_is_one_however_it_is_written(
    written: Part, known: Part, opset: int, activations: str
) -> None:
    """Behind a rectifier, without which the rules have no meaning."""
    a, b = (
        network(("Add", RELU, part), opset=version)
        for part, version in ((written, opset), (known, max(opset, _newest(known))))
    )
    assert_one_map(a, b, activations=activations)


def _newest(part: Part) -> int:
    return {"Swish": 24, "Gelu": 20, "HardSwish": 14}.get(part[0], 7)


@pytest.mark.parametrize("rectifier", [RELU, RELU6])
def test_shrink_of_a_rectifier_is_two_things(rectifier: Part) -> None:
    """In parts, too, although the two have the values of one rectifier with a threshold."""

    def of(shrink: Part) -> onnx.ModelProto:
        b = Builder(opset=12)
        y = _mixed(b, b.input(*SHAPES[4]))
        return b.model(b.head(_mixed(b, say(b, shrink, say(b, rectifier, y)))))

    assert_one_map(of(("Where", ("Greater", ("Abs", x), 0.5), x, 0)), of(("Shrink", x)))


@pytest.mark.parametrize("activations", ["gradient", "clamp"])
def test_softplus_of_tensorflow_beyond_its_bound(activations: str) -> None:
    """The bound guards against overflow; it is no second activation."""

    def of(softplus: Part) -> onnx.ModelProto:
        b = Builder(opset=12)
        large = b.mul(_mixed(b, b.input(*SHAPES[4])), b.constant(30.0))
        return b.model(b.head(b.relu(_mixed(b, say(b, softplus, large)))))

    written, known, _ = ACTIVATIONS["softplus of tensorflow"]
    assert_one_map(of(written), of(known), activations=activations)


@pytest.mark.parametrize("activations", ["gradient", "clamp"])
def test_an_activation_that_keeps_every_value_hides_none(activations: str) -> None:
    """A slope of 1 before a Swish in parts."""

    def of(*before: Part) -> onnx.ModelProto:
        b = Builder(opset=12)
        y = b.relu(_mixed(b, b.input(*SHAPES[4])))
        shifted = b.add(y, b.constant(-0.3))
        for part in before:
            shifted = say(b, part, shifted)
        return b.model(b.head(_mixed(b, say(b, ("Mul", x, ("Sigmoid", x)), shifted))))

    assert_one_map(of(("LeakyRelu", x, {"alpha": 1.0})), of(), activations=activations)


@pytest.mark.parametrize("spread", [(6, 1, 1), (1, 6, 1, 1), (6, 5, 4), (1, 5, 1), (1, 1, 4)])
@pytest.mark.parametrize("turned", [False, True])
def test_prelu_of_keras(spread: tuple[int, ...], turned: bool) -> None:
    """relu(x) − a · relu(−x), with slopes by channel, by place or by row."""
    slopes = np.random.default_rng(2).uniform(-0.5, 0.9, spread).astype(np.float32)
    written = ("Sub", RELU, ("Mul", slopes, ("Relu", ("Neg", x))))
    known = ("PRelu", x, slopes)
    opset = 13
    assert_one_map(
        network(("Add", RELU, commuted(written) if turned else written), opset=opset),
        network(("Add", RELU, known), opset=opset),
        activations="clamp",
    )


#: A PReLU of a in parts, with slopes s of channels last: Transposes there and back, where b writes them.
def _one_part_turned(b: Builder, a: str, s: str, there: Any, back: Any) -> str:
    return b.add(b.relu(a), back(b.mul(there(b.relu(b.node("Neg", a))), s)))


def _all_parts_turned(b: Builder, a: str, s: str, there: Any, back: Any) -> str:
    return back(b.add(there(b.relu(a)), b.mul(there(b.relu(b.node("Neg", a))), s)))


def _behind_a_turned_scale(b: Builder, a: str, s: str, there: Any, back: Any) -> str:
    a = b.mul(there(a), b.constant(np.full(b.shapes[s], 2.0)))
    return b.add(back(b.relu(a)), back(b.mul(b.relu(b.node("Neg", a)), s)))  # which reads a tensor that moves


@pytest.mark.parametrize("write", [_one_part_turned, _all_parts_turned, _behind_a_turned_scale])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_prelu_of_keras_with_transposes_among_its_parts(write: Any, rank: int) -> None:
    """As tf2onnx writes the default, a slope for each place.  The gates are not those of its parts."""
    slopes = np.random.default_rng(2).uniform(-0.5, 0.9, SHAPES[rank][1:]).astype(np.float32)
    b = Builder(opset=13)
    y, s = _mixed(b, b.input(*SHAPES[rank])), b.constant(-np.moveaxis(slopes, 0, -1))
    there, back = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    y = write(b, y, s, *(lambda t, perm=perm: b.node("Transpose", t, perm=perm) for perm in (there, back)))
    known = ("PRelu", ("Mul", x, 2.0) if write is _behind_a_turned_scale else x, slopes)
    assert_one_map(b.model(b.head(y)), network(known, rank=rank, twice=False), rank, activations="clamp")


def test_a_threshold_of_keras_whose_parts_share_the_mask() -> None:
    """x · mask + 0 · (1 − mask), as tf2onnx writes Where(x > θ, x, 0)."""
    b = Builder(opset=13)
    y = _mixed(b, b.input(*SHAPES[4]))
    mask = b.node("Greater", y, b.constant(0.3))
    kept = b.mul(b.node("Cast", mask, to=TensorProto.FLOAT), y)
    rest = b.mul(b.constant(0.0), b.node("Cast", b.node("Not", mask), to=TensorProto.FLOAT))
    assert_one_map(b.model(b.head(b.add(kept, rest))), network(threshold(0.3), twice=False))


@pytest.mark.parametrize("spread", [(6, 1, 1), (6, 5, 4)])
def test_prelu_of_no_slopes_is_relu(spread: tuple[int, ...]) -> None:
    assert_one_map(network(("PRelu", x, np.zeros(spread))), network(RELU))


HALVES = (
    "hardswish",
    "hardsigmoid",
    "hardsigmoid of keras",
    "gelu",
    "gelu by tanh",
    "quick gelu",
    "selu",
    "leaky by max",
)


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("activations", ["gradient", "clamp"])
def test_activations_in_float16_constants(name: str, activations: str) -> None:
    """The map is that of the op, but for what the constants were rounded by; and the notes are its notes.

    Scores are those of the constants in the file.
    """
    written, known, since = ACTIVATIONS[name]
    written = {
        "hardswish": ("Mul", ("Mul", x, _SHIFTED), 1 / 6),
        "hardsigmoid": ("Mul", _SHIFTED, 1 / 6),
    }.get(name, written)
    part = ("Add", RELU, written)
    halves, singles = (
        network(part, opset=13, dtype=dtype, twice=False) for dtype in (np.float16, np.float32)
    )
    whole = network(("Add", RELU, known), opset=max(13, _newest(known)), twice=False)
    for model in (halves, singles, whole):  # the other weights alike
        for stored in model.graph.initializer:
            values = numpy_helper.to_array(stored)
            if values.size > 1 and values.dtype == np.float32:
                stored.CopyFrom(
                    numpy_helper.from_array(values.astype(np.float16).astype(np.float32), stored.name)
                )
    for (rule, a), (_, b) in zip(
        maps(halves, SHAPES[4], activations=activations),
        maps(whole, SHAPES[4], activations=activations),
        strict=True,
    ):
        off = np.linalg.norm(a.map - b.map) / np.linalg.norm(b.map)
        assert off < 3e-3, f"{rule}: off by {off:.2g}"
        assert [n.split(":")[0] for n in a.notes] == [n.split(":")[0] for n in b.notes]
    assert since


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
@pytest.mark.parametrize("name", HALVES)
def test_activations_in_files_of_other_widths(name: str, kind: int) -> None:
    """They are named as in float32."""
    part = ("Add", RELU, ACTIVATIONS[name][0])
    other, single = (network(part, twice=False) for _ in range(2))
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for stored in other.graph.initializer:
        if stored.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(stored).astype(dtype)
            stored.CopyFrom(helper.make_tensor(stored.name, kind, values.shape, values.tobytes(), raw=True))
    for value in (*other.graph.input, *other.graph.output):
        value.type.tensor_type.elem_type = kind
    for node in other.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    (a, b) = (Explainer(m).explain(np.ones(SHAPES[4], np.float32), rule="guided") for m in (other, single))
    assert [n.split(":")[0] for n in a.notes[: len(b.notes)]] == [n.split(":")[0] for n in b.notes]


STAYS: dict[str, Part] = {
    "absolute value": ("Add", RELU, ("Relu", ("Neg", x))),
    "identity": ("Sub", RELU, ("Relu", ("Neg", x))),
    "clip around 0": ("Clip", x, -1, 1),
    "clip from 0.1": ("Clip", x, 0.1),
    "clip from -1e-6": ("Clip", x, -1e-6),
    "relu, scaled": ("Mul", RELU, 1.5),
    "relu, shifted": ("Relu", ("Add", x, 0.5)),
    "relu, squared": ("Mul", RELU, RELU),
    "sharp swish": ("Mul", x, ("Sigmoid", ("Mul", x, 1e6))),
    "guard of a square": ("Clip", ("Mul", x, x), 1e-6),
    "guard of a variance": (
        "Clip",
        ("Sub", ("GlobalAveragePool", ("Mul", x, x)), ("Pow", ("GlobalAveragePool", x), 2)),
        1e-4,
    ),
    "guard of a probability": ("Clip", ("Sigmoid", x), 1e-6),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_known_function_keeps_its_layers(name: str) -> None:
    """And the rectifiers that it has, no more."""
    model = network(STAYS[name], twice=False)
    graph = build(open_model(model), SHAPES[4])
    named = name_activations(graph)
    assert [layer.op for layer in named.layers] == [layer.op for layer in graph.layers]


def test_a_rectifier_behind_an_activation_in_parts_stays() -> None:
    """Though it does nothing to the values, it gates the gradient, as behind the op."""
    for written, known, since in (
        ACTIVATIONS["hardsigmoid"],
        ACTIVATIONS["sigmoid"],
        ACTIVATIONS["softplus"],
    ):
        assert_one_map(
            network(("Relu", written), opset=max(13, since)), network(("Relu", known), opset=max(13, since))
        )


def test_what_others_read_stays() -> None:
    """Relu(x) is read twice: it is a rectifier, and what is made of it is not merged into it."""
    b = Builder(13)
    r = b.relu(b.conv(b.input(*SHAPES[4]), 6, 1))
    model = b.model(b.head(b.concat(b.clip(r, None, 1.0), r)))
    notes = Explainer(model).explain(np.ones(SHAPES[4], np.float32)).notes
    assert any("1 Clip node" in note for note in notes)


# --- Quantized ----------------------------------------------------------------------------------------------

#: A rectifier, or None where the quantizer left it out.
Rectifier = Callable[[Builder, str], str] | None


def quantized(
    rectifier: Rectifier,
    *,
    kind: Any = np.uint8,
    zero: int = 0,
    scale: Any = 0.02,
    opset: int = 13,
    rank: int = 4,
    into: Rectifier = None,
    add: bool = False,
) -> onnx.ModelProto:
    """Twice: a dense layer, `rectifier`, and QDQ of it; with `into` that, QDQ and it again."""
    b = Builder(opset)
    y = b.input(*SHAPES[rank])
    for _ in range(2):
        y, skip = _mixed(b, y), y
        y = b.add(y, skip) if add else y
        y = rectifier(b, y) if rectifier else y
        for _ in range(1 + (into is not None)):
            scales, zeros = b.constant(scale), b.constant(np.full(np.shape(scale), zero), kind)
            options = {"axis": 1} if np.shape(scale) else {}
            q = b.node("QuantizeLinear", y, scales, zeros, **options)
            y = b.node("DequantizeLinear", q, scales, zeros, **options)
            y = into(b, y) if into else y
    return b.model(b.head(y))


def _relu(b: Builder, y: str) -> str:
    return b.relu(y)


def _relu6(b: Builder, y: str) -> str:
    return b.clip(y, 0, 6)


def _where(b: Builder, y: str) -> str:
    return say(b, RECTIFIERS["where"][0], y)


#: What the quantizer left out, and how it quantized.
QUANTIZED: dict[str, tuple[Rectifier, dict[str, Any]]] = {
    "relu to uint8": (_relu, {}),
    "relu to int8": (_relu, {"kind": np.int8, "zero": -128}),
    "relu, saturated": (_relu, {"scale": 0.002}),
    "relu, coarse": (_relu, {"scale": 0.3}),
    "relu by channel": (_relu, {"scale": [0.01, 0.02, 0.003, 0.04, 0.05, 0.002]}),
    "relu behind a sum": (_relu, {"add": True, "rank": 2}),
    "relu of rows": (_relu, {"rank": 2}),
    "relu of volumes": (_relu, {"rank": 5}),
    "relu at opset 10": (_relu, {"opset": 10}),
    "relu at opset 21": (_relu, {"opset": 21}),
    "relu to 16 bits": (_relu, {"opset": 21, "kind": np.uint16, "scale": 1e-4}),
    "relu6": (_relu6, {"scale": 6 / 255}),
    "relu6 to int8": (_relu6, {"kind": np.int8, "zero": -128, "scale": 6 / 255}),
    "relu in other clothes": (_where, {}),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantizer_that_saturates_at_0_is_a_rectifier(name: str) -> None:
    rectifier, how = QUANTIZED[name]
    rank = how.get("rank", 4)
    if how.get("add"):
        how = how | {"rank": 2}
    for (rule, a), (_, b) in zip(
        maps(quantized(None, **how), SHAPES[rank]),
        maps(quantized(rectifier, **how), SHAPES[rank]),
        strict=True,
    ):
        np.testing.assert_array_equal(a.scores, b.scores, err_msg=rule)
        np.testing.assert_array_equal(a.map, b.map, err_msg=rule)
        assert a.notes == b.notes
        if rule != "vanilla":
            assert np.abs(a.map).max() > 0


def test_of_rectified_numbers_a_quantizer_is_no_rectifier() -> None:
    """As behind a pool, or of the image: the float network has no rectifier there."""

    def pool(b: Builder, y: str) -> str:
        return b.node("AveragePool", y, kernel_shape=[2, 2], auto_pad="SAME_UPPER")

    pooled, plain = (maps(quantized(r, into=pool), SHAPES[4]) for r in (_relu, None))
    for (rule, a), (_, b) in zip(pooled, plain, strict=True):
        np.testing.assert_array_equal(a.map, b.map, err_msg=rule)
    b = Builder(13)
    scale, zero = b.constant(0.02), b.constant(0, np.uint8)
    q = b.node("QuantizeLinear", b.input(*SHAPES[4]), scale, zero)
    y = b.relu(_mixed(b, b.node("DequantizeLinear", q, scale, zero)))
    image = np.random.default_rng(1).uniform(0, 1, SHAPES[4]).astype(np.float32)
    heat = Explainer(b.model(b.head(y))).explain(image, rule="guided").map
    assert heat.min() < 0 < heat.max()


def test_a_zero_point_within_is_no_rectifier() -> None:
    with pytest.raises(InputError, match="no rectifier"):
        list(maps(quantized(None, zero=3), SHAPES[4]))
