"""`Device`: the memory that tensors are stored in, and the processor that runs kernels on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: An array on a device: a NumPy array, or one that supports the operations that steps use.
Array = Any

#: Runs the function that it is given.  The function must call the same kernels on the same arrays each time.
Repeater = Callable[[Callable[[], None]], None]


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

    @abstractmethod
    def constant(self, values: NDArray[Any]) -> Array:
        """The same values in this device's memory.  On the CPU this is the array itself."""

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """A context manager inside which kernels may be run."""

    def turn(self) -> AbstractContextManager[None]:
        """A context manager inside which one caller explains.  Entering it may wait for other callers."""
        return nullcontext()

    @abstractmethod
    def seed(self, x: Array, where: tuple[NDArray[np.int64], ...]) -> None:
        """Write 1 at these indices of x; x is 0 everywhere."""

    @abstractmethod
    def repeater(self) -> Repeater:
        """A new `Repeater`, which runs its function faster from the second time on."""


@dataclass(frozen=True)
class LoweringTarget:
    """The target of lowering (`graph.op.Target`): a device, and the algorithm for convolutions."""

    device: Device
    algorithm: str = "auto"

    @property
    def name(self) -> str:
        return self.device.name

    def constant(self, values: NDArray[Any]) -> Array:
        return self.device.constant(values)
