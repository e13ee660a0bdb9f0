"""Frames of split pixels, which the kernels of `conv_amx` read: the parts of x's values, and padding.

Where x has no more channels than half a chunk, the other half of a row may hold the next pixel to the right.
Then a row has the values of two taps, and a tile multiplies no zeros.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import types

from .codegen.amx import DEPTH, PARTS, ROW_BYTES, ROWS, store_parts
from .codegen.emit import LANES
from .codegen.jit import device_function
from .codegen.memory import ALIGNMENT
from .codegen.simd import load, load_some, prefetch_read, zeros
from .codegen.views import zero_run
from .epilogue import Plane

_ROW = ROW_BYTES // 4
#: Bytes ahead that are fetched while pixels are split.
_AHEAD = 2**11


class Frame(NamedTuple):
    """Where windows read: sides of the padded plane, and where pixel (0, 0) of x is in it.

    `pairs`: 1 where a row holds its pixel and the next one.
    """

    rows: int
    columns: int
    top: int
    left: int
    pairs: int = 0


FRAME = types.NamedUniTuple(types.int64, len(Frame._fields), Frame)


def positions_of(rows: int, columns: int, stride: int) -> int:
    """Pixels of a frame, and room for those that the last tile reads beyond its line.

    The rows of the same pixels in different parts must not share sets of a first-level cache, of which there
    are 64.
    """
    return (rows * columns + ROWS * stride + 42) // 64 * 64 + 21


positions_in = device_function(positions_of)


@device_function
def _zero_parts(to: int, count: int, part: int) -> None:
    for k in range(PARTS):
        zero_run(to + k * part, count * _ROW)


@device_function
def _split_pixels(x: int, plane: Plane, count: int, to: int, part: int) -> None:
    """Split `count` pixels of a plane from address x on, each whole: so memory is read in order."""
    whole = plane.C // DEPTH
    left = plane.C - whole * DEPTH
    for _ in range(count):
        pixel, out = x, to
        for _ in range(whole):
            prefetch_read(pixel + _AHEAD)
            prefetch_read(pixel + _AHEAD + ALIGNMENT)
            store_parts(out, part, load(pixel), load(pixel + 4 * LANES))
            pixel, out = pixel + 4 * DEPTH, out + PARTS * part
        if left:
            store_parts(out, part, load_some(pixel, left), load_some(pixel + 4 * LANES, left - LANES))
        x, to = x + plane.pixel, to + ROW_BYTES


@device_function
def _split_pairs(x: int, plane: Plane, low: int, high: int, to: int, part: int) -> None:
    """Split the pixels of columns low … high − 1, from address x on, each with the next; `to` is of column 0.

    The column before them holds a pair, too: padding and the first pixel.
    """
    for column in range(max(0, low - 1), high):
        pixel, following = zeros(), zeros()
        if column >= low:
            pixel = load_some(x, plane.C)
            x += plane.pixel
        if column + 1 < high:
            following = load_some(x, plane.C)
        store_parts(to + column * ROW_BYTES, part, pixel, following)


@device_function
def split_rows(x: Plane, n: int, frame: Frame, begin: int, rows: int, to: int, positions: int) -> None:
    """Split `rows` rows of sample n's frame, from row `begin` on, to address `to`."""
    part = positions * ROW_BYTES
    start = min(frame.columns, max(0, frame.left))
    stop = max(start, min(frame.columns, frame.left + x.W))
    for row in range(rows):
        h = begin + row - frame.top
        low, high = start, stop
        if h < 0 or h >= x.H:
            low, high = frame.columns, frame.columns
        line = x.address + n * x.image + h * x.line + (low - frame.left) * x.pixel
        out = to + row * frame.columns * ROW_BYTES
        for c in range(0, x.C, DEPTH):
            chunk = out + c // DEPTH * PARTS * part
            _zero_parts(chunk, low, part)
            _zero_parts(chunk + high * ROW_BYTES, frame.columns - high, part)
        if frame.pairs:
            _split_pairs(line, x, low, high, out, part)
        else:
            _split_pixels(line, x, high - low, out + low * ROW_BYTES, part)
