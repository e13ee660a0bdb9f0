"""Convolution on a card without tensor cores: a matrix product whose left factor is never stored.

    y[p, o] = Σ_k X[p, k] · w[k, o],   k = (i·KW + j)·C + c,   X[p, k] = x[n, oh·sh + i·dh − top, …, c] or 0

A block computes a tile of pixels × channels, and each thread holds 8 × 8 of its sums in registers.  A step
multiplies DEPTH columns of X with as many rows of w.  They are in one half of shared memory; meanwhile the
values of the next step are loaded, and then stored in the other half.  At the end the sums pass through
shared memory again.  So a thread gets eight neighbouring channels of a pixel, whose bits fill a byte of the
mask, and neighbouring threads write neighbouring addresses.

The backward pass is the same product of gy and weights whose input and output channels are exchanged and
whose taps are in reverse order.  A stride divides the pixels of gx into phases, each with its own taps
(`ops.conv.algorithms_cuda`).

The order of a sum does not depend on the tile.  So the size of the tile changes no bit.

Source: implicit GEMM as in cuDNN (Chetlur et al. 2014).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32, int32
from numpy.typing import NDArray

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT
from .codegen.jit_cuda import SIMULATED, CudaKernel, block_kernel, specialised
from .codegen.simd_cuda import (
    add_products,
    at_pixel,
    load_channel,
    load_channels,
    load_eight,
    load_four,
    store_four,
)
from .eights_cuda import all_in_fours, eight_of, epilogue_bwd, epilogue_fwd
from .taps import TAPS, Taps

#: Columns of X that a step multiplies.
DEPTH = 8
_FOURS = DEPTH // 4
_ONE_THREAD = 64  # sums


class Tile(NamedTuple):
    """The pixels and channels that a block computes."""

    pixels: int
    channels: int

    @property
    def threads(self) -> int:
        return self.pixels * self.channels // _ONE_THREAD

    @property
    def shared_bytes(self) -> int:
        """Room for two halves of both factors, or for the sums of a quarter of the pixels."""
        return 4 * max(2 * DEPTH * (self.pixels + self.channels), self.pixels // 4 * self.channels)


#: The tiles, the largest first.  Small tiles waste less where there are few pixels or channels.
TILES = (Tile(8, 8),) if SIMULATED else (Tile(128, 128), Tile(128, 64), Tile(64, 64), Tile(64, 32))
#: Blocks that keep a large card busy.
_ENOUGH_BLOCKS = 2 * 132


def pack(w: NDArray[Any]) -> NDArray[np.float32]:
    """Pack weights (O, C, KH, KW) for the kernels: (KH, KW, C, O rounded up to fours), flat."""
    O, C, KH, KW = w.shape
    packed = np.zeros((KH, KW, C, -(-O // 4) * 4), np.float32)
    packed[..., :O] = w.transpose(2, 3, 1, 0)
    return packed.reshape(-1)


def tile_for(pixels: int, channels: int) -> Tile:
    """The largest tile that is not mostly empty and leaves enough blocks for the card, or the smallest."""
    for tile in TILES:
        across = -(-channels // tile.channels)
        blocks = -(-pixels // tile.pixels) * across
        if blocks >= _ENOUGH_BLOCKS and 4 * channels > 3 * (across * tile.channels) - tile.channels:
            return tile
    return TILES[-1]


#: Sizes of the tile that a copy of the functions below is made for.  `_kernels` sets them.
PIXELS = CHANNELS = THREADS = ACROSS = QUARTER = 0
X_FOURS = X_OWN = X_PIXELS = X_HALF = W_FOURS = W_OWN = W_HALF = W_START = 0


def _locate(pixels: Any, taps: Taps, plane: Any) -> None:
    """Write n, h, w of the first tap of each of this thread's pixels."""
    for q in range(X_FOURS):
        p = cuda.blockIdx.x * PIXELS + (q * THREADS + cuda.threadIdx.x) // _FOURS
        n, oh, ow = at_pixel(p, plane[0], plane[1])
        pixels[3 * q], pixels[3 * q + 1], pixels[3 * q + 2] = (
            n,
            oh * taps.stride_h - taps.top,
            ow * taps.stride_w - taps.left,
        )


