"""Affine maps by channel, for BatchNormalization, Add and rectifiers that are not fused into another step.

    y[n, h, w, c]  = clip(a[c] · x[n, h, w, c] + b[c] + r[n, h, w, c], lo, hi)
    gx[n, h, w, c] = a[c] · gy[n, h, w, c],  then the gate of gx's own rectifier

Source: ONNX BatchNormalization (inference: a = scale / √(var + ε), b = bias − a · mean), Add, Relu, Clip.
"""

from __future__ import annotations

from typing import Any

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, FLOAT, INT, WEIGHTS, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, at, load_some
from .codegen.work import part_of, targets_of, zero_run
from .epilogue import Forward, backward, place_of, plane_of, write


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
    bias = address_of(b) if b.size else 0
    end = Forward(plane_of(y), plane_of(r), plane_of(mask), bias, lo, hi)
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            xa, place = at(x, n, h, w), place_of(n, h, w, end)
            for c in range(0, C, LANES):
                v = load_some(xa + 4 * c, C - c)
                if a.size:
                    v = v * load_some(address_of(a) + 4 * c, C - c)
                write(v, c, place, C - c, end)


@kernel(ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, INT)
def pointwise_bwd(
    gy: Any, a: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, threads: int, share: Share
) -> None:
    """Write a · gy to gx, or add it with `accumulate`; then apply the gate.  gx may be gy.

    a (C,) may be empty: then it is 1.
    """
    N, H, W, C = gx.shape
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gy, mask), gate)
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            ga, place = at(gy, n, h, w), place_of(n, h, w, end)
            for c in range(0, C, LANES):
                v = load_some(ga + 4 * c, C - c)
                if a.size:
                    v = v * load_some(address_of(a) + 4 * c, C - c)
                write(v, c, place, C - c, end)
