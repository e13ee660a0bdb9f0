"""Reductions over some axes, and their derivatives.

Tensors have shape (N, A, R, B, S) and are reduced over R and S: in memory the reduced axes are one run or
two.  Sums are in float64, over r and then s.  BLOCK neighbours of B are summed at a time, so that each cache
line is read once.

    sum, mean          y = Σ x, Σ x / (R·S)             gx = gy, gy / (R·S)
    L1, L2, squares    y = Σ |x|, √Σ x², Σ x²           gx = gy · sign x, gy · x / y (0 at y = 0), gy · 2x
    log of a sum       y = log Σ x                      gx = gy / Σ x
    log-sum-exp        y = m + log Σ exp(x − m)         gx = gy · exp(x − y)             m = max x
    product            y = Π x                          gx = gy · Π of the others
    max, min           y = the first extremum           gx = gy there, 0 elsewhere

Source: ONNX ReduceSum, ReduceMean, ReduceL1 and so on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from .codegen.jit import INT, device_function, kernel
from .codegen.packing import Share
from .codegen.work import part_of, targets_of

RUNS = types.Array(types.float32, 5, "C")
REDUCED = types.Array(types.float32, 3, "C")
SWITCHES = types.Array(types.uint32, 3, "C")
SUMS = types.Array(types.float64, 1, "C")

SUM, MEAN, L1, L2, SUM_SQUARE, LOG_SUM, LOG_SUM_EXP, PROD = range(8)

#: Neighbours that are reduced together: one cache line.
BLOCK = 16
#: Float64 sums for each thread: the totals, and for each a second number, the maximum or the count of zeros.
REDUCE_SUMS = 2 * BLOCK


@device_function
def jobs_of(N: int, A: int, B: int) -> Any:
    """How many jobs there are: each reduces BLOCK neighbours of B."""
    return N * A * ((B + BLOCK - 1) // BLOCK)


@device_function
def neighbours_of(job: int, A: int, B: int) -> Any:
    """(n, a, first, last): the neighbours [first, last) of B that a job reduces."""
    blocks = (B + BLOCK - 1) // BLOCK
    first = job % blocks * BLOCK
    return job // (A * blocks), job // blocks % A, first, min(B, first + BLOCK)


@device_function
def _find_maxima(x: Any, n: int, a: int, first: int, last: int, sums: Any, at: int) -> None:
    """Raise sums[at:] to the maxima of neighbours first … last − 1."""
    for r in range(x.shape[2]):
        for b in range(first, last):
            i = at + b - first
            for s in range(x.shape[4]):
                sums[i] = max(sums[i], np.float64(x[n, a, r, b, s]))


@device_function
def _term(kind: int, v: float, largest: float) -> Any:
    """The term of a value in a sum."""
    if kind == L1:
        return abs(v)
    if kind in (L2, SUM_SQUARE):
        return v * v
    return math.exp(v - largest) if kind == LOG_SUM_EXP else v


@device_function
def _multiply(x: Any, n: int, a: int, r: int, b: int, sums: Any, i: int) -> None:
    """Multiply sums[i] by the values of a run but its zeros, and count these in sums[i + BLOCK]."""
    total = sums[i]
    for s in range(x.shape[4]):
        v = np.float64(x[n, a, r, b, s])
        if v == 0:
            sums[i + BLOCK] += 1
        else:
            total *= v
    sums[i] = total


@device_function
def _reduce(x: Any, n: int, a: int, first: int, last: int, kind: int, sums: Any, at: int) -> None:
    """Write the totals of neighbours first … last − 1 to sums[at:], and the second numbers BLOCK further."""
    R, S = x.shape[2], x.shape[4]
    for i in range(at, at + last - first):
        sums[i] = 1.0 if kind == PROD else 0.0
        sums[i + BLOCK] = -math.inf if kind == LOG_SUM_EXP else 0.0
    if kind == LOG_SUM_EXP:
        _find_maxima(x, n, a, first, last, sums, at + BLOCK)
    for r in range(R):
        for b in range(first, last):
            i = at + b - first
            if kind == PROD:
                _multiply(x, n, a, r, b, sums, i)
                continue
            total, largest = sums[i], sums[i + BLOCK]
            for s in range(S):
                total += _term(kind, np.float64(x[n, a, r, b, s]), largest)
            sums[i] = total


@device_function
def _finish(kind: int, total: float, beside: float, count: int) -> Any:
    if kind == MEAN:
        return total / count
    if kind == L2:
        return math.sqrt(total)
    if kind == LOG_SUM:
        return math.log(total)
    if kind == LOG_SUM_EXP:
        return beside + math.log(total)
    return 0.0 if kind == PROD and beside > 0 else total


@device_function
def _sign(v: float) -> Any:
    return np.sign(v)


@device_function
def _slope(kind: int, v: float, total: float, beside: float, count: int) -> Any:
    """Return dy/dv."""
    slope = 1.0
    if kind == MEAN:
        slope = 1 / count
    elif kind == L1:
        slope = _sign(v)
    elif kind == L2:
        slope = v / math.sqrt(total) if total > 0 else 0.0
    elif kind == SUM_SQUARE:
        slope = 2 * v
    elif kind == LOG_SUM:
        slope = 1 / total
    elif kind == LOG_SUM_EXP:
        slope = math.exp(v - beside) / total
    elif kind == PROD:
        others_are_zero = beside > 1 or (beside == 1 and v != 0)
        slope = 0.0 if others_are_zero else total if v == 0 else total / v
    return slope


@kernel(RUNS, REDUCED, SUMS, INT, INT)
def reduce_fwd(x: Any, y: Any, sums: Any, kind: int, threads: int, share: Share) -> None:
    """Write y (N, A, B).

    sums: scratch, REDUCE_SUMS float64 a thread.  kind: which reduction, SUM … PROD.
    """
    N, A, R, B, S = x.shape
    at = share.slot * REDUCE_SUMS
    for job in range(*part_of(jobs_of(N, A, B), share, threads)):
        n, a, first, last = neighbours_of(job, A, B)
        _reduce(x, n, a, first, last, kind, sums, at)
        for b in range(first, last):
            i = at + b - first
            y[n, a, b] = _finish(kind, sums[i], sums[i + BLOCK], R * S)


@kernel(REDUCED, RUNS, RUNS, INT, SUMS, INT, INT)
def reduce_bwd(
    gy: Any, x: Any, gx: Any, accumulate: int, sums: Any, kind: int, threads: int, share: Share
) -> None:
    """Write the gradient to gx, or add it with `accumulate`.

    x: what was reduced; it is not read for SUM and MEAN.  sums, kind: as for `reduce_fwd`.
    """
    N, A, R, B, S = gx.shape
    sharing = targets_of(gy, x)
    at = share.slot * REDUCE_SUMS
    for job in range(*part_of(jobs_of(N, A, B), share, threads)):
        n, a, first, last = neighbours_of(job, A, B)
        m = n // sharing
        if kind > MEAN:
            _reduce(x, m, a, first, last, kind, sums, at)
        for r in range(R):
            for b in range(first, last):
                i = at + b - first
                for s in range(S):
                    v = np.float64(x[m, a, r, b, s]) if kind > MEAN else 0.0
                    g = gy[n, a, b] * _slope(kind, v, sums[i], sums[i + BLOCK], R * S)
                    gx[n, a, r, b, s] = g + gx[n, a, r, b, s] if accumulate else g


@kernel(RUNS, REDUCED, SWITCHES, INT, INT)
def extremum_fwd(x: Any, y: Any, switches: Any, highest: int, threads: int, share: Share) -> None:
    """Write the first maximum to y (N, A, B), and its position r·S + s to switches.

    highest: 0 for the first minimum.
    """
    N, A, R, B, S = x.shape
    for job in range(*part_of(jobs_of(N, A, B), share, threads)):
        n, a, first, last = neighbours_of(job, A, B)
        for b in range(first, last):
            y[n, a, b], switches[n, a, b] = x[n, a, 0, b, 0], 0
        for r in range(R):
            for b in range(first, last):
                for s in range(S):
                    v, best = x[n, a, r, b, s], y[n, a, b]
                    beats = v > best if highest else v < best
                    if beats or (math.isnan(v) and not math.isnan(best)):
                        y[n, a, b], switches[n, a, b] = v, r * S + s


@kernel(REDUCED, SWITCHES, RUNS, INT, INT)
def extremum_bwd(gy: Any, switches: Any, gx: Any, accumulate: int, threads: int, share: Share) -> None:
    """Write the gradient to gx, or add it with `accumulate`."""
    N, A, R, B, S = gx.shape
    sharing = targets_of(gy, switches)
    rows = N * A * R
    for row in range(*part_of(rows, share, threads)):
        n, a, r = row // (A * R), row // R % A, row % R
        for b in range(B):
            switch = switches[n // sharing, a, b]
            for s in range(S):
                g = gy[n, a, b] if r * S + s == switch else np.float32(0)
                gx[n, a, r, b, s] = g + gx[n, a, r, b, s] if accumulate else g
