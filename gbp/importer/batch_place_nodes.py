"""One rule for each op that may read a tensor whose batch is not in front: where its output holds the batch.

`batch_place.py` says what for.  A rule refuses a node that works along the axis that holds the batch, or that
reads a constant which is not the same for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np

from ..limits import MAX_NAMES, elements
from ..ops import PARSERS, fact
from ..ops.functions import PARSERS as FUNCTIONS
from ..ops.node import Node
from ..ops.shape import TARGETS
from .batch_place import MANY, Followed, Place
from .proto import qualified


def through(f: Followed) -> Place:
    """Where the outputs of a node hold the batch.  Raises UnsupportedError if it may mix samples."""
    rule = RULES.get(qualified(f.node.proto))
    if rule is None or f.node.opset < _SINCE:
        f.mixed("whether it works along the axis that holds the batch is not known.")
    if rule not in _VARYING:
        for i, many in enumerate(f.many):
            if many is not None:
                f.mixed(f"input {i} depends on the number of samples.")
    return rule(f)


# ------------------------------------------------------------------------------------------------- the rules


def _same(f: Followed) -> Place:
    """Each number alone."""
    return f.place()


def _front(f: Followed) -> Place:
    """ONNX defines such an op for each row of axis 0 alone."""
    places = {place for place in f.places if place is not None}
    if len(places) != 1 or f.place().axis:
        f.mixed("the batch is not in front of all its inputs.")
    return f.place()


def _broadcast(f: Followed) -> Place:
    return f.common()


def _along(default: int) -> Callable[[Followed], Place]:
    return lambda f: f.beside([f.node.integer("axis", default)])


def _softmax(f: Followed) -> Place:
    """Before opset 13 along all axes from `axis` on."""
    if f.node.opset >= 13:
        return _along(-1)(f)
    return f.beside(range(f.node.axis(f.node.integer("axis", 1), f.rank()), f.rank()))


def _normalized(f: Followed) -> Place:
    f.beside(range(f.node.axis(f.node.integer("axis", -1), f.rank()), f.rank()))
    return f.common()


def _quantized(f: Followed) -> Place:
    return f.place() if elements(f.shape(1)) == 1 else _along(1)(f)


def _reduced(f: Followed) -> Place:
    axes = f.ints(1, "axes")
    if not axes and f.node.integer("noop_with_empty_axes", 0):
        return f.place()
    axes = f.node.axes(axes or range(f.rank()), f.rank())
    place = f.beside(axes)
    if f.node.integer("keepdims", 1):
        return place
    return replace(place, axis=place.axis - sum(axis < place.axis for axis in axes))


def _reshaped(f: Followed) -> Place:
    """Sizes before the samples become whole axes and a part of one."""
    if f.node.op == "Squeeze":
        f.beside(f.ints(1, "axes") or ())
    place, given, to = f.place(), f.shape(), f.result
    many = [one if many is None else many for one, many in zip(f.node.operands, f.many, strict=True)]
    many[0] = place.of(given, MANY)
    target = TARGETS[f.node.op](Node(f.node.proto, f.node.opset, many))
    front = elements(given[: place.axis]) * place.outer
    for axis, size in enumerate(to):
        outer, rest = divmod(front, elements(to[:axis]))
        if outer and not rest and size % outer == 0 and target == Place(axis).of(to, MANY):
            return Place(axis, outer)
    f.mixed(f"{list(given)} of each sample becomes {list(to)} of one, and {list(target)} of {MANY}.")


def _transposed(f: Followed) -> Place:
    perm = f.node.integers("perm", tuple(reversed(range(f.rank()))))
    if sorted(perm) != list(range(f.rank())):
        f.node.invalid(f"perm {perm} does not order {f.rank()} axes.")
    return replace(f.place(), axis=perm.index(f.place().axis))


def _expanded(f: Followed) -> Place:
    place, target = f.place(), f.many[1] if f.many[1] is not None else f.node.constant(1, np.int64)
    moved = replace(place, axis=place.axis + len(f.result) - f.rank())
    try:
        many = np.broadcast_shapes(place.of(f.shape(), MANY), tuple(target.tolist()))
    except ValueError:
        many = ()
    if f.result[moved.axis] != f.shape()[place.axis] or many != moved.of(f.result, MANY):
        f.mixed(f"for {MANY} samples it expands to {target.tolist()}, and to {list(f.result)} for one.")
    return moved


def _joined(f: Followed) -> Place:
    place = f.common(repeats=False)
    if f.node.axis(f.node.integer("axis", 1), f.rank()) == place.axis:
        f.mixed(f"it joins along axis {place.axis}, which holds the batch.")
    return place


def _sliced(f: Followed) -> Place:
    """Along the batch only where all is kept, however long."""
    starts, ends = f.ints(1, "starts") or (), f.ints(2, "ends") or ()
    axes, steps = f.ints(3, "axes"), f.node.constant_ints(4) if f.node.has(4) else (1,) * len(starts)
    cuts = zip(range(len(starts)) if axes is None else axes, starts, ends, steps, strict=False)
    return f.beside(axis for axis, start, end, step in cuts if (start, step) != (0, 1) or end < _ENDLESS)


def _gathered(f: Followed) -> Place:
    place, indices = f.place(), f.node.operands[1]
    axis = f.node.axis(f.node.integer("axis", 0), f.rank())
    if axis == place.axis and _picks_of_each(f, indices):
        return Place(axis)
    if f.many[1] is not None or axis == place.axis or not isinstance(indices, np.ndarray):
        f.mixed(f"it picks along axis {axis}, which holds the batch, or by the number of samples.")
    return replace(place, axis=place.axis + (indices.ndim - 1 if axis < place.axis else 0))


def _picks_of_each(f: Followed, one: Any) -> bool:
    """Whether each sample's own rows are picked, and the same of each, as torch's as_strided is exported."""
    place, many = f.place(), f.many[1]
    if many is None or not one.ndim or place.outer > 1 or many.shape != Place(0).of(one.shape, MANY):
        return False
    size = f.shape()[place.axis]
    first = size * np.arange(MANY).reshape(-1, *(1,) * one.ndim)
    return bool(
        (one >= 0).all() and (one < size).all() and (many.reshape(MANY, *one.shape) == one + first).all()
    )


def _gathered_nd(f: Followed) -> Place:
    if f.node.integer("batch_dims", 0):
        f.mixed("batch_dims is set.")
    *lead, count = f.node.constant_integers(1).shape or (0,)
    place = f.beside(range(count))
    return replace(place, axis=place.axis - count + len(lead))


def _scattered(f: Followed) -> Place:
    """Data and updates align by their last axes, which are not indexed."""
    *_, count = f.node.constant_integers(1).shape or (0,)
    place = f.common(0, 2, repeats=False)
    place = replace(place, axis=place.axis - max(f.rank(2) - f.rank(), 0))
    if place.axis < count or f.many[1] is not None:
        f.mixed("it puts updates at places along the axis that holds the batch.")
    return place


def _padded(f: Followed) -> Place:
    pads, axes = f.ints(1, "pads") or (), f.node.constant_ints(3) if f.node.has(3) else range(f.rank())
    return f.beside(axis for i, axis in enumerate(axes) if pads[i] or pads[len(axes) + i])


def _tiled(f: Followed) -> Place:
    return f.beside(axis for axis, times in enumerate(f.node.constant_ints(1)) if times != 1)


def _multiplied(f: Followed) -> Place:
    """MatMul.  The batch counts matrices, or rows of the first factor."""
    rank, first = max(f.rank(0), f.rank(1)), f.places[0]
    if min(f.rank(0), f.rank(1)) < 2:
        f.mixed("a factor is a vector.")
    if first is not None and first.axis == f.rank() - 2 and f.node.is_constant(1) and f.many[1] is None:
        return replace(first, axis=rank - 2)
    place = f.common()
    if place.axis >= rank - 2:
        f.mixed("it multiplies along the axis that holds the batch.")
    return place


def _fused_matmul(f: Followed) -> Place:
    """The batch may not count rows of a first factor that is turned."""
    if f.node.integer("transA", 0) and f.common().axis >= max(f.rank(0), f.rank(1)) - 2:
        f.mixed("it multiplies along the axis that holds the batch.")
    return _multiplied(f)


def _gemm(f: Followed) -> Place:
    place = f.beside([0 if f.node.integer("transA", 0) else 1])
    if not f.node.is_constant(1) or f.many[1] is not None:
        f.mixed("both factors depend on the samples.")
    if f.node.has(2):
        f.check_constant(2, -2, place.outer, f.shape()[place.axis])
    return replace(place, axis=0)


def _einsum(f: Followed) -> Place:
    """The batch is one letter, which is summed nowhere."""
    left, _, right = f.node.text("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in left or len(terms) != len(f.places):
        f.mixed("its equation does not name the axis that holds the batch.")
    placed = [
        (term, place, f.shape(i))
        for i, (term, place) in enumerate(zip(terms, f.places, strict=True))
        if place
    ]
    found = {(term[place.axis], place.outer, shape[place.axis]) for term, place, shape in placed}
    letter, outer, _ = min(found)
    counts = [term.count(letter) == (place is not None) for term, place in zip(terms, f.places, strict=True)]
    if len(found) != 1 or not all(counts) or right.count(letter) != 1:
        f.mixed("it does not name the axis that holds the batch by one letter, or sums over it.")
    return Place(right.index(letter), outer)


def _attention(f: Followed) -> Place:
    """Queries, keys and values have the batch in front, and so has a mask of four axes."""
    place = f.place()
    if place.axis or set(f.places[:3]) != {place}:
        f.mixed("the batch is not in front of queries, keys and values.")
    for i in range(3, len(f.places)):
        if f.node.has(i):
            f.check_constant(i, -4, place.outer, f.shape()[0])
    return place


def _resized(f: Followed) -> Place:
    """By scales of 1 along the batch, or to sizes that name it."""
    place = f.place()
    axes = f.node.axes(f.node.integers("axes", range(f.rank())), f.rank())
    if place.axis not in axes:
        return place
    at, last = axes.index(place.axis), max(i for i in range(len(f.places)) if f.node.has(i))
    if last:
        one = f.node.constant(last, np.int64 if last == _SIZES else np.float32).reshape(-1)
        kept = np.array(one if f.many[last] is None else f.many[last]).reshape(-1)
        kept[at] -= f.shape()[place.axis] * MANY if last == _SIZES else 1
        is_kept = kept[at] == 0 and np.array_equal(np.delete(kept, at), np.delete(one, at))
    else:
        is_kept = f.node.numbers("scales", ())[at] == 1
    if not is_kept or f.result[place.axis] != f.shape()[place.axis]:
        f.mixed("it resizes along the axis that holds the batch.")
    return place


def _of(operands: Iterable[int], rule: Callable[[Followed], Place]) -> Callable[[Followed], Place]:
    """The rule of an op on integers, whose operands have scales and zero points behind them."""

    def found(f: Followed) -> Place:
        at = [*takewhile(lambda i: i < len(f.places), operands)]
        node = replace(f.node, operands=[f.node.operands[i] for i in at])
        return rule(replace(f, node=node, places=[f.places[i] for i in at], many=[f.many[i] for i in at]))

    return found


#: Rules by op.
RULES: dict[str, Callable[[Followed], Place]] = {
    **dict.fromkeys((*FUNCTIONS, "Relu", "Clip", "Neg", "Not", "IsNaN", "IsInf"), _same),
    **dict.fromkeys(("Identity", "Dropout", "Cast", "CastLike", "DynamicQuantizeLinear"), _same),
    **dict.fromkeys((op for op in PARSERS if fact(op).reads_planes), _front),
    **dict.fromkeys(("GridSample", "ConvInteger"), _front),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "Max", "Min", "Where"), _broadcast),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _broadcast),
    **dict.fromkeys(("And", "Or", "Xor", "PRelu"), _broadcast),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalized),
    **dict.fromkeys((op for op in PARSERS if op.startswith("Reduce")), _reduced),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantized),
    **dict.fromkeys(TARGETS, _reshaped),
    "LpNormalization": _along(-1),
    "Split": _along(0),
    "Transpose": _transposed,
    "Expand": _expanded,
    "Concat": _joined,
    "Slice": _sliced,
    "Gather": _gathered,
    "GatherND": _gathered_nd,
    "ScatterND": _scattered,
    "Pad": _padded,
    "Tile": _tiled,
    **dict.fromkeys(("MatMul", "MatMulInteger"), _multiplied),
    "com.microsoft.DynamicQuantizeMatMul": _multiplied,
    "com.microsoft.MatMulIntegerToFloat": _multiplied,
    "com.microsoft.MatMulNBits": _along(-1),
    **dict.fromkeys(("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul"), _fused_matmul),
    "com.microsoft.FusedGemm": _gemm,
    **dict.fromkeys((f"com.microsoft.{op}Gelu" for op in ("", "Bias", "Fast", "Quick")), _broadcast),
    **dict.fromkeys((f"com.microsoft.Skip{op}LayerNormalization" for op in ("", "Simplified")), _normalized),
    **dict.fromkeys((f"com.microsoft.{op}Linear" for op in ("Quantize", "Dequantize")), _quantized),
    **dict.fromkeys(("QLinearConv", "com.microsoft.FusedConv", "com.microsoft.GridSample"), _front),
    **dict.fromkeys(("RotaryEmbedding", "com.microsoft.RotaryEmbedding"), _front),
    "QLinearMatMul": _of((0, 3), _multiplied),
    "com.microsoft.QLinearWhere": _of((0, 1, 4), _broadcast),
    "com.microsoft.QGemm": _of((0, 3, 6), _gemm),
    **dict.fromkeys((f"com.microsoft.QLinear{op}" for op in ("Add", "Mul")), _of((0, 3), _broadcast)),
    **dict.fromkeys((f"com.microsoft.{op}Attention" for op in ("", "MultiHead", "Q")), _front),
    "com.microsoft.QLinearConcat": _of(range(2, MAX_NAMES, 3), _joined),
    **dict.fromkeys((f"com.microsoft.QLinear{op}AveragePool" for op in ("", "Global")), _front),
    "com.microsoft.QLinearLeakyRelu": _same,
    **dict.fromkeys(("Trilu", "com.microsoft.Trilu"), lambda f: f.beside((-2, -1))),
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
    **dict.fromkeys(("Resize", "Upsample"), _resized),
}
#: Rules that look at constants which depend on the number of samples.  Elsewhere there may be none.
_VARYING = {
    _broadcast,
    _normalized,
    _reshaped,
    _expanded,
    _joined,
    _gathered,
    _scattered,
    _multiplied,
    _gemm,
    _attention,
    _resized,
}
#: In older opsets, operands of sums align by an attribute.
_SINCE = 7
#: The least end of a Slice that no axis reaches.
_ENDLESS = 2**31 - 1
#: The input of Resize that holds sizes; an earlier one holds scales.
_SIZES = 3
