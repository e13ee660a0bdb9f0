"""Reads and writes at constant indices (ONNX GatherND, GatherElements, ScatterND, ScatterElements).

    Gather…     y[o] = x[i[o]]
    Scatter…    y[i[u]] = updates[u], elsewhere y = x;  with a reduction y[i[u]] = f(y[i[u]], updates[u])

Positions are counted through one sample, in the longest possible runs.  So Gather… is a Gather along one
axis, and Scatter… is a Where between x and such a Gather of the updates.  If several updates go to one place,
there is one Where after another; without a reduction the last update alone stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import readable_bytes
from ..graph.shapes import Shape
from ..limits import elements
from .facts import Fact
from .folded import as_inferred, as_operands, slow
from .node import Node
from .resample import MAX_TAPS
from .written import Rewriter, Writer

Positions = NDArray[np.int64]

#: Elements of all samples of a batch, which are counted through; updates that go to one place.
_MAX_COUNTED = 2**26
_MAX_LAYERS = 16
_REDUCTIONS = {"add": "Add", "mul": "Mul", "max": "Max", "min": "Min"}


def _places(node: Node, shape: Shape) -> Positions:
    """The position of each element of x, counted through all samples."""
    if elements(shape[1:]) > MAX_TAPS or elements(shape) > _MAX_COUNTED:
        node.refuse(
            f"it picks of a tensor of shape {list(shape)}.",
            supported=f"up to {MAX_TAPS} numbers a sample, and positions of "
            f"{readable_bytes(8 * _MAX_COUNTED)}",
        )
    return np.arange(elements(shape)).reshape(shape)


def _indices(node: Node, index: int = 1) -> Positions:
    """The constant indices of a node."""
    if not node.is_constant(index):
        node.refuse(
            "its indices are computed from the image.",
            supported="constant indices",
            hint="Indices have no gradient: explain what feeds the node.",
        )
    indices = node.constant_integers(index).astype(np.int64)
    if indices.size > _MAX_COUNTED:
        node.refuse(f"it has {indices.size} indices.", supported=f"up to {_MAX_COUNTED}")
    return indices


def _inside(node: Node, indices: Positions, sizes: Any) -> Positions:
    """The indices, counted from the front."""
    sizes = np.asarray(sizes)
    if not indices.size or (indices < -sizes).any() or (indices >= sizes).any():
        node.invalid(f"indices of shape {list(indices.shape)} are not all inside {sizes.tolist()}.")
    return np.where(indices < 0, indices + sizes, indices)


def _along(node: Node, shape: Shape) -> Positions:
    """The positions in x that the indices of a …Elements node name, in the indices' shape."""
    indices = _indices(node)
    axis = node.axis(node.integer("axis", 0), len(shape))
    if indices.ndim != len(shape):
        node.invalid(f"indices of shape {list(indices.shape)} for a tensor of shape {list(shape)}.")
    if any(n > m for a, (n, m) in enumerate(zip(indices.shape, shape, strict=True)) if a != axis):
        node.invalid(f"indices of shape {list(indices.shape)} reach over {list(shape)}.")
    indices = _inside(node, indices, shape[axis])
    others = tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(indices.shape))
    found: Positions = np.take_along_axis(_places(node, shape)[others], indices, axis)
    return found


def _by_tuples(node: Node, shape: Shape) -> Positions:
    """The positions in x that the indices of a …ND node name, in the updates' shape."""
    indices, batch_dims = _indices(node), node.integer("batch_dims", 0)
    last = indices.shape[-1] if indices.ndim else 0
    fits = 0 <= batch_dims < indices.ndim and 1 <= last <= len(shape) - batch_dims
    if not fits or indices.shape[:batch_dims] != shape[:batch_dims]:
        node.invalid(f"indices of shape {list(indices.shape)} for a tensor of shape {list(shape)}.")
    indices = _inside(node, indices, shape[batch_dims : batch_dims + last])
    around = indices.shape[:-1]
    grid = [
        np.arange(n).reshape([-1 if i == axis else 1 for i in range(len(around))])
        for axis, n in enumerate(around[:batch_dims])
    ]
    if elements(around) * elements(shape[batch_dims + last :]) > _MAX_COUNTED:
        node.refuse("its indices name too many elements.", supported=f"up to {_MAX_COUNTED}")
    found: Positions = _places(node, shape)[(*grid, *np.moveaxis(indices, -1, 0))]
    return found


def _by_sample(node: Node, shape: Shape) -> Shape:
    """x with the batch in front: a file for one sample may do with its axis 0 what it likes."""
    return shape if node.batch_is_open else (1, *shape)


def _of_a_sample(node: Node, positions: Positions, shape: Shape) -> Positions:
    """The positions within a sample, which are the same for all and in none but their own."""
    batch, size = shape[0], elements(shape[1:])
    if positions.size % batch:
        node.refuse("its indices mix the samples of the batch.")
    rows = positions.reshape(batch, -1) - size * np.arange(batch)[:, None]
    if (rows != rows[:1]).any() or rows.min() < 0 or rows.max() >= size:
        node.refuse(
            "its indices mix the samples of the batch.", supported="the same indices within each sample"
        )
    if rows.shape[1] > MAX_TAPS:
        node.refuse(f"it picks {rows.shape[1]} elements.", supported=f"up to {MAX_TAPS}")
    sample: Positions = rows[0]
    return sample


