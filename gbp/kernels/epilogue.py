"""The epilogue of a convolution: it finishes the plain sums of a row of pixels in one block of TILE_CHANNELS.

Forward:   y  = clip(sum + b + r, lo, hi); mask = the bit lo < · < hi of each unit
Backward:  gx = sum, or gx + sum with `accumulate`; then the gate is applied

Addresses are those of channel 0 of the first pixel.  Steps are bytes from pixel to pixel.  The block starts
at channel c0 of C.
"""

from __future__ import annotations

from typing import Any

from .codegen.bits import store_bits
from .codegen.emit import LANES
from .codegen.gate import Gate, clip, gated
from .codegen.jit import device_function
from .codegen.memory import ALIGNMENT
from .codegen.simd import above, broadcast, load, load_some, prefetch_read, prefetch_write, store_some
from .codegen.tile import TILE_CHANNELS


@device_function
def prefetch_epilogue(y: int, y_step: int, r: int, r_step: int, pixels: int) -> None:
    """Prefetch the cache lines of a whole block that the epilogue writes, and those of r that it reads.

    y and r are the addresses of the block; r may be 0.
    """
    for _ in range(pixels):
        for line in range(0, 4 * TILE_CHANNELS, ALIGNMENT):
            prefetch_write(y + line)
            if r:
                prefetch_read(r + line)
        y, r = y + y_step, r + r_step if r else 0


@device_function
def _epilogue_vector_fwd(v: Any, lo: Any, hi: Any, r: int, mask: int, y: int, count: int) -> None:
    """Finish one vector of `count` channels.  If `count` is the constant LANES, there is no branch."""
    if r:
        v = v + load_some(r, count)
    if mask:
        store_bits(mask, above(v, lo) & above(hi, v), count)
    store_some(y, clip(v, lo, hi), count)


@device_function
def epilogue_fwd(
    s: int,
    s_step: int,
    pixels: int,
    c0: int,
    C: int,
    b: int,
    lo: float,
    hi: float,
    r: int,
    r_step: int,
    mask: int,
    mask_step: int,
    y: int,
    y_step: int,
) -> None:
    """Finish the sums at `s`.  The bias at `b` is padded to whole blocks.  r and mask may be 0 for none."""
    low, high = broadcast(lo), broadcast(hi)
    b, y = b + 4 * c0, y + 4 * c0
    for _ in range(pixels):
        for c in range(0, min(TILE_CHANNELS, C - c0), LANES):
            v = load(s + 4 * c) + load(b + 4 * c)
            rc, mc = r + 4 * (c0 + c) if r else 0, mask + (c0 + c) // 8 if mask else 0
            if c0 + c + LANES <= C:
                _epilogue_vector_fwd(v, low, high, rc, mc, y + 4 * c, LANES)
            else:
                _epilogue_vector_fwd(v, low, high, rc, mc, y + 4 * c, C - c0 - c)
        s += s_step
        y += y_step
        if r:
            r += r_step
        if mask:
            mask += mask_step


@device_function
def _epilogue_vector_bwd(v: Any, accumulate: int, gate: Gate, mask: int, gx: int, count: int) -> None:
    if accumulate:
        v = v + load_some(gx, count)
    store_some(gx, gated(v, gate, mask, count), count)


@device_function
def epilogue_bwd(
    s: int,
    s_step: int,
    pixels: int,
    c0: int,
    C: int,
    accumulate: int,
    forward: int,
    gradient: int,
    mask: int,
    mask_step: int,
    gx: int,
    gx_step: int,
) -> None:
    """Finish the sums at `s`.  `forward` and `gradient` are the gate."""
    gate = Gate(forward, gradient)
    mask, gx = mask + c0 // 8, gx + 4 * c0
    for _ in range(pixels):
        for c in range(0, min(TILE_CHANNELS, C - c0), LANES):
            if c0 + c + LANES <= C:
                _epilogue_vector_bwd(load(s + 4 * c), accumulate, gate, mask + c // 8, gx + 4 * c, LANES)
            else:
                _epilogue_vector_bwd(load(s + 4 * c), accumulate, gate, mask + c // 8, gx + 4 * c, C - c0 - c)
        s += s_step
        gx += gx_step
        mask += mask_step
