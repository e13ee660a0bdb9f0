"""Matrix products on Intel's AMX at float32's accuracy, in whole numbers: digits instead of bfloat16 parts.

The values of a sample are scaled by one number and rounded to whole numbers of 24 bits, and so are the
weights of each output channel.  Before that the input channels are balanced, because small values may have
large weights: weights are divided, and values multiplied, by a power of two for each channel, so that each
channel adds about as much.  A whole number is three digits of 8 bits: those of values that are never negative
are one unsigned digit and two signed ones, those of weights three signed ones.

    Σ x·w  =  Σ (x₀·2¹⁶ + x₁·2⁸ + x₂) · (w₀·2¹⁶ + w₁·2⁸ + w₂)
           ≈  2³²·Σ x₀·w₀  +  2²⁴·Σ (x₀·w₁ + x₁·w₀)  +  2¹⁶·Σ (x₀·w₂ + x₁·w₁ + x₂·w₀)

These sums, the *levels*, are exact in int32.  They become float32 once, at the end.  The error is what the
scales leave and the missing products, x₁·w₂ + x₂·w₁ first.  Both are relative to the *largest* value of a
sample, and weight of a channel: about 1.4·10⁻⁸ · (largest ÷ root mean square of x) · (the same of w).  The
dimmest part of a picture counts: the root mean square is that of the least run of about 16 pixels of a row,
zeros aside.  So a sample with values far above those anywhere else also gets the fourth level, or goes
another way.

The scale depends on the sample alone, and the sums are exact: equal windows give equal outputs, whatever the
threads, the batch and the place.

Source: Ootomo, Ozaki & Yokota 2024, "DGEMM on integer matrix multiplication unit".
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import float32
from numpy.typing import NDArray

from .amx_facts import LEAST, MOST
from .amx_frame import Frame
from .amx_sums import Sum
from .codegen.amx import (
    PARTS,
    ROW_BYTES,
    ROWS,
    TILE_BYTES,
    amx_load,
    amx_multiply_digits,
    amx_multiply_signed,
    amx_store,
    amx_zero,
    load_whole,
    store_digits,
)
from .codegen.emit import LANES
from .codegen.jit import device_function, one_of_many
from .codegen.memory import aligned
from .codegen.simd import (
    broadcast,
    fma,
    load,
    load_some,
    prefetch_read,
    store,
)
from .codegen.tile import TILE_CHANNELS
from .codegen.views import zero_run
from .epilogue import Plane

#: Terms of a sum that enter one multiplication, and so the channels of a chunk.
DIGITS_DEPTH = ROW_BYTES
#: The largest whole number of weights, as `amx_facts` has that of values.
_MOST_WEIGHT = 127.49 * 2**16
#: Most terms of a sum, so that the third level fits into int32: each is at most 2⁷·(255 + 2⁷ + 2⁷).
MOST_TERMS = (2**31 - 1) // (2**7 * (255 + 2**7 + 2**7))
#: Bytes at the end of a block of weights: what a whole number of each channel is worth.
DIGITS_TAIL = 4 * TILE_CHANNELS
#: Input channels of weights whose mean square counts on its own, and how far below the largest it may be.
_WEIGHTS_RUN, _FURTHEST = 16, 256.0
#: The least number that a channel is multiplied by; the weights of others hardly count.
_LEAST_BALANCE = 2.0**-60
_ROW = ROW_BYTES // 4
_AHEAD = 2**11
#: Bytes of the weights of half a block, for one chunk and tap.
_HALF = PARTS * TILE_BYTES


class Balance(NamedTuple):
    """How weights (O, C, KH, KW) are balanced, and how well digits then suit them.

    `divisors`: of each input channel, (C,): powers of two, so no bits are lost.  They are the ratios of the
    channels' root mean squares to the largest, so at most 1.  Each output channel counts as much as another,
    whatever the size of its weights.

    `spread`: how far the largest weights are above the others, √(mean over output channels of
    largest² ÷ mean²), once they are balanced; inf if digits fail.  Digits also fail where all weights of an
    output channel for a few input channels are very small beside its largest, whose own input may be 0.
    """

    divisors: NDArray[np.float32]
    spread: float


def balance_of(w: NDArray[np.float32]) -> Balance:
    """The balance of weights (O, C, KH, KW)."""
    squares, most = _squares_of(w)
    divisors = _divisors(squares)
    balanced = np.square(divisors.astype(np.float64))  # powers of two, so dividing squares is exact
    return Balance(divisors, _spread(squares / balanced, most / balanced))


def _squares_of(w: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and the largest square of the weights (O, C, KH, KW) of each two channels, (O, C)."""
    mean, most = np.empty(w.shape[:2]), np.empty(w.shape[:2])
    for o in range(0, len(w), ROWS):  # so few at a time that their squares stay in the cache
        some = w[o : o + ROWS]
        taps = some.reshape(*some.shape[:2], -1).transpose(2, 0, 1).astype(np.float64, order="C")
        squares = np.square(taps, out=taps)
        squares.mean(0, out=mean[o : o + ROWS])
        squares.max(0, out=most[o : o + ROWS])
    return mean, most


