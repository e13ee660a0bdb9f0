"""The kernels of `depthwise.py` on a card: one thread for eight channels, whose bits fill a byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT
from .codegen.jit_cuda import device_function, kernel
from .codegen.simd_cuda import at_pixel, load_channels, load_four, quotient
from .eights_cuda import all_in_fours, eights_of, epilogue_bwd, epilogue_fwd
from .taps import TAPS, Taps
from .taps_cuda import taps_across, taps_down, windows_across, windows_down


def depthwise_fwd(
    x: Any,
    w: Any,
    b: Any,
    r: Any,
    y: Any,
    mask: Any,
    taps: Taps,
    lo: float,
    hi: float,
) -> None:
    """Write y = clip(depthwise(x, w) + b + r, lo, hi) and the bit lo < · < hi of each unit to mask.

    w (KH·KW·C,) from [KH][KW][C]; b (C,), r and mask may be empty.
    """
    fours = int(all_in_fours(x, y, r) and w.is_aligned(16))
    _depthwise_fwd(x, w, b, r, y, mask, taps, lo, hi, fours)


@device_function
def _add_tap(sums: Any, x: Any, n: int, h: int, v: int, c: int, w: Any, at: int, fours: int) -> None:
    """Add x · w to the sums of up to eight channels from c on; their weights start at index `at`."""
    C = x.shape[3]
    for half in range(0, 8, 4):
        if fours and c + half < C:
            a = load_channels(x, n, h, v, c + half)
            b = load_four(w, at + half)
            sums[half] += a[0] * b[0]
            sums[half + 1] += a[1] * b[1]
            sums[half + 2] += a[2] * b[2]
            sums[half + 3] += a[3] * b[3]
        elif not fours:
            for k in range(half, half + 4):
                if c + k < C:
                    sums[k] += x[n, h, v, c + k] * w[at + k]


@kernel(
    *(ACTIVATION, DENSE, DENSE, ACTIVATION, ACTIVATION, MASK, TAPS, FLOAT, FLOAT, INT),
    units=lambda *args: eights_of(args[4]),
)
def _depthwise_fwd(
    x: Any,
    w: Any,
    b: Any,
    r: Any,
    y: Any,
    mask: Any,
    taps: Taps,
    lo: float,
    hi: float,
    fours: int,
) -> None:
    """See `depthwise_fwd`.  `fours`: whether x, w, r and y are read and written by fours."""
    sums = cuda.local.array(8, float32)
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    eights = (C + 7) // 8
    for unit in range(cuda.grid(1), N * OH * OW * eights, cuda.gridsize(1)):
        pixel = quotient(unit, eights)
        first = (unit - pixel * eights) * 8
        n, oh, ow = at_pixel(pixel, OH, OW)
        h, i0, i1 = taps_down(taps, oh, H)
        v, j0, j1 = taps_across(taps, ow, W)
        for k in range(8):
            sums[k] = np.float32(0)
        for i in range(i0, i1):
            for j in range(j0, j1):
                at = (i * taps.columns + j) * C + first
                _add_tap(sums, x, n, h + i * taps.dilation_h, v + j * taps.dilation_w, first, w, at, fours)
        epilogue_fwd(sums, n, oh, ow, first, b, r, y, mask, lo, hi, fours)


def depthwise_bwd(gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps) -> None:
    """Write the transposed convolution to gx, or add it with `accumulate`; then apply the gate."""
    fours = int(all_in_fours(gy, gx) and w.is_aligned(16))
    _depthwise_bwd(gy, w, mask, gate, gx, accumulate, taps, fours)


@kernel(
    *(ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, TAPS, INT),
    units=lambda *args: eights_of(args[4]),
)
def _depthwise_bwd(
    gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps,
    fours: int,
) -> None:  # fmt: skip
    """See `depthwise_bwd`.  `fours`: whether gy, w and gx are read and written by fours."""
    sums = cuda.local.array(8, float32)
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    eights = (C + 7) // 8
    for unit in range(cuda.grid(1), N * H * W * eights, cuda.gridsize(1)):
        pixel = quotient(unit, eights)
        c = (unit - pixel * eights) * 8
        n, h, u = at_pixel(pixel, H, W)
        count_h, oh, step_oh, i, step_i = windows_down(taps, h, OH)
        count_w, ow, step_ow, j, step_j = windows_across(taps, u, OW)
        for k in range(8):
            sums[k] = np.float32(0)
        for p in range(count_h):
            first = (i + p * step_i) * taps.columns + j
            for q in range(count_w):
                at = (first + q * step_j) * C + c
                _add_tap(sums, gy, n, oh + p * step_oh, ow + q * step_ow, c, w, at, fours)
        epilogue_bwd(sums, n, h, u, c, mask, gate, gx, accumulate, fours)
