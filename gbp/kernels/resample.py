"""Linear maps along one axis, as sparse matrices: enlarging, shrinking, selecting, repeating, mirroring.

    y[n, p, o, m, c] = Σ_k weights[k] · x[n, p, taps[k], m, c]      k from starts[o] to starts[o + 1] − 1

The backward pass is the same with the transposed matrix.  Sums are in the order of the table.  Long sums are
cut into parts, which are added with Kahan's compensation (1965), so that rounding does not grow with the
number of parts.

Source: ONNX Resize, Gather, Slice, Tile, Expand, Pad, CumSum.
"""

from __future__ import annotations

from typing import Any

from numba import types

from .codegen.emit import LANES
from .codegen.gate import GATE, Gate, write_gradient
from .codegen.jit import INT, WEIGHTS, inlined, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, broadcast, fma, load_some, zeros
from .codegen.work import part_of, targets_of

#: Any strides, with a dense last axis.
AROUND = types.Array(types.float32, 5, "A")
AROUND_MASK = types.Array(types.uint8, 5, "A")
STARTS = types.Array(types.int64, 1, "C")
TAPS = types.Array(types.int32, 1, "C")

_PART = 64


@inlined
def _sum(x: int, step: int, start: int, stop: int, taps: Any, weights: Any, base: Any, count: int) -> Any:
    """The sum of entries [start, stop) of the table over x less `base`, for `count` channels.

    Tap 0 is at x, and taps are `step` bytes apart.
    """
    v, lost = zeros(), zeros()
    for part in range(start, stop, _PART):
        s = zeros()
        for k in range(part, min(part + _PART, stop)):
            s = fma(broadcast(weights[k]), load_some(x + taps[k] * step, count) - base, s)
        s = s - lost
        total = v + s
        lost = (total - v) - s
        v = total
    return v


@kernel(AROUND, STARTS, TAPS, WEIGHTS, AROUND_MASK, GATE, AROUND, INT, INT, INT)
def resample(
    x: Any,
    starts: Any,
    taps: Any,
    weights: Any,
    mask: Any,
    gate: Gate,
    y: Any,
    accumulate: int,
    anchored: int,
    threads: int,
    share: Share,
) -> None:
    """Write y, or add to y with `accumulate`; then apply the gate.  y is not x.

    starts, taps, weights: the table of the equation.  mask, gate: those of y, in a backward pass.
    anchored: 1 where the weights of each output add up to 1.  Then y = x₀ + Σ_k w_k · (x_k − x₀) is computed,
    where x₀ is the first tap.  So a flat area stays flat to the last bit, for any weights.
    """
    N, P, O, M, C = y.shape
    targets = targets_of(y, mask)
    lines = N * P * O
    for line in range(*part_of(lines, share, threads)):
        n, p, o = line // (P * O), line // O % P, line % O
        start, stop = starts[o], starts[o + 1]
        for m in range(M):
            xa = address_of(x) + n * x.strides[0] + p * x.strides[1] + m * x.strides[3]
            ya = address_of(y) + n * y.strides[0] + p * y.strides[1] + o * y.strides[2]
            ya += m * y.strides[3]
            ma = address_of(mask) + n // targets * mask.strides[0] + p * mask.strides[1]
            ma += o * mask.strides[2] + m * mask.strides[3]
            for c in range(0, C, LANES):
                base = zeros()
                if anchored and start < stop:
                    base = load_some(xa + taps[start] * x.strides[2] + 4 * c, C - c)
                v = base + _sum(xa + 4 * c, x.strides[2], start, stop, taps, weights, base, C - c)
                write_gradient(v, c, gate, accumulate, ya, ma, C - c)
