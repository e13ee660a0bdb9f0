"""The kernels of `lp_pool.py` on a card: a thread for each element that is written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from . import lp_pool
from .codegen.jit import ACTIVATION, INT
from .codegen.jit_cuda import device_function_of, elements_of, kernel
from .codegen.simd_cuda import at_pixel, targets_of
from .taps import TAPS, Taps
from .taps_cuda import taps_across, taps_down, windows_across, windows_down

_power = device_function_of(lp_pool._power)
_root = device_function_of(lp_pool._root)


@kernel(ACTIVATION, ACTIVATION, TAPS, INT, units=lambda x, y, *_: elements_of(y))
def lp_pool_fwd(x: Any, y: Any, taps: Taps, p: int) -> None:
    """Write the norm of each window to y (N, OH, OW, C); p is at least 1."""
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    for unit in range(cuda.grid(1), N * OH * OW * C, cuda.gridsize(1)):
        n, oh, ow = at_pixel(unit // C, OH, OW)
        c = unit % C
        h, i0, i1 = taps_down(taps, oh, H)
        w, j0, j1 = taps_across(taps, ow, W)
        largest = np.float64(0)
        for i in range(i0, i1):
            for j in range(j0, j1):
                v = x[n, h + i * taps.dilation_h, w + j * taps.dilation_w, c]
                largest = max(largest, abs(np.float64(v)))
        total = np.float64(0)
        if largest > 0:
            for i in range(i0, i1):
                for j in range(j0, j1):
                    v = x[n, h + i * taps.dilation_h, w + j * taps.dilation_w, c]
                    total += _power(abs(np.float64(v)) / largest, p)
        y[n, oh, ow, c] = largest * _root(total, p)


@kernel(
    *(ACTIVATION, ACTIVATION, ACTIVATION, ACTIVATION, INT, TAPS, INT),
    units=lambda *args: elements_of(args[3]),
)
def lp_pool_bwd(gy: Any, x: Any, y: Any, gx: Any, accumulate: int, taps: Taps, p: int) -> None:
    """Write to each pixel of gx its part of the windows that read it, or add it with `accumulate`."""
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    targets = targets_of(gy, x)
    for unit in range(cuda.grid(1), N * H * W * C, cuda.gridsize(1)):
        n, h, w = at_pixel(unit // C, H, W)
        c = unit % C
        count_h, oh, step_oh, _, _ = windows_down(taps, h, OH)
        count_w, ow, step_ow, _, _ = windows_across(taps, w, OW)
        v = np.float64(x[n // targets, h, w, c])
        total = np.float64(gx[n, h, w, c]) if accumulate else np.float64(0)
        for i in range(oh, oh + count_h * step_oh, step_oh):
            for j in range(ow, ow + count_w * step_ow, step_ow):
                norm = np.float64(y[n // targets, i, j, c])
                if norm > 0 and v != 0:
                    share = gy[n, i, j, c] * _power(abs(v) / norm, p - 1)
                    total += share if v > 0 else -share
        gx[n, h, w, c] = total
