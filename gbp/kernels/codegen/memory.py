"""Aligned memory, and large memory in large pages.

NumPy aligns to 16 bytes only, and a vector across two cache lines costs two loads.

Linux gives memory in pages of 4 KiB unless it is asked for pages of 2 MiB before the memory is first touched.
A core keeps the addresses of some MB of small pages, and waits where a pass touches more.  NumPy asks as
well, but for larger arrays alone and often in vain: the allocator gives it memory that was touched before.
So arrays that fill a large page have a mapping of their own.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from ctypes import c_size_t
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ALIGNMENT = 64
#: Bytes of a large page, and how many of them an array must fill to get one: two thirds, because nobody uses
#: the rest of the page.
_LARGE_PAGE = 2**21
_FILLED = _LARGE_PAGE * 2 // 3
#: Bytes of an array's object before the address of its memory: NumPy's C API has it behind Python's own part.
_HEAD = object.__basicsize__


def address_of(x: NDArray[Any]) -> int:
    """`x.ctypes.data`, in a seventh of the time: each call of a kernel asks it of each of its arrays."""
    return c_size_t.from_address(id(x) + _HEAD).value


def aligned(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An uninitialised C-contiguous array whose first byte is a multiple of ALIGNMENT."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = _in_large_pages(nbytes)
    if memory is None:
        memory = _from(np.empty(nbytes + ALIGNMENT, np.uint8), ALIGNMENT)
    return memory[:nbytes].view(dtype).reshape(shape)


def _in_large_pages(nbytes: int) -> NDArray[np.uint8] | None:
    """At least `nbytes` of memory, in large pages what fills them, and the rest in small ones.

    None where nothing fills a large page, or Linux gives none.
    """
    pages = (nbytes + _LARGE_PAGE - _FILLED) // _LARGE_PAGE
    if pages < 1 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        size = nbytes + 2 * _LARGE_PAGE  # addresses alone: memory is what is touched
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):  # NumPy then says how much was asked for
        return None
    memory = _from(np.frombuffer(mapping, np.uint8), _LARGE_PAGE)
    with suppress(OSError):  # of a kernel without large pages
        mapping.madvise(mmap.MADV_HUGEPAGE, size - memory.size, pages * _LARGE_PAGE)
    return memory


def _from(memory: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """The memory from the first address on that is a multiple."""
    return memory[-address_of(memory) % multiple :]
