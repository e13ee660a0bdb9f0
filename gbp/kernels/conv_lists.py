"""The input gradient of a 3×3 convolution of stride 1 by lists of the output gradient's nonzero values.

    gx[n, h, w, c] = Σ_{i, j, o} gy[n, h + top − i, w + left − j, o] · w[o, c, i, j]

`list_plane` lists the nonzero values of one sample's gy, row by row.  Then, for a row of gx and one row of
taps, the sums of three pixels are in registers and slide along the listed row: each nonzero value of gy is
added to the three pixels that it contributes to.  A rectangle of pixels is computed for one row of taps and
one group of channels after another, so that these weights stay in the cache.  Additions are in the order of
groups, taps, pixels and channels, for every rectangle.

Where gy comes from a max-pool and is larger than a core's cache, `list_pooled_plane` lists it row by row as
the pool's vjp makes it, so it is not written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from .codegen.bits import load_index
from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, INT, WEIGHTS, device_function, kernel
from .codegen.memory import aligned
from .codegen.packing import Share
from .codegen.simd import address_of, at, keep_rolled
from .codegen.tile import (
    TILE_CHANNELS,
    TILE_VECTORS,
    blocks_in,
    tile_add_rows,
    tile_load,
    tile_slide,
    tile_store,
)
from .codegen.work import part_of, zero_run
from .conditions import WORDS
from .epilogue import Backward, backward, finish, plane_of
from .lists import groups_in, groups_of, list_pixel
from .pool import SWITCHES_U8, unpool_row
from .taps import TAPS, Taps

#: Taps along each axis.
SIDE = 3
#: Blocks of channels of the three pixels whose sums are in registers: twelve vectors in all.
SLID_BLOCKS = 2
SLID_CHANNELS = SLID_BLOCKS * TILE_CHANNELS
ROWS = SIDE * SLID_BLOCKS
#: Bytes of the sums of one pixel.
PIXEL = 4 * SLID_CHANNELS
#: Pixels of gx that are computed with one group of weights, with two more at both ends of each row.
TOGETHER = 128

FLOAT64 = types.float64


class Listing(NamedTuple):
    """The layout of the lists of a plane (H, W, O): room for `capacity` values in each row."""

    H: int
    W: int
    O: int
    capacity: int


LISTING = types.NamedUniTuple(types.int64, 4, Listing)


def listing_of(H: int, W: int, O: int, max_density: float) -> Listing:
    """The layout for planes with a density up to `max_density`.

    Single rows may be twice as dense.  There is room for values that are written beyond the end.
    """
    return Listing(H, W, O, int(W * O * min(1.0, 2 * max_density)) + O + LANES)


def lists_floats(listing: Listing) -> int:
    """Floats of memory for the lists: values, their channels, and the ends of groups; whole vectors."""
    floats = listing.H * (2 * listing.capacity + listing.W * groups_of(listing.O))
    return -(-floats // LANES) * LANES


def sums_floats(threads: int) -> int:
    """Floats of scratch for the sums of `conv_lists_bwd`."""
    return threads * TOGETHER * PIXEL // 4


def pooled_floats(listing: Listing, threads: int) -> int:
    """Floats of scratch for the rows of `list_pooled_plane`."""
    return threads * listing.W * listing.O


def pack_lists(w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pack weights (O, C, 3, 3) in the order of their use: [part of C][i][O][j][SLID_CHANNELS]."""
    O, C = w.shape[:2]
    width = SLID_CHANNELS
    parts = -(-C // width)
    packed = aligned((parts, SIDE, O, SIDE, width))
    packed.fill(0)
    for part in range(parts):
        own = w[:, part * width : (part + 1) * width]
        packed[part, ..., : own.shape[1]] = own.transpose(2, 0, 3, 1)
    return packed.reshape(-1)


@device_function
def _list_row(g: int, pixel: int, lists: int, listing: Listing, h: int) -> int:
    """List row h of gy, whose pixels are `pixel` bytes apart from address g on.

    Returns how many values are nonzero, or -1 if they do not fit.
    """
    H, W, O, capacity = listing
    groups = groups_in(O)
    values, ends = lists + 4 * h * capacity, lists + 4 * (2 * H * capacity + h * W * groups)
    n = 0
    for w in range(W):
        if n + O + LANES > capacity:
            return -1
        n = list_pixel(g + w * pixel, O, n, values, values + 4 * H * capacity, ends + 4 * w * groups)
    return n


@kernel(ACTIVATION, DENSE, LISTING, WORDS, FLOAT64, INT)
def list_plane(
    gy: Any, lists: Any, listing: Listing, counts: Any, max_count: float, threads: int, share: Share
) -> None:
    """List each row of gy (1, H, W, O).

    lists: what is listed, in the layout `listing`.  counts[h]: how many values of row h are nonzero, or -1 if
    it is not listed.

    A row is not listed if its values do not fit.  Then, and where there are more than `max_count` values, the
    rows behind are not listed either: the lists are not used.
    """
    total = 0.0
    for h in range(*part_of(listing.H, share, threads)):
        count = -1
        if total <= max_count:
            count = _list_row(at(gy, 0, h, 0), gy.strides[2], address_of(lists), listing, h)
        counts[h] = count
        total += count if count >= 0 else max_count + 1


@kernel(ACTIVATION, SWITCHES_U8, TAPS, MASK, GATE, DENSE, LISTING, WORDS, FLOAT64, DENSE, INT)
def list_pooled_plane(
    gy: Any,
    switches: Any,
    pool: Taps,
    mask: Any,
    gate: Gate,
    lists: Any,
    listing: Listing,
    counts: Any,
    max_count: float,
    scratch: Any,
    threads: int,
    share: Share,
) -> None:
    """`list_plane` of what `maxpool_bwd` would write from gy, mask and gate, which stays in a core's cache.

    pool: the window of the max-pool.  scratch: `pooled_floats`.
    """
    line, pixel, total = address_of(scratch) + share.slot * 4 * listing.W * listing.O, 4 * listing.O, 0.0
    for h in range(*part_of(listing.H, share, threads)):
        count = -1
        if total <= max_count:
            unpool_row(gy, switches, mask, gate, line, pixel, (listing.W, listing.O), 0, pool, 0, h)
            count = _list_row(line, pixel, address_of(lists), listing, h)
        counts[h] = count
        total += count if count >= 0 else max_count + 1


@kernel(WORDS, FLOAT64, WORDS, INT, split=1)
def choose_lists(counts: Any, max_count: float, chosen: Any, threads: int, share: Share) -> None:
    """Write 1 to chosen (1,) if all rows are listed and up to `max_count` values are listed, else 0."""
    for _ in range(share.first, share.last):
        total, fit = 0, True
        for count in counts:
            total += count
            fit = fit and count >= 0
        chosen[0] = 1 if fit and total <= max_count else 0


@device_function
def _rectangle(W: int) -> Any:
    """(rows, columns) of a rectangle of gx: whole rows if they are short, else equal parts of one row."""
    if W + 4 <= TOGETHER:
        return TOGETHER // (W + 4), W
    parts = (W + TOGETHER - 5) // (TOGETHER - 4)
    return 1, (W + parts - 1) // parts


@device_function
def _slide(lists: int, listing: Listing, h: int, w: int, count: int, g: int, weights: int, sums: int) -> None:
    """Add group g of row h of gy to the sums of `count` pixels of gx.

    Columns w − 2 … w of gy contribute to the first of these pixels.  `sums` holds two unused pixels, then the
    `count`, then two more unused ones.
    """
    groups = groups_in(listing.O)
    values = lists + 4 * h * listing.capacity
    indices = values + 4 * listing.H * listing.capacity
    ends = lists + 4 * (2 * listing.H * listing.capacity + h * listing.W * groups)
    first, last = max(0, w - 2), min(listing.W, w + count)
    sums += (first - w + 2) * PIXEL
    t = tile_load(ROWS, sums)
    for v in range(first, last):
        k = v * groups + g
        start = load_index(ends + 4 * (k - 1)) if k else 0
        for e in range(4 * start, 4 * load_index(ends + 4 * k), 4):
            keep_rolled()
            t = tile_add_rows(
                t, values + e, weights + load_index(indices + e) * ROWS * 4 * TILE_CHANNELS, 4 * TILE_CHANNELS
            )
        t = tile_slide(t, SLID_BLOCKS, sums)
        sums += PIXEL
    tile_store(t, TILE_VECTORS, sums)


@device_function
def _sum_rectangle(
    lists: int, listing: Listing, h: int, w: int, height: int, width: int, weights: int, sums: int
) -> None:
    """Compute the sums of height × width pixels, from row h and column w of the padded gx on.

    The sums of each row are as in `_slide`.
    """
    row, tap_row = (width + 4) * PIXEL, listing.O * SIDE * 4 * SLID_CHANNELS
    zero_run(sums, height * row // 4)
    for g in range(groups_in(listing.O)):
        for i in range(SIDE):
            for q in range(height):
                if h + q - i >= 0 and h + q - i < listing.H:
                    _slide(lists, listing, h + q - i, w, width, g, weights + i * tap_row, sums + q * row)


@device_function
def _finish_rectangle(sums: int, h: int, w: int, height: int, width: int, block: int, end: Backward) -> None:
    """Finish height × width pixels of gx, from (h, w) on, in SLID_BLOCKS blocks of channels."""
    row = (width + 4) * PIXEL
    for q in range(height):
        for b in range(min(SLID_BLOCKS, blocks_in(end.out.C) - block)):
            s = sums + q * row + 2 * PIXEL + b * 4 * TILE_CHANNELS
            finish(s, PIXEL, width, (block + b) * TILE_CHANNELS, 0, h + q, w, end)


@kernel(DENSE, LISTING, WEIGHTS, MASK, GATE, ACTIVATION, INT, DENSE, TAPS, INT)
def conv_lists_bwd(
    lists: Any,
    listing: Listing,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    taps: Taps,
    threads: int,
    share: Share,
) -> None:
    """Write gx (1, H, W, C), or add it with `accumulate`, from the lists of gy; then apply gx's gate.

    Parameters
    ----------
    lists, listing
        The lists that `list_plane` wrote, and their layout.
    w
        Weights that `pack_lists` packed.
    scratch
        `sums_floats` floats.
    taps
        The convolution's window; its pads are at least 0.
    mask, gate, gx, accumulate, threads, share
        As in all kernels (`gbp.kernels`).
    """
    H, W, C = gx.shape[1], gx.shape[2], gx.shape[3]
    rows, columns = _rectangle(W)
    parts = (C + SLID_CHANNELS - 1) // SLID_CHANNELS
    part_bytes = SIDE * listing.O * SIDE * 4 * SLID_CHANNELS
    end = backward(plane_of(gx), accumulate, plane_of(mask), 1, gate)
    for t in range(share.first, share.last):
        sums = address_of(scratch) + share.slot * TOGETHER * PIXEL
        stop = H * (t + 1) // threads
        for h in range(H * t // threads, stop, rows):
            height = min(rows, stop - h)
            for w0 in range(0, W, columns):
                width = min(columns, W - w0)
                for part in range(parts):
                    weights = address_of(w) + part * part_bytes
                    _sum_rectangle(
                        address_of(lists), listing, h + taps.top, w0 + taps.left, height, width, weights, sums
                    )
                    _finish_rectangle(sums, h, w0, height, width, part * SLID_BLOCKS, end)
