"""Constants fold with the meaning of the file's opset.

Every op that folds is compared with onnxruntime at every version of it, and what no runtime computes any more
with the formulas of the specification.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from test_folding_any import OPS, UNCHECKED

from gbp import ModelError
from gbp.importer.folding import FOLDS, evaluate
from gbp.limits import Budget

NEWEST = onnx.defs.onnx_opset_version()
rng = np.random.default_rng(0)

Array = NDArray[Any]


def f(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def pos(*shape: int) -> Array:
    return np.abs(f(*shape)) + np.float32(0.5)


def whole(*values: Any) -> Array:
    return np.array(values, np.int64)


def real(values: list[float]) -> Array:
    return np.array(values, np.float32)


def i(*shape: int) -> Array:
    return rng.integers(1, 9, shape)


def b(*shape: int) -> Array:
    return rng.random(shape) > 0.5


NONE = real([])

#: Inputs (None: left out), attributes, and the opsets at which the node may be written so.
Row = tuple[tuple[Any, ...], dict[str, Any], range]


def row(*inputs: Any, since: int = 1, until: int = NEWEST, **attributes: Any) -> Row:
    return inputs, attributes, range(max(7, since), until + 1)


def _reductions(moved: int) -> list[Row]:
    """Axes are an attribute before opset `moved`, an input since."""
    x = pos(2, 3, 4)
    rows = [row(x, keepdims=keep) for keep in (0, 1)]
    for axes in ([1], [0, 2], [-1]):
        since = 1 if min(axes) >= 0 else 11
        rows.append(row(x, axes=axes, keepdims=0, since=since, until=moved - 1))
        rows.append(row(x, whole(*axes), keepdims=1, since=moved))
    return [*rows, row(x, whole(), noop_with_empty_axes=1, since=moved), row(x, whole(), since=moved)]


_BYTES = np.array([[1, -3], [100, 7]], np.int8)
_TWO = [row(f(2, 3, 4), f(3, 1)), row(i(2, 3), i(3)), row(f(3), f(2, 3))]
_SOFTMAX = [
    *(row(f(2, 3, 4), axis=axis, since=1 if axis >= 0 else 11) for axis in (0, 1, 2, -1, -2)),
    *(row(f(*shape)) for shape in ((2, 3, 4), (2, 3), (1, 3, 4, 5))),
]
_ROWS: dict[str, list[Row]] = {
    **{op: [row(f(2, 3, 4))] for op in ("Abs", "Ceil", "Erf", "Exp", "Floor", "Identity", "Neg", "Relu")},
    **{op: [row(f(2, 3, 4))] for op in ("Sigmoid", "Tanh", "Transpose", "Size")},
    **{op: [row(pos(2, 3))] for op in ("Log", "Sqrt", "Reciprocal")},
    **dict.fromkeys(("Add", "Sub", "Mul"), _TWO),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _SOFTMAX),
    **{op: [row(b(2, 3), b(3))] for op in ("And", "Or", "Xor")},
    **{op: [row(f(2, 3), f(3)), row(i(2, 3), i(3), since=9)] for op in ("Greater", "Less")},
    **{op: [row(f(2, 3), f(3)), row(i(2, 3), i(3))] for op in ("GreaterOrEqual", "LessOrEqual")},
    **{op: [row(f(2, 3), f(3), f(1), since=8), row(f(2, 3), f(2, 3))] for op in ("Max", "Min", "Sum")},
    **{
        f"Reduce{kind}": _reductions(13 if kind == "Sum" else 18)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
    "Cast": [
        *(row(real([1.7, -1.7, 0, 300, -0.5]), to=to) for to in (1, 6, 7, 9, 10, 11)),
        row(i(3), to=TensorProto.FLOAT),
        row(b(3), to=TensorProto.FLOAT),
    ],
    "CastLike": [row(f(3), whole(1))],
    "Clip": [
        *(row(f(2, 9), until=10, **bounds) for bounds in ({"min": -0.3, "max": 0.4}, {"max": 0.2}, {})),
        row(f(2, 9), np.float32(-0.3), np.float32(0.4), since=11),
        row(f(2, 9), None, np.float32(0.2), since=11),
        row(i(2, 9), np.int64(3), np.int64(5), since=12),
    ],
    "Concat": [row(f(2, 3), f(2, 1), axis=1), row(f(2, 3), f(1, 3), axis=-2, since=11)],
    "ConstantOfShape": [
        row(whole(2, 3)),
        row(whole()),
        row(whole(2, 3), value=helper.make_tensor("v", TensorProto.INT64, [1], [7])),
    ],
    "CumSum": [
        *(row(f(2, 3, 4), np.int64(1), exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)),
        row(f(2, 3, 4), whole(1)),
    ],
    "DepthToSpace": [
        row(f(1, 8, 2, 3), blocksize=2),
        row(f(1, 8, 2, 3), blocksize=2, mode="CRD", since=11),
    ],
    "DequantizeLinear": [
        row(_BYTES, np.float32(0.1), np.int8(3), since=19, until=25),
        row(_BYTES, real([0.1, 0.2]), np.array([1, 2], np.int8), axis=0, since=19, until=25),
    ],
    "Div": [*_TWO, row(whole(7, -7, 7, -7), whole(2, 2, -2, -2))],
    "Dropout": [row(f(2, 3)), row(f(2, 3), ratio=0.4, until=11), row(f(2, 3), np.float32(0.4), since=12)],
    "Equal": [row(i(2, 3), i(3)), row(f(2, 3), f(3), since=11), row(b(2, 3), b(3))],
    "Expand": [row(f(3, 1), whole(2, 1, 4)), row(f(3, 4), whole(1))],
    "Flatten": [row(f(2, 3, 4), axis=axis, since=9 if axis >= 0 else 11) for axis in (0, 1, 2, 3, -1)],
    "Gather": [
        row(f(3, 4), whole(0, 2), axis=1),
        row(f(3, 4), whole(-1), axis=-1, since=11),
        row(f(3, 4), np.int64(1)),
    ],
    "GatherElements": [
        row(f(3, 4), whole([0, 2, 1, 0])),
        row(f(3, 4), whole([0], [3], [-1]), axis=1),
        row(f(3, 4), whole([0, -1])),
    ],
    "Gemm": [
        row(f(2, 3), f(3, 4), f(4), alpha=0.5, beta=2.0),
        row(f(3, 2), f(4, 3), f(2, 1), transA=1, transB=1),
        row(f(2, 3), f(3, 4), since=11),
    ],
    "MatMul": [row(f(2, 3), f(3, 4)), row(f(5, 2, 3), f(3, 4)), row(f(3), f(3, 4)), row(f(2, 3), f(3))],
    "Mod": [
        row(whole(7, -7, 7, -7), whole(3, 3, -3, -3)),
        row(whole(7, -7, 7, -7), whole(3, 3, -3, -3), fmod=1),
        row(f(4), real([0.3, 0.3, -0.3, -0.3]), fmod=1),
    ],
    "Not": [row(b(2, 3))],
    "OneHot": [
        row(whole(0, 2, -1), np.int64(3), f(2)),
        row(whole(0, 2, 5), np.int64(3), f(2), axis=0),
        row(whole(0, 2), whole(3), f(2)),
    ],
    "Pad": [
        *(row(f(3, 4), pads=[0, 1, 1, 2], mode=m, until=10) for m in ("constant", "reflect", "edge")),
        *(row(f(3, 4), whole(0, 1, 1, 2), mode=m, since=11) for m in ("constant", "reflect", "edge")),
        row(f(3, 4), whole(0, 1, 1, 2), np.float32(3), since=11),
        row(f(3, 4), whole(1, 2), np.float32(1), whole(-1), since=18),
        row(f(3, 4), whole(0, 1, 1, 2), mode="wrap", since=19),
    ],
    "Pow": [
        row(pos(2, 3), f(3)),
        row(pos(2, 3), i(3), since=12),
        row(i(2, 3), whole(2, 1, 2), since=12),
        row(f(2, 3), real([2, 3, 2])),
    ],
    "QuantizeLinear": [
        row(f(3, 4) * 3, np.float32(0.1), np.uint8(100), until=25),
        row(f(3, 4) * 30, np.float32(0.1), np.int8(3), until=25),
        row(f(3, 2), real([0.1, 0.2]), np.array([1, 2], np.int8), axis=1, since=13, until=25),
        row(real([0.5, 1.5, 2.5, -0.5]), np.float32(1), until=25),
    ],
    "Range": [
        row(np.int64(1), np.int64(9), np.int64(3)),
        row(np.float32(1), np.float32(2), np.float32(0.3)),
        row(np.int64(5), np.int64(0), np.int64(-2)),
    ],
    "Reshape": [row(f(2, 3, 4), whole(0, -1)), row(f(2, 3, 4), whole(4, 6), allowzero=1, since=14)],
    "Resize": [
        *(row(f(1, 1, 3, 4), real([1, 1, 2, 1.5]), mode=m, until=10) for m in ("nearest", "linear")),
        *(
            row(f(1, 1, 3, 10), NONE, real(scales), mode=m, coordinate_transformation_mode=c, since=11)
            for m in ("nearest", "linear", "cubic")
            for c in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
            for scales in ([1, 1, 2, 1.5], [1, 1, 1, 0.7])
        ),
        *(row(f(1, 1, 3, 4), None, None, whole(1, 1, 5, 7), mode=m, since=13) for m in ("nearest", "linear")),
        row(f(1, 1, 9, 9), None, None, whole(5, 4), mode="cubic", antialias=1, axes=[2, 3], since=18),
    ],
    "Round": [row(real([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997]))],
    "Scatter": [
        row(f(3, 4), whole([0, 2]), f(1, 2), until=10),
        row(f(3, 4), whole([0], [3]), f(2, 1), axis=1, until=10),
    ],
    "ScatterElements": [
        row(f(3, 3), whole([1, 0, 2], [0, 2, 1]), f(2, 3)),
        row(f(3, 3), whole([1, 0]), f(1, 2), axis=1),
        row(f(3, 3), whole([1, 1]), f(1, 2), axis=1, reduction="add", since=16),
        row(f(3, 3), whole([1, 1]), f(1, 2), axis=1, reduction="max", since=18),
    ],
    "ScatterND": [
        row(f(4, 3), whole([1], [3]), f(2, 3)),
        row(f(4, 3), whole([1], [1]), f(2, 3), reduction="add", since=16),
        row(f(4, 3), whole([1], [1]), f(2, 3), reduction="min", since=18),
    ],
    "Shape": [row(f(2, 3, 4)), row(f(2, 3, 4), start=1, since=15), row(f(2, 3), start=-2, end=-1, since=15)],
    "Sign": [row(real([-1.5, 0, 2, -0.0])), row(whole(-2, 0, 3))],
    "Slice": [
        row(f(4, 5), axes=[1], starts=[-3], ends=[1000], until=9),
        row(f(4, 5), whole(3, 0), whole(-100, 9), whole(0, 1), whole(-1, 2), since=10),
        row(f(4, 5), whole(1), whole(3), since=10),
    ],
    "SpaceToDepth": [row(f(1, 2, 4, 6), blocksize=2)],
    "Split": [
        row(f(4, 6), axis=1, split=[2, 4], until=12),
        row(f(4, 6), whole(2, 4), axis=1, since=13),
        row(f(4, 6), axis=1, until=17),
        row(f(4, 7), axis=1, num_outputs=2, since=18),
    ],
    "Squeeze": [
        row(f(1, 3, 1), axes=[0], until=12),
        row(f(1, 3, 1), whole(-1), since=13),
        row(f(1, 3, 1)),
        row(f(1, 3, 1), axes=[-1], since=11, until=12),
    ],
    "Tile": [row(f(2, 3), whole(2, 3))],
    "Trilu": [row(f(3, 4)), row(f(3, 4), np.int64(1), upper=0)],
    "Unsqueeze": [row(f(2, 3), axes=[0, 3], until=12), row(f(2, 3), whole(-1, 0), since=13)],
    "Upsample": [
        *(row(f(1, 1, 3, 10), real([1, 1, 2, 1.4]), mode=m, since=9, until=9)
            for m in ("nearest", "linear")
        ),
        row(f(1, 1, 3, 10), scales=[1.0, 1.0, 2.0, 1.4], until=8),
    ],
    "Where": [row(b(2, 3), f(3), f(2, 1))],
}  # fmt: skip


def folded(op: str, inputs: tuple[Any, ...], attributes: dict[str, Any], opset: int) -> list[Array]:
    node, values = _node(op, inputs, attributes)
    results = evaluate(node, values, opset, Budget.of(10**9))
    return [results[name] for name in node.output]


def _node(
    op: str, inputs: tuple[Any, ...], attributes: dict[str, Any]
) -> tuple[onnx.NodeProto, dict[str, Array]]:
    names = ["" if value is None else f"i{k}" for k, value in enumerate(inputs)]
    values = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
    return helper.make_node(op, names, ["y", "z"] if op == "Split" else ["y"], **attributes), values


@pytest.mark.parametrize("op", sorted(_ROWS))
def test_it_folds_as_a_runtime_computes_it(op: str) -> None:
    """At the first and the last opset of every version of the op."""
    runtime = pytest.importorskip("onnxruntime", reason="compares with onnxruntime, which is not installed")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # threads take longer to start than all else
    compared = 0
    for inputs, attributes, opsets in _ROWS[op]:
        for opset in opsets:
            try:
                version = onnx.defs.get_schema(op, opset).since_version
            except onnx.defs.SchemaError:
                continue
            changes = opset < NEWEST and onnx.defs.get_schema(op, opset + 1).since_version > version
            if not (opset in (version, opsets[0], opsets[-1]) or changes):
                continue
            node, values = _node(op, inputs, attributes)
            given = [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in values.items()
            ]
            outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output]
            graph = helper.make_graph([node], "one", given, outputs)
            opsets_ = [helper.make_opsetid("", opset)]
            model = onnx.shape_inference.infer_shapes(
                helper.make_model(graph, opset_imports=opsets_, ir_version=8 if opset < 21 else 10)
            )
            for output in model.graph.output:
                output.type.tensor_type.ClearField("shape")  # which inference floors in its own way
            try:
                session = runtime.InferenceSession(model.SerializeToString(), options)
            except runtime.capi.onnxruntime_pybind11_state.NotImplemented:  # younger than the runtime
                continue
            for got, want in zip(
                folded(op, inputs, attributes, opset), session.run(None, values), strict=True
            ):
                what = f"opset {opset}, {attributes}"
                assert got.shape == np.shape(want), what
                assert got.dtype == np.asarray(want).dtype, what
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=what)
            compared += 1
    assert compared


def test_every_op_that_folds_is_compared() -> None:
    assert FOLDS.keys() - {"Constant"} - OPS.keys() - UNCHECKED <= set(_ROWS)


@pytest.mark.parametrize("opset", [1, 7, 8, 9, 10, 11, 12])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_softmax_before_opset_13_is_of_all_axes_behind(opset: int, axis: int | None, dtype: type) -> None:
    x: Array = f(2, 3, 4, 5).astype(dtype)
    behind = tuple(range(1 if axis is None else axis, 4))
    powers = np.exp(x.astype(np.float64) - x.max(behind, keepdims=True))
    y = powers / powers.sum(behind, keepdims=True)
    attributes = {} if axis is None else {"axis": axis}
    for op, want in (
        ("Softmax", y),
        ("LogSoftmax", np.log(y)),
        ("Hardmax", y == y.max(behind, keepdims=True)),
    ):
        (got,) = folded(op, (x,), attributes, opset)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=1e-2 if dtype is np.float16 else 1e-5, atol=1e-7)


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize(("shape", "axis"), [((3,), 1), ((3, 4), 1), ((4,), 2), ((4, 5), None), ((2,), 0)])
def test_constants_broadcast_as_before_opset_7(opset: int, shape: tuple[int, ...], axis: int | None) -> None:
    x, y = pos(2, 3, 4, 5), pos(*shape)
    behind = 0 if axis is None else 4 - axis - len(shape)
    fitted = y.reshape(shape + (1,) * behind)
    attributes = {"broadcast": 1} | ({} if axis is None else {"axis": axis})
    for op, function in (
        ("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.divide), ("Pow", np.power),
        ("Less", np.less), ("Greater", np.greater),
    ):  # fmt: skip
        (got,) = folded(op, (x, y), attributes, opset)
        np.testing.assert_allclose(got, function(x, fitted), rtol=1e-6)


@pytest.mark.parametrize("axis", [-3, 3])
def test_a_broadcast_along_axes_that_are_not_there_is_refused(axis: int) -> None:
    with pytest.raises(ModelError, match=f"axis {axis} of 4"):
        folded("Add", (pos(2, 3, 4, 5), pos(4, 5)), {"broadcast": 1, "axis": axis}, 6)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "want"),
    [
        ("Add", (whole(1, 2), whole(3, 4)), {"consumed_inputs": [0, 0]}, [4, 6]),
        ("Cast", (whole(1, 2),), {"to": "FLOAT"}, [1, 2]),
        ("Clip", (real([-1, 1, 9]),), {"min": 0.0, "max": 6.0}, [0, 1, 6]),
        ("Concat", (real([[1], [2]]), real([[3], [4]])), {}, [[1, 3], [2, 4]]),
        ("Dropout", (real([1, 2]),), {"is_test": 1, "ratio": 0.5}, [1, 2]),
        ("Gemm", (real([[1, 2]]), real([[3], [4]]), real([5])), {"broadcast": 1}, [[16]]),
        ("Selu", (real([-1, 1]),), {}, [1.0507 * 1.6732 * np.expm1(-1), 1.0507]),
        ("Sum", (real([1]), real([2])), {"consumed_inputs": [0, 0]}, [3]),
    ],
)
def test_constants_of_opset_1(
    op: str, inputs: tuple[Any, ...], attributes: dict[str, Any], want: Any
) -> None:
    (got,) = folded(op, inputs, attributes, 1)
    np.testing.assert_allclose(got, want, rtol=1e-6)
