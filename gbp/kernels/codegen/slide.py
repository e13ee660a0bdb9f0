"""Sums of windows that slide over neighbours: a vector is loaded once for all windows that hold it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import emit
from .simd import vector


@intrinsic(prefer_literal=True)
def load_each_between(
    typing: Any, address: Any, step: Any, start: Any, stop: Any, lanes: Any, count: Any
) -> Any:
    """`load_each` of the first `lanes` lanes.  Vectors before `start` and from `stop` on are 0, unread."""
    kind = types.UniTuple(vector, count.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, step, start, stop, lanes, _ = args
        first = emit.first_lanes(builder, lanes)
        result = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i in range(kind.count):
            number = ir.Constant(emit.I64, i)
            inside = builder.and_(
                builder.icmp_signed(">=", number, start), builder.icmp_signed("<", number, stop)
            )
            read = builder.and_(first, emit.splat(builder, inside, emit.VECTOR_I1))
            row = builder.add(address, builder.mul(step, number))
            result = builder.insert_value(result, emit.masked_load(builder, row, read), i)
        return result

    return kind(*(types.int64,) * 5, count), codegen


def _slid(builder: Any, sums: Any, xs: Any, ws: Any, count: int) -> Any:
    """Add xs[i + j] · ws[j] to sums[i] for all j, in order."""
    for j, w in enumerate(ws):
        for i in range(count):
            x, total = builder.extract_value(xs, i + j), builder.extract_value(sums, i)
            sums = builder.insert_value(sums, emit.multiply_add(builder, x, w, total), i)
    return sums


@intrinsic
def slide(typing: Any, sums: Any, xs: Any, w: Any, step: Any) -> Any:
    """sums[i] + Σ_j xs[i + j] · w[j], with the vectors w[j] at `w + j·step`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given, values, w, step = args
        rows = (builder.add(w, builder.mul(step, ir.Constant(emit.I64, j))) for j in range(taps))
        ws = (emit.load_vector(builder, row) for row in rows)
        return _slid(builder, given, values, ws, sums.count)

    taps = xs.count - sums.count + 1
    return sums(sums, xs, types.int64, types.int64), codegen


@intrinsic
def slide_first(typing: Any, sums: Any, xs: Any, w: Any, step: Any, lanes: Any) -> Any:
    """`slide` over the first `lanes` lanes of w; touches no memory beyond."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given, values, w, step, lanes = args
        first = emit.first_lanes(builder, lanes)
        rows = (builder.add(w, builder.mul(step, ir.Constant(emit.I64, j))) for j in range(taps))
        ws = (emit.masked_load(builder, row, first) for row in rows)
        return _slid(builder, given, values, ws, sums.count)

    taps = xs.count - sums.count + 1
    return sums(sums, xs, types.int64, types.int64, types.int64), codegen
