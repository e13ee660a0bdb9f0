"""Run the kernels of a card as plain Python, with parts of Numba's CUDA simulator.

Numba's own launcher polls the threads of a block, which slows them down, and wraps every array.  Here threads
that never wait for each other run one after another; others take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

from .numba_private import as_dtype, simulator

_parts = simulator()
FakeCUDAModule: Any = _parts.FakeCUDAModule

_running = threading.RLock()  # The globals of kernels' modules are changed while a kernel runs.


class _Shared:
    """The shared memory of a block.  Arrays that its threads declare are matched by their order."""

    def __init__(self, nbytes: int) -> None:
        self._dynamic = np.zeros(nbytes, np.uint8)
        self._arrays: list[Any] = []
        self._lock = threading.Lock()

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        if shape == 0:
            return self._dynamic.view(as_dtype(dtype))
        thread: Any = threading.current_thread()
        with self._lock:
            if thread.declared == len(self._arrays):
                self._arrays.append(np.full(shape, 99, as_dtype(dtype)))
            thread.declared += 1
            return self._arrays[thread.declared - 1]


class _Grid(FakeCUDAModule):
    """Replaces the module `cuda` for the threads of a grid; `memory` is that of the block that runs."""

    memory: _Shared

    @property
    def shared(self) -> Any:
        return self.memory

    def syncthreads(self) -> None:
        thread = threading.current_thread()
        if isinstance(thread, _Cooperating):  # otherwise there is only one thread
            thread.syncthreads()


class _Cooperating(threading.Thread):
    """A thread of a block.  It runs in its turn, until it waits for the others or ends."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = run
        self._mine, self._others = threading.Lock(), threading.Lock()
        self._mine.acquire()
        self._others.acquire()
        self.error: BaseException | None = None
        self.done = False

    def turn(self) -> None:
        self._mine.release()
        self._others.acquire()

    def run(self) -> None:
        self._mine.acquire()
        try:
            self._work()
        except BaseException as error:
            self.error = error
        self.done = True
        self._others.release()

    def syncthreads(self) -> None:
        self._others.release()
        self._mine.acquire()


def simulate(
    function: Callable[..., None],
    blocks: Sequence[int],
    threads: Sequence[int],
    shared_bytes: int,
    together: bool,
    args: tuple[Any, ...],
) -> None:
    """Run a kernel.  `together`: whether its threads wait for each other."""
    indices = list(product(*map(range, _three(threads))))
    grid = _Grid(_three(blocks), _three(threads), shared_bytes)
    with _running, _parts.swapped_cuda_module(function, grid), np.errstate(all="ignore"):
        for block in product(*map(range, _three(blocks))):
            grid.memory = _Shared(shared_bytes)
            if together and len(indices) > 1:
                _together(function, block, indices, args)
            else:
                for index in indices:
                    _be(threading.current_thread(), block, index)
                    function(*args)


def _together(function: Callable[..., None], block: Any, indices: list[Any], args: tuple[Any, ...]) -> None:
    def work() -> None:
        with np.errstate(all="ignore"):
            function(*args)

    cooperating = [_Cooperating(work) for _ in indices]
    for thread, index in zip(cooperating, indices, strict=True):
        _be(thread, block, index)
        thread.start()
    while not all(thread.done for thread in cooperating):
        for thread in cooperating:
            thread.turn()
            if thread.error is not None:
                raise thread.error
        if len({thread.done for thread in cooperating}) > 1:
            raise AssertionError(f"some threads of {function.__name__} wait for others that are done")


def _be(thread: Any, block: Any, index: Any) -> None:
    thread.blockIdx, thread.threadIdx, thread.declared = _parts.Dim3(*block), _parts.Dim3(*index), 0


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*sizes, 1, 1)[:3]
