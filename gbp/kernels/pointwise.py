"""Affine maps by channel, for BatchNormalization, Add and rectifiers that are not fused into another step.

    y[n, h, w, c]  = clip(a[c] · x[n, h, w, c] + b[c] + r[n, h, w, c], lo, hi)
    gx[n, h, w, c] = a[c] · gy[n, h, w, c],  then the gate of gx's own rectifier

Source: ONNX BatchNormalization (inference: a = scale / √(var + ε), b = bias − a · mean), Add, Relu, Clip.
"""

from __future__ import annotations

from typing import Any

from .codegen.bits import store_bits
from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate, clip, write_gradient
from .codegen.jit import ACTIVATION, FLOAT, INT, WEIGHTS, kernel
from .codegen.packing import Share
from .codegen.simd import above, address_of, at, broadcast, load_some, store_some
from .codegen.views import part_of, sample_of, targets_of, zero_run


@kernel(ACTIVATION, INT)
def clear_pixels(x: Any, threads: int, share: Share) -> None:
    """Write 0 to x (N, H, W, C)."""
    N, H, W, C = x.shape
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        if x.strides[2] == 4 * C:
            zero_run(at(x, n, h, 0), W * C)
        else:
            for w in range(W):
                zero_run(at(x, n, h, w), C)


@kernel(ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT, INT)
def pointwise_fwd(
    x: Any, a: Any, b: Any, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int, share: Share
) -> None:
    """Write y = clip(a · x + b + r, lo, hi), and the bit lo < · < hi of each unit to mask.  y may be x or r.

    a (C,), b (C,), r and mask may each be empty: without a it is 1, without b or r they are 0, and without
    mask no bits are written.
    """
    N, H, W, C = x.shape
    low, high = broadcast(lo), broadcast(hi)
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            xa, ra, ya, ma = at(x, n, h, w), at(r, n, h, w), at(y, n, h, w), at(mask, n, h, w)
            for c in range(0, C, LANES):
                v = load_some(xa + 4 * c, C - c)
                if a.size:
                    v = v * load_some(address_of(a) + 4 * c, C - c)
                if b.size:
                    v = v + load_some(address_of(b) + 4 * c, C - c)
                if r.size:
                    v = v + load_some(ra + 4 * c, C - c)
                if mask.size:
                    store_bits(ma + c // 8, above(v, low) & above(high, v), C - c)
                store_some(ya + 4 * c, clip(v, low, high), C - c)


@kernel(ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, INT)
def pointwise_bwd(
    gy: Any, a: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, threads: int, share: Share
) -> None:
    """Write a · gy to gx, or add it with `accumulate`; then apply the gate.  gx may be gy.

    a (C,) may be empty: then it is 1.
    """
    N, H, W, C = gx.shape
    targets = targets_of(gy, mask)
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            ga, xa, ma = at(gy, n, h, w), at(gx, n, h, w), at(mask, sample_of(n, targets), h, w)
            for c in range(0, C, LANES):
                v = load_some(ga + 4 * c, C - c)
                if a.size:
                    v = v * load_some(address_of(a) + 4 * c, C - c)
                write_gradient(v, c, gate, accumulate, xa, ma, C - c)
