"""Loads and stores of four floats, and the gate, for kernels of a card.

Numba loads and stores single floats, and checks every index for being negative.  These functions do neither.
Groups of four must be aligned to 16 bytes.  In the simulator they are plain Python.

    load_four(x, i)               four floats of a flat array, from number i on
    load_channel(x, n, h, w, c)   channel c of a pixel of (N, H, W, C)
    load_channels(x, n, h, w, c)  the four channels of a pixel from c on
    load_bytes(x, n, h, w, c)     the same of an array of bytes, as one int32

Each has its `store_…`, whose first argument is what is stored.
"""

from __future__ import annotations

from operator import floordiv
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .gate import Gate
from .jit_cuda import SIMULATED, device_function

_FOUR = types.UniTuple(types.float32, 4)
_VECTOR = ir.VectorType(ir.FloatType(), 4)


def _lane(k: int) -> Any:
    return ir.Constant(ir.IntType(32), k)


def _load(context: Any, builder: Any, pointer: Any) -> Any:
    v = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
    v.align = 16
    return context.make_tuple(builder, _FOUR, [builder.extract_element(v, _lane(k)) for k in range(4)])


def _store(builder: Any, values: Any, pointer: Any) -> None:
    v = ir.Constant(_VECTOR, ir.Undefined)
    for k in range(4):
        v = builder.insert_element(v, builder.extract_value(values, k), _lane(k))
    builder.store(v, builder.bitcast(pointer, _VECTOR.as_pointer())).align = 16


def _pixel(context: Any, builder: Any, kind: Any, args: Any) -> Any:
    """The address of x[n, h, w, c], where the last axis is dense."""
    array = context.make_array(kind)(context, builder, args[0])
    at = builder.ptrtoint(array.data, ir.IntType(64))
    for axis, index in enumerate(args[1:4]):
        at = builder.add(at, builder.mul(index, builder.extract_value(array.strides, axis)))
    at = builder.add(at, builder.mul(args[4], ir.Constant(ir.IntType(64), 4)))
    return builder.inttoptr(at, ir.FloatType().as_pointer())


def _byte(context: Any, builder: Any, kind: Any, args: Any) -> Any:
    """The address of x[n, h, w, c] in an array of bytes whose last axis is dense."""
    array = context.make_array(kind)(context, builder, args[0])
    at = builder.add(builder.ptrtoint(array.data, ir.IntType(64)), args[4])
    for axis, index in enumerate(args[1:4]):
        at = builder.add(at, builder.mul(index, builder.extract_value(array.strides, axis)))
    return builder.inttoptr(at, ir.IntType(8).as_pointer())


