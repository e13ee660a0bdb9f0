"""Tensors whose batch is not the first axis, between two Transposes that move it away and back.

PyTorch's newer exporter writes an index of inner axes in this way: x[:, perm] becomes Transpose, GatherND,
Transpose, and x[:, 1:3] = v becomes two Transposes, ScatterND, Transpose.  The moved tensor is never
computed.  It is described as another tensor and an order of its axes (`Moved`), and its readers are rewritten
with the batch in front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from ..graph.shapes import Shape
from ..limits import elements
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
    node
        The name of the Transpose that moved the batch.
    """

    name: str
    shape: Shape
    perm: tuple[int, ...]
    node: str

    @property
    def seen(self) -> Shape:
        """The shape that the file's nodes see."""
        return tuple(self.shape[axis] for axis in self.perm)

    def refused(self) -> UnsupportedError:
        """The error for a node that would compute with the tensor."""
        return UnsupportedError(
            f"perm {list(self.perm)} moves the batch axis.",
            node=self.node,
            op="Transpose",
            supported="perm[0] = 0, or a Transpose that moves it back behind GatherND or ScatterND",
        )

    def in_order(self, w: Writer, front: tuple[int, ...]) -> str:
        """Write the tensor with the batch first, then the axes `front`, then the others as nodes see them."""
        rest = (axis for axis in self.perm if axis not in (0, *front))
        perm = (0, *front, *rest)
        return self.name if perm == tuple(range(len(perm))) else w.write("Transpose", self.name, perm=perm)


def transposed(node: Node, w: Writer, x: Moved) -> Moved | None:
    """Write a Transpose of x.  If the batch is not in front behind it, return the description instead."""
    rank = len(x.perm)
    perm = node.integers("perm", tuple(reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        node.invalid(f"perm {perm} does not order {rank} axes.")
    perm = tuple(x.perm[axis] for axis in perm)
    if perm[0] != 0:
        return Moved(x.name, x.shape, perm, x.node)
    w.write("Transpose", x.name, to=node.proto.output[0], perm=perm)
    return None


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
    return Moved(w.reshaped(made, shape), shape, perm, x.node)


def gathered_along(node: Node, w: Writer, x: Moved) -> Moved:
    """Gather with constant indices along another axis than the batch."""
    axis = node.axis(node.integer("axis", 0), len(x.perm))
    along, indices = x.perm[axis], node.constant_integers(1)
    if along == 0:
        node.refuse("it picks samples of the batch.", supported="indices of another axis")
    lead = indices.ndim
    made = w.write("Gather", x.name, w.constant(indices.astype(np.int64)), axis=along)
    renumbered = [a if a < along else a - 1 + lead for a in x.perm]
    perm = (*renumbered[:axis], *range(along, along + lead), *renumbered[axis + 1 :])
    shape = (*x.shape[:along], *indices.shape, *x.shape[along + 1 :])
    return Moved(made, shape, perm, x.node)


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
    return Moved(w.reshaped(made, original), original, order, like.node)


def unchanged(node: Node, w: Writer, x: Moved) -> Moved:
    """Identity, which also stands for the branch that an If takes."""
    return x


#: Ops that may read a moved tensor.
READERS: dict[str, Callable[..., Moved | None]] = {
    "Identity": unchanged,
    "Transpose": transposed,
    "GatherND": gathered,
    "Gather": gathered_along,
}
