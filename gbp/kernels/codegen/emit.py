"""LLVM IR of float32 vectors, as functions of an IR builder.  `simd`, `bits` and `tile` use them.

No other file depends on the processor's features.  `LANES` float32 values fill one SIMD register, or two on
processors with narrow registers.  `TILE_ROWS` is the largest number of rows of a tile whose sums fit into the
registers.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config

from .numba_private import get_or_insert_function


def _host_features() -> str:
    """The features that Numba compiles for: NUMBA_CPU_FEATURES if it is set, else those of the processor."""
    if config.CPU_FEATURES is not None:
        return str(config.CPU_FEATURES)
    return ",".join(f"+{name}" for name, present in llvm.get_host_cpu_features().items() if present)


def _vector_shape(features: str) -> tuple[int, int]:
    """Lanes of a vector and rows of a tile.

    A row of a tile takes two vectors of sums.  Two vectors of weights and one broadcast value must fit too.
    """
    present = features.split(",")
    if "+avx512f" in present:
        return 16, 14  # 32 registers of 16 lanes
    if "+avx2" in present:
        return 8, 6  # 16 registers of 8 lanes
    if "+neon" in present:
        return 8, 6  # 32 registers of 4 lanes, two to a vector
    return 8, 3  # 16 registers of 4 lanes, two to a vector


LANES, TILE_ROWS = _vector_shape(_host_features())
#: Whether code for Intel's AMX, which multiplies matrices of bfloat16, is made for this processor.
HAS_AMX = {"+avx512f", "+avx512bw", "+amx-tile", "+amx-bf16"} <= set(_host_features().split(","))
#: Whether it is made for AMX's products of bytes as well.
HAS_AMX_BYTES = HAS_AMX and "+amx-int8" in _host_features().split(",")
VECTOR_BYTES = 4 * LANES

I1, I8, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
F32 = ir.FloatType()
VECTOR = ir.VectorType(F32, LANES)
VECTOR_I1 = ir.VectorType(I1, LANES)
VECTOR_I32 = ir.VectorType(I32, LANES)
INT_LANES = ir.IntType(LANES)

#: The intrinsic that signals to the processor that a thread waits in a loop, and its arguments; or None.
WAITING_HINT = {
    "x86_64": ("llvm.x86.sse2.pause", ()),
    "aarch64": ("llvm.aarch64.isb", (15,)),
    "arm64": ("llvm.aarch64.isb", (15,)),
}.get(llvm.get_process_triple().split("-")[0])


def pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def offset(builder: Any, address: Any, nbytes: int) -> Any:
    return builder.add(address, ir.Constant(I64, nbytes)) if nbytes else address


def load_vector(builder: Any, address: Any, nbytes: int = 0) -> Any:
    loaded = builder.load(pointer(builder, offset(builder, address, nbytes), VECTOR))
    loaded.align = 4
    return loaded


def store_vector(builder: Any, value: Any, address: Any, nbytes: int = 0) -> None:
    builder.store(value, pointer(builder, offset(builder, address, nbytes), value.type)).align = 4


def compress(builder: Any, value: Any, keep: Any) -> Any:
    """The lanes of `value` where `keep` is true, moved to the front; the others are undefined."""
    name = f"llvm.experimental.vector.compress.v{LANES}{'f' if value.type == VECTOR else 'i'}32"
    kind = ir.FunctionType(value.type, [value.type, VECTOR_I1, value.type])
    front = get_or_insert_function(builder.module, kind, name)
    return builder.call(front, [value, keep, ir.Constant(value.type, ir.Undefined)])


def splat(builder: Any, scalar: Any, kind: Any = VECTOR) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(VECTOR_I32, [0] * LANES))


def broadcast_at(builder: Any, address: Any) -> Any:
    return splat(builder, builder.load(pointer(builder, address, F32)))


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # fmuladd, not fma: one instruction where the processor has it, and never a library call.
    kind = ir.FunctionType(VECTOR, [VECTOR, VECTOR, VECTOR])
    return builder.call(get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32"), [a, b, c])


def masked_load(builder: Any, address: Any, lanes: Any, element: Any = F32) -> Any:
    """Load the vector at `address` where `lanes` is true, 0 elsewhere.  Other memory is not touched."""
    vec = ir.VectorType(element, LANES)
    name = f"llvm.masked.load.v{LANES}{'f' if element is F32 else 'i'}{bits_of(element)}.p0"
    kind = ir.FunctionType(vec, [vec.as_pointer(), I32, VECTOR_I1, vec])
    masked = get_or_insert_function(builder.module, kind, name)
    alignment = ir.Constant(I32, bits_of(element) // 8)
    return builder.call(masked, [pointer(builder, address, vec), alignment, lanes, ir.Constant(vec, None)])


def masked_store(builder: Any, value: Any, address: Any, lanes: Any, element: Any = F32) -> None:
    """Store the lanes of `value` where `lanes` is true.  Other memory is not touched."""
    vec = ir.VectorType(element, LANES)
    name = f"llvm.masked.store.v{LANES}{'f' if element is F32 else 'i'}{bits_of(element)}.p0"
    kind = ir.FunctionType(ir.VoidType(), [vec, vec.as_pointer(), I32, VECTOR_I1])
    masked = get_or_insert_function(builder.module, kind, name)
    alignment = ir.Constant(I32, bits_of(element) // 8)
    builder.call(masked, [value, pointer(builder, address, vec), alignment, lanes])


def bits_of(element: Any) -> int:
    return 32 if element is F32 else int(element.width)


def first_lanes(builder: Any, count: Any) -> Any:
    lane = ir.Constant(VECTOR_I32, list(range(LANES)))
    return builder.icmp_signed("<", lane, splat(builder, builder.trunc(count, I32), VECTOR_I32))


def to_bits(builder: Any, lanes: Any) -> Any:
    return builder.zext(builder.bitcast(lanes, INT_LANES), I64)


def from_bits(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.trunc(bits, INT_LANES), VECTOR_I1)
