"""Constant folding: nodes that do not depend on the image are computed once, at load.

The arithmetic is onnx's own reference implementation.  Only ops on a list are folded, and only while their
result stays small enough to be a constant of a CNN.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from .errors import ModelError

FOLDABLE = frozenset(
    """Abs Add And Cast CastLike Ceil Clip Concat Constant ConstantOfShape Div Dropout Equal Erf Exp Expand
    Flatten Floor Gather GatherElements Gemm Greater GreaterOrEqual Identity Less LessOrEqual Log MatMul Max
    Min Mod Mul Neg Not OneHot Or Pad Pow Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum Relu Reshape Round ScatterElements ScatterND Shape Sigmoid Sign Size Slice Softmax Split Sqrt
    Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze Where Xor""".split()
)

#: 1 GiB of float32: the largest dense layer of the classic zoo is 0.4 GiB.
MOST_ELEMENTS = 2**28


def _size_of_result(node: onnx.NodeProto, values: list[NDArray[Any]]) -> float:
    """An upper bound on the elements of the result, before it is computed."""

    def product(shape: Any) -> float:
        return float(np.prod(np.abs(np.asarray(shape, np.float64)))) if np.size(shape) else 1.0

    sizes = [float(v.size) for v in values]
    match node.op_type:
        case "ConstantOfShape":
            return product(values[0])
        case "Expand":
            return sizes[0] * product(values[1])
        case "Tile":
            return sizes[0] * product(values[1])
        case "Range":
            start, limit, delta = (float(v.reshape(-1)[0]) for v in values)
            return abs((limit - start) / delta) if delta else np.inf
        case "Pad":
            pads = values[1].astype(np.float64) if len(values) > 1 else np.zeros(1)
            return float(np.prod([n + np.abs(pads).sum() for n in values[0].shape]))
        case "OneHot":
            return sizes[0] * product(values[1])
        case "MatMul" | "Gemm" | "Gather" | "Where":
            return product(sizes)
        case _:
            # Broadcasting at worst makes the product of two operands; joining makes the sum.
            return max(sum(sizes), product(np.broadcast_shapes(*_broadcastable(values))))


def _broadcastable(values: list[NDArray[Any]]) -> list[tuple[int, ...]]:
    try:
        np.broadcast_shapes(*(v.shape for v in values))
    except ValueError:
        return []
    return [v.shape for v in values]


def evaluate(
    node: onnx.NodeProto, values: Mapping[str, NDArray[Any]], opset: int
) -> dict[str, NDArray[Any]]:
    """The outputs of `node` for constant inputs, by name.

    Raises ModelError where onnx's reference implementation cannot compute it, or the result is too large.
    """

    def refuse(found: str) -> ModelError:
        return ModelError(found, node=node.name or (node.output[0] if node.output else ""), op=node.op_type)

    inputs = [name for name in node.input if name]
    if node.op_type not in FOLDABLE:
        raise refuse("its inputs are all constant, and gbp does not fold this op.")
    try:
        size = _size_of_result(node, [values[name] for name in inputs])
    except (ValueError, IndexError, OverflowError, TypeError):
        raise refuse("its constant inputs do not fit the op.") from None
    if not size <= MOST_ELEMENTS:
        raise refuse(f"its constant result could have {size:.3g} elements.")
    try:
        graph = helper.make_graph(
            [node],
            "constant",
            [helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(inputs)],
            [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(model).run(None, {name: values[name] for name in inputs})
    except Exception as error:  # the reference implementation raises whatever NumPy does
        raise refuse(f"its constant inputs do not fit the op ({type(error).__name__}).") from None
    named = dict(zip((name for name in node.output if name), results, strict=True))
    for name, value in named.items():
        if not isinstance(value, np.ndarray) and not np.isscalar(value):
            raise refuse(f"output {name!r} is no tensor.")
        array = np.asarray(value)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise refuse(f"its constant result {name!r} holds NaN or infinity.")
        named[name] = array
    return named
