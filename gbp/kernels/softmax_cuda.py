"""The kernels of `softmax.py` on a card: one thread for each pixel, because there are few scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, INT
from .codegen.jit_cuda import CudaKernel, device_copy, device_function, kernel_from
from .codegen.simd_cuda import at_pixel, targets_of, write_gradient
from .softmax import LOGSOFTMAX, SOFTMAX


def _pixels_of(y: Any) -> int:
    N, H, W, _ = y.shape
    return int(N * H * W)


@device_function
def _maximum_and_sum(x: Any, n: int, h: int, w: int) -> Any:
    """Return max x and Σ exp(x − max x) of one pixel, both float64."""
    C = x.shape[3]
    highest = -math.inf
    for c in range(C):
        highest = max(highest, np.float64(x[n, h, w, c]))
    total = 0.0
    for c in range(C):
        total += math.exp(x[n, h, w, c] - highest)
    return highest, total


@device_function
def _pixel_in(mask: Any, p: int) -> Any:
    """(h, w) of pixel p, counted through the batch, in a mask whose planes may have another shape."""
    H, W = max(1, mask.shape[1]), max(1, mask.shape[2])
    return p // W % H, p % W


#: Names in the templates below: the formulas of `softmax.py`.
output: Any = None
summand: Any = None
gradient: Any = None


def _fwd(x: Any, y: Any) -> None:
    """Write y, which may be x."""
    N, H, W, C = y.shape
    for p in range(cuda.grid(1), N * H * W, cuda.gridsize(1)):
        n, h, w = at_pixel(p, H, W)
        highest, total = _maximum_and_sum(x, n, h, w)
        for c in range(C):
            y[n, h, w, c] = output(x[n, h, w, c], highest, total)


def _bwd(gy: Any, y: Any, mask: Any, gate: Gate, gx: Any, accumulate: int) -> None:
    """Write the gradient to gx, or add it with `accumulate`; then apply the gate.  gx may be gy."""
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, y), targets_of(gy, mask)
    for p in range(cuda.grid(1), N * H * W, cuda.gridsize(1)):
        n, h, w = at_pixel(p, H, W)
        m, (mask_h, mask_w) = n // sharing, _pixel_in(mask, p)
        total = 0.0
        for c in range(C):
            total += summand(gy[n, h, w, c], y[m, h, w, c])
        for c in range(C):
            v = gradient(gy[n, h, w, c], y[m, h, w, c], total)
            write_gradient(v, c, gate, accumulate, gx, (n, h, w), mask, (n // targets, mask_h, mask_w))


def _pair(name: str, formulas: Any) -> tuple[CudaKernel, CudaKernel]:
    value, term, slope = (device_copy(f, f"{name}_formula{i}") for i, f in enumerate(formulas))
    target = MASK, GATE, ACTIVATION, INT
    return (
        kernel_from(
            _fwd, f"{name}_fwd", ACTIVATION, ACTIVATION, units=lambda x, y: _pixels_of(y), output=value
        ),
        kernel_from(
            *(_bwd, f"{name}_bwd", ACTIVATION, ACTIVATION, *target),
            units=lambda *args: _pixels_of(args[4]),
            summand=term,
            gradient=slope,
        ),
    )


softmax_fwd, softmax_bwd = _pair("softmax", SOFTMAX)
logsoftmax_fwd, logsoftmax_bwd = _pair("logsoftmax", LOGSOFTMAX)
