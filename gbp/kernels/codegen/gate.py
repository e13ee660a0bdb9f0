"""Rectifiers: y = min(max(x, lo), hi) with one bit for each unit, and the gate that uses these bits.

Forward  (ReLU: lo = 0, hi = ∞):   bit = lo < x < hi;   y = x clipped to [lo, hi]
Backward:                          gx  = gy where (bit or not forward gate) and (gy > 0 or not gradient gate)

NaN passes both, so that it shows in the result.  Masks are (N, H, W, ⌈C/8⌉) bytes; channel c is bit c % 8 of
byte c // 8.  A gradient has N·K rows for K targets of each sample, and uses the masks of its N samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import types

from .bits import load_bits
from .emit import LANES
from .jit import device_function, inlined
from .simd import above, load_some, select, store_some, zeros

MASK = types.Array(types.uint8, 4, "A")


class Gate(NamedTuple):
    """A rule, as kernels know it: which of the two gates act (1) and which let everything pass (0).

    `forward` stops a gradient where the unit's bit is 0, `gradient` where the gradient is not positive.
    """

    forward: int
    gradient: int


GATE = types.NamedUniTuple(types.int64, 2, Gate)
OPEN = Gate(0, 0)


@device_function
def clip(x: Any, lo: Any, hi: Any) -> Any:
    y = select(above(lo, x), lo, x)
    return select(above(y, hi), hi, y)


@device_function
def gated(g: Any, gate: Gate, mask_address: int, count: int) -> Any:
    """g where it passes the gate, 0 elsewhere.  The mask is read only if the forward gate acts."""
    if gate.forward:
        g = select(load_bits(mask_address, count), g, zeros())
    if gate.gradient:
        g = select(above(zeros(), g), zeros(), g)
    return g


@inlined
def write_gradient(v: Any, c: int, gate: Gate, accumulate: int, gx: int, mask: int, count: int) -> None:
    """Write channels c … of a gradient, or add them with `accumulate`; then apply the gate.

    gx and mask are the addresses of the pixel.  If `count` is the constant LANES, there is no branch.
    """
    if accumulate:
        v = v + load_some(gx + 4 * c, count)
    store_some(gx + 4 * c, gated(v, gate, mask + c // 8, count), count)


@device_function
def gate_run(x: int, count: int, gate: Gate, mask_address: int) -> None:
    """Apply the gate to `count` values at address x, in place."""
    if gate.forward or gate.gradient:
        for c in range(0, count, LANES):
            store_some(
                x + 4 * c,
                gated(load_some(x + 4 * c, count - c), gate, mask_address + c // 8, count - c),
                count - c,
            )
