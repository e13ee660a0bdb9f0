"""Direct convolution, channels last: a tile of output pixels × output channels stays in registers.

    y[n, oh, ow, o]  = Σ_{i, j, c}  x[n, oh·sh + i·dh, ow·sw + j·dw, c] · w[o, c, i, j]  +  b[o]

Each scalar of x is broadcast against a vector of output channels, so x is read where it lies.  Padding is
laid out in memory beforehand (`pad`).  The input gradient of a stride-1 convolution is the same sum over
the padded output gradient with flipped, transposed weights; the others multiply into columns, which
`columns.col2im` gathers.
Every output is one chain of multiply-adds in the order (i, j, c), whatever tile it falls in, so results
do not depend on thread count, batch or tile size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .ending import end_bwd, end_fwd
from .jit import ACTIVATION, DENSE, FLOAT, INT, device_function, kernel
from .memory import ALIGNMENT, aligned
from .rectifier import GATE, MASK, Gate
from .simd import address_of, at, expect_write
from .taps import TAPS, Taps
from .tile import TILE_CHANNELS, TILE_FLOATS, first_pixel, multiply_tile, tiles_of
from .views import copy_run, zero_run


def pack(w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights (O, I, KH, KW) as tiles read them: [⌈O / TILE_CHANNELS⌉][KH][KW][I][TILE_CHANNELS]."""
    O, I, KH, KW = w.shape
    blocks = -(-O // TILE_CHANNELS)
    packed = aligned((blocks, KH, KW, I, TILE_CHANNELS))
    packed.fill(0)
    for block in range(blocks):
        part = w[block * TILE_CHANNELS : (block + 1) * TILE_CHANNELS]
        packed[block, ..., : len(part)] = part.transpose(2, 3, 1, 0)
    return packed.reshape(-1)


# The functions below take numbers, not arrays: an array that is handed on has its references counted, by
# atomic instructions on a line that all threads share.


@device_function
def _locate(q: int, tiles: int, H: int, N: int) -> Any:
    """Tile q of an output as (tile of its row, row, n, block of channels).

    Blocks are outermost, so that a thread walks the image with one block of weights in its cache.
    """
    row = q // tiles
    image = row // H
    return q - row * tiles, row - image * H, image % N, image // N


@device_function
def _next(tile: int, h: int, n: int, block: int, tiles: int, H: int, N: int) -> Any:
    """The tile after this one; divisions would cost as much as a short reduction."""
    tile += 1
    if tile == tiles:
        tile, h = 0, h + 1
        if h == H:
            h, n = 0, n + 1
            if n == N:
                n, block = 0, block + 1
    return tile, h, n, block


@device_function
def _convolve(
    count: int, channels: int, x: int, line: int, pixel: int, I: int, taps: Taps, w: int, out: int
) -> None:
    """The plain sums of `count` pixels to `out`; x is their first tap, `line` and `pixel` its strides."""
    taps_w, step_w, run = taps.columns, taps.dilation_w * pixel, I
    if step_w == 4 * I:  # the taps of one row lie side by side in memory: one long run
        taps_w, run = 1, I * taps.columns
    pixel, line = taps.stride_w * pixel, taps.dilation_h * line
    multiply_tile(count, channels, x, pixel, taps.rows, line, taps_w, step_w, run, w, out)


@device_function
def _block_of(w: int, block: int, I: int, taps: Taps) -> int:
    return w + block * 4 * taps.rows * taps.columns * I * TILE_CHANNELS


@device_function
def _share(work: int, blocks: int, by_rows: int) -> Any:
    """(rounds, tiles a round): the threads part the tiles of each block by rows, or all tiles at once."""
    return (blocks, work) if by_rows else (1, work * blocks)


@device_function
def _expect_tile(out: int, pixel: int, count: int) -> None:
    """Have the lines of a tile's output on their way while its sums are computed."""
    for _ in range(count):
        for line in range(0, 4 * TILE_CHANNELS, ALIGNMENT):
            expect_write(out + line)
        out += pixel


@kernel(
    ACTIVATION, DENSE, DENSE, ACTIVATION, ACTIVATION, MASK, DENSE, TAPS, FLOAT, FLOAT, INT, INT,
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
) -> None:
    """y = clip(conv(x, w) + b + r, lo, hi), and the bit lo < · < hi of each unit to mask.

    r and mask may be empty.  w from `pack`; b padded with 0 to whole tiles; scratch: TILE_FLOATS a thread.
    `by_rows`: each thread takes its rows for all channels; else, where there are few tiles, its channels.
    """
    N, OH, OW, O = y.shape
    I = x.shape[3]
    tiles = tiles_of(OW, taps.stride_w * x.strides[2])
    rounds, work = _share(tiles * OH * N, (O + TILE_CHANNELS - 1) // TILE_CHANNELS, by_rows)
    for t in prange(threads):
        s = address_of(scratch) + 4 * t * TILE_FLOATS
        for k in range(rounds):
            tile, oh, n, block = _locate(k * work + work * t // threads, tiles, OH, N)
            for _ in range(work * t // threads, work * (t + 1) // threads):
                first = first_pixel(tile, tiles, OW)
                count = first_pixel(tile + 1, tiles, OW) - first
                corner = at(x, n, oh * taps.stride_h, first * taps.stride_w)
                _expect_tile(at(y, n, oh, first) + 4 * block * TILE_CHANNELS, y.strides[2], count)
                c0, wa = block * TILE_CHANNELS, _block_of(address_of(w), block, I, taps)
                _convolve(count, O - c0, corner, x.strides[1], x.strides[2], I, taps, wa, s)
                ra = at(r, n, oh, first) if r.size else 0
                ma = at(mask, n, oh, first) if mask.size else 0
                end_fwd(
                    s, 4 * TILE_CHANNELS, count, c0, O, address_of(b), lo, hi, ra, r.strides[2],
                    ma, mask.strides[2], at(y, n, oh, first), y.strides[2],
                )  # fmt: skip
                tile, oh, n, block = _next(tile, oh, n, block, tiles, OH, N)


@kernel(ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, DENSE, TAPS, INT, INT, calls=[multiply_tile])
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
) -> None:
    """gx = conv(gy, w), added to gx with `accumulate`; of that, what passes the gate of gx's own rectifier.

    gy is padded to the full correlation; w from `pack` of the flipped, transposed weights.
    """
    N, H, W, C = gx.shape
    O = gy.shape[3]
    targets = N // max(1, mask.shape[0])
    tiles = tiles_of(W, gy.strides[2])
    rounds, work = _share(tiles * H * N, (C + TILE_CHANNELS - 1) // TILE_CHANNELS, by_rows)
    for t in prange(threads):
        s = address_of(scratch) + 4 * t * TILE_FLOATS
        for k in range(rounds):
            tile, h, n, block = _locate(k * work + work * t // threads, tiles, H, N)
            for _ in range(work * t // threads, work * (t + 1) // threads):
                first = first_pixel(tile, tiles, W)
                count = first_pixel(tile + 1, tiles, W) - first
                corner = at(gy, n, h, first)
                _expect_tile(at(gx, n, h, first) + 4 * block * TILE_CHANNELS, gx.strides[2], count)
                c0, wa = block * TILE_CHANNELS, _block_of(address_of(w), block, O, taps)
                _convolve(count, C - c0, corner, gy.strides[1], gy.strides[2], O, taps, wa, s)
                end_bwd(
                    s, 4 * TILE_CHANNELS, count, c0, C, accumulate, gate.forward, gate.gradient,
                    at(mask, n // targets, h, first), mask.strides[2], at(gx, n, h, first), gx.strides[2],
                )  # fmt: skip
                tile, h, n, block = _next(tile, h, n, block, tiles, H, N)


@kernel(ACTIVATION, ACTIVATION, INT, INT, INT)
def pad(x: Any, y: Any, top: int, left: int, threads: int) -> None:
    """y[h, w] = x[h - top, w - left], 0 where that is outside x; negative pads crop.  y is dense."""
    N, OH, OW, C = y.shape
    H, W = x.shape[1], x.shape[2]
    rows = N * OH
    start, stop = min(OW, max(0, left)), max(0, min(OW, left + W))
    for t in prange(threads):
        for row in range(rows * t // threads, rows * (t + 1) // threads):
            n, oh = row // OH, row % OH
            h = oh - top
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
