"""Where tensors hold the batch, in a file with an open batch that is moved or folded into other axes.

PyTorch's attention moves the batch behind the positions, (L, N, C), and folds it into heads, (L, N·h, c), or
into rows, (L·N, C).  Swin folds it into windows, (N·w, L, C).  For n samples each tensor of such a file is as
for one sample, with n times the elements along one axis (`Place`).  A node that does the same with all
elements along this axis keeps the samples apart; `batch_place_nodes.py` has a rule for each op.  So where all
nodes do, and the scores have the batch in front, the graph for one sample holds for any number of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..graph.shapes import Shape
from ..ops.node import Node

#: Another number of samples than one.  Few files have it by chance, and constants of this size are small.
MANY = 11


@dataclass(frozen=True)
class Place:
    """Where a tensor holds the batch.

    Parameters
    ----------
    axis
        The axis.  For one sample its size is outer · inner, for n samples outer · n · inner.
    outer
        How many rows of each sample are counted slower than the samples.
    """

    axis: int
    outer: int = 1

    def of(self, shape: Shape, samples: int) -> Shape:
        """The shape for more samples of a tensor that has `shape` for one."""
        return (*shape[: self.axis], shape[self.axis] * samples, *shape[self.axis + 1 :])

    def repeated(self, one: NDArray[Any], samples: int) -> NDArray[Any] | None:
        """A tensor in which every sample has the values of `one`; None if it has no such axis."""
        if self.axis < 0 or one.shape[self.axis] % self.outer:
            return None
        inner = one.shape[self.axis] // self.outer
        apart = *one.shape[: self.axis], self.outer, 1, inner, *one.shape[self.axis + 1 :]
        rows = np.repeat(one.reshape(apart), samples, axis=self.axis + 1)
        return rows.reshape(self.of(one.shape, samples))


@dataclass(frozen=True)
class Followed:
    """A node through which the batch is followed.

    Parameters
    ----------
    node
        The node, with the shapes that its tensors have for one sample.
    places
        For each input where it holds the batch; None for a constant.
    many
        For each input that is another constant for `MANY` samples, that constant; None for others.
    result
        The shape of the first output for one sample; () where other nodes will make it.
    """

    node: Node
    places: Sequence[Place | None]
    many: Sequence[NDArray[Any] | None]
    result: Shape

    def shape(self, index: int = 0) -> Shape:
        """The shape of an input for one sample; () if it is left out."""
        operand = self.node.operands[index]
        return operand if isinstance(operand, tuple) else () if operand is None else operand.shape

    def rank(self, index: int = 0) -> int:
        return len(self.shape(index))

    def mixed(self, found: str) -> NoReturn:
        """Refuse a node that may mix samples."""
        self.node.refuse(found, supported="what keeps the samples of a batch apart")

    def place(self, index: int = 0) -> Place:
        """Where an input holds the batch."""
        found = self.places[index]
        if found is None:
            self.mixed(f"input {index} is a constant, and another input holds the batch.")
        return found

    def beside(self, axes: Iterable[int]) -> Place:
        """The place of input 0, which may not be one of `axes`, along which the node works."""
        place = self.place()
        if place.axis in self.node.axes(tuple(axes), self.rank()):
            self.mixed(f"it works along axis {place.axis} of {list(self.shape())}, which holds the batch.")
        return place

    def common(self, *inputs: int, repeats: bool = True) -> Place:
        """Where a result holds the batch, to which `inputs`, or all, align by their last axes.

        The result has as many axes as the longest of them.  `repeats`: whether one row of a constant serves
        all samples.
        """
        inputs = tuple(i for i in inputs or range(len(self.places)) if self.node.has(i))
        placed = [(place, self.shape(i)) for i in inputs if (place := self.places[i]) is not None]
        found = {(place.axis - len(shape), place.outer, shape[place.axis]) for place, shape in placed}
        if len(found) != 1:
            self.mixed("its inputs hold the batch at different places.")
        ((from_end, outer, size),) = found
        for i in inputs:
            if self.places[i] is None:
                self.check_constant(i, from_end, outer, size, repeats)
        return Place(max(map(self.rank, inputs)) + from_end, outer)

    def check_constant(self, i: int, from_end: int, outer: int, size: int, repeats: bool = True) -> None:
        """Refuse unless input i is a constant with the same values for each sample.

        The samples lie along the axis `from_end`, which has `size` rows of each.
        """
        one, many = self.node.operands[i], self.many[i]
        if not isinstance(one, np.ndarray):
            self.mixed(f"input {i} is computed.")
        axis = one.ndim + from_end
        if many is None:
            is_same = repeats and (axis < 0 or one.shape[axis] == 1)
        else:
            repeated = Place(axis, outer).repeated(one, MANY)
            is_same = repeated is not None and one.shape[axis] == size and _are_alike(many, repeated)
        if not is_same:
            self.mixed(f"constant {i} of shape {list(one.shape)} has not the same values for each sample.")

    def ints(self, index: int, name: str) -> tuple[int, ...] | None:
        """A list that is input `index` in newer opsets and an attribute in older ones."""
        return self.node.constant_ints(index) if self.node.has(index) else self.node.integers(name)


def _are_alike(many: NDArray[Any], repeated: NDArray[Any]) -> bool:
    """Whether two constants hold the same values, but for the rounding of products of more rows."""
    tolerance = 1e-5 if many.dtype.kind == "f" else 0
    return many.shape == repeated.shape and np.allclose(many, repeated, rtol=tolerance, atol=tolerance / 10)
