"""Planes of another size, by interpolation without antialiasing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


def interpolated(
    planes: NDArray[Any], size: Sequence[int], mode: str, dtype: str = "float64"
) -> NDArray[Any]:
    """Planes of another size.

    Parameters
    ----------
    planes
        (…, *sides), as many sides as there are new ones.
    size
        The new sides.
    mode
        "nearest": the pixel under ⌊i · old / new⌋.  "bilinear" and "bicubic" (Keys, a = -0.5): pixels are
        squares with their value in the middle.  Taps outside the plane count nothing.
    dtype
        "float64" or "float32": the numbers that are computed and returned.

    Raises
    ------
    InputError
        For another mode.
    """
    if min(size, default=1) < 1:
        raise InputError(f"planes of size {list(size)} are empty.", supported="sides of at least 1")
    if mode not in ("nearest", "bilinear", "bicubic"):
        raise InputError(
            f"gbp does not support the interpolation {mode!r}.", supported="nearest, bilinear, bicubic"
        )
    y: NDArray[Any] = planes.astype(dtype)
    for axis, new in zip(range(-len(size), 0), size, strict=True):
        old = y.shape[axis]
        if mode == "nearest":
            y = y.take(np.arange(new) * old // new, axis)
        elif axis == -1:
            y = y @ _matrix(old, new, mode, dtype)
        elif axis == -2:
            y = _matrix(old, new, mode, dtype).T @ y
        else:
            y = np.moveaxis(np.moveaxis(y, axis, -1) @ _matrix(old, new, mode, dtype), -1, axis)
    return y


@lru_cache(maxsize=64)
def _matrix(old: int, new: int, mode: str, dtype: str) -> NDArray[Any]:
    """The matrix (old, new) that interpolates a row of numbers."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    if mode == "bilinear":  # the border pixel reaches to the edge
        d = np.abs(np.clip(at, 0, old - 1) - np.arange(old)[:, None])
        return np.asarray(np.maximum(0, 1 - d), dtype)
    d = np.abs(at - np.arange(old)[:, None])
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = np.where(d < 1, near, np.where(d < 2, far, 0.0))
    return np.asarray(weights / weights.sum(axis=0), dtype)