def _fetch(
    x: Any, w: Any, taps: Taps, O4: int, pixels: Any, i: int, j: int, c0: int, fours: int, xs: Any, ws: Any
) -> None:  # fmt: skip
    """Load a thread's share of a step into xs (four channels of a pixel each) and ws (four of a row of w)."""
    t = cuda.threadIdx.x
    C = x.shape[3]
    for q in range(X_FOURS):
        c = c0 + (q * THREADS + t) % _FOURS * 4
        n, h, v = (
            pixels[3 * q],
            pixels[3 * q + 1] + i * taps.dilation_h,
            pixels[3 * q + 2] + j * taps.dilation_w,
        )
        inside = n < x.shape[0] and h >= 0 and h < x.shape[1] and v >= 0 and v < x.shape[2]
        if fours and inside and c < C:
            xs[4 * q], xs[4 * q + 1], xs[4 * q + 2], xs[4 * q + 3] = load_channels(x, n, h, v, c)
        else:
            for k in range(4):
                xs[4 * q + k] = load_channel(x, n, h, v, c + k) if inside and c + k < C else np.float32(0)
    for q in range(W_FOURS):
        unit = q * THREADS + t
        k, o = c0 + unit // (CHANNELS // 4), cuda.blockIdx.y * CHANNELS + unit % (CHANNELS // 4) * 4
        if k < C and o < O4:
            at = ((i * taps.columns + j) * C + k) * O4 + o
            ws[4 * q], ws[4 * q + 1], ws[4 * q + 2], ws[4 * q + 3] = load_four(w, at)
        else:
            for e in range(4):
                ws[4 * q + e] = np.float32(0)