def _divisors(squares: NDArray[np.float64]) -> NDArray[np.float32]:
    """See `Balance`; squares: mean squares (O, C)."""
    ones = np.ones(squares.shape[1], np.float32)
    outputs = squares.mean(1, keepdims=True)
    if not np.all(outputs < math.inf):  # infinite or NaN
        return ones
    squares = np.divide(squares, outputs, out=np.zeros_like(squares), where=outputs > 0).mean(0)
    most = squares.max(initial=0.0)
    if most == 0:
        return ones
    ratio = np.sqrt(np.where(squares > 0, squares, most) / most)
    return np.exp2(np.rint(np.log2(np.maximum(ratio, _LEAST_BALANCE)))).astype(np.float32)


def _spread(squares: NDArray[np.float64], most: NDArray[np.float64]) -> float:
    """See `Balance`; the mean and the largest squares of balanced weights, (O, C)."""
    most = most.max(1)
    if not np.all((most == 0) | ((most > LEAST**2) & (most < MOST**2))) or not most.any():
        return math.inf
    for c in range(0, squares.shape[1], _WEIGHTS_RUN):
        mean = squares[:, c : c + _WEIGHTS_RUN].mean(1)
        if np.any((mean > 0) & (mean * _FURTHEST**2 < most)):
            return math.inf
    used = most > 0
    return math.sqrt((most[used] / squares[used].mean(1)).mean())


