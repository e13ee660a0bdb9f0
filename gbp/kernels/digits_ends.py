"""The epilogue of a convolution by digits: `epilogue` for sums that are levels (`amx_digits`).

A run is of pixels in a block of DIGITS_BLOCK channels, one vector.  Its `s` is the address of the first
level of a pixel; `y`, `r` and `mask` are the place of the pixel, without the block.  All functions are for
forward steps and for gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import float32

from .amx_beside import Beside
from .amx_digits import sum_of_levels
from .codegen.amx import ROW_BYTES
from .codegen.emit import LANES
from .codegen.jit import device_function
from .codegen.simd import broadcast, load, prefetch_read, prefetch_write
from .epilogue import Place, Run, beside, place_of, rest_of, rows_join, write

#: Pixels whose epilogue is done between two groups of multiplications.
PIECE = 8


class EndLevels(NamedTuple):
    """A `Forward` or `Backward`, and what levels are worth.

    `worths`: address of what a whole number of each channel is worth, up to whole blocks.  `scale`: of the
    sample.
    """

    end: Any
    worths: int
    scale: float


@device_function
def scaled(ends: EndLevels, scale: float) -> EndLevels:
    """The end for a sample of this scale."""
    return EndLevels(ends.end, ends.worths, scale)


@device_function
def run_levels(s: int, pixels: int, gap: int, c0: int, n: int, h: int, w: int, ends: EndLevels) -> Run:
    """The run from pixel (n, h, w) on."""
    place, W = place_of(n, h, w, ends.end), ends.end.out.W
    return Run(s, pixels, W - w, W, gap, c0, place.out, place.r, place.mask)


@device_function
def levels_join(ends: EndLevels) -> bool:
    """Whether a run may go on in the next row."""
    return rows_join(ends.end.out) and rows_join(ends.end.r) and rows_join(ends.end.mask)


@device_function
def _finish(run: Run, count: int, channels: int, ends: EndLevels) -> Run:
    """Finish up to `count` pixels of the first row of a run, in whose block so many channels exist."""
    count = min(count, run.pixels, run.left)
    s, place = run.s, Place(run.y, run.r, run.mask)
    factor = load(ends.worths + 4 * run.c0) * broadcast(float32(2.0**16) / float32(abs(ends.scale)))
    for _ in range(count):
        write(sum_of_levels(s, ends.scale) * factor, run.c0, place, channels, ends.end)
        s, place = s + ROW_BYTES, beside(place, 1, ends.end)
    return rest_of(run, count, s, place.out, place.r, place.mask)


@device_function
def finish_levels(run: Run, count: int, ends: EndLevels) -> Run:
    """Finish up to `count` pixels of the first row of a run in a whole block.  Returns the rest of it."""
    return _finish(run, count, LANES, ends)


@device_function
def end_levels(s: int, pixels: int, c0: int, n: int, h: int, w: int, ends: EndLevels) -> None:
    """Finish the levels at s of a run of pixels of one row, from (n, h, w) on."""
    _finish(run_levels(s, pixels, 0, c0, n, h, w, ends), pixels, ends.end.out.C - c0, ends)


@device_function
def fetch_levels(run: Run, next_run: Beside) -> None:
    """Fetch what the epilogue of the next run reads and writes."""
    end = next_run.end.end
    place = beside(Place(run.y, run.r, run.mask), next_run.pixels, end)
    offset = next_run.bytes + 4 * run.c0
    for _ in range(PIECE):
        prefetch_write(place.out + offset)
        if end.r.C:
            prefetch_read(place.r + offset)
        place = beside(place, 1, end)
