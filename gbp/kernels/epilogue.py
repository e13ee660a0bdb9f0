"""The epilogue of a convolution: it finishes the plain sums of a row of pixels in one block of TILE_CHANNELS.

Forward:   y  = clip(sum + b + r, lo, hi); mask = the bit lo < · < hi of each unit
Backward:  gx = sum, or gx + sum with `accumulate`; then the gate is applied

Addresses are those of channel 0 of the first pixel.  Steps are bytes from pixel to pixel.  The block starts
at channel c0 of C.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .codegen.bits import store_bits
from .codegen.emit import LANES, VECTOR_BYTES
from .codegen.gate import Gate, clip, gated, write_gradient
from .codegen.jit import by_class, device_function
from .codegen.memory import ALIGNMENT
from .codegen.simd import (
    above,
    address_of,
    broadcast,
    load,
    load_some,
    prefetch_read,
    prefetch_write,
    store,
    store_some,
)
from .codegen.tile import TILE_CHANNELS
from .codegen.views import sample_of


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
def plane_of(x: Any) -> Plane:
    """An array (N, H, W, C) as numbers; it may be empty."""
    return Plane(
        address_of(x), x.strides[0], x.strides[1], x.strides[2], x.shape[1], x.shape[2], x.shape[3]
    )  # fmt: skip


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


class Run(NamedTuple):
    """Neighbouring pixels whose sums are at `s`, in a whole block from channel c0 on.

    `left`: how many of the `pixels` are in the first row; each further row has `width`.  Between rows, `gap`
    bytes of sums belong to padding.  `y`, `r`, `mask`: where the block of the first pixel is in y or gx, r
    and mask, whose rows join.
    """

    s: int
    pixels: int
    left: int
    width: int
    gap: int
    c0: int
    y: int
    r: int
    mask: int


@device_function
def rows_join(x: Plane) -> bool:
    """Whether each row begins where the row before it ends."""
    return x.C == 0 or x.line == x.W * x.pixel


@device_function
def joins_fwd(end: EndFwd) -> bool:
    """Whether a run may go on in the next row."""
    return rows_join(end.y) and rows_join(end.r) and rows_join(end.mask)


@device_function
def joins_bwd(end: EndBwd) -> bool:
    """`joins_fwd` of a gradient."""
    return rows_join(end.gx) and rows_join(end.mask)


@device_function
def run_fwd(s: int, pixels: int, gap: int, c0: int, n: int, h: int, w: int, end: EndFwd) -> Run:
    """The run from pixel (n, h, w) on."""
    left = end.y.W - w
    y, r = pixel_of(end.y, n, h, w) + 4 * c0, pixel_of(end.r, n, h, w) + 4 * c0
    return Run(s, pixels, left, end.y.W, gap, c0, y, r, pixel_of(end.mask, n, h, w) + c0 // 8)


@device_function
def run_bwd(s: int, pixels: int, gap: int, c0: int, n: int, h: int, w: int, end: EndBwd) -> Run:
    """`run_fwd` of a gradient."""
    left = end.gx.W - w
    mask = pixel_of(end.mask, n // end.targets, h, w) + c0 // 8
    return Run(s, pixels, left, end.gx.W, gap, c0, pixel_of(end.gx, n, h, w) + 4 * c0, 0, mask)


@device_function
def rest_of(run: Run, count: int, s: int, y: int, r: int, mask: int) -> Run:
    """The rest of a run after `count` pixels of its first row: the next pixel is at s, y, r and mask."""
    left = run.left - count
    if left == 0:
        left, s = run.width, s + run.gap
    return Run(s, run.pixels - count, left, run.width, run.gap, run.c0, y, r, mask)


@device_function
def finish_fwd(run: Run, count: int, end: EndFwd) -> Run:
    """Finish up to `count` pixels of the first row of a run.  Returns the rest of it."""
    count = min(count, run.pixels, run.left)
    low, high = broadcast(end.lo), broadcast(end.hi)
    b0, b1 = load(end.b + 4 * run.c0), load(end.b + 4 * run.c0 + VECTOR_BYTES)
    s, y, r, mask, has_r, has_mask = run.s, run.y, run.r, run.mask, end.r.C != 0, end.mask.C != 0
    for _ in range(count):
        v0, v1 = load(s) + b0, load(s + VECTOR_BYTES) + b1
        if has_r:
            v0, v1 = v0 + load(r), v1 + load(r + VECTOR_BYTES)
        if has_mask:
            store_bits(mask, above(v0, low) & above(high, v0), LANES)
            store_bits(mask + LANES // 8, above(v1, low) & above(high, v1), LANES)
        store(y, clip(v0, low, high))
        store(y + VECTOR_BYTES, clip(v1, low, high))
        s, y, r, mask = s + 4 * TILE_CHANNELS, y + end.y.pixel, r + end.r.pixel, mask + end.mask.pixel
    return rest_of(run, count, s, y, r, mask)


@device_function
def finish_bwd(run: Run, count: int, end: EndBwd) -> Run:
    """`finish_fwd` of a gradient."""
    count = min(count, run.pixels, run.left)
    s, gx, mask = run.s, run.y, run.mask
    for _ in range(count):
        write_gradient(load(s), 0, end.gate, end.accumulate, gx, mask, LANES)
        write_gradient(load(s + VECTOR_BYTES), LANES, end.gate, end.accumulate, gx, mask, LANES)
        s, gx, mask = s + 4 * TILE_CHANNELS, gx + end.gx.pixel, mask + end.mask.pixel
    return rest_of(run, count, s, gx, 0, mask)


# A kernel makes a `Forward` or a `Backward` of its arguments and passes it on whole.  The functions below
# take either, so that one function computes a convolution in both directions.


class Forward(NamedTuple):
    """The end of a forward step.

    `out`, `mask`: what is written.  `r`: what is added.  mask and r may be empty.  `b`: the address of the
    bias, or 0.
    """

    out: Plane
    r: Plane
    mask: Plane
    b: int
    lo: float
    hi: float


class Backward(NamedTuple):
    """The end of an input gradient.

    `out`: the gradient.  `r`: what is added: `out` itself, or nothing.  `mask`: of the rectifier, one row for
    `targets` rows of the gradient.
    """

    out: Plane
    r: Plane
    mask: Plane
    targets: int
    gate: Gate


@device_function
def backward(gx: Plane, accumulate: int, mask: Plane, targets: int, gate: Gate) -> Backward:
    """The end that writes gx, or adds to it with `accumulate`."""
    r = Plane(gx.address, gx.image, gx.line, gx.pixel, gx.H, gx.W, gx.C if accumulate else 0)
    return Backward(gx, r, mask, targets, gate)


class Place(NamedTuple):
    """The addresses of a pixel in the arrays of an end.  Those in empty arrays mean nothing."""

    out: int
    r: int
    mask: int


def _place_forward(n: int, h: int, w: int, end: Forward) -> Place:
    return Place(pixel_of(end.out, n, h, w), pixel_of(end.r, n, h, w), pixel_of(end.mask, n, h, w))


def _place_backward(n: int, h: int, w: int, end: Backward) -> Place:
    mask = pixel_of(end.mask, sample_of(n, end.targets), h, w)
    return Place(pixel_of(end.out, n, h, w), pixel_of(end.r, n, h, w), mask)


#: The place of pixel (n, h, w).
place_of = by_class("place_of", {Forward: _place_forward, Backward: _place_backward})


@device_function
def beside(place: Place, pixels: int, end: Any) -> Place:
    """The place so many pixels to the right."""
    out, r, mask = end.out.pixel, end.r.pixel, end.mask.pixel
    return Place(place.out + pixels * out, place.r + pixels * r, place.mask + pixels * mask)


def _write_forward(v: Any, c: int, place: Place, count: int, end: Forward) -> None:
    lo, hi = broadcast(end.lo), broadcast(end.hi)
    if end.b:
        v = v + load_some(end.b + 4 * c, count)
    if end.r.C:
        v = v + load_some(place.r + 4 * c, count)
    if end.mask.C:
        store_bits(place.mask + c // 8, above(v, lo) & above(hi, v), count)
    store_some(place.out + 4 * c, clip(v, lo, hi), count)


def _write_backward(v: Any, c: int, place: Place, count: int, end: Backward) -> None:
    if end.r.C:
        v = v + load_some(place.r + 4 * c, count)
    store_some(place.out + 4 * c, gated(v, end.gate, place.mask + c // 8, count), count)


#: Finish a vector: channels c … of a pixel.  If `count` is the constant LANES, there is no branch.
write = by_class("write", {Forward: _write_forward, Backward: _write_backward})


@device_function
def finish(s: int, step: int, pixels: int, c0: int, n: int, h: int, w: int, end: Any) -> None:
    """Finish neighbouring pixels of a row, from (n, h, w) on, in the block of channels from c0 on.

    Their sums are at s, TILE_CHANNELS every `step` bytes.
    """
    place, C = place_of(n, h, w, end), end.out.C
    for _ in range(pixels):
        for c in range(c0, min(c0 + TILE_CHANNELS, C), LANES):
            v = load(s + 4 * (c - c0))
            if c + LANES <= C:
                write(v, c, place, LANES, end)
            else:
                write(v, c, place, C - c, end)
        s += step
        place = beside(place, 1, end)


@device_function
def prefetch(pixels: int, c0: int, n: int, h: int, w: int, end: Any) -> None:
    """Prefetch what `finish` reads and writes of a whole block of channels."""
    place = place_of(n, h, w, end)
    for _ in range(pixels):
        for line in range(4 * c0, 4 * (c0 + TILE_CHANNELS), ALIGNMENT):
            prefetch_write(place.out + line)
            if end.r.C:
                prefetch_read(place.r + line)
        place = beside(place, 1, end)
