"""The kernels of `average_pool.py` on a card, which share their work as those of `pool_cuda` do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32

from . import average_pool
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, INT
from .codegen.jit_cuda import block_kernel, device_function, device_function_of, kernel
from .codegen.simd_cuda import at_pixel, targets_of, write_gradient
from .pool_cuda import ACROSS, SHARES, THREADS, blocks_of, is_large, place
from .taps import TAPS, Taps
from .taps_cuda import inside, strands, strands_of, taps_across, taps_down, windows_across, windows_down

_counting = device_function_of(average_pool._counting)
_count = device_function_of(average_pool._count, inside=inside)
_all_count = device_function_of(average_pool._all_count)

_AVERAGES = ACTIVATION, ACTIVATION, TAPS, INT


def averagepool_fwd(x: Any, y: Any, taps: Taps, include_pad: int) -> None:
    """Write the average of each window to y (N, OH, OW, C).  Every divisor must be at least 1."""
    forward = _large_averagepool_fwd if is_large(taps) else _averagepool_fwd
    forward(x, y, taps, include_pad)


@device_function
def _divisor(oh: int, ow: int, H: int, W: int, taps: Taps, include_pad: int) -> Any:
    """How many taps of window (oh, ow) count."""
    rows, columns = _counting(taps, H, W, include_pad)
    return np.float32(_count(oh, rows) * _count(ow, columns))


@kernel(*_AVERAGES, units=lambda x, y, *_: strands_of(y))
def _averagepool_fwd(x: Any, y: Any, taps: Taps, include_pad: int) -> None:
    """Write the average of each window to y.  `include_pad`: 1 if divisors count the padding."""
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    apart = strands(C)
    for unit in range(cuda.grid(1), N * OH * OW * apart, cuda.gridsize(1)):
        n, oh, ow = at_pixel(unit // apart, OH, OW)
        h, i0, i1 = taps_down(taps, oh, H)
        w, j0, j1 = taps_across(taps, ow, W)
        divisor = _divisor(oh, ow, H, W, taps, include_pad)
        for c in range(unit % apart, C, apart):
            total = np.float32(0)
            for i in range(i0, i1):
                line = np.float32(0)
                for j in range(j0, j1):
                    line += x[n, h + i * taps.dilation_h, w + j * taps.dilation_w, c]
                total += line
            y[n, oh, ow, c] = total / divisor


@block_kernel(*_AVERAGES, threads=(ACROSS, SHARES), blocks=blocks_of)
def _large_averagepool_fwd(x: Any, y: Any, taps: Taps, include_pad: int) -> None:
    sums = cuda.shared.array(THREADS, float32)
    H, W = x.shape[1], x.shape[2]
    across, share = cuda.threadIdx.x, cuda.threadIdx.y
    n, oh, ow, first = place(cuda.blockIdx.x, y.shape)
    # A thread beyond the last channel computes the last, and does not write it.
    c = min(first + across, y.shape[3] - 1)
    h, i0, i1 = taps_down(taps, oh, H)
    w, j0, j1 = taps_across(taps, ow, W)
    total = np.float32(0)
    for k in range(share, (i1 - i0) * (j1 - j0), SHARES):
        i, j = i0 + k // (j1 - j0), j0 + k % (j1 - j0)
        total += x[n, h + i * taps.dilation_h, w + j * taps.dilation_w, c]
    at = share * ACROSS + across
    sums[at] = total
    step = SHARES // 2
    while step:
        cuda.syncthreads()
        if share < step:
            total += sums[at + step * ACROSS]
            sums[at] = total
        step //= 2
    if share == 0 and first + across == c:
        y[n, oh, ow, c] = total / _divisor(oh, ow, H, W, taps, include_pad)


@kernel(
    *(ACTIVATION, MASK, GATE, ACTIVATION, INT, TAPS, INT),
    units=lambda *args: strands_of(args[3]),
)
def averagepool_bwd(
    gy: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    taps: Taps,
    include_pad: int,
) -> None:
    """Write to each pixel of gx its part of the windows that read it, or add it with `accumulate`."""
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    targets = targets_of(gy, mask)
    rows, columns = _counting(taps, H, W, include_pad)
    whole = np.float32(1) / np.float32(taps.rows * taps.columns)
    apart = strands(C)
    for unit in range(cuda.grid(1), N * H * W * apart, cuda.gridsize(1)):
        n, h, w = at_pixel(unit // apart, H, W)
        count_h, oh, step_oh, _, _ = windows_down(taps, h, OH)
        count_w, ow, step_ow, _, _ = windows_across(taps, w, OW)
        whole_h = _all_count(oh, oh + (count_h - 1) * step_oh, rows)
        inner = whole_h and _all_count(ow, ow + (count_w - 1) * step_ow, columns)
        for c in range(unit % apart, C, apart):
            v = np.float32(0)
            for p in range(count_h):
                row = oh + p * step_oh
                for q in range(count_w):
                    column = ow + q * step_ow
                    g = gy[n, row, column, c]
                    if not inner:
                        g *= np.float32(1) / np.float32(_count(row, rows) * _count(column, columns))
                    v += g
            if inner:
                v *= whole
            write_gradient(v, c, gate, accumulate, gx, (n, h, w), mask, (n // targets, h, w))
