"""The kernels of `prelu.py` on a card: one thread for each element."""

from __future__ import annotations

from typing import Any

from numba import cuda

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, INT
from .codegen.jit_cuda import elements_of, kernel
from .codegen.simd_cuda import at_pixel, targets_of, write_gradient


@kernel(ACTIVATION, ACTIVATION, ACTIVATION, units=lambda x, slopes, y: elements_of(y))
def prelu_fwd(x: Any, slopes: Any, y: Any) -> None:
    """Write y = x where x ≥ 0, slopes · x elsewhere; slopes is (1, H, W, C).  y may be x."""
    N, H, W, C = y.shape
    for i in range(cuda.grid(1), N * H * W * C, cuda.gridsize(1)):
        n, h, w = at_pixel(i // C, H, W)
        c = i % C
        v = x[n, h, w, c]
        y[n, h, w, c] = v * slopes[0, h, w, c] if v < 0 else v


@kernel(
    *(ACTIVATION, ACTIVATION, ACTIVATION, MASK, GATE, ACTIVATION, INT),
    units=lambda *args: elements_of(args[5]),
)
def prelu_bwd(gy: Any, x: Any, slopes: Any, mask: Any, gate: Gate, gx: Any, accumulate: int) -> None:
    """Write gy where x > 0, slopes · gy elsewhere, to gx, added with `accumulate`; then apply the gate.

    gx may be gy.
    """
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, x), targets_of(gy, mask)
    for i in range(cuda.grid(1), N * H * W * C, cuda.gridsize(1)):
        n, h, w = at_pixel(i // C, H, W)
        c = i % C
        v = gy[n, h, w, c]
        if not x[n // sharing, h, w, c] > 0:
            v = v * slopes[0, h, w, c]
        write_gradient(v, c, gate, accumulate, gx, (n, h, w), mask, (n // targets, h, w))
