"""Pinned memory of the host.  A card copies from and to it directly, twice as fast, and while it computes.

Pinning is slow, so pinned memory is kept.  On the way to the card, samples are copied through one block of
it, the *stage*.  On the way back, each result is an array in pinned memory of its own, which is lent to
whoever holds the array, and free again once the last view of it is deleted.
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
#: The most bytes that are kept pinned while nobody holds a result in them.
_MAX_FREE = MAX_LENT // 4
#: Bytes of the stage.
STAGE = 2**26
#: How many threads fill the stage, and the bytes that one of them copies at a time.
_THREADS, _PIECE = 4, 2**21
#: Bytes of a page.  Sizes are rounded up to whole pages.
_PAGE = 2**12


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
        #: Size → addresses of memory that nobody holds.
        self._free: dict[int, list[int]] = defaultdict(list)
        #: Bytes of the results that are held.
        self._lent = 0
        #: The stage is in use up to this byte: the card may not have fetched what is there.
        self._used = 0
        #: Reentrant: Python may delete an array, and so call `_give_back`, at any moment, also in `array`.
        self._lock = RLock()

    def use(self) -> None:
        """Make the card current for the calling thread."""
        check(driver.cuCtxSetCurrent(self._context))

    def array(self, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """A float32 array for results; None if too much is in use."""
        floats = int(np.prod(shape, dtype=np.int64))
        size = _rounded(4 * floats)
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
        """Take back the memory of a result that nobody holds any more."""
        with self._lock:
            self._lent -= size
            free = sum(nbytes * len(addresses) for nbytes, addresses in self._free.items())
            if free + size > _MAX_FREE:
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
            self._used += _rounded(nbytes)

    def _copy(self, source: int, to: int, nbytes: int, stage: int, stream: int) -> None:
        """Copy to the card's address `to` through the stage's part at address `stage`.

        Threads fill it piece by piece, and the card fetches each piece as soon as it is there.
        """
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
        """`upload`, beside the work that `stream` has now.  Later work in `stream` waits for it."""
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


def _rounded(nbytes: int) -> int:
    """`nbytes`, rounded up to whole pages."""
    return -(-nbytes // _PAGE) * _PAGE


def _allocate(nbytes: int) -> int:
    """The address of new pinned memory.  Raises GbpError where there is none."""
    return int(check(driver.cuMemHostAlloc(nbytes, 0)))
