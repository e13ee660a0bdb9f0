"""How a convolution ends: what becomes of the plain sums of one pixel's block of TILE_CHANNELS channels.

Forward:  y  = clip(sum + b + r, lo, hi), and the bit lo < · < hi of each unit to mask
Reverse:  gx = sum, added to gx with `accumulate`; of that, what passes the gate

Addresses are those of the pixel's channel 0; the block starts at channel c0 of C.
"""

from __future__ import annotations

from typing import Any

from .emit import LANES
from .jit import device_function
from .rectifier import Gate, clip, gated
from .simd import above, load, load_some, store_bits, store_some
from .tile import TILE_CHANNELS


@device_function
def _end_fwd(
    v: Any, lo: Any, hi: Any, has_r: bool, r: int, has_mask: bool, mask: int, y: int, count: int
) -> None:
    """One vector of `count` channels; a constant LANES for it costs no branch."""
    if has_r:
        v = v + load_some(r, count)
    if has_mask:
        store_bits(mask, above(v, lo) & above(hi, v), count)
    store_some(y, clip(v, lo, hi), count)


@device_function
def end_fwd(
    s: int, c0: int, C: int, b: int, lo: Any, hi: Any, has_r: bool, r: int, has_mask: bool, mask: int, y: int
) -> None:
    """From the sums at `s`; the bias at `b` is padded to whole blocks."""
    b, r, mask, y = b + 4 * c0, r + 4 * c0, mask + c0 // 8, y + 4 * c0
    if c0 + TILE_CHANNELS <= C:
        for c in range(0, TILE_CHANNELS, LANES):
            v = load(s + 4 * c) + load(b + 4 * c)
            _end_fwd(v, lo, hi, has_r, r + 4 * c, has_mask, mask + c // 8, y + 4 * c, LANES)
    else:
        for c in range(0, C - c0, LANES):
            v = load(s + 4 * c) + load(b + 4 * c)
            _end_fwd(v, lo, hi, has_r, r + 4 * c, has_mask, mask + c // 8, y + 4 * c, C - c0 - c)


@device_function
def _end_bwd(v: Any, accumulate: int, gate: Gate, mask: int, gx: int, count: int) -> None:
    if accumulate:
        v = v + load_some(gx, count)
    store_some(gx, gated(v, gate, mask, count), count)


@device_function
def end_bwd(s: int, c0: int, C: int, accumulate: int, gate: Gate, mask: int, gx: int) -> None:
    """From the sums at `s`."""
    mask, gx = mask + c0 // 8, gx + 4 * c0
    if c0 + TILE_CHANNELS <= C:
        for c in range(0, TILE_CHANNELS, LANES):
            _end_bwd(load(s + 4 * c), accumulate, gate, mask + c // 8, gx + 4 * c, LANES)
    else:
        for c in range(0, C - c0, LANES):
            _end_bwd(load(s + 4 * c), accumulate, gate, mask + c // 8, gx + 4 * c, C - c0 - c)
