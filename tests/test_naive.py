"""Tests of the oracle: forward against ONNX's reference implementation, backward against finite differences.

Where ONNX's reference implementation strays from ONNX's specification, windows written out by hand take its
place, and a comment says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import naive
import numpy as np
import pytest
from naive import Array
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

OPSET = 21


def distinct(*shape: int, seed: int = 0) -> Array:
    """Return an array whose cells all differ in magnitude, with random signs, none nearer to 0 than 0.1.

    Maxima are unique and no cell sits at a kink of Relu, so every operator is differentiable there.
    """
    rng = np.random.default_rng(seed)
    magnitudes = rng.permutation(np.linspace(0.1, 1.0, math.prod(shape)))
    return (magnitudes * rng.choice([-1.0, 1.0], magnitudes.size)).reshape(shape)


def reference(op: str, *inputs: Any, **attributes: Any) -> list[Array]:
    """Run one node of type ``op`` in ONNX's reference implementation and return its outputs.

    Inputs keep their float64. Float attributes become float32, as in any ONNX file: give round binary ones.
    """
    arrays = {f"i{k}": np.asarray(value) for k, value in enumerate(inputs)}
    outputs = [f"o{k}" for k in range(attributes.get("num_outputs", 1))]
    node = helper.make_node(op, list(arrays), outputs, **attributes)
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in arrays],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    return ReferenceEvaluator(model).run(None, arrays)


def each(name: str, cases: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrize a test over a table: its keys become the ids, its values the argument ``name``."""
    return pytest.mark.parametrize(name, cases.values(), ids=cases.keys())


def assert_close(actual: Any, desired: Any) -> None:
    """Demand the same shape and the same numbers up to float64 rounding."""
    np.testing.assert_allclose(actual, desired, rtol=1e-12, atol=1e-12, strict=True)


# --- The tables ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    """A convolution: the shapes of x and w, and the keywords of ``naive.conv_*``."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    keywords: dict[str, Any]


CONV = {
    "pointwise": Conv((2, 3, 4, 5), (6, 3, 1, 1), {}),
    "3x3": Conv((2, 3, 5, 6), (4, 3, 3, 3), {"pads": (1, 1, 1, 1)}),
    "four different pads": Conv((1, 2, 6, 5), (3, 2, 3, 2), {"pads": (0, 1, 2, 3)}),
    "padding wider than the kernel": Conv((1, 2, 3, 3), (2, 2, 1, 1), {"pads": (2, 1, 0, 2)}),
    "stride": Conv((1, 2, 9, 8), (3, 2, 3, 3), {"stride": (2, 3)}),
    "stride beyond the kernel": Conv((1, 2, 7, 8), (3, 2, 1, 2), {"stride": (2, 3)}),
    "dilation": Conv((1, 2, 9, 7), (3, 2, 3, 2), {"dilation": (2, 3), "pads": (2, 1, 2, 1)}),
    "two groups": Conv((2, 4, 5, 5), (6, 2, 3, 3), {"group": 2, "pads": (1, 1, 1, 1)}),
    "depthwise": Conv((1, 3, 6, 5), (3, 1, 3, 3), {"group": 3, "pads": (1, 1, 1, 1), "stride": (2, 2)}),
    "depthwise, two filters a channel": Conv((1, 3, 5, 5), (6, 1, 2, 2), {"group": 3}),
    "everything": Conv(
        (2, 4, 11, 9),
        (6, 2, 3, 2),
        {"stride": (2, 3), "pads": (2, 0, 1, 3), "dilation": (2, 3), "group": 2},
    ),
}