def _runs(positions: Positions, shape: Shape) -> tuple[Positions, int]:
    """The positions as positions of runs, and the length of the runs."""
    for axis in range(1, len(shape)):
        length = elements(shape[axis:])
        if positions.size % length:
            continue
        rows = positions.reshape(-1, length)
        if (rows[:, 0] % length == 0).all() and (rows == rows[:, :1] + np.arange(length)).all():
            return rows[:, 0] // length, length
    return positions, 1


def _gather(node: Node, w: Writer, positions: Positions) -> None:
    shape = _by_sample(node, node.shape(0))
    if node.batch_is_open and (positions.ndim < 1 or positions.shape[0] != shape[0]):
        node.refuse(
            f"of {list(shape)} it makes {list(positions.shape)}.", supported="the batch as the first axis"
        )
    picked, length = _runs(_of_a_sample(node, positions, shape), shape)
    x = w.reshaped(node.proto.input[0], (shape[0], elements(shape[1:]) // length, length))
    made = w.write("Gather", x, w.constant(picked), axis=1)
    w.reshaped(made, positions.shape, to=node.proto.output[0])


def gather_elements(node: Node, w: Writer) -> None:
    _gather(node, w, _along(node, node.shape(0)))


def gather_nd(node: Node, w: Writer) -> None:
    positions, indices = _by_tuples(node, node.shape(0)), _indices(node)
    if node.batch_is_open or indices.shape[-1] > 1 or node.integer("batch_dims", 0):
        _gather(node, w, positions)
    else:  # along axis 0, which keeps the order of the others in memory
        w.write("Gather", node.proto.input[0], w.constant(indices[..., 0]), to=node.proto.output[0], axis=0)


def _of_every_sample(node: Node, index: int, batch: int) -> NDArray[Any]:
    """A constant operand, for one sample."""
    values = node.constant(index, infinite=True)
    rows = values.reshape(batch, -1) if values.size % batch == 0 else values.reshape(1, -1)
    if rows.shape[0] != batch or (rows != rows[:1]).any():
        node.refuse("a constant differs by sample.", supported="the same for all samples")
    sample: NDArray[Any] = rows[0]
    return sample


def _layers(positions: Positions, reduces: bool) -> list[Positions]:
    """Parts of the updates, by number, of which each goes to different places; without a reduction one."""
    order = np.argsort(positions, kind="stable")
    first = np.concatenate(([True], np.diff(positions[order]) != 0))
    start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    nth = np.arange(len(order)) - start  # how many of the same place came before
    if not reduces:
        return [order[np.append(first[1:], True)]]
    return [order[nth == n] for n in range(int(nth.max()) + 1)]


def _scatter(node: Node, w: Writer, shape: Shape, positions: Positions) -> None:
    reduction = node.text("reduction", "none")
    if reduction not in ("none", *_REDUCTIONS):
        node.invalid(f"reduction is {reduction!r}.")
    updates = node.constant(2, infinite=True).shape if node.is_constant(2) else node.shape(2)
    if tuple(updates) != positions.shape:
        node.invalid(f"updates of shape {list(updates)} do not fit {list(positions.shape)}.")
    result, shape = shape, _by_sample(node, shape)
    batch = shape[0]
    if node.batch_is_open and not node.is_constant(2) and updates[0] != batch:
        node.refuse(f"updates have shape {list(updates)}.", supported="the batch as the first axis")
    put, length = _runs(_of_a_sample(node, positions, shape), shape)
    inside = elements(shape[1:]) // length
    if node.is_constant(0):
        y = w.constant(_of_every_sample(node, 0, batch).reshape(1, inside, length))
    else:
        y = w.reshaped(node.proto.input[0], (batch, inside, length))
    constant = new = None
    if node.is_constant(2):
        constant = _of_every_sample(node, 2, batch).reshape(-1, length)
    else:
        new = w.reshaped(node.proto.input[2], (batch, len(put), length))
    layers = _layers(put, reduction != "none")
    if len(layers) > _MAX_LAYERS:
        node.refuse(f"{len(layers)} updates go to one place.", supported=f"up to {_MAX_LAYERS}")
    for layer in layers:
        index, goes = np.zeros(inside, np.int64), np.zeros((1, inside, 1), bool)
        index[put[layer]], goes[0, put[layer]] = layer, True
        if constant is not None:
            placed = w.constant(constant[None, index])
        else:
            placed = w.write("Gather", str(new), w.constant(index), axis=1)
        if reduction != "none":
            placed = w.write(_REDUCTIONS[reduction], y, placed)
        y = w.write("Where", w.constant(goes), placed, y)
    w.reshaped(y, result, to=node.proto.output[0])


def _data(node: Node) -> Shape:
    return tuple(node.constant(0, infinite=True).shape) if node.is_constant(0) else node.shape(0)


def scatter_elements(node: Node, w: Writer) -> None:
    _scatter(node, w, _data(node), _along(node, _data(node)))


def scatter_nd(node: Node, w: Writer) -> None:
    _scatter(node, w, _data(node), _by_tuples(node, _data(node)))


REWRITERS: dict[str, Rewriter] = {
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}

FACTS = {
    "GatherElements": Fact("other", folds=as_operands),
    "GatherND": Fact("other", folds=slow(as_inferred)),
    **dict.fromkeys(("Scatter", "ScatterElements", "ScatterND"), Fact("other", folds=slow(as_operands))),
}
