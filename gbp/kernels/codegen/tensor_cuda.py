"""Tensor cores at float32's accuracy (compute capability 8.0 and up).

A float32 is the sum of two TF32 numbers, x = big + small, up to 2⁻²² of it.  Three products are added,

    x · w ≈ big·big + big·small + small·big

The fourth would be below the rounding of float32.  Tensor cores add by truncation.  So they sum one tile of K
only, and ordinary additions sum the tiles.

Tiles in shared memory are rows of 32 floats: 128 bytes, eight chunks of 16 bytes.  Chunk c of row r is stored
at position c xor (r mod 8).  So eight rows of one chunk use all banks; Hopper's `wgmma` calls this order the
128-byte swizzle.

The instructions are those of NVIDIA's PTX ISA: `ldmatrix`, `mma.sync.m16n8k8` (compute capability 8.0) and
`wgmma.mma_async.m64nNk8` (9.0).  The three products are those of CUTLASS's 3xTF32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FOUR = types.UniTuple(types.float32, 4)


@intrinsic
def split_one(typing: Any, x: Any) -> Any:
    """(big, small): the nearest TF32 number, with halves rounded away from zero, and the rest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.add(builder.bitcast(args[0], _I32), ir.Constant(_I32, 0x1000))
        big = builder.bitcast(builder.and_(bits, ir.Constant(_I32, 0xFFFFE000)), _F32)
        return context.make_tuple(builder, signature.return_type, [big, builder.fsub(args[0], big)])

    return types.UniTuple(types.float32, 2)(types.float32), codegen


def _tuple_of(context: Any, builder: Any, kind: Any, result: Any) -> Any:
    return context.make_tuple(builder, kind, [builder.extract_value(result, k) for k in range(len(kind))])


