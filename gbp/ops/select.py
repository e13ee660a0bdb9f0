"""Ops that pick, repeat and mirror along axes (ONNX Slice, Gather, Tile, Expand, Pad).

    y[…, o, …] = x[…, i[o], …]        gx[…, a, …] = Σ_{o: i[o] = a} gy[…, o, …]

Each axis that changes is one op: an `AxisSlice` for a run of neighbours, which the plan can make a view, else
a `Resample` with one tap for each output.  Pad with a constant is a `shape.Pad`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op
from .concat import AxisSlice
from .facts import Fact
from .folded import Constants, Cost, as_operands, broadcast, makes, product
from .node import Node
from .resample import refuse_unless_it_fits, select
from .shape import Pad, Reshape, or_identity

_PAD_MODES = ("constant", "reflect", "edge", "wrap")


def parse_slice(node: Node) -> tuple[Op, ...]:
    """Starts, ends and axes are attributes before opset 10; inputs since, and steps with them."""
    shape = node.shape(0)
    axes: Sequence[int] | None
    if node.opset < 10:
        starts, ends, axes = node.integers("starts", ()), node.integers("ends", ()), node.integers("axes")
        steps: Sequence[int] = [1] * len(starts)
    else:
        starts, ends = node.constant_ints(1), node.constant_ints(2)
        axes = node.constant_ints(3) if node.has(3) else None
        steps = node.constant_ints(4) if node.has(4) else [1] * len(starts)
    axes = node.axes(range(len(starts)) if axes is None else axes, len(shape))
    if not len(starts) == len(ends) == len(steps) == len(axes) or 0 in steps:
        node.invalid(f"starts {list(starts)}, ends {list(ends)}, steps {list(steps)} do not fit {axes}.")
    ops: list[Op] = []
    for axis, *ends_and_step in zip(axes, starts, ends, steps, strict=True):
        start, stop, step = slice(*ends_and_step).indices(shape[axis])
        taken = range(start, stop, step)
        if taken == range(shape[axis]):
            continue
        if axis == 0:
            node.refuse(f"it takes [{start}:{stop}:{step}] of the batch.", supported="all of it")
        if not taken:
            node.invalid(f"it takes nothing of axis {axis} of {shape[axis]}.")
        if step == 1:
            ops.append(AxisSlice(axis, start, stop))
        else:
            refuse_unless_it_fits(node, shape[axis], len(taken))
            ops.append(select(axis, shape[axis], np.array(taken)))
    return or_identity(ops, shape)


def _picked(node: Node, axis: int, indices: NDArray[np.int64]) -> tuple[Op, ...]:
    """The ops that pick these indices along an axis; none if they are all of it."""
    size = node.shape(0)[axis]
    if (np.diff(indices) == 1).all():
        start, stop = int(indices[0]), int(indices[-1]) + 1
        return () if (start, stop) == (0, size) else (AxisSlice(axis, start, stop),)
    return (select(axis, size, indices),)


def parse_gather(node: Node) -> tuple[Op, ...]:
    shape = node.shape(0)
    axis = node.axis_within(node.integer("axis", 0), len(shape))
    indices, size = node.constant(1, np.int64), shape[axis]
    refuse_unless_it_fits(node, size, indices.size)
    if not indices.size or indices.min() < -size or indices.max() >= size:
        node.invalid(f"indices of shape {list(indices.shape)} are not all inside axis {axis} of {size}.")
    ops = _picked(node, axis, np.where(indices < 0, indices + size, indices).reshape(-1))
    result = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
    return or_identity(ops if indices.ndim == 1 else (*ops, Reshape(result)), shape)


def parse_tile(node: Node) -> tuple[Op, ...]:
    shape = node.shape(0)
    if node.opset < 6:  # so many tiles along one axis
        repeats, tiles, axis = [1] * len(shape), node.scalar(1), node.scalar(2)
        if tiles != int(tiles) or axis != int(axis):
            node.invalid(f"tiles {tiles} and axis {axis} are no whole numbers.")
        repeats[node.axis(int(axis), len(shape))] = int(tiles)
    else:
        repeats = list(node.constant_ints(1))
    if len(repeats) != len(shape) or min(repeats) < 1:
        node.invalid(f"repeats {repeats} do not fit {list(shape)}.")
    if repeats[0] != 1:
        node.refuse(f"repeats {repeats} multiply the batch.", supported="1 on the batch axis")
    ops = []
    for axis, (size, count) in enumerate(zip(shape, repeats, strict=True)):
        if count > 1:
            refuse_unless_it_fits(node, size, count, size)
            ops.append(select(axis, size, np.tile(np.arange(size), count)))
    return or_identity(ops, shape)


def parse_expand(node: Node) -> tuple[Op, ...]:
    shape, target = node.shape(0), node.constant_ints(1)
    if len(target) > len(shape):
        node.refuse(f"{list(shape)} becomes {list(target)}, with axes before the batch.")
    target = (*[1] * (len(shape) - len(target)), *target)
    ops = []
    for axis, (size, wanted) in enumerate(zip(shape, target, strict=True)):
        if wanted in (1, size):
            continue
        if size != 1 or wanted < 1:
            node.invalid(f"{list(shape)} does not broadcast to {list(target)}.")
        if axis == 0:
            node.refuse(f"{list(shape)} becomes {list(target)}, which repeats the batch.")
        refuse_unless_it_fits(node, size, wanted)
        ops.append(select(axis, size, np.zeros(wanted, np.int64)))
    return or_identity(ops, shape)


def _pads(node: Node) -> tuple[list[int], list[int], float]:
    """The pads before and behind each axis (negative ones crop), and the value of padding."""
    shape = node.shape(0)
    if node.opset < 11:
        pads = node.integers("pads" if node.opset > 1 else "paddings", ())
        value = node.number("value", 0.0, infinite=True)
    else:
        pads = node.constant_ints(1)
        given = node.constant(2, infinite=True) if node.has(2) else np.zeros(1, np.float32)
        value = float(given.reshape(-1)[0]) if given.size else 0.0
    axes = node.axes(node.constant_ints(3) if node.has(3) else range(len(shape)), len(shape))
    if len(pads) != 2 * len(axes):
        node.invalid(f"pads {list(pads)} do not give two values for each of {len(axes)} axes.")
    begin, end = [0] * len(shape), [0] * len(shape)
    for i, axis in enumerate(axes):
        begin[axis], end[axis] = pads[i], pads[i + len(axes)]
    if begin[0] or end[0]:
        node.refuse(f"pads {list(pads)} change the batch.", supported="other axes")
    if any(n + min(0, a) + min(0, b) < 1 for a, n, b in zip(begin, shape, end, strict=True)):
        node.invalid(f"pads {list(pads)} leave nothing of {list(shape)}.")
    return begin, end, value


def parse_pad(node: Node) -> tuple[Op, ...]:
    """Negative pads crop, before anything is added."""
    shape = node.shape(0)
    mode = node.text("mode", "constant")
    if mode not in _PAD_MODES:
        node.refuse(f"mode is {mode!r}.", supported=", ".join(_PAD_MODES))
    begin, end, value = _pads(node)
    cut = [(max(0, -a), n + min(0, b)) for a, n, b in zip(begin, shape, end, strict=True)]
    added = [(max(0, a), max(0, b)) for a, b in zip(begin, end, strict=True)]
    ops: list[Op] = []
    for axis, (start, stop) in enumerate(cut):
        if (start, stop) != (0, shape[axis]):
            ops.append(AxisSlice(axis, start, stop))
    if mode == "constant":
        if any(map(sum, added)) or not ops:
            ops.append(Pad(tuple(a for a, _ in added), tuple(b for _, b in added), value))
        return tuple(ops)
    for axis, (before, behind) in enumerate(added):
        if before or behind:
            size = cut[axis][1] - cut[axis][0]
            refuse_unless_it_fits(node, size, before + size + behind)
            indices = np.arange(size)
            # NumPy's modes of this name are ONNX's; its types know them as literals only.
            ops.append(select(axis, size, np.pad(indices, (before, behind), mode=mode)))  # type: ignore[call-overload]
    return or_identity(ops, shape)


PARSERS = {
    "Expand": parse_expand,
    "Gather": parse_gather,
    "Pad": parse_pad,
    "Slice": parse_slice,
    "Tile": parse_tile,
}


def _expanded(given: Constants) -> Cost:
    return makes(given, broadcast(given.shapes[0], np.abs(given.values[1].astype(np.float64))))


def _gathered(given: Constants) -> Cost:
    (data, indices), attributes = given.values, given.attributes
    axis = attributes["axis"].i if "axis" in attributes else 0
    return makes(given, data.size / max(1, data.shape[axis]) * indices.size)


def _padded(given: Constants) -> Cost:
    pads = given.values[1] if len(given.values) > 1 else given.attributes["pads"].ints
    around = np.abs(np.asarray(pads, np.float64)).sum()
    return makes(given, product([n + around for n in given.shapes[0]]))


def _tiled(given: Constants) -> Cost:
    return makes(given, product(given.shapes[0]) * product(given.values[1]))


FACTS = {
    "Expand": Fact("other", folds=_expanded),
    "Gather": Fact("other", folds=_gathered),
    "Pad": Fact("other", is_pixelwise=True, folds=_padded),
    "Slice": Fact("other", folds=as_operands),
    "Tile": Fact("other", folds=_tiled),
}
