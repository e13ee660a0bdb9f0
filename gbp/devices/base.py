"""`Device`: whose memory tensors lie in, and so who runs the kernels on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: An array on a device: NumPy's own, or one that answers to what steps do with those.
Array = Any

Repeater = Callable[[Callable[[], None]], None]


class Device(ABC):
    """Makes arrays, moves them, and runs what is done over and over again on the same ones."""

    name: str
    #: Its arrays are NumPy's, so that steps may compute through NumPy.
    is_host: bool = False
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
    def constant(self, values: NDArray[Any]) -> Array:
        """The same values in this device's memory, for as long as the result lives."""

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


@dataclass(frozen=True)
class LoweringTarget:
    """What steps are lowered for (`graph.op.Target`): a device, and an algorithm for convolutions."""

    device: Device
    algorithm: str = "auto"

    @property
    def name(self) -> str:
        return self.device.name

    def constant(self, values: NDArray[Any]) -> Array:
        return self.device.constant(values)
