"""Pinned memory of the host.  A card copies from and to it directly, twice as fast, and while it computes.

Pinning is slow, so pinned memory is kept.  Results are stored in it; it is free again once the last array in
it is deleted.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import RLock
from typing import Any

import numpy as np
from cuda.bindings import driver
from numpy.typing import NDArray

from ..errors import GbpError

#: The most bytes of results that are pinned; further ones are in ordinary memory.
MAX_LENT = 2**30
#: Bytes of the stage, through which samples are copied, and of the piece that one thread copies at a time.
STAGE, _PIECE = 2**26, 2**21
_THREADS = 4
_ROUND = 2**12


def check(result: tuple[Any, ...]) -> Any:
    """Check what a call of the driver returned.  Raises GbpError."""
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise GbpError(f"the card's driver says {error.name}.", hint="Look at nvidia-smi.")
    return values[0] if values else None


class _Lent:
    """Pinned memory in a form that NumPy accepts.  Arrays in it keep this object alive."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
        }


class Pinned:
    """The pinned memory of a process."""

    def __init__(self) -> None:
        self._context = check(driver.cuCtxGetCurrent())
        self._free: dict[int, list[int]] = defaultdict(list)
        self._lent = 0
        #: Bytes from the stage's begin that the card may still have to fetch.
        self._used = 0
        #: Python may delete an array, and so call `_give_back`, at any moment, in any thread.
        self._lock = RLock()

    def use(self) -> None:
        """Make the card current for the calling thread."""
        check(driver.cuCtxSetCurrent(self._context))

    def array(self, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """A float32 array for results; None if too much is in use."""
        floats = int(np.prod(shape, dtype=np.int64))
        size = -(-4 * floats // _ROUND) * _ROUND
        with self._lock:
            if not size or self._lent + size > MAX_LENT:
                return None
            try:
                address = self._free[size].pop() if self._free[size] else _allocate(size)
            except GbpError:
                return None
            self._lent += size
        lent = _Lent(address, size)
        weakref.finalize(lent, self._give_back, address, size).atexit = False
        return np.asarray(lent)[: 4 * floats].view(np.float32).reshape(shape)

    def _give_back(self, address: int, size: int) -> None:
        with self._lock:
            self._lent -= size
            kept = sum(nbytes * len(free) for nbytes, free in self._free.items())
            if kept + size > MAX_LENT // 4:
                self.use()
                driver.cuMemFreeHost(address)
            else:
                self._free[size].append(address)

    @cached_property
    def _stage(self) -> int:
        return _allocate(STAGE)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, "gbp-copy")

    def upload(self, values: NDArray[Any], to: int, stream: int) -> None:
        """Copy C-contiguous values to the card's address `to`.

        They are in the stage when this returns, so the caller may overwrite them.
        """
        source = values.ctypes.data
        for start in range(0, values.nbytes, STAGE):
            nbytes = min(STAGE, values.nbytes - start)
            if self._used + nbytes > STAGE:
                check(driver.cuCtxSynchronize())
                self.arrived()
            self._copy(source + start, to + start, nbytes, self._stage + self._used, stream)
            self._used += -(-nbytes // _ROUND) * _ROUND

    def _copy(self, source: int, to: int, nbytes: int, stage: int, stream: int) -> None:
        """Copy through the stage: threads fill it piece by piece, and the card fetches each piece."""
        pieces = range(0, nbytes, _PIECE)

        def move(some: range) -> None:
            self.use()
            for at in some:
                size = min(_PIECE, nbytes - at)
                ctypes.memmove(stage + at, source + at, size)
                check(driver.cuMemcpyHtoDAsync(to + at, stage + at, size, stream))

        if len(pieces) == 1:
            move(pieces)
        else:
            list(self._threads.map(move, (pieces[i::_THREADS] for i in range(_THREADS))))

    def upload_ahead(self, values: NDArray[Any], to: int, stream: int) -> None:
        """`upload` in another stream.  Later work in `stream` waits for it."""
        self.upload(values, to, self._ahead)
        check(driver.cuEventRecord(self._event, self._ahead))
        check(driver.cuStreamWaitEvent(stream, self._event, 0))

    def arrived(self) -> None:
        """Take the stage as free again, because the card has fetched everything."""
        self._used = 0

    @cached_property
    def _ahead(self) -> int:
        return int(check(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    @cached_property
    def _event(self) -> int:
        return int(check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)))

    @staticmethod
    def download(source: int, to: NDArray[Any], stream: int) -> None:
        """Let the card copy from its address to an array once the stream gets there."""
        check(driver.cuMemcpyDtoHAsync(to.ctypes.data, source, to.nbytes, stream))


def _allocate(nbytes: int) -> int:
    return int(check(driver.cuMemHostAlloc(nbytes, 0)))
