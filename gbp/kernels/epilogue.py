"""The end of a step: what a kernel does with sums before they leave the registers or the cache.

    Forward    y  = clip(sum + b + r, lo, hi);  mask = the bit lo < · < hi of each unit
    Backward   gx = sum, or gx + sum;  then the gate of gx's own rectifier

A kernel makes a `Forward` or a `Backward` of its arguments and passes it on whole.  All functions here take
either, so that one function computes a convolution in both directions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .codegen.bits import store_bits
from .codegen.emit import LANES
from .codegen.gate import Gate, clip, gated
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
    store_some,
)
from .codegen.tile import TILE_CHANNELS
from .codegen.work import sample_of


class Plane(NamedTuple):
    """An array (N, H, W, C) as numbers: the address of its first pixel, strides in bytes, and sizes."""

    address: int
    image: int
    line: int
    pixel: int
    H: int
    W: int
    C: int


@device_function
def plane_of(x: Any) -> Plane:
    """An array as numbers.  C is 0 if it is empty."""
    return Plane(
        address_of(x), x.strides[0], x.strides[1], x.strides[2], x.shape[1], x.shape[2], x.shape[3]
    )  # fmt: skip


@device_function
def pixel_of(x: Plane, n: int, h: int, w: int) -> int:
    """The address of a pixel."""
    return x.address + n * x.image + h * x.line + w * x.pixel


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
def right_of(place: Place, pixels: int, end: Any) -> Place:
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
        place = right_of(place, 1, end)


@device_function
def prefetch(pixels: int, c0: int, n: int, h: int, w: int, end: Any) -> None:
    """Prefetch what `finish` reads and writes of a whole block of channels."""
    place = place_of(n, h, w, end)
    for _ in range(pixels):
        for line in range(4 * c0, 4 * (c0 + TILE_CHANNELS), ALIGNMENT):
            prefetch_write(place.out + line)
            if end.r.C:
                prefetch_read(place.r + line)
        place = right_of(place, 1, end)
