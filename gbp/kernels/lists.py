"""Lists of the nonzero values of a gradient's pixels, and sums of the rows of weights that belong to them.

Behind a rule's gate a third or less of a gradient is nonzero, and zeros add nothing.  A pixel's list holds
its nonzero values in the order of channels, and the ends of each GROUP of channels.  GROUP rows of
LISTED_BLOCKS blocks of weights fill about a first-level cache, and many pixels use them in turn.
"""

from __future__ import annotations

from typing import Any

from .codegen.bits import load_index, store_index, store_nonzero
from .codegen.emit import LANES
from .codegen.jit import by_count, device_function, one_of_many
from .codegen.simd import keep_rolled, load_some
from .codegen.tile import (
    CHAIN,
    TILE_CHANNELS,
    TILE_VECTORS,
    tile_add_rows,
    tile_plus,
    tile_store,
    tile_zeros,
)

#: Blocks of TILE_CHANNELS channels whose sums are in registers together.
LISTED_BLOCKS = 4
#: The length of a chain of additions in `multiply_tile`, so that lists and tiles give the same sums.
GROUP = CHAIN
#: Bytes of the sums of one pixel.
SUMS = LISTED_BLOCKS * TILE_CHANNELS * 4


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


def _add_listed_of(blocks: int) -> Any:
    @one_of_many(f"add_listed_{blocks}")
    def add_listed(
        own: int, values: int, indices: int, start: int, stop: int, w: int, step: int, sums: int
    ) -> None:
        t = tile_zeros(blocks, TILE_VECTORS)
        for k in range(4 * start, 4 * stop, 4):
            keep_rolled()
            t = tile_add_rows(t, values + k, w + load_index(indices + k) * 4 * TILE_CHANNELS, step)
        tile_store(tile_plus(t, TILE_VECTORS, sums), TILE_VECTORS, sums)

    return add_listed


#: `add_listed(blocks, values, indices, start, stop, w, step, sums)`: add entries start … stop − 1 of the
#: lists, each times its row of weights, to the sums.  Row c of the first block of weights is at
#: `w + c · 4 · TILE_CHANNELS`.  The next block is `step` bytes further.
add_listed = by_count("add_listed", [_add_listed_of(blocks) for blocks in range(1, LISTED_BLOCKS + 1)])
