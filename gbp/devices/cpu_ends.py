"""The two ends of a run on the CPU: its first kernel copies the caller's samples, its last one the map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels.conditions import only_where
from ..kernels.ends import blend, bring_in, take_out
from ..limits import is_finite
from .base import Blend, Entry, Exit, GeneratedSamples, Samples


class CpuEntry(Entry):
    """Threads put the axes of samples in order, and look for NaN.

    Parameters
    ----------
    x, axes
        As for `Entry`.
    marks
        (N,), where a run writes 0 for each sample that holds neither NaN nor infinity.
    threads
        How many threads a kernel may use.
    """

    def __init__(
        self, x: NDArray[np.float32], axes: tuple[int, ...], marks: NDArray[np.float32], threads: int
    ) -> None:
        super().__init__(x, axes)
        self._marks, self._threads, self._address = marks, threads, np.zeros(1, np.int64)
        #: Whether a run blends samples, the addresses of the first term and of the base, and the factor.
        self._blends, self._sources = np.zeros(1, np.int64), np.zeros(2, np.int64)
        self._factor = np.zeros(1, np.float32)

    def finds(self, values: Samples) -> bool:
        if not isinstance(values, GeneratedSamples):
            return values.ndim == 4 and values.dtype == np.float32 and values.flags.c_contiguous
        found, x = values.write, self._logical
        return (
            isinstance(found, Blend)
            and x.ndim == 4
            and self.x.flags.c_contiguous
            and found.terms.strides == x.strides
            and found.base.strides == x.strides[1:]
        )

    def write(self, values: Samples) -> None:
        self._marks.fill(0)
        self._address[0] = self._blends[0] = 0
        if isinstance(values, GeneratedSamples):  # of a sample that was searched for NaN
            found = values.write
            if isinstance(found, Blend) and self.finds(values):
                self._sources[:] = address_of(found.terms[values.offset :]), address_of(found.base)
                self._blends[0], self._factor[0] = 1, found.factor
            else:
                values.write_to(self._logical)
        elif self.finds(values):
            self._address[0] = address_of(values)
        else:
            super().write(values)
            self._marks[...] = [not is_finite(sample) for sample in values]

    def settle(self) -> None:
        if self.x.ndim != 4:
            return
        bring_in(self._address, self._logical, self._marks, self._threads)
        if self.x.flags.c_contiguous:
            with only_where(self._blends, 1):
                rows = self.x.reshape(*self.x.shape[:2], -1)
                blend(self._sources, self._factor, rows, self._threads)


class CpuExit(Exit):
    """Threads copy a map, in the order that it has in memory, and look for NaN.

    Parameters
    ----------
    x, axes
        As for `Exit`.
    threads
        How many threads a kernel may use.
    """

    def __init__(self, x: NDArray[np.float32], axes: tuple[int, ...], threads: int) -> None:
        super().__init__(x, axes)
        self._threads, self._address, self._odd = threads, np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._flat = x.reshape(-1) if x.flags.c_contiguous else None
        self._values: NDArray[np.float32] | None = None

    def prepare(self) -> None:
        if self._flat is not None:
            self._values = np.empty(self.x.shape, np.float32).transpose(self.axes)  # in x's order in memory
            self._address[0], self._odd[0] = address_of(self._values), 0

    def settle(self) -> None:
        if self._flat is not None:
            take_out(self._flat, self._address, self._odd, self._threads)

    def read(self) -> tuple[NDArray[np.float32], bool]:
        values, self._values, self._address[0] = self._values, None, 0
        return super().read() if values is None else (values, not self._odd[0])


def address_of(values: NDArray[np.float32]) -> int:
    """The address of an array's first element."""
    address: int = values.__array_interface__["data"][0]  # a third of the time of `values.ctypes.data`
    return address
