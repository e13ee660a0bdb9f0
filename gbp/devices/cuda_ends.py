"""The two ends of a card: where samples come in, and where maps leave."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.moves_cuda import mark_not_finite
from .base import Array, Entry, Exit


class CardEntry(Entry):
    """Samples are copied as they are.  The card orders their axes and looks for NaN and infinity."""

    def __init__(self, x: Array, order: tuple[int, ...], marks: Array) -> None:
        super().__init__(x, order)
        self._given, self._marks = _in_order(x, np.argsort((0, *order))), marks

    def write(self, values: NDArray[np.float32]) -> None:
        self.x.device.copy_ahead(np.ascontiguousarray(values), self._given)

    def settle(self) -> None:
        _look(self._given, self._marks)
        if self._given is not self.x:
            np.copyto(self.x, self._given.transpose(0, *self.order))


class CardExit(Exit):
    """The card orders the axes and looks for NaN and infinity."""

    def __init__(self, x: Array, axes: tuple[int, ...]) -> None:
        super().__init__(x, axes)
        self._ready = _in_order(x, axes)
        self._marks = x.device.empty((len(x),))

    def settle(self) -> None:
        if self._ready is not self.x:
            np.copyto(self._ready, self.x.transpose(*self.axes))
        _look(self._ready, self._marks)

    def read(self) -> tuple[NDArray[np.float32], bool]:
        values, marks = self.x.device.read_all(self._ready, self._marks)
        return values, not marks.any()

    def look(self) -> NDArray[np.float32]:
        return self.read()[0]


def _in_order(x: Array, axes: Any) -> Array:
    """x itself if it is dense in this order of its axes; otherwise an array that is."""
    if list(axes) == list(range(x.ndim)) and x.shadow.flags.c_contiguous:
        return x
    return x.device.empty(tuple(x.shape[axis] for axis in axes))


def _look(x: Array, marks: Array) -> None:
    """Mark the samples of x that hold NaN or infinity."""
    marks.fill(0)
    if x.size:
        mark_not_finite(x.reshape(-1), marks)