def pack_digits(w: NDArray[np.float32], divisors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Split and pack weights (O, C, KH, KW) for blocks of TILE_CHANNELS channels.

    divisors: see `Balance`.  A block is [half][chunk][KH][KW][digit][DIGITS_DEPTH / 4][16][4] bytes, and what
    a whole number of each channel is worth.  Behind the blocks are the divisors, and 1 up to whole chunks.
    Four bytes hold channels k, k + 16, k + 32 and k + 48 of a chunk, as `store_digits` has them.  The bits
    are returned as float32.
    """
    O, C, KH, KW = w.shape
    blocks, count = -(-O // TILE_CHANNELS), -(-C // DIGITS_DEPTH)
    size = 2 * count * KH * KW * _HALF
    balance = np.ones(count * DIGITS_DEPTH, np.float32)
    balance[:C] = divisors
    whole_size = blocks * (size + DIGITS_TAIL)
    everything = aligned((whole_size + balance.nbytes,), np.uint8)
    everything[whole_size:] = balance.view(np.uint8)
    packed = everything[:whole_size].reshape(blocks, -1)
    for block in range(blocks):
        whole = np.zeros((TILE_CHANNELS, count * DIGITS_DEPTH, KH, KW))
        part = w[block * TILE_CHANNELS : (block + 1) * TILE_CHANNELS]
        whole[: len(part), :C] = part / balance[:C, None, None]
        most = np.abs(whole).max((1, 2, 3))
        worth = (np.where(most > 0, most, _MOST_WEIGHT) / _MOST_WEIGHT).astype(np.float32)
        rest = np.rint(whole / worth[:, None, None, None].astype(np.float64)).astype(np.int32)
        digits = np.empty((PARTS, *rest.shape), np.int8)
        for k in range(PARTS - 1, -1, -1):
            digits[k] = rest.astype(np.int8)  # the lowest byte, signed
            rest = rest - digits[k] >> 8
        # digit, half, o, chunk, i, k, KH, KW
        split = digits.reshape(PARTS, 2, ROWS, count, 4, DIGITS_DEPTH // 4, KH, KW)
        ordered = np.ascontiguousarray(split.transpose(1, 3, 6, 7, 0, 5, 2, 4))
        packed[block, :size] = ordered.reshape(-1).view(np.uint8)
        packed[block, size:] = worth.view(np.uint8)
    return everything.view(np.float32)


@device_function
def chunks_of_digits(channels: int) -> int:
    return (channels + DIGITS_DEPTH - 1) // DIGITS_DEPTH


@device_function
def _store_balanced(out: int, part: int, scale: float, factor: int, a: Any, b: Any, c: Any, d: Any) -> None:
    """Store the digits of a chunk, whose channels are multiplied by the numbers at `factor`."""
    a, b = a * load(factor), b * load(factor + 64)
    c, d = c * load(factor + 128), d * load(factor + 192)
    store_digits(out, part, scale, a, b, c, d)


@device_function
def _split_pixels(x: int, plane: Plane, count: int, to: int, part: int, scale: float, balance: int) -> None:
    whole = plane.C // DIGITS_DEPTH
    left = plane.C - whole * DIGITS_DEPTH
    for _ in range(count):
        pixel, out, factor = x, to, balance
        for _ in range(whole):
            for line in range(0, 4 * DIGITS_DEPTH, ROW_BYTES):
                prefetch_read(pixel + line + _AHEAD)
            a, b, c, d = load(pixel), load(pixel + 64), load(pixel + 128), load(pixel + 192)
            _store_balanced(out, part, scale, factor, a, b, c, d)
            pixel, out, factor = pixel + 4 * DIGITS_DEPTH, out + PARTS * part, factor + 4 * DIGITS_DEPTH
        if left:
            a, b = load_some(pixel, left), load_some(pixel + 64, left - 16)
            c, d = load_some(pixel + 128, left - 32), load_some(pixel + 192, left - 48)
            _store_balanced(out, part, scale, factor, a, b, c, d)
        x, to = x + plane.pixel, to + ROW_BYTES


@device_function
def split_digits(
    x: Plane,
    n: int,
    frame: Frame,
    begin: int,
    rows: int,
    to: int,
    positions: int,
    scale: float,
    balance: int,
) -> None:
    """`split_rows` into digits."""
    part = positions * ROW_BYTES
    factor = float32(abs(scale))
    start = min(frame.columns, max(0, frame.left))
    stop = max(start, min(frame.columns, frame.left + x.W))
    for row in range(rows):
        h = begin + row - frame.top
        low, high = start, stop
        if h < 0 or h >= x.H:
            low, high = frame.columns, frame.columns
        line = x.address + n * x.image + h * x.line + (low - frame.left) * x.pixel
        out = to + row * frame.columns * ROW_BYTES
        for c in range(0, x.C, DIGITS_DEPTH):
            for k in range(PARTS):
                digit = out + (c // DIGITS_DEPTH * PARTS + k) * part
                zero_run(digit, low * _ROW)
                zero_run(digit + high * ROW_BYTES, (frame.columns - high) * _ROW)
        _split_pixels(line, x, high - low, out + low * ROW_BYTES, part, factor, balance)


def _levels_of(two: bool, work: Any, name: str) -> Any:
    """A function that computes the sums of 1 or 2 tiles of pixels × half a block of channels."""

    def product(digit: str, multiply: Any, level: int) -> Any:
        """A function that adds a product of two digits to a level.  The weights' digit is in tile 7."""
        other = level + 3

        @one_of_many(f"{digit}_to_level_{level}_{name}")
        def add(a: int, b: int, s: Sum) -> None:
            amx_load(6, a, s.pixel)
            multiply(level, 6, 7)
            if two:
                amx_load(6, b, s.pixel)
                multiply(other, 6, 7)

        return add

    # The first digit of a value has no sign.
    first_to_0, first_to_1, first_to_2 = (product("first", amx_multiply_digits, level) for level in range(3))
    other_to_1, other_to_2 = (product("other", amx_multiply_signed, level) for level in (1, 2))

    @one_of_many(f"fourth_{name}")
    def fourth(a: int, b: int, s: Sum, w: int) -> None:
        """The fourth level, in two tiles for each tile of pixels: a sum waits for the one before."""
        amx_zero(0)
        amx_zero(1)
        amx_zero(2)
        amx_zero(3)
        for c in range(s.chunks):
            for i in range(s.taps_h):
                to = c * s.chunk + i * s.step_h
                for _ in range(s.taps_w):
                    amx_load(6, w + TILE_BYTES, ROW_BYTES)
                    amx_load(7, w + 2 * TILE_BYTES, ROW_BYTES)
                    amx_load(4, a + to + s.part, s.pixel)
                    amx_load(5, a + to + 2 * s.part, s.pixel)
                    amx_multiply_signed(0, 4, 7)
                    amx_multiply_signed(1, 5, 6)
                    if two:
                        amx_load(4, b + to + s.part, s.pixel)
                        amx_load(5, b + to + 2 * s.part, s.pixel)
                        amx_multiply_signed(2, 4, 7)
                        amx_multiply_signed(3, 5, 6)
                    w, to = w + _HALF, to + s.step_w
        at = s.levels + 6 * TILE_BYTES
        amx_store(0, at, ROW_BYTES)
        amx_store(1, at + TILE_BYTES, ROW_BYTES)
        amx_store(2, at + 2 * TILE_BYTES, ROW_BYTES)
        amx_store(3, at + 3 * TILE_BYTES, ROW_BYTES)

    @one_of_many(f"add_levels_{name}")
    def add_levels(tile: int, levels: int, s: Sum, worth: Any, out: int) -> None:
        """Write the float32 sums of a tile of pixels."""
        factor = worth * broadcast(float32(2.0**16) / float32(abs(s.scale)))
        large, small = broadcast(float32(2.0**16)), broadcast(float32(2.0**8))
        tiny = broadcast(float32(2.0**-8))
        for row in range(0, TILE_BYTES, ROW_BYTES):
            at = levels + 3 * tile * TILE_BYTES + row
            total = fma(load_whole(at + TILE_BYTES), small, load_whole(at + 2 * TILE_BYTES))
            if s.scale < 0:
                rest = levels + (6 + 2 * tile) * TILE_BYTES + row
                total = fma(load_whole(rest) + load_whole(rest + TILE_BYTES), tiny, total)
            store(out, fma(load_whole(at), large, total) * factor)
            out += 4 * TILE_CHANNELS

    @one_of_many(f"levels_{name}", inline=two)
    def levels(a: int, b: int, s: Sum, w: int, worth: int, out: int, run: Any, data: Any) -> Any:
        amx_zero(0)
        amx_zero(1)
        amx_zero(2)
        amx_zero(3)
        amx_zero(4)
        amx_zero(5)
        at = w
        for c in range(s.chunks):
            for i in range(s.taps_h):
                to = c * s.chunk + i * s.step_h
                for _ in range(s.taps_w):
                    a0, b0 = a + to, b + to
                    amx_load(7, at + 2 * TILE_BYTES, ROW_BYTES)
                    first_to_2(a0, b0, s)
                    amx_load(7, at + TILE_BYTES, ROW_BYTES)
                    first_to_1(a0, b0, s)
                    run = work(run, data)
                    other_to_2(a0 + s.part, b0 + s.part, s)
                    amx_load(7, at, ROW_BYTES)
                    first_to_0(a0, b0, s)
                    run = work(run, data)
                    other_to_2(a0 + 2 * s.part, b0 + 2 * s.part, s)
                    other_to_1(a0 + s.part, b0 + s.part, s)
                    at, to = at + _HALF, to + s.step_w
        amx_store(0, s.levels, ROW_BYTES)
        amx_store(1, s.levels + TILE_BYTES, ROW_BYTES)
        amx_store(2, s.levels + 2 * TILE_BYTES, ROW_BYTES)
        if two:
            amx_store(3, s.levels + 3 * TILE_BYTES, ROW_BYTES)
            amx_store(4, s.levels + 4 * TILE_BYTES, ROW_BYTES)
            amx_store(5, s.levels + 5 * TILE_BYTES, ROW_BYTES)
        if s.scale < 0:
            fourth(a, b, s, w)
        add_levels(0, s.levels, s, load(worth), out)
        if two:
            add_levels(1, s.levels, s, load(worth), out + ROWS * 4 * TILE_CHANNELS)
        return run

    return levels


def multiply_digits_beside(work: Any, name: str) -> Any:
    """`multiply_beside` of digits."""

    @one_of_many(f"nothing_{name}")
    def nothing(run: Any, data: Any) -> Any:
        return run

    one_tile, two_tiles = _levels_of(False, nothing, f"one_{name}"), _levels_of(True, work, f"two_{name}")

    @one_of_many(f"multiply_digits_{name}", inline=True)
    def multiply(
        two: int,
        channels: int,
        a: int,
        b: int,
        terms: Sum,
        w: int,
        out: int,
        run: Any,
        data: Any,
    ) -> Any:
        size = terms.chunks * terms.taps_h * terms.taps_w * _HALF
        halves = 2 if channels > LANES else 1
        for half in range(halves):
            at, worth, to = w + half * size, w + 2 * size + half * ROW_BYTES, out + half * ROW_BYTES
            if two:
                run = two_tiles(a, b, terms, at, worth, to, run, data)
            else:
                run = one_tile(a, b, terms, at, worth, to, run, data)
        return run

    return multiply
