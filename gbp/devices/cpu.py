"""The CPU as a device: NumPy arrays, and kernels that run when they are called."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..kernels.codegen.memory import aligned
from ..kernels.parallel.program import Program
from ..kernels.parallel.threads import parallel, turn
from ..limits import MAX_BYTES_PER_SAMPLE
from .base import Array, Device, Entry, Exit, Repeater
from .cpu_ends import CpuEntry, CpuExit


class CpuDevice(Device):
    """The CPU."""

    name = "cpu"
    is_host = True
    slice_bytes = 160 * 2**20
    max_slice = 32
    max_bytes = MAX_BYTES_PER_SAMPLE

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return aligned(shape, dtype)

    def write(self, values: NDArray[Any], to: Array) -> None:
        np.copyto(to, values)

    def read(self, x: Array) -> NDArray[Any]:
        return np.asarray(x)

    def read_all(self, *arrays: Array) -> list[NDArray[Any]]:
        return list(arrays)

    def constant(self, values: NDArray[Any]) -> Array:
        return values

    def running(self, threads: int = 1) -> AbstractContextManager[None]:
        return parallel(threads)

    def turn(self) -> AbstractContextManager[None]:
        return turn()

    def seed(self, x: Array, where: tuple[NDArray[np.int64], ...]) -> None:
        x.fill(0)
        x[tuple([index.item() for index in where]) if len(x) == 1 else where] = 1  # numbers are faster

    def entry(self, x: Array, axes: tuple[int, ...], marks: Array, threads: int) -> Entry:
        return CpuEntry(x, axes, marks, threads)

    def exit(self, x: Array, axes: tuple[int, ...], threads: int) -> Exit:
        return CpuExit(x, axes, threads)

    def repeater(self) -> Repeater:
        return Program()


CPU = CpuDevice()
