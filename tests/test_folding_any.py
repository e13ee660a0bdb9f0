"""Constants of any op: what is folded has the meaning of the file's opset, and costs what it may."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builder import Builder, versions_of_ops
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gbp import Explainer, GbpError, UnsupportedError
from gbp.importer.folding import FOLDS, evaluate
from gbp.limits import Budget

rng = np.random.default_rng(0)


def noise(*shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values)


X, ROWS = noise(2, 4, 6, 5), noise(3, 4)
POSITIVE = np.abs(X) + 1.5
#: Constant inputs and attributes of each op; since which opset onnxruntime has it, where later than the op.
OPS: dict[str, tuple[list[Any], dict[str, Any], int]] = {
    **{op: ([X], {}, 7) for op in ("Atan", "Cos", "Elu", "HardSigmoid", "LeakyRelu", "Selu", "Sin", "Tan")},
    **{op: ([X], {}, 7) for op in ("Softplus", "Softsign", "GlobalAveragePool", "GlobalMaxPool")},
    **{op: ([X], {}, 9) for op in ("Asinh", "Cosh", "Sinh", "NonZero", "Shrink", "IsNaN")},
    **{op: ([X], {}, 10) for op in ("ThresholdedRelu", "MeanVarianceNormalization")},
    **{op: ([X / 9], {}, 9) for op in ("Acos", "Asin", "Atanh")},
    "Acosh": ([POSITIVE], {}, 9),
    "Celu": ([X], {"alpha": 1.5}, 12),
    "HardSwish": ([X], {}, 14),
    "Mish": ([X], {}, 18),
    "Gelu": ([X], {}, 20),
    "Mean": ([X, X[:1], X[..., :1]], {}, 8),
    "PRelu": ([X, noise(4, 1, 1)], {}, 7),
    "IsInf": ([np.where(X > 0, np.inf, -np.inf).astype(np.float32)], {}, 10),
    "BitShift": ([np.array([1, 2], np.uint8), np.array([3, 1], np.uint8)], {"direction": "LEFT"}, 11),
    **{op: ([ints(5, 6), ints(3, 12)], {}, 18) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")},
    "BitwiseNot": ([ints(5, 6)], {}, 18),
    **{op: ([X], {"axis": 2, "keepdims": 0}, 7) for op in ("ArgMax", "ArgMin")},
    "BatchNormalization": ([X, noise(4), noise(4), noise(4), np.abs(noise(4))], {"epsilon": 0.1}, 7),
    "InstanceNormalization": ([X, noise(4), noise(4)], {"epsilon": 0.1}, 7),
    "LayerNormalization": ([X, noise(6, 5), noise(6, 5)], {"axis": 2, "epsilon": 0.1}, 17),
    "GroupNormalization": ([X, noise(4), noise(4)], {"num_groups": 2, "epsilon": 0.1}, 21),
    "RMSNormalization": ([X, noise(5)], {"epsilon": 0.1}, 23),
    "LpNormalization": ([X], {"axis": 1, "p": 2}, 7),
    "LRN": ([X], {"size": 3, "alpha": 0.5}, 7),
    **{op: ([ROWS], {"axis": 1}, 7) for op in ("LogSoftmax", "Hardmax")},
    "TopK": ([X, ints(2)], {"axis": 1}, 10),
    "Compress": ([X, np.array([True, False, True])], {"axis": 1}, 9),
    "Unique": ([ints(3, 1, 3)], {}, 11),
    "EyeLike": ([ROWS], {"k": 1}, 9),
    "Det": ([noise(2, 3, 3)], {}, 11),
    "ReverseSequence": ([noise(4, 3), ints(2, 3, 4)], {"time_axis": 0, "batch_axis": 1}, 10),
    "Conv": ([X, noise(6, 2, 3, 3), noise(6)], {"group": 2, "pads": [1] * 4, "strides": [2, 1]}, 7),
    "ConvTranspose": ([X, noise(4, 3, 2, 3)], {"strides": [2, 1], "pads": [1, 0, 0, 1]}, 7),
    "MaxPool": ([X], {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1]}, 7),
    "AveragePool": ([X], {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1]}, 7),
    "LpPool": ([X], {"kernel_shape": [2, 3], "p": 2}, 18),
    "GlobalLpPool": ([X], {"p": 3}, 7),
    "Einsum": ([ROWS, noise(4, 5)], {"equation": "ij,jk->ki"}, 12),
    "GatherND": ([X, ints(1, 2, 0, 3).reshape(2, 2)], {}, 11),
    "GridSample": ([X, np.tanh(noise(2, 3, 3, 2))], {"align_corners": 1}, 16),
    "AffineGrid": ([noise(2, 2, 3), ints(2, 3, 4, 5)], {}, 20),
    "CenterCropPad": ([X, ints(4, 8)], {"axes": [2, 3]}, 18),
    "Col2Im": ([noise(1, 5, 5), ints(5, 5), ints(1, 5)], {}, 18),
    **{op: ([np.array(7)], {}, 17) for op in ("BlackmanWindow", "HannWindow", "HammingWindow")},
    "MatMulInteger": ([np.array([[1, 2]], np.uint8), np.array([[3], [4]], np.uint8)], {}, 10),
    "QuantizeLinear": ([X, np.float32(0.02), np.uint8(128)], {}, 10),
    "DynamicQuantizeLinear": ([X], {}, 11),
    "DequantizeLinear": ([np.arange(-6, 6, dtype=np.int8), np.float32(0.5), np.int8(3)], {}, 10),
    "ConvInteger": (
        [np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4), np.ones((1, 1, 2, 2), np.uint8)],
        {},
        10,
    ),
    "RoiAlign": (
        [X, np.array([[0, 0, 4, 3], [1, 1, 3, 5]], np.float32), ints(1, 0)],
        {"output_height": 2, "output_width": 2, "sampling_ratio": 2},
        10,
    ),
    "MaxUnpool": (
        [noise(1, 1, 2, 2), ints(0, 3, 8, 10).reshape(1, 1, 2, 2)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        9,
    ),
    "DFT": ([noise(1, 8, 1)], {}, 17),
    "STFT": ([noise(1, 16, 1), np.array(4), np.ones(8, np.float32)], {}, 17),
    "MelWeightMatrix": ([np.array(8), np.array(16), np.array(8000), np.float32(0), np.float32(4000)], {}, 17),
    "QLinearMatMul": (
        [
            *(np.array([[9, 200]], np.uint8), np.float32(0.5), np.uint8(3)),
            *(np.array([[30], [4]], np.uint8), np.float32(0.25), np.uint8(1)),
            *(np.float32(4), np.uint8(7)),
        ],
        {},
        10,
    ),
}


def opsets(op: str, since: int) -> list[int]:
    """The first that onnxruntime takes, and all since at which the op changed."""
    changed = versions_of_ops()[op]
    return sorted({max(since, min(changed)), *(n for n in changed if since <= n <= 22)})


CASES = [(op, opset) for op, (_, _, since) in OPS.items() for opset in opsets(op, since)]


def folded(
    op: str, values: list[Any], opset: int, outputs: int = 1, stored: int = 0, **attributes: Any
) -> list[NDArray[Any]]:
    names, made = [f"i{i}" for i in range(len(values))], [f"o{i}" for i in range(outputs)]
    node = helper.make_node(op, names, made, **attributes)
    result = evaluate(node, dict(zip(names, map(np.asarray, values), strict=True)), opset, Budget.of(stored))
    return [result[name] for name in made]


@pytest.mark.parametrize(("op", "opset"), CASES)
def test_a_folded_constant_is_what_onnxruntime_makes(op: str, opset: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    values, attributes, _ = OPS[op]
    if op == "Mean" and opset < 8:
        pytest.skip("of one shape")
    stored = [numpy_helper.from_array(np.asarray(value), f"i{i}") for i, value in enumerate(values)]
    outputs = {"TopK": 2, "DynamicQuantizeLinear": 3}.get(op, 1)
    node = helper.make_node(op, [t.name for t in stored], [f"o{i}" for i in range(outputs)], **attributes)
    made = list(map(helper.make_empty_tensor_value_info, node.output))
    graph = helper.make_graph([node], "g", [], made, stored)
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        truths = onnxruntime.InferenceSession(m.SerializeToString(), options).run(None, {})
    except Exception as error:
        pytest.skip(f"onnxruntime does not run it: {error!s:.80}")
    found = folded(op, values, opset, outputs, **attributes)
    for y, truth in zip(found, truths, strict=True):
        assert (y.shape, y.dtype) == (truth.shape, truth.dtype)
        np.testing.assert_allclose(y, truth, rtol=1e-4, atol=1e-5)


WINDOWS: list[dict[str, Any]] = [
    {"pads": [2, 0, 1, 1]},
    {"pads": [1, 0, 1, 1], "ceil_mode": 1, "strides": [2, 3]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 1], "ceil_mode": 1},
    {"auto_pad": "VALID", "strides": [3, 2]},
    {"auto_pad": "VALID", "dilations": [2, 3]},
    {"dilations": [2, 1], "strides": [1, 2]},
    {"ceil_mode": 1, "strides": [3, 1]},
]
SIZES: list[dict[str, Any]] = [
    {},
    {"output_padding": [1, 0], "strides": [2, 3]},
    {"output_shape": [9, 8]},
]


def _slides(op: str) -> list[dict[str, Any]]:
    """The attributes of ops with windows."""
    if op == "AveragePool":
        return [window | {"count_include_pad": n} for window in WINDOWS for n in (0, 1)]
    if op == "LpPool":
        return [window | {"p": p} for window in WINDOWS for p in (1, 2, 3)]
    if op == "MaxPool":
        return WINDOWS
    plain = [{k: v for k, v in window.items() if k != "ceil_mode"} for window in WINDOWS]
    more = [window | size for window in plain[2:] for size in SIZES if "auto_pad" in window]
    return [
        window | {"group": g} for window in plain + (more if op == "ConvTranspose" else []) for g in (1, 2, 4)
    ]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"])
def test_constants_have_the_windows_of_layers(op: str) -> None:
    """And layers are compared with plain loops.  onnx's reference has other windows for some of these."""
    x = noise(1, 4, 7, 6)
    for attributes in map(dict, _slides(op)):
        operands = [x]
        if op.startswith("Conv"):
            group = attributes["group"]
            shape = (2 * group, 4 // group) if op == "Conv" else (4, 2)
            operands += [noise(*shape, 3, 2), noise(2 * group)]
        else:
            attributes |= {"kernel_shape": [3, 2]}
        b = Builder(22)
        name = b.foreign(op, (1, 1), b.input(*x.shape), *map(b.constant, operands[1:]), **attributes)
        (y,) = folded(op, operands, 22, **attributes)
        assert y.dtype == np.float32
        layer = Explainer(b.model(b.flatten(name))).predict(x)
        np.testing.assert_allclose(y.reshape(1, -1), layer, rtol=1e-4, atol=1e-5, err_msg=str(attributes))


def test_a_maximum_of_integers_is_none_of_the_padding() -> None:
    x = np.full((1, 1, 3, 3), -5, np.int8)
    (y,) = folded("MaxPool", [x], 17, kernel_shape=[2, 2], pads=[1, 1, 1, 1])
    assert y.dtype == np.int8
    assert (y == -5).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_constants_of_one_to_three_axes_are_what_onnxruntime_makes(rank: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x, whole = noise(2, 4, *range(5, 5 + rank)), [1] * rank
    cases: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("Conv", [noise(4, 2, *range(1, 1 + rank))], {"group": 2, "strides": [2] * rank}),
        ("ConvTranspose", [noise(4, 3, *range(1, 1 + rank))], {"group": 4, "strides": [2] * rank}),
        (
            "AveragePool",
            [],
            {"kernel_shape": [3] * rank, "pads": whole * 2, "ceil_mode": 1, "strides": [2] * rank},
        ),
        ("LpPool", [], {"kernel_shape": [2] * rank, "p": 3}),
        ("GlobalLpPool", [], {"p": 3}),
    ]
    for op, more, attributes in cases:
        names = ["x", "w"][: 1 + len(more)]
        node = helper.make_node(op, names, ["y"], **attributes)
        stored = [numpy_helper.from_array(v, n) for n, v in zip(names, [x, *more], strict=True)]
        graph = helper.make_graph([node], "g", [], [helper.make_empty_tensor_value_info("y")], stored)
        m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)
        (truth,) = onnxruntime.InferenceSession(m.SerializeToString()).run(None, {})
        (y,) = folded(op, [x, *more], 21, **attributes)
        np.testing.assert_allclose(y, truth, rtol=1e-4, atol=1e-5, err_msg=op)