# Keywords of naive.maxpool_* and naive.averagepool_*, for images of 7 × 9 cells.
POOL: dict[str, dict[str, Any]] = {
    "2x2": {"kernel": (2, 2), "stride": (2, 2)},
    "overlapping": {"kernel": (3, 3), "stride": (2, 2)},
    "unit stride": {"kernel": (3, 3), "pads": (1, 1, 1, 1)},
    "four different pads": {"kernel": (4, 3), "stride": (2, 3), "pads": (0, 1, 3, 2)},
    "padding at the end": {"kernel": (3, 3), "stride": (2, 2), "pads": (0, 0, 1, 1)},
    "dilation": {"kernel": (3, 2), "stride": (2, 1), "dilation": (2, 3), "pads": (1, 1, 1, 1)},
    "gaps between windows": {"kernel": (1, 2), "stride": (2, 3)},
    "ceil": {"kernel": (2, 2), "stride": (2, 2), "ceil_mode": True},
    "ceil and padding": {"kernel": (3, 2), "stride": (2, 2), "pads": (1, 0, 1, 1), "ceil_mode": True},
    "ceil, last window starts in the padding": {
        "kernel": (2, 2),
        "stride": (2, 3),
        "pads": (1, 0, 1, 1),
        "ceil_mode": True,
    },
    "ceil and dilation": {"kernel": (2, 3), "stride": (2, 3), "dilation": (2, 3), "ceil_mode": True},
}

# Once the last window hangs out by two cells, onnx.reference moves all windows back by half of that; and its
# MaxPool loses windows at unit stride with unequal pads. The specification has neither, nor has onnxruntime.
POOL_BEYOND_REFERENCE: dict[str, dict[str, Any]] = {
    "ceil, two cells out": {"kernel": (4, 5), "stride": (5, 6), "ceil_mode": True},
    "ceil, two cells out of the padding": {
        "kernel": (4, 3),
        "stride": (3, 4),
        "pads": (1, 0, 1, 1),
        "ceil_mode": True,
    },
    "unit stride, unequal pads": {"kernel": (3, 3), "pads": (0, 2, 1, 0)},
}


@dataclass(frozen=True)
class Axis:
    """One axis of a pooling, and its windows written out by hand.

    ``windows`` lists the input cells of each window, ``divisors`` how many cells each has with its padding.
    """

    size: int
    kernel: int
    stride: int = 1
    pads: tuple[int, int] = (0, 0)
    dilation: int = 1
    ceil_mode: bool = False
    windows: tuple[list[int], ...] = ()
    divisors: tuple[int, ...] = ()

    def keywords(self, axis: int) -> dict[str, Any]:
        """Return the keywords of a pooling that does this along H (0) or W (1), nothing along the other."""

        def pair(value: int, other: int) -> tuple[int, int]:
            return (value, other) if axis == 0 else (other, value)

        return {
            "kernel": pair(self.kernel, 1),
            "stride": pair(self.stride, 1),
            "dilation": pair(self.dilation, 1),
            "pads": pair(self.pads[0], 0) + pair(self.pads[1], 0),
            "ceil_mode": self.ceil_mode,
        }


AXIS = {
    "floor leaves cells over": Axis(5, 2, 2, windows=([0, 1], [2, 3]), divisors=(2, 2)),
    "ceil takes them": Axis(5, 2, 2, ceil_mode=True, windows=([0, 1], [2, 3], [4]), divisors=(2, 2, 1)),
    "nothing left over": Axis(4, 2, 2, ceil_mode=True, windows=([0, 1], [2, 3]), divisors=(2, 2)),
    "two cells out": Axis(5, 4, 3, ceil_mode=True, windows=([0, 1, 2, 3], [3, 4]), divisors=(4, 2)),
    "one cell padding, one cell out": Axis(
        5, 4, 3, pads=(0, 1), ceil_mode=True, windows=([0, 1, 2, 3], [3, 4]), divisors=(4, 3)
    ),
    "window starting in the padding": Axis(
        4, 2, 2, pads=(0, 1), ceil_mode=True, windows=([0, 1], [2, 3]), divisors=(2, 2)
    ),
    "window starting beyond the padding": Axis(
        4, 2, 3, pads=(1, 1), ceil_mode=True, windows=([0], [2, 3]), divisors=(2, 2)
    ),
    "unequal pads": Axis(3, 3, pads=(2, 1), windows=([0], [0, 1], [0, 1, 2], [1, 2]), divisors=(3, 3, 3, 3)),
    "dilation": Axis(5, 2, dilation=3, windows=([0, 3], [1, 4]), divisors=(2, 2)),
    "dilation over the padding": Axis(
        4, 2, pads=(1, 1), dilation=2, windows=([1], [0, 2], [1, 3], [2]), divisors=(2, 2, 2, 2)
    ),
}

