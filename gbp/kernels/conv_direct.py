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
from .codegen.tile import TILE_CHANNELS, TILE_FLOATS, blocks_in, first_pixel, multiply_tile, tiles_of
from .codegen.work import cell_of, copy_run, next_cell, part_of, targets_of, zero_run
from .epilogue import Forward, Plane, backward, finish, pixel_of, plane_of, prefetch
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


# The functions below take a Plane, not an array.  Numba would count the references of an array argument with
# atomic instructions, on a cache line that all threads share.


@device_function
def _convolve(count: int, channels: int, corner: int, x: Plane, taps: Taps, w: int, sums: int) -> None:
    """Write the plain sums of `count` pixels.  corner: address of the first tap of the first of them."""
    taps_w, step_w, run = taps.columns, taps.dilation_w * x.pixel, x.C
    if step_w == 4 * x.C:  # the taps of one row are adjacent in memory, so they are one run
        taps_w, run = 1, x.C * taps.columns
    pixel, line = taps.stride_w * x.pixel, taps.dilation_h * x.line
    multiply_tile(count, channels, corner, pixel, taps.rows, line, taps_w, step_w, run, w, sums)


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
def _compute(
    x: Plane, N: int, w: int, taps: Taps, by_rows: int, t: int, threads: int, sums: int, end: Any
) -> None:
    """Compute part t of the outputs.  sums: the address of TILE_FLOATS."""
    H, W, C = end.out.H, end.out.W, end.out.C
    across, blocks = tiles_of(W, taps.stride_w * x.pixel), blocks_in(C)
    tiles, block_bytes = N * H * across, 4 * taps.rows * taps.columns * x.C * TILE_CHANNELS
    # Each tile runs through as many blocks of weights as a core keeps, before the next tile does.
    together = max(1, CACHED // block_bytes)
    start, stop, first_block, last_block, step = _share(tiles, blocks, together, by_rows, t, threads)
    for group in range(first_block, last_block, step):
        low, high = _own_tiles(start, stop, tiles, group, by_rows)
        n, h, tile = cell_of(low, H, across)
        for _ in range(low, high):
            first = first_pixel(tile, across, W)
            count = first_pixel(tile + 1, across, W) - first
            corner = pixel_of(x, n, h * taps.stride_h, first * taps.stride_w)
            for block in range(group, min(group + step, last_block)):
                c0 = block * TILE_CHANNELS
                prefetch(count, c0, n, h, first, end)
                _convolve(count, C - c0, corner, x, taps, w + block * block_bytes, sums)
                finish(sums, 4 * TILE_CHANNELS, count, c0, n, h, first, end)
            n, h, tile = next_cell(n, h, tile, H, across)


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

    Parameters
    ----------
    w, b
        Weights that `pack` packed; the bias, padded with 0 to whole tiles.
    scratch
        TILE_FLOATS for each thread.
    by_rows
        1 if threads share the rows of y; 0 if they share its channels, for few tiles.
    x, r, y, mask, taps, lo, hi, threads, share
        As in all kernels (`gbp.kernels`).
    """
    sums = address_of(scratch) + 4 * share.slot * TILE_FLOATS
    end = Forward(plane_of(y), plane_of(r), plane_of(mask), address_of(b), lo, hi)
    for t in range(share.first, share.last):
        _compute(plane_of(x), len(y), address_of(w), taps, by_rows, t, threads, sums, end)


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

    Parameters
    ----------
    gy
        The gradient of y, padded to the full correlation.
    w
        The flipped, transposed weights, which `pack` packed.
    scratch, by_rows
        As in `conv_fwd`.
    mask, gate, gx, accumulate, taps, threads, share
        As in all kernels (`gbp.kernels`).
    """
    sums = address_of(scratch) + 4 * share.slot * TILE_FLOATS
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gx, mask), gate)
    for t in range(share.first, share.last):
        _compute(plane_of(gy), len(gx), address_of(w), taps, by_rows, t, threads, sums, end)


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
