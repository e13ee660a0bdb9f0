"""The kernels of `pointwise.py` on a card: one thread for eight channels, whose bits fill a byte."""

from __future__ import annotations

from typing import Any

from numba import cuda, float32

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT
from .codegen.jit_cuda import device_function, kernel
from .codegen.simd_cuda import at_pixel, quotient
from .eights_cuda import all_in_fours, eights_of, epilogue_bwd, epilogue_fwd, load_eight_of


def pointwise_fwd(x: Any, a: Any, b: Any, r: Any, y: Any, mask: Any, lo: float, hi: float) -> None:
    """Write y = clip(a · x + b + r, lo, hi) and the bit lo < · < hi of each unit to mask; y may be x or r."""
    _pointwise_fwd(x, a, b, r, y, mask, lo, hi, all_in_fours(x, r, y))


def pointwise_bwd(gy: Any, a: Any, mask: Any, gate: Gate, gx: Any, accumulate: int) -> None:
    """Write a · gy to gx, added to gx with `accumulate`; then apply the gate.  gx may be gy."""
    _pointwise_bwd(gy, a, mask, gate, gx, accumulate, all_in_fours(gy, gx))


@device_function
def _scale(v: Any, a: Any, c: int) -> None:
    """Multiply v by eight channels of a, if a is not empty."""
    for k in range(8):
        if c + k < a.size:
            v[k] *= a[c + k]


@kernel(
    *(ACTIVATION, DENSE, DENSE, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT, INT),
    units=lambda *args: eights_of(args[4]),
)
def _pointwise_fwd(
    x: Any, a: Any, b: Any, r: Any, y: Any, mask: Any, lo: float, hi: float, fours: int
) -> None:
    """`pointwise_fwd`.  fours: as `all_in_fours` of x, r and y."""
    v = cuda.local.array(8, float32)
    N, H, W, C = y.shape
    eights = (C + 7) // 8
    for unit in range(cuda.grid(1), N * H * W * eights, cuda.gridsize(1)):
        pixel = quotient(unit, eights)
        c = (unit - pixel * eights) * 8
        n, h, w = at_pixel(pixel, H, W)
        load_eight_of(x, n, h, w, c, v, fours)
        _scale(v, a, c)
        epilogue_fwd(v, n, h, w, c, b, r, y, mask, lo, hi, fours)


@kernel(ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, INT, units=lambda *args: eights_of(args[4]))
def _pointwise_bwd(gy: Any, a: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, fours: int) -> None:
    """`pointwise_bwd`.  fours: as `all_in_fours` of gy and gx."""
    v = cuda.local.array(8, float32)
    N, H, W, C = gx.shape
    eights = (C + 7) // 8
    for unit in range(cuda.grid(1), N * H * W * eights, cuda.gridsize(1)):
        pixel = quotient(unit, eights)
        c = (unit - pixel * eights) * 8
        n, h, w = at_pixel(pixel, H, W)
        load_eight_of(gy, n, h, w, c, v, fours)
        _scale(v, a, c)
        epilogue_bwd(v, n, h, w, c, mask, gate, gx, accumulate, fours)
