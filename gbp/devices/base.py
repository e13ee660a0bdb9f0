"""`Device`: the memory that tensors are stored in, and the processor that runs kernels on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..limits import elements, is_finite

#: An array on a device: a NumPy array, or one that supports the operations that steps use.
Array = Any

#: Numbers of a sample from which samples are copied one by one.
_LARGE = 2**14

#: Runs the function that it is given.  The function must call the same kernels on the same arrays each time.
Repeater = Callable[[Callable[[], None]], None]


@dataclass(frozen=True)
class GeneratedSamples:
    """Samples (N, …), float32 in the model's own layout, which a function writes where a run reads them.

    That saves an array, and a copy of it.  Whoever needs an array has one made by `np.asarray`.

    Parameters
    ----------
    shape
        (N, …).
    write
        Writes these of the samples to an array of any strides; the same each time.
    offset
        The index of the first of them, for `write`.
    """

    shape: tuple[int, ...]
    write: Callable[[slice, NDArray[np.float32]], None]
    offset: int = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> GeneratedSamples:
        start, stop, _ = part.indices(len(self))
        return GeneratedSamples((stop - start, *self.shape[1:]), self.write, self.offset + start)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        values = np.empty(self.shape, np.float32)
        self.write_to(values)
        return values

    def write_to(self, to: NDArray[np.float32]) -> None:
        """Write all of them."""
        self.write(slice(self.offset, self.offset + len(self)), to)


@dataclass(frozen=True)
class Blend:
    """Writes `GeneratedSamples`, base + factor · term for each term; some devices have a kernel do that.

    Parameters
    ----------
    base, terms
        float32 (…) and (N, …).
    factor
        A number.
    """

    base: NDArray[np.float32]
    terms: NDArray[np.float32]
    factor: np.float32

    def __call__(self, some: slice, to: NDArray[np.float32]) -> None:
        np.multiply(self.terms[some], self.factor, out=to)
        to += self.base


#: Samples (N, …) in the model's own layout.
Samples = NDArray[np.float32] | GeneratedSamples


class Entry:
    """Brings samples of the host into an array of the device: `write`, then a run, which calls `settle`.

    Parameters
    ----------
    x
        (N, …), the array that steps read.
    axes
        The axes of x in the model's own layout.
    """

    def __init__(self, x: Array, axes: tuple[int, ...]) -> None:
        self.x, self.axes = x, axes
        self._logical = x.transpose(*axes)

    def finds(self, values: Samples) -> bool:
        """Whether `write` only says where these samples are, and leaves x as it is until `settle`."""
        return False

    def write(self, values: Samples) -> None:
        """Bring in samples (N, …) in the model's own layout.

        The caller keeps them as they are until `settle`.
        """
        self._logical[...] = values

    def settle(self) -> None:
        """Move what was written to where steps read it."""


class Exit:
    """Brings results to the host: `prepare`, a run, which calls `settle`, then `read`; or a run, then `view`.

    Parameters
    ----------
    x
        (N, …), the array that steps write.
    axes
        The axes of x in the model's own layout.
    """

    def __init__(self, x: Array, axes: tuple[int, ...]) -> None:
        self.x, self.axes = x, axes
        self._logical, self._is_large = x.transpose(*axes), elements(x.shape[1:]) >= _LARGE

    def prepare(self) -> None:
        """Say, before a run, that `read` will follow it."""

    def settle(self) -> None:
        """Prepare what `read` returns."""

    def read(self) -> tuple[NDArray[np.float32], bool]:
        """All values, as the host's own array in the model's layout; and whether all are finite."""
        if not self._is_large:
            values = np.array(self._logical, np.float32)
            return values, is_finite(values)
        values, finite = np.empty_like(self._logical, np.float32), True  # in the same order in memory
        for to, row in zip(values, self._logical, strict=True):  # each is looked at while a cache holds it
            to[...] = row
            finite = is_finite(to) and finite
        return values, finite

    def view(self) -> NDArray[np.float32]:
        """All values, as `read` returns them, but without a copy: valid until x is written again."""
        return np.asarray(self._logical)


class Device(ABC):
    """Makes arrays, moves them, and repeats runs on them."""

    #: "cpu" or "cuda".
    name: str
    #: Whether its arrays are NumPy arrays, so that steps may compute through NumPy.
    is_host: bool = False
    #: Bytes that a slice of a batch may take by default, and the most samples in it.
    slice_bytes: int
    max_slice: int
    #: Bytes that a slice may take where the caller chose the number of samples.
    max_bytes: int

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        """A C-contiguous array with undefined values.  Raises OutOfMemoryError."""

    @abstractmethod
    def write(self, values: NDArray[Any], to: Array) -> None:
        """Copy values from the host into an array of the same shape."""

    @abstractmethod
    def read(self, x: Array) -> NDArray[Any]:
        """The values of x as a NumPy array.  It may be x itself, so read it before x is written again."""

    def read_all(self, *arrays: Array) -> list[NDArray[Any]]:
        """`read` of each array."""
        return list(map(self.read, arrays))

    @abstractmethod
    def constant(self, values: NDArray[Any]) -> Array:
        """The same values in this device's memory.  On the CPU this is the array itself."""

    @abstractmethod
    def running(self, threads: int = 1) -> AbstractContextManager[None]:
        """A context manager inside which kernels may be run; soon, where they may use so many threads."""

    def turn(self) -> AbstractContextManager[None]:
        """A context manager inside which one caller explains.  Entering it may wait for other callers."""
        return nullcontext()

    @abstractmethod
    def seed(self, x: Array, where: tuple[NDArray[np.int64], ...]) -> None:
        """Write 1 at these indices of x, and 0 elsewhere."""

    def pieces(self, n: int, nbytes: int) -> list[slice]:
        """Cut n samples of `nbytes` bytes into pieces: one is brought in while the last one is computed."""
        return [slice(0, n)]

    @abstractmethod
    def entry(self, x: Array, axes: tuple[int, ...], marks: Array, threads: int) -> Entry:
        """The entry to x (N, …).

        Parameters
        ----------
        x, axes
            As for `Entry`.
        marks
            (N,), float32.  A run makes it 0 for samples that are finite, and else another number.
        threads
            How many threads a kernel may use.
        """

    def exit(self, x: Array, axes: tuple[int, ...], threads: int) -> Exit:
        """The exit from x (N, …), which is read with these axes.  threads: as for `entry`."""
        return Exit(x, axes)

    @property
    def has_tf32(self) -> bool:
        """Whether it can multiply in TF32."""
        return False

    @abstractmethod
    def repeater(self) -> Repeater:
        """A new `Repeater`, which runs its function faster from the second time on."""


@dataclass(frozen=True)
class LoweringTarget:
    """The target of lowering (`graph.op.Target`): a device, and how it computes convolutions."""

    device: Device
    algorithm: str = "auto"
    tf32: bool = False

    @property
    def name(self) -> str:
        return self.device.name

    def constant(self, values: NDArray[Any]) -> Array:
        return self.device.constant(values)
