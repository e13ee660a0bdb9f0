"""Matrix products on Intel's AMX at float32's accuracy: sums over chunks of DEPTH channels and over taps.

Both sides are split into three parts of bfloat16 (`codegen.amx`).  A row of the left side has, for each chunk
and each part, 64 bytes; the right side is weights, packed for blocks of TILE_CHANNELS channels.

A sum has two passes over (chunk, tap).  The first adds the five small products of parts, the second the
largest, so the small ones are not rounded as much as the sum is.  (Chains of sums would have to leave the
tiles, which takes longer.)

A multiplication of tiles takes 16 cycles, in which a core can do 16 multiply-adds of vectors as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .codegen.amx import (
    DEPTH,
    PARTS,
    ROW_BYTES,
    ROWS,
    TILE_BYTES,
    amx_load,
    amx_multiply,
    amx_store,
    amx_zero,
)
from .codegen.emit import LANES
from .codegen.jit import copy_of, device_function, inlined, one_of_many
from .codegen.memory import aligned
from .codegen.tile import TILE_CHANNELS

#: Bytes of the weights of one chunk and tap: PARTS for each half of a block of TILE_CHANNELS channels.
STEP = PARTS * 2 * TILE_BYTES
#: Floats of the sums of two tiles of pixels, and bytes of those of one pixel.
SUMS, SUMS_ROW = 2 * ROWS * TILE_CHANNELS, 4 * TILE_CHANNELS

#: Smaller numbers are rounded to bfloat16 without overflow.
_ROUNDED = 2.0**127


def chunks_of(channels: int, depth: int = DEPTH) -> int:
    return -(-channels // depth)


@device_function
def chunks(channels: int) -> int:
    """`chunks_of`, for kernels."""
    return (channels + DEPTH - 1) // DEPTH


def pack_amx(w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Split and pack weights (O, C, KH, KW): [block][chunk][KH][KW][part][half][DEPTH / 2][16][2] bfloat16.

    The smallest part is first, because sums load it first.  A pair holds channels k and k + DEPTH / 2 of a
    chunk, as `store_parts` pairs them.  The bits are returned as float32.
    """
    w = _in_whole_blocks(w, TILE_CHANNELS, DEPTH)
    blocks, chunks, (KH, KW) = len(w) // TILE_CHANNELS, w.shape[1] // DEPTH, w.shape[2:]
    packed = aligned((blocks, chunks, KH, KW, PARTS, 2, DEPTH // 2, ROWS), np.uint32)  # pairs
    # The first of all pairs, and the second.
    rest = np.empty((2, chunks, KH, KW, 2, DEPTH // 2, ROWS), np.float32)
    rounded = np.empty_like(rest)
    bits = rounded.view(np.uint32)
    # half, o, chunk, pair, c, KH, KW
    shape = 2, ROWS, chunks, 2, DEPTH // 2, KH, KW
    for block in range(blocks):
        part = w[block * TILE_CHANNELS : (block + 1) * TILE_CHANNELS]
        rest[:] = part.reshape(shape).transpose(3, 2, 5, 6, 0, 4, 1)
        is_small = rest.min() > -_ROUNDED and rest.max() < _ROUNDED
        for k in range(PARTS):
            np.add(rest.view(np.uint32), 0x8000, out=bits)
            if not is_small:
                sign = bits & 0x80000000
                np.minimum(bits & 0x7FFF0000, 0x7F7F0000, out=bits)  # finite
                bits |= sign
            bits &= 0xFFFF0000
            np.bitwise_or(bits[0] >> 16, bits[1], out=packed[block, :, :, :, PARTS - 1 - k])
            rest -= rounded
    return packed.reshape(-1).view(np.float32)


def _in_whole_blocks(w: NDArray[np.float32], outputs: int, inputs: int) -> NDArray[np.float32]:
    """Weights (O, C, KH, KW), with zeros up to whole blocks of so many channels."""
    O, C = (-(-n // each) * each for n, each in zip(w.shape, (outputs, inputs), strict=False))
    if w.shape[:2] == (O, C):
        return w
    padded = np.zeros((O, C, *w.shape[2:]), np.float32)
    padded[: len(w), : w.shape[1]] = w
    return padded


def paired(w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights (O, C, KH, KW) for frames of pairs: (O, DEPTH, KH, ⌈KW / 2⌉), two taps side by side."""
    O, C, KH, KW = w.shape
    pairs = np.zeros((O, 2, DEPTH // 2, KH, (KW + 1) // 2), w.dtype)
    for which in (0, 1):
        taps = w[..., which::2]
        pairs[:, which, :C, :, : taps.shape[3]] = taps
    return pairs.reshape(O, DEPTH, KH, -1)


class Sum(NamedTuple):
    """The terms of a sum, as steps in bytes from pixel to pixel, part to part, chunk to chunk, tap to tap.

    `scale`: see `amx_digits`.
    """

    pixel: int
    part: int
    chunk: int
    chunks: int
    taps_h: int
    step_h: int
    taps_w: int
    step_w: int
    scale: float


#: Whether the functions below compute two tiles of pixels or one, and a whole block of channels or its first
#: half; and what they do beside (`multiply_beside`).  Each of their copies has its own.
_TWO: bool = True
_WHOLE: bool = True
_work: Any = None


@device_function
def no_work(run: Any, data: Any) -> Any:
    """The work beside multiplications where there is none."""
    return run


@device_function
def _load_pixels(a: int, b: int, pixel: int) -> None:
    amx_load(4, a, pixel)
    if _TWO:
        amx_load(5, b, pixel)


@device_function
def _load_weights(w: int) -> None:
    amx_load(6, w, ROW_BYTES)
    if _WHOLE:
        amx_load(7, w + TILE_BYTES, ROW_BYTES)


@device_function
def _multiply() -> None:
    amx_multiply(0, 4, 6)
    if _WHOLE:
        amx_multiply(1, 4, 7)
    if _TWO:
        amx_multiply(2, 5, 6)
        if _WHOLE:
            amx_multiply(3, 5, 7)


@inlined
def _add_small_products(a: int, b: int, s: Sum, w: int, run: Any, data: Any) -> Any:
    """Add the products of a chunk and tap but the largest; from one to the next, one side stays.

    The parts of pixels are stored from the largest on, those of weights from the smallest on.
    """
    _load_pixels(a, b, s.pixel)
    _load_weights(w)
    _multiply()
    run = _work(run, data)
    _load_weights(w + 2 * TILE_BYTES)
    _multiply()
    run = _work(run, data)
    _load_pixels(a + s.part, b + s.part, s.pixel)
    _multiply()
    run = _work(run, data)
    _load_weights(w + 4 * TILE_BYTES)
    _multiply()
    run = _work(run, data)
    _load_pixels(a + 2 * s.part, b + 2 * s.part, s.pixel)
    _multiply()
    return run


@inlined
def _add_largest_product(a: int, b: int, s: Sum, w: int) -> None:
    """Add the product of the largest parts of a chunk and tap."""
    _load_pixels(a, b, s.pixel)
    _load_weights(w + 4 * TILE_BYTES)
    _multiply()


@inlined
def _sums(a: int, b: int, s: Sum, w: int, out: int, run: Any, data: Any) -> Any:
    """Write the sums of 1 or 2 tiles of pixels × 1 or 2 halves of a block of channels to `out`."""
    amx_zero(0)
    amx_zero(1)
    amx_zero(2)
    amx_zero(3)
    at = w
    for c in range(s.chunks):
        for i in range(s.taps_h):
            to = c * s.chunk + i * s.step_h
            for _ in range(s.taps_w):
                run = _add_small_products(a + to, b + to, s, at, run, data)
                at, to = at + STEP, to + s.step_w
    at = w
    for c in range(s.chunks):
        for i in range(s.taps_h):
            to = c * s.chunk + i * s.step_h
            for _ in range(s.taps_w):
                _add_largest_product(a + to, b + to, s, at)
                at, to = at + STEP, to + s.step_w
    amx_store(0, out, SUMS_ROW)
    if _WHOLE:
        amx_store(1, out + ROW_BYTES, SUMS_ROW)
    if _TWO:
        amx_store(2, out + ROWS * SUMS_ROW, SUMS_ROW)
        if _WHOLE:
            amx_store(3, out + ROWS * SUMS_ROW + ROW_BYTES, SUMS_ROW)
    return run


@device_function
def _called_sums(a: int, b: int, s: Sum, w: int, out: int, run: Any, data: Any) -> Any:
    """`_sums`, not inlined where it is called."""
    return _sums(a, b, s, w, out, run, data)


def multiply_beside(work: Any, name: str) -> Any:
    """Make a function that writes the plain sums of ROWS pixels, or with `two` of 2 · ROWS.

    `run = work(run, data)` is called four times for each chunk and tap, between multiplications.  A core's
    vectors work while its tiles multiply, so what is done beside takes almost no time.
    """
    two_whole = copy_of(_sums, f"two_whole_{name}", _work=work)
    two_half, one_whole, one_half = (
        copy_of(_called_sums, f"{two}_{whole}_{name}", _TWO=two, _WHOLE=whole, _work=no_work)
        for two, whole in ((True, False), (False, True), (False, False))
    )

    @one_of_many(f"multiply_beside_{name}", inline=True)
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
        """Write the sums of ROWS pixels from address a on, and with `two` of ROWS from b on, to `out`.

        There is a row for each pixel, one every TILE_CHANNELS float32.  `channels`: how many channels of the
        block exist.  w: the weights of the block.  Returns the rest of `run`.
        """
        if two and channels > LANES:
            return two_whole(a, b, terms, w, out, run, data)
        if two:
            return two_half(a, b, terms, w, out, run, data)
        if channels > LANES:
            return one_whole(a, b, terms, w, out, run, data)
        return one_half(a, b, terms, w, out, run, data)

    return multiply
