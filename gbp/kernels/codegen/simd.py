"""Vectors of float32 for Numba kernels.

A `Vector` holds `LANES` float32 values.  In kernels it is a value with `+ - * /`, among vectors and with
numbers, which are rounded to float32.  It is loaded from and stored to byte addresses (int64).  Comparisons
give *bits*: an int64 whose bit i belongs to lane i.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, register_model

from . import emit
from .emit import LANES
from .jit import device_function
from .numba_private import (
    AbstractTemplate,
    PrimitiveModel,
    array_view,
    get_or_insert_function,
    infer_global,
    signature,
    unpack_tuple,
)


class Vector(types.Type):
    """`LANES` float32 values in one SIMD register."""

    def __init__(self) -> None:
        super().__init__(f"f32x{LANES}")


vector = Vector()


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, emit.VECTOR)


def _register_operator(function: Any, instruction: str) -> None:
    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args: Sequence[Any], kws: Any) -> Any:
            takes = vector in args and all(kind == vector or isinstance(kind, types.Float) for kind in args)
            return signature(vector, *args) if takes else None

    @lower_builtin(function, vector, vector)
    @lower_builtin(function, vector, types.Float)
    @lower_builtin(function, types.Float, vector)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = [
            arg if kind == vector else emit.splat(builder, context.cast(builder, arg, kind, types.float32))
            for kind, arg in zip(sig.args, args, strict=True)
        ]
        return getattr(builder, instruction)(*vectors)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_operator(_function, _instruction)


@intrinsic
def address_of(typing: Any, array: Any) -> Any:
    """Return the address of the array's first element.

    `array.ctypes.data`, and passing an array to a device function, would count a reference: that is an atomic
    instruction on a cache line that all threads write, and a call that spills every vector.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(array_view(context, builder, sig.args[0], args[0]).data, emit.I64)

    return types.int64(array), codegen


@intrinsic
def at(typing: Any, array: Any, n: Any, h: Any, w: Any) -> Any:
    """Return the address of pixel (n, h, w) of an array (N, H, W, C), without counting a reference."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        view = array_view(context, builder, sig.args[0], args[0])
        address = builder.ptrtoint(view.data, emit.I64)
        for index, stride in zip(args[1:], unpack_tuple(builder, view.strides, 3), strict=True):
            address = builder.add(address, builder.mul(index, stride))
        return address

    return types.int64(array, types.int64, types.int64, types.int64), codegen


@intrinsic
def zeros(typing: Any) -> Any:
    """All lanes 0."""
    return vector(), lambda context, builder, sig, args: ir.Constant(emit.VECTOR, None)


@intrinsic
def broadcast(typing: Any, value: Any) -> Any:
    """All lanes `value` (float32)."""
    return vector(types.float32), lambda context, builder, sig, args: emit.splat(builder, args[0])


@intrinsic
def load(typing: Any, address: Any) -> Any:
    """The `LANES` float32 values at `address`."""
    return vector(types.int64), lambda context, builder, sig, args: emit.load_vector(builder, args[0])


@intrinsic
def load_first(typing: Any, address: Any, count: Any) -> Any:
    """The `count` float32 values at `address`, 0 in the lanes from `count` on; touches no memory beyond."""
    return vector(types.int64, types.int64), lambda context, builder, sig, args: emit.masked_load(
        builder, args[0], emit.first_lanes(builder, args[1])
    )


@intrinsic
def load_between(typing: Any, address: Any, start: Any, stop: Any) -> Any:
    """Load lanes start … stop − 1 of the vector at `address`, 0 in the others; touches no other memory."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, start, stop = args
        lanes = builder.and_(builder.not_(emit.first_lanes(builder, start)), emit.first_lanes(builder, stop))
        return emit.masked_load(builder, address, lanes)

    return vector(types.int64, types.int64, types.int64), codegen


@intrinsic
def load_scalar(typing: Any, address: Any) -> Any:
    """The float32 at `address`."""
    return types.float32(types.int64), lambda context, builder, sig, args: builder.load(
        emit.pointer(builder, args[0], emit.F32)
    )


@intrinsic(prefer_literal=True)
def load_each(typing: Any, address: Any, step: Any, count: Any) -> Any:
    """The `count` vectors at `address`, `address + step`, … as a tuple.  `count` is a constant."""
    kind = types.UniTuple(vector, count.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, step, _ = args
        result = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i in range(kind.count):
            row = builder.add(address, builder.mul(step, ir.Constant(emit.I64, i)))
            result = builder.insert_value(result, emit.load_vector(builder, row), i)
        return result

    return kind(types.int64, types.int64, count), codegen


@intrinsic
def store_each(typing: Any, address: Any, step: Any, values: Any) -> Any:
    """Write a tuple of vectors to `address`, `address + step` and so on."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, step, vectors = args
        for i in range(values.count):
            row = builder.add(address, builder.mul(step, ir.Constant(emit.I64, i)))
            emit.store_vector(builder, builder.extract_value(vectors, i), row)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, values), codegen


@intrinsic
def store(typing: Any, address: Any, value: Any) -> Any:
    """Write all lanes to `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit.store_vector(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def store_first(typing: Any, address: Any, value: Any, count: Any) -> Any:
    """Write the first `count` lanes to `address`; touches no memory beyond."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit.masked_store(builder, args[1], args[0], emit.first_lanes(builder, args[2]))
        return context.get_dummy_value()

    return types.void(types.int64, vector, types.int64), codegen


@intrinsic
def store_scalar(typing: Any, address: Any, value: Any) -> Any:
    """Write one float32 to `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], emit.pointer(builder, args[0], emit.F32))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, lane by lane."""
    return vector(vector, vector, vector), lambda context, builder, sig, args: emit.multiply_add(
        builder, *args
    )


@intrinsic
def polynomial(typing: Any, x: Any, coefficients: Any) -> Any:
    """c₀·xⁿ + c₁·xⁿ⁻¹ + … + cₙ for a tuple of constants, lane by lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, values = args
        kind = sig.args[1]
        first, *others = (
            emit.splat(
                builder,
                context.cast(builder, builder.extract_value(values, i), kind.dtype, types.float32),
            )
            for i in range(kind.count)
        )
        return reduce(lambda sum_, c: emit.multiply_add(builder, sum_, x, c), others, first)

    return vector(vector, coefficients), codegen


