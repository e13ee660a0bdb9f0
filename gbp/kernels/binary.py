"""Functions of two numbers, and choices among operands, under general broadcasting, as plain loops.

    y = f(a, b)                               ga += ∂f/∂a · gy,   gb += ∂f/∂b · gy
    y = x_i, the chosen operand               gx_i += gy where operand i was chosen

Arrays have six axes, as in `broadcast`.  An operand with one row on axis 0, such as a constant, is used for
every sample.

Source: ONNX Sub, Div, Pow, Greater, …, Max, Min, Where, and "Multidirectional Broadcasting".
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import types

from .broadcast import BROADCAST, line_at, lines
from .codegen.jit import INT, Kernel, kernel, kernel_from
from .codegen.packing import Share
from .codegen.simd import address_of, load_scalar, store_scalar
from .codegen.work import part_of, targets_of
from .formulas import Pair

#: The index of the chosen operand, (N, elements of y in row-major order).
SWITCHES = types.Array(types.uint8, 2, "C")

#: Keeps a denominator of "Redistribute" from 0: that function is a, and its gradient goes to b alone.
STABILIZER = 1e-6

#: Name → f(a, b), in float64.
VALUES: dict[str, Any] = {
    "Sub": lambda a, b: a - b,
    "Div": lambda a, b: a / b,
    "Pow": lambda a, b: a**b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Equal": lambda a, b: a == b,
    "And": lambda a, b: a != 0 and b != 0,
    "Or": lambda a, b: a != 0 or b != 0,
    "Xor": lambda a, b: (a != 0) != (b != 0),
    "Redistribute": lambda a, b: a,
}

#: Name → (∂f/∂a, ∂f/∂b).  Comparisons have no derivative.
SLOPES: dict[str, Pair] = {
    "Sub": (lambda a, b: 1.0, lambda a, b: -1.0),
    "Div": (lambda a, b: 1 / b, lambda a, b: -a / (b * b)),
    "Pow": (
        lambda a, b: 0.0 if b == 0 else b * math.pow(a, b - 1),
        lambda a, b: 0.0 if a == 0 else math.pow(a, b) * math.log(a),
    ),
    "Redistribute": (lambda a, b: 0.0, lambda a, b: a / (b + (STABILIZER if b >= 0 else -STABILIZER))),
}

#: Name → whether operand x replaces the choice y so far.  c is the element of the condition.
CHOICES: dict[str, Any] = {
    "First": lambda x, y, c: True,
    "Max": lambda x, y, c: x > y or np.isnan(x),
    "Min": lambda x, y, c: x < y or np.isnan(x),
    "Where": lambda x, y, c: c != 0,
}


@cache
def value_kernel(name: str) -> Kernel:
    """The kernel fwd(a, b, y, threads) of a function."""
    types_ = BROADCAST, BROADCAST, BROADCAST, INT
    return kernel_from(_binary_fwd, f"{name.lower()}_fwd", *types_, value=VALUES[name])


@cache
def slope_kernel(name: str, operand: int) -> Kernel:
    """The kernel bwd(gy, a, b, gx, threads) of a function, for operand 0 or 1."""
    types_ = BROADCAST, BROADCAST, BROADCAST, BROADCAST, INT
    return kernel_from(_binary_bwd, f"{name.lower()}_bwd{operand}", *types_, slope=SLOPES[name][operand])


@cache
def choice_kernel(name: str) -> Kernel:
    """The kernel fwd(x, c, i, y, switches, threads) of a choice."""
    types_ = BROADCAST, BROADCAST, INT, BROADCAST, SWITCHES, INT
    return kernel_from(_choice_fwd, f"{name.lower()}_choice", *types_, wins=CHOICES[name])


def made(name: str) -> Kernel:
    """The kernel of this name, which one of the functions above makes."""
    function, _, way = name.rpartition("_")
    names = {each.lower(): each for each in (*VALUES, *CHOICES)}
    if way == "choice":
        return choice_kernel(names[function])
    return value_kernel(names[function]) if way == "fwd" else slope_kernel(names[function], int(way[-1]))


#: Names for the entries of the tables in the templates below; `kernel_from` replaces them.
value: Any = None
slope: Any = None
wins: Any = None


def _binary_fwd(a: Any, b: Any, y: Any, threads: int, share: Share) -> None:
    """Write y = f(a, b); y may be either."""
    N, size = y.shape[0], y.shape[5]
    share_a, share_b = targets_of(y, a), targets_of(y, b)
    for n in range(*part_of(N, share, threads)):
        for line in range(lines(y.shape)):
            ap = line_at(address_of(a), a.shape, a.strides, n // share_a, line)
            bp = line_at(address_of(b), b.shape, b.strides, n // share_b, line)
            yp = line_at(address_of(y), y.shape, y.strides, n, line)
            for _ in range(size):
                v = value(np.float64(load_scalar(ap)), np.float64(load_scalar(bp)))
                store_scalar(yp, np.float32(v))
                ap, bp, yp = ap + a.strides[5], bp + b.strides[5], yp + y.strides[5]


def _binary_bwd(gy: Any, a: Any, b: Any, gx: Any, threads: int, share: Share) -> None:
    """Add the slope at (a, b) times gy to gx, of gy's shape."""
    N, size = gy.shape[0], gy.shape[5]
    share_a, share_b = targets_of(gy, a), targets_of(gy, b)
    for n in range(*part_of(N, share, threads)):
        for line in range(lines(gy.shape)):
            gp = line_at(address_of(gy), gy.shape, gy.strides, n, line)
            ap = line_at(address_of(a), a.shape, a.strides, n // share_a, line)
            bp = line_at(address_of(b), b.shape, b.strides, n // share_b, line)
            to = line_at(address_of(gx), gx.shape, gx.strides, n, line)
            for _ in range(size):
                v = load_scalar(gp) * slope(np.float64(load_scalar(ap)), np.float64(load_scalar(bp)))
                store_scalar(to, np.float32(load_scalar(to) + v))
                gp, to = gp + gy.strides[5], to + gx.strides[5]
                ap, bp = ap + a.strides[5], bp + b.strides[5]


def _choice_fwd(x: Any, c: Any, i: int, y: Any, switches: Any, threads: int, share: Share) -> None:
    """Write x to y, and i to the switches, where x wins."""
    N, size = y.shape[0], y.shape[5]
    share_x, share_c = targets_of(y, x), targets_of(y, c)
    for n in range(*part_of(N, share, threads)):
        for line in range(lines(y.shape)):
            xp = line_at(address_of(x), x.shape, x.strides, n // share_x, line)
            cp = line_at(address_of(c), c.shape, c.strides, n // share_c, line)
            yp = line_at(address_of(y), y.shape, y.strides, n, line)
            for w in range(size):
                if wins(load_scalar(xp), load_scalar(yp), load_scalar(cp)):
                    store_scalar(yp, load_scalar(xp))
                    switches[n, line * size + w] = i
                xp, cp, yp = xp + x.strides[5], cp + c.strides[5], yp + y.strides[5]


@kernel(BROADCAST, SWITCHES, INT, BROADCAST, INT)
def chosen_bwd(gy: Any, switches: Any, i: int, gx: Any, threads: int, share: Share) -> None:
    """Add gy to gx where the switch says i; gy and gx have N·K rows, the switches N."""
    N, size = gy.shape[0], gy.shape[5]
    sharing = targets_of(gy, switches)
    for n in range(*part_of(N, share, threads)):
        for line in range(lines(gy.shape)):
            gp = line_at(address_of(gy), gy.shape, gy.strides, n, line)
            to = line_at(address_of(gx), gx.shape, gx.strides, n, line)
            for w in range(size):
                if switches[n // sharing, line * size + w] == i:
                    store_scalar(to, load_scalar(to) + load_scalar(gp))
                gp, to = gp + gy.strides[5], to + gx.strides[5]