def test_what_takes_too_many_steps_is_said_to() -> None:
    x = np.ones((1, 1, 2000, 2000), np.float32)
    with pytest.raises(UnsupportedError, match=r"steps.*constants that are computed in a few"):
        folded("AveragePool", [x], 17, kernel_shape=[9, 9])


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "auto_pad": "SAME"}),
        ("LpNormalization", {"p": 3}),
        ("LpNormalization", {"p": 0}),
    ],
)
def test_attributes_that_onnx_does_not_know(op: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(GbpError):
        folded(op, [noise(1, 2, 5, 5)], 17, **attributes)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization_is_by_magnitudes(p: int, axis: int) -> None:
    x = np.vstack([noise(3, 4), np.zeros((1, 4), np.float32)])
    norm = np.abs(x).sum(axis, keepdims=True) if p == 1 else np.sqrt((x**2).sum(axis, keepdims=True))
    (y,) = folded("LpNormalization", [x], 17, p=p, axis=axis)
    np.testing.assert_allclose(y, x / np.where(norm == 0, 1, norm), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 4), (1, 7, 3, 2), (3, 7, 2, 3, 2)])
@pytest.mark.parametrize("size", [1, 2, 4, 20])
def test_lrn_of_any_rank_and_size(shape: tuple[int, ...], size: int) -> None:
    """onnx's reference takes four axes only, and the batch for the number of channels."""
    x = noise(*shape)
    (y,) = folded("LRN", [x], 13, size=size, alpha=2.0, beta=0.6, bias=1.5)
    for c in range(shape[1]):
        window = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1].astype(np.float64)
        wanted = x[:, c] / (1.5 + 2.0 / size * (window**2).sum(axis=1)) ** 0.6
        np.testing.assert_allclose(y[:, c], wanted, rtol=1e-6)


