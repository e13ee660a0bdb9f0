"""Aligned memory, and large memory in large pages.

NumPy aligns to 16 bytes only, and a vector across two cache lines costs two loads.

Linux gives memory in pages of 4 KiB unless it is asked for pages of 2 MiB before the memory is first touched.
A pass over tens of MB in small pages waits for their addresses.  NumPy asks as well, but often in vain: the
allocator gives it memory that was touched before.  So large arrays have a mapping of their own.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ALIGNMENT = 64
#: Bytes of a large page.
_LARGE_PAGE = 2**21
#: From so many bytes on, at most a third of the pages is unused.
_LARGE = 2 * _LARGE_PAGE


def aligned(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An uninitialised C-contiguous array whose first byte is a multiple of ALIGNMENT."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory, alignment = _in_large_pages(nbytes), _LARGE_PAGE
    if memory is None:
        memory, alignment = np.empty(nbytes + ALIGNMENT, np.uint8), ALIGNMENT
    start = -memory.ctypes.data % alignment
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def _in_large_pages(nbytes: int) -> NDArray[np.uint8] | None:
    """Memory for `nbytes` from a multiple of _LARGE_PAGE on; None where they are few or Linux gives none."""
    if nbytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        mapping = mmap.mmap(-1, nbytes + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):  # NumPy then says how much was asked for
        return None
    with suppress(OSError):  # of a kernel without large pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)
