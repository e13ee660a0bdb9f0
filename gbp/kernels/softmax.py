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
from .codegen.jit import ACTIVATION, INT, Kernel, device_function, kernel_from
from .codegen.packing import Share
from .codegen.simd import at
from .codegen.work import part_of, targets_of


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


#: Formulas of each function, in float64: the output, a summand over the channels, and the gradient, for one
#: channel.  `total` is Σ exp(x − max x) in the output, and the sum of the summands in the gradient.
SOFTMAX = (
    lambda x, highest, total: math.exp(x - highest) / total,
    lambda g, y: np.float64(g) * y,
    lambda g, y, total: y * (g - total),
)
LOGSOFTMAX = (
    lambda x, highest, total: x - highest - math.log(total),
    lambda g, y: np.float64(g),
    lambda g, y, total: g - math.exp(np.float64(y)) * total,
)

#: Names in the templates below: the formulas.
output: Any = None
summand: Any = None
gradient: Any = None


def _fwd(x: Any, y: Any, threads: int, share: Share) -> None:
    """Write y, which may be x."""
    N, H, W, C = x.shape
    for p in range(*part_of(N * H * W, share, threads)):
        n, h, w = p // (H * W), p // W % H, p % W
        highest, total = _maximum_and_sum(x, n, h, w)
        for c in range(C):
            y[n, h, w, c] = output(x[n, h, w, c], highest, total)


def _bwd(
    gy: Any, y: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, threads: int, share: Share
) -> None:
    """Write the gradient to gx, or add it with `accumulate`; then apply the gate.  gx may be gy."""
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, y), targets_of(gy, mask)
    for p in range(*part_of(N * H * W, share, threads)):
        n, h, w = p // (H * W), p // W % H, p % W
        m = n // sharing
        total = 0.0
        for c in range(C):
            total += summand(gy[n, h, w, c], y[m, h, w, c])
        for c in range(C):
            v = gradient(gy[n, h, w, c], y[m, h, w, c], total)
            gx[n, h, w, c] = v + gx[n, h, w, c] if accumulate else v
        gate_run(at(gx, n, h, w), C, gate, at(mask, n // targets, h, w))


def _pair(name: str, formulas: Any) -> tuple[Kernel, Kernel]:
    value, term, slope = formulas
    target = MASK, GATE, ACTIVATION, INT, INT
    return (
        kernel_from(_fwd, f"{name}_fwd", ACTIVATION, ACTIVATION, INT, output=value),
        kernel_from(_bwd, f"{name}_bwd", ACTIVATION, ACTIVATION, *target, summand=term, gradient=slope),
    )


softmax_fwd, softmax_bwd = _pair("softmax", SOFTMAX)
logsoftmax_fwd, logsoftmax_bwd = _pair("logsoftmax", LOGSOFTMAX)
