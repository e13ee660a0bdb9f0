"""Products of two tensors of one shape, or of a tensor and one number a channel (squeeze-and-excitation).

    y[n, h, w, c]  = x[n, h, w, c] · s[n, h, w, c]
    gx[n, h, w, c] = gy[n, h, w, c] · s[n, h, w, c],            then the gate of gx's own rectifier
    gs[n, c]       = Σ_{h, w} gy[n, h, w, c] · x[n, h, w, c],   if s has one number a channel; then its gate

The caller broadcasts s with strides of 0.  A sum adds up the pixels of a line in one chain, and then the
lines, so it depends on the sizes of a sample alone.

Source: ONNX Mul; Hu et al. 2018, "Squeeze-and-Excitation Networks", section 3.
"""

from __future__ import annotations

from typing import Any

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate, gated, write_gradient
from .codegen.jit import ACTIVATION, INT, inlined, kernel
from .codegen.packing import Share
from .codegen.simd import at, fma, load_some, store_some, zeros
from .codegen.work import part_of, targets_of


@inlined
def _multiply(x: int, s: int, y: int, count: int) -> None:
    store_some(y, load_some(x, count) * load_some(s, count), count)


@kernel(ACTIVATION, ACTIVATION, ACTIVATION, INT)
def products_fwd(x: Any, s: Any, y: Any, threads: int, share: Share) -> None:
    """Write y = x · s, all of one shape; y may be either."""
    N, H, W, C = y.shape
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            xa, sa, ya = at(x, n, h, w), at(s, n, h, w), at(y, n, h, w)
            for c in range(0, C - C % LANES, LANES):
                _multiply(xa + 4 * c, sa + 4 * c, ya + 4 * c, LANES)
            if C % LANES:
                c = C - C % LANES
                _multiply(xa + 4 * c, sa + 4 * c, ya + 4 * c, C - c)


@kernel(ACTIVATION, ACTIVATION, MASK, GATE, ACTIVATION, INT, INT)
def products_bwd(
    gy: Any, s: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, threads: int, share: Share
) -> None:
    """Write gy · s to gx, or add it with `accumulate`; then apply the gate.

    gy and gx have N·K rows, s has N.
    """
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, s), targets_of(gy, mask)
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            ga, sa = at(gy, n, h, w), at(s, n // sharing, h, w)
            xa, ma = at(gx, n, h, w), at(mask, n // targets, h, w)
            for c in range(0, C - C % LANES, LANES):
                v = load_some(ga + 4 * c, LANES) * load_some(sa + 4 * c, LANES)
                write_gradient(v, c, gate, accumulate, xa, ma, LANES)
            if C % LANES:
                c = C - C % LANES
                v = load_some(ga + 4 * c, C - c) * load_some(sa + 4 * c, C - c)
                write_gradient(v, c, gate, accumulate, xa, ma, C - c)


@inlined
def _add_line(g: int, g_next: int, x: int, x_next: int, W: int, total: int, starts: bool, count: int) -> None:
    """Add Σ g · x over a line of W pixels to the vector at `total`, or write it."""
    v = zeros()
    for _ in range(W):
        v = fma(load_some(g, count), load_some(x, count), v)
        g, x = g + g_next, x + x_next
    if not starts:
        v = load_some(total, count) + v
    store_some(total, v, count)


@kernel(ACTIVATION, ACTIVATION, MASK, GATE, ACTIVATION, INT, INT)
def products_sum_bwd(
    gy: Any, x: Any, mask: Any, gate: Gate, gs: Any, accumulate: int, threads: int, share: Share
) -> None:
    """Write Σ gy · x of each channel to gs (N·K, 1, 1, C), or add it with `accumulate`; then apply the gate.

    gy has N·K rows, x has N.  Threads share the channels.
    """
    N, H, W, C = gy.shape
    sharing, targets = targets_of(gy, x), targets_of(gy, mask)
    vectors = (C + LANES - 1) // LANES
    first, last = part_of(N * vectors, share, threads)
    for n in range(first // vectors, (last + vectors - 1) // vectors):
        start = LANES * max(0, first - n * vectors)
        stop = min(C, LANES * (last - n * vectors))
        to, ma = at(gs, n, 0, 0), at(mask, n // targets, 0, 0)
        for h in range(H):
            ga, xa = at(gy, n, h, 0), at(x, n // sharing, h, 0)
            starts = h == 0 and not accumulate
            for c in range(start, stop, LANES):
                g, v, total = ga + 4 * c, xa + 4 * c, to + 4 * c
                if C - c >= LANES:
                    _add_line(g, gy.strides[2], v, x.strides[2], W, total, starts, LANES)
                else:
                    _add_line(g, gy.strides[2], v, x.strides[2], W, total, starts, C - c)
        for c in range(start, stop, LANES):
            store_some(to + 4 * c, gated(load_some(to + 4 * c, C - c), gate, ma + c // 8, C - c), C - c)
