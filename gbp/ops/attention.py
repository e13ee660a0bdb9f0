"""Attention: softmax(s · Q Kᵀ + M) V by heads, as MatMuls and a Softmax (ONNX, opset 23; onnxruntime).

Q, K and V have shape (N, heads, length, size), or (N, length, heads · size), which is taken apart and put
together again.  s is 1/√size by default.  The mask M is constant: numbers, or truths, of which a false one is
−∞; with is_causal also −∞ where a key comes after its query.

com.microsoft.Attention               Q, K and V are x times a third of the weights each, and more a bias
com.microsoft.QAttention              the same, of integers
com.microsoft.MultiHeadAttention      (N, length, heads · size), and more a bias

RotaryEmbedding (ONNX, opset 23; com.microsoft) turns pairs of features by angles that depend on the position.

Source: ONNX's operators; onnxruntime's ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    weights = _weights(w, q, k, node.number("scale", 1 / math.sqrt(size)), _mask(node, queries, keys))
    if len(node.shape(0)) == 4:
        w.write("MatMul", weights, v, to=node.proto.output[0])
    else:
        _together(w, w.write("MatMul", weights, v), queries)


def _weights(w: Writer, q: str, k: str, scale: float, mask: NDArray[np.float32] | None) -> str:
    """softmax(s · Q Kᵀ + M), with axes (N, heads, queries, keys)."""
    scaled = w.write("Mul", q, w.constant(np.float32(scale)))
    found = w.write("MatMul", scaled, w.write("Transpose", k, perm=(0, 1, 3, 2)))
    if mask is not None:
        found = w.write("Add", found, w.constant(mask))
    return w.write("Softmax", found, axis=-1 if w.opset >= 13 else 3)


def _apart(w: Writer, x: str, length: int, heads: int) -> str:
    """(N, length, heads · size) as (N, heads, length, size)."""
    return w.write("Transpose", w.reshaped(x, (0, length, heads, -1)), perm=(0, 2, 1, 3))


def _together(w: Writer, x: str, length: int) -> None:
    """(N, heads, length, size) as (N, length, heads · size): the node's output."""
    joined = w.write("Transpose", x, perm=(0, 2, 1, 3))
    w.reshaped(joined, (0, length, -1), to=w.node.proto.output[0])


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
    return _apart(w, name, shape[1], heads), shape[1], shape[2] // heads


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
    return _allowed(node, mask, queries, keys, "is_causal")


def _allowed(
    node: Node, mask: NDArray[np.float32] | None, queries: int, keys: int, causal: str
) -> NDArray[np.float32] | None:
    """The mask; where the attribute `causal` is set, −∞ where a key comes after its query."""
    if node.integer(causal, 0):
        if queries * keys > MAX_ELEMENTS:
            node.refuse(
                f"{causal} is 1, with {queries} queries and {keys} keys.",
                supported=f"up to {MAX_ELEMENTS} pairs of both",
            )
        later = np.where(np.tri(queries, keys, dtype=bool), np.float32(0), np.float32(-np.inf))
        mask = later if mask is None else mask + later
    if mask is not None and mask.ndim == 4 and len(mask) > 1:
        node.refuse("its mask differs by sample.", supported="one mask for all samples")
    if mask is not None and not (mask > -np.inf).any(-1).all():
        node.refuse("its mask leaves a query without keys.", supported="at least one key for each")
    return mask


def of_weights(node: Node, w: Writer) -> None:
    """com.microsoft.Attention."""
    _of_weights(node, w, str(node.proto.input[0]), node.constant(1), (3, 4, 6))


def of_integers(node: Node, w: Writer) -> None:
    """com.microsoft.QAttention: x and the weights are integers, these with a scale for all, or by column."""
    given = (node.proto.input[i] for i in (0, 3, 6) if i < len(node.proto.input))
    zero = node.constant_integers(7).astype(np.float32) if node.has(7) else np.float32(0)
    scale, columns = node.constant(4), node.constant_integers(1).shape[-1:]
    if any(np.shape(a) not in ((), (1,), columns) for a in (scale, zero)):
        node.invalid(f"scales of shape {list(scale.shape)} and their zero points do not fit the weights.")
    weights = (node.constant_integers(1).astype(np.float32) - zero) * scale
    _of_weights(node, w, w.write("DequantizeLinear", *filter(None, given)), weights, (5, 8))


