"""Vectors of float32 for Numba kernels: the only file that writes LLVM IR or looks at the host's features.

A `Vector` holds `LANES` float32 values.  Kernels see it as a plain value with `+ - * /`, loaded from and
stored to byte addresses (int64).  A *tile* is a tuple of rows × `TILE_VECTORS` vectors that LLVM keeps in
registers while a reduction runs; `TILE_ROWS` is the most rows whose accumulators fit the register file.

Comparisons give *bits*: an int64 whose bit i speaks of lane i.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, njit
from numba.core import cgutils, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model


def _host_features() -> str:
    """What Numba compiles for: NUMBA_CPU_FEATURES where it is set, else what the processor says."""
    if config.CPU_FEATURES is not None:
        return str(config.CPU_FEATURES)
    return ",".join(f"+{name}" for name, present in llvm.get_host_cpu_features().items() if present)


def _vector_shape(features: str) -> tuple[int, int]:
    """Lanes a vector, and rows a tile: two vectors of weights and one broadcast besides fill the registers."""
    present = features.split(",")
    if "+avx512f" in present:
        return 16, 14  # 32 registers of 16 lanes
    if "+avx2" in present:
        return 8, 6  # 16 registers of 8 lanes
    if "+neon" in present:
        return 8, 6  # 32 registers of 4 lanes, two to a vector
    return 8, 3  # 16 registers of 4 lanes, two to a vector


LANES, TILE_ROWS = _vector_shape(_host_features())
TILE_VECTORS = 2
TILE_CHANNELS = TILE_VECTORS * LANES
VECTOR_BYTES = 4 * LANES

_i1, _i8, _i32, _i64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_f32 = ir.FloatType()
_vec = ir.VectorType(_f32, LANES)
_vec_i1 = ir.VectorType(_i1, LANES)
_vec_i32 = ir.VectorType(_i32, LANES)
_int_lanes = ir.IntType(LANES)


class Vector(types.Type):  # type: ignore[misc]  # numba has no type stubs
    """`LANES` float32 values in one SIMD register."""

    def __init__(self) -> None:
        super().__init__(f"f32x{LANES}")


vector = Vector()


@register_model(Vector)
class _VectorModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _vec)


def _register_operator(function: Any, instruction: str) -> None:
    @infer_global(function)
    class _Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Sequence[Any], kws: Any) -> Any:
            return signature(vector, vector, vector) if tuple(args) == (vector, vector) else None

    @lower_builtin(function, vector, vector)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_operator(_function, _instruction)


def _pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def _offset(builder: Any, address: Any, nbytes: int) -> Any:
    return builder.add(address, ir.Constant(_i64, nbytes)) if nbytes else address


def _load(builder: Any, address: Any, nbytes: int = 0) -> Any:
    loaded = builder.load(_pointer(builder, _offset(builder, address, nbytes), _vec))
    loaded.align = 4
    return loaded


def _store(builder: Any, value: Any, address: Any, nbytes: int = 0) -> None:
    builder.store(value, _pointer(builder, _offset(builder, address, nbytes), _vec)).align = 4


def _splat(builder: Any, scalar: Any, kind: Any = _vec) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_i32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_vec_i32, [0] * LANES))


def _broadcast_at(builder: Any, address: Any) -> Any:
    return _splat(builder, builder.load(_pointer(builder, address, _f32)))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # fmuladd, not fma: one instruction where the host has it, and no library call where it has not.
    kind = ir.FunctionType(_vec, [_vec, _vec, _vec])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32"), [a, b, c])


def _masked_load(builder: Any, address: Any, lanes: Any, element: Any = _f32) -> Any:
    """Load the vector at `address` where `lanes` is true, 0 elsewhere; touches nothing else."""
    vec = ir.VectorType(element, LANES)
    name = f"llvm.masked.load.v{LANES}{'f' if element is _f32 else 'i'}{_bits_of(element)}.p0"
    kind = ir.FunctionType(vec, [vec.as_pointer(), _i32, _vec_i1, vec])
    masked = cgutils.get_or_insert_function(builder.module, kind, name)
    alignment = ir.Constant(_i32, _bits_of(element) // 8)
    return builder.call(masked, [_pointer(builder, address, vec), alignment, lanes, ir.Constant(vec, None)])


def _masked_store(builder: Any, value: Any, address: Any, lanes: Any, element: Any = _f32) -> None:
    """Store the lanes of `value` where `lanes` is true; touches nothing else."""
    vec = ir.VectorType(element, LANES)
    name = f"llvm.masked.store.v{LANES}{'f' if element is _f32 else 'i'}{_bits_of(element)}.p0"
    kind = ir.FunctionType(ir.VoidType(), [vec, vec.as_pointer(), _i32, _vec_i1])
    masked = cgutils.get_or_insert_function(builder.module, kind, name)
    alignment = ir.Constant(_i32, _bits_of(element) // 8)
    builder.call(masked, [value, _pointer(builder, address, vec), alignment, lanes])


def _bits_of(element: Any) -> int:
    return 32 if element is _f32 else int(element.width)


def _first_lanes(builder: Any, count: Any) -> Any:
    lane = ir.Constant(_vec_i32, list(range(LANES)))
    return builder.icmp_signed("<", lane, _splat(builder, builder.trunc(count, _i32), _vec_i32))


def _to_bits(builder: Any, lanes: Any) -> Any:
    return builder.zext(builder.bitcast(lanes, _int_lanes), _i64)


def _from_bits(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.trunc(bits, _int_lanes), _vec_i1)


@intrinsic  # type: ignore[untyped-decorator]
def zeros(typing: Any) -> Any:
    """All lanes 0."""
    return vector(), lambda context, builder, sig, args: ir.Constant(_vec, None)


@intrinsic  # type: ignore[untyped-decorator]
def broadcast(typing: Any, value: Any) -> Any:
    """All lanes `value` (float32)."""
    return vector(types.float32), lambda context, builder, sig, args: _splat(builder, args[0])


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, address: Any) -> Any:
    """The `LANES` float32 values at `address`."""
    return vector(types.int64), lambda context, builder, sig, args: _load(builder, args[0])


@intrinsic  # type: ignore[untyped-decorator]
def load_first(typing: Any, address: Any, count: Any) -> Any:
    """The `count` float32 values at `address`, 0 in the lanes from `count` on; touches no memory beyond."""

    return vector(types.int64, types.int64), lambda context, builder, sig, args: _masked_load(
        builder, args[0], _first_lanes(builder, args[1])
    )


@intrinsic  # type: ignore[untyped-decorator]
def load_between(typing: Any, address: Any, start: Any, stop: Any) -> Any:
    """Load lanes start … stop − 1 of the vector at `address`, 0 in the others; touches no other memory."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, start, stop = args
        lanes = builder.and_(builder.not_(_first_lanes(builder, start)), _first_lanes(builder, stop))
        return _masked_load(builder, address, lanes)

    return vector(types.int64, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def load_scalar(typing: Any, address: Any) -> Any:
    """The float32 at `address`."""
    return types.float32(types.int64), lambda context, builder, sig, args: builder.load(
        _pointer(builder, args[0], _f32)
    )


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, address: Any, value: Any) -> Any:
    """Write all lanes to `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_first(typing: Any, address: Any, value: Any, count: Any) -> Any:
    """Write the first `count` lanes to `address`; touches no memory beyond."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _masked_store(builder, args[1], args[0], _first_lanes(builder, args[2]))
        return context.get_dummy_value()

    return types.void(types.int64, vector, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_scalar(typing: Any, address: Any, value: Any) -> Any:
    """Write one float32 to `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _f32))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, lane by lane."""
    return vector(vector, vector, vector), lambda context, builder, sig, args: _multiply_add(builder, *args)


@intrinsic  # type: ignore[untyped-decorator]
def above(typing: Any, a: Any, b: Any) -> Any:
    """Bits of the lanes where a > b; false where either is NaN."""
    return types.int64(vector, vector), lambda context, builder, sig, args: _to_bits(
        builder, builder.fcmp_ordered(">", *args)
    )


@intrinsic  # type: ignore[untyped-decorator]
def exceeds(typing: Any, a: Any, b: Any) -> Any:
    """Bits of the lanes where a beats b as a maximum: a > b, or a is NaN and b is not (the first NaN wins)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = args
        return _to_bits(builder, builder.and_(builder.fcmp_unordered(">", a, b), builder.fcmp_ordered("ord", b, b)))

    return types.int64(vector, vector), codegen


@intrinsic  # type: ignore[untyped-decorator]
def square_root(typing: Any, a: Any) -> Any:
    """√a, lane by lane, correctly rounded."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_vec, [_vec])
        root = cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32")
        return builder.call(root, args)

    return vector(vector), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_integers(typing: Any, array: Any, address: Any, value: Any, count: Any) -> Any:
    """Write the first `count` lanes, whole numbers ≥ 0, as integers of `array`'s type to `address`."""
    element = ir.IntType(array.dtype.bitwidth)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, address, value, count = args
        # By way of int32: narrowing is one instruction, float to byte is not.
        whole = builder.fptosi(value, _vec_i32)
        if element.width < 32:
            whole = builder.trunc(whole, ir.VectorType(element, LANES))
        _masked_store(builder, whole, address, _first_lanes(builder, count), element)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def integers_equal(typing: Any, array: Any, address: Any, wanted: Any, count: Any) -> Any:
    """Bits of the lanes below `count` whose integer, of `array`'s type, at `address` is `wanted`."""
    element = ir.IntType(array.dtype.bitwidth)
    vec = ir.VectorType(element, LANES)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, address, wanted, count = args
        lanes = _first_lanes(builder, count)
        found = _masked_load(builder, address, lanes, element)
        undefined = ir.Constant(vec, ir.Undefined)
        first = builder.insert_element(undefined, builder.trunc(wanted, element), ir.Constant(_i32, 0))
        all_wanted = builder.shuffle_vector(first, undefined, ir.Constant(_vec_i32, [0] * LANES))
        return _to_bits(builder, builder.and_(lanes, builder.icmp_unsigned("==", found, all_wanted)))

    return types.int64(array, types.int64, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def select(typing: Any, bits: Any, a: Any, b: Any) -> Any:
    """Lane i of a where bit i is set, of b elsewhere."""
    return vector(types.int64, vector, vector), lambda context, builder, sig, args: builder.select(
        _from_bits(builder, args[0]), args[1], args[2]
    )


@intrinsic  # type: ignore[untyped-decorator]
def sum_lanes(typing: Any, a: Any) -> Any:
    """The sum of all lanes, added pairwise in a fixed order."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            swap = ir.Constant(_vec_i32, [(lane + width) % LANES for lane in range(LANES)])
            value = builder.fadd(value, builder.shuffle_vector(value, ir.Constant(_vec, ir.Undefined), swap))
        return builder.extract_element(value, ir.Constant(_i32, 0))

    return types.float32(vector), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _store_all_bits(typing: Any, address: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], _int_lanes), _pointer(builder, args[0], _int_lanes)).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _load_all_bits(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = builder.load(_pointer(builder, args[0], _int_lanes))
        loaded.align = 1
        return builder.zext(loaded, _i64)

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_byte(typing: Any, address: Any, value: Any) -> Any:
    """Write the low 8 bits of `value` to `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], _i8), _pointer(builder, args[0], _i8))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def load_byte(typing: Any, address: Any) -> Any:
    """The byte at `address`, unsigned."""
    return types.int64(types.int64), lambda context, builder, sig, args: builder.zext(
        builder.load(_pointer(builder, args[0], _i8)), _i64
    )


@njit  # type: ignore[untyped-decorator]
def store_bits(address: int, bits: int, count: int) -> None:
    """Write the bits of the first `count` lanes to the bytes at `address`, lowest lane in the lowest bit."""
    if count >= LANES:
        _store_all_bits(address, bits)
    else:
        for byte in range((count + 7) // 8):
            store_byte(address + byte, bits >> (8 * byte))


@njit  # type: ignore[untyped-decorator]
def load_bits(address: int, count: int) -> int:
    """The bits of `count` lanes from the bytes at `address`."""
    if count >= LANES:
        return _load_all_bits(address)
    bits = 0
    for byte in range((count + 7) // 8):
        bits |= load_byte(address + byte) << (8 * byte)
    return bits


@njit  # type: ignore[untyped-decorator]
def load_some(address: int, count: int) -> Any:
    """`load` where `count` lanes or more are there, else `load_first`: the plain load is the fast one."""
    if count >= LANES:
        return load(address)
    return load_first(address, count)


@njit  # type: ignore[untyped-decorator]
def store_some(address: int, value: Any, count: int) -> None:
    """`store` where `count` lanes or more may be written, else `store_first`."""
    if count >= LANES:
        store(address, value)
    else:
        store_first(address, value, count)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def tile_zeros(typing: Any, rows: Any) -> Any:
    """A tile of `rows` × TILE_VECTORS vectors of 0."""
    kind = types.UniTuple(vector, rows.literal_value * TILE_VECTORS)
    return kind(rows), lambda context, builder, sig, args: ir.Constant(context.get_value_type(kind), None)


@intrinsic  # type: ignore[untyped-decorator]
def tile_update(typing: Any, tile: Any, x: Any, row_bytes: Any, w: Any) -> Any:
    """tile[i][j] += x[i] · w[j]: one scalar a row, x[i] at `x + i·row_bytes`; the weights' vectors at `w`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        accumulators, x_address, stride, w_address = args
        weights = [_load(builder, w_address, VECTOR_BYTES * j) for j in range(TILE_VECTORS)]
        for i in range(tile.count // TILE_VECTORS):
            row = builder.add(x_address, builder.mul(stride, ir.Constant(_i64, i)))
            value = _broadcast_at(builder, row)
            for j, weight in enumerate(weights):
                at = i * TILE_VECTORS + j
                total = _multiply_add(builder, value, weight, builder.extract_value(accumulators, at))
                accumulators = builder.insert_value(accumulators, total, at)
        return accumulators

    return tile(tile, types.int64, types.int64, types.int64), codegen


def _add_products(builder: Any, accumulators: Any, xs: Any, ws: Any) -> Any:
    """Add xs[i] · ws[j] to vector j of row i; xs are made one at a time, to need one register."""
    for at, (x, w) in enumerate((x, w) for x in xs for w in ws):
        total = _multiply_add(builder, x, w, builder.extract_value(accumulators, at))
        accumulators = builder.insert_value(accumulators, total, at)
    return accumulators


def _rows_at(builder: Any, address: Any, step: Any, count: int) -> list[Any]:
    return [builder.add(address, builder.mul(step, ir.Constant(_i64, i))) for i in range(count)]


@intrinsic  # type: ignore[untyped-decorator]
def tile_dot(typing: Any, tile: Any, x: Any, x_bytes: Any, w: Any, w_bytes: Any) -> Any:
    """tile[i][j] += x[i] · w[j], lane by lane: vectors at `x + i·x_bytes` and `w + j·w_bytes`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        accumulators, x, x_bytes, w, w_bytes = args
        ws = [_load(builder, row) for row in _rows_at(builder, w, w_bytes, TILE_VECTORS)]
        xs = (_load(builder, row) for row in _rows_at(builder, x, x_bytes, tile.count // TILE_VECTORS))
        return _add_products(builder, accumulators, xs, ws)

    return tile(tile, types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def tile_dot_first(typing: Any, tile: Any, x: Any, x_bytes: Any, w: Any, w_bytes: Any, count: Any) -> Any:
    """`tile_dot` over the first `count` lanes; touches no memory beyond."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        accumulators, x, x_bytes, w, w_bytes, count = args
        lanes = _first_lanes(builder, count)
        ws = [_masked_load(builder, row, lanes) for row in _rows_at(builder, w, w_bytes, TILE_VECTORS)]
        rows = _rows_at(builder, x, x_bytes, tile.count // TILE_VECTORS)
        return _add_products(builder, accumulators, (_masked_load(builder, row, lanes) for row in rows), ws)

    return tile(tile, types.int64, types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def tile_store(typing: Any, tile: Any, address: Any) -> Any:
    """Write the tile's rows one after another to `address`, TILE_CHANNELS float32 each."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for at in range(tile.count):
            _store(builder, builder.extract_value(args[0], at), args[1], VECTOR_BYTES * at)
        return context.get_dummy_value()

    return types.void(tile, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def keep_rolled(typing: Any) -> Any:
    """Forbid LLVM to unroll the enclosing loop: unrolled by two, a full tile spills its accumulators.

    An empty instruction that may not be duplicated; costs nothing at run time.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        empty = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "", side_effect=True)
        # llvmlite lists the attributes it knows and 'noduplicate' is not among them; LLVM knows it.
        set.add(builder.call(empty, []).attributes, "noduplicate")
        return context.get_dummy_value()

    return types.void(), codegen
