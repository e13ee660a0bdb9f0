"""The epilogue of a convolution: it finishes the plain sums of a row of pixels in one block of TILE_CHANNELS.

Forward:   y  = clip(sum + b + r, lo, hi); mask = the bit lo < · < hi of each unit
Backward:  gx = sum, or gx + sum with `accumulate`; then the gate is applied

Addresses are those of channel 0 of the first pixel.  Steps are bytes from pixel to pixel.  The block starts
at channel c0 of C.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .codegen.bits import store_bits
from .codegen.emit import LANES
from .codegen.gate import Gate, clip, write_gradient
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
                write_gradient(load(s + 4 * c), c, gate, accumulate, gx, mask, LANES)
            else:
                write_gradient(load(s + 4 * c), c, gate, accumulate, gx, mask, C - c0 - c)
        s += s_step
        gx += gx_step
        mask += mask_step


class Plane(NamedTuple):
    """An activation as numbers: the address of its first pixel, strides in bytes, and sizes."""

    address: int
    image: int
    line: int
    pixel: int
    H: int
    W: int
    C: int


@device_function
def pixel_of(x: Plane, n: int, h: int, w: int) -> int:
    """Return the address of a pixel."""
    return x.address + n * x.image + h * x.line + w * x.pixel


class EndFwd(NamedTuple):
    """The arguments of `epilogue_fwd` for a whole layer.  r and mask are empty for none."""

    b: int
    lo: float
    hi: float
    r: Plane
    mask: Plane
    y: Plane


class EndBwd(NamedTuple):
    """The arguments of `epilogue_bwd` for a whole layer.  `targets`: rows of gx for each row of the mask."""

    accumulate: int
    gate: Gate
    targets: int
    mask: Plane
    gx: Plane


@device_function
def end_run_fwd(s: int, pixels: int, c0: int, n: int, h: int, w: int, end: EndFwd) -> None:
    """Finish the sums at `s` of a run of pixels of one row, from (n, h, w) on."""
    r = pixel_of(end.r, n, h, w) if end.r.C else 0
    mask = pixel_of(end.mask, n, h, w) if end.mask.C else 0
    epilogue_fwd(
        s, 4 * TILE_CHANNELS, pixels, c0, end.y.C, end.b, end.lo, end.hi,
        r, end.r.pixel, mask, end.mask.pixel, pixel_of(end.y, n, h, w), end.y.pixel,
    )  # fmt: skip


@device_function
def end_run_bwd(s: int, pixels: int, c0: int, n: int, h: int, w: int, end: EndBwd) -> None:
    """`end_run_fwd` of a gradient."""
    epilogue_bwd(
        s, 4 * TILE_CHANNELS, pixels, c0, end.gx.C, end.accumulate, end.gate.forward, end.gate.gradient,
        pixel_of(end.mask, n // end.targets, h, w), end.mask.pixel, pixel_of(end.gx, n, h, w), end.gx.pixel,
    )  # fmt: skip