@intrinsic
def _load_four(typing: Any, x: Any, i: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return _load(context, builder, builder.gep(array.data, [args[1]]))

    return _FOUR(x, types.int64), codegen


@intrinsic
def _store_four(typing: Any, values: Any, x: Any, i: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[1])(context, builder, args[1])
        _store(builder, args[0], builder.gep(array.data, [args[2]]))
        return context.get_dummy_value()

    return types.void(_FOUR, x, types.int64), codegen


@intrinsic
def _load_channels(typing: Any, x: Any, n: Any, h: Any, w: Any, c: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(context, builder, _pixel(context, builder, signature.args[0], args))

    return _FOUR(x, *(types.int64,) * 4), codegen


@intrinsic
def _store_channels(typing: Any, values: Any, x: Any, n: Any, h: Any, w: Any, c: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[0], _pixel(context, builder, signature.args[1], args[1:]))
        return context.get_dummy_value()

    return types.void(_FOUR, x, *(types.int64,) * 4), codegen


@intrinsic
def _load_channel(typing: Any, x: Any, n: Any, h: Any, w: Any, c: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pixel(context, builder, signature.args[0], args))

    return types.float32(x, *(types.int64,) * 4), codegen


@intrinsic
def _store_channel(typing: Any, value: Any, x: Any, n: Any, h: Any, w: Any, c: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[0], _pixel(context, builder, signature.args[1], args[1:]))
        return context.get_dummy_value()

    return types.void(types.float32, x, *(types.int64,) * 4), codegen


@intrinsic
def _load_bytes(typing: Any, x: Any, n: Any, h: Any, w: Any, c: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _byte(context, builder, signature.args[0], args)
        word = builder.load(builder.bitcast(pointer, ir.IntType(32).as_pointer()))
        word.align = 4
        return word

    return types.int32(x, *(types.int64,) * 4), codegen


@intrinsic
def _store_bytes(typing: Any, word: Any, x: Any, n: Any, h: Any, w: Any, c: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _byte(context, builder, signature.args[1], args[1:])
        builder.store(args[0], builder.bitcast(pointer, ir.IntType(32).as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(types.int32, x, *(types.int64,) * 4), codegen


if SIMULATED:

    def load_bytes(x: Any, n: int, h: int, w: int, c: int) -> int:
        return int(x[n, h, w, c : c + 4].view(np.int32)[0])

    def store_bytes(word: int, x: Any, n: int, h: int, w: int, c: int) -> None:
        x[n, h, w, c : c + 4].view(np.uint32)[0] = int(word) & 0xFFFFFFFF

    def load_channel(x: Any, n: int, h: int, w: int, c: int) -> Any:
        return x[n, h, w, c]

    def store_channel(value: Any, x: Any, n: int, h: int, w: int, c: int) -> None:
        x[n, h, w, c] = value

    def load_four(x: Any, i: int) -> Any:
        return x[i : i + 4]

    def store_four(values: Any, x: Any, i: int) -> None:
        x[i : i + 4] = values

    def load_channels(x: Any, n: int, h: int, w: int, c: int) -> Any:
        return x[n, h, w, c : c + 4]

    def store_channels(values: Any, x: Any, n: int, h: int, w: int, c: int) -> None:
        x[n, h, w, c : c + 4] = values

    def load_eight(x: Any, i: int, step: int, a: Any) -> None:
        a[:4], a[4:] = x[i : i + 4], x[i + step : i + step + 4]

    def add_products(a: Any, b: Any, own: Any) -> None:
        own += np.multiply.outer(a, b).ravel()

else:
    load_four, store_four = _load_four, _store_four
    load_bytes, store_bytes = _load_bytes, _store_bytes
    load_channel, store_channel = _load_channel, _store_channel
    load_channels, store_channels = _load_channels, _store_channels

    @device_function
    def load_eight(x: Any, i: int, step: int, a: Any) -> None:
        """Load two groups of four, `step` apart, into a."""
        a[0], a[1], a[2], a[3] = load_four(x, i)
        a[4], a[5], a[6], a[7] = load_four(x, i + step)

    @device_function
    def add_products(a: Any, b: Any, own: Any) -> None:
        """own[i, j] += a[i] · b[j], for eight of each."""
        for i in range(8):
            for j in range(8):
                own[8 * i + j] += a[i] * b[j]


@device_function
def gated(g: Any, gate: Gate, mask: Any, pixel: Any, c: int) -> Any:
    """g where it passes the gate, 0 elsewhere.

    `pixel`: its place in the mask, which is read only if the forward gate acts.
    """
    if gate.forward and not (mask[(*pixel, c // 8)] >> (c % 8)) & 1:
        return np.float32(0)
    if gate.gradient and g <= 0:
        return np.float32(0)
    return g


@device_function
def write_gradient(
    v: Any, c: int, gate: Gate, accumulate: int, gx: Any, pixel: Any, mask: Any, mask_pixel: Any
) -> None:
    """Write channel c of a gradient, or add it with `accumulate`; then apply the gate.

    `pixel` and `mask_pixel`: its place in gx and in the mask, without the channel.
    """
    if accumulate:
        v = v + gx[(*pixel, c)]
    gx[(*pixel, c)] = gated(np.float32(v), gate, mask, mask_pixel, c)


@device_function
def targets_of(gradient: Any, saved: Any) -> Any:
    """K, where row n of a gradient of N·K rows belongs to row n // K of what was saved of N samples."""
    return gradient.shape[0] // max(1, saved.shape[0])


@device_function
def clipped(v: Any, lo: Any, hi: Any) -> Any:
    """v within [lo, hi]; NaN stays NaN."""
    if lo > v:
        return lo
    return hi if v > hi else v


@intrinsic
def _divide(typing: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b = (builder.trunc(value, ir.IntType(32)) for value in args)
        return builder.zext(builder.udiv(a, b), ir.IntType(64))

    return types.int64(types.int64, types.int64), codegen


@device_function
def _quotient(a: int, b: int) -> Any:
    """a // b of non-negative numbers.  It is faster than Numba's where both are below 2³²."""
    return _divide(a, b) if (a | b) < 2**32 else a // b


divide, quotient = (floordiv, floordiv) if SIMULATED else (_divide, _quotient)


@device_function
def at_pixel(i: int, H: int, W: int) -> Any:
    """(n, h, w) of pixel i of (N, H, W)."""
    line = quotient(i, W)
    n = quotient(line, H)
    return n, line - n * H, i - line * W
