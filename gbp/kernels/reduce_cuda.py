"""The kernels of `reduce.py` on a card.  The threads of a block share some outputs.

If t threads share an output, each reduces every t-th element in order; a tree combines their results.  The
number of threads that share an output depends on the layer's sizes alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int64

from . import reduce
from .codegen.jit import INT
from .codegen.jit_cuda import (
    SIMULATED,
    block_kernel,
    device_function,
    device_function_of,
    elements_of,
    kernel,
)
from .codegen.simd_cuda import targets_of
from .reduce import L1, L2, LOG_SUM_EXP, MEAN, PROD, REDUCED, RUNS, SUM_SQUARE, SUMS, SWITCHES

#: Threads of a block.
THREADS = 4 if SIMULATED else 256
#: The fewest elements for each thread that shares an output.
_OWN = 1 if SIMULATED else 4
#: Outputs that are read together where the elements of one output are not neighbours.
_TOGETHER = 2 if SIMULATED else 8

#: How a tree combines two numbers.
_ADD, _MULTIPLY, _LARGEST = range(3)

#: Python's functions raise here.  NumPy's return NaN or ∞, as those of a card do.
_math: Any = np if SIMULATED else math


@device_function
def sign(v: float) -> float:
    return 1.0 if v > 0 else -1.0 if v < 0 else 0.0 if v == 0 else v


_finish = device_function_of(reduce._finish, math=_math)
_slope = device_function_of(reduce._slope, math=_math, _sign=sign)


def _sharing(R: int, B: int, S: int) -> int:
    """How many threads share an output: a power of two.  Each has at least one element."""
    most = THREADS // _TOGETHER if S < _TOGETHER and B > 1 else THREADS
    threads = 1
    while 2 * threads <= most and 2 * threads * _OWN <= R * S:
        threads *= 2
    return threads


_shares = device_function(_sharing)


def blocks_of(x: Any) -> tuple[int, ...]:
    """The blocks of a kernel whose threads share the outputs of x (N, A, R, B, S) as `place` says."""
    N, A, R, B, S = x.shape
    return (int(-(-(N * A * B * _sharing(R, B, S)) // THREADS)),)


@device_function
def place(block: int, t: int, shape: Any) -> Any:
    """The work of thread t of a block, for x (N, A, R, B, S).

    Returns n, a, b of an output; whether the output exists (if not, it is the last one, which may be read and
    not written); the thread's number among those that share the output, and their count; the output's number
    among those of the block, and their count.
    """
    N, A, R, B, S = shape
    shares = _shares(R, B, S)
    outputs = THREADS // shares
    if S < _TOGETHER and B > 1:
        share, output = t // outputs, t % outputs
    else:
        share, output = t % shares, t // shares
    which = block * outputs + output
    there = which < N * A * B
    which = min(which, N * A * B - 1)
    return which // (A * B), which // B % A, which % B, there, share, shares, output, outputs


@device_function
def element(k: int, R: int, S: int) -> Any:
    """Element k of an output: r and s."""
    if S == 1:
        return k, 0
    if R == 1:
        return 0, k
    return k // S, k % S


@device_function
def _together(value: Any, operation: int, own: Any, values: Any) -> Any:
    """The combined results of an output's threads.  `values`: their shared memory."""
    share, output, outputs = own
    at = share * outputs + output
    cuda.syncthreads()  # All threads have read the previous values.
    values[at] = value
    cuda.syncthreads()
    step = THREADS // 2
    while step >= outputs:
        if at < step:
            a, b = values[at], values[at + step]
            values[at] = a * b if operation == _MULTIPLY else max(a, b) if operation == _LARGEST else a + b
        cuda.syncthreads()
        step //= 2
    return values[output]


@device_function
def _reduced(
    x: Any, n: int, a: int, b: int, share: int, shares: int, own: Any, kind: int, values: Any
) -> Any:
    """The total of an output, and a second number: the maximum, or the count of zeros."""
    R, S = x.shape[2], x.shape[4]
    beside = -math.inf if kind == LOG_SUM_EXP else 0.0
    if kind == LOG_SUM_EXP:
        for k in range(share, R * S, shares):
            r, s = element(k, R, S)
            beside = max(beside, np.float64(x[n, a, r, b, s]))
        beside = _together(beside, _LARGEST, own, values)
    total = 1.0 if kind == PROD else 0.0
    for k in range(share, R * S, shares):
        r, s = element(k, R, S)
        v = np.float64(x[n, a, r, b, s])
        if kind == L1:
            total += abs(v)
        elif kind in (L2, SUM_SQUARE):
            total += v * v
        elif kind == LOG_SUM_EXP:
            total += _math.exp(v - beside)
        elif kind != PROD:
            total += v
        elif v == 0:
            beside += 1
        else:
            total *= v
    if kind == PROD:
        beside = _together(beside, _ADD, own, values)
    return _together(total, _MULTIPLY if kind == PROD else _ADD, own, values), beside


