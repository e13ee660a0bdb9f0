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
_norm = device_function_of(lp_pool._norm, _power=_power, _root=_root)
_gradient = device_function_of(lp_pool._gradient, _power=_power)


@kernel(ACTIVATION, ACTIVATION, TAPS, INT, units=lambda x, y, *_: elements_of(y))
def lp_pool_fwd(x: Any, y: Any, taps: Taps, p: int) -> None:
    """Write the norm of each window to y (N, OH, OW, C); p is at least 1."""
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    for unit in range(cuda.grid(1), N * OH * OW * C, cuda.gridsize(1)):
        n, oh, ow = at_pixel(unit // C, OH, OW)
        c = unit % C
        y[n, oh, ow, c] = _norm(x, n, c, taps_down(taps, oh, H), taps_across(taps, ow, W), taps, p)


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
        m, down, across = n // targets, windows_down(taps, h, OH), windows_across(taps, w, OW)
        v = np.float64(x[m, h, w, c])
        before = np.float64(gx[n, h, w, c]) if accumulate else np.float64(0)
        gx[n, h, w, c] = _gradient(gy, y, n, m, c, down, across, v, p, before)
