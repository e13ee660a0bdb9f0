"""Known functions of one number, recognised by their values.

    rectifiers     Clip(x, lo, hi) with lo from 0 to 0.001;   x where x > θ, 0 elsewhere;   both up to hi
    activations    LeakyRelu and PRelu, Elu, Selu, Celu, Sigmoid, Tanh, HardSigmoid, HardSwish, Swish, Mish,
                   Gelu in both kinds, Softplus, Softsign, Shrink

A few values give the parameters that a function would have, and all values together decide whether it is that
function.  Numbers between the tested ones need no test: functions bend only at their own constants, and far
from 0 at powers of 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op
from ..ops.functions import Function, PRelu
from ..ops.rectifier import MAX_FLOOR, Rectifier, Threshold
from ..ops.step import Clipped
from .elementwise import Numbers, Subgraph, of_numbers
from .search import Growth, Search

#: The largest number that is tested.  Beyond it sums of parts would cancel, as Relu(x) − Relu(x − 6) does.
_FAR = 1e9
#: A few numbers, to find out what a function may be; each family of functions reads some of them.
_FEW = np.array([-_FAR, -50.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 50.0, _FAR / 10, _FAR])
_AT = {float(x): i for i, x in enumerate(_FEW)}
_KEPT = (_FEW > 0) & (_FEW <= 50)  # which a PRelu does not change
_POWERS = 2.0 ** np.arange(-30, 31)
#: All numbers that are tested: dense around 0, at every magnitude, and far out.
_GRID = np.array(sorted({*np.linspace(-9, 9, 73), *np.linspace(-100, 100, 61), *_POWERS, *-_POWERS}))
#: The numbers that are tested where constants differ by place.
_SOME = np.array([-90.0, -7.0, -1.0, -0.3, -1e-3, -1e-6, 0.0, 1e-6, 1e-3, 0.4, 1.0, 3.0, 80.0])
_PLACES, _MAX_PLACES = 2**16, 2**23

#: Relative distances: of equal functions in float32 constants, and in float16 or bfloat16 ones.
_EQUAL, _ALIKE = 1e-6, 8e-3
#: Beyond, parts may overflow where the function does not.
_SAFE = 100.0


@dataclass(frozen=True)
class Known:
    """The name of a function, and its op.  `equal`: to float32; otherwise up to constants in float16."""

    kind: str
    op: Op
    equal: bool


def is_plain(op: Op) -> bool:
    """Whether an op is a rectifier, as `known` would make it."""
    if type(op) is not Rectifier or not op.clip.is_rectifier:
        return False
    hi = op.clip.hi
    return 0 <= op.clip.lo <= MAX_FLOOR and op.clip.lo < hi and (hi <= _FAR / 10 or hi == math.inf)


def known(f: Subgraph) -> Known | None:
    """The known function that `f` is, or None."""
    if f.is_straight:
        return None
    with np.errstate(all="ignore"):
        return _by_place(f) if f.spread else _by_values(f)


def _by_values(f: Subgraph) -> Known | None:
    """The known function that f is where its constants are the same at every place."""
    values = f.values(_FEW)
    few = values[f.y][:, 0]
    if np.array_equal(few, _FEW) and _close(f(_GRID)[:, 0], _GRID, _GRID, _EQUAL, by_size=True):
        return None  # x itself, which rounding may take to 0 where it is next to nothing
    # Whether a tensor inside has the values of y already, and the layers behind it read nothing else.
    inner = np.array([values[layer.output][:, 0] for layer in f.layers[:-1]]).reshape(-1, len(few))
    same = ((inner == few) | (np.isnan(inner) & np.isnan(few))).all(axis=1)
    repeats = any(f.goes_through(f.layers[i].output) for i in np.flatnonzero(same))
    alike = None
    for op in _candidates(f, few):
        g = _function(op)
        expected = g(_FEW)
        if not _close(few, expected, _FEW, _ALIKE):
            continue
        if repeats:
            return None  # the layers behind that tensor do nothing, so they are no part of the function
        kind = _kind(op)
        piecewise = isinstance(op, Rectifier) or op.name in ("LeakyRelu", "Shrink")
        # The grid below holds these numbers as well; most functions that differ do so here.
        if piecewise and not _close(few[_NEAR], expected[_NEAR], _FEW[_NEAR], _EQUAL, by_size=True):
            continue
        grid = _grid(op)
        wanted, found = g(grid), f(grid)[:, 0]
        if _close(found, wanted, grid, _EQUAL, by_size=piecewise):
            return Known(kind, op, equal=True)
        if not piecewise and alike is None and _close(found, wanted, grid, _ALIKE):
            alike = Known(kind, op, equal=False)
    return alike


def _kind(op: Op) -> str:
    """The function's name in notes."""
    if isinstance(op, Function):
        if op.name == "Elu" and op.q != 1:
            return "Selu"
        return {"Swish": "SiLU" if op.p == 1 else "Swish", "GeluTanh": "Gelu"}.get(op.name, op.name)
    return "ThresholdedRelu" if isinstance(op, Threshold) else "Relu"


