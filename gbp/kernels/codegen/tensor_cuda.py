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


_K_STEPS = 4  # of 8, in a tile of K
_BIG = 4 * _K_STEPS  # words of a lane's big, or small, of 16 rows


def _descriptor_bits(products: int) -> int:
    """Of a `wgmma` descriptor: 128-byte swizzle, and how far rows of eight lie apart."""
    apart = 2048 if products > 1 else 1024  # big and small take turns
    return (1 << 62) | ((apart >> 4) << 32) | (1 << 16)


def _split_text(raw: str, big: str, small: str) -> str:
    split = f"add.s32 {big}, {raw}, 4096; and.b32 {big}, {big}, 0xffffe000;"
    return split + (f" sub.f32 {small}, {raw}, {big};" if small else "")


def _load_text(words: list[str], address: str, products: int) -> list[str]:
    """A lane's words of 16 rows: `ldmatrix` of each 8 columns, big first, then small."""
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
    """A warpgroup's 64 × columns over a tile of K, then its words of the next; and operands' constraints."""
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
    """The intrinsic `wgmma(part, own, following, weights, rows)` of this many columns."""
    text, constraints = _wgmma_text(columns, products)
    sums, words = columns // 2, _BIG * (2 if products > 1 else 1)

    @intrinsic
    def wgmma(typing: Any, part: Any, own: Any, following: Any, weights: Any, rows: Any) -> Any:
        """part = own · the tile of weights at that address; and following = what lies at `rows`, split."""

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
    """The intrinsic `load_words(own, rows)`: own = what lies at `rows`, split."""
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


@intrinsic
def _make_barrier(typing: Any, address: Any) -> Any:
    text = "mbarrier.init.shared.b64 [$0], 1; fence.proxy.async.shared::cta;"
    return types.void(types.int32), _statement(text, "r,~{memory}", [_I32])


@intrinsic
def _copy_run(typing: Any, to: Any, source: Any, nbytes: Any, barrier: Any) -> Any:
    """One thread has so many bytes copied, which the barrier waits for."""
    text = (
        "{ .reg .b64 s; mbarrier.arrive.expect_tx.shared.b64 s, [$3], $2; "
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3]; }"
    )
    kinds = [_I32, _I64, _I32, _I32]
    codegen = _statement(text, "r,l,r,r,~{memory}", kinds)
    return types.void(types.int32, types.int64, types.int32, types.int32), codegen


@intrinsic
def _wait_at(typing: Any, barrier: Any, parity: Any) -> Any:
    text = "{ .reg .pred done; AGAIN: mbarrier.try_wait.parity.shared.b64 done, [$0], $1; @!done bra AGAIN; }"
    return types.void(types.int32, types.int32), _statement(text, "r,r,~{memory}", [_I32, _I32])


