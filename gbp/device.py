"""`Device`: whose memory tensors lie in, and so who runs the kernels on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import InputError
from .kernels.memory import aligned
from .limits import MOST_BYTES_A_SAMPLE
from .threads import parallel

if TYPE_CHECKING:
    from .layout import Call
    from .ops.op import Step

#: An array on a device: NumPy's own, or one that answers to what steps do with those.
Array = Any

Repeater = Callable[[Callable[[], None]], None]

DEVICES = ("cpu", "cuda")


class Device(ABC):
    """Makes arrays, moves them, and runs what is done over and over again on the same ones."""

    name: str
    #: What a batch may take of its memory at a time, in bytes, and how many samples it may have.
    slice_bytes: int
    largest_slice: int
    #: As much where the caller says how many samples.
    most_bytes: int

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        """A C-contiguous array, not initialised.  Raises OutOfMemoryError."""

    @abstractmethod
    def write(self, values: NDArray[Any], to: Array) -> None:
        """Put values into an array of their shape."""

    @abstractmethod
    def read(self, x: Array) -> NDArray[Any]:
        """What it holds, in the host's memory; until something is written to x that may be x itself."""

    @abstractmethod
    def take(self, calls: Sequence[Call]) -> list[Step]:
        """The steps of these calls with all that they hold in this device's memory.

        Raises UnsupportedError that names the layers for which it has no kernels.
        """

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """What has to be entered to run kernels."""

    @abstractmethod
    def mark(self, x: Array, where: tuple[NDArray[np.int64], ...]) -> None:
        """Write 1 at these indices of x, which is 0."""

    @abstractmethod
    def repeater(self) -> Repeater:
        """What runs the run that it is given, which must call the same kernels on the same arrays with the
        same numbers each time.
        """


def _run(run: Callable[[], None]) -> None:
    run()


class _Cpu(Device):
    name = "cpu"
    slice_bytes = 160 * 2**20
    largest_slice = 32
    most_bytes = MOST_BYTES_A_SAMPLE

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return aligned(shape, dtype)

    def write(self, values: NDArray[Any], to: Array) -> None:
        np.copyto(to, values)

    def read(self, x: Array) -> NDArray[Any]:
        return np.asarray(x)

    def take(self, calls: Sequence[Call]) -> list[Step]:
        return [call.step for call in calls]

    def running(self) -> AbstractContextManager[None]:
        return parallel()

    def mark(self, x: Array, where: tuple[NDArray[np.int64], ...]) -> None:
        x[where] = 1

    def repeater(self) -> Repeater:
        return _run


CPU = _Cpu()


def device_named(name: str) -> Device:
    """The device "cpu" or "cuda".  Raises InputError for others, and where there is no CUDA."""
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise InputError(f"device is {name!r}.", supported=", ".join(map(repr, DEVICES)))
    from .card import card  # nothing of CUDA is imported before it is asked for

    return card()
