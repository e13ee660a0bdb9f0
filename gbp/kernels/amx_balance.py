"""How weights are balanced before they become digits (`amx_digits`), and how well digits then suit them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .amx_scale import LEAST, MOST
from .codegen.amx import ROWS

#: Input channels of weights whose mean square counts on its own, and how far below the largest it may be.
_WEIGHTS_RUN, _FURTHEST = 16, 256.0
#: The least number that a channel is multiplied by; the weights of others hardly count.
_LEAST_BALANCE = 2.0**-60


class Balance(NamedTuple):
    """How weights (O, C, KH, KW) are balanced, and how well digits then suit them.

    `divisors`: of each input channel, (C,): powers of two, so no bits are lost.  They are the ratios of the
    channels' root mean squares to the largest, so at most 1.  Each output channel counts as much as another,
    whatever the size of its weights.

    `spread`: how far the largest weights are above the others, √(mean over output channels of
    largest² ÷ mean²), once they are balanced; inf if digits fail.  Digits also fail where all weights of an
    output channel for a few input channels are very small beside its largest, whose own input may be 0.
    """

    divisors: NDArray[np.float32]
    spread: float


def balance_of(w: NDArray[np.float32]) -> Balance:
    """The balance of weights (O, C, KH, KW)."""
    squares, largest = _squares_of(w)
    divisors = _divisors(squares)
    balanced = np.square(divisors.astype(np.float64))  # powers of two, so dividing squares is exact
    means = squares / balanced
    return Balance(divisors, _spread(means, means if largest is squares else largest / balanced))


def _squares_of(w: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and the largest square of the weights (O, C, KH, KW) of each two channels, (O, C)."""
    if w.shape[2:] == (1, 1):  # each is both
        squares = w[..., 0, 0].astype(np.float64, order="C")
        np.square(squares, out=squares)
        return squares, squares
    mean, largest = np.empty(w.shape[:2]), np.empty(w.shape[:2])
    for o in range(0, len(w), ROWS):  # so few at a time that their squares stay in the cache
        some = w[o : o + ROWS]
        taps = some.reshape(*some.shape[:2], -1).transpose(2, 0, 1).astype(np.float64, order="C")
        squares = np.square(taps, out=taps)
        squares.mean(0, out=mean[o : o + ROWS])
        squares.max(0, out=largest[o : o + ROWS])
    return mean, largest


def _divisors(squares: NDArray[np.float64]) -> NDArray[np.float32]:
    """See `Balance`; squares: mean squares (O, C)."""
    ones = np.ones(squares.shape[1], np.float32)
    outputs = squares.mean(1, keepdims=True)
    if not np.all(outputs < math.inf):  # infinite or NaN
        return ones
    squares = np.divide(squares, np.where(outputs > 0, outputs, math.inf)).mean(0)
    largest = squares.max(initial=0.0)
    if largest == 0:
        return ones
    ratio = np.sqrt(np.where(squares > 0, squares, largest) / largest)
    return np.exp2(np.rint(np.log2(np.maximum(ratio, _LEAST_BALANCE)))).astype(np.float32)


def _spread(squares: NDArray[np.float64], largest: NDArray[np.float64]) -> float:
    """See `Balance`; the mean and the largest squares of balanced weights, (O, C)."""
    largest = largest.max(1)
    if not np.all((largest == 0) | ((largest > LEAST**2) & (largest < MOST**2))) or not largest.any():
        return math.inf
    O, C = squares.shape
    runs = C // _WEIGHTS_RUN * _WEIGHTS_RUN
    for some in (squares[:, :runs].reshape(O, -1, _WEIGHTS_RUN), squares[:, None, runs:]):
        if some.size:
            mean = some.mean(2)
            if np.any((mean > 0) & (mean * _FURTHEST**2 < largest[:, None])):
                return math.inf
    used = largest > 0
    return math.sqrt((largest[used] / squares[used].mean(1)).mean())
