"""Tensor cores at float32's accuracy: what kernels of a card call for them (compute capability 8.0 and up).

A float32 is the sum of two TF32 numbers, x = big + small up to 2⁻²² of it.  Three products are added,

    x · w ≈ big·big + big·small + small·big

and a fourth would be below float32's own rounding.  Tensor cores add by truncation, so their sums are kept
short: those of one tile of K, which ordinary additions bring together.

Tiles in shared memory are rows of 32 floats, 128 bytes, whose eight chunks of 16 bytes are exchanged:
chunk c of row r lies at c xor r mod 8.  So eight rows of one chunk meet all banks, and Hopper's `wgmma`
knows this order as its 128-byte swizzle.

The instructions are those of NVIDIA's PTX ISA: `cp.async`, `ldmatrix`, `mma.sync.m16n8k8`,
`wgmma.mma_async.m64nNk8`.  In the simulator a thread stands for a warp, and `Warp` below says what the
instructions make of its tile.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda, float32, types
from numba.extending import intrinsic

from .jit_cuda import SIMULATED, device_function, int32

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FOUR = types.UniTuple(types.float32, 4)


def _statement(text: str, constraints: str, kinds: list[Any]) -> Any:
    """Code of an instruction without a result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), kinds)
        builder.call(ir.InlineAsm(kind, text, constraints, side_effect=True), list(args))
        return context.get_dummy_value()

    return codegen


