"""How alike two maps are: cosine, rank correlation and structural similarity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

#: Maps of several classes whose likeness is at least this are called nearly the same.
ALIKE = 0.9
#: Numbers that are added in float32.
_BLOCK = 2**8
#: Where a map's sum of squares is between these, float32 holds the squares of what matters in it.
_MIN_SQUARE, _MAX_SQUARE = 1e-24, 1e30
#: Numbers that show of most maps that they are not 0 everywhere.
_FEW = 128
#: Wang et al. 2004: the window's deviation and taps, and the constants that keep quotients finite.
_DEVIATION, _TAPS = 1.5, 11
_K1, _K2 = 0.01, 0.03


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The cosine of the angle between two arrays, ⟨a, b⟩ / (‖a‖ ‖b‖).

    Parameters
    ----------
    a, b
        Numbers, of the same shape.

    Returns
    -------
    -1 to 1; 0 where one of them is 0 everywhere.

    Raises
    ------
    InputError
        Where the shapes differ.
    """
    x, y = _pair(a, b)
    # Squares of small gradients would underflow, so each array is brought to a largest value of 1 first.
    x, y = (v / (np.abs(v).max(initial=0.0) or 1.0) for v in (x, y))
    return _cosine(_product(x, y), _product(x, x), _product(y, y))


def likeness(maps: NDArray[Any], least: float = -1) -> float:
    """The smallest cosine of the first map with any other.

    Parameters
    ----------
    maps
        float32 (K, …): the maps of K targets of one sample, K at least 2.
    least
        Once a cosine is below this, it is returned, and the other maps are not looked at.
    """
    first, *others = (one.ravel(order="K") for one in maps)  # in the order of memory
    square, smallest = _blockwise(first, first), 1.0
    for other in others:
        product, own = _blockwise(first, other), _blockwise(other, other)
        if all(_MIN_SQUARE < each < _MAX_SQUARE for each in (square, own)):
            found = _cosine(product, square, own)
        else:
            found = _cosine(_product(first, other), _product(first, first), _product(other, other))
        smallest = min(smallest, found)
        if smallest < least:
            break
    return smallest


def remark(maps: NDArray[Any]) -> str | None:
    """A short sentence where the maps of K targets, (K, …), are nearly the same; else None."""
    if len(maps) < 2 or (alike := likeness(maps, ALIKE)) < ALIKE:
        return None
    return f"the maps of the {len(maps)} targets are nearly the same (cosine {rounded_down(alike)} or more)."


def empty_maps(maps: NDArray[Any]) -> int:
    """How many of the maps, (K, …), are 0 everywhere."""
    empty = 0
    for one in maps:
        # One number shows it mostly, else a few neighbours, and that takes less time than all numbers.
        middle = one.size // 2
        if one.size and one.item(middle):
            continue
        flat = one.ravel(order="K")
        if not np.logical_or.reduce(flat[middle : middle + _FEW]) and not np.logical_or.reduce(flat):
            empty += 1
    return empty


def rounded_down(value: float) -> str:
    """Two decimals, such that "at least" is true of them."""
    return f"{math.floor(100 * value) / 100:.2f}"


def _product(x: NDArray[Any], y: NDArray[Any]) -> float:
    """The scalar product of two rows in float64.  Not by BLAS, which would wait for threads of its own."""
    return float(np.einsum("i,i->", x, y, dtype=np.float64))


def _blockwise(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """The scalar product of two rows: each block in float32, which takes an eighth of the time.

    BLAS multiplies blocks, which are too short for threads of its own.
    """
    whole = x.size - x.size % _BLOCK
    with np.errstate(over="ignore", invalid="ignore"):  # `likeness` looks at the result
        blocks = np.vecdot(x[:whole].reshape(-1, _BLOCK), y[:whole].reshape(-1, _BLOCK))
    product = float(np.add.reduce(blocks, dtype=np.float64))
    return product if whole == x.size else product + _product(x[whole:], y[whole:])


def _cosine(product: float, x: float, y: float) -> float:
    """The cosine of two arrays, given their scalar product and their squares."""
    norm = math.sqrt(x) * math.sqrt(y)
    return max(-1.0, min(1.0, product / norm)) if norm else 0.0


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's rank correlation: the correlation of the ranks, where equal values share their mean rank.

    Parameters
    ----------
    a, b
        Numbers, of the same shape.

    Returns
    -------
    -1 to 1; 0 where all values of one of them are equal.

    Raises
    ------
    InputError
        Where the shapes differ.
    """
    x, y = (_ranks(v) for v in _pair(a, b))
    return cosine(x - x.mean(), y - y.mean()) if x.size else 0.0


def ssim(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The mean structural similarity of two planes, each scaled to 0..1 first.

    Source: Wang, Bovik, Sheikh & Simoncelli 2004: a Gaussian window of 11 pixels with a deviation of 1.5,
    K₁ = 0.01, K₂ = 0.03.  Only windows within the plane count; in a smaller plane the window is
    smaller.

    Parameters
    ----------
    a, b
        Planes (H, W), or (N, H, W) whose planes are compared one by one.

    Returns
    -------
    -1 to 1; 1 where the scaled planes are equal.

    Raises
    ------
    InputError
        Where the shapes differ, or are no planes.
    """
    if a.shape != b.shape or a.ndim not in (2, 3) or 0 in a.shape:
        raise InputError(f"planes of shapes {list(a.shape)} and {list(b.shape)} cannot be compared.")
    x, y = (_unit(np.asarray(v, np.float64)) for v in (a, b))
    mx, my = _blurred(x), _blurred(y)
    # Rounding may leave a variance just below 0.
    vx, vy = (np.maximum(_blurred(v * v) - m * m, 0) for v, m in ((x, mx), (y, my)))
    covariance = _blurred(x * y) - mx * my
    c1, c2 = _K1**2, _K2**2
    similar = ((2 * mx * my + c1) * (2 * covariance + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(similar.mean())


def _pair(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if a.shape != b.shape:
        raise InputError(f"arrays of shapes {list(a.shape)} and {list(b.shape)} cannot be compared.")
    return np.asarray(a, np.float64).reshape(-1), np.asarray(b, np.float64).reshape(-1)


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: NDArray[np.float64] = last - (counts - 1) / 2
    return means[which]


def _unit(planes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each plane scaled to 0..1; a plane of one value becomes 0."""
    least = planes.min(axis=(-2, -1), keepdims=True)
    span = np.ptp(planes, axis=(-2, -1), keepdims=True)
    return np.asarray((planes - least) / np.where(span == 0, 1, span))


def _blurred(planes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Gaussian mean of every window within the plane."""
    for axis in (-2, -1):
        taps = min(_TAPS, planes.shape[axis])
        weight = np.exp(-0.5 * ((np.arange(taps) - (taps - 1) / 2) / _DEVIATION) ** 2)
        windows = np.lib.stride_tricks.sliding_window_view(planes, taps, axis=axis)
        planes = windows @ (weight / weight.sum())
    return planes
