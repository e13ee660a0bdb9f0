"""The input gradient of a pointwise convolution, over an output gradient that is mostly zero.

    gx[n, h, w, c] = Σ_o gy[n, h, w, o] · w[o, c]

Tile by tile of pixels: where few values of gy are not 0, by lists of them; where many are, the dense tile of
`conv_direct` is faster.  Both add in the order of o and a product with 0 adds nothing, so the choice does not
change a bit of gx, and a glance at some pixels of a tile may make it.
"""

from __future__ import annotations

from typing import Any

from numba import prange

from .emit import LANES, TILE_ROWS
from .ending import end_bwd
from .jit import ACTIVATION, DENSE, FLOAT, INT, device_function, kernel
from .lists import BLOCKS, GROUP, SUMS, add_listed, groups_of, list_pixel
from .rectifier import GATE, MASK, Gate
from .simd import address_of, at, load_index, load_some, nonzero
from .tile import TILE_CHANNELS, multiply_tile
from .views import targets_of, zero_run


def pointwise_scratch(O: int, threads: int) -> int:
    """Floats of scratch: for each thread the sums of a tile, its lists, and where their groups end."""
    return threads * TILE_ROWS * (SUMS // 4 + 2 * (O + LANES) + groups_of(O))


@device_function
def _density(gy: int, pixel: int, count: int, O: int) -> float:
    """The nonzero share of gy at up to two of `count` pixels."""
    found, seen = 0, 0
    for p in range(0, count, max(1, count // 2)):
        for o in range(0, O, LANES):
            found += nonzero(load_some(gy + p * pixel + 4 * o, O - o))
        seen += O
    return found / seen


@kernel(ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, DENSE, FLOAT, INT, calls=[multiply_tile])
def conv_pointwise_bwd(
    gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, scratch: Any, most: float, threads: int
) -> None:
    """gx = gy · w, added to gx with `accumulate`; of that, what passes the gate of gx's own rectifier.

    gy (N, H, W, O), gx (N, H, W, C); w from `pack` of the transposed weights (C, O, 1, 1); scratch as
    `pointwise_scratch` says.  Tiles whose density is up to `most` go by lists: 0 means none, 1 all.
    """
    N, H, W, C = gx.shape
    O = gy.shape[3]
    targets = targets_of(gy, mask)
    tiles = (W + TILE_ROWS - 1) // TILE_ROWS
    blocks = (C + TILE_CHANNELS - 1) // TILE_CHANNELS
    parts, groups = (blocks + BLOCKS - 1) // BLOCKS, (O + GROUP - 1) // GROUP
    work = N * H * tiles * parts
    list_bytes, step = 4 * (O + LANES), 4 * TILE_CHANNELS * O
    for t in prange(threads):
        sums = address_of(scratch) + 4 * t * TILE_ROWS * (SUMS // 4 + 2 * (O + LANES) + groups)
        lists = sums + TILE_ROWS * SUMS
        ends = lists + TILE_ROWS * 2 * list_bytes
        listed, few = -1, False
        for q in range(work * t // threads, work * (t + 1) // threads):
            unit, block0 = q // parts, q % parts * BLOCKS
            together, wa = min(BLOCKS, blocks - block0), address_of(w) + block0 * step
            row = unit // tiles
            n, h, first = row // H, row % H, W * (unit % tiles) // tiles
            count = W * (unit % tiles + 1) // tiles - first
            ga = at(gy, n, h, first)
            if unit != listed:
                listed, few = unit, _density(ga, gy.strides[2], count, O) <= most
                if few:
                    for p in range(count):
                        values = lists + p * 2 * list_bytes
                        ends_p = ends + 4 * p * groups
                        list_pixel(ga + p * gy.strides[2], O, 0, values, values + list_bytes, ends_p)
            if few:
                zero_run(sums, count * SUMS // 4)
                for g in range(groups):
                    for p in range(count):
                        start = load_index(ends + 4 * (p * groups + g - 1)) if g else 0
                        stop = load_index(ends + 4 * (p * groups + g))
                        values = lists + p * 2 * list_bytes
                        if stop > start:
                            s = sums + p * SUMS
                            add_listed(together, values, values + list_bytes, start, stop, wa, step, s)
            for b in range(together):
                s, s_step = sums + b * 4 * TILE_CHANNELS, SUMS
                if not few:
                    s, s_step = sums, 4 * TILE_CHANNELS
                    left, wb = C - (block0 + b) * TILE_CHANNELS, wa + b * step
                    multiply_tile(count, left, ga, gy.strides[2], 1, 0, 1, 0, O, wb, s)
                end_bwd(
                    s, s_step, count, (block0 + b) * TILE_CHANNELS, C,
                    accumulate, gate.forward, gate.gradient,
                    at(mask, n // targets, h, first), mask.strides[2], at(gx, n, h, first), gx.strides[2],
                )  # fmt: skip