#: onnx's reference implementation is as good as the specification of these, and onnxruntime lacks them or
#: takes other types: each is a function of what it is given, of the size that onnx infers.
UNCHECKED = {
    *(
        "Attention",
        "BitCast",
        "CumProd",
        "DeformConv",
        "GRU",
        "LSTM",
        "QLinearConv",
        "RNN",
        "RotaryEmbedding",
    ),
    "Swish",
}


@pytest.mark.parametrize(
    "attributes", [{}, {"sorted": 1}, {"sorted": 0}, {"axis": 0}, {"axis": -1, "sorted": 0}]
)
@pytest.mark.parametrize("outputs", [["y"], ["y", "", "to", ""]])
@pytest.mark.parametrize("shape", [(9,), (4, 3)])
def test_unique_values_in_either_order(
    attributes: dict[str, int], outputs: list[str], shape: tuple[int, ...]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    x = np.random.default_rng(3).integers(0, 3, shape).astype(np.float32)
    node = helper.make_node("Unique", ["x"], outputs, name="unique", **attributes)
    kinds = [(name, kind) for name, kind in zip(outputs, (1, 7, 7, 7), strict=False) if name]
    graph = helper.make_graph(
        [node],
        "unique",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expected = runtime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    if len(kinds) > 1 and len(shape) > 1 and not attributes.get("sorted", 1):
        with pytest.raises(UnsupportedError, match="Unique 'unique': it is not sorted"):
            evaluate(node, {"x": x}, 17, Budget.of(0))
        return
    found = evaluate(node, {"x": x}, 17, Budget.of(0))
    for (name, _), value in zip(kinds, expected, strict=True):
        np.testing.assert_array_equal(found[name], value)


def test_every_op_is_foldable() -> None:
    assert set(OPS) | UNCHECKED <= FOLDS.keys()


# -------------------------------------------------------------------------------------------- quantized


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16])
def test_weights_by_channel(kind: Any) -> None:
    info = np.iinfo(kind)
    q = rng.integers(info.min, info.max, (4, 3, 2, 2), endpoint=True).astype(kind)
    scale = np.abs(noise(4)) / 100
    zero = rng.integers(info.min, info.max, 4).astype(kind)
    (y,) = folded("DequantizeLinear", [q, scale, zero], 13, axis=0)
    shape = (4, 1, 1, 1)
    np.testing.assert_allclose(y, (q - zero.astype(float).reshape(shape)) * scale.reshape(shape), rtol=1e-6)
    (back,) = folded("QuantizeLinear", [y, scale, zero], 13, axis=0)
    np.testing.assert_array_equal(back, q)
    assert back.dtype == kind


