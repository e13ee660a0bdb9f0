"""Direct convolution, channels last.  The sums of a tile of pixels × output channels stay in registers.

    y[n, oh, ow, o]  = Σ_{i, j, c}  x[n, oh·sh + i·dh, ow·sw + j·dw, c] · w[o, c, i, j]  +  b[o]

Each scalar of x is multiplied with a vector of weights of output channels, so x is read in place.  Padding is
written to memory before (`pad`).  The input gradient of a convolution with stride 1 is the same sum over the
padded output gradient, with flipped and transposed weights.  Other strides make columns, which
`columns.col2im` sums.

Every output is summed in the order (i, j, c), in chains of CHAIN multiply-adds, in every tile.  So results do
not depend on threads, batch or tile size, and equal windows give equal outputs at every position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.memory import aligned
from .codegen.packing import Share
from .codegen.simd import address_of, at
from .codegen.tile import TILE_CHANNELS, TILE_FLOATS, first_pixel, multiply_tile, tiles_of
from .codegen.views import copy_run, part_of, zero_run
from .epilogue import epilogue_bwd, epilogue_fwd, prefetch_epilogue
from .taps import TAPS, Taps

#: Bytes of weights that a thread keeps in its second-level cache; the smallest such caches have 512 KiB.
CACHED = 2**18


def pack(w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pack weights (O, I, KH, KW) for tiles: [⌈O / TILE_CHANNELS⌉][KH][KW][I][TILE_CHANNELS]."""
    O, I, KH, KW = w.shape
    blocks = -(-O // TILE_CHANNELS)
    packed = aligned((blocks, KH, KW, I, TILE_CHANNELS))
    packed.fill(0)
    for block in range(blocks):
        part = w[block * TILE_CHANNELS : (block + 1) * TILE_CHANNELS]
        packed[block, ..., : len(part)] = part.transpose(2, 3, 1, 0)
    return packed.reshape(-1)


# The functions below take numbers, not arrays.  Numba would count the references of an array argument with
# atomic instructions, on a cache line that all threads share.


@device_function
def _locate(q: int, tiles: int, H: int) -> Any:
    """Tile q of an output as (tile of its row, row, n)."""
    row = q // tiles
    return q - row * tiles, row % H, row // H


@device_function
def _next(tile: int, h: int, n: int, tiles: int, H: int) -> Any:
    """The next tile.  Divisions, as in `_locate`, would cost as much as a short sum."""
    tile += 1
    if tile == tiles:
        tile, h = 0, h + 1
        if h == H:
            h, n = 0, n + 1
    return tile, h, n


@device_function
def _convolve(
    count: int, channels: int, x: int, line: int, pixel: int, I: int, taps: Taps, w: int, out: int
) -> None:
    """Write the plain sums of `count` pixels to `out`.  x: address of the first tap; line, pixel: strides."""
    taps_w, step_w, run = taps.columns, taps.dilation_w * pixel, I
    if step_w == 4 * I:  # the taps of one row are adjacent in memory, so they are one run
        taps_w, run = 1, I * taps.columns
    pixel, line = taps.stride_w * pixel, taps.dilation_h * line
    multiply_tile(count, channels, x, pixel, taps.rows, line, taps_w, step_w, run, w, out)


@device_function
def _block_of(w: int, block: int, I: int, taps: Taps) -> int:
    return w + block * 4 * taps.rows * taps.columns * I * TILE_CHANNELS


@device_function
def _share(tiles: int, blocks: int, together: int, by_rows: int, t: int, threads: int) -> Any:
    """Part t of the work, as (start, stop, its first and last block of channels, step of blocks).

    `by_rows`: the work is all tiles, and each tile runs through all blocks, `together` at a time.  Otherwise
    it is the tiles of the first block, then those of the second, and so on.
    """
    work = tiles if by_rows else tiles * blocks
    start, stop = work * t // threads, work * (t + 1) // threads
    if by_rows:
        return start, stop, 0, blocks, together
    return start, stop, start // tiles, (stop + tiles - 1) // tiles, 1


@device_function
def _own_tiles(start: int, stop: int, tiles: int, block: int, by_rows: int) -> Any:
    """The tiles of one block that are in the part [start, stop) of the work."""
    if by_rows:
        return start, stop
    return max(0, start - block * tiles), min(tiles, stop - block * tiles)


@device_function
def _together(I: int, taps: Taps) -> int:
    """How many blocks of weights fit into CACHED bytes; each tile runs through them before the next tile."""
    return max(1, CACHED // (4 * taps.rows * taps.columns * I * TILE_CHANNELS))


@kernel(
    ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, DENSE, TAPS, FLOAT, FLOAT, INT, INT,
    calls=[multiply_tile],
)  # fmt: skip
def conv_fwd(
    x: Any,
    w: Any,
    b: Any,
    r: Any,
    y: Any,
    mask: Any,
    scratch: Any,
    taps: Taps,
    lo: float,
    hi: float,
    by_rows: int,
    threads: int,
    share: Share,
) -> None:
    """Write y = clip(conv(x, w) + b + r, lo, hi), and the bit lo < · < hi of each unit to mask.

    r and mask may be empty.  w is packed by `pack`; b is padded with 0 to whole tiles; scratch holds
    TILE_FLOATS for each thread.  `by_rows`: threads share the rows of y; otherwise, for few tiles, its
    channels.
    """
    N, OH, OW, O = y.shape
    I = x.shape[3]
    tiles, blocks = tiles_of(OW, taps.stride_w * x.strides[2]), (O + TILE_CHANNELS - 1) // TILE_CHANNELS
    together = _together(I, taps)
    for t in range(share.first, share.last):
        s = address_of(scratch) + 4 * share.slot * TILE_FLOATS
        start, stop, block0, block1, step = _share(tiles * OH * N, blocks, together, by_rows, t, threads)
        for group in range(block0, block1, step):
            low, high = _own_tiles(start, stop, tiles * OH * N, group, by_rows)
            tile, oh, n = _locate(low, tiles, OH)
            for _ in range(low, high):
                first = first_pixel(tile, tiles, OW)
                count = first_pixel(tile + 1, tiles, OW) - first
                corner, ya = at(x, n, oh * taps.stride_h, first * taps.stride_w), at(y, n, oh, first)
                ra = at(r, n, oh, first) if r.size else 0
                ma = at(mask, n, oh, first) if mask.size else 0
                for block in range(group, min(group + step, block1)):
                    c0, wa = block * TILE_CHANNELS, _block_of(address_of(w), block, I, taps)
                    prefetch_epilogue(
                        ya + 4 * c0, y.strides[2], ra + 4 * c0 if ra else 0, r.strides[2], count
                    )
                    _convolve(count, O - c0, corner, x.strides[1], x.strides[2], I, taps, wa, s)
                    epilogue_fwd(
                        s, 4 * TILE_CHANNELS, count, c0, O, address_of(b), lo, hi, ra, r.strides[2],
                        ma, mask.strides[2], ya, y.strides[2],
                    )  # fmt: skip
                tile, oh, n = _next(tile, oh, n, tiles, OH)


@kernel(ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, DENSE, TAPS, INT, INT, calls=[multiply_tile])
def conv_bwd(
    gy: Any,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    taps: Taps,
    by_rows: int,
    threads: int,
    share: Share,
) -> None:
    """Write gx = conv(gy, w), or add it to gx with `accumulate`; then apply the gate of gx's own rectifier.

    gy is padded to the full correlation.  w is packed by `pack` from the flipped, transposed weights.
    """
    N, H, W, C = gx.shape
    O = gy.shape[3]
    targets = N // max(1, mask.shape[0])
    tiles, blocks = tiles_of(W, gy.strides[2]), (C + TILE_CHANNELS - 1) // TILE_CHANNELS
    together = _together(O, taps)
    for t in range(share.first, share.last):
        s = address_of(scratch) + 4 * share.slot * TILE_FLOATS
        start, stop, block0, block1, step = _share(tiles * H * N, blocks, together, by_rows, t, threads)
        for group in range(block0, block1, step):
            low, high = _own_tiles(start, stop, tiles * H * N, group, by_rows)
            tile, h, n = _locate(low, tiles, H)
            for _ in range(low, high):
                first = first_pixel(tile, tiles, W)
                count = first_pixel(tile + 1, tiles, W) - first
                corner, xa, ma = at(gy, n, h, first), at(gx, n, h, first), at(mask, n // targets, h, first)
                for block in range(group, min(group + step, block1)):
                    c0, wa = block * TILE_CHANNELS, _block_of(address_of(w), block, O, taps)
                    prefetch_epilogue(xa + 4 * c0, gx.strides[2], 0, 0, count)
                    _convolve(count, C - c0, corner, gy.strides[1], gy.strides[2], O, taps, wa, s)
                    epilogue_bwd(
                        s, 4 * TILE_CHANNELS, count, c0, C, accumulate, gate.forward, gate.gradient,
                        ma, mask.strides[2], xa, gx.strides[2],
                    )  # fmt: skip
                tile, h, n = _next(tile, h, n, tiles, H)


@kernel(ACTIVATION, ACTIVATION, TAPS, INT)
def pad(x: Any, y: Any, taps: Taps, threads: int, share: Share) -> None:
    """Write y[h, w] = x[h − top, w − left], 0 where that is outside x; y is dense.

    `top` and `left` are the pads of the window.
    """
    N, OH, OW, C = y.shape
    H, W = x.shape[1], x.shape[2]
    rows = N * OH
    left = taps.left
    start, stop = min(OW, max(0, left)), max(0, min(OW, left + W))
    for row in range(*part_of(rows, share, threads)):
        n, oh = row // OH, row % OH
        h = oh - taps.top
        if h < 0 or h >= H or start >= stop:
            zero_run(at(y, n, oh, 0), OW * C)
        else:
            zero_run(at(y, n, oh, 0), start * C)
            if x.strides[2] == 4 * C:
                copy_run(at(x, n, h, start - left), at(y, n, oh, start), (stop - start) * C)
            else:
                for ow in range(start, stop):
                    copy_run(at(x, n, h, ow - left), at(y, n, oh, ow), C)
            zero_run(at(y, n, oh, stop), (OW - stop) * C)
