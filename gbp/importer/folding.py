"""Constant folding: nodes that do not depend on the image are computed once, at load.

onnx's reference implementation computes them, or `dated.py` where that computes something else at the file's
opset. Only listed ops are folded, and only if the result is small enough to be a constant of a CNN.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..errors import GbpError, ModelError, UnsupportedError
from ..limits import Budget, readable_bytes
from . import dated
from .proto import label, qualified, tensor_values

FOLDABLE = frozenset((
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape",
    "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Equal", "Erf", "Exp", "Expand",
    "Flatten", "Floor", "Gather", "GatherElements", "Gemm", "Greater", "GreaterOrEqual", "Identity", "Less",
    "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "Pad", "Pow",
    "QuantizeLinear", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape",
    "Resize", "Round", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign", "Size", "Slice",
    "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose",
    "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
))  # fmt: skip

#: The result has the size that the operands broadcast to.
_FUNCTIONS = frozenset((
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Celu", "Cos", "Cosh", "Elu", "Gelu", "HardSigmoid", "HardSwish", "IsInf",
    "IsNaN", "LeakyRelu", "Mean", "Mish", "PRelu", "Selu", "Shrink", "Sin", "Sinh", "Softplus", "Softsign",
    "Swish", "Tan", "ThresholdedRelu",
))  # fmt: skip
#: The result is no larger than the operands.
_NORMS = frozenset((
    "ArgMax", "ArgMin", "BatchNormalization", "Compress", "CumProd", "Det", "EyeLike", "GlobalAveragePool",
    "GlobalMaxPool", "GroupNormalization", "Hardmax", "InstanceNormalization", "LRN",
    "LayerNormalization", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "RMSNormalization",
    "ReverseSequence", "TopK",
))  # fmt: skip
#: The result has the size that onnx infers.  The reference implementation visits a window, or all operands,
#: for
#: each element of it, in Python.
_WINDOWS = frozenset(("AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"))
_INFERRED = frozenset((
    "AffineGrid", "Attention", "BlackmanWindow", "CenterCropPad", "Col2Im", "ConvInteger", "DFT",
    "DeformConv", "Einsum", "GRU", "GatherND", "GridSample", "HammingWindow", "HannWindow", "LSTM",
    "MatMulInteger", "MaxUnpool", "MelWeightMatrix", "QLinearConv", "QLinearMatMul", "RNN", "RoiAlign",
    "RotaryEmbedding", "STFT",
))  # fmt: skip
FOLDABLE |= _FUNCTIONS | _NORMS | _WINDOWS | _INFERRED | {"NonZero", "Unique"}

# The reference implementation computes these one element at a time, in Python.
_SLOW = 500
_SLOW_OPS = ("Erf", "Gelu", "GatherND", "Resize", "ReverseSequence", "ScatterElements", "ScatterND")
# Their operands do not broadcast.
_MOVES = frozenset((
    "Cast", "CastLike", "Concat", "CumSum", "DepthToSpace", "Dropout", "Flatten", "GatherElements",
    "Identity", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "ScatterElements",
    "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Trilu", "Unsqueeze",
))  # fmt: skip


def _product(shape: Any) -> float:
    """The number of elements of a shape, where an axis of 0 counts as 1.

    NumPy multiplies sizes axis by axis.  It can overflow before it reaches the 0.
    """
    sizes = np.abs(np.asarray(shape, np.float64))
    return float(np.prod(np.maximum(sizes, 1))) if sizes.size else 1.0


def _broadcast(*shapes: Any) -> float:
    """An upper bound on the elements of what these shapes broadcast to."""
    return _product([max(sides) for sides in zip_longest(*(reversed(tuple(s)) for s in shapes), fillvalue=1)])


def _inferred(node: onnx.NodeProto, values: list[NDArray[Any]], opset: int) -> float:
    """The elements of all outputs by onnx's shape inference.  Raises if it infers none."""
    known = dict(zip((name for name in node.input if name), values, strict=True))
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in known.items()}
    made = onnx.shape_inference.infer_node_outputs(
        onnx.defs.get_schema(node.op_type, opset, ""),
        node,
        {name: helper.make_tensor_type_proto(kinds[name], value.shape) for name, value in known.items()},
        {name: onnx.numpy_helper.from_array(value, name) for name, value in known.items() if value.size < 64},
        opset_imports=[helper.make_opsetid("", opset)],
    )
    total = 0.0
    for name in filter(None, node.output):
        shape = made[name].tensor_type.shape.dim
        if not made[name].tensor_type.HasField("shape") or not all(d.HasField("dim_value") for d in shape):
            raise ValueError("onnx infers no size")
        total += _product([d.dim_value for d in shape])
    return total