@intrinsic
def power_of_two(typing: Any, k: Any) -> Any:
    """2ᵏ lane by lane for whole k in −126 … 127, given as the float 1.5·2²³ + k, whose last bits are k's."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], emit.VECTOR_I32)
        exponent = builder.shl(bits, ir.Constant(emit.VECTOR_I32, [23] * LANES))
        one = ir.Constant(emit.VECTOR_I32, [127 << 23] * LANES)
        return builder.bitcast(builder.add(exponent, one), emit.VECTOR)

    return vector(vector), codegen


@intrinsic
def above(typing: Any, a: Any, b: Any) -> Any:
    """Bits of the lanes where a > b; false where either is NaN."""
    return types.int64(vector, vector), lambda context, builder, sig, args: emit.to_bits(
        builder, builder.fcmp_ordered(">", *args)
    )


@intrinsic
def exceeds(typing: Any, a: Any, b: Any) -> Any:
    """Bits of the lanes where a replaces b as a maximum: a > b, or a is NaN and b is not."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = args
        return emit.to_bits(
            builder, builder.and_(builder.fcmp_unordered(">", a, b), builder.fcmp_ordered("ord", b, b))
        )

    return types.int64(vector, vector), codegen


@intrinsic
def square_root(typing: Any, a: Any) -> Any:
    """√a, lane by lane, correctly rounded."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(emit.VECTOR, [emit.VECTOR])
        root = get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32")
        return builder.call(root, args)

    return vector(vector), codegen


@intrinsic
def select(typing: Any, bits: Any, a: Any, b: Any) -> Any:
    """Lane i of a where bit i is set, of b elsewhere."""
    return vector(types.int64, vector, vector), lambda context, builder, sig, args: builder.select(
        emit.from_bits(builder, args[0]), args[1], args[2]
    )


@intrinsic
def sum_lanes(typing: Any, a: Any) -> Any:
    """The sum of all lanes, added pairwise in a fixed order."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            swap = ir.Constant(emit.VECTOR_I32, [(lane + width) % LANES for lane in range(LANES)])
            value = builder.fadd(
                value, builder.shuffle_vector(value, ir.Constant(emit.VECTOR, ir.Undefined), swap)
            )
        return builder.extract_element(value, ir.Constant(emit.I32, 0))

    return types.float32(vector), codegen


@intrinsic
def interleave_three(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """The lanes a₀ b₀ c₀ a₁ b₁ c₁ … as a tuple of three vectors."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b, c = args
        result = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
        for part in range(3):
            places = [divmod(part * LANES + lane, 3) for lane in range(LANES)]  # (lane, which vector)
            of_two = [lane + LANES * which if which < 2 else 0 for lane, which in places]
            of_all = [at if which < 2 else LANES + lane for at, (lane, which) in enumerate(places)]
            two = builder.shuffle_vector(a, b, ir.Constant(emit.VECTOR_I32, of_two))
            row = builder.shuffle_vector(two, c, ir.Constant(emit.VECTOR_I32, of_all))
            result = builder.insert_value(result, row, part)
        return result

    return types.UniTuple(vector, 3)(vector, vector, vector), codegen


@device_function
def load_some(address: int, count: int) -> Any:
    """`load` if there are `LANES` values or more, else `load_first`, which is slower."""
    if count >= LANES:
        return load(address)
    return load_first(address, count)


@device_function
def store_some(address: int, value: Any, count: int) -> None:
    """`store` if `LANES` values or more may be written, else `store_first`."""
    if count >= LANES:
        store(address, value)
    else:
        store_first(address, value, count)


def _prefetch(builder: Any, address: Any, write: int) -> None:
    kind = ir.FunctionType(ir.VoidType(), [emit.I8.as_pointer(), emit.I32, emit.I32, emit.I32])
    prefetch = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    hints = (ir.Constant(emit.I32, value) for value in (write, 3, 1))  # to the first cache, of data
    builder.call(prefetch, [emit.pointer(builder, address, emit.I8), *hints])


@intrinsic
def prefetch_read(typing: Any, address: Any) -> Any:
    """Fetch the cache line at `address` now, to be read soon; any address is allowed."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _prefetch(builder, args[0], write=0)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def prefetch_write(typing: Any, address: Any) -> Any:
    """Fetch the cache line at `address` now, to be written soon; any address is allowed."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _prefetch(builder, args[0], write=1)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def keep_rolled(typing: Any) -> Any:
    """Forbid LLVM to unroll the enclosing loop.  Unrolled by two, a full tile would spill its sums.

    It is an empty instruction that may not be duplicated, and costs nothing at run time.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        empty = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "", side_effect=True)
        # llvmlite lists the attributes it knows and 'noduplicate' is not among them; LLVM knows it.
        set.add(builder.call(empty, []).attributes, "noduplicate")
        return context.get_dummy_value()

    return types.void(), codegen
