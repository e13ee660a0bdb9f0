"""The nonzero values of a gradient's pixels: lists of them, and sums of the rows of weights they belong to.

Behind a rule's gate a third or less of a gradient is nonzero, and zeros add nothing.  A pixel's list holds
its nonzero values in the order of channels, and the ends of each GROUP of channels.  Lists pay where the
values are used several times.  Where they are used once, the bits of a GROUP lead to its nonzero values.
GROUP rows of SUMMED_BLOCKS blocks of weights fill about a first-level cache, and many pixels use them in
turn.
"""

from __future__ import annotations

from .codegen.bits import lowest_bit, nonzero_lanes, store_index, store_nonzero
from .codegen.emit import LANES
from .codegen.jit import by_count, copy_of, device_function
from .codegen.simd import keep_rolled, load_some
from .codegen.tile import (
    CHAIN,
    TILE_CHANNELS,
    TILE_VECTORS,
    tile_add_rows,
    tile_plus,
    tile_store,
    tile_update,
    tile_zeros,
)

#: Blocks of TILE_CHANNELS channels whose sums are in registers together.
SUMMED_BLOCKS = 4
#: Targets whose gradients are computed together.
MOST_GRADIENTS = 5
#: The length of a chain of additions in `multiply_tile`, so that nonzero values and tiles give the same sums;
#: and the bits of a word.
GROUP = CHAIN
#: Bytes of the sums of one pixel.
SUMS = SUMMED_BLOCKS * TILE_CHANNELS * 4


def groups_of(channels: int) -> int:
    return -(-channels // GROUP)


groups_in = device_function(groups_of)


@device_function
def list_pixel(g: int, channels: int, n: int, values: int, indices: int, ends: int) -> int:
    """Append the nonzero values at g and their channels to lists of length n; return the new length.

    Up to LANES values behind the end of the lists may be overwritten.
    """
    for c in range(0, channels, LANES):
        n += store_nonzero(load_some(g + 4 * c, channels - c), c, values + 4 * n, indices + 4 * n)
        store_index(ends + c // GROUP * 4, n)
    return n


@device_function
def nonzero_in(g: int, channels: int) -> int:
    """Bits of the channels of a GROUP, or of the first `channels` of it, whose values at g are not 0."""
    bits = 0
    for c in range(0, min(GROUP, channels), LANES):
        bits |= nonzero_lanes(load_some(g + 4 * c, channels - c)) << c
    return bits


#: Blocks of the tile in the function below.  Each of its copies has its own.
_BLOCKS = SUMMED_BLOCKS


@device_function
def _add_nonzero_to_tile(blocks: int, g: int, bits: int, w: int, step: int, sums: int, first: bool) -> None:
    """Add to the sums the values of a group at g whose bits are set, each times its row of weights.

    With `first` they are written instead.  Row c of the first block of weights is at
    `w + c · 4 · TILE_CHANNELS`.  The next block is `step` bytes further.  `blocks` is _BLOCKS.
    """
    t = tile_zeros(_BLOCKS, TILE_VECTORS)
    while bits:
        keep_rolled()
        c = lowest_bit(bits)
        bits &= bits - 1
        t = tile_add_rows(t, g + 4 * c, w + c * 4 * TILE_CHANNELS, step)
    tile_store(t if first else tile_plus(t, TILE_VECTORS, sums), TILE_VECTORS, sums)


add_nonzero = by_count(
    "add_nonzero",
    [copy_of(_add_nonzero_to_tile, f"{blocks}", _BLOCKS=blocks) for blocks in range(1, SUMMED_BLOCKS + 1)],
)


#: Rows of the tile in the function below.  Each of its copies has its own.
_ROWS = MOST_GRADIENTS


@device_function
def _add_nonzero_of_tile(rows: int, g: int, step: int, bits: int, w: int, sums: int, first: bool) -> None:
    """Add to the sums of each gradient the values of a group whose bits are set, times their rows of weights.

    With `first` they are written instead.  Gradient k is at `g + k · step`, and its block of sums is the k-th
    one.  Row c of the weights is at `w + c · 4 · TILE_CHANNELS`.  `rows` is _ROWS.
    """
    t = tile_zeros(_ROWS, TILE_VECTORS)
    while bits:
        keep_rolled()
        c = lowest_bit(bits)
        bits &= bits - 1
        t = tile_update(t, TILE_VECTORS, g + 4 * c, step, w + c * 4 * TILE_CHANNELS)
    tile_store(t if first else tile_plus(t, TILE_VECTORS, sums), TILE_VECTORS, sums)


add_nonzero_of = by_count(
    "add_nonzero_of",
    [copy_of(_add_nonzero_of_tile, f"{rows}_gradients", _ROWS=rows) for rows in range(2, MOST_GRADIENTS + 1)],
    first=2,
)