def _store(xs: Any, ws: Any, shared: Any, half: int) -> None:
    """Store the loaded values in one half of the shared memory: X by columns, w by rows."""
    t = cuda.threadIdx.x
    for q in range(X_FOURS):
        unit = q * THREADS + t
        for k in range(4):
            shared[half * X_HALF + (unit % _FOURS * 4 + k) * PIXELS + unit // _FOURS] = xs[4 * q + k]
    for q in range(W_FOURS):
        four = ws[4 * q], ws[4 * q + 1], ws[4 * q + 2], ws[4 * q + 3]
        store_four(four, shared, W_START + half * W_HALF + 4 * (q * THREADS + t))


def _multiply(shared: Any, half: int, a: Any, b: Any, own: Any) -> None:
    """Multiply one step: own[i, j] += Σ_k X[p_i, k] · w[k, o_j].

    The eight p and the eight o are two groups of four each, half a tile apart.
    """
    t = cuda.threadIdx.x
    x_at, w_at = half * X_HALF + t // ACROSS * 4, W_START + half * W_HALF + t % ACROSS * 4
    for k in range(DEPTH):
        load_eight(shared, x_at + k * PIXELS, PIXELS // 2, a)
        load_eight(shared, w_at + k * CHANNELS, CHANNELS // 2, b)
        add_products(a, b, own)


def _gather(own: Any, shared: Any, quarter: int) -> None:
    """Store the sums of a quarter of the pixels in shared memory, pixel by pixel."""
    t = cuda.threadIdx.x
    first = t // ACROSS * 4
    for i in range(8):
        p = i // 4 * (PIXELS // 2) + first + i % 4
        if p // QUARTER == quarter:
            for j in range(8):
                o = j // 4 * (CHANNELS // 2) + t % ACROSS * 4 + j % 4
                shared[p % QUARTER * CHANNELS + o] = own[8 * i + j]


def _product(
    x: Any,
    w: Any,
    taps: Taps,
    O4: int,
    plane: Any,
    fours: int,
    shared: Any,
    own: Any,
) -> None:
    xs, ws = cuda.local.array(X_OWN, float32), cuda.local.array(W_OWN, float32)
    pixels = cuda.local.array(X_PIXELS, int32)
    a, b = cuda.local.array(8, float32), cuda.local.array(8, float32)
    for i in range(_ONE_THREAD):
        own[i] = np.float32(0)
    C = x.shape[3]
    steps = taps.rows * taps.columns * ((C + DEPTH - 1) // DEPTH)
    i, j, c = 0, 0, 0
    _locate(pixels, taps, plane)
    if steps:
        _fetch(x, w, taps, O4, pixels, i, j, c, fours, xs, ws)
        _store(xs, ws, shared, 0)
    cuda.syncthreads()
    for step in range(steps):
        c += DEPTH
        if c >= C:
            c = 0
            j += 1
            if j == taps.columns:
                j = 0
                i += 1
        if step + 1 < steps:
            _fetch(x, w, taps, O4, pixels, i, j, c, fours, xs, ws)
        _multiply(shared, step % 2, a, b, own)
        if step + 1 < steps:
            _store(xs, ws, shared, (step + 1) % 2)
        cuda.syncthreads()


def _conv_fwd(
    x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, taps: Taps, lo: float, hi: float,
    x_fours: int, y_fours: int,
) -> None:  # fmt: skip
    """See `conv_fwd`.  The flags: whether x is read, and r and y are read and written, by fours."""
    shared = cuda.shared.array(0, float32, alignment=16)
    own, eight = cuda.local.array(_ONE_THREAD, float32), cuda.local.array(8, float32)
    N, OH, OW, O = y.shape
    _product(x, w, taps, (O + 3) // 4 * 4, (OH, OW), x_fours, shared, own)
    for quarter in range(4):
        _gather(own, shared, quarter)
        cuda.syncthreads()
        for unit in range(cuda.threadIdx.x, QUARTER * ACROSS, THREADS):
            p = cuda.blockIdx.x * PIXELS + quarter * QUARTER + unit // ACROSS
            o = cuda.blockIdx.y * CHANNELS + unit % ACROSS * 8
            n, h, v = at_pixel(p, OH, OW)
            if n < N and o < O:
                eight_of(shared, unit * 8, eight)
                epilogue_fwd(eight, n, h, v, o, b, r, y, mask, lo, hi, y_fours)
        cuda.syncthreads()


def _conv_bwd(
    gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps,
    gy_fours: int, gx_fours: int,
) -> None:  # fmt: skip
    """See `conv_bwd`.  The flags: whether gy is read, and gx is read and written, by fours."""
    shared = cuda.shared.array(0, float32, alignment=16)
    own, eight = cuda.local.array(_ONE_THREAD, float32), cuda.local.array(8, float32)
    N, H, W, C = gx.shape
    _product(gy, w, taps, (C + 3) // 4 * 4, (H, W), gy_fours, shared, own)
    for quarter in range(4):
        _gather(own, shared, quarter)
        cuda.syncthreads()
        for unit in range(cuda.threadIdx.x, QUARTER * ACROSS, THREADS):
            p = cuda.blockIdx.x * PIXELS + quarter * QUARTER + unit // ACROSS
            c = cuda.blockIdx.y * CHANNELS + unit % ACROSS * 8
            n, h, v = at_pixel(p, H, W)
            if n < N and c < C:
                eight_of(shared, unit * 8, eight)
                epilogue_bwd(eight, n, h, v, c, mask, gate, gx, accumulate, gx_fours)
        cuda.syncthreads()


_PARTS = _locate, _fetch, _store, _multiply, _gather, _product


def _kernels(tile: Tile) -> tuple[CudaKernel, CudaKernel]:
    """Make the two kernels that compute such tiles."""
    name = f"{tile.pixels}x{tile.channels}"
    x_fours, w_fours = tile.pixels * _FOURS // tile.threads, tile.channels * DEPTH // 4 // tile.threads
    constants = {
        "PIXELS": tile.pixels,
        "CHANNELS": tile.channels,
        "THREADS": tile.threads,
        "ACROSS": tile.channels // 8,
        "QUARTER": tile.pixels // 4,
        "X_FOURS": x_fours,
        "X_OWN": 4 * x_fours,
        "X_PIXELS": 3 * x_fours,
        "X_HALF": DEPTH * tile.pixels,
        "W_FOURS": w_fours,
        "W_OWN": 4 * w_fours,
        "W_HALF": DEPTH * tile.channels,
        "W_START": 2 * DEPTH * tile.pixels,
    }
    conv_fwd, conv_bwd = specialised(name, (_conv_fwd, _conv_bwd), _PARTS, constants)

    def blocks(*args: Any) -> tuple[int, int]:
        N, H, W, C = args[4].shape
        return -(-N * H * W // tile.pixels), -(-C // tile.channels)

    forward = ACTIVATION, DENSE, DENSE, ACTIVATION, ACTIVATION, MASK, TAPS, FLOAT, FLOAT, INT, INT
    backward = ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, TAPS, INT, INT
    threads, nbytes = (tile.threads,), tile.shared_bytes
    return (
        block_kernel(*forward, threads=threads, blocks=blocks, shared_bytes=nbytes)(conv_fwd),
        block_kernel(*backward, threads=threads, blocks=blocks, shared_bytes=nbytes)(conv_bwd),
    )


KERNELS = {tile: _kernels(tile) for tile in TILES}


def _tile_of(y: Any) -> Tile:
    N, H, W, C = y.shape
    return tile_for(N * H * W, C)


def conv_fwd(x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, taps: Taps, lo: float, hi: float) -> None:
    """Write y = clip(conv(x, w) + b + r, lo, hi) and the bit lo < · < hi of each unit to mask.

    w is packed by `pack`; b (O,); r and mask may be empty.  Padding holds zeros.
    """
    kernel, _ = KERNELS[_tile_of(y)]
    kernel(x, w, b, r, y, mask, taps, lo, hi, all_in_fours(x), all_in_fours(y, r))


def conv_bwd(gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps) -> None:
    """Write conv(gy, w) to gx, or add it with `accumulate`; then apply the gate.

    w is packed by `pack` from the weights of the backward pass, and `taps` is its window.
    """
    _, kernel = KERNELS[_tile_of(gx)]
    kernel(gy, w, mask, gate, gx, accumulate, taps, all_in_fours(gy), all_in_fours(gx))
