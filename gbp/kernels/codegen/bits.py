"""Bits and integers for kernels: masks, switches, and lists of nonzero values."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import emit
from .emit import LANES
from .jit import device_function
from .simd import vector


@intrinsic
def store_integers(typing: Any, array: Any, address: Any, value: Any, count: Any) -> Any:
    """Write the first `count` lanes, whole numbers ≥ 0, as integers of `array`'s type to `address`."""
    element = ir.IntType(array.dtype.bitwidth)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, address, value, count = args
        # By way of int32, because narrowing is one instruction and float to byte is not.
        whole = builder.fptosi(value, emit.VECTOR_I32)
        if element.width < 32:
            whole = builder.trunc(whole, ir.VectorType(element, LANES))
        emit.masked_store(builder, whole, address, emit.first_lanes(builder, count), element)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector, types.int64), codegen


@intrinsic
def integers_equal(typing: Any, array: Any, address: Any, wanted: Any, count: Any) -> Any:
    """Bits of the lanes below `count` whose integer, of `array`'s type, at `address` is `wanted`."""
    element = ir.IntType(array.dtype.bitwidth)
    vec = ir.VectorType(element, LANES)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, address, wanted, count = args
        lanes = emit.first_lanes(builder, count)
        found = emit.masked_load(builder, address, lanes, element)
        all_wanted = emit.splat(builder, builder.trunc(wanted, element), vec)
        return emit.to_bits(builder, builder.and_(lanes, builder.icmp_unsigned("==", found, all_wanted)))

    return types.int64(array, types.int64, types.int64, types.int64), codegen


@intrinsic
def store_nonzero(typing: Any, v: Any, index: Any, values: Any, indices: Any) -> Any:
    """Write the nonzero lanes of v, without gaps, to `values`, and `index` + lane as int32 to `indices`.

    Returns how many they are.  Whole vectors are written for any number.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v, index, values, indices = args
        keep = builder.fcmp_unordered("!=", v, ir.Constant(emit.VECTOR, None))
        lane = ir.Constant(emit.VECTOR_I32, list(range(LANES)))
        index = builder.add(emit.splat(builder, builder.trunc(index, emit.I32), emit.VECTOR_I32), lane)
        emit.store_vector(builder, emit.compress(builder, v, keep), values)
        emit.store_vector(builder, emit.compress(builder, index, keep), indices)
        return builder.ctpop(emit.to_bits(builder, keep))

    return types.int64(vector, types.int64, types.int64, types.int64), codegen


@intrinsic
def nonzero(typing: Any, v: Any) -> Any:
    """Return how many lanes of v are not 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        keep = builder.fcmp_unordered("!=", args[0], ir.Constant(emit.VECTOR, None))
        return builder.ctpop(emit.to_bits(builder, keep))

    return types.int64(vector), codegen


@intrinsic
def nonzero_lanes(typing: Any, v: Any) -> Any:
    """Return bits of the lanes of v that are not 0, such as NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit.to_bits(builder, builder.fcmp_unordered("!=", args[0], ir.Constant(emit.VECTOR, None)))

    return types.int64(vector), codegen


@intrinsic
def lowest_bit(typing: Any, bits: Any) -> Any:
    """Return the number of the lowest bit that is set; bits are not 0."""
    return types.int64(types.int64), lambda context, builder, sig, args: builder.cttz(
        args[0], ir.Constant(ir.IntType(1), 1)
    )


@intrinsic
def load_index(typing: Any, address: Any) -> Any:
    """The int32 at `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.sext(builder.load(emit.pointer(builder, args[0], emit.I32)), emit.I64)

    return types.int64(types.int64), codegen


@intrinsic
def store_index(typing: Any, address: Any, value: Any) -> Any:
    """Write an int32 to `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], emit.I32), emit.pointer(builder, args[0], emit.I32))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def store_byte(typing: Any, address: Any, value: Any) -> Any:
    """Write the low 8 bits of `value` to `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], emit.I8), emit.pointer(builder, args[0], emit.I8))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def load_byte(typing: Any, address: Any) -> Any:
    """The byte at `address`, unsigned."""
    return types.int64(types.int64), lambda context, builder, sig, args: builder.zext(
        builder.load(emit.pointer(builder, args[0], emit.I8)), emit.I64
    )


@intrinsic
def _store_all_bits(typing: Any, address: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(
            builder.trunc(args[1], emit.INT_LANES), emit.pointer(builder, args[0], emit.INT_LANES)
        ).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _load_all_bits(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = builder.load(emit.pointer(builder, args[0], emit.INT_LANES))
        loaded.align = 1
        return builder.zext(loaded, emit.I64)

    return types.int64(types.int64), codegen


@device_function
def store_bits(address: int, bits: int, count: int) -> None:
    """Write the bits of the first `count` lanes to the bytes at `address`, lowest lane in the lowest bit."""
    if count >= LANES:
        _store_all_bits(address, bits)
    else:
        for byte in range((count + 7) // 8):
            store_byte(address + byte, bits >> (8 * byte))


@device_function
def load_bits(address: int, count: int) -> int:
    """The bits of `count` lanes from the bytes at `address`."""
    if count >= LANES:
        return _load_all_bits(address)
    bits = 0
    for byte in range((count + 7) // 8):
        bits |= load_byte(address + byte) << (8 * byte)
    return bits
