"""The two kernels that apply a function of one number, for each row of `formulas.py`.

    y = f(x),   gx = f'(x) · gy,   then the gate of gx's own rectifier

A parameter is a number.  PRelu is LeakyRelu whose p is an array, with a number for each place of a sample.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate, gate_run, write_gradient
from .codegen.jit import ACTIVATION, FLOAT, INT, Kernel, inlined, kernel_from
from .codegen.packing import Share
from .codegen.simd import at, load_scalar, load_some, store_scalar, store_some
from .codegen.work import part_of, targets_of
from .formulas import NUMBERS, VECTORS

#: Functions whose p is an array (1, H, W, C), and the rows of `VECTORS` that compute them.
BY_PLACE = {"PRelu": "LeakyRelu"}


@cache
def function_kernels(name: str) -> tuple[Kernel, Kernel]:
    """The kernels fwd(x, p, q, y, threads) and bwd(gy, x, p, q, mask, gate, gx, accumulate, threads).

    y may be x, and gx may be gy.
    """
    row = BY_PLACE.get(name, name)
    given = ACTIVATION, ACTIVATION if name in BY_PLACE else FLOAT, FLOAT
    functions: dict[str, Any] = {}
    if row in VECTORS:
        fwd, bwd, (value, slope) = _vectors_fwd, _vectors_bwd, VECTORS[row]
        functions["parameter"] = _of_place if name in BY_PLACE else _same
    else:
        fwd, bwd, (value, slope) = _numbers_fwd, _numbers_bwd, NUMBERS[row]
    types = ACTIVATION, *given, MASK, GATE, ACTIVATION, INT, INT
    return (
        kernel_from(fwd, f"{name.lower()}_fwd", *given, ACTIVATION, INT, value=value, **functions),
        kernel_from(bwd, f"{name.lower()}_bwd", *types, slope=slope, **functions),
    )


def made(name: str) -> Kernel:
    """The kernel of this name, which `function_kernels` makes."""
    function, _, way = name.rpartition("_")
    names = {each.lower(): each for each in (*VECTORS, *NUMBERS, *BY_PLACE)}
    return function_kernels(names[function])[("fwd", "bwd").index(way)]


@inlined
def _same(p: float, h: int, w: int, c: int, count: int) -> float:
    return p


@inlined
def _of_place(p: Any, h: int, w: int, c: int, count: int) -> Any:
    return load_some(at(p, 0, h, w) + 4 * c, count)


#: Names for the entries of the tables in the templates below; `kernel_from` replaces them.
value: Any = None
slope: Any = None
#: The parameter p of `count` channels from c on: a number, or a vector.
parameter: Any = None


def _vectors_fwd(x: Any, p: Any, q: float, y: Any, threads: int, share: Share) -> None:
    """Write y = f(x)."""
    N, H, W, C = x.shape
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            xa, ya = at(x, n, h, w), at(y, n, h, w)
            for c in range(0, C, LANES):
                p_here = parameter(p, h, w, c, C - c)
                store_some(ya + 4 * c, value(load_some(xa + 4 * c, C - c), p_here, q), C - c)


def _vectors_bwd(
    gy: Any,
    x: Any,
    p: Any,
    q: float,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    threads: int,
    share: Share,
) -> None:
    """Write f'(x) · gy to gx, or add it with `accumulate`; then apply the gate."""
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, x), targets_of(gy, mask)
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            ga, xa = at(gy, n, h, w), at(x, n // sharing, h, w)
            to, ma = at(gx, n, h, w), at(mask, n // targets, h, w)
            for c in range(0, C, LANES):
                p_here = parameter(p, h, w, c, C - c)
                v = load_some(ga + 4 * c, C - c) * slope(load_some(xa + 4 * c, C - c), p_here, q)
                write_gradient(v, c, gate, accumulate, to, ma, C - c)


def _numbers_fwd(x: Any, p: float, q: float, y: Any, threads: int, share: Share) -> None:
    """Write y = f(x)."""
    N, H, W, C = x.shape
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            xa, ya = at(x, n, h, w), at(y, n, h, w)
            for c in range(C):
                number = np.float64(load_scalar(xa + 4 * c))
                store_scalar(ya + 4 * c, np.float32(value(number, np.float64(p), np.float64(q))))


def _numbers_bwd(
    gy: Any,
    x: Any,
    p: float,
    q: float,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    threads: int,
    share: Share,
) -> None:
    """Write f'(x) · gy to gx, or add it with `accumulate`; then apply the gate."""
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, x), targets_of(gy, mask)
    rows = N * H
    for row in range(*part_of(rows, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            ga, xa, to = at(gy, n, h, w), at(x, n // sharing, h, w), at(gx, n, h, w)
            for c in range(C):
                number = np.float64(load_scalar(xa + 4 * c))
                v = load_scalar(ga + 4 * c) * slope(number, np.float64(p), np.float64(q))
                store_scalar(to + 4 * c, np.float32(v + load_scalar(to + 4 * c) if accumulate else v))
            gate_run(to, C, gate, at(mask, n // targets, h, w))
