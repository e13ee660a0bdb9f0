"""`Device`: whose memory tensors lie in, and so who runs the kernels on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import InputError
from ..kernels.codegen.memory import aligned
from ..limits import MAX_BYTES_PER_SAMPLE
from .program import Program
from .threads import parallel, turn

if TYPE_CHECKING:
    from ..ops.step import Step
    from ..plan.layout import Instruction

#: An array on a device: NumPy's own, or one that answers to what steps do with those.
Array = Any

Repeater = Callable[[Callable[[], None]], None]

DEVICES = ("cpu", "cuda")


class Device(ABC):
    """Makes arrays, moves them, and runs what is done over and over again on the same ones."""

    name: str
    #: What a batch may take of its memory at a time, in bytes, and how many samples it may have.
    slice_bytes: int
    max_slice: int
    #: As much where the caller says how many samples.
    max_bytes: int

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
    def take(self, instructions: Sequence[Instruction]) -> list[Step]:
        """The steps of these calls with all that they hold in this device's memory.

        Raises UnsupportedError that names the layers for which it has no kernels.
        """

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """What has to be entered to run kernels."""

    def turn(self) -> AbstractContextManager[None]:
        """What has to be entered to explain: there others may have to be waited for."""
        return nullcontext()

    @abstractmethod
    def seed(self, x: Array, where: tuple[NDArray[np.int64], ...]) -> None:
        """Write 1 at these indices of x, which is 0."""

    @abstractmethod
    def repeater(self) -> Repeater:
        """What runs the run that it is given, which must call the same kernels on the same arrays with the
        same numbers each time.
        """


class _Cpu(Device):
    name = "cpu"
    slice_bytes = 160 * 2**20
    max_slice = 32
    max_bytes = MAX_BYTES_PER_SAMPLE

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return aligned(shape, dtype)

    def write(self, values: NDArray[Any], to: Array) -> None:
        np.copyto(to, values)

    def read(self, x: Array) -> NDArray[Any]:
        return np.asarray(x)

    def take(self, instructions: Sequence[Instruction]) -> list[Step]:
        return [instruction.step for instruction in instructions]

    def running(self) -> AbstractContextManager[None]:
        return parallel()

    def turn(self) -> AbstractContextManager[None]:
        return turn()

    def seed(self, x: Array, where: tuple[NDArray[np.int64], ...]) -> None:
        x[where] = 1

    def repeater(self) -> Repeater:
        return Program()


CPU = _Cpu()


def device_named(name: str) -> Device:
    """The device "cpu" or "cuda".  Raises InputError for others, and where there is no CUDA."""
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise InputError(f"device is {name!r}.", supported=", ".join(map(repr, DEVICES)))
    from .cuda import card  # nothing of CUDA is imported before it is asked for

    return card()