@block_kernel(RUNS, REDUCED, SUMS, INT, threads=(THREADS,), blocks=lambda x, *_: blocks_of(x))
def reduce_fwd(x: Any, y: Any, sums: Any, kind: int) -> None:
    """Write y (N, A, B)."""
    values = cuda.shared.array(THREADS, float64)
    n, a, b, there, share, shares, output, outputs = place(cuda.blockIdx.x, cuda.threadIdx.x, x.shape)
    total, beside = _reduced(x, n, a, b, share, shares, (share, output, outputs), kind, values)
    if there and share == 0:
        y[n, a, b] = _finish(kind, total, beside, x.shape[2] * x.shape[4])


@block_kernel(
    REDUCED, RUNS, RUNS, INT, SUMS, INT, threads=(THREADS,), blocks=lambda gy, x, gx, *_: blocks_of(gx)
)
def reduce_bwd(gy: Any, x: Any, gx: Any, accumulate: int, sums: Any, kind: int) -> None:
    """Write the gradient to gx, added with `accumulate`; for SUM and MEAN x is not read."""
    values = cuda.shared.array(THREADS, float64)
    n, a, b, there, share, shares, output, outputs = place(cuda.blockIdx.x, cuda.threadIdx.x, gx.shape)
    m = n // targets_of(gy, x)
    total, beside = 0.0, 0.0
    if kind > MEAN:
        total, beside = _reduced(x, m, a, b, share, shares, (share, output, outputs), kind, values)
    R, S = gx.shape[2], gx.shape[4]
    if there:
        for k in range(share, R * S, shares):
            r, s = element(k, R, S)
            v = np.float64(x[m, a, r, b, s]) if kind > MEAN else 0.0
            g = gy[n, a, b] * _slope(kind, v, total, beside, R * S)
            gx[n, a, r, b, s] = g + gx[n, a, r, b, s] if accumulate else g


@device_function
def _beats(v: Any, best: Any, highest: int) -> Any:
    return (v > best if highest else v < best) or (math.isnan(v) and not math.isnan(best))


@block_kernel(RUNS, REDUCED, SWITCHES, INT, threads=(THREADS,), blocks=lambda x, *_: blocks_of(x))
def extremum_fwd(x: Any, y: Any, switches: Any, highest: int) -> None:
    """Write the first maximum, or the first minimum, to y (N, A, B), and r·S + s of it to switches."""
    bests, firsts = cuda.shared.array(THREADS, float32), cuda.shared.array(THREADS, int64)
    n, a, b, there, share, shares, output, outputs = place(cuda.blockIdx.x, cuda.threadIdx.x, x.shape)
    R, S = x.shape[2], x.shape[4]
    best, first = x[n, a, 0, b, 0], 0
    for k in range(share, R * S, shares):
        r, s = element(k, R, S)
        v = x[n, a, r, b, s]
        if _beats(v, best, highest):
            best, first = v, k
    at = share * outputs + output
    bests[at], firsts[at] = best, first
    step = THREADS // 2
    while step >= outputs:
        cuda.syncthreads()
        if at < step:
            v, k = bests[at + step], firsts[at + step]
            if _beats(v, best, highest) or (k < first and not _beats(best, v, highest)):
                best, first = v, k
                bests[at], firsts[at] = best, first
        step //= 2
    if there and share == 0:
        y[n, a, b], switches[n, a, b] = best, first


@kernel(REDUCED, SWITCHES, RUNS, INT, units=lambda *args: elements_of(args[2]))
def extremum_bwd(gy: Any, switches: Any, gx: Any, accumulate: int) -> None:
    """Write the gradient to gx, added with `accumulate`."""
    N, A, R, B, S = gx.shape
    sharing = targets_of(gy, switches)
    for i in range(cuda.grid(1), N * A * R * B * S, cuda.gridsize(1)):
        s, b, r, a, n = i % S, i // S % B, i // (B * S) % R, i // (R * B * S) % A, i // (A * R * B * S)
        g = gy[n, a, b] if switches[n // sharing, a, b] == r * S + s else np.float32(0)
        gx[n, a, r, b, s] = g + gx[n, a, r, b, s] if accumulate else g
