"""Tensors whose batch is not the first axis, between nodes that move it away and back.

PyTorch's newer exporter writes an index of inner axes in this way: x[:, perm] becomes Transpose, GatherND,
Transpose, and x[:, 1:3] = v becomes two Transposes, ScatterND, Transpose.  Attention takes queries, keys and
values apart along an axis that it puts first, and networks for video do so with frames, which they stack
again.  The moved tensor is never computed.  It is described as another tensor and an order of its axes
(`Moved`), and its readers are rewritten with the batch in front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from ..graph.shapes import Shape
from ..limits import elements
from ..ops.concat import parts
from ..ops.node import Node
from ..ops.resample import MAX_TAPS
from ..ops.written import Writer


@dataclass(frozen=True)
class Moved:
    """Tensor `name` with its axes in the order `perm`.

    Parameters
    ----------
    name
        A tensor whose first axis is the batch.
    shape
        Its shape.
    perm
        The order of axes in which the file's nodes see it.
    node, op
        The name of the node that moved the batch, and its op.
    """

    name: str
    shape: Shape
    perm: tuple[int, ...]
    node: str
    op: str = "Transpose"

    @property
    def seen(self) -> Shape:
        """The shape that the file's nodes see."""
        return tuple(self.shape[axis] for axis in self.perm)

    def refused(self) -> UnsupportedError:
        """The error for a node that would compute with the tensor."""
        found = f"perm {list(self.perm)} moves" if self.op == "Transpose" else "it moves"
        return UnsupportedError(
            f"{found} the batch axis.",
            node=self.node,
            op=self.op,
            supported="the batch in front; or that it comes back there. If it is fixed at several samples, "
            f"nothing may stand between but {', '.join(sorted((*READERS, 'Concat', 'ScatterND')))}",
        )

    def along(self, node: Node, axis: int) -> int:
        """The axis of `name` that nodes see as `axis`, which may not be the batch."""
        found = self.perm[node.axis(axis, len(self.perm))]
        if found == 0:
            node.refuse("it picks samples of the batch, or mixes them.", supported="another axis")
        return found

    def in_order(self, w: Writer, front: tuple[int, ...]) -> str:
        """Write the tensor with the batch first, then the axes `front`, then the others as nodes see them."""
        rest = (axis for axis in self.perm if axis not in (0, *front))
        perm = (0, *front, *rest)
        return self.name if perm == tuple(range(len(perm))) else w.write("Transpose", self.name, perm=perm)