def _of_weights(node: Node, w: Writer, x: str, weights: NDArray[np.float32], refused: Sequence[int]) -> None:
    length, size = node.shape(0, rank=3)[1:]
    if weights.ndim != 2 or len(weights) != size:
        node.invalid(f"weights have shape {list(weights.shape)} for {size} features.")
    columns = weights.shape[1]
    sizes = node.integers("qkv_hidden_sizes", (columns // 3,) * 3)
    bias = node.constant(2).reshape(-1) if node.has(2) else np.zeros(columns, np.float32)
    if len(sizes) != 3 or sum(sizes) != columns or len(bias) != columns:
        node.invalid(f"weights of {columns} columns and a bias of {len(bias)} are no {list(sizes)}.")
    ends = np.cumsum(sizes)[:2]
    parts = zip(np.split(weights, ends, axis=1), np.split(bias, ends), strict=True)
    made = [w.write("Add", w.write("MatMul", x, w.constant(a)), w.constant(b)) for a, b in parts]
    _by_heads(node, w, made, (length, length), sizes[0], refused)


def multi_head(node: Node, w: Writer) -> None:
    """com.microsoft.MultiHeadAttention."""
    shapes = [node.shape(index) if node.has(index) else () for index in range(3)]
    if any(len(shape) != 3 for shape in shapes):
        node.refuse("queries, keys and values are one tensor, or apart by heads.", supported=_APART)
    names = list(node.proto.input[:3])
    if node.has(3):
        bias = np.split(node.constant(3).reshape(-1), np.cumsum([shape[2] for shape in shapes])[:2])
        if [len(part) for part in bias] != [shape[2] for shape in shapes]:
            node.invalid(f"its bias does not fit {[list(shape) for shape in shapes]}.")
        names = [w.write("Add", name, w.constant(part)) for name, part in zip(names, bias, strict=True)]
    _by_heads(node, w, names, (shapes[0][1], shapes[1][1]), shapes[0][2], (4, 6, 7, 8, 9))


_APART = "three tensors (N, length, features)"


def _by_heads(
    node: Node, w: Writer, qkv: Sequence[str], lengths: tuple[int, int], size: int, refused: Sequence[int]
) -> None:
    """onnxruntime's attention of three tensors (N, length, features), without the operands `refused`."""
    if any(node.has(index) for index in refused) or node.integer("do_rotary", 0):
        node.refuse("it has a cache, positions, or a mask of lengths.", supported="an attention_bias")
    node.ignore("mask_filter_value", "past_present_share_buffer", "rotary_embedding_dim")
    heads = node.integer("num_heads", 0)
    if heads < 1 or size % heads:
        node.invalid(f"{heads} heads do not part {size} features.")
    if node.integer("unidirectional", 0) and lengths[0] != lengths[1]:
        node.refuse(
            "unidirectional is 1, and there are fewer queries than keys or more.", supported="as many"
        )
    mask = node.constant(5, infinite=True) if node.has(5) else None
    if mask is not None and (mask.ndim != 4 or mask.shape[0] != 1 or mask.shape[2:] != lengths):
        node.refuse(f"attention_bias has shape {list(mask.shape)}.", supported=f"(1, heads, {lengths})")
    mask = _allowed(node, mask, *lengths, "unidirectional")
    scale = node.number("scale", 0.0) or 1 / math.sqrt(size // heads)
    q, k, v = (_apart(w, x, n, heads) for x, n in zip(qkv, (*lengths, lengths[1]), strict=True))
    _together(w, w.write("MatMul", _weights(w, q, k, scale, mask), v), lengths[0])


def rotary(node: Node, w: Writer) -> None:
    """RotaryEmbedding, ONNX's and onnxruntime's: x · C + (x with its pairs swapped) · S."""
    cos, sin, positions = (2, 3, 1) if node.proto.domain == "com.microsoft" else (1, 2, 3)
    if node.integer("is_packed_batching", 0) or node.number("scale", 1.0) != 1.0:
        node.refuse("is_packed_batching or scale is set.", supported="0, and 1.0")
    shape, x, heads = node.shape(0), str(node.proto.input[0]), node.integer("num_heads", 0)
    cosines, sines = (_of_positions(node, index, positions, shape[-2]) for index in (cos, sin))
    half, turned = cosines.shape[-1], node.integer("rotary_embedding_dim", 0)
    size = shape[-1] if len(shape) == 4 else shape[-1] // heads if heads > 0 else 2 * half
    fits = 2 * half == (turned or size) <= size and (heads > 0 or not turned or len(shape) == 4)
    if len(shape) not in (3, 4) or not fits or shape[-1] % size or cosines.shape != sines.shape:
        node.invalid(f"{half} cosines, {len(sines[0])} sines and {heads} heads do not fit {list(shape)}.")
    first = np.arange(half) * (2 if node.integer("interleaved", 0) else 1)
    second = first + (1 if node.integer("interleaved", 0) else half)
    swapped, c, s = np.arange(size), np.ones((shape[-2], 1, size)), np.zeros((shape[-2], 1, size))
    swapped[first], swapped[second] = second, first
    c[:, 0, first] = c[:, 0, second] = cosines
    s[:, 0, first], s[:, 0, second] = -sines, sines
    if len(shape) == 4:  # (N, heads, length, size)
        c, s = c[:, 0], s[:, 0]
    else:
        x = w.reshaped(x, (0, shape[1], -1, size))
    other = w.write("Gather", x, w.constant(swapped), axis=3)
    parts = (w.write("Mul", a, w.constant(np.float32(b))) for a, b in ((x, c), (other, s)))
    w.reshaped(w.write("Add", *parts), (0, *shape[1:]), to=node.proto.output[0])


def _of_positions(node: Node, index: int, positions: int, length: int) -> NDArray[np.float32]:
    """Cosines or sines at the positions of one sample: (length, half)."""
    table = node.constant(index)
    if not table.size:
        node.invalid(f"its angles have shape {list(table.shape)}.")
    if node.has(positions):
        at = node.constant(positions, np.int64)
        if at.size == 1 and at.ndim == 1:  # onnxruntime's: where the first one is
            at = at + np.arange(length)
        if table.ndim != 2 or not at.size or at.min() < 0 or at.max() >= len(table):
            least, most = at.min(initial=0), at.max(initial=0)
            node.invalid(f"positions {least} to {most} are not in a table of shape {list(table.shape)}.")
        if at.shape[-1:] != (length,) or (at != at.reshape(-1, length)[0]).any():
            node.refuse(
                f"its positions have shape {list(at.shape)}.",
                supported=f"{length} numbers, the same for all samples",
            )
        table = table[at.reshape(-1, length)[0]]
    rows = table.reshape(-1, *table.shape[-2:]) if table.ndim in (2, 3) else table
    if rows.ndim != 3 or rows.shape[1] != length or not (rows == rows[:1]).all():
        node.refuse(
            f"its angles have shape {list(table.shape)}.",
            supported=f"{length} rows, the same for all samples",
        )
    angles: NDArray[np.float32] = rows[0]
    return angles


REWRITERS: dict[str, Rewriter] = {
    "Attention": attention,
    "com.microsoft.Attention": of_weights,
    "com.microsoft.MultiHeadAttention": multi_head,
    "com.microsoft.QAttention": of_integers,
    "RotaryEmbedding": rotary,
    "com.microsoft.RotaryEmbedding": rotary,
}

FACTS = {
    "Attention": Fact("read", folds=as_inferred),
    "com.microsoft.Attention": Fact("read", operands=(2, 7)),
    "com.microsoft.MultiHeadAttention": Fact("read", operands=(1, 10)),
    "com.microsoft.QAttention": Fact("read", operands=(5, 9)),
    "RotaryEmbedding": Fact("other", folds=as_inferred),
    "com.microsoft.RotaryEmbedding": Fact("other", operands=(4, 4)),
}