@intrinsic
def _below(typing: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.icmp_unsigned("<", *args)

    return types.boolean(types.int32, types.int32), codegen


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
    shared_address = global_address = lambda x: x.ctypes.data

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

    commit = wait_0 = wait_1 = wait_2 = nothing

    def below(a: int, b: int) -> bool:
        """Whether 0 ≤ a < b."""
        return 0 <= a < b

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

    def begin_simulated(barriers: int) -> None:
        """There is nothing to wait for."""

    def copy_weights_simulated(to: int, source: int, nbytes: int, barrier: int) -> None:
        ctypes.memmove(to, source, nbytes)

    def arrived_simulated(barrier: int, parity: int) -> None:
        """Copies are there at once."""

    def load_simulated(stage: int, own: Any) -> None:
        """Rows of X are read when they are multiplied."""

    def multiply_simulated(stage: int, following: int, part: Any, own: Any, then: Any) -> None:
        """As `multiply_by_warp`: the thread stands for a warp, which has the whole tile."""
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
    shared_address, global_address = _shared_address, _global_address
    copy_16, copy_4, commit, below = _copy_16, _copy_4, _commit, _below
    make_barrier, copy_run, wait_at = _make_barrier, _copy_run, _wait_at
    wait_0, wait_1, wait_2 = (_wait_for_all_but(count) for count in range(3))
    load_place, store_place, store_pair, divide = _load_place, _store_place, _store_pair, _divide
    load_matrices, load_word, split_one, mma = _load_matrices, _load_word, _split, _mma


#: Of the tile that a copy of `multiply` and `lay_down` is made for.
CHANNELS = THREADS = STAGES = X_BYTES = W_ATOM = W_UNITS = SUMS = ACROSS = 0
ROWS_OF_16 = COLUMNS_OF_8 = WARPS_ACROSS = A_WORDS = B_WORDS = 1
PRODUCTS = 3
wgmma: Any = None
load_words: Any = None


@device_function
def add_product(part: Any, o: int, a: Any, i: int, b: Any, j: int) -> None:
    part[o], part[o + 1], part[o + 2], part[o + 3] = mma(
        part[o], part[o + 1], part[o + 2], part[o + 3], a[i], a[i + 1], a[i + 2], a[i + 3], b[j], b[j + 1]
    )


@device_function
def split_word(address: int, k: int, big: Any, small: Any) -> None:
    """A float of shared memory to place k of big and small."""
    big[k], small[k] = split_one(load_word(address))


@device_function
def _rows_at(stage: int) -> int:
    """Where a lane's row of its warp's 16 lies, as `ldmatrix` wants it: rows 0 … 15, then the next chunk's."""
    t = int32(cuda.threadIdx.x)
    return int32(stage + ((t >> 5) * 16 + (t & 15)) * 128 + ((((t >> 4) & 1) ^ (t & 7)) << 4))


def begin_of_warpgroup(barriers: int) -> None:
    """Make the barrier of each stage."""
    if cuda.threadIdx.x == 0:
        for s in range(STAGES):
            make_barrier(int32(barriers + 8 * s))


def copy_weights_of_warpgroup(to: int, source: int, nbytes: int, barrier: int) -> None:
    """The tile's weights on their way, in one run."""
    if cuda.threadIdx.x == 0:
        copy_run(to, source, nbytes, barrier)


def arrived_of_warpgroup(barrier: int, parity: int) -> None:
    """Wait for the weights of a stage."""
    wait_at(barrier, parity)


def load_of_warpgroup(stage: int, own: Any) -> None:
    """own = the first stage's rows of X, split."""
    load_words(own, _rows_at(stage))


def multiply_by_warpgroup(stage: int, following: int, part: Any, own: Any, then: Any) -> None:
    """part = the products of a tile of K: of 16 rows of X a warp, which are `own`, and all its channels.

    Meanwhile the rows of the stage that follows are read and split.
    """
    wgmma(part, own, then, int32(stage + X_BYTES), _rows_at(following))


def begin_of_warp(barriers: int) -> None:
    """Copies are waited for by count."""


def arrived_of_warp(barrier: int, parity: int) -> None:
    """Weights came with the rows."""


def load_of_warp(stage: int, own: Any) -> None:
    """Rows of X are read when they are multiplied."""


def copy_weights_of_warp(to: int, source: int, nbytes: int, barrier: int) -> None:
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


def multiply_by_warp(stage: int, following: int, part: Any, own: Any, then: Any) -> None:
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


def _functions(kind: str) -> dict[str, Any]:
    """What a kernel does in its own way, by the names that it calls it by."""
    names = "begin", "copy_weights", "arrived", "load", "multiply", "lay_down"
    own = globals()
    return {f"_{name}": own.get(f"{name}_of_{kind}") or own[f"{name}_by_{kind}"] for name in names}


#: How stages are filled and multiplied, and their sums laid down.
TILES_BY: dict[str, Any] = (
    {
        "simulated": {
            f"_{name}": globals()[f"{name}_simulated"]
            for name in ("begin", "copy_weights", "arrived", "load", "multiply", "lay_down")
        }
    }
    if SIMULATED
    else {"wgmma": _functions("warpgroup"), "mma": _functions("warp")}
)