def _einsum(equation: str, shapes: list[tuple[int, ...]]) -> tuple[float, float]:
    """The elements of the result and the number of products.  Both are at most the product of all letters'
    sizes.
    """
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.replace(" ", "").split("->")[0].split(","), shapes, strict=True):
        letters = term.replace("...", ".")
        for i, n in enumerate(shape):
            letter = letters[i] if i < len(letters) and "." not in letters else f"{len(shape) - i}"
            sizes[letter] = max(n, sizes.get(letter, 1))
    spanned = _product(list(sizes.values()))
    result = equation.replace(" ", "").partition("->")[2]
    named = _product([sizes[c] for c in result]) if result and "." not in result else spanned
    return min(named, spanned), spanned


def _size_of_result(node: onnx.NodeProto, values: list[NDArray[Any]], opset: int) -> tuple[float, float]:
    """Upper bounds on the elements of the result and on the steps to compute it, before it is computed."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    shapes, read = [v.shape for v in values], float(sum(v.size for v in values))
    match node.op_type:
        case "Constant":
            size = 0.0  # it lies in the file
        case "ConstantOfShape":
            size = _product(values[0])
        case "Expand":
            size = _broadcast(shapes[0], np.abs(values[1].astype(np.float64)))
        case "Tile":
            size = _product(shapes[0]) * _product(values[1])
        case "Range":
            start, limit, delta = (float(v.reshape(-1)[0]) for v in values)
            size = abs((limit - start) / delta) if delta else np.inf
        case "Pad":
            pads = values[1] if len(values) > 1 else attributes["pads"].ints
            around = np.abs(np.asarray(pads, np.float64)).sum()
            size = _product([n + around for n in shapes[0]])
        case "Resize" | "Upsample":
            given = dict(zip((i for i, name in enumerate(node.input) if name), values, strict=True))
            axes = list(attributes["axes"].ints) if "axes" in attributes else range(len(shapes[0]))
            at = 2 if node.op_type == "Resize" and opset >= 11 else 1
            scales = np.asarray(given.get(at, attributes["scales"].floats if "scales" in attributes else ()))
            if not scales.size:
                scales = given[3] / np.array([shapes[0][axis] for axis in axes], np.float64)
            taps = 4 * max(1, 1 / float(scales.min()))
            size = values[0].size * max(1, float(scales.max())) ** len(axes) * taps
        case "OneHot":
            size = values[0].size * _product(values[1])
        case "Gather":
            axis = attributes["axis"].i if "axis" in attributes else 0
            size = values[0].size / max(1, shapes[0][axis]) * values[1].size
        case "MatMul" | "Gemm":
            *batch, rows, inner = (1, *shapes[0]) if len(shapes[0]) < 2 else shapes[0]
            *other, _, columns = (*shapes[1], 1) if len(shapes[1]) < 2 else shapes[1]
            if "transA" in attributes and attributes["transA"].i:
                rows, inner = inner, rows
            if "transB" in attributes and attributes["transB"].i:
                columns = shapes[1][-2]
            size = _broadcast(batch, other) * rows * columns
            read += size * inner / 16
        case "DequantizeLinear" | "QuantizeLinear":
            size = float(values[0].size)
        case "NonZero" | "Unique":
            size = 4 * max(1, values[0].ndim) * read
        case "Einsum":
            size, steps = _einsum(attributes["equation"].s.decode(), shapes)
            read += steps
        case op if op in _WINDOWS:
            size = _inferred(node, values, opset)
            taps = _product(shapes[1][1:]) if "Conv" in op else _product(attributes["kernel_shape"].ints)
            read += _SLOW * size * taps
        case op if op in _INFERRED:
            size = _inferred(node, values, opset)
            read *= 1 + size
        case op if op in _MOVES or op in _NORMS:
            size = read
        case _:
            size = _broadcast(*shapes)
    return size, (read + size) * (_SLOW if node.op_type in _SLOW_OPS else 1)


def _makes_text(node: onnx.NodeProto) -> bool:
    """Whether the node makes text.  A CNN has no use for it, and a few letters repeated fill the memory."""
    for attribute in node.attribute:
        casts = node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.STRING
        if casts or attribute.name in ("value_string", "value_strings"):
            return True
        if attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.STRING:
            return True
    return False


def _value_of(node: onnx.NodeProto) -> NDArray[Any] | None:
    """The tensor in a Constant node; None if it holds something else."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            return tensor_values(attribute.t, attribute.t.name or label(node), node)
    return None


