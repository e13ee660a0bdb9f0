"""The p-norm of each window, as plain loops, because few networks use it.

    lp_pool:  y[o] = (Σ_k |x[p(o, k)]|^p)^(1/p)
              gx[q] = Σ_{o, k: p(o, k) = q}  gy[o] · sign(x[q]) · (|x[q]| / y[o])^(p−1),   0 where y[o] = 0

p(o, k) is as in `pool`, and padding is 0.  Values are divided by the largest of their window before they are
raised to p, so no power overflows.  Sums are in float64.

Source: ONNX LpPool, GlobalLpPool.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .codegen.jit import ACTIVATION, INT, device_function, kernel
from .codegen.packing import Share
from .codegen.work import part_of, targets_of
from .taps import TAPS, Taps, taps_across, taps_down, windows_across, windows_down


@device_function
def _power(x: float, p: int) -> float:
    """x^p for x ≥ 0."""
    if p == 0:
        return 1.0
    if p == 1:
        return x
    if p == 2:
        return x * x
    return math.pow(x, float(p))


@device_function
def _root(x: float, p: int) -> float:
    if p == 1:
        return x
    if p == 2:
        return math.sqrt(x)
    return math.pow(x, 1.0 / p)


@device_function
def _norm(x: Any, n: int, c: int, down: Any, across: Any, taps: Taps, p: int) -> float:
    """The norm of a window, whose taps `taps_down` and `taps_across` found."""
    (h, i0, i1), (w, j0, j1) = down, across
    largest = 0.0
    for i in range(i0, i1):
        for j in range(j0, j1):
            v = x[n, h + i * taps.dilation_h, w + j * taps.dilation_w, c]
            largest = max(largest, abs(np.float64(v)))
    if largest == 0:
        return 0.0
    total = 0.0
    for i in range(i0, i1):
        for j in range(j0, j1):
            v = x[n, h + i * taps.dilation_h, w + j * taps.dilation_w, c]
            total += _power(abs(np.float64(v)) / largest, p)
    return largest * _root(total, p)


@device_function
def _gradient(
    gy: Any, y: Any, n: int, m: int, c: int, down: Any, across: Any, v: float, p: int, total: float
) -> float:
    """`total`, and what the windows that read a value v pass on to it, in row n of gy and sample m of y.

    `windows_down` and `windows_across` found these windows.
    """
    (count_h, oh, step_oh, _, _), (count_w, ow, step_ow, _, _) = down, across
    for i in range(oh, oh + count_h * step_oh, step_oh):
        for j in range(ow, ow + count_w * step_ow, step_ow):
            norm = np.float64(y[m, i, j, c])
            if norm > 0 and v != 0:
                own = gy[n, i, j, c] * _power(abs(v) / norm, p - 1)
                total += own if v > 0 else -own
    return total


@kernel(ACTIVATION, ACTIVATION, TAPS, INT, INT)
def lp_pool_fwd(x: Any, y: Any, taps: Taps, p: int, threads: int, share: Share) -> None:
    """Write the norm of each window to y (N, OH, OW, C); p is at least 1."""
    H, W = x.shape[1:3]
    N, OH, OW, C = y.shape
    rows = N * OH
    for row in range(*part_of(rows, share, threads)):
        n, oh = row // OH, row % OH
        down = taps_down(taps, oh, H)
        for ow in range(OW):
            across = taps_across(taps, ow, W)
            for c in range(C):
                y[n, oh, ow, c] = _norm(x, n, c, down, across, taps, p)


@kernel(ACTIVATION, ACTIVATION, ACTIVATION, ACTIVATION, INT, TAPS, INT, INT)
def lp_pool_bwd(
    gy: Any,
    x: Any,
    y: Any,
    gx: Any,
    accumulate: int,
    taps: Taps,
    p: int,
    threads: int,
    share: Share,
) -> None:
    """Write to each pixel of gx its part of the windows that read it, or add it with `accumulate`.

    Parameters
    ----------
    gy, y
        (N·K, OH, OW, C) and (N, OH, OW, C): the gradients of the windows' norms, and the norms.
    x, gx
        (N, H, W, C) and (N·K, H, W, C).
    p
        The power of the norm; at least 1.
    accumulate, taps, threads, share
        As in all kernels (`gbp.kernels`).
    """
    OH, OW = gy.shape[1:3]
    N, H, W, C = gx.shape
    targets = targets_of(gy, x)
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        m, down = n // targets, windows_down(taps, h, OH)
        for w in range(W):
            across = windows_across(taps, w, OW)
            for c in range(C):
                v = np.float64(x[m, h, w, c])
                before = np.float64(gx[n, h, w, c]) if accumulate else 0.0
                gx[n, h, w, c] = _gradient(gy, y, n, m, c, down, across, v, p, before)
