"""The kernel of `columns.py` on a card: one thread for each pixel of gx, which has few channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, INT
from .codegen.jit_cuda import device_function, kernel
from .codegen.simd_cuda import at_pixel, load_channel, targets_of, write_gradient
from .taps import TAPS, Taps
from .taps_cuda import windows_across, windows_down

#: Channels that a thread sums at a time.
_TOGETHER = 4


def _pixels_of(gx: Any) -> int:
    N, H, W, _ = gx.shape
    return int(N * H * W)


@device_function
def _add_window(columns: Any, n: int, oh: int, ow: int, c: int, count: int, v: Any) -> None:
    """Add up to _TOGETHER of `count` channels of a window's columns, from c on, to v."""
    for k in range(_TOGETHER):
        if k < count:
            v[k] += load_channel(columns, n, oh, ow, c + k)


@kernel(
    *(ACTIVATION, MASK, GATE, ACTIVATION, INT, TAPS),
    units=lambda *args: _pixels_of(args[3]),
)
def col2im(columns: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps) -> None:
    """Write the sum of each pixel's columns (N, OH, OW, KH·KW·C) to gx (N, H, W, C).

    With `accumulate` it is added.  Then the gate is applied.  Windows are added in row-major order.
    """
    v = cuda.local.array(_TOGETHER, float32)
    OH, OW = columns.shape[1], columns.shape[2]
    N, H, W, C = gx.shape
    targets = targets_of(columns, mask)
    for unit in range(cuda.grid(1), N * H * W, cuda.gridsize(1)):
        n, h, w = at_pixel(unit, H, W)
        count_h, oh, step_oh, i, step_i = windows_down(taps, h, OH)
        count_w, ow, step_ow, j, step_j = windows_across(taps, w, OW)
        for first in range(0, C, _TOGETHER):
            for k in range(_TOGETHER):
                v[k] = np.float32(0)
            for p in range(count_h):
                for q in range(count_w):
                    tap = (i + p * step_i) * taps.columns + j + q * step_j
                    _add_window(columns, n, oh + p * step_oh, ow + q * step_ow, tap * C + first, C - first, v)
            for k in range(_TOGETHER):
                c = first + k
                if c < C:
                    write_gradient(v[k], c, gate, accumulate, gx, (n, h, w), mask, (n // targets, h, w))