def _grid(op: Op) -> Numbers:
    """The numbers to test: the grid, and numbers near the points where the function bends."""
    bends = [0.0]
    if isinstance(op, Rectifier):
        bends += [op.clip.lo, op.clip.hi]
    elif isinstance(op, Function):
        bends += [op.p, op.q, -op.q]
    finite = np.array([bend for bend in bends if math.isfinite(bend)])
    around = [(1 + d) * finite + e for d in (-1e-3, 0, 1e-3) for e in (-1e-9, 1e-9)]
    return np.unique(np.concatenate([_GRID, *around]))


def _close(found: Numbers, wanted: Numbers, x: Numbers, bound: float, *, by_size: bool = False) -> bool:
    """Whether values at x are the wanted ones, up to a relative `bound`; far out, where they are numbers.

    `by_size`: relative to x, however small it is.
    """
    size = np.abs(x) if by_size else np.maximum(1, np.abs(wanted))
    far = ~(np.abs(found - wanted) <= bound * size + 1e-15)
    return not (far & ((np.abs(x) <= _SAFE) | np.isfinite(found))).any()


# --- Candidates ---------------------------------------------------------------------------------------------


def _function(op: Op) -> Callable[[Numbers], Numbers]:
    found = of_numbers(op, 2)
    assert found is not None
    return found.function


#: Functions without parameters, or with those that float16 rounds, and their values at the few numbers that
#: overflow nothing.
_FIXED = (
    *map(Function, ("HardSwish", "Gelu", "GeluTanh", "Mish", "Sigmoid", "Tanh", "Softplus", "Softsign")),
    Function("HardSigmoid", 1 / 6, 0.5),
    Function("Elu", 1.67326319217681884765625, 1.05070102214813232421875),
)
_NEAR = np.abs(_FEW) <= _SAFE
_NEAR_OF_FIXED = np.stack([_function(op)(_FEW[_NEAR]) for op in _FIXED])
_NEAR_SIZES = np.maximum(1, np.abs(_NEAR_OF_FIXED))