def test_weights_by_block() -> None:
    q = rng.integers(-8, 8, (5, 6)).astype(np.int8)
    scale, zero = np.abs(noise(5, 2)), rng.integers(-8, 8, (5, 2)).astype(np.int8)
    (y,) = folded("DequantizeLinear", [q, scale, zero], 21, axis=1, block_size=4)
    wide = [np.repeat(v, 4, 1)[:, :6].astype(float) for v in (scale, zero)]
    np.testing.assert_allclose(y, (q - wide[1]) * wide[0], rtol=1e-6)


def test_a_quotient_rounds_to_the_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, 300, -300], np.float32)
    (y,) = folded("QuantizeLinear", [x, np.float32(1), np.uint8(2)], 10)
    np.testing.assert_array_equal(y, [2, 4, 4, 2, 255, 0])


def test_integers_of_32_bits_are_exact_as_far_as_floats_are() -> None:
    q = np.array([2**24 + 1, -(2**31), 7], np.int32)
    (y,) = folded("DequantizeLinear", [q, np.float32(0.5)], 13)
    np.testing.assert_array_equal(y, q.astype(np.float32) * np.float32(0.5))


@pytest.mark.parametrize(
    ("scale", "attributes"),
    [(noise(3), {"axis": 0}), (noise(4), {"axis": 7}), (noise(4, 3), {"axis": 0, "block_size": 9})],
)
def test_scales_that_do_not_fit(scale: Any, attributes: dict[str, int]) -> None:
    with pytest.raises(GbpError, match="do not fit"):
        folded("DequantizeLinear", [np.ones((4, 3), np.int8), scale], 21, **attributes)


