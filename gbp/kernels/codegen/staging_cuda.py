"""Asynchronous copies of tiles to a card's shared memory, while other tiles are multiplied.

Addresses are numbers: 32 bits for shared memory, 64 for the card's own.  The instructions are those of
NVIDIA's PTX ISA: `cp.async`, which writes zeros behind the bytes that it reads; and from compute capability
9.0 on `cp.async.bulk`, whose end an `mbarrier` signals.  In the simulator addresses are the host's, and
copies are done at once.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit_cuda import SIMULATED

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def _statement(text: str, constraints: str, kinds: list[Any]) -> Any:
    """The code of an instruction without a result."""

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
def make_barrier(typing: Any, address: Any) -> Any:
    text = "mbarrier.init.shared.b64 [$0], 1; fence.proxy.async.shared::cta;"
    return types.void(types.int32), _statement(text, "r,~{memory}", [_I32])


@intrinsic
def copy_run(typing: Any, to: Any, source: Any, nbytes: Any, barrier: Any) -> Any:
    """One thread starts a copy of so many bytes, for which the barrier waits."""
    text = (
        "{ .reg .b64 s; mbarrier.arrive.expect_tx.shared.b64 s, [$3], $2; "
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3]; }"
    )
    kinds = [_I32, _I64, _I32, _I32]
    codegen = _statement(text, "r,l,r,r,~{memory}", kinds)
    return types.void(types.int32, types.int64, types.int32, types.int32), codegen


@intrinsic
def wait_at(typing: Any, barrier: Any, parity: Any) -> Any:
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


@intrinsic
def _load_place(typing: Any, address: Any) -> Any:
    """Load 16 bytes of shared memory: an address and two int32."""
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
def store_pair(typing: Any, address: Any, a: Any, b: Any) -> Any:
    codegen = _statement("st.shared.v2.f32 [$0], {$1, $2};", "r,f,f,~{memory}", [_I32, _F32, _F32])
    return types.void(types.int32, types.float32, types.float32), codegen


if SIMULATED:

    def shared_address(x: Any) -> Any:
        return x.ctypes.data

    global_address = shared_address

    def copy_16(to: int, source: int, nbytes: int) -> None:
        """Copy the first `nbytes` of 16 bytes; the rest becomes 0."""
        ctypes.memmove(to, source, nbytes)
        if nbytes < 16:
            ctypes.memset(to + nbytes, 0, 16 - nbytes)

    #: The host's memory from address 4 on, in words: a pointer to address 0 cannot be followed.
    _words = ctypes.cast(4, ctypes.POINTER(ctypes.c_int32))

    def copy_4(to: int, source: int, nbytes: int) -> None:
        """Copy 4 bytes, or write 0 if `nbytes` is 0.  `memmove` would take six times as long."""
        _words[to // 4 - 1] = _words[source // 4 - 1] if nbytes else 0

    def nothing() -> None:
        """Do nothing, because copies are done at once."""

    commit = wait_0 = wait_1 = wait_2 = nothing

    def below(a: int, b: int) -> bool:
        """Whether 0 ≤ a < b."""
        return 0 <= a < b

    #: By address, the values that `store_place` stored.  Shared memory would take eight times as long.
    #: Blocks run one after another, and each stores before it loads.
    _places: dict[int, tuple[int, int, int]] = {}

    def load_place(address: int) -> Any:
        return _places[address]

    def store_place(address: int, place: int, h: int, w: int) -> None:
        _places[address] = place, h, w

    def divide(a: int, b: int) -> int:
        return a // b

else:
    shared_address, global_address = _shared_address, _global_address
    copy_16, copy_4, commit, below = _copy_16, _copy_4, _commit, _below
    wait_0, wait_1, wait_2 = (_wait_for_all_but(count) for count in range(3))
    load_place, store_place, divide = _load_place, _store_place, _divide
