"""Direct convolution, channels last: a tile of output pixels × output channels stays in registers.

    y[n, oh, ow, o]  = Σ_{i, j, c}  x[n, oh·sh + i·dh, ow·sw + j·dw, c] · w[o, c, i, j]  +  b[o]

Each scalar of x is broadcast against a vector of output channels, so x is read where it lies.  Padding is
laid out in memory beforehand (`pad`).  The input gradient of a stride-1 convolution is the same sum over
the padded output gradient with flipped, transposed weights; the others scatter `columns` (`col2im`).
Every output is one chain of multiply-adds in the order (i, j, c), whatever tile it falls in, so results
do not depend on thread count, batch or tile size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .emit import LANES, TILE_ROWS
from .jit import ACTIVATION, DENSE, FLOAT, INT, device_function, kernel
from .memory import aligned
from .rectifier import GATE, MASK, Gate, clip, gated
from .simd import above, address_of, at, broadcast, keep_rolled, load, load_some, store_bits, store_some
from .taps import TAPS, Taps
from .tile import TILE_CHANNELS, TILE_FLOATS, tile_store, tile_update, tile_zeros
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


def _tile_of(rows: int) -> Any:
    @device_function
    def tile(
        x: int, pixel: int, taps_h: int, step_h: int, taps_w: int, step_w: int, run: int, w: int, out: int
    ) -> None:
        t = tile_zeros(rows)
        for i in range(taps_h):
            for j in range(taps_w):
                a = x + i * step_h + j * step_w
                for _ in range(run):
                    keep_rolled()
                    t = tile_update(t, a, pixel, w)
                    a += 4
                    w += 4 * TILE_CHANNELS
        tile_store(t, out)

    return tile


@device_function
def _no_tile(
    n: int, x: int, pixel: int, taps_h: int, step_h: int, taps_w: int, step_w: int, run: int, w: int, out: int
) -> None:
    """The end of the chain below; a tile has at least one row."""


def _tile_up_to(rows: int) -> Any:
    """The tiles of 1 … `rows` rows as a chain of if/else, so that each has its own machine code."""
    if rows == 0:
        return _no_tile
    exactly, fewer = _tile_of(rows), _tile_up_to(rows - 1)

    @device_function
    def tile(
        n: int,
        x: int,
        pixel: int,
        taps_h: int,
        step_h: int,
        taps_w: int,
        step_w: int,
        run: int,
        w: int,
        out: int,
    ) -> None:
        if n == rows:
            exactly(x, pixel, taps_h, step_h, taps_w, step_w, run, w, out)
        else:
            fewer(n, x, pixel, taps_h, step_h, taps_w, step_w, run, w, out)

    return tile


_tile = _tile_up_to(TILE_ROWS)


# The functions below take numbers, not arrays: an array that is handed on has its references counted, by
# atomic instructions on a line that all threads share.


@device_function
def _tiles(N: int, OH: int, OW: int, O: int) -> int:
    """How many tiles an output (N, OH, OW, O) is computed in."""
    return N * OH * ((OW + TILE_ROWS - 1) // TILE_ROWS) * ((O + TILE_CHANNELS - 1) // TILE_CHANNELS)


@device_function
def _locate(q: int, N: int, OH: int, OW: int) -> Any:
    """Tile q: its block of channels, n, oh, first ow, and number of pixels.

    Blocks are outermost, so that a thread walks the whole image with one block of weights in its cache.
    """
    tiles = (OW + TILE_ROWS - 1) // TILE_ROWS
    row, tile = q // tiles, q % tiles
    image, oh = row // OH, row % OH
    first = OW * tile // tiles
    return image // N, image % N, oh, first, OW * (tile + 1) // tiles - first


@device_function
def _convolve(
    count: int, x: int, line: int, pixel: int, I: int, taps: Taps, w: int, block: int, out: int
) -> None:
    """The plain sums of `count` pixels to `out`; x is their first tap, `line` and `pixel` its strides."""
    taps_w, step_w, run = taps.columns, taps.dilation_w * pixel, I
    if step_w == 4 * I:  # the taps of one row lie side by side in memory: one long run
        taps_w, run = 1, I * taps.columns
    w += block * 4 * taps.rows * taps.columns * I * TILE_CHANNELS
    _tile(count, x, taps.stride_w * pixel, taps.rows, taps.dilation_h * line, taps_w, step_w, run, w, out)


@kernel(ACTIVATION, DENSE, DENSE, ACTIVATION, ACTIVATION, MASK, DENSE, TAPS, FLOAT, FLOAT, INT)
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
    threads: int,
) -> None:
    """y = clip(conv(x, w) + b + r, lo, hi), and the bit lo < · < hi of each unit to mask.

    r and mask may be empty.  w from `pack`; b padded with 0 to whole tiles; scratch: TILE_FLOATS a thread.
    """
    N, OH, OW, O = y.shape
    I = x.shape[3]
    low, high = broadcast(lo), broadcast(hi)
    tiles = _tiles(N, OH, OW, O)
    for t in prange(threads):
        s = address_of(scratch) + 4 * t * TILE_FLOATS
        for q in range(tiles * t // threads, tiles * (t + 1) // threads):
            block, n, oh, first, count = _locate(q, N, OH, OW)
            corner = at(x, n, oh * taps.stride_h, first * taps.stride_w)
            _convolve(count, corner, x.strides[1], x.strides[2], I, taps, address_of(w), block, s)
            c0 = block * TILE_CHANNELS
            for i in range(count):
                for c in range(c0, min(O, c0 + TILE_CHANNELS), LANES):
                    v = load(s + 4 * (i * TILE_CHANNELS + c - c0)) + load(address_of(b) + 4 * c)
                    if r.size:
                        v = v + load_some(at(r, n, oh, first + i) + 4 * c, O - c)
                    if mask.size:
                        bits = above(v, low) & above(high, v)
                        store_bits(at(mask, n, oh, first + i) + c // 8, bits, O - c)
                    store_some(at(y, n, oh, first + i) + 4 * c, clip(v, low, high), O - c)


@kernel(ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, DENSE, TAPS, INT)
def conv_bwd(
    gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, scratch: Any, taps: Taps, threads: int
) -> None:
    """gx = conv(gy, w), added to gx with `accumulate`; of that, what passes the gate of gx's own rectifier.

    gy is padded to the full correlation; w from `pack` of the flipped, transposed weights.
    """
    N, H, W, C = gx.shape
    O = gy.shape[3]
    targets = N // max(1, mask.shape[0])
    tiles = _tiles(N, H, W, C)
    for t in prange(threads):
        s = address_of(scratch) + 4 * t * TILE_FLOATS
        for q in range(tiles * t // threads, tiles * (t + 1) // threads):
            block, n, h, first, count = _locate(q, N, H, W)
            _convolve(
                count, at(gy, n, h, first), gy.strides[1], gy.strides[2], O, taps, address_of(w), block, s
            )
            c0 = block * TILE_CHANNELS
            for i in range(count):
                m = at(mask, n // targets, h, first + i)
                for c in range(c0, min(C, c0 + TILE_CHANNELS), LANES):
                    v = load(s + 4 * (i * TILE_CHANNELS + c - c0))
                    to = at(gx, n, h, first + i) + 4 * c
                    if accumulate:
                        v = v + load_some(to, C - c)
                    store_some(to, gated(v, gate, m + c // 8, C - c), C - c)


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
