"""Packs the arguments of a kernel as 64-bit words, so that machine code can call it without the interpreter.

    array          address, sizes, strides in bytes
    tuple          its items
    whole number   itself
    float          its bits

`packer_of` makes the function that writes such a block; a kernel's entry reads it with `unpacked`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from . import emit
from .memory import address_of
from .numba_private import array_view, as_dtype, pack_array, populate_array


class Share(NamedTuple):
    """The parts of a kernel's work that one call computes.

    `first`, `last`: parts [first, last).  `slot`: the thread's number; threads that work at the same time
    have different slots, so each has scratch of its own.  `phase`: all parts of a phase are done before the
    next begins.
    """

    first: int
    last: int
    slot: int
    phase: int


SHARE = types.NamedUniTuple(types.int64, 4, Share)

#: How many words a kernel's entry takes: block of arguments, first, last, parts, slot, phase.
ENTRY_WORDS = 6

_Words = list[int]


def _array_packer(kind: Any) -> Callable[[Any, _Words], None]:
    dtype, ndim, dense = as_dtype(kind.dtype), kind.ndim, kind.layout == "C"
    writable = kind.mutable

    def pack_array(x: Any, words: _Words) -> None:
        if (
            not isinstance(x, np.ndarray)
            or x.dtype != dtype
            or x.ndim != ndim
            or (dense and not x.flags.c_contiguous)
            or (writable and not x.flags.writeable)
        ):
            raise TypeError(
                f"a kernel takes {kind}, and was given {x.dtype} {x.shape} of strides {x.strides}"
            )
        words.append(address_of(x))
        words.extend(x.shape)
        words.extend(x.strides)

    return pack_array


def _packer(kind: Any) -> Callable[[Any, _Words], None]:
    if isinstance(kind, types.Array):
        return _array_packer(kind)
    if isinstance(kind, types.BaseTuple):
        packers = [_packer(item) for item in kind.types]

        def pack_tuple(values: Any, words: _Words) -> None:
            for pack_item, value in zip(packers, values, strict=True):
                pack_item(value, words)

        return pack_tuple
    if isinstance(kind, types.Integer):
        return lambda value, words: words.append(int(value))
    code = struct.Struct("<fxxxx" if kind == types.float32 else "<d")
    return lambda value, words: words.append(int.from_bytes(code.pack(value), "little", signed=True))


def packer_of(kinds: Sequence[Any]) -> Callable[[Sequence[Any]], array[int]]:
    """Make the function that packs arguments of these types.

    It raises TypeError for other arguments.  The arrays must live as long as the block is used.
    """
    packers = [_packer(kind) for kind in kinds]

    def pack(args: Sequence[Any]) -> array[int]:
        words: _Words = []
        for pack_one, arg in zip(packers, args, strict=True):
            pack_one(arg, words)
        return array("q", words)

    return pack


def unpacked(kinds: Sequence[Any], context: Any, builder: Any, args: Any) -> list[Any]:
    """(block, first, last, parts, slot, phase) as (arguments of these types, parts, Share), in LLVM IR."""
    block, first, last, parts, slot, phase = args
    words = _Reader(context, builder, block)
    share = context.make_tuple(builder, SHARE, [first, last, slot, phase])
    return [*map(words.read, kinds), parts, share]


class _Reader:
    """Reads a block word by word."""

    def __init__(self, context: Any, builder: Any, block: Any) -> None:
        self._context, self._builder, self._word = context, builder, 0
        self._block = emit.pointer(builder, block, emit.I64)

    def _next(self) -> Any:
        loaded = self._builder.load(self._builder.gep(self._block, [ir.Constant(emit.I64, self._word)]))
        self._word += 1
        return loaded

    def read(self, kind: Any) -> Any:
        context, builder = self._context, self._builder
        if isinstance(kind, types.Array):
            item = context.get_data_type(kind.dtype)
            data = emit.pointer(builder, self._next(), item)
            shape, strides = ([self._next() for _ in range(kind.ndim)] for _ in range(2))
            return populate_array(
                array_view(context, builder, kind),
                data=data,
                shape=pack_array(builder, shape),
                strides=pack_array(builder, strides),
                itemsize=ir.Constant(emit.I64, kind.dtype.bitwidth // 8),
                meminfo=None,
            )
        if isinstance(kind, types.BaseTuple):
            return context.make_tuple(builder, kind, [self.read(item) for item in kind.types])
        word = self._next()
        if kind == types.float32:
            return builder.bitcast(builder.trunc(word, emit.I32), emit.F32)
        if kind == types.float64:
            return builder.bitcast(word, ir.DoubleType())
        return word