@intrinsic
def _shared_address(typing: Any, x: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        kind = ir.FunctionType(_I32, [_I64])
        text = "{ .reg .u64 t; cvta.to.shared.u64 t, $1; cvt.u32.u64 $0, t; }"
        address = builder.ptrtoint(array.data, _I64)
        return builder.call(ir.InlineAsm(kind, text, "=r,l", side_effect=False), [address])

    return types.int32(x), codegen


@intrinsic
def _global_address(typing: Any, x: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.ptrtoint(array.data, _I64)

    return types.int64(x), codegen


@intrinsic
def _copy_16(typing: Any, to: Any, source: Any, nbytes: Any) -> Any:
    text = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
    kinds = [_I32, _I64, _I32]
    return types.void(types.int32, types.int64, types.int32), _statement(text, "r,l,r,~{memory}", kinds)


@intrinsic
def _copy_4(typing: Any, to: Any, source: Any, nbytes: Any) -> Any:
    text = "cp.async.ca.shared.global [$0], [$1], 4, $2;"
    kinds = [_I32, _I64, _I32]
    return types.void(types.int32, types.int64, types.int32), _statement(text, "r,l,r,~{memory}", kinds)


@intrinsic
def _commit(typing: Any) -> Any:
    return types.void(), _statement("cp.async.commit_group;", "~{memory}", [])


def _wait_for_all_but(count: int) -> Any:
    @intrinsic
    def wait(typing: Any) -> Any:
        return types.void(), _statement(f"cp.async.wait_group {count};", "~{memory}", [])

    return wait


@intrinsic
def _to_async_proxy(typing: Any) -> Any:
    return types.void(), _statement("fence.proxy.async.shared::cta;", "~{memory}", [])


@intrinsic
def _split(typing: Any, x: Any) -> Any:
    """(big, small): the nearest TF32 number, halves away from zero, and the rest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.add(builder.bitcast(args[0], _I32), ir.Constant(_I32, 0x1000))
        big = builder.bitcast(builder.and_(bits, ir.Constant(_I32, 0xFFFFE000)), _F32)
        return context.make_tuple(builder, signature.return_type, [big, builder.fsub(args[0], big)])

    return types.UniTuple(types.float32, 2)(types.float32), codegen


def _tuple_of(context: Any, builder: Any, kind: Any, result: Any) -> Any:
    return context.make_tuple(builder, kind, [builder.extract_value(result, k) for k in range(len(kind))])


@intrinsic
def _load_matrices(typing: Any, address: Any) -> Any:
    """`ldmatrix.x4`: of four matrices of 8 rows of 16 bytes, whose rows' addresses 32 lanes give."""

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
def _load_word(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_F32, [_I32])
        asm = ir.InlineAsm(kind, "ld.shared.f32 $0, [$1];", "=f,r,~{memory}", side_effect=True)
        return builder.call(asm, list(args))

    return types.float32(types.int32), codegen


@intrinsic
def _mma(
    typing: Any, c0: Any, c1: Any, c2: Any, c3: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any
) -> Any:
    """`mma.sync.m16n8k8`: c + a · b of a warp's 16 × 8."""

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


#: Bits of a `wgmma` descriptor: 128-byte swizzle; rows of eight 2048 bytes apart, as big and small take turns.
_SWIZZLED_128 = (1 << 62) | ((2048 >> 4) << 32) | (1 << 16)
_K_STEPS = 4  # of 8, in a tile of K


def _wgmma_text(columns: int, products: int) -> tuple[str, str]:
    """A warpgroup's 64 × columns over a tile of K, and the constraints of its operands."""
    sums = columns // 2
    fragments = 4 * _K_STEPS * (2 if products > 1 else 1)
    address = sums + fragments
    outputs = ", ".join(f"${i}" for i in range(sums))
    lines = [
        "{ .reg .pred first, more; .reg .b64 d;",
        "setp.ne.b32 first, 0, 0; setp.eq.b32 more, 0, 0;",
        "wgmma.fence.sync.aligned;",
    ]
    # The small products first, so that truncation takes least of them.
    pairs = [(4 * _K_STEPS, 0), (0, 64), (0, 0)] if products > 1 else [(0, 0)]
    scale = "first"
    for a, b in pairs:
        for k in range(_K_STEPS):
            own = ", ".join(f"${sums + a + 4 * k + i}" for i in range(4))
            lines.append(f"add.s64 d, ${address}, {b + 2 * k};")
            lines.append(
                f"wgmma.mma_async.sync.aligned.m64n{columns}k8.f32.tf32.tf32 "
                f"{{{outputs}}}, {{{own}}}, d, {scale}, 1, 1;"
            )
            scale = "more"
    lines.append("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }")
    constraints = ["=&f"] * sums + ["r"] * fragments + ["l", "~{memory}"]
    return " ".join(lines), ",".join(constraints)


def wgmma_of(columns: int, products: int) -> Any:
    text, constraints = _wgmma_text(columns, products)
    sums, fragments = columns // 2, 4 * _K_STEPS

    @intrinsic
    def wgmma(typing: Any, part: Any, big: Any, small: Any, address: Any) -> Any:
        """part = the products of big and small with the tile of weights in shared memory at the address."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def pointer(position: int, i: int) -> Any:
                array = context.make_array(signature.args[position])(context, builder, args[position])
                return builder.gep(array.data, [ir.Constant(_I32, i)])

            factors = [
                builder.bitcast(builder.load(pointer(position, i)), _I32)
                for position in ((1, 2) if products > 1 else (1,))
                for i in range(fragments)
            ]
            start = builder.lshr(builder.zext(args[3], _I64), ir.Constant(_I64, 4))
            descriptor = builder.or_(start, ir.Constant(_I64, _SWIZZLED_128))
            struct = ir.LiteralStructType([_F32] * sums)
            kind = ir.FunctionType(struct, [_I32] * len(factors) + [_I64])
            asm = ir.InlineAsm(kind, text, constraints, side_effect=True)
            result = builder.call(asm, [*factors, descriptor])
            for i in range(sums):
                builder.store(builder.extract_value(result, i), pointer(0, i))
            return context.get_dummy_value()

        return types.void(part, big, small, types.int32), codegen

    return wgmma


@intrinsic
def _divide(typing: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.udiv(*args)

    return types.int32(types.int32, types.int32), codegen


def split(x: Any) -> Any:
    """The nearest TF32 numbers, halves away from zero, and the rest, of float32 arrays of the host."""
    bits = x.view(np.int32) + np.int32(0x1000)
    big = (bits & np.int32(-0x2000)).view(np.float32)
    return big, x - big


@intrinsic
def _load_place(typing: Any, address: Any) -> Any:
    """16 bytes of shared memory: an address, and two int32."""
    result = types.Tuple((types.int64, types.int32, types.int32))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.LiteralStructType([_I64, _I32, _I32]), [_I32])
        text = "{ .reg .b64 t; ld.shared.v2.b64 {$0, t}, [$3]; mov.b64 {$1, $2}, t; }"
        asm = ir.InlineAsm(kind, text, "=l,=r,=r,r,~{memory}", side_effect=True)
        found = builder.call(asm, list(args))
        return context.make_tuple(builder, result, [builder.extract_value(found, k) for k in range(3)])

    return result(types.int32), codegen


@intrinsic
def _store_place(typing: Any, address: Any, place: Any, h: Any, w: Any) -> Any:
    text = "{ .reg .b64 t; mov.b64 t, {$2, $3}; st.shared.v2.b64 [$0], {$1, t}; }"
    codegen = _statement(text, "r,l,r,r,~{memory}", [_I32, _I64, _I32, _I32])
    return types.void(types.int32, types.int64, types.int32, types.int32), codegen


@intrinsic
def _store_pair(typing: Any, address: Any, a: Any, b: Any) -> Any:
    codegen = _statement("st.shared.v2.f32 [$0], {$1, $2};", "r,f,f,~{memory}", [_I32, _F32, _F32])
    return types.void(types.int32, types.float32, types.float32), codegen


if SIMULATED:
    shared_address = global_address = lambda x: x.ctypes.data  # noqa: E731

    def copy_16(to: int, source: int, nbytes: int) -> None:
        """Copy the first `nbytes` of 16; the rest is 0."""
        ctypes.memmove(to, source, nbytes)
        ctypes.memset(to + nbytes, 0, 16 - nbytes)

    def copy_4(to: int, source: int, nbytes: int) -> None:
        """Copy 4 bytes, or write 0."""
        ctypes.memmove(to, source, nbytes)
        ctypes.memset(to + nbytes, 0, 4 - nbytes)

    def nothing() -> None:
        """Copies are there at once."""

    commit = wait_0 = wait_1 = wait_2 = to_async_proxy = nothing

    def load_place(address: int) -> Any:
        place = ctypes.c_int64.from_address(address).value
        h, w = (ctypes.c_int32.from_address(address + at).value for at in (8, 12))
        return place, h, w

    def store_place(address: int, place: int, h: int, w: int) -> None:
        ctypes.c_int64.from_address(address).value = place
        ctypes.c_int32.from_address(address + 8).value = h
        ctypes.c_int32.from_address(address + 12).value = w

    def divide(a: int, b: int) -> int:
        return a // b

    def floats_at(address: int, count: int) -> Any:
        return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32)

    def _tile(address: int, rows: int) -> Any:
        """Rows of 32 floats as they were before their chunks were exchanged."""
        r, c = np.arange(rows)[:, None], np.arange(8)
        return floats_at(address, 32 * rows).reshape(rows, 8, 4)[r, c ^ (r & 7)].reshape(rows, 32)

    def copy_weights_simulated(to: int, source: int, nbytes: int) -> None:
        """Eights of channels on their way, by the one thread that there is."""
        ctypes.memmove(to, source, nbytes)

    def multiply_simulated(stage: int, part: Any) -> None:
        """part = the products of a tile of K: the thread stands for a warp, which has the whole tile."""
        big, small = split(_tile(stage, len(part) // CHANNELS))
        weights = [_tile(stage + X_BYTES + W_ATOM * o, W_ATOM // 128) for o in range(CHANNELS // 8)]
        w_big, w_small = np.concatenate([w[:8] for w in weights]), np.concatenate([w[-8:] for w in weights])
        pairs = [(small, w_big), (big, w_small), (big, w_big)] if PRODUCTS > 1 else [(big, w_big)]
        sums = sum(a.astype(np.float64) @ b.astype(np.float64).T for a, b in pairs)
        part[:] = sums.reshape(-1).astype(np.float32)

    def lay_down_simulated(base: int, total: Any) -> None:
        for p, sums in enumerate(total.reshape(-1, CHANNELS)):
            ctypes.memmove(base + 4 * ACROSS * p, sums.ctypes.data, sums.nbytes)

else:

    @device_function
    def nothing() -> None:
        """No fence is needed where the same threads read what they copied."""

    shared_address, global_address = _shared_address, _global_address
    copy_16, copy_4, commit, to_async_proxy = _copy_16, _copy_4, _commit, _to_async_proxy
    wait_0, wait_1, wait_2 = (_wait_for_all_but(count) for count in range(3))
    load_place, store_place, store_pair, divide = _load_place, _store_place, _store_pair, _divide
    load_matrices, load_word, split_one, mma = _load_matrices, _load_word, _split, _mma


#: Of the tile that a copy of `multiply` and `lay_down` is made for.
CHANNELS = THREADS = X_BYTES = W_ATOM = W_UNITS = SUMS = ACROSS = 0
ROWS_OF_16 = COLUMNS_OF_8 = WARPS_ACROSS = A_WORDS = B_WORDS = 1
PRODUCTS = 3
_HALF = 4 * _K_STEPS


@device_function
def add_product(part: Any, o: int, a: Any, i: int, b: Any, j: int) -> None:
    part[o], part[o + 1], part[o + 2], part[o + 3] = mma(
        part[o], part[o + 1], part[o + 2], part[o + 3], a[i], a[i + 1], a[i + 2], a[i + 3], b[j], b[j + 1]
    )


@device_function
def split_word(address: int, k: int, big: Any, small: Any) -> None:
    """A float of shared memory to place k of big and small."""
    big[k], small[k] = split_one(load_word(address))


def multiply_by_warpgroup(stage: int, part: Any) -> None:
    """part = the products of a tile of K: of 16 rows of X a warp, and all the tile's channels."""
    big, small = cuda.local.array(_HALF, float32), cuda.local.array(_HALF, float32)
    t = int32(cuda.threadIdx.x)
    lane, row = t & 31, (t >> 5) * 16 + (t & 15)
    for k in range(_K_STEPS):
        a, b, c, d = load_matrices(int32(stage + row * 128 + (((2 * k + (lane >> 4)) ^ (lane & 7)) << 4)))
        big[4 * k], small[4 * k] = split_one(a)
        big[4 * k + 1], small[4 * k + 1] = split_one(b)
        big[4 * k + 2], small[4 * k + 2] = split_one(c)
        big[4 * k + 3], small[4 * k + 3] = split_one(d)
    wgmma(part, big, small, int32(stage + X_BYTES))


def copy_weights(to: int, source: int, nbytes: int) -> None:
    """A thread's part of the tile's weights on its way; 0 from `nbytes` on."""
    t = int32(cuda.threadIdx.x)
    for q in range(W_UNITS):
        at = int32((q * THREADS + t) * 16)
        inside = at < nbytes
        copy_16(int32(to + at), source + at if inside else source, int32(16 if inside else 0))


def lay_down_of_warpgroup(base: int, total: Any) -> None:
    """The sums into shared memory, pixel by pixel, ACROSS floats apart."""
    t = int32(cuda.threadIdx.x)
    row, column = (t >> 5) * 16 + ((t & 31) >> 2), (t & 3) * 2
    for j in range(COLUMNS_OF_8):
        at = int32(base + (row * ACROSS + column + 8 * j) * 4)
        store_pair(at, total[4 * j], total[4 * j + 1])
        store_pair(int32(at + 32 * ACROSS), total[4 * j + 2], total[4 * j + 3])


def multiply_by_warp(stage: int, part: Any) -> None:
    """part = the products of a tile of K, of a warp's own rows of X and channels."""
    big, small = cuda.local.array(A_WORDS, float32), cuda.local.array(A_WORDS, float32)
    w_big, w_small = cuda.local.array(B_WORDS, float32), cuda.local.array(B_WORDS, float32)
    t = int32(cuda.threadIdx.x)
    lane, warp = t & 31, t >> 5
    row = warp // WARPS_ACROSS * (16 * ROWS_OF_16) + (lane & 15)
    atom = warp % WARPS_ACROSS * COLUMNS_OF_8
    for i in range(SUMS):
        part[i] = np.float32(0)
    for k in range(_K_STEPS):
        for i in range(ROWS_OF_16):
            chunk = (2 * k + (lane >> 4)) ^ (lane & 7)
            a, b, c, d = load_matrices(int32(stage + (row + 16 * i) * 128 + (chunk << 4)))
            big[4 * i], small[4 * i] = split_one(a)
            big[4 * i + 1], small[4 * i + 1] = split_one(b)
            big[4 * i + 2], small[4 * i + 2] = split_one(c)
            big[4 * i + 3], small[4 * i + 3] = split_one(d)
        for j in range(COLUMNS_OF_8):
            chunk = (2 * k + ((lane >> 3) & 1)) ^ (lane & 7)
            at = int32(stage + X_BYTES + (atom + j) * W_ATOM + (lane & 7) * 128 + (chunk << 4))
            if PRODUCTS > 1:
                a, b, c, d = load_matrices(int32(at + (lane >> 4) * 1024))
                w_big[2 * j], w_big[2 * j + 1], w_small[2 * j], w_small[2 * j + 1] = a, b, c, d
            else:
                w_big[2 * j], w_big[2 * j + 1], a, b = load_matrices(at)
        if PRODUCTS > 1:
            for i in range(ROWS_OF_16):
                for j in range(COLUMNS_OF_8):
                    add_product(part, 4 * (i * COLUMNS_OF_8 + j), small, 4 * i, w_big, 2 * j)
            for i in range(ROWS_OF_16):
                for j in range(COLUMNS_OF_8):
                    add_product(part, 4 * (i * COLUMNS_OF_8 + j), big, 4 * i, w_small, 2 * j)
        for i in range(ROWS_OF_16):
            for j in range(COLUMNS_OF_8):
                add_product(part, 4 * (i * COLUMNS_OF_8 + j), big, 4 * i, w_big, 2 * j)


def lay_down_of_warp(base: int, total: Any) -> None:
    """The sums into shared memory, pixel by pixel, ACROSS floats apart."""
    t = int32(cuda.threadIdx.x)
    lane, warp = t & 31, t >> 5
    row = warp // WARPS_ACROSS * (16 * ROWS_OF_16) + (lane >> 2)
    column = warp % WARPS_ACROSS * (8 * COLUMNS_OF_8) + (lane & 3) * 2
    for i in range(ROWS_OF_16):
        for j in range(COLUMNS_OF_8):
            o = 4 * (i * COLUMNS_OF_8 + j)
            at = int32(base + ((row + 16 * i) * ACROSS + column + 8 * j) * 4)
            store_pair(at, total[o], total[o + 1])
            store_pair(int32(at + 32 * ACROSS), total[o + 2], total[o + 3])


#: How weights are fetched, tiles multiplied, and their sums laid down.
TILES_BY: dict[str, Any] = (
    {"simulated": (copy_weights_simulated, multiply_simulated, lay_down_simulated)}
    if SIMULATED
    else {
        "wgmma": (copy_weights, multiply_by_warpgroup, lay_down_of_warpgroup),
        "mma": (copy_weights, multiply_by_warp, lay_down_of_warp),
    }
)
