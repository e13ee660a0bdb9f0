"""Rectifiers: y = min(max(x, lo), hi) with one bit a unit, and the gate that a rule makes of that bit.

Forward  (ReLU: lo = 0, hi = ∞):   bit = lo < x < hi;   y = x clipped to [lo, hi]
Reverse, at the node:              gx  = gy where (bit or not forward gate) and (gy > 0 or not gradient gate)

NaN passes through both, so that a poisoned result shows.  Masks are (N, H, W, ⌈C/8⌉) bytes, channel c in
bit c % 8 of byte c // 8; a gradient of N·K rows (K targets a sample) shares the masks of its N samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import types

from .bits import load_bits
from .emit import LANES
from .jit import device_function
from .simd import above, load_some, select, store_some, zeros

MASK = types.Array(types.uint8, 4, "A")


class Gate(NamedTuple):
    """All that a kernel knows of a rule: which of the two gates are shut at a rectifier (0 or 1)."""

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
    """The part of g that passes the gate; the mask is read only where the forward gate is shut."""
    if gate.forward:
        g = select(load_bits(mask_address, count), g, zeros())
    if gate.gradient:
        g = select(above(zeros(), g), zeros(), g)
    return g


@device_function
def gate_run(x: int, count: int, gate: Gate, mask_address: int) -> None:
    """Gate `count` values at address x in place."""
    if gate.forward or gate.gradient:
        for c in range(0, count, LANES):
            store_some(
                x + 4 * c,
                gated(load_some(x + 4 * c, count - c), gate, mask_address + c // 8, count - c),
                count - c,
            )
