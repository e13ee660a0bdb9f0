"""Constant folding: nodes that do not depend on the image are computed once, at load.

onnx's reference implementation computes them, or `folding_dated.py` where that computes something else at the
file's opset.  Only ops that say what it costs are folded (`FOLDS`), and only if the result is small enough to
be a constant of a CNN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..errors import GbpError, ModelError, UnsupportedError, readable_bytes
from ..limits import Budget
from ..ops import FACTS, fact
from ..ops.folded import (
    Constants,
    Cost,
    Folds,
    as_broadcast,
    as_inferred,
    as_operands,
    makes,
    product,
    slow,
)
from . import folding_dated
from .proto import label, qualified, tensor_values


def _constant(given: Constants) -> Cost:
    return makes(given, 0.0)  # it is in the file


def _filled(given: Constants) -> Cost:
    return makes(given, product(given.values[0]))


def _counted(given: Constants) -> Cost:
    start, limit, delta = (float(value.reshape(-1)[0]) for value in given.values)
    return makes(given, abs((limit - start) / delta) if delta else np.inf)


def _one_hot(given: Constants) -> Cost:
    return makes(given, given.values[0].size * product(given.values[1]))


def _positions(given: Constants) -> Cost:
    return makes(given, 4 * max(1, given.values[0].ndim) * given.read)


#: How ops are folded: the facts of those that gbp runs, and a table of ops that it only folds.
FOLDS: dict[str, Folds] = {
    **{op: fact.folds for op, fact in FACTS.items() if fact.folds is not None},
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Range": _counted,
    "OneHot": _one_hot,
    **dict.fromkeys(("NonZero", "Unique"), _positions),
    **dict.fromkeys(
        ("BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Mod", "Shape",
         "Size"),
        as_broadcast,
    ),
    **dict.fromkeys(
        ("ArgMax", "ArgMin", "Compress", "CumProd", "Det", "EyeLike", "Hardmax", "TopK"), as_operands
    ),
    "ReverseSequence": slow(as_operands),
    **dict.fromkeys(
        ("BlackmanWindow", "CenterCropPad", "DFT",
         "GRU", "HammingWindow", "HannWindow", "LSTM", "MelWeightMatrix",
         "RNN", "RoiAlign", "STFT"),
        as_inferred,
    ),
}  # fmt: skip


def evaluate(
    node: onnx.NodeProto, values: Mapping[str, NDArray[Any]], opset: int, budget: Budget
) -> dict[str, NDArray[Any]]:
    """The outputs of a node with constant inputs, by name.

    Parameters
    ----------
    node
        The node.
    values
        Its inputs by name.
    opset
        The version of the ONNX operators.
    budget
        The cost that folding may still have.  The cost of this node is taken off it.

    Raises
    ------
    ModelError
        Where the reference implementation cannot compute it.
    UnsupportedError
        Where the op is not folded, or the result exceeds the budget.
    """
    inputs = [name for name in node.input if name]
    folds = FOLDS.get(qualified(node))
    if folds is None:
        raise UnsupportedError(
            "its inputs are all constant, and gbp does not fold this op.", node=label(node), op=node.op_type
        )
    _refuse_strange(node, values)
    if fact(node.op_type).averages and inputs and not values[inputs[0]].size:  # NumPy would warn
        raise _refused(node, f"input {inputs[0]!r} holds no number.")
    if node.op_type == "Constant" and (value := _value_of(node)) is not None:
        return {node.output[0]: value}
    if node.op_type == "Reshape" and opset < 5:
        return {node.output[0]: _reshaped(node, values[node.input[0]])}
    try:
        cost = folds(Constants(node, [values[name] for name in inputs], opset))
    except Exception:  # onnx's shape inference raises errors of its own
        raise _refused(node, "its constant inputs do not fit the op.") from None
    budget.steps -= cost.steps
    _refuse_costly(node, cost, budget)
    results = _computed(node, values, opset)
    budget.folded -= sum(array.nbytes for array in results.values())
    return results


def _refuse_strange(node: onnx.NodeProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a node that holds, reads or makes what no layer of a CNN computes with."""
    if _makes_text(node) or any(not _is_number(value) for value in values.values()):
        raise UnsupportedError(
            "it computes with text or with exotic numbers.",
            node=label(node),
            op=node.op_type,
            supported="constants that are floats, integers or booleans",
        )
    if any(attribute.HasField("sparse_tensor") for attribute in node.attribute):
        raise UnsupportedError(
            "it holds a sparse tensor.", node=label(node), op=node.op_type, supported="dense tensors"
        )


def _refuse_costly(node: onnx.NodeProto, cost: Cost, budget: Budget) -> None:
    """Refuse a node that costs more than is left; its steps are taken off already.  NaN is too much."""
    if not cost.width * cost.elements <= budget.folded:
        raise UnsupportedError(
            f"its constant result could have {cost.elements:.3g} elements.",
            node=label(node),
            op=node.op_type,
            supported=f"constants of {readable_bytes(max(0, budget.folded))} in all",
        )
    if not budget.steps >= 0:
        raise UnsupportedError(
            f"to compute its constant result could take {cost.steps:.3g} steps, or with other nodes' too "
            "many.",
            node=label(node),
            op=node.op_type,
            supported="constants that are computed in a few billion steps in all",
        )


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
    """Reshape before opset 5, whose target is an attribute.  onnx's reference implementation lacks it."""
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


def _computed(
    node: onnx.NodeProto, values: Mapping[str, NDArray[Any]], opset: int
) -> dict[str, NDArray[Any]]:
    """The outputs by name.  Raises ModelError where they cannot be computed, or are no numbers."""
    try:
        own = folding_dated.computed(node, values, opset)
        results = [own]
        if own is None:
            results = _by_reference(*folding_dated.modern(node, values, opset))
    except GbpError:
        raise
    except Exception as error:  # the reference implementation raises whatever NumPy does
        reason = f"{type(error).__name__}: {error}"
        raise _refused(node, f"its constant inputs do not fit the op ({reason:.120}).") from None
    named = {}
    for name, value in zip((name for name in node.output if name), results, strict=False):
        if not isinstance(value, np.ndarray) and not np.isscalar(value):
            raise _refused(node, f"output {name!r} is no tensor.")
        array = np.asarray(value)
        if array.dtype.name == "bfloat16":  # as all such are
            array = array.astype(np.float32)
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise _refused(node, f"its constant result {name!r} holds NaN.")
        named[name] = array
    return named


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


def _refused(node: onnx.NodeProto, found: str) -> ModelError:
    return ModelError(found, node=label(node), op=node.op_type)
