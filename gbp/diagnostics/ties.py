"""Ties: where an image is flat, a max-pool's window holds equal values, and its first pixel must win.

If an engine computes different values for equal windows, even by rounding only, another pixel wins and gets
the gradient.  Then a map can be wrong by half its norm while every value of the forward run is right to 1e-7.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: How many pixels in a row must be equal; two may be equal by chance.
_RUN = 3


def with_flat_areas(x: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """A copy of x whose left half is replaced by bands of white, black and a saturated colour.

    Parameters
    ----------
    x
        float32 (N, …).  With fewer than three axes it stays as it is.
    channels
        The axis of the channels.

    Returns
    -------
    The copy.  White is the largest value of x and black the smallest.  The colour is white in the first
    channel and black in the others.  The bands are side by side along the last axis besides the channels.
    """
    flat = x.copy()
    if x.ndim < 3:
        return flat
    planes = np.moveaxis(flat, channels, 1)
    high, low, size = x.max(), x.min(), planes.shape[-1]
    white, black, colour = (slice(size * i // 6, size * (i + 1) // 6) for i in range(3))
    planes[..., white] = high
    planes[..., black] = low
    planes[..., colour] = low
    planes[:, 0, ..., colour] = high
    return flat


def told_apart(got: NDArray[Any], true: NDArray[Any]) -> float:
    """The largest difference in `got` between neighbouring pixels that are equal in `true`.

    Pixels count as equal where _RUN of them in a row agree in all channels.  Zeros do not count, because a
    rectifier maps different values to 0.

    Parameters
    ----------
    got, true
        (N, C, …).

    Returns
    -------
    The difference over the largest value of `true`.
    """
    if true.ndim < 3 or got.shape != true.shape or not true.size:
        return 0.0
    largest = 0.0
    for axis in range(2, true.ndim):
        if true.shape[axis] < _RUN:
            continue
        here, there = np.moveaxis(true, axis, -1), np.moveaxis(got, axis, -1)
        equal = (here[..., 1:] == here[..., :-1]).all(axis=1) & (here[..., 1:] != 0).any(axis=1)
        run = equal[..., 1:] & equal[..., :-1]  # of pixels i, i + 1, i + 2
        apart = np.abs(there[..., 1:] - there[..., :-1]).max(axis=1)
        pairs = np.maximum(apart[..., 1:], apart[..., :-1])
        largest = max(largest, float(np.max(pairs, where=run, initial=0)))
    return largest / float(np.abs(true).max() or 1)
