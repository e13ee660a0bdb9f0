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
from .epilogue import Plane

#: Bytes ahead that are fetched while pixels are split.
_AHEAD = 2**11


class Frame(NamedTuple):
    """Where windows read: sides of the padded plane, and where pixel (0, 0) of x is in it.

    `pairs`: 1 where a row holds its pixel and the next one.  `shared`: how many columns of padding at the
    right are the first columns of the next row; these do not count as columns.
    """

    rows: int
    columns: int
    top: int
    left: int
    pairs: int = 0
    shared: int = 0


FRAME = types.NamedUniTuple(types.int64, len(Frame._fields), Frame)


class Split(NamedTuple):
    """The split pixels of one sample, or of some of its rows.

    `address`: of the first pixel.  `part`: bytes from one part of a pixel to the next.  `C`: how many
    channels there are.  `scale`, and the numbers at address `balance`, one for each channel: what values are
    multiplied by before they become digits (`amx_digits`).
    """

    address: int
    part: int
    C: int
    scale: float
    balance: int


def positions_of(rows: int, columns: int, stride: int) -> int:
    """Pixels of a frame, and room for those that the last tile reads beyond its line.

    The rows of the same pixels in different parts must not share sets of a first-level cache, of which there
    are 64.
    """
    return (rows * columns + ROWS * stride + 42) // 64 * 64 + 21


positions_in = device_function(positions_of)


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
def split_row(x: int, plane: Plane, low: int, high: int, to: int, frame: Frame, split: Split) -> None:
    """Split pixels of a plane, from address x on, into columns [low, high) of the row of a frame at `to`."""
    if frame.pairs:
        _split_pairs(x, plane, low, high, to, split.part)
    else:
        _split_pixels(x, plane, high - low, to + low * ROW_BYTES, split.part)
