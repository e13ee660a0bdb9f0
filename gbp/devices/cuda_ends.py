"""The two ends of a card: where samples come in, and where maps leave."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels.moves_cuda import mark_not_finite
from .base import Array, Entry, Exit, Samples


class CudaEntry(Entry):
    """Samples are copied in the model's own layout.  The card orders their axes and looks for NaN.

    Parameters
    ----------
    x, axes
        As for `Entry`.
    marks
        (N,), where `settle` writes 0 for each sample that holds neither NaN nor infinity.
    """

    def __init__(self, x: Array, axes: tuple[int, ...], marks: Array) -> None:
        super().__init__(x, axes)
        self._given, self._marks = _dense(x, axes), marks

    def write(self, values: Samples) -> None:
        self.x.device.copy_ahead(np.ascontiguousarray(values), self._given)

    def settle(self) -> None:
        _mark(self._given, self._marks)
        if self._given is not self.x:
            np.copyto(self.x, self._given.transpose(*np.argsort(self.axes)))


class CudaExit(Exit):
    """The card orders the axes and looks for NaN.  Results are copied in the model's own layout."""

    def __init__(self, x: Array, axes: tuple[int, ...]) -> None:
        super().__init__(x, axes)
        self._ready = _dense(x, axes)
        self._marks = x.device.empty((len(x),))

    def settle(self) -> None:
        if self._ready is not self.x:
            np.copyto(self._ready, self.x.transpose(*self.axes))
        _mark(self._ready, self._marks)

    def read(self) -> tuple[NDArray[np.float32], bool]:
        values, marks = self.x.device.read_all(self._ready, self._marks)
        return values, not marks.any()

    def view(self) -> NDArray[np.float32]:
        return self.read()[0]


def _dense(x: Array, axes: tuple[int, ...]) -> Array:
    """A C-contiguous array for the values of x with its axes in this order: x itself, where it is one."""
    if axes == tuple(range(x.ndim)) and x.shadow.flags.c_contiguous:
        return x
    return x.device.empty(tuple(x.shape[axis] for axis in axes))


def _mark(x: Array, marks: Array) -> None:
    """Mark the samples of x that hold NaN or infinity."""
    marks.fill(0)
    if x.size:
        mark_not_finite(x.reshape(-1), marks)
