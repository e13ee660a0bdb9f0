"""Communication between threads: atomic operations on 64-bit words, and calls of machine code by address.

All operations are sequentially consistent.  A thread that announces its sleep and then looks for work once
more needs that.  Addresses are int64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import emit
from .numba_private import get_or_insert_function

_ORDER = "seq_cst"


@intrinsic
def load_word(typing: Any, address: Any) -> Any:
    """Return the word at `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(emit.pointer(builder, args[0], emit.I64), _ORDER, 8)

    return types.int64(types.int64), codegen


@intrinsic
def store_word(typing: Any, address: Any, value: Any) -> Any:
    """Write a word."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], emit.pointer(builder, args[0], emit.I64), _ORDER, 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add_word(typing: Any, address: Any, value: Any) -> Any:
    """Add to a word and return what it was before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", emit.pointer(builder, args[0], emit.I64), args[1], _ORDER)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def replace_word(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Write `new` if the word is `old`; return whether it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = emit.pointer(builder, args[0], emit.I64)
        return builder.extract_value(builder.cmpxchg(word, args[1], args[2], _ORDER, _ORDER), 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this thread waits in a loop."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if emit.WAITING_HINT is not None:
            name, numbers = emit.WAITING_HINT
            kind = ir.FunctionType(ir.VoidType(), [emit.I32] * len(numbers))
            hint = get_or_insert_function(builder.module, kind, name)
            builder.call(hint, [ir.Constant(emit.I32, number) for number in numbers])
        return context.get_dummy_value()

    return types.void(), codegen


def _call(context: Any, builder: Any, args: Any, result: Any) -> Any:
    kind = ir.FunctionType(result, [emit.I64] * (len(args) - 1))
    return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])


@intrinsic
def call_part(
    typing: Any, entry: Any, block: Any, first: Any, last: Any, parts: Any, slot: Any, phase: Any
) -> Any:
    """Call a kernel's entry to compute parts [first, last) of `parts`, as thread `slot`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(context, builder, args, ir.VoidType())
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


@intrinsic
def call_two(typing: Any, function: Any, a: Any, b: Any) -> Any:
    """Call a function of C that takes a pointer and a number, and ignore what it returns."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(context, builder, args, emit.I32)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
