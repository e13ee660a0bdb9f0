"""Ties: where an image is flat, a max-pool's window holds equal values, and its first pixel wins.

An engine that gives equal windows values that differ, if only by rounding, hands the gradient to other
pixels: a map may be off by half its norm, where every value of the forward run is right to 1e-7.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Ops whose output at a pixel is a function of the window that it sees, wherever that lies.
SLIDING = frozenset({"Conv", "ConvTranspose", "AveragePool", "MaxPool", "LpPool"})
#: So many pixels in a row have to be equal: two may be by chance.
_RUN = 3


def with_flat_areas(x: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """A copy of x (N, …) whose first half is bands of white, black and a saturated colour.

    `channels`: the axis of the channels.  White is the largest value of x, black the least; the colour is
    white in its first channel and black in the others.  The bands lie side by side along the last other axis;
    rows of numbers have none.
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
    """By how much neighbouring pixels differ in `got`, at most, that are equal in `true` (N, C, …).

    Relative to the largest value of `true`.  Pixels count where _RUN in a row are equal in all channels, and
    not 0, which a rectifier makes of values that differ.
    """
    if true.ndim < 3 or got.shape != true.shape or not true.size:
        return 0.0
    most = 0.0
    for axis in range(2, true.ndim):
        if true.shape[axis] < _RUN:
            continue
        here, there = np.moveaxis(true, axis, -1), np.moveaxis(got, axis, -1)
        equal = (here[..., 1:] == here[..., :-1]).all(axis=1) & (here[..., 1:] != 0).any(axis=1)
        run = equal[..., 1:] & equal[..., :-1]  # of pixels i, i + 1, i + 2
        apart = np.abs(there[..., 1:] - there[..., :-1]).max(axis=1)
        pairs = np.maximum(apart[..., 1:], apart[..., :-1])
        most = max(most, float(np.max(pairs, where=run, initial=0)))
    return most / float(np.abs(true).max() or 1)
