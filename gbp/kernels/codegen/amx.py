"""Intel's AMX: eight tiles of 16 rows × 64 bytes, and an instruction that multiplies two of them.

`amx_multiply` adds the product of a tile of 16 × 32 bfloat16 and one of 32 × 16 to a tile of 16 × 16 float32.
A float32 is the sum of three bfloat16 numbers, its *parts*, of 8 bits each.  The products of parts are exact
in float32.  Six of the nine are needed: the others are below float32's rounding.  So a product of float32
matrices takes six products of bfloat16, which AMX computes three times as fast as vectors do one of float32.

`amx_multiply_digits` and `amx_multiply_signed` multiply tiles of 16 × 64 and 64 × 16 bytes.  Their sums in
int32 are exact.  They take as long for twice as many terms.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18; Henry, Tang &
Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations".
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import emit
from .numba_private import get_or_insert_function
from .simd import vector

#: Rows of a tile, and bytes of a row.
ROWS, ROW_BYTES = 16, 64
TILE_BYTES = ROWS * ROW_BYTES
#: Values of bfloat16 in a row: so many terms of a sum enter one multiplication.
DEPTH = ROW_BYTES // 2
PARTS = 3

_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64: asm/prctl.h


@cache
def is_usable() -> bool:
    """Whether the processor has AMX and the system lets this process use it, now and in its threads.

    Linux must be asked first (Documentation/arch/x86/xstate.rst).
    """
    if not emit.HAS_AMX or sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0


def has_bytes() -> bool:
    """`is_usable`, and the processor multiplies bytes too."""
    return emit.HAS_AMX_BYTES and is_usable()


def _call(builder: Any, name: str, *args: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), args)


def _number(kind: Any) -> Any:
    return ir.Constant(emit.I8, kind.literal_value)


@intrinsic
def amx_begin(typing: Any) -> Any:
    """Make all eight tiles 16 rows of 64 bytes.  Each thread does this before it uses tiles."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # Palette 1; 16-bit bytes of a row of each tile from byte 16; rows of each from byte 48.
        row_bytes, rows = (ROW_BYTES * 0x0001_0001_0001_0001), ROWS * 0x0101_0101_0101_0101
        words = [1, 0, row_bytes, row_bytes, 0, 0, rows, 0]
        memory = builder.alloca(ir.ArrayType(emit.I64, len(words)))
        memory.align = 64
        builder.store(ir.Constant(memory.allocated_type, words), memory)
        _call(builder, "ldtilecfg", builder.bitcast(memory, emit.I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def amx_end(typing: Any) -> Any:
    """Give the tiles back: the system need not save them for this thread any more."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic(prefer_literal=True)
def amx_zero(typing: Any, tile: Any) -> Any:
    """Make a tile 0.  Tiles are constants, 0 to 7."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tilezero", _number(tile))
        return context.get_dummy_value()

    return types.void(tile), codegen


@intrinsic(prefer_literal=True)
def amx_load(typing: Any, tile: Any, address: Any, step: Any) -> Any:
    """Load a tile whose rows are `step` bytes apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tileloadd64", _number(tile), emit.pointer(builder, args[1], emit.I8), args[2])
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def amx_store(typing: Any, tile: Any, address: Any, step: Any) -> Any:
    """Store a tile with rows `step` bytes apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tilestored64", _number(tile), emit.pointer(builder, args[1], emit.I8), args[2])
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def amx_multiply(typing: Any, out: Any, a: Any, b: Any) -> Any:
    """out[i, j] += Σ_k a[i, k] · b[k, j] with float32 out, and bfloat16 a, b.

    Bytes 4j … 4j + 3 of row k of tile b hold b[2k, j] and b[2k + 1, j].  Even and odd terms have sums of
    their own, which begin at 0; their sum is added to out.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tdpbf16ps", _number(out), _number(a), _number(b))
        return context.get_dummy_value()

    return types.void(out, a, b), codegen


@intrinsic(prefer_literal=True)
def amx_multiply_digits(typing: Any, out: Any, a: Any, b: Any) -> Any:
    """out[i, j] += Σ_k a[i, k] · b[k, j] with int32 out, unsigned bytes a, signed bytes b.

    Bytes 4j … 4j + 3 of row k of tile b hold b[4k, j] … b[4k + 3, j].
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tdpbusd", _number(out), _number(a), _number(b))
        return context.get_dummy_value()

    return types.void(out, a, b), codegen


@intrinsic(prefer_literal=True)
def amx_multiply_signed(typing: Any, out: Any, a: Any, b: Any) -> Any:
    """`amx_multiply_digits` of signed bytes a."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tdpbssd", _number(out), _number(a), _number(b))
        return context.get_dummy_value()

    return types.void(out, a, b), codegen


def _numbers(value: int) -> Any:
    return ir.Constant(emit.VECTOR_I32, [value] * emit.LANES)


@intrinsic
def store_digits(typing: Any, address: Any, step: Any, scale: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Write the three digits of scale · (four vectors) as rows of bytes, `step` bytes apart.

    A value, rounded to whole numbers, is d₀·2¹⁶ + d₁·2⁸ + d₂ with d₀ in 0 … 255 and the others in −128 … 127.
    It must be in 0 … 255.49·2¹⁶.  Byte 4j + i of a row is the digit of lane j of vector i.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, step, scale, *values = args
        factor = emit.splat(builder, scale)
        kind = ir.FunctionType(emit.VECTOR, [emit.VECTOR])
        nearest = get_or_insert_function(builder.module, kind, f"llvm.rint.v{emit.LANES}f32")
        whole = []
        for value in values:
            rounded = builder.call(nearest, [builder.fmul(value, factor)])
            # With 2⁷ more in each of the lower digits, all digits are unsigned.
            whole.append(builder.add(builder.fptosi(rounded, emit.VECTOR_I32), _numbers(0x8080)))
        digits = []
        for shift in (16, 8, 0):
            row = None
            for i, value in enumerate(whole):
                moved = 8 * i - shift
                byte = builder.and_(value, _numbers(0xFF << shift))
                if moved > 0:
                    byte = builder.shl(byte, _numbers(moved))
                elif moved < 0:
                    byte = builder.lshr(byte, _numbers(-moved))
                row = byte if row is None else builder.or_(row, byte)
            digits.append(row if shift == 16 else builder.xor(row, _numbers(0x80808080 - 2**32)))
        for row in digits:
            builder.store(row, emit.pointer(builder, address, emit.VECTOR_I32)).align = ROW_BYTES
            address = builder.add(address, step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, *[vector] * 4), codegen


@intrinsic
def load_whole(typing: Any, address: Any) -> Any:
    """The `LANES` int32 at `address`, as float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = builder.load(emit.pointer(builder, args[0], emit.VECTOR_I32))
        loaded.align = ROW_BYTES
        return builder.sitofp(loaded, emit.VECTOR)

    return vector(types.int64), codegen


@intrinsic
def store_parts(typing: Any, address: Any, step: Any, a: Any, b: Any) -> Any:
    """Write the three parts of two vectors as rows of tiles, `step` bytes apart: a₀, b₀, a₁, b₁ and so on.

    Each part is the rest that the ones before it leave, rounded to bfloat16 (half away from 0), but never to
    infinity.  The third rounds nothing away: 3 · 8 bits hold float32's 24.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, step, *rest = args
        half, high, sixteen, most, least = (
            ir.Constant(emit.VECTOR_I32, [value] * emit.LANES)
            for value in (0x8000, -0x10000, 16, 0x7F7F_FFFF, 0xFF7F_FFFF - 2**32)
        )
        for part in range(PARTS):
            bits = [builder.bitcast(value, emit.VECTOR_I32) for value in rest]
            if part < PARTS - 1:
                bits = [builder.add(value, half) for value in bits]
                if part == 0:  # the next ones are too small to round to infinity
                    for compare, bound in ((builder.icmp_signed, most), (builder.icmp_unsigned, least)):
                        bits = [builder.select(compare("<", b, bound), b, bound) for b in bits]
                bits = [builder.and_(value, high) for value in bits]
                rest = [
                    builder.fsub(value, builder.bitcast(rounded, emit.VECTOR))
                    for value, rounded in zip(rest, bits, strict=True)
                ]
            row = builder.or_(builder.lshr(bits[0], sixteen), builder.and_(bits[1], high))
            builder.store(row, emit.pointer(builder, address, emit.VECTOR_I32)).align = ROW_BYTES
            address = builder.add(address, step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector, vector), codegen
