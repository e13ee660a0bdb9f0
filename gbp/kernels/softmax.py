"""Softmax and LogSoftmax over the channels, shifted by the maximum so that nothing overflows.

    softmax:     y[c] = exp(x[c]) / Σ_k exp(x[k]),     gx[c] = y[c] · (gy[c] − Σ_k gy[k] · y[k])
    logsoftmax:  y[c] = x[c] − log Σ_k exp(x[k]),      gx[c] = gy[c] − exp(y[c]) · Σ_k gy[k]

The loops are plain, because scores are few.  Sums are in float64, in the order of the channels.

Source: ONNX Softmax, LogSoftmax (opset 13).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .codegen.gate import GATE, MASK, Gate, gate_run
from .codegen.jit import ACTIVATION, INT, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import at
from .codegen.views import targets_of


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


@kernel(ACTIVATION, ACTIVATION, INT)
def softmax_fwd(x: Any, y: Any, threads: int, share: Share) -> None:
    """Write y, which may be x."""
    N, H, W, C = x.shape
    pixels = N * H * W
    for t in range(share.first, share.last):
        for p in range(pixels * t // threads, pixels * (t + 1) // threads):
            n, h, w = p // (H * W), p // W % H, p % W
            highest, total = _maximum_and_sum(x, n, h, w)
            for c in range(C):
                y[n, h, w, c] = math.exp(x[n, h, w, c] - highest) / total


@kernel(ACTIVATION, ACTIVATION, INT)
def logsoftmax_fwd(x: Any, y: Any, threads: int, share: Share) -> None:
    """Write y, which may be x."""
    N, H, W, C = x.shape
    pixels = N * H * W
    for t in range(share.first, share.last):
        for p in range(pixels * t // threads, pixels * (t + 1) // threads):
            n, h, w = p // (H * W), p // W % H, p % W
            highest, total = _maximum_and_sum(x, n, h, w)
            for c in range(C):
                y[n, h, w, c] = x[n, h, w, c] - highest - math.log(total)


@kernel(ACTIVATION, ACTIVATION, MASK, GATE, ACTIVATION, INT, INT)
def softmax_bwd(
    gy: Any, y: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, threads: int, share: Share
) -> None:
    """Write the gradient to gx, or add it with `accumulate`; then apply the gate.  gx may be gy."""
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, y), targets_of(gy, mask)
    pixels = N * H * W
    for t in range(share.first, share.last):
        for p in range(pixels * t // threads, pixels * (t + 1) // threads):
            n, h, w = p // (H * W), p // W % H, p % W
            m = n // sharing
            mean = 0.0
            for c in range(C):
                mean += np.float64(gy[n, h, w, c]) * y[m, h, w, c]
            for c in range(C):
                v = y[m, h, w, c] * (gy[n, h, w, c] - mean)
                gx[n, h, w, c] = v + gx[n, h, w, c] if accumulate else v
            gate_run(at(gx, n, h, w), C, gate, at(mask, n // targets, h, w))


@kernel(ACTIVATION, ACTIVATION, MASK, GATE, ACTIVATION, INT, INT)
def logsoftmax_bwd(
    gy: Any, y: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, threads: int, share: Share
) -> None:
    """Write the gradient to gx, or add it with `accumulate`; then apply the gate.  gx may be gy."""
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, y), targets_of(gy, mask)
    pixels = N * H * W
    for t in range(share.first, share.last):
        for p in range(pixels * t // threads, pixels * (t + 1) // threads):
            n, h, w = p // (H * W), p // W % H, p % W
            m = n // sharing
            total = 0.0
            for c in range(C):
                total += gy[n, h, w, c]
            for c in range(C):
                v = gy[n, h, w, c] - math.exp(np.float64(y[m, h, w, c])) * total
                gx[n, h, w, c] = v + gx[n, h, w, c] if accumulate else v
            gate_run(at(gx, n, h, w), C, gate, at(mask, n // targets, h, w))
