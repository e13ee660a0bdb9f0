"""Attention: softmax(s · Q Kᵀ + M) V by heads, as MatMuls and a Softmax (ONNX, opset 23).

Q, K and V have shape (N, heads, length, size), or (N, length, heads · size), which is taken apart and put
together again.  s is 1/√size by default.  The mask M is constant: numbers, or truths, of which a false one is
−∞; with is_causal also −∞ where a key comes after its query.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..limits import MAX_ELEMENTS
from .facts import Fact
from .folded import as_inferred
from .node import Node
from .written import Rewriter, Writer

_IN_PARTS = "An export with opset 22 or an earlier one writes it as MatMul and Softmax."


def attention(node: Node, w: Writer) -> None:
    for name, default in (("softcap", 0.0), ("left_window_size", -1), ("right_window_size", -1)):
        value = node.number(name, 0.0) if default == 0.0 else node.integer(name, -1)
        if value != default:
            node.refuse(f"{name} is {value:g}.", supported=f"{default:g}", hint=_IN_PARTS)
    node.ignore("qk_matmul_output_mode", "softmax_precision")
    if any(node.has(index) for index in (4, 5, 6)):
        node.refuse("it has a cache of keys and values.", supported="Q, K, V and a mask", hint=_IN_PARTS)
    (q, queries, size), (k, keys, _), (v, *_) = (_heads(node, w, index) for index in range(3))
    scale = node.number("scale", 1 / math.sqrt(size))
    scaled = w.write("Mul", q, w.constant(np.float32(scale)))
    found = w.write("MatMul", scaled, w.write("Transpose", k, perm=(0, 1, 3, 2)))
    mask = _mask(node, queries, keys)
    if mask is not None:
        found = w.write("Add", found, w.constant(mask))
    weights = w.write("Softmax", found, axis=-1)
    to = node.proto.output[0]
    if len(node.shape(0)) == 4:
        w.write("MatMul", weights, v, to=to)
        return
    joined = w.write("Transpose", w.write("MatMul", weights, v), perm=(0, 2, 1, 3))
    w.reshaped(joined, (0, queries, -1), to=to)


def _heads(node: Node, w: Writer, index: int) -> tuple[str, int, int]:
    """Operand `index` as (N, heads, length, size): its name, length and size."""
    shape, name = node.shape(index), str(node.proto.input[index])
    given = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    heads = shape[1] if len(shape) == 4 else given[min(index, 1)]
    if len(shape) not in (3, 4) or len(shape) != len(node.shape(0)):
        node.invalid(f"input {index} has shape {list(shape)}.")
    if len(shape) == 3 and (heads < 1 or shape[2] % heads):
        node.invalid(f"input {index} has shape {list(shape)}, and {heads} heads.")
    if index and heads != (given[0] if len(shape) == 3 else node.shape(0)[1]):
        node.refuse("queries have more heads than keys and values.", supported="as many", hint=_IN_PARTS)
    if len(shape) == 4:
        return name, shape[2], shape[3]
    parts = w.reshaped(name, (0, shape[1], heads, -1))
    return w.write("Transpose", parts, perm=(0, 2, 1, 3)), shape[1], shape[2] // heads


def _mask(node: Node, queries: int, keys: int) -> NDArray[np.float32] | None:
    """The numbers that are added before the softmax, or None."""
    mask = None
    if node.has(3):
        if not node.is_constant(3):
            node.refuse("its mask is computed from the image.", supported="a constant mask", hint=_IN_PARTS)
        if node.operands[3].dtype.kind == "b":  # type: ignore[union-attr]
            mask = np.where(node.constant(3, np.bool_), np.float32(0), np.float32(-np.inf))
        else:
            mask = node.constant(3, infinite=True)
        # ONNX fills one of fewer keys up with −∞, where others repeat one of 1.
        if mask.shape[-1:] != (keys,) or mask.shape[-2:-1] not in ((), (1,), (queries,)):
            node.refuse(
                f"its mask has shape {list(mask.shape)}.",
                supported=f"{queries} queries or 1, and {keys} keys, the last axes",
            )
    if node.integer("is_causal", 0):
        if queries * keys > MAX_ELEMENTS:
            node.refuse(
                f"is_causal is 1, with {queries} queries and {keys} keys.",
                supported=f"up to {MAX_ELEMENTS} pairs of both",
            )
        later = np.where(np.tri(queries, keys, dtype=bool), np.float32(0), np.float32(-np.inf))
        mask = later if mask is None else mask + later
    if mask is not None and mask.ndim == 4 and len(mask) > 1:
        node.refuse("its mask differs by sample.", supported="one mask for all samples")
    if mask is not None and not (mask > -np.inf).any(-1).all():
        node.refuse("its mask leaves a query without keys.", supported="at least one key for each")
    return mask


REWRITERS: dict[str, Rewriter] = {"Attention": attention}

FACTS = {"Attention": Fact("read", folds=as_inferred)}
