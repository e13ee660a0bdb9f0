"""Functions of maps, as keras-explainable has them: what to keep of the sign, and normalisation to 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SPATIAL = (-3, -2)


def normalize(x: ArrayLike, axis: Sequence[int] = _SPATIAL) -> NDArray[Any]:
    """Subtract the least value of each plane and divide by the largest of what is left; 0 where that is 0.

    Parameters
    ----------
    x
        Maps (…, H, W, K).
    axis
        The axes of a plane.
    """
    y = np.asarray(x)
    y = y - y.min(axis=tuple(axis), keepdims=True)
    largest = y.max(axis=tuple(axis), keepdims=True)
    return np.asarray(y / np.where(largest == 0, 1, largest))


def positive(x: ArrayLike, axis: Sequence[int] = _SPATIAL) -> NDArray[Any]:
    """max(x, 0)."""
    return np.maximum(x, 0)


def negative(x: ArrayLike, axis: Sequence[int] = _SPATIAL) -> NDArray[Any]:
    """max(-x, 0), as the name says; the original computes max(x, 0)."""
    return np.maximum(np.negative(x), 0)


def absolute_normalize(x: ArrayLike, axis: Sequence[int] = _SPATIAL) -> NDArray[Any]:
    """`normalize` of |x|."""
    return normalize(np.abs(x), axis)


def positive_normalize(x: ArrayLike, axis: Sequence[int] = _SPATIAL) -> NDArray[Any]:
    """`normalize` of `positive`."""
    return normalize(positive(x), axis)


def negative_normalize(x: ArrayLike, axis: Sequence[int] = _SPATIAL) -> NDArray[Any]:
    """`normalize` of `negative`."""
    return normalize(negative(x), axis)
