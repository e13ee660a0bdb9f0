"""Matrix products on Intel's AMX at float32's accuracy, in whole numbers: digits instead of bfloat16 parts.

The values of a sample are scaled by one number and rounded to whole numbers of 24 bits, and so are the
weights of each output channel.  Before that the input channels are balanced (`amx_balance`), because small
values may have large weights: weights are divided, and values multiplied, by a power of two for each channel,
so that each channel adds about as much.  A whole number is three digits of 8 bits: those of values that are
never negative are one unsigned digit and two signed ones, those of weights three signed ones.

    Σ x·w  =  Σ (x₀·2¹⁶ + x₁·2⁸ + x₂) · (w₀·2¹⁶ + w₁·2⁸ + w₂)
           ≈  2³²·Σ x₀·w₀  +  2²⁴·Σ (x₀·w₁ + x₁·w₀)  +  2¹⁶·Σ (x₀·w₂ + x₁·w₁ + x₂·w₀)

These sums, the *levels*, are exact in int32.  They become float32 once, at the end.  The error is what the
scales leave and the missing products, x₁·w₂ + x₂·w₁ first.  Both are relative to the *largest* value of a
sample, and weight of a channel: about 1.4·10⁻⁸ · (largest ÷ root mean square of x) · (the same of w).  An
error that is small beside the bright parts of a picture must be small beside the dark ones too: the root mean
square is the least of any run of about 16 pixels of a row, zeros aside.  So a sample with a few very large
values also gets the fourth level, or is left to another algorithm.

The scale depends on the sample alone, and the sums are exact: equal windows give equal outputs, whatever the
threads, the batch and the place.

Source: Ootomo, Ozaki & Yokota 2024, "DGEMM on integer matrix multiplication unit".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import float32
from numpy.typing import NDArray

from .amx_frame import Frame, Split
from .amx_sums import Sum, no_work
from .codegen.amx import (
    PARTS,
    ROW_BYTES,
    TILE_BYTES,
    amx_load,
    amx_multiply_digits,
    amx_multiply_signed,
    amx_store,
    amx_zero,
    load_whole,
    store_digits,
)
from .codegen.emit import LANES, VECTOR_BYTES
from .codegen.jit import copy_of, device_function, inlined, one_of_many
from .codegen.memory import aligned
from .codegen.simd import broadcast, fma, load, load_some, prefetch_read
from .epilogue import Plane

#: Terms of a sum that enter one multiplication, and so the channels of a chunk.
DIGITS_DEPTH = ROW_BYTES
#: The largest whole number of weights, as `amx_scale` has that of values.
_MOST_WEIGHT = 127.49 * 2**16
#: Most terms of a sum, so that the third level fits into int32: each is at most 2⁷·(255 + 2⁷ + 2⁷).
MOST_TERMS = (2**31 - 1) // (2**7 * (255 + 2**7 + 2**7))
#: Channels of a block of weights, and bytes of a block for one chunk and tap.
DIGITS_BLOCK, DIGITS_STEP = LANES, PARTS * TILE_BYTES
#: Bytes of a level of two tiles of pixels, and of all levels: three, and the fourth in two halves.
LEVEL = 2 * TILE_BYTES
LEVELS = 5 * LEVEL
#: How many bytes of x are fetched ahead.
_AHEAD = 2**11
#: Lines of split pixels that are fetched ahead: those of two tiles, and of the further pixels that taps read.
_FETCHED = 36


def pack_digits(w: NDArray[np.float32], divisors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Split and pack weights (O, C, KH, KW) for blocks of DIGITS_BLOCK channels.

    `divisors`: see `amx_balance`.  A block is [chunk][KH][KW][digit][DIGITS_DEPTH / 4][16][4] bytes.  Four
    bytes hold channels k, k + 16, k + 32 and k + 48 of a chunk, as `store_digits` has them.  Behind the
    blocks are float32 numbers: the scale of each output channel, which its whole numbers are multiplied by to
    be weights again, and the divisors, 1 up to whole chunks.  The bits are returned as float32.
    """
    O, C, KH, KW = w.shape
    blocks, count = -(-O // DIGITS_BLOCK), -(-C // DIGITS_DEPTH)
    balance = np.ones(count * DIGITS_DEPTH, np.float32)
    balance[:C] = divisors
    shape = blocks, count, KH, KW, PARTS, DIGITS_DEPTH // 4, DIGITS_BLOCK, 4
    size, scales_size = math.prod(shape), 4 * blocks * DIGITS_BLOCK
    everything = aligned((size + scales_size + balance.nbytes,), np.int8)
    packed = everything[:size].reshape(shape)
    scales = everything[size : size + scales_size].view(np.float32).reshape(blocks, DIGITS_BLOCK)
    everything[size + scales_size :] = balance.view(np.int8)
    whole = np.zeros((DIGITS_BLOCK, count * DIGITS_DEPTH, KH, KW), np.float32)
    numbers = np.empty((count, KH, KW, DIGITS_DEPTH // 4, DIGITS_BLOCK, 4), np.int32)
    octets = numbers.view(np.int8).reshape(*numbers.shape, 4)
    for block in range(blocks):
        part = w[block * DIGITS_BLOCK : (block + 1) * DIGITS_BLOCK]
        np.divide(part, balance[:C, None, None], out=whole[: len(part), :C])
        whole[len(part) :] = 0
        largest = np.maximum(whole.max((1, 2, 3)), -whole.min((1, 2, 3))).astype(np.float64)
        scales[block] = np.where(largest > 0, largest, _MOST_WEIGHT) / _MOST_WEIGHT
        scaled = whole / scales[block, :, None, None, None].astype(np.float64)
        np.rint(scaled, out=scaled)
        # o, chunk, i, k, KH, KW
        split = scaled.reshape(DIGITS_BLOCK, count, 4, DIGITS_DEPTH // 4, KH, KW)
        numbers[:] = split.transpose(1, 4, 5, 3, 0, 2)
        # A half of each lower digit carries into the next, so that what is left of it is signed.
        numbers += 0x8080
        numbers ^= 0x8080
        for k in range(PARTS):
            packed[block, :, :, :, k] = octets[..., PARTS - 1 - k]
    return everything.view(np.float32)


@device_function
def chunks_of_digits(channels: int) -> int:
    return (channels + DIGITS_DEPTH - 1) // DIGITS_DEPTH


@device_function
def balance_at(w: int, size: int, C: int) -> int:
    """The address of the balance of C channels, behind packed weights of `size` floats."""
    return w + 4 * (size - chunks_of_digits(C) * DIGITS_DEPTH)


@device_function
def weight_scales_at(w: int, size: int, O: int, C: int) -> int:
    """The address of the scales of the weights of O channels."""
    return balance_at(w, size, C) - 4 * ((O + DIGITS_BLOCK - 1) // DIGITS_BLOCK * DIGITS_BLOCK)


@device_function
def _load_chunk(address: int) -> Any:
    """The values of a chunk: DIGITS_DEPTH channels are four vectors."""
    two = address + 2 * VECTOR_BYTES
    return load(address), load(address + VECTOR_BYTES), load(two), load(two + VECTOR_BYTES)


@device_function
def _load_last_chunk(address: int, channels: int) -> Any:
    """`_load_chunk` where so many channels exist; the others are 0."""
    two, left = address + 2 * VECTOR_BYTES, channels - 2 * LANES
    a, b = load_some(address, channels), load_some(address + VECTOR_BYTES, channels - LANES)
    return a, b, load_some(two, left), load_some(two + VECTOR_BYTES, left - LANES)


@device_function
def _store_balanced(out: int, part: int, scale: float, factor: int, a: Any, b: Any, c: Any, d: Any) -> None:
    """Store the digits of a chunk, whose channels are multiplied by the numbers at `factor`."""
    e, f, g, h = _load_chunk(factor)
    store_digits(out, part, scale, a * e, b * f, c * g, d * h)


@device_function
def _split_pixels(x: int, plane: Plane, count: int, to: int, split: Split) -> None:
    """Split `count` pixels of a plane from address x on."""
    part, scale = split.part, float32(abs(split.scale))
    whole = plane.C // DIGITS_DEPTH
    left = plane.C - whole * DIGITS_DEPTH
    for _ in range(count):
        pixel, out, factor = x, to, split.balance
        for _ in range(whole):
            for line in range(0, 4 * DIGITS_DEPTH, ROW_BYTES):
                prefetch_read(pixel + line + _AHEAD)
            a, b, c, d = _load_chunk(pixel)
            _store_balanced(out, part, scale, factor, a, b, c, d)
            pixel, out, factor = pixel + 4 * DIGITS_DEPTH, out + PARTS * part, factor + 4 * DIGITS_DEPTH
        if left:
            a, b, c, d = _load_last_chunk(pixel, left)
            _store_balanced(out, part, scale, factor, a, b, c, d)
        x, to = x + plane.pixel, to + ROW_BYTES


@device_function
def split_row_of_digits(
    x: int, plane: Plane, low: int, high: int, to: int, frame: Frame, split: Split
) -> None:
    """`amx_frame.split_row` into digits.  A frame of digits has no pairs."""
    _split_pixels(x, plane, high - low, to + low * ROW_BYTES, split)


@device_function
def sum_of_levels(s: int, scale: float) -> Any:
    """The sums of a pixel in a block, in float32; its first level is at s."""
    large, small = broadcast(float32(2.0**16)), broadcast(float32(2.0**8))
    total = fma(load_whole(s + LEVEL), small, load_whole(s + 2 * LEVEL))
    if scale < 0:
        rest = load_whole(s + 3 * LEVEL) + load_whole(s + 4 * LEVEL)
        total = fma(rest, broadcast(float32(2.0**-8)), total)
    return fma(load_whole(s), large, total)


#: Whether the functions below compute two tiles of pixels or one, and what they do beside.  Each of their
#: copies has its own.
_TWO: bool = True
_work: Any = None


@inlined
def _add_fourth_products(a: int, b: int, s: Sum, w: int) -> None:
    """Add the products of a chunk and tap to the fourth level, whose halves are tiles 0 and 1, or 2 and 3."""
    amx_load(6, w + TILE_BYTES, ROW_BYTES)
    amx_load(7, w + 2 * TILE_BYTES, ROW_BYTES)
    amx_load(4, a + s.part, s.pixel)
    amx_load(5, a + 2 * s.part, s.pixel)
    amx_multiply_signed(0, 4, 7)
    amx_multiply_signed(1, 5, 6)
    if _TWO:
        amx_load(4, b + s.part, s.pixel)
        amx_load(5, b + 2 * s.part, s.pixel)
        amx_multiply_signed(2, 4, 7)
        amx_multiply_signed(3, 5, 6)


@device_function
def _fourth(a: int, b: int, s: Sum, w: int, out: int) -> None:
    """The fourth level, in two halves, because a sum waits for the one before."""
    amx_zero(0)
    amx_zero(1)
    amx_zero(2)
    amx_zero(3)
    for c in range(s.chunks):
        for i in range(s.taps_h):
            to = c * s.chunk + i * s.step_h
            for _ in range(s.taps_w):
                _add_fourth_products(a + to, b + to, s, w)
                w, to = w + DIGITS_STEP, to + s.step_w
    amx_store(0, out + 3 * LEVEL, ROW_BYTES)
    amx_store(1, out + 4 * LEVEL, ROW_BYTES)
    if _TWO:
        amx_store(2, out + 3 * LEVEL + TILE_BYTES, ROW_BYTES)
        amx_store(3, out + 4 * LEVEL + TILE_BYTES, ROW_BYTES)


@inlined
def _fetch(k: int, w0: int, pixels: int, s: Sum) -> None:
    """Fetch the k-th twelfth of a step of weights and of `_FETCHED` lines of pixels, beside a product.

    A load of a tile would wait for each line that is in the second-level cache alone.  Where rows have one
    tap, it takes longer to fetch than to wait.
    """
    if s.taps_w > 1:
        for row in range(DIGITS_STEP // 12 * k, DIGITS_STEP // 12 * (k + 1), ROW_BYTES):
            prefetch_read(w0 + row)
        for row in range(_FETCHED // 12 * k, _FETCHED // 12 * (k + 1)):
            prefetch_read(pixels + row * ROW_BYTES)


@inlined
def _add_products(a: int, b: int, s: Sum, w0: int, pixels: int, run: Any, data: Any) -> Any:
    """Add the products of a chunk and tap to the levels.

    Between two products one side stays, and the sum of a product is not needed for three more: it is ready
    by then.  Meanwhile the weights of the next tap are fetched, and what is at `pixels`.
    """
    w1, w2, following = w0 + TILE_BYTES, w0 + 2 * TILE_BYTES, w0 + DIGITS_STEP
    amx_load(6, a, s.pixel)
    amx_load(7, w0, ROW_BYTES)
    amx_multiply_digits(0, 6, 7)
    _fetch(0, following, pixels, s)
    amx_load(7, w1, ROW_BYTES)
    amx_multiply_digits(1, 6, 7)
    _fetch(1, following, pixels, s)
    amx_load(7, w2, ROW_BYTES)
    amx_multiply_digits(2, 6, 7)
    _fetch(2, following, pixels, s)
    if _TWO:
        amx_load(6, b, s.pixel)
        amx_multiply_digits(5, 6, 7)
        _fetch(3, following, pixels, s)
        amx_load(7, w1, ROW_BYTES)
        amx_multiply_digits(4, 6, 7)
        _fetch(4, following, pixels, s)
    run = _work(run, data)
    amx_load(7, w0, ROW_BYTES)
    if _TWO:
        amx_multiply_digits(3, 6, 7)
        _fetch(5, following, pixels, s)
    amx_load(6, a + 2 * s.part, s.pixel)
    amx_multiply_signed(2, 6, 7)
    _fetch(6, following, pixels, s)
    if _TWO:
        amx_load(6, b + 2 * s.part, s.pixel)
        amx_multiply_signed(5, 6, 7)
        _fetch(7, following, pixels, s)
        amx_load(6, b + s.part, s.pixel)
        amx_multiply_signed(4, 6, 7)
        _fetch(8, following, pixels, s)
    amx_load(6, a + s.part, s.pixel)
    amx_multiply_signed(1, 6, 7)
    _fetch(9, following, pixels, s)
    run = _work(run, data)
    amx_load(7, w1, ROW_BYTES)
    amx_multiply_signed(2, 6, 7)
    _fetch(10, following, pixels, s)
    if _TWO:
        amx_load(6, b + s.part, s.pixel)
        amx_multiply_signed(5, 6, 7)
        _fetch(11, following, pixels, s)
    return run


@inlined
def _levels(a: int, b: int, s: Sum, w: int, out: int, run: Any, data: Any) -> Any:
    """Write the levels of 1 or 2 tiles of pixels × a block of channels to `out`.

    Tiles 0 to 2 are the levels of the first pixels and 3 to 5 those of the others; pixels are loaded to tile
    6, weights to tile 7.  Each tap of a row fetches a digit of the pixels that the next row of taps reads.
    """
    amx_zero(0)
    amx_zero(1)
    amx_zero(2)
    amx_zero(3)
    amx_zero(4)
    amx_zero(5)
    w0 = w
    for c in range(s.chunks):
        after = (c + 1) % s.chunks * s.chunk
        for i in range(s.taps_h):
            to = c * s.chunk + i * s.step_h
            pixels = a + (to + s.step_h if i + 1 < s.taps_h else after)
            for _ in range(s.taps_w):
                run = _add_products(a + to, b + to, s, w0, pixels, run, data)
                w0, to, pixels = w0 + DIGITS_STEP, to + s.step_w, pixels + s.part
    amx_store(0, out, ROW_BYTES)
    amx_store(1, out + LEVEL, ROW_BYTES)
    amx_store(2, out + 2 * LEVEL, ROW_BYTES)
    if _TWO:
        amx_store(3, out + TILE_BYTES, ROW_BYTES)
        amx_store(4, out + LEVEL + TILE_BYTES, ROW_BYTES)
        amx_store(5, out + 2 * LEVEL + TILE_BYTES, ROW_BYTES)
    if s.scale < 0:
        _fourth(a, b, s, w, out)
    return run


@device_function
def _called_levels(a: int, b: int, s: Sum, w: int, out: int, run: Any, data: Any) -> Any:
    """`_levels`, not inlined where it is called."""
    return _levels(a, b, s, w, out, run, data)


def multiply_digits_beside(work: Any, name: str) -> Any:
    """`multiply_beside` of digits: for a block of DIGITS_BLOCK channels, levels in place of sums.

    The levels of a pixel are ROW_BYTES each, LEVEL bytes apart; the next pixel's follow.  `sum_of_levels`
    reads them beside the next products, because it would wait for a tile that was stored just now.
    """
    one_tile = copy_of(_called_levels, f"one_{name}", _TWO=False, _work=no_work)
    two_tiles = copy_of(_levels, f"two_{name}", _TWO=True, _work=work)

    @one_of_many(f"multiply_digits_{name}", inline=True)
    def multiply(
        two: int, channels: int, a: int, b: int, terms: Sum, w: int, out: int, run: Any, data: Any
    ) -> Any:
        if two:
            return two_tiles(a, b, terms, w, out, run, data)
        return one_tile(a, b, terms, w, out, run, data)

    return multiply
