"""`Arena`: one block of memory for many buffers, which share bytes where they are never alive together."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

#: Up to so many buffers are packed as tightly as possible; the largest real networks have as many.
_MAX_PACKED = 2**11
#: A tensor's size in an arena is rounded up to a multiple of this many floats: one cache line.
_LINE = 16


@dataclass(frozen=True)
class Arena:
    """One block of memory that holds many buffers.  Buffers that are never alive together share bytes.

    Parameters
    ----------
    begins
        The first float of each buffer, for one sample.
    size
        Floats of the whole arena, for one sample.
    """

    begins: dict[str, int]
    size: int


def pack(uses: Iterable[tuple[str, int]], sizes: Mapping[str, int]) -> Arena:
    """Place buffers in an arena.

    Parameters
    ----------
    uses
        (buffer, time) of each use.  A buffer is alive from its first use to its last.
    sizes
        Floats of each buffer.
    """
    lifetimes: dict[str, tuple[int, int]] = {}
    for name, when in uses:
        first, last = lifetimes.get(name, (when, when))
        lifetimes[name] = min(first, when), max(last, when)
    sizes = {name: rounded(sizes[name]) for name in lifetimes}
    return _first_fit(lifetimes, sizes) if len(lifetimes) <= _MAX_PACKED else _in_time(lifetimes, sizes)


def rounded(size: int) -> int:
    """A number of floats, rounded up to whole cache lines."""
    return -(-size // _LINE) * _LINE


def _first_fit(lifetimes: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> Arena:
    """Place the largest buffer first, each in the first gap that fits.  Tight, but takes quadratic time."""
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, int, int]] = []  # (begin, end) in memory and (first, last) in time, sorted
    for name, (first, last) in sorted(lifetimes.items(), key=lambda item: -sizes[item[0]]):
        gap, size = 0, sizes[name]  # where a gap starts
        for begin, end, other_first, other_last in placed:
            if other_first <= last and first <= other_last:
                if begin - gap >= size:
                    break
                gap = max(gap, end)
        offsets[name] = gap
        insort(placed, (gap, gap + size, first, last))
    return Arena(offsets, max((end for _, end, _, _ in placed), default=0))


def _in_time(lifetimes: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> Arena:
    """Place buffers in the order of their first use, each in the smallest free gap that is large enough."""
    offsets: dict[str, int] = {}
    free: list[tuple[int, int]] = []  # (size, where), sorted
    alive: list[tuple[int, int, int]] = []  # (last use, where, size), a heap
    end = 0
    for name, (first, last) in sorted(lifetimes.items(), key=lambda item: item[1]):
        while alive and alive[0][0] < first:
            _, where, size = heappop(alive)
            insort(free, (size, where))
        i = bisect_left(free, (sizes[name], 0))
        size, where = free.pop(i) if i < len(free) else (sizes[name], end)
        end = max(end, where + size)
        offsets[name] = where
        heappush(alive, (last, where, size))
    return Arena(offsets, end)
