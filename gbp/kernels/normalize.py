"""Normalisation of a tensor (N, A, R, B, S) over R and S, which are axes as in `reduce.py`.

    d  = x − mean x, or x without centring
    y  = d · i,     i = 1 / √(Σ d² / count + ε)          or   1 / Σ |d|    (power 1)
    gx = i · (gy − mean gy − y · Σ gy·y / count)         or   i · (gy − sign d · Σ gy·y)

Without centring there is no `mean gy`.  count is R·S for a mean of squares and 1 for a norm.  A norm of 0
gives i = 0.  All statistics are in float64.  The backward pass computes them again from x.

Source: ONNX InstanceNormalization, LayerNormalization, GroupNormalization, MeanVarianceNormalization,
RMSNormalization, LpNormalization.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .codegen.jit import INT, device_function, kernel
from .codegen.packing import Share
from .codegen.work import part_of, targets_of
from .reduce import BLOCK, RUNS, SUMS, jobs_of, neighbours_of

#: Float64 sums of a thread: mean, inverse deviation, mean of gy, mean of gy · y.
NORMALIZE_SUMS = 4 * BLOCK

_MEAN, _INVERSE, _G, _GY = (i * BLOCK for i in range(4))


class Norm(NamedTuple):
    """How the size of d is measured.  `divisor`: the count of the equations."""

    centred: int
    power: int
    divisor: int
    epsilon: float


@device_function
def _statistics(x: Any, n: int, a: int, first: int, last: int, norm: Norm, sums: Any, at: int) -> None:
    """Write mean and inverse deviation of neighbours first … last − 1 to sums[at:]."""
    R, S = x.shape[2], x.shape[4]
    for i in range(at, at + last - first):
        sums[i + _MEAN] = sums[i + _INVERSE] = 0.0
    if norm.centred:
        for r in range(R):
            for b in range(first, last):
                total = 0.0
                for s in range(S):
                    total += np.float64(x[n, a, r, b, s])
                sums[at + b - first + _MEAN] += total
        for i in range(at, at + last - first):
            sums[i + _MEAN] /= R * S
    for r in range(R):
        for b in range(first, last):
            i = at + b - first
            total = 0.0
            for s in range(S):
                d = x[n, a, r, b, s] - sums[i + _MEAN]
                total += abs(d) if norm.power == 1 else d * d
            sums[i + _INVERSE] += total
    for i in range(at, at + last - first):
        size = sums[i + _INVERSE] / norm.divisor + norm.epsilon
        if norm.power == 2:
            size = math.sqrt(size)
        sums[i + _INVERSE] = 1 / size if size != 0 else 0.0


@kernel(RUNS, RUNS, SUMS, INT, INT, INT, types.float64, INT)
def normalize_fwd(
    x: Any,
    y: Any,
    sums: Any,
    centred: int,
    power: int,
    count: int,
    epsilon: float,
    threads: int,
    share: Share,
) -> None:
    """Write y.

    sums: scratch, NORMALIZE_SUMS float64 a thread.  centred: 1 to subtract the mean.  power: 2 for a mean of
    squares, 1 for a sum of absolute values.  count, epsilon: as in the equations.
    """
    N, A, R, B, S = x.shape
    norm, at = Norm(centred, power, count, epsilon), share.slot * NORMALIZE_SUMS
    for job in range(*part_of(jobs_of(N, A, B), share, threads)):
        n, a, first, last = neighbours_of(job, A, B)
        _statistics(x, n, a, first, last, norm, sums, at)
        for r in range(R):
            for b in range(first, last):
                i = at + b - first
                for s in range(S):
                    y[n, a, r, b, s] = (x[n, a, r, b, s] - sums[i + _MEAN]) * sums[i + _INVERSE]


@kernel(RUNS, RUNS, RUNS, INT, SUMS, INT, INT, INT, types.float64, INT)
def normalize_bwd(
    gy: Any,
    x: Any,
    gx: Any,
    accumulate: int,
    sums: Any,
    centred: int,
    power: int,
    count: int,
    epsilon: float,
    threads: int,
    share: Share,
) -> None:
    """Write the gradient to gx, or add it with `accumulate`.

    sums, centred, power, count, epsilon: as for `normalize_fwd`.
    """
    N, A, R, B, S = gx.shape
    sharing = targets_of(gy, x)
    norm, at = Norm(centred, power, count, epsilon), share.slot * NORMALIZE_SUMS
    for job in range(*part_of(jobs_of(N, A, B), share, threads)):
        n, a, first, last = neighbours_of(job, A, B)
        m = n // sharing
        _statistics(x, m, a, first, last, norm, sums, at)
        for i in range(at, at + last - first):
            sums[i + _G] = sums[i + _GY] = 0.0
        for r in range(R):
            for b in range(first, last):
                i = at + b - first
                total = product = 0.0
                for s in range(S):
                    g = np.float64(gy[n, a, r, b, s])
                    total += g
                    product += g * (x[m, a, r, b, s] - sums[i + _MEAN])
                sums[i + _G] += total
                sums[i + _GY] += product
        for i in range(at, at + last - first):
            sums[i + _G] = sums[i + _G] / (R * S) if centred else 0.0
            sums[i + _GY] *= sums[i + _INVERSE] / count
        for r in range(R):
            for b in range(first, last):
                i = at + b - first
                for s in range(S):
                    d = x[m, a, r, b, s] - sums[i + _MEAN]
                    direction = np.sign(d) if power == 1 else d * sums[i + _INVERSE]
                    flowing = gy[n, a, r, b, s] - sums[i + _G] - direction * sums[i + _GY]
                    g = flowing * sums[i + _INVERSE]
                    gx[n, a, r, b, s] = g + gx[n, a, r, b, s] if accumulate else g
