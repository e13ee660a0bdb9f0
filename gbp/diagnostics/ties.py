"""Ties: where an image is flat, a max-pool's window holds equal values, and its first pixel must win.

If an engine computes different values for equal windows, even by rounding only, another pixel wins and gets
the gradient.  Then a map can be wrong by half its norm while every value of the forward run is right to 1e-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.geometry import Axis

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


def same_windows(x: NDArray[Any], axes: Sequence[Axis]) -> list[NDArray[np.bool_]]:
    """For each spatial axis: which windows on x hold the same as their neighbours along that axis.

    Parameters
    ----------
    x
        (N, C, …).
    axes
        The window along each spatial axis.

    Returns
    -------
    For each axis (N, …), with as many places as there are windows, and one less along that axis.
    """
    pixels = np.pad(x, [(0, 0), (0, 1), *[(0, 0)] * len(axes)], constant_values=1)  # so padding is no pixel
    ends = [max(0, (a.outputs - 1) * a.stride + a.extent - a.begin - a.size) for a in axes]
    padded = np.pad(pixels, [(0, 0), (0, 0), *((a.begin, end) for a, end in zip(axes, ends, strict=True))])
    found = []
    for along, moved in enumerate(axes, start=1):
        here = np.moveaxis(padded, 1 + along, -1)
        same = np.moveaxis((here[..., moved.stride :] == here[..., : -moved.stride]).all(axis=1), -1, along)
        for k, axis in enumerate(axes, start=1):
            count = axis.outputs - (k == along)
            starts = np.arange(count) * axis.stride
            taps = (same.take(starts + tap * axis.dilation, axis=k) for tap in range(axis.kernel))
            same = np.logical_and.reduce(list(taps))
        found.append(same)
    return found


def told_apart(
    got: NDArray[Any], true: NDArray[Any], same: Sequence[NDArray[np.bool_]] | None = None
) -> float:
    """The largest difference in `got` between neighbouring pixels that are equal in `true`.

    Pixels count as equal where _RUN of them in a row agree in all channels.  Zeros do not count, because a
    rectifier maps different values to 0.

    Parameters
    ----------
    got, true
        (N, C, …).
    same
        As `same_windows` returns it.  Other neighbours may be equal by chance, and do not count.

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
        if same is not None:
            equal &= np.moveaxis(same[axis - 2], axis - 1, -1)
        run = equal[..., 1:] & equal[..., :-1]  # of pixels i, i + 1, i + 2
        apart = np.abs(there[..., 1:] - there[..., :-1]).max(axis=1)
        pairs = np.maximum(apart[..., 1:], apart[..., :-1])
        largest = max(largest, float(np.max(pairs, where=run, initial=0)))
    return largest / float(np.abs(true).max() or 1)