def transposed(node: Node, w: Writer, x: Moved) -> Moved:
    """Transpose."""
    rank = len(x.perm)
    perm = node.integers("perm", tuple(reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        node.invalid(f"perm {perm} does not order {rank} axes.")
    return replace(x, perm=tuple(x.perm[axis] for axis in perm))


def _indexed(node: Node, x: Moved, indices: NDArray[Any]) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """The axes of x.name that `indices` (…, k) index, and the indices into these axes merged into one."""
    if indices.ndim < 1 or not 1 <= indices.shape[-1] <= len(x.perm) or not indices.size:
        node.invalid(f"indices of shape {list(indices.shape)} do not fit {list(x.seen)}.")
    axes = x.perm[: indices.shape[-1]]
    if 0 in axes:
        node.refuse("it picks samples of the batch.", supported="indices of other axes")
    sizes = np.array([x.shape[axis] for axis in axes])
    if (indices < -sizes).any() or (indices >= sizes).any():
        node.invalid(f"indices are not all inside {list(sizes)}.")
    if elements(sizes.tolist()) > MAX_TAPS:
        node.refuse(f"it picks of {list(sizes)} elements.", supported=f"up to {MAX_TAPS}")
    whole = np.moveaxis(np.where(indices < 0, indices + sizes, indices), -1, 0)
    return axes, np.ravel_multi_index(tuple(whole), tuple(sizes.tolist())).astype(np.int64)


def _with_new_axes(x: Moved, axes: tuple[int, ...], lead: int) -> tuple[tuple[int, ...], Shape]:
    """How nodes see x where `lead` new axes replace `axes`, and are stored right behind the batch.

    Returns
    -------
    The order of all axes that the file's nodes see, and the sizes of those that are stored behind the new.
    """
    rest = [axis for axis in x.perm if axis not in axes]
    others = [axis for axis in rest if axis]
    order = [0 if axis == 0 else 1 + lead + others.index(axis) for axis in rest]
    return (*range(1, 1 + lead), *order), tuple(x.shape[axis] for axis in others)


def gathered(node: Node, w: Writer, x: Moved) -> Moved:
    """GatherND with constant indices that do not index the batch."""
    if node.integer("batch_dims", 0):
        node.refuse(f"batch_dims is set, and {x.node!r} moves the batch.", supported="0")
    indices = node.constant_integers(1).astype(np.int64)
    axes, picked = _indexed(node, x, indices)
    batch, lead = x.shape[0], picked.ndim
    perm, rest = _with_new_axes(x, axes, lead)
    inside = elements([x.shape[axis] for axis in axes])
    flat = w.reshaped(x.in_order(w, axes), (batch, inside, *rest))
    made = w.write("Gather", flat, w.constant(picked.reshape(-1)), axis=1)
    shape = (batch, *picked.shape, *rest)
    return replace(x, name=w.reshaped(made, shape), shape=shape, perm=perm)


def gathered_along(node: Node, w: Writer, x: Moved) -> Moved:
    """Gather with constant indices along another axis than the batch."""
    axis = node.axis(node.integer("axis", 0), len(x.perm))
    along, indices = x.along(node, axis), node.constant_integers(1)
    lead = indices.ndim
    made = w.write("Gather", x.name, w.constant(indices.astype(np.int64)), axis=along)
    renumbered = [a if a < along else a - 1 + lead for a in x.perm]
    perm = (*renumbered[:axis], *range(along, along + lead), *renumbered[axis + 1 :])
    shape = (*x.shape[:along], *indices.shape, *x.shape[along + 1 :])
    return replace(x, name=made, shape=shape, perm=perm)


def scattered(node: Node, w: Writer, x: Moved | NDArray[Any], updates: Moved | NDArray[Any]) -> Moved:
    """ScatterND with constant indices that do not index the batch.  Either operand may be constant."""
    like = x if isinstance(x, Moved) else None
    if like is None:
        node.refuse("its data are constant and the batch of its updates is moved.", supported="computed data")
    axes, picked = _indexed(node, like, node.constant_integers(1).astype(np.int64))
    batch, lead = like.shape[0], picked.ndim
    perm, rest = _with_new_axes(like, axes, lead)
    inside = elements([like.shape[axis] for axis in axes])
    flat = w.reshaped(like.in_order(w, axes), (batch, inside, *rest))
    shape = (batch, picked.size, *rest)
    seen = tuple((batch, *picked.shape, *rest)[axis] for axis in perm)
    if isinstance(updates, Moved):
        if updates.seen != seen or [a == 0 for a in updates.perm] != [a == 0 for a in perm]:
            node.refuse(f"updates of shape {list(updates.seen)} do not fit {list(seen)}.")
        new = w.reshaped(updates.in_order(w, updates.perm[:lead]), shape)
    else:
        back = [perm.index(axis) for axis in range(len(perm))]
        if updates.shape != seen:
            node.invalid(f"updates of shape {list(updates.shape)} do not fit {list(seen)}.")
        new = w.constant(updates.transpose(back).reshape(shape))
    ones = (1,) * len(rest)
    where = np.broadcast_to(picked.reshape(1, -1, *ones), shape)
    reduction = node.text("reduction", "none")
    attributes = {} if reduction == "none" else {"reduction": reduction}
    made = w.write("ScatterElements", flat, w.constant(where), new, axis=1, **attributes)
    original = (batch, *(like.shape[axis] for axis in axes), *rest)
    order, _ = _with_new_axes(like, axes, len(axes))
    return replace(like, name=w.reshaped(made, original), shape=original, perm=order)


def _axes(node: Node, rank: int) -> tuple[int, ...]:
    """`axes`: an attribute before opset 13, an input since."""
    axes = node.constant_ints(1) if node.has(1) else node.integers("axes")
    if axes is None:
        node.refuse("it names no axes.", supported="axes")
    return node.axes(axes, rank)


def squeezed(node: Node, w: Writer, x: Moved) -> Moved:
    """Squeeze of other axes than the batch."""
    gone = {x.along(node, axis) for axis in _axes(node, len(x.perm))}
    if any(x.shape[axis] != 1 for axis in gone):
        node.invalid(f"not all axes of {list(x.seen)} that it removes are 1.")
    kept = [axis for axis in range(len(x.perm)) if axis not in gone]
    shape = tuple(x.shape[axis] for axis in kept)
    perm = tuple(kept.index(axis) for axis in x.perm if axis not in gone)
    return replace(x, name=w.reshaped(x.name, shape), shape=shape, perm=perm)


def unsqueezed(node: Node, w: Writer, x: Moved) -> Moved:
    """Unsqueeze.  The new axes are stored right behind the batch."""
    count = len(node.constant_ints(1) if node.has(1) else node.integers("axes", ()))
    rank = len(x.perm) + count
    axes = _axes(node, rank)
    shape = (x.shape[0], *(1,) * count, *x.shape[1:])
    new, rest = iter(range(1, 1 + count)), (axis + count if axis else 0 for axis in x.perm)
    perm = tuple(next(new) if i in axes else next(rest) for i in range(rank))
    return replace(x, name=w.reshaped(x.name, shape), shape=shape, perm=perm)


def _cut(w: Writer, x: Moved, cuts: dict[int, slice]) -> Moved:
    """Slices along axes of x.name, each of which takes something."""
    shape = tuple(len(range(*cuts.get(a, slice(None)).indices(n))) for a, n in enumerate(x.shape))
    ends = [[cut.start for cut in cuts.values()], [cut.stop for cut in cuts.values()]]
    if w.opset < 10:
        name = w.write("Slice", x.name, starts=ends[0], ends=ends[1], axes=list(cuts))
    else:
        given = *ends, list(cuts), [cut.step for cut in cuts.values()]
        name = w.write("Slice", x.name, *(w.constant(np.array(values, np.int64)) for values in given))
    return replace(x, name=name, shape=shape)


def sliced(node: Node, w: Writer, x: Moved) -> Moved:
    """Slice along other axes than the batch."""
    if node.opset < 10:
        starts, ends, axes = node.integers("starts", ()), node.integers("ends", ()), node.integers("axes")
        steps: tuple[int, ...] = (1,) * len(starts)
    else:
        starts, ends = node.constant_ints(1), node.constant_ints(2)
        axes = node.constant_ints(3) if node.has(3) else None
        steps = node.constant_ints(4) if node.has(4) else (1,) * len(starts)
    axes = tuple(range(len(starts))) if axes is None else node.axes(axes, len(x.perm))
    if not len(starts) == len(ends) == len(steps) == len(axes) or 0 in steps:
        node.invalid(
            f"starts {list(starts)}, ends {list(ends)}, steps {list(steps)} do not fit {list(axes)}."
        )
    cuts = {}
    for axis, *cut in zip(axes, starts, ends, steps, strict=True):
        along = x.along(node, axis)
        cuts[along] = slice(*cut)
        if not range(*cuts[along].indices(x.shape[along])):
            node.invalid(f"it takes nothing of axis {axis} of {list(x.seen)}.")
    return _cut(w, x, cuts)


def split(node: Node, w: Writer, x: Moved) -> list[Moved]:
    """Split along another axis than the batch: a Slice for each output."""
    along = x.along(node, node.integer("axis", 0))
    return [_cut(w, x, {along: slice(a, b, 1)}) for a, b in parts(node, x.shape[along])]


def joined(node: Node, w: Writer, xs: list[Moved]) -> Moved:
    """Concat along another axis than the batch, of tensors whose batch is at one place."""
    first, *others = xs
    along = first.along(node, node.integer("axis", 0))
    axis = first.perm.index(along)
    names = [first.name]
    for x in others:
        seen = [(*each.seen[:axis], *each.seen[axis + 1 :]) for each in (first, x)]
        if len(x.perm) != len(first.perm) or seen[0] != seen[1] or x.perm.index(0) != first.perm.index(0):
            node.refuse(f"inputs of shapes {list(first.seen)} and {list(x.seen)} do not join.")
        order = tuple(x.perm[first.perm.index(a)] for a in range(len(x.perm)))
        names.append(
            x.name if order == tuple(range(len(order))) else w.write("Transpose", x.name, perm=order)
        )
    shape = list(first.shape)
    shape[along] = sum(x.seen[axis] for x in xs)
    return replace(first, name=w.write("Concat", *names, axis=along), shape=tuple(shape))


def reduced(node: Node, w: Writer, x: Moved) -> Moved:
    """An op of ONNX's Reduce family over other axes than the batch, as the mean over stacked views."""
    is_input, given = node.has(1), dict[str, Any]()
    axes = node.constant_ints(1) if is_input else node.integers("axes")
    if not axes:
        node.refuse("it names no axes, and the batch is moved.", supported="axes")
    node.ignore("noop_with_empty_axes")
    gone = sorted({x.along(node, axis) for axis in axes})
    if node.integer("keepdims", 1):
        shape = tuple(1 if axis in gone else size for axis, size in enumerate(x.shape))
        perm = x.perm
    else:
        kept = [axis for axis in range(len(x.perm)) if axis not in gone]
        shape, given = tuple(x.shape[axis] for axis in kept), {"keepdims": 0}
        perm = tuple(kept.index(axis) for axis in x.perm if axis not in gone)
    if is_input:
        made = w.write(node.op, x.name, w.constant(np.array(gone, np.int64)), **given)
    else:
        made = w.write(node.op, x.name, axes=gone, **given)
    return replace(x, name=made, shape=shape, perm=perm)


def unchanged(node: Node, w: Writer, x: Moved) -> Moved:
    """Identity, which also stands for the branch that an If takes."""
    return x


#: The ops that `reduced` reads.
_REDUCING = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
#: Ops that may read a moved tensor.
READERS: dict[str, Callable[..., Moved | list[Moved]]] = {
    "Identity": unchanged,
    "Transpose": transposed,
    "GatherND": gathered,
    "Gather": gathered_along,
    "Slice": sliced,
    "Split": split,
    "Squeeze": squeezed,
    "Unsqueeze": unsqueezed,
    **dict.fromkeys(_REDUCING, reduced),
}

#: Ops that may move the batch from the front.
MOVERS: dict[str, Callable[[Node, Writer, Moved], Moved]] = {"Transpose": transposed, "Unsqueeze": unsqueezed}