def test_quantized_weights_may_be_as_large_as_the_file_says() -> None:
    """One scale for each of 1280 channels does not make 1280 times as many weights."""
    q = np.zeros((1280, 320, 1, 1), np.int8)
    (y,) = folded("DequantizeLinear", [q, np.ones(1280, np.float32)], 21, axis=0, stored=q.nbytes)
    assert y.shape == q.shape


# ---------------------------------------------------------------------------------------------- budgets

BOMBS: dict[str, tuple[list[Any], dict[str, Any], int]] = {
    "ConvTranspose": ([noise(1, 1, 9, 9), noise(1, 1, 9, 9)], {"strides": [2**20] * 2}, 17),
    "Conv": ([noise(1, 1, 9, 9), noise(1, 1, 9, 9)], {"pads": [2**20] * 4}, 17),
    "MaxPool": ([noise(1, 1, 9, 9)], {"kernel_shape": [2**12] * 2, "pads": [2**12 - 1] * 4}, 17),
    "Einsum": ([noise(512), noise(512), noise(512), noise(512)], {"equation": "a,b,c,d->abcd"}, 17),
    "Einsum, no arrow": ([noise(512)] * 4, {"equation": "a,b,c,d"}, 17),
    "Einsum, many products": ([noise(512)] * 4, {"equation": "a,b,c,d->"}, 17),
    "AffineGrid": ([noise(1, 2, 3), ints(1, 1, 2**20, 2**20)], {}, 20),
    "CenterCropPad": ([noise(1, 1), ints(2**20, 2**20)], {}, 18),
    "Col2Im": ([noise(1, 1, 1), ints(2**20, 2**20), ints(2**20, 2**20)], {}, 18),
    "HannWindow": ([np.array(2**40)], {}, 17),
    "DFT": ([noise(1, 64, 1), np.array(2**40)], {}, 20),
    "GatherND": ([noise(2**10, 2**10), np.zeros((2**14, 1), np.int64)], {}, 17),
    "MelWeightMatrix": (
        [np.array(2**20), np.array(2**20), np.array(8000), np.float32(1), np.float32(2)],
        {},
        17,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_few_bytes_do_not_make_gigabytes(name: str) -> None:
    values, attributes, opset = BOMBS[name]
    with pytest.raises(GbpError):
        folded(name.partition(",")[0], values, opset, **attributes)


@pytest.mark.parametrize("op", ["RandomNormalLike", "Bernoulli", "SequenceConstruct", "ImageDecoder"])
def test_what_is_not_the_same_each_time_or_no_tensor_is_refused(op: str) -> None:
    with pytest.raises(UnsupportedError, match="does not fold"):
        folded(op, [noise(2, 2)], 22)


def test_an_op_of_another_domain_is_not_onnx_s() -> None:
    node = helper.make_node("Sin", ["x"], ["y"], domain="own")
    with pytest.raises(UnsupportedError, match="does not fold"):
        evaluate(node, {"x": noise(2)}, 17, Budget.of(0))


def test_bfloat16_folds_to_what_it_holds() -> None:
    (y,) = folded("Cast", [np.array([1.0, 1.001, np.inf], np.float32)], 17, to=TensorProto.BFLOAT16)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, [1, 1, np.inf])