SOFTMAX_AXES = {"first": 0, "channel": 1, "last": -1}
LRN_SIZES = (1, 2, 3, 4, 5, 9)
LRN = {"alpha": 0.7, "beta": 0.75, "bias": 1.3}
GEMM_TRANSPOSES = [(a, b) for a in (False, True) for b in (False, True)]
MATMUL_SHAPES = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((6, 1, 3, 4), (2, 4, 5)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((4,), (2, 4, 5)),
    ((2, 3, 4), (4,)),
    ((4,), (4,)),
]
BROADCAST_SHAPES = ((2, 3, 4, 5), (3, 1, 1), (1, 3, 1, 5))


def gemm_shapes(trans_a: bool, trans_b: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the stored shapes of a and b for a product of 3 × 4 by 4 × 5."""
    return (4, 3) if trans_a else (3, 4), (5, 4) if trans_b else (4, 5)


def onnx_window(*, kernel: Any = None, stride: Any = (1, 1), dilation: Any = (1, 1), **others: Any) -> Any:
    """Rename this file's keywords to ONNX's attributes."""
    renamed = {"kernel_shape": kernel, "strides": stride, "dilations": dilation}
    attributes = renamed | {name: int(v) if isinstance(v, bool) else v for name, v in others.items()}
    return {name: value for name, value in attributes.items() if value is not None}


# --- Forward: geometry --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auto_pad", "in_size_kernel_stride_dilation", "pads"),
    [
        ("VALID", (7, 3, 2, 1), (0, 0)),
        ("SAME_UPPER", (7, 3, 1, 1), (1, 1)),
        ("SAME_LOWER", (7, 3, 1, 1), (1, 1)),
        ("SAME_UPPER", (8, 3, 2, 1), (0, 1)),
        ("SAME_LOWER", (8, 3, 2, 1), (1, 0)),
        ("SAME_UPPER", (7, 2, 1, 1), (0, 1)),
        ("SAME_LOWER", (7, 2, 1, 1), (1, 0)),
        ("SAME_UPPER", (7, 2, 1, 4), (2, 2)),
        ("SAME_UPPER", (7, 2, 1, 3), (1, 2)),
        ("SAME_LOWER", (7, 2, 1, 3), (2, 1)),
        ("SAME_UPPER", (8, 1, 2, 1), (0, 0)),
        ("SAME_LOWER", (8, 1, 4, 1), (0, 0)),
    ],
)
def test_resolve_pads(
    auto_pad: str, in_size_kernel_stride_dilation: tuple[int, int, int, int], pads: tuple[int, int]
) -> None:
    assert naive.resolve_pads(auto_pad, *in_size_kernel_stride_dilation) == pads


@pytest.mark.parametrize("auto_pad", ["VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (2, 1, 3), (4, 3, 1), (1, 2, 1)])
def test_auto_pad_as_in_reference_conv(auto_pad: str, kernel: int, stride: int, dilation: int) -> None:
    x, w = distinct(1, 2, 8, 7), distinct(3, 2, kernel, kernel, seed=1)
    (top, bottom), (left, right) = (
        naive.resolve_pads(auto_pad, size, kernel, stride, dilation) for size in (8, 7)
    )
    window = {"stride": (stride, stride), "dilation": (dilation, dilation)}
    y = naive.conv_fwd(x, w, pads=(top, left, bottom, right), **window)
    assert_close(y, reference("Conv", x, w, auto_pad=auto_pad, **onnx_window(**window))[0])


@each("case", AXIS)
def test_pool_output_size_by_hand(case: Axis) -> None:
    size = naive.pool_output_size(
        case.size,
        case.kernel,
        case.stride,
        case.dilation,
        pad_begin=case.pads[0],
        pad_end=case.pads[1],
        ceil_mode=case.ceil_mode,
    )
    assert size == len(case.windows)


@pytest.mark.parametrize("axis", [0, 1], ids=["H", "W"])
@each("case", AXIS)
def test_pools_by_hand(case: Axis, axis: int) -> None:
    line = distinct(case.size)
    to_image = (1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1)
    x, keywords = line.reshape(to_image), case.keywords(axis)
    sums = np.array([line[cells].sum() for cells in case.windows])
    counts = [len(cells) for cells in case.windows]

    y, _ = naive.maxpool_fwd(x, **keywords)
    assert_close(y.ravel(), [line[cells].max() for cells in case.windows])
    assert_close(naive.averagepool_fwd(x, **keywords).ravel(), sums / counts)
    y = naive.averagepool_fwd(x, **keywords, count_include_pad=True)
    assert_close(y.ravel(), sums / case.divisors)


# --- Forward: against ONNX's reference implementation -------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@each("case", CONV)
def test_conv(case: Conv, bias: bool) -> None:
    x, w, b = distinct(*case.x), distinct(*case.w, seed=1), distinct(case.w[0], seed=2)
    inputs = (x, w, b) if bias else (x, w)
    y = naive.conv_fwd(*inputs, **case.keywords)
    assert_close(y, reference("Conv", *inputs, **onnx_window(**case.keywords))[0])


@each("keywords", POOL)
def test_maxpool(keywords: dict[str, Any]) -> None:
    x = distinct(2, 3, 7, 9)
    y, switches = naive.maxpool_fwd(x, **keywords)
    assert_close(y, reference("MaxPool", x, **onnx_window(**keywords))[0])
    assert switches.shape == y.shape


@pytest.mark.parametrize("count_include_pad", [False, True], ids=["cells", "cells and padding"])
@each("keywords", POOL)
def test_averagepool(keywords: dict[str, Any], count_include_pad: bool) -> None:
    x = distinct(2, 3, 7, 9)
    keywords = keywords | {"count_include_pad": count_include_pad}
    y = naive.averagepool_fwd(x, **keywords)
    assert_close(y, reference("AveragePool", x, **onnx_window(**keywords))[0])


def test_global_pools() -> None:
    x = distinct(2, 3, 4, 5)
    assert_close(naive.global_averagepool_fwd(x), reference("GlobalAveragePool", x)[0])
    y, switches = naive.global_maxpool_fwd(x)
    assert_close(y, reference("GlobalMaxPool", x)[0])
    assert_close(switches.ravel(), x.reshape(6, -1).argmax(axis=1))


def test_rectifiers() -> None:
    x = distinct(2, 3, 4, 5)
    assert_close(naive.relu_fwd(x), reference("Relu", x)[0])
    for lo, hi in ((0.0, 0.5), (-0.3, 0.2), (0.5, -0.5)):
        assert_close(naive.clip_fwd(x, lo, hi), reference("Clip", x, lo, hi)[0])


def test_batchnorm() -> None:
    x = distinct(2, 3, 4, 5)
    scale, bias, mean, var = (distinct(3, seed=seed) for seed in range(4))
    y = naive.batchnorm_fwd(x, scale, bias, mean, var**2, epsilon=2**-10)
    assert_close(y, reference("BatchNormalization", x, scale, bias, mean, var**2, epsilon=2**-10)[0])


@pytest.mark.parametrize("size", LRN_SIZES)
def test_lrn(size: int) -> None:
    x = distinct(5, 5, 2, 3)  # as many samples as channels: onnx.reference takes one for the other
    keywords = {"size": size, "alpha": 0.25 * size, "beta": 0.75, "bias": 1.25}
    assert_close(naive.lrn_fwd(x, **keywords), reference("LRN", x, **keywords)[0])


@pytest.mark.parametrize(
    ("c", "size", "region"),
    [
        (2, 1, [2]),
        (2, 2, [2, 3]),
        (2, 3, [1, 2, 3]),
        (2, 4, [1, 2, 3, 4]),
        (0, 4, [0, 1, 2]),
        (5, 4, [4, 5]),
        (3, 99, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_lrn_region(c: int, size: int, region: list[int]) -> None:
    assert list(naive.lrn_region(c, 6, size)) == region


@pytest.mark.parametrize("c_shape", [None, (3, 5), (5,), (3, 1), (1, 5), ()], ids=str)
@pytest.mark.parametrize(("trans_a", "trans_b"), GEMM_TRANSPOSES)
def test_gemm(trans_a: bool, trans_b: bool, c_shape: tuple[int, ...] | None) -> None:
    shapes = [*gemm_shapes(trans_a, trans_b), *([] if c_shape is None else [c_shape])]
    inputs = [distinct(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    y = naive.gemm_fwd(*inputs, alpha=0.5, beta=1.75, trans_a=trans_a, trans_b=trans_b)
    attributes = {"alpha": 0.5, "beta": 1.75, "transA": int(trans_a), "transB": int(trans_b)}
    assert_close(y, reference("Gemm", *inputs, **attributes)[0])


@pytest.mark.parametrize(("a_shape", "b_shape"), MATMUL_SHAPES, ids=str)
def test_matmul(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    a, b = distinct(*a_shape), distinct(*b_shape, seed=1)
    assert_close(naive.matmul_fwd(a, b), reference("MatMul", a, b)[0])


def test_add_and_mul() -> None:
    xs = [distinct(*shape, seed=seed) for seed, shape in enumerate(BROADCAST_SHAPES)]
    assert_close(naive.add_fwd(*xs), reference("Sum", *xs)[0])
    assert_close(naive.add_fwd(*xs[:2]), reference("Add", *xs[:2])[0])
    assert_close(naive.mul_fwd(*xs[:2]), reference("Mul", *xs[:2])[0])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_and_split(axis: int) -> None:
    sizes = [1, 3, 2]
    x = distinct(6, 6, 6)
    pieces = naive.split_fwd(x, sizes=sizes, axis=axis)
    expected = reference("Split", x, np.array(sizes), axis=axis, num_outputs=3)
    for piece, other in zip(pieces, expected, strict=True):
        assert_close(piece, other)
    assert_close(naive.concat_fwd(*pieces, axis=axis), reference("Concat", *pieces, axis=axis)[0])


def test_pad() -> None:
    x, pads = distinct(2, 3, 4, 5), (0, 1, 2, 0, 1, 0, 1, 3)
    assert_close(naive.pad_fwd(x, pads, value=-7.0), reference("Pad", x, np.array(pads), np.array(-7.0))[0])


def test_negative_pad_removes_cells() -> None:  # which onnx.reference refuses
    x = distinct(4, 5)
    assert_close(naive.pad_fwd(x, (-1, 2, -2, -1)), np.pad(x[1:2, :4], ((0, 0), (2, 0))))


@each("axis", SOFTMAX_AXES)
def test_softmax(axis: int) -> None:
    x = distinct(2, 3, 4) * 1000  # whose exponentials overflow
    assert_close(naive.softmax_fwd(x, axis), reference("Softmax", x, axis=axis)[0])
    assert_close(naive.logsoftmax_fwd(x / 1000, axis), reference("LogSoftmax", x / 1000, axis=axis)[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_any_float_is_computed_in_float64(dtype: type) -> None:
    x, w = distinct(1, 2, 5, 5).astype(dtype), distinct(3, 2, 3, 3, seed=1).astype(dtype)
    assert_close(naive.conv_fwd(x, w), naive.conv_fwd(x.astype(np.float64), w.astype(np.float64)))


# --- Switches -----------------------------------------------------------------------------------------------


def test_first_of_equal_maxima_takes_the_switch() -> None:
    x = np.full((1, 1, 4, 4), -1.0)  # the padding is no 0 that could win, and its cells take no switch
    y, switches = naive.maxpool_fwd(x, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1))
    assert_close(y, np.full((1, 1, 2, 2), -1.0))
    assert switches.tolist() == [[[[4, 3], [1, 0]]]]


def test_first_is_row_major() -> None:
    x = np.array([[[[0.0, 1.0, 5.0], [5.0, 5.0, 2.0]]]])
    assert naive.maxpool_fwd(x, kernel=(2, 3))[1].item() == 2
    assert naive.global_maxpool_fwd(x)[1].item() == 2
    assert naive.maxpool_fwd(x, kernel=(2, 2))[1].tolist() == [[[[2, 1]]]]


def test_minus_infinity_beats_padding() -> None:
    y, switches = naive.maxpool_fwd(np.full((1, 1, 1, 1), -np.inf), kernel=(2, 2), pads=(1, 1, 0, 0))
    assert (y.item(), switches.item()) == (-np.inf, 3)


def test_unpooling_accumulates() -> None:
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 1, 1] = 1.0  # wins all four windows
    _, switches = naive.maxpool_fwd(x, kernel=(2, 2))
    gx = naive.maxpool_bwd([[[[1.0, 2.0], [3.0, 4.0]]]], switches, x.shape, kernel=(2, 2))
    assert_close(gx, 10 * x)


@pytest.mark.parametrize("pool", [naive.maxpool_fwd, naive.averagepool_fwd])
def test_window_of_nothing_but_padding_is_refused(pool: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"window \(0, 2\) holds only padding"):
        pool(np.zeros((1, 1, 2, 2)), kernel=(1, 1), pads=(0, 0, 0, 1))


# --- Rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "hi", "for_gy_2", "for_gy_minus_3"),
    [
        ("vanilla", math.inf, [0, 0, 2, 2, 2], [0, 0, -3, -3, -3]),
        ("vanilla", 6.0, [0, 0, 2, 0, 0], [0, 0, -3, 0, 0]),
        ("deconvnet", math.inf, [2, 2, 2, 2, 2], [0, 0, 0, 0, 0]),
        ("deconvnet", 6.0, [2, 2, 2, 2, 2], [0, 0, 0, 0, 0]),
        ("guided", math.inf, [0, 0, 2, 2, 2], [0, 0, 0, 0, 0]),
        ("guided", 6.0, [0, 0, 2, 0, 0], [0, 0, 0, 0, 0]),
    ],
)
def test_rules(rule: str, hi: float, for_gy_2: list[float], for_gy_minus_3: list[float]) -> None:
    x = np.array([-1.0, 0.0, 1.0, 6.0, 9.0])
    forward_gate, gradient_gate = naive.RULES[rule]
    for gy, expected in ((2.0, for_gy_2), (-3.0, for_gy_minus_3)):
        gx = naive.rectifier_bwd(
            np.full(5, gy), x, hi=hi, forward_gate=forward_gate, gradient_gate=gradient_gate
        )
        assert_close(gx, np.array(expected, dtype=np.float64))


# --- Backward: finite differences and the adjoint identity --------------------------------------------------


@dataclass(frozen=True)
class Vjp:
    """A forward x → y, its backward (gy, x) → gx, and a shape of x; affine if y(x) − y(0) is linear in x."""

    forward: Callable[[Array], Array]
    backward: Callable[[Array, Array], Array]
    x_shape: tuple[int, ...]
    affine: bool = False


def conv_vjp(case: Conv) -> Vjp:
    w, b = distinct(*case.w, seed=1), distinct(case.w[0], seed=2)
    return Vjp(
        lambda x: naive.conv_fwd(x, w, b, **case.keywords),
        lambda gy, x: naive.conv_bwd(gy, w, x.shape, **case.keywords),
        case.x,
        affine=True,
    )


def maxpool_vjp(keywords: dict[str, Any]) -> Vjp:
    return Vjp(
        lambda x: naive.maxpool_fwd(x, **keywords)[0],
        lambda gy, x: naive.maxpool_bwd(gy, naive.maxpool_fwd(x, **keywords)[1], x.shape, **keywords),
        (2, 3, 7, 9),
    )


def averagepool_vjp(keywords: dict[str, Any]) -> Vjp:
    return Vjp(
        lambda x: naive.averagepool_fwd(x, **keywords),
        lambda gy, x: naive.averagepool_bwd(gy, x.shape, **keywords),
        (2, 3, 7, 9),
        affine=True,
    )


def rectifier_vjp(lo: float, hi: float) -> Vjp:
    return Vjp(
        lambda x: naive.clip_fwd(x, lo, hi),
        lambda gy, x: naive.rectifier_bwd(gy, x, lo=lo, hi=hi, forward_gate=True, gradient_gate=False),
        (2, 3, 4, 5),
    )


def lrn_vjp(size: int) -> Vjp:
    return Vjp(
        lambda x: naive.lrn_fwd(x, size=size, **LRN),
        lambda gy, x: naive.lrn_bwd(gy, x, size=size, **LRN),
        (2, 6, 2, 3),
    )


def batchnorm_vjp() -> Vjp:
    scale, bias, mean, var = distinct(3), distinct(3, seed=1), distinct(3, seed=2), distinct(3, seed=3) ** 2
    return Vjp(
        lambda x: naive.batchnorm_fwd(x, scale, bias, mean, var, epsilon=2**-10),
        lambda gy, x: naive.batchnorm_bwd(gy, scale, var, epsilon=2**-10),
        (2, 3, 4, 5),
        affine=True,
    )


def gemm_vjp(trans_a: bool, trans_b: bool) -> Vjp:
    a_shape, b_shape = gemm_shapes(trans_a, trans_b)
    b, c = distinct(*b_shape, seed=1), distinct(5, seed=2)
    keywords = {"alpha": 0.5, "trans_a": trans_a, "trans_b": trans_b}
    return Vjp(
        lambda a: naive.gemm_fwd(a, b, c, beta=1.75, **keywords),
        lambda gy, a: naive.gemm_bwd(gy, b, **keywords),
        a_shape,
        affine=True,
    )


def operand_vjp(
    forward: Callable[..., Array], backward: Callable[..., Any], shapes: tuple[Any, ...], i: int
) -> Vjp:
    """Return the derivative of ``forward(*xs)`` with respect to its operand i, the others held fixed."""
    fixed = [distinct(*shape, seed=seed) for seed, shape in enumerate(shapes)]

    def operands(x: Array) -> list[Array]:
        return [*fixed[:i], x, *fixed[i + 1 :]]

    return Vjp(
        lambda x: forward(*operands(x)), lambda gy, x: backward(gy, *operands(x))[i], shapes[i], affine=True
    )


def add_bwd(gy: Array, *xs: Array) -> list[Array]:
    return naive.add_bwd(gy, *(x.shape for x in xs))


def pad_vjp(*pads: int) -> Vjp:
    return Vjp(
        lambda x: naive.pad_fwd(x, pads, value=3.0),
        lambda gy, x: naive.pad_bwd(gy, pads, x.shape),
        (2, 3, 4, 5),
        affine=True,
    )


VJPS = {
    **{f"conv, {name}": conv_vjp(case) for name, case in CONV.items()},
    **{f"maxpool, {name}": maxpool_vjp(k) for name, k in (POOL | POOL_BEYOND_REFERENCE).items()},
    **{
        f"averagepool, {name}, {count_include_pad=}": averagepool_vjp(
            keywords | {"count_include_pad": count_include_pad}
        )
        for name, keywords in (POOL | POOL_BEYOND_REFERENCE).items()
        for count_include_pad in (False, True)
    },
    "global averagepool": Vjp(
        naive.global_averagepool_fwd,
        lambda gy, x: naive.global_averagepool_bwd(gy, x.shape),
        (2, 3, 4, 5),
        affine=True,
    ),
    "global maxpool": Vjp(
        lambda x: naive.global_maxpool_fwd(x)[0],
        lambda gy, x: naive.global_maxpool_bwd(gy, naive.global_maxpool_fwd(x)[1], x.shape),
        (2, 3, 4, 5),
    ),
    "relu": rectifier_vjp(0.0, math.inf),
    "clip at 0": rectifier_vjp(0.0, 0.5),
    "clip below 0": rectifier_vjp(-0.7, 0.5),
    "batchnorm": batchnorm_vjp(),
    **{f"lrn, size {size}": lrn_vjp(size) for size in LRN_SIZES},
    **{f"gemm, {a=}, {b=}": gemm_vjp(a, b) for a, b in GEMM_TRANSPOSES},
    **{
        f"matmul {a} {b}, operand {i}": operand_vjp(naive.matmul_fwd, naive.matmul_bwd, (a, b), i)
        for a, b in MATMUL_SHAPES
        for i in (0, 1)
    },
    **{
        f"{name}, operand {i}": operand_vjp(forward, backward, BROADCAST_SHAPES, i)
        for name, forward, backward in (
            ("add", naive.add_fwd, add_bwd),
            ("mul", naive.mul_fwd, naive.mul_bwd),
        )
        for i in range(3)
    },
    "pad": pad_vjp(0, 1, 2, 0, 1, 0, 1, 3),
    "pad, negative": pad_vjp(0, -1, 2, -2, 1, 0, -1, 1),
    **{
        f"softmax, {name} axis": Vjp(
            lambda x, axis=axis: naive.softmax_fwd(x, axis),
            lambda gy, x, axis=axis: naive.softmax_bwd(gy, naive.softmax_fwd(x, axis), axis),
            (2, 3, 4),
        )
        for name, axis in SOFTMAX_AXES.items()
    },
    **{
        f"logsoftmax, {name} axis": Vjp(
            lambda x, axis=axis: naive.logsoftmax_fwd(x, axis),
            lambda gy, x, axis=axis: naive.logsoftmax_bwd(gy, naive.logsoftmax_fwd(x, axis), axis),
            (2, 3, 4),
        )
        for name, axis in SOFTMAX_AXES.items()
    },
}


@each("vjp", VJPS)
def test_backward_agrees_with_finite_differences(vjp: Vjp) -> None:
    rng = np.random.default_rng(1)
    x, v = distinct(*vjp.x_shape), rng.standard_normal(vjp.x_shape)
    jv = naive.directional_derivative(vjp.forward, x, v)
    gy = rng.standard_normal(jv.shape)
    gx = vjp.backward(gy, x)
    assert gx.shape == x.shape
    assert np.vdot(gx, v) == pytest.approx(np.vdot(gy, jv), abs=1e-8 * (1 + np.abs(gx).sum()))


@each("vjp", {name: vjp for name, vjp in VJPS.items() if vjp.affine})
def test_backward_is_the_adjoint(vjp: Vjp) -> None:
    x = distinct(*vjp.x_shape)
    ax = vjp.forward(x) - vjp.forward(np.zeros_like(x))
    gy = np.random.default_rng(1).standard_normal(ax.shape)
    gx = vjp.backward(gy, x)
    assert np.vdot(gx, x) == pytest.approx(np.vdot(gy, ax), abs=1e-13 * (1 + np.abs(gx).sum()))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_and_split_undo_each_other(axis: int) -> None:
    """Both only move cells, so that transpose and inverse are the same."""
    sizes, x = [1, 3, 2], distinct(6, 6, 6)
    pieces = naive.split_fwd(x, sizes=sizes, axis=axis)
    assert_close(naive.split_bwd(*pieces, axis=axis), x)
    for piece, gradient in zip(pieces, naive.concat_bwd(x, sizes=sizes, axis=axis), strict=True):
        assert_close(gradient, piece)


def test_directional_derivative() -> None:
    x, v = distinct(3, 4), distinct(3, 4, seed=1)
    np.testing.assert_allclose(naive.directional_derivative(np.sin, x, v), np.cos(x) * v, rtol=1e-8)