def _candidates(f: Subgraph, few: Numbers) -> Iterator[Rectifier | Function]:
    """The ops that agree with the values at `_FEW`, from which their parameters are read."""

    def at(x: float) -> float:
        return float(few[_AT[x]])

    lo, hi = at(-_FAR), (at(_FAR) if at(_FAR) == at(_FAR / 10) else math.inf)
    if 0 <= lo <= MAX_FLOOR and hi > lo:
        yield Rectifier(Clipped(lo, hi, is_rectifier=True))
    if lo == 0 and ((few == 0) | (few == _FEW) | (few == hi)).all():
        theta = _last_zero(f, -_FAR, _FAR)
        if theta is not None and theta < hi:
            yield Threshold(Clipped(theta, hi, is_rectifier=True))
    slope = -at(-1)
    if math.isclose(at(1), 1, rel_tol=_EQUAL) and not any(abs(slope - s) < _EQUAL for s in (-1, 0, 1)):
        yield Function("LeakyRelu", slope)  # of -1 it is the absolute value, which is arithmetic
    if at(50) == -at(-50) and 0 <= 50 - at(50) < 50 and at(0) == 0:
        least = _last_zero(f, 0.0, _FAR)
        if least:
            yield Function("Shrink", 50 - at(50), least)
    if math.isclose(at(1), 1, rel_tol=_EQUAL) and at(-50) < 0:
        floor = at(-_FAR) if math.isfinite(at(-_FAR)) else at(-50)
        yield Function("Elu", -floor, 1.0)
        yield Function("Celu", -floor)
    if at(0.5) > at(-0.5) and abs(at(0) - 0.5) <= _ALIKE and abs(at(50) - 1) <= _ALIKE:
        yield Function("HardSigmoid", at(0.5) - at(-0.5), 0.5)
    if 0.5 < at(1) < 1 and math.isclose(at(1) - at(-1), 1, rel_tol=_ALIKE):
        steepness = math.log(at(1) / (1 - at(1)))
        yield Function("Swish", 1.0 if math.isclose(steepness, 1, rel_tol=1e-6) else steepness)
    for i in np.flatnonzero((np.abs(few[_NEAR] - _NEAR_OF_FIXED) <= _ALIKE * _NEAR_SIZES).all(axis=1)):
        yield _FIXED[i]


def _last_zero(f: Subgraph, low: float, high: float) -> float | None:
    """The largest float32 at which f is still 0.  f is 0 at `low` and is not at `high`."""

    def number(place: int) -> float:
        """Float32s in order, number 0 the 0; x·(x > −1) is 0 there, but not beside it."""
        size = float(np.array(max(1, abs(place)), np.int32).view(np.float32))
        return size if place >= 0 else -size

    def is_zero(place: int) -> bool:
        return bool(f(np.array([number(place)]))[0, 0] == 0)

    below, above = (
        (-1 if x < 0 else 1) * int(np.array(abs(x), np.float32).view(np.int32)) for x in (low, high)
    )
    if not is_zero(below) or is_zero(above):
        return None
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if is_zero(middle) else (below, middle)
    return number(below)


# --- Where constants differ by place ------------------------------------------------------------------------


def _by_place(f: Subgraph) -> Known | None:
    """A rectifier, or a PRelu with slopes that vary over f's spread."""
    size = math.prod(f.spread)
    if size > _MAX_PLACES:
        return None
    slopes = np.empty(size)
    for start in range(0, size, _PLACES):
        places = slice(start, min(size, start + _PLACES))
        values = f.values(_SOME, places)
        y = values[f.y]
        inner = (layer.output for layer in f.layers[:-1])
        same = (name for name in inner if np.array_equal(np.broadcast_to(values[name], y.shape), y))
        if any(map(f.goes_through, same)):
            return None
        slope = -y[_SOME == -1][0]
        wanted = np.where(_SOME[:, None] < 0, _SOME[:, None] * slope, _SOME[:, None])
        if not np.all(np.abs(y - wanted) <= _EQUAL * np.abs(_SOME[:, None]) + 1e-15):
            return None
        slopes[places] = slope
    if not slopes.any():
        return Known("Relu", Rectifier(Clipped(0.0, np.inf, is_rectifier=True)), equal=True)
    by_axis = [axis for axis, n in enumerate(f.spread) if n > 1]
    shaped = slopes.astype(np.float32).reshape(f.spread)
    if len(by_axis) == 1:
        return Known("PRelu", PRelu(shaped.reshape(-1), by_axis[0]), equal=True)
    return Known("PRelu", PRelu(np.broadcast_to(shaped, (1, *f.shape[1:])), None), equal=True)


