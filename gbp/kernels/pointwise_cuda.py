"""The kernels of `pointwise.py` on a card: a thread for eight channels, whose bits are a byte."""

from __future__ import annotations

from typing import Any

from numba import cuda

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT
from .codegen.jit_cuda import elements_of, kernel, octets_of
from .codegen.simd_cuda import at_pixel, clipped, gated, targets_of


@kernel(
    ACTIVATION,
    DENSE,
    DENSE,
    ACTIVATION,
    ACTIVATION,
    MASK,
    FLOAT,
    FLOAT,
    units=lambda *args: octets_of(args[4]),
)
def pointwise_fwd(x: Any, a: Any, b: Any, r: Any, y: Any, mask: Any, lo: float, hi: float) -> None:
    """Write y = clip(a · x + b + r, lo, hi) and the bit lo < · < hi of each unit to mask; y may be x or r."""
    N, H, W, C = y.shape
    octets = (C + 7) // 8
    for unit in range(cuda.grid(1), N * H * W * octets, cuda.gridsize(1)):
        n, h, w = at_pixel(unit // octets, H, W)
        octet = unit % octets
        bits = 0
        for c in range(8 * octet, min(C, 8 * octet + 8)):
            v = x[n, h, w, c]
            if a.size:
                v = v * a[c]
            if b.size:
                v = v + b[c]
            if r.size:
                v = v + r[n, h, w, c]
            if lo < v < hi:
                bits |= 1 << (c % 8)
            y[n, h, w, c] = clipped(v, lo, hi)
        if mask.size:
            mask[n, h, w, octet] = bits


@kernel(ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, units=lambda *args: elements_of(args[4]))
def pointwise_bwd(gy: Any, a: Any, mask: Any, gate: Gate, gx: Any, accumulate: int) -> None:
    """Write a · gy to gx, added to gx with `accumulate`; of that, what passes the gate.  gx may be gy."""
    N, H, W, C = gx.shape
    targets = targets_of(gy, mask)
    for i in range(cuda.grid(1), N * H * W * C, cuda.gridsize(1)):
        n, h, w = at_pixel(i // C, H, W)
        c = i % C
        v = gy[n, h, w, c]
        if a.size:
            v = v * a[c]
        if accumulate:
            v = v + gx[n, h, w, c]
        gx[n, h, w, c] = gated(v, gate, mask, n // targets, h, w, c)
