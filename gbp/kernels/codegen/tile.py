"""Tiles: tuples of rows × `TILE_VECTORS` vectors, which LLVM keeps in registers during a sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import emit
from .emit import LANES, TILE_ROWS
from .jit import INT, by_count, device_function, one_of_many, shared
from .memory import ALIGNMENT
from .simd import keep_rolled, prefetch_read, vector

TILE_VECTORS = 2
TILE_CHANNELS = TILE_VECTORS * LANES
TILE_FLOATS = TILE_ROWS * TILE_CHANNELS
#: Multiply-adds in a chain.  A long sum is cut into chains, which are added.  One long chain would round
#: more, and each gate or maximum that rounding changes moves the map.
CHAIN = 64
#: Addresses at this distance, in bytes, are in the same set of a first-level cache.
PAGE = 4096
#: How many bytes of weights are prefetched ahead, to hide the latency of memory.
_AHEAD = 2048


@intrinsic(prefer_literal=True)
def tile_zeros(typing: Any, rows: Any, vectors: Any) -> Any:
    """A tile of `rows` × `vectors` vectors of 0."""
    kind = types.UniTuple(vector, rows.literal_value * vectors.literal_value)
    return kind(rows, vectors), lambda context, builder, sig, args: ir.Constant(
        context.get_value_type(kind), None
    )


@intrinsic(prefer_literal=True)
def tile_update(typing: Any, tile: Any, vectors: Any, x: Any, row_bytes: Any, w: Any) -> Any:
    """tile[i][j] += x[i] · w[j] with one scalar a row, at `x + i·row_bytes`, and weights at `w`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        accumulators, _, x, row_bytes, w = args
        count = vectors.literal_value
        ws = [emit.load_vector(builder, w, emit.VECTOR_BYTES * j) for j in range(count)]
        rows = _rows_at(builder, x, row_bytes, tile.count // count)
        return _add_products(builder, accumulators, (emit.broadcast_at(builder, row) for row in rows), ws)

    return tile(tile, vectors, types.int64, types.int64, types.int64), codegen


def _add_products(builder: Any, accumulators: Any, xs: Any, ws: Any) -> Any:
    """Add xs[i] · ws[j] to vector j of row i.  The xs are made one at a time, in one register."""
    for at, (x, w) in enumerate((x, w) for x in xs for w in ws):
        total = emit.multiply_add(builder, x, w, builder.extract_value(accumulators, at))
        accumulators = builder.insert_value(accumulators, total, at)
    return accumulators


def _rows_at(builder: Any, address: Any, step: Any, count: int) -> Iterator[Any]:
    for i in range(count):
        yield builder.add(address, builder.mul(step, ir.Constant(emit.I64, i)))


@intrinsic(prefer_literal=True)
def tile_dot(typing: Any, tile: Any, rows: Any, x: Any, x_bytes: Any, w: Any, w_bytes: Any) -> Any:
    """tile[i][j] += x[i] · w[j], lane by lane: vectors at `x + i·x_bytes`, and `rows` at `w + j·w_bytes`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        accumulators, _, x, x_bytes, w, w_bytes = args
        count = rows.literal_value
        ws = [emit.load_vector(builder, row) for row in _rows_at(builder, w, w_bytes, count)]
        xs = (emit.load_vector(builder, row) for row in _rows_at(builder, x, x_bytes, tile.count // count))
        return _add_products(builder, accumulators, xs, ws)

    return tile(tile, rows, types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def tile_dot_first(
    typing: Any, tile: Any, rows: Any, x: Any, x_bytes: Any, w: Any, w_bytes: Any, count: Any
) -> Any:
    """`tile_dot` over the first `count` lanes; touches no memory beyond."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        accumulators, _, x, x_bytes, w, w_bytes, lanes = args
        mask, number = emit.first_lanes(builder, lanes), rows.literal_value
        ws = [emit.masked_load(builder, row, mask) for row in _rows_at(builder, w, w_bytes, number)]
        xs = (
            emit.masked_load(builder, row, mask)
            for row in _rows_at(builder, x, x_bytes, tile.count // number)
        )
        return _add_products(builder, accumulators, xs, ws)

    return tile(tile, rows, *[types.int64] * 5), codegen


@intrinsic(prefer_literal=True)
def tile_load(typing: Any, rows: Any, address: Any) -> Any:
    """The tile of `rows` rows that `tile_store` wrote to `address`."""
    kind = types.UniTuple(vector, rows.literal_value * TILE_VECTORS)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for at in range(kind.count):
            row = emit.load_vector(builder, args[1], emit.VECTOR_BYTES * at)
            loaded = builder.insert_value(loaded, row, at)
        return loaded

    return kind(rows, types.int64), codegen


@intrinsic
def tile_add_rows(typing: Any, tile: Any, x: Any, w: Any, step: Any) -> Any:
    """tile[i] += x · w[i] with one scalar at address x for all rows, and row i of weights at `w + i·step`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        accumulators, x, w, step = args
        scalar = emit.broadcast_at(builder, x)
        for i, row in enumerate(_rows_at(builder, w, step, tile.count // TILE_VECTORS)):
            for j in range(TILE_VECTORS):
                at = i * TILE_VECTORS + j
                weights = emit.load_vector(builder, row, emit.VECTOR_BYTES * j)
                total = emit.multiply_add(builder, scalar, weights, builder.extract_value(accumulators, at))
                accumulators = builder.insert_value(accumulators, total, at)
        return accumulators

    return tile(tile, types.int64, types.int64, types.int64), codegen


@intrinsic
def tile_add_between(typing: Any, tile: Any, x: Any, step: Any, start: Any, stop: Any) -> Any:
    """tile[i] += lanes start … stop − 1 of the vector at `x + i·step`, and 0 in the others.

    Rows are of one vector.  No other memory is touched.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        accumulators, x, step, start, stop = args
        lanes = builder.and_(builder.not_(emit.first_lanes(builder, start)), emit.first_lanes(builder, stop))
        for i, row in enumerate(_rows_at(builder, x, step, tile.count)):
            v = emit.masked_load(builder, row, lanes)
            total = builder.fadd(builder.extract_value(accumulators, i), v)
            accumulators = builder.insert_value(accumulators, total, i)
        return accumulators

    return tile(tile, *[types.int64] * 4), codegen


@intrinsic(prefer_literal=True)
def tile_slide(typing: Any, tile: Any, rows: Any, address: Any) -> Any:
    """Write the first `rows` rows to `address`, move the other rows up, and load the rows behind the tile."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        count = rows.literal_value * TILE_VECTORS
        result = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for at in range(tile.count):
            if at < count:
                emit.store_vector(
                    builder, builder.extract_value(args[0], at), args[2], emit.VECTOR_BYTES * at
                )
            if at + count < tile.count:
                row = builder.extract_value(args[0], at + count)
            else:
                row = emit.load_vector(builder, args[2], emit.VECTOR_BYTES * (at + count))
            result = builder.insert_value(result, row, at)
        return result

    return tile(tile, rows, types.int64), codegen


@intrinsic(prefer_literal=True)
def tile_plus(typing: Any, tile: Any, vectors: Any, address: Any) -> Any:
    """The sum of the tile and the tile that `tile_store` wrote to `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total, count = args[0], vectors.literal_value
        for at in range(tile.count):
            there = emit.VECTOR_BYTES * (at // count * TILE_VECTORS + at % count)
            before = emit.load_vector(builder, args[2], there)
            total = builder.insert_value(total, builder.fadd(before, builder.extract_value(args[0], at)), at)
        return total

    return tile(tile, vectors, types.int64), codegen


@intrinsic(prefer_literal=True)
def tile_store(typing: Any, tile: Any, vectors: Any, address: Any) -> Any:
    """Write the tile's rows to `address`, one every TILE_CHANNELS float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        count = vectors.literal_value
        for at in range(tile.count):
            to = emit.VECTOR_BYTES * (at // count * TILE_VECTORS + at % count)
            emit.store_vector(builder, builder.extract_value(args[0], at), args[2], to)
        return context.get_dummy_value()

    return types.void(tile, vectors, types.int64), codegen


class Sweep(NamedTuple):
    """The taps and channels that a tile sums over; the fields are arguments of `multiply_tile`."""

    x: int
    pixel: int
    taps_h: int
    step_h: int
    taps_w: int
    step_w: int
    run: int
    w: int


def _tile_of(rows: int, vectors: int) -> Any:
    """Make the function that sums a tile of so many rows of pixels and vectors of channels.

    A sum is a chain of up to CHAIN products in registers.  Where a longer one has filled its chain, that is
    added to the sum of the chains before it at `out`, and the next begins at 0.
    """

    @one_of_many(f"tile_{rows}_{vectors}")
    def tile(n: int, sweep: Sweep, out: int) -> None:
        t, w = tile_zeros(rows, vectors), sweep.w
        room, first = CHAIN, True
        for i in range(sweep.taps_h):
            for j in range(sweep.taps_w):
                x, left = sweep.x + i * sweep.step_h + j * sweep.step_w, sweep.run
                while left > 0:
                    if room == 0:
                        if first:  # A tile chosen by an expression costs MobileNetV2 1.4 % of a forward run.
                            tile_store(t, vectors, out)
                        else:
                            tile_store(tile_plus(t, vectors, out), vectors, out)
                        t, room, first = tile_zeros(rows, vectors), CHAIN, False
                    steps = min(left, room)
                    for _ in range(steps):
                        keep_rolled()
                        for line in range(0, 4 * LANES * vectors, ALIGNMENT):
                            prefetch_read(w + _AHEAD + line)
                        t = tile_update(t, vectors, x, sweep.pixel, w)
                        x += 4
                        w += 4 * TILE_CHANNELS
                    left -= steps
                    room -= steps
        tile_store(t if first else tile_plus(t, vectors, out), vectors, out)

    return tile


_whole_tile = by_count("whole_tile", [_tile_of(n, TILE_VECTORS) for n in range(1, TILE_ROWS + 1)])
_half_tile = by_count("half_tile", [_tile_of(n, 1) for n in range(1, TILE_ROWS + 1)])


@shared(*[INT] * 11)
def multiply_tile(
    n: int,
    channels: int,
    x: int,
    pixel: int,
    taps_h: int,
    step_h: int,
    taps_w: int,
    step_w: int,
    run: int,
    w: int,
    out: int,
) -> None:
    """Write the plain sums of `n` ≤ TILE_ROWS pixels to `out`, one row every TILE_CHANNELS float32.

    x is the address of the first pixel; pixels are `pixel` bytes apart.  The sum is over taps_h × taps_w
    taps, `step_h` and `step_w` bytes apart, each a run of `run` channels.  The weights are adjacent at w,
    TILE_CHANNELS for each value of x.  Sums are in chains of CHAIN.  `channels`: how many channels of the
    block exist; vectors without a real channel are not written.
    """
    sweep = Sweep(x, pixel, taps_h, step_h, taps_w, step_w, run, w)
    if channels > LANES:
        _whole_tile(n, sweep, out)
    else:
        _half_tile(n, sweep, out)


@device_function
def blocks_in(channels: int) -> int:
    """How many blocks of TILE_CHANNELS so many channels are."""
    return (channels + TILE_CHANNELS - 1) // TILE_CHANNELS


@device_function
def tiles_of(width: int, pixel: int) -> int:
    """How many tiles of nearly equal size a row of `width` pixels is cut into.

    Pixels at distances of whole PAGEs share one set of the first-level cache, so tiles are smaller then.
    """
    rows = TILE_ROWS if pixel % PAGE else (TILE_ROWS + 1) // 2
    return (width + rows - 1) // rows


@device_function
def first_pixel(tile: int, tiles: int, width: int) -> int:
    """The first pixel of a tile."""
    return tile * (width // tiles) + min(tile, width % tiles)
