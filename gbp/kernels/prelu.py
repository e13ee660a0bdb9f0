"""PRelu: below 0 each place of the input has its own slope.

    y = x where x ≥ 0, slopes · x elsewhere        gx = gy where x > 0, slopes · gy elsewhere

Source: ONNX PRelu; He et al. 2015, "Delving Deep into Rectifiers", section 2.1.
"""

from __future__ import annotations

from typing import Any

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate, write_gradient
from .codegen.jit import ACTIVATION, INT, kernel
from .codegen.packing import Share
from .codegen.simd import above, at, load_some, select, store_some, zeros
from .codegen.views import part_of, targets_of


@kernel(ACTIVATION, ACTIVATION, ACTIVATION, INT)
def prelu_fwd(x: Any, slopes: Any, y: Any, threads: int, share: Share) -> None:
    """Write y = x where x ≥ 0, slopes · x elsewhere; slopes is (1, H, W, C).  y may be x."""
    N, H, W, C = x.shape
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            xa, sa, ya = at(x, n, h, w), at(slopes, 0, h, w), at(y, n, h, w)
            for c in range(0, C, LANES):
                v = load_some(xa + 4 * c, C - c)
                v = select(above(zeros(), v), v * load_some(sa + 4 * c, C - c), v)
                store_some(ya + 4 * c, v, C - c)


@kernel(ACTIVATION, ACTIVATION, ACTIVATION, MASK, GATE, ACTIVATION, INT, INT)
def prelu_bwd(
    gy: Any, x: Any, slopes: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, threads: int, share: Share
) -> None:
    """Write gy where x > 0, slopes · gy elsewhere, to gx, or add it with `accumulate`; then apply the gate.

    gx may be gy.
    """
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, x), targets_of(gy, mask)
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            ga, xa, sa = at(gy, n, h, w), at(x, n // sharing, h, w), at(slopes, 0, h, w)
            to, ma = at(gx, n, h, w), at(mask, n // targets, h, w)
            for c in range(0, C, LANES):
                v = load_some(ga + 4 * c, C - c)
                positive = above(load_some(xa + 4 * c, C - c), zeros())
                v = select(positive, v, v * load_some(sa + 4 * c, C - c))
                write_gradient(v, c, gate, accumulate, to, ma, C - c)