# --- Many subgraphs at once ---------------------------------------------------------------------------------


def likely(search: Search, growths: Sequence[Growth]) -> list[set[int]]:
    """For each growth, the sizes of subgraphs that may be known functions.

    These are all that `known` finds, and few others.  Most subgraphs are no known function, and here that is
    found for all of them at once: the conditions are those of `_candidates`, a little wider.
    """
    values = search.values(growths, _FEW)
    few = np.concatenate([*values, np.empty((0, len(_FEW)))])
    at = {x: few[:, i] for x, i in _AT.items()}
    with np.errstate(all="ignore"):
        may = _may_rectify(few)
        may |= np.abs(at[1] - 1) <= 2 * _EQUAL  # LeakyRelu, Elu, Celu
        may |= (at[50] == -at[-50]) & (at[0] == 0)  # Shrink
        may |= (np.abs(at[0] - 0.5) <= _ALIKE) & (np.abs(at[50] - 1) <= _ALIKE)  # HardSigmoid
        may |= (at[1] > 0.5) & (at[1] < 1) & (np.abs(at[1] - at[-1] - 1) <= 2 * _ALIKE)  # Swish
        for near, size in zip(_NEAR_OF_FIXED, _NEAR_SIZES, strict=True):
            may |= np.all(np.abs(few[:, _NEAR] - near) <= _ALIKE * size, axis=1)
    sizes = np.array([size for growth in growths for size in growth.ends], int)
    alike = np.repeat([growth.alike for growth in growths], [len(rows) for rows in values])
    may = np.where(sizes > alike, _may_be_by_place(few), may)
    return _sizes(growths, may)


def likely_alone(search: Search, growths: Sequence[Growth]) -> list[set[int]]:
    """`likely` for growths of one layer, where only rectifiers under another name are of interest."""
    values = search.values(growths, _FEW)
    few = np.concatenate([*values, np.empty((0, len(_FEW)))])
    is_by_place = np.repeat([not growth.alike for growth in growths], [len(rows) for rows in values])
    by_place = _may_be_by_place(few) & (few[:, _AT[-1.0]] == 0)
    return _sizes(growths, np.where(is_by_place, by_place, _may_rectify(few)))


def _may_rectify(few: Numbers) -> NDArray[np.bool_]:
    """Which functions may be rectifiers: a row of `few` has the values of one at `_FEW`."""
    with np.errstate(all="ignore"):
        lo, hi = few[:, :1], few[:, -1:]
        # Each value is x or one of the bounds, which are the values far out.
        near = _near(few, _FEW) | _near(few, lo) | _near(few, hi) | (~np.isfinite(few) & ~_NEAR)
        found: NDArray[np.bool_] = near.all(axis=1) & (lo[:, 0] >= 0) & (lo[:, 0] <= MAX_FLOOR)
        return found


def _near(few: Numbers, values: Numbers) -> NDArray[np.bool_]:
    """Which values at `_FEW` are as near to these as `_by_values` asks of rectifiers."""
    far = _ALIKE * np.maximum(1, np.abs(values))
    found: NDArray[np.bool_] = np.abs(few - values) <= 2 * np.where(_NEAR, _EQUAL * np.abs(_FEW) + 1e-15, far)
    return found


def _may_be_by_place(few: Numbers) -> NDArray[np.bool_]:
    """Where constants differ by place, it can only be a PRelu or a Relu."""
    x = _FEW[_KEPT]
    with np.errstate(all="ignore"):
        found: NDArray[np.bool_] = np.all(np.abs(few[:, _KEPT] - x) <= 2 * _EQUAL * x, axis=1)
        return found


def _sizes(growths: Sequence[Growth], may: NDArray[np.bool_]) -> list[set[int]]:
    """The sizes of each growth that a row of `may` holds for; a row is one size of one growth."""
    each = iter(may.tolist())
    return [{size for size in growth.ends if next(each)} for growth in growths]
