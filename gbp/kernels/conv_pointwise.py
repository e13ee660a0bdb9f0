"""The input gradient of a pointwise convolution, over an output gradient that is mostly zero.

    gx[n, h, w, c] = Σ_o gy[n, h, w, o] · w[o, c]

Pixels are computed in strips.  If few values of gy are nonzero, lists of them are faster; if many are, the
dense tiles of `conv_direct`.  Both add in the order of o, in the same chains, and a product with 0 adds
nothing.  So the choice changes no bit of gx.  It is made from the density of a few pixels of the strip.
"""

from __future__ import annotations

from typing import Any

from .codegen.bits import load_index, nonzero
from .codegen.emit import LANES, TILE_ROWS
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, at, load_some
from .codegen.tile import TILE_CHANNELS, blocks_in, first_pixel, multiply_tile, tiles_of
from .codegen.views import targets_of, zero_run
from .epilogue import backward, finish, plane_of, prefetch
from .lists import LISTED_BLOCKS, SUMS, add_listed, groups_in, groups_of, list_pixel

#: Pixels in a strip: their lists are multiplied with one group of weights before the next group.
STRIP = 4 * TILE_ROWS


def pointwise_scratch(O: int, threads: int) -> int:
    """Floats of scratch: for each thread, the sums of a strip, its lists, and the ends of their groups."""
    return threads * STRIP * (SUMS // 4 + 2 * _room_of(O) + _room_of(groups_of(O)))


def _room_of(count: int) -> int:
    """Floats for `count` values and a vector that is written beyond; rounded up to keep the alignment."""
    return (count + 2 * LANES - 1) // LANES * LANES


_room = device_function(_room_of)


@device_function
def strip_scratch(O: int) -> int:
    """Floats of scratch of one thread: see `pointwise_scratch`."""
    return STRIP * (SUMS // 4 + 2 * _room(O) + _room(groups_in(O)))


@device_function
def _density(gy: int, pixel: int, count: int, O: int) -> float:
    """The part of gy that is nonzero, measured at up to three of `count` pixels."""
    found, seen = 0, 0
    for p in range(0, count, max(1, count // 2)):
        for o in range(0, O, LANES):
            found += nonzero(load_some(gy + p * pixel + 4 * o, O - o))
        seen += O
    return found / seen


@device_function
def list_strip(gy: int, pixel: int, count: int, O: int, most: float, scratch: int) -> bool:
    """List the nonzero values of a strip of `count` pixels, if few are; return whether they are."""
    if _density(gy, pixel, count, O) > most:
        return False
    list_bytes, groups = 4 * _room(O), groups_in(O)
    lists = scratch + STRIP * SUMS
    ends = lists + STRIP * 2 * list_bytes
    for p in range(count):
        values = lists + p * 2 * list_bytes
        list_pixel(gy + p * pixel, O, 0, values, values + list_bytes, ends + 4 * p * groups)
    return True


@device_function
def _multiply_lists(count: int, O: int, blocks: int, w: int, scratch: int) -> None:
    """Compute the sums of `blocks` blocks of channels of a strip that `list_strip` has listed."""
    step, groups, list_bytes = 4 * TILE_CHANNELS * O, groups_in(O), 4 * _room(O)
    lists = scratch + STRIP * SUMS
    ends = lists + STRIP * 2 * list_bytes
    zero_run(scratch, count * SUMS // 4)
    for g in range(groups):
        for p in range(count):
            start = load_index(ends + 4 * (p * groups + g - 1)) if g else 0
            stop = load_index(ends + 4 * (p * groups + g))
            values = lists + p * 2 * list_bytes
            if stop > start:
                s = scratch + p * SUMS
                add_listed(blocks, values, values + list_bytes, start, stop, w, step, s)


@device_function
def multiply_strip(
    is_listed: bool,
    gy: int,
    pixel: int,
    count: int,
    O: int,
    w: int,
    c0: int,
    scratch: int,
    n: int,
    h: int,
    first: int,
    end: Any,
) -> None:
    """Compute up to LISTED_BLOCKS blocks of channels, from c0 on, of a strip of `count` pixels.

    The strip begins at pixel (n, h, first) of the gradient that `end` writes.  `gy`: the address of its first
    pixel in gy, whose pixels are `pixel` bytes apart.  `w`: the address of all weights.
    """
    block, C, step = c0 // TILE_CHANNELS, end.out.C, 4 * TILE_CHANNELS * O
    together, wa = min(LISTED_BLOCKS, blocks_in(C) - block), w + block * step
    if is_listed:
        _multiply_lists(count, O, together, wa, scratch)
    tiles = tiles_of(count, pixel)
    for b in range(together):
        c = c0 + b * TILE_CHANNELS
        for k in range(tiles):
            p = first_pixel(k, tiles, count)
            pixels = first_pixel(k + 1, tiles, count) - p
            s, s_step = scratch + p * SUMS + b * 4 * TILE_CHANNELS, SUMS
            if not is_listed:
                s, s_step = scratch, 4 * TILE_CHANNELS
                prefetch(pixels, c, n, h, first + p, end)
                multiply_tile(pixels, C - c, gy + p * pixel, pixel, 1, 0, 1, 0, O, wa + b * step, s)
            finish(s, s_step, pixels, c, n, h, first + p, end)


@kernel(ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, DENSE, FLOAT, INT, calls=[multiply_tile])
def conv_pointwise_bwd(
    gy: Any,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    most: float,
    threads: int,
    share: Share,
) -> None:
    """Write gx = gy · w, or add it to gx with `accumulate`; then apply the gate of gx's own rectifier.

    gy (N, H, W, O), gx (N, H, W, C).  w is packed by `pack` from the transposed weights (C, O, 1, 1).
    scratch holds `pointwise_scratch`.  Strips with a density up to `most` use lists: 0 means none, 1 all.
    """
    N, H, W, C = gx.shape
    O = gy.shape[3]
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gy, mask), gate)
    strips = (W + STRIP - 1) // STRIP
    parts = (blocks_in(C) + LISTED_BLOCKS - 1) // LISTED_BLOCKS
    work = N * H * strips * parts
    own = address_of(scratch) + share.slot * 4 * strip_scratch(O)
    for t in range(share.first, share.last):
        listed, few = -1, False
        for q in range(work * t // threads, work * (t + 1) // threads):
            strip, c0 = q // parts, q % parts * LISTED_BLOCKS * TILE_CHANNELS
            row = strip // strips
            n, h, first = row // H, row % H, W * (strip % strips) // strips
            count = W * (strip % strips + 1) // strips - first
            ga, pixel = at(gy, n, h, first), gy.strides[2]
            if strip != listed:
                listed, few = strip, list_strip(ga, pixel, count, O, most, own)
            multiply_strip(few, ga, pixel, count, O, address_of(w), c0, own, n, h, first, end)
