"""The kernels of `pool.py` on a card.

A thread computes some channels of one output pixel: forward of a window, backward of a pixel of gx.  A window
with many taps, as in a global pool, is computed by a block.  Its threads share the taps, and a tree combines
their results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, float32, int32, int64

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, INT
from .codegen.jit_cuda import (
    SIMULATED,
    CudaKernel,
    block_kernel,
    device_function,
    kernel,
    specialised,
)
from .codegen.simd_cuda import at_pixel, load_bytes, quotient, store_bytes, targets_of, write_gradient
from .eights_cuda import all_in_fours, eights_of, epilogue_bwd, load_eight_of, write_eight
from .pool import SWITCHES_U8, SWITCHES_U32
from .taps import TAPS, Taps
from .taps_cuda import strands, strands_of, taps_across, taps_down, windows_across, windows_down

#: A window with more taps is computed by a block.
_LARGE = 25
#: Neighbouring channels of such a block, and the threads that share one channel.
ACROSS, SHARES = (2, 2) if SIMULATED else (8, 64)
THREADS = ACROSS * SHARES


def is_large(taps: Taps) -> bool:
    return taps.rows * taps.columns > _LARGE


def blocks_of(x: Any, y: Any, *_: Any) -> tuple[int, ...]:
    N, OH, OW, C = y.shape
    return (int(N * OH * OW * (-(-C // ACROSS))),)


@device_function
def place(block: int, shape: Any) -> Any:
    """n, oh, ow and the first channel of a block of y (N, OH, OW, C)."""
    across = (shape[3] + ACROSS - 1) // ACROSS
    n, oh, ow = at_pixel(block // across, shape[1], shape[2])
    return n, oh, ow, block % across * ACROSS


@device_function
def _exceeds(a: Any, b: Any) -> Any:
    """Whether a and not b is the maximum: a > b, or a is NaN and b is not."""
    return a > b or (math.isnan(a) and not math.isnan(b))


@device_function
def _first_maximum(x: Any, n: int, c: int, down: Any, across: Any, taps: Taps) -> Any:
    """The maximum of a window, and the tap of the first one.

    down, across: as `taps_down` and `taps_across` find them.
    """
    (h, i0, i1), (w, j0, j1) = down, across
    best = x[n, h + i0 * taps.dilation_h, w + j0 * taps.dilation_w, c]
    winner = i0 * taps.columns + j0
    for i in range(i0, i1):
        for j in range(j0, j1):
            v = x[n, h + i * taps.dilation_h, w + j * taps.dilation_w, c]
            if _exceeds(v, best):
                best, winner = v, i * taps.columns + j
    return best, winner


@device_function
def _sum_of_won(
    gy: Any, switches: Any, n: int, sharing: int, c: int, down: Any, across: Any, taps: Taps
) -> Any:
    """The sum of gy of the windows that a pixel of gx won.

    down, across: as `windows_down` and `windows_across` find them.  sharing: rows of gy for each of switches.
    """
    (count_h, oh, step_oh, i, step_i), (count_w, ow, step_ow, j, step_j) = down, across
    v = np.float32(0)
    for p in range(count_h):
        row, first_tap = oh + p * step_oh, (i + p * step_i) * taps.columns + j
        for q in range(count_w):
            column = ow + q * step_ow
            if switches[n // sharing, row, column, c] == first_tap + q * step_j:
                v += gy[n, row, column, c]
    return v


def _maxpool_fwd(x: Any, y: Any, switches: Any, taps: Taps) -> None:
    """Write the maximum of each window to y, the tap of the first maximum to switches.

    Both are (N, OH, OW, C).  Every window must hold a pixel.  The first NaN of a window wins.
    """
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    apart = strands(C)
    for unit in range(cuda.grid(1), N * OH * OW * apart, cuda.gridsize(1)):
        n, oh, ow = at_pixel(unit // apart, OH, OW)
        down, across = taps_down(taps, oh, H), taps_across(taps, ow, W)
        for c in range(unit % apart, C, apart):
            best, winner = _first_maximum(x, n, c, down, across, taps)
            y[n, oh, ow, c], switches[n, oh, ow, c] = best, winner


def _large_maxpool_fwd(x: Any, y: Any, switches: Any, taps: Taps) -> None:
    """`_maxpool_fwd` for windows with many taps."""
    bests, winners = cuda.shared.array(THREADS, float32), cuda.shared.array(THREADS, int64)
    H, W = x.shape[1], x.shape[2]
    across, share = cuda.threadIdx.x, cuda.threadIdx.y
    n, oh, ow, first = place(cuda.blockIdx.x, y.shape)
    # A thread beyond the last channel computes the last, and does not write it.
    c = min(first + across, y.shape[3] - 1)
    h, i0, i1 = taps_down(taps, oh, H)
    w, j0, j1 = taps_across(taps, ow, W)
    best = x[n, h + i0 * taps.dilation_h, w + j0 * taps.dilation_w, c]
    winner = i0 * taps.columns + j0
    for k in range(share, (i1 - i0) * (j1 - j0), SHARES):
        i, j = i0 + k // (j1 - j0), j0 + k % (j1 - j0)
        v = x[n, h + i * taps.dilation_h, w + j * taps.dilation_w, c]
        if _exceeds(v, best):
            best, winner = v, i * taps.columns + j
    at = share * ACROSS + across
    bests[at], winners[at] = best, winner
    step = SHARES // 2
    while step:
        cuda.syncthreads()
        if share < step:
            v, tap = bests[at + step * ACROSS], winners[at + step * ACROSS]
            if _exceeds(v, best) or (tap < winner and not _exceeds(best, v)):
                best, winner = v, tap
                bests[at], winners[at] = best, winner
        step //= 2
    if share == 0 and first + across == c:
        y[n, oh, ow, c], switches[n, oh, ow, c] = best, winner


def _maxpool_bwd(gy: Any, switches: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps) -> None:
    """Write to each pixel of gx the sum of gy of the windows that it won, or add it with `accumulate`."""
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, switches), targets_of(gy, mask)
    apart = strands(C)
    for unit in range(cuda.grid(1), N * H * W * apart, cuda.gridsize(1)):
        n, h, w = at_pixel(unit // apart, H, W)
        down, across = windows_down(taps, h, OH), windows_across(taps, w, OW)
        for c in range(unit % apart, C, apart):
            v = _sum_of_won(gy, switches, n, sharing, c, down, across, taps)
            write_gradient(v, c, gate, accumulate, gx, (n, h, w), mask, (n // targets, h, w))


@device_function
def _keep_larger(v: Any, tap: int, best: Any, winner: Any) -> None:
    """Keep eight channels of v, and their tap, where they exceed the best so far."""
    for k in range(8):
        if _exceeds(v[k], best[k]):
            best[k], winner[k] = v[k], tap


@device_function
def _add_where_won(v: Any, first: int, word: int, tap: int, total: Any) -> None:
    """Add four channels of v, from `first` on, where their byte of a word of switches is this tap."""
    for k in range(4):
        if (word >> (8 * k)) & 255 == tap:
            total[first + k] += v[first + k]


@kernel(
    *(ACTIVATION, ACTIVATION, SWITCHES_U8, TAPS),
    units=lambda x, y, *_: eights_of(y),
)
def _maxpool_fwd_eights(x: Any, y: Any, switches: Any, taps: Taps) -> None:
    """`_maxpool_fwd` where the number of channels is a multiple of eight and arrays are aligned."""
    best, v = cuda.local.array(8, float32), cuda.local.array(8, float32)
    winner = cuda.local.array(8, int32)
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    eights = C // 8
    for unit in range(cuda.grid(1), N * OH * OW * eights, cuda.gridsize(1)):
        pixel = quotient(unit, eights)
        c = (unit - pixel * eights) * 8
        n, oh, ow = at_pixel(pixel, OH, OW)
        h, i0, i1 = taps_down(taps, oh, H)
        w, j0, j1 = taps_across(taps, ow, W)
        load_eight_of(x, n, h + i0 * taps.dilation_h, w + j0 * taps.dilation_w, c, best, 1)
        for k in range(8):
            winner[k] = i0 * taps.columns + j0
        for i in range(i0, i1):
            for j in range(j0, j1):
                load_eight_of(x, n, h + i * taps.dilation_h, w + j * taps.dilation_w, c, v, 1)
                _keep_larger(v, i * taps.columns + j, best, winner)
        write_eight(best, n, oh, ow, c, y, 1)
        for half in range(0, 8, 4):
            word = winner[half] | winner[half + 1] << 8 | winner[half + 2] << 16 | winner[half + 3] << 24
            store_bytes(int32(word), switches, n, oh, ow, c + half)


@kernel(
    *(ACTIVATION, SWITCHES_U8, MASK, GATE, ACTIVATION, INT, TAPS),
    units=lambda *args: eights_of(args[4]),
)
def _maxpool_bwd_eights(
    gy: Any, switches: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps
) -> None:
    """`_maxpool_bwd` where the number of channels is a multiple of eight and arrays are aligned."""
    total, v = cuda.local.array(8, float32), cuda.local.array(8, float32)
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    sharing, eights = targets_of(gy, switches), C // 8
    for unit in range(cuda.grid(1), N * H * W * eights, cuda.gridsize(1)):
        pixel = quotient(unit, eights)
        c = (unit - pixel * eights) * 8
        n, h, w = at_pixel(pixel, H, W)
        count_h, oh, step_oh, i, step_i = windows_down(taps, h, OH)
        count_w, ow, step_ow, j, step_j = windows_across(taps, w, OW)
        for k in range(8):
            total[k] = np.float32(0)
        for p in range(count_h):
            row = oh + p * step_oh
            for q in range(count_w):
                column = ow + q * step_ow
                tap = int32((i + p * step_i) * taps.columns + j + q * step_j)
                low = load_bytes(switches, quotient(n, sharing), row, column, c)
                high = load_bytes(switches, quotient(n, sharing), row, column, c + 4)
                load_eight_of(gy, n, row, column, c, v, 1)
                _add_where_won(v, 0, low, tap, total)
                _add_where_won(v, 4, high, tap, total)
        epilogue_bwd(total, n, h, w, c, mask, gate, gx, accumulate, 1)


def _by_eights(switches: Any, *arrays: Any) -> bool:
    eights = all(x.shape[3] % 8 == 0 for x in arrays) and all_in_fours(*arrays)
    return bool(eights) and switches.itemsize == 1 and switches.is_aligned(4)


def _maxpool_kernels(name: str, switches: Any) -> tuple[CudaKernel, CudaKernel, CudaKernel]:
    """Make the kernels for switches of this type: forward, forward of large windows, backward."""
    given = ACTIVATION, ACTIVATION, switches, TAPS
    small, large, back = specialised(name, (_maxpool_fwd, _large_maxpool_fwd, _maxpool_bwd))
    target = MASK, GATE, ACTIVATION, INT
    return (
        kernel(*given, units=lambda x, y, *_: strands_of(y))(small),
        block_kernel(*given, threads=(ACROSS, SHARES), blocks=blocks_of)(large),
        kernel(ACTIVATION, switches, *target, TAPS, units=lambda *args: strands_of(args[4]))(back),
    )


KERNELS = {"u8": _maxpool_kernels("u8", SWITCHES_U8), "u32": _maxpool_kernels("u32", SWITCHES_U32)}


def _maxpool_of(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    small, large, plain = KERNELS[name]

    def forward(x: Any, y: Any, switches: Any, taps: Taps) -> None:
        fast = _maxpool_fwd_eights if _by_eights(switches, x, y) else small
        (large if is_large(taps) else fast)(x, y, switches, taps)

    def backward(gy: Any, switches: Any, mask: Any, gate: Gate, gx: Any, *rest: Any) -> None:
        fast = _maxpool_bwd_eights if _by_eights(switches, gy, gx) else plain
        fast(gy, switches, mask, gate, gx, *rest)

    return forward, backward


maxpool_fwd_u8, maxpool_bwd_u8 = _maxpool_of("u8")
maxpool_fwd_u32, maxpool_bwd_u32 = _maxpool_of("u32")