def _reshaped(node: onnx.NodeProto, value: NDArray[Any]) -> NDArray[Any]:
    """Reshape before opset 5, whose target is an attribute, which onnx's reference implementation does not
    know.
    """
    target = next((list(a.ints) for a in node.attribute if a.name == "shape"), [])
    try:
        return value.reshape([value.shape[i] if n == 0 else n for i, n in enumerate(target)])
    except (ValueError, IndexError, OverflowError):
        found = f"{list(value.shape)} cannot become {target}."
        raise ModelError(found, node=label(node), op=node.op_type) from None


def _is_number(value: NDArray[Any]) -> bool:
    """Whether values are floats, integers or booleans, also of the few bits that ml_dtypes defines."""
    return value.dtype.kind in "fiub" or value.dtype.name.startswith(
        ("float8", "int4", "uint4", "int2", "uint2")
    )


def _by_reference(node: onnx.NodeProto, values: Mapping[str, NDArray[Any]], opset: int) -> list[Any]:
    """The outputs by onnx's reference implementation, without those that the node leaves out."""
    from onnx.reference import ReferenceEvaluator  # slow to load, and most models have nothing to fold

    inputs = [name for name in node.input if name]
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(inputs)],
        [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, {name: values[name] for name in inputs}))


def evaluate(
    node: onnx.NodeProto, values: Mapping[str, NDArray[Any]], opset: int, budget: Budget
) -> dict[str, NDArray[Any]]:
    """The outputs of `node` for constant inputs, by name.  The cost is taken off `budget`.

    Raises ModelError if the reference implementation cannot compute it, UnsupportedError if the op is not
    folded or the result exceeds the budget.
    """

    def refuse(found: str) -> ModelError:
        return ModelError(found, node=label(node), op=node.op_type)

    inputs = [name for name in node.input if name]
    if qualified(node) not in FOLDABLE:
        raise UnsupportedError(
            "its inputs are all constant, and gbp does not fold this op.", node=label(node), op=node.op_type
        )
    if _makes_text(node) or any(not _is_number(value) for value in values.values()):
        raise UnsupportedError(
            "it computes with text or with exotic numbers.",
            node=label(node),
            op=node.op_type,
            supported="constants that are floats, integers or booleans",
        )
    if node.op_type == "Constant" and (value := _value_of(node)) is not None:
        return {node.output[0]: value}
    if node.op_type == "Reshape" and opset < 5:
        return {node.output[0]: _reshaped(node, values[node.input[0]])}
    try:
        size, steps = _size_of_result(node, [values[name] for name in inputs], opset)
    except Exception:  # onnx's shape inference raises errors of its own
        raise refuse("its constant inputs do not fit the op.") from None
    budget.steps -= steps
    width = 4 if node.op_type in ("DequantizeLinear", "QuantizeLinear") else 8
    if not (width * size <= budget.folded and budget.steps >= 0):
        raise UnsupportedError(
            f"its constant result could have {size:.3g} elements.",
            node=label(node),
            op=node.op_type,
            supported=f"constants of {readable_bytes(max(0, budget.folded))} in all",
        )
    try:
        own = dated.computed(node, values, opset)
        results = [own] if own is not None else _by_reference(*dated.modern(node, values, opset), opset)
    except GbpError:
        raise
    except Exception as error:  # the reference implementation raises whatever NumPy does
        reason = f"{type(error).__name__}: {error}"
        raise refuse(f"its constant inputs do not fit the op ({reason:.120}).") from None
    named = dict(zip((name for name in node.output if name), results, strict=False))
    for name, value in named.items():
        if not isinstance(value, np.ndarray) and not np.isscalar(value):
            raise refuse(f"output {name!r} is no tensor.")
        array = np.asarray(value)
        if array.dtype.name == "bfloat16":  # as all such are
            array = array.astype(np.float32)
        budget.folded -= array.nbytes
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise refuse(f"its constant result {name!r} holds NaN.")
        named[name] = array
    return named