@intrinsic
def load_matrices(typing: Any, address: Any) -> Any:
    """`ldmatrix.x4`: load four matrices of 8 rows of 16 bytes, whose addresses 32 lanes give."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.LiteralStructType([_F32] * 4), [_I32])
        text = (
            "{ .reg .b32 a, b, c, d; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {a, b, c, d}, [$4]; "
            "mov.b32 $0, a; mov.b32 $1, b; mov.b32 $2, c; mov.b32 $3, d; }"
        )
        asm = ir.InlineAsm(kind, text, "=f,=f,=f,=f,r,~{memory}", side_effect=True)
        return _tuple_of(context, builder, _FOUR, builder.call(asm, list(args)))

    return _FOUR(types.int32), codegen


@intrinsic
def load_word(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_F32, [_I32])
        asm = ir.InlineAsm(kind, "ld.shared.f32 $0, [$1];", "=f,r,~{memory}", side_effect=True)
        return builder.call(asm, list(args))

    return types.float32(types.int32), codegen


@intrinsic
def mma(
    typing: Any, c0: Any, c1: Any, c2: Any, c3: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any
) -> Any:
    """`mma.sync.m16n8k8`: c + a · b, 16 × 8 for a warp."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        factors = [builder.bitcast(value, _I32) for value in args[4:]]
        kind = ir.FunctionType(ir.LiteralStructType([_F32] * 4), [_I32] * 6 + [_F32] * 4)
        text = (
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
        )
        asm = ir.InlineAsm(kind, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", side_effect=False)
        return _tuple_of(context, builder, _FOUR, builder.call(asm, [*factors, *args[:4]]))

    return _FOUR(*(types.float32,) * 10), codegen


_K_STEPS = 4  # of 8, in a tile of K
_BIG = 4 * _K_STEPS  # words of a lane's big, or small, of 16 rows


def _descriptor_bits(products: int) -> int:
    """The constant bits of a `wgmma` descriptor: 128-byte swizzle, and the step between groups of 8 rows."""
    apart = 2048 if products > 1 else 1024  # big and small take turns
    return (1 << 62) | ((apart >> 4) << 32) | (1 << 16)


def _split_text(raw: str, big: str, small: str) -> str:
    split = f"add.s32 {big}, {raw}, 4096; and.b32 {big}, {big}, 0xffffe000;"
    return split + (f" sub.f32 {small}, {raw}, {big};" if small else "")


def _load_text(words: list[str], address: str, products: int) -> list[str]:
    """Code that loads a lane's words of 16 rows: `ldmatrix` for each 8 columns, big first, then small."""
    lines = []
    for k in range(_K_STEPS):
        lines.append(f"xor.b32 t, {address}, {32 * k};")
        lines.append("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {v0, v1, v2, v3}, [t];")
        for i in range(4):
            small = words[_BIG + 4 * k + i] if products > 1 else ""
            lines.append(_split_text(f"v{i}", words[4 * k + i], small))
    return lines


_REGISTERS = ".reg .b32 t, v0, v1, v2, v3;"


def _wgmma_text(columns: int, products: int) -> tuple[str, str]:
    """Code that multiplies a tile of K for 64 rows and loads the next words; operands' constraints."""
    sums, words = columns // 2, _BIG * (2 if products > 1 else 1)
    following = [f"${sums + i}" for i in range(words)]
    own = [f"${sums + words + i}" for i in range(words)]
    descriptor, address = f"${sums + 2 * words}", f"${sums + 2 * words + 1}"
    outputs = ", ".join(f"${i}" for i in range(sums))
    lines = [
        f"{{ {_REGISTERS} .reg .pred first, more; .reg .b64 d;",
        "setp.ne.b32 first, 0, 0; setp.eq.b32 more, 0, 0;",
        "wgmma.fence.sync.aligned;",
    ]
    # The small products first, so that truncation takes least of them.
    pairs = [(_BIG, 0), (0, 64), (0, 0)] if products > 1 else [(0, 0)]
    scale = "first"
    for a, b in pairs:
        for k in range(_K_STEPS):
            factor = ", ".join(own[a + 4 * k : a + 4 * k + 4])
            lines.append(f"add.s64 d, {descriptor}, {b + 2 * k};")
            lines.append(
                f"wgmma.mma_async.sync.aligned.m64n{columns}k8.f32.tf32.tf32 "
                f"{{{outputs}}}, {{{factor}}}, d, {scale}, 1, 1;"
            )
            scale = "more"
    lines.append("wgmma.commit_group.sync.aligned;")
    lines += _load_text(following, address, products)
    lines.append("wgmma.wait_group.sync.aligned 0; }")
    constraints = ["=&f"] * sums + ["=&r"] * words + ["r"] * words + ["l", "r", "~{memory}"]
    return " ".join(lines), ",".join(constraints)


def _element(context: Any, builder: Any, kind: Any, array: Any, i: int) -> Any:
    """The address of element i of a local array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [ir.Constant(_I32, i)])


def wgmma_of(columns: int, products: int) -> Any:
    """The intrinsic `wgmma(part, own, following, weights, rows)` for this many columns."""
    text, constraints = _wgmma_text(columns, products)
    sums, words = columns // 2, _BIG * (2 if products > 1 else 1)

    @intrinsic
    def wgmma(typing: Any, part: Any, own: Any, following: Any, weights: Any, rows: Any) -> Any:
        """part = own · the tile of weights at that address; following = the rows at `rows`, split."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def pointer(position: int, i: int) -> Any:
                return _element(context, builder, signature.args[position], args[position], i)

            factors = [builder.bitcast(builder.load(pointer(1, i)), _I32) for i in range(words)]
            start = builder.lshr(builder.zext(args[3], _I64), ir.Constant(_I64, 4))
            descriptor = builder.or_(start, ir.Constant(_I64, _descriptor_bits(products)))
            struct = ir.LiteralStructType([_F32] * sums + [_I32] * words)
            kind = ir.FunctionType(struct, [_I32] * words + [_I64, _I32])
            asm = ir.InlineAsm(kind, text, constraints, side_effect=True)
            result = builder.call(asm, [*factors, descriptor, args[4]])
            for i in range(sums):
                builder.store(builder.extract_value(result, i), pointer(0, i))
            for i in range(words):
                word = builder.bitcast(builder.extract_value(result, sums + i), _F32)
                builder.store(word, pointer(2, i))
            return context.get_dummy_value()

        return types.void(part, own, following, types.int32, types.int32), codegen

    return wgmma


def load_words_of(products: int) -> Any:
    """The intrinsic `load_words(own, rows)`: own = the rows at `rows`, split."""
    words = _BIG * (2 if products > 1 else 1)
    lines = _load_text([f"${i}" for i in range(words)], f"${words}", products)
    text = f"{{ {_REGISTERS} {' '.join(lines)} }}"
    constraints = ",".join(["=&r"] * words + ["r", "~{memory}"])

    @intrinsic
    def load_words(typing: Any, own: Any, rows: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.LiteralStructType([_I32] * words), [_I32])
            asm = ir.InlineAsm(kind, text, constraints, side_effect=True)
            result = builder.call(asm, [args[1]])
            for i in range(words):
                word = builder.bitcast(builder.extract_value(result, i), _F32)
                builder.store(word, _element(context, builder, signature.args[0], args[0], i))
            return context.get_dummy_value()

        return types.void(own, types.int32), codegen

    return load_words


def split(x: Any) -> Any:
    """The nearest TF32 numbers, halves away from zero, and the rest, of float32 arrays of the host."""
    bits = x.view(np.int32) + np.int32(0x1000)
    big = (bits & np.int32(-0x2000)).view(np.float32)
    return big, x - big
