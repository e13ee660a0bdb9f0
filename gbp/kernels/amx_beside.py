"""Work beside the multiplications of tiles: the epilogue of the pixels before, and fetching.

A core's vectors are free while its tiles multiply.  So the sums of a pair of tiles are finished a few pixels
at a time, between the multiplications of the next pair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .codegen.jit import device_function
from .codegen.memory import ALIGNMENT
from .codegen.simd import prefetch_read, prefetch_write
from .epilogue import Place, Plane, place_of, right_of


class Run(NamedTuple):
    """Neighbouring pixels whose sums are at `s`, in a block of channels from c0 on.

    `left`: how many of the `pixels` are in the first row; each further row has `width`.  Between rows, `gap`
    bytes of sums belong to padding.  `place`: that of the first pixel, in arrays whose rows join.
    """

    s: int
    pixels: int
    left: int
    width: int
    gap: int
    c0: int
    place: Place


class Scales(NamedTuple):
    """The factors of sums of digits (`amx_digits`).  Other sums have none.

    `weights`: address of a scale for each output channel.  `values`: a scale for all channels.  `sample`: the
    scale of the sample, of which `values` was made; below 0 where there is a fourth level.
    """

    weights: int
    values: float
    sample: float


class Beside(NamedTuple):
    """Work beside multiplications: the epilogue `end` of a run, and fetching what the next run needs.

    The next run is so many pixels and bytes ahead.  A processor does not fetch it on its own, because its
    pixels are too far apart.
    """

    end: Any
    scales: Scales
    pixels: int
    bytes: int


@device_function
def _joins(x: Plane) -> bool:
    return x.C == 0 or x.line == x.W * x.pixel


@device_function
def rows_join(end: Any) -> bool:
    """Whether each row begins where the row before it ends, so that a run may go on in the next row."""
    return _joins(end.out) and _joins(end.r) and _joins(end.mask)


@device_function
def run_of(s: int, pixels: int, gap: int, c0: int, n: int, h: int, w: int, end: Any) -> Run:
    """The run of `pixels` pixels from (n, h, w) on, whose sums are at s.  `gap`, `c0`: as in `Run`."""
    return Run(s, pixels, end.out.W - w, end.out.W, gap, c0, place_of(n, h, w, end))


@device_function
def rest_of(run: Run, count: int, s: int, place: Place) -> Run:
    """The rest of a run after `count` pixels of its first row; the next pixel's sums are at s."""
    left = run.left - count
    if left == 0:
        left, s = run.width, s + run.gap
    return Run(s, run.pixels - count, left, run.width, run.gap, run.c0, place)


@device_function
def fetch(run: Run, beside: Beside, pixels: int, block_bytes: int) -> None:
    """Fetch what the epilogue of so many pixels of the next run reads and writes."""
    end = beside.end
    place, first = right_of(run.place, beside.pixels, end), 4 * run.c0 + beside.bytes
    for _ in range(pixels):
        for line in range(first, first + block_bytes, ALIGNMENT):
            prefetch_write(place.out + line)
            if end.r.C:
                prefetch_read(place.r + line)
        place = right_of(place, 1, end)
