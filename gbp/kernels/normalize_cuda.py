"""The kernels of `normalize.py` on a card.  The threads of a block share groups, as in `reduce_cuda.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float64, types

from .codegen.jit import INT
from .codegen.jit_cuda import block_kernel, device_function
from .codegen.simd_cuda import targets_of
from .reduce import RUNS, SUMS
from .reduce_cuda import THREADS, blocks_of, element, place, sign


@device_function
def _sum(value: Any, at: int, output: int, outputs: int, values: Any) -> Any:
    """The sum of the values of a group's threads, added in a tree.  `values`: their shared memory."""
    cuda.syncthreads()  # All threads have read the previous values.
    values[at] = value
    cuda.syncthreads()
    step = THREADS // 2
    while step >= outputs:
        if at < step:
            values[at] += values[at + step]
        cuda.syncthreads()
        step //= 2
    return values[output]


@device_function
def _statistics(
    x: Any,
    n: int,
    a: int,
    b: int,
    centred: int,
    power: int,
    count: int,
    epsilon: float,
    own: Any,
    values: Any,
) -> Any:
    """Mean and inverse deviation of a group.  `own`: what `place` returned for the thread."""
    share, shares, output, outputs = own
    R, S = x.shape[2], x.shape[4]
    at = share * outputs + output
    mean = 0.0
    if centred:
        total = 0.0
        for k in range(share, R * S, shares):
            r, s = element(k, R, S)
            total += np.float64(x[n, a, r, b, s])
        mean = _sum(total, at, output, outputs, values) / (R * S)
    total = 0.0
    for k in range(share, R * S, shares):
        r, s = element(k, R, S)
        d = np.float64(x[n, a, r, b, s]) - mean
        total += abs(d) if power == 1 else d * d
    size = _sum(total, at, output, outputs, values) / count + epsilon
    if power == 2:
        size = math.sqrt(size)
    return mean, 1 / size if size != 0 else 0.0


@block_kernel(
    *(RUNS, RUNS, SUMS, INT, INT, INT, types.float64),
    threads=(THREADS,),
    blocks=lambda x, *_: blocks_of(x),
)
def normalize_fwd(x: Any, y: Any, sums: Any, centred: int, power: int, count: int, epsilon: float) -> None:
    """Write y."""
    values = cuda.shared.array(THREADS, float64)
    n, a, b, there, share, shares, output, outputs = place(cuda.blockIdx.x, cuda.threadIdx.x, x.shape)
    own = share, shares, output, outputs
    mean, inverse = _statistics(x, n, a, b, centred, power, count, epsilon, own, values)
    R, S = x.shape[2], x.shape[4]
    if there:
        for k in range(share, R * S, shares):
            r, s = element(k, R, S)
            y[n, a, r, b, s] = (np.float64(x[n, a, r, b, s]) - mean) * inverse


@block_kernel(
    *(RUNS, RUNS, RUNS, INT, SUMS, INT, INT, INT, types.float64),
    threads=(THREADS,),
    blocks=lambda gy, x, gx, *_: blocks_of(gx),
)
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
) -> None:
    """Write the gradient to gx, added with `accumulate`."""
    values = cuda.shared.array(THREADS, float64)
    n, a, b, there, share, shares, output, outputs = place(cuda.blockIdx.x, cuda.threadIdx.x, gx.shape)
    own, at = (share, shares, output, outputs), share * outputs + output
    m = n // targets_of(gy, x)
    mean, inverse = _statistics(x, m, a, b, centred, power, count, epsilon, own, values)
    R, S = gx.shape[2], gx.shape[4]
    total, product = 0.0, 0.0
    for k in range(share, R * S, shares):
        r, s = element(k, R, S)
        g = np.float64(gy[n, a, r, b, s])
        total += g
        product += g * (np.float64(x[m, a, r, b, s]) - mean)
    of_g = 0.0
    if centred:
        of_g = _sum(total, at, output, outputs, values) / (R * S)
    of_gy = _sum(product, at, output, outputs, values) * (inverse / count)
    if there:
        for k in range(share, R * S, shares):
            r, s = element(k, R, S)
            d = np.float64(x[m, a, r, b, s]) - mean
            direction = sign(d) if power == 1 else d * inverse
            g = (np.float64(gy[n, a, r, b, s]) - of_g - direction * of_gy) * inverse
            gx[n, a, r, b, s] = g + gx[n, a, r, b, s] if accumulate else g
