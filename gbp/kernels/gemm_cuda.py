"""The kernels of `gemm.py` on a card: dense layers.  They take as long as reading the weights does.

Forward, a block computes eight rows of w, whose bits fill a byte, for some samples.  Its threads share the
columns; their sums are added in the order of the threads.  Backward, a block computes neighbouring columns,
and its threads share the rows.  Neither order depends on the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32

from . import gemm_tensor_cuda
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT
from .codegen.jit_cuda import SIMULATED, block_kernel, tensor_cores
from .codegen.simd_cuda import clipped, targets_of, write_gradient

#: Samples that a block computes together.  The weights are read once for so many.
SAMPLES = 4
_ROWS = 8
_THREADS = 4 if SIMULATED else 128
_SUMS = _ROWS * SAMPLES
_SUMS_OF_ALL = _SUMS * _THREADS
_COLUMNS = 4 if SIMULATED else 64
_SLICES = 2 if SIMULATED else 4
_PARTS = _COLUMNS * _SLICES * SAMPLES


def gemm_fwd(x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, lo: float, hi: float) -> None:
    """Write y = clip(x · wᵀ + b + r, lo, hi) and the bit lo < · < hi of each unit to mask.

    x (N, 1, 1, K), w (M·K,), b (M,) or empty, y (N, 1, 1, M); r and mask may be empty.
    """
    forward = gemm_tensor_cuda.forward if tensor_cores() else _gemm_fwd
    forward(x, w, b, r, y, mask, lo, hi)


def gemm_bwd(gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int) -> None:
    """Write gy · w to gx, added to gx with `accumulate`; then apply the gate.

    gy (N, 1, 1, M), w (M·K,) finite, gx (N, 1, 1, K).
    """
    backward = gemm_tensor_cuda.backward if tensor_cores() else _gemm_bwd
    backward(gy, w, mask, gate, gx, accumulate)


@block_kernel(
    *(ACTIVATION, DENSE, DENSE, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT),
    threads=(_THREADS,),
    blocks=lambda *args: (-(-args[4].shape[3] // _ROWS) * -(-args[4].shape[0] // SAMPLES),),
)
def _gemm_fwd(x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, lo: float, hi: float) -> None:
    """`gemm_fwd` without tensor cores."""
    sums = cuda.shared.array(_SUMS_OF_ALL, float32)
    own = cuda.local.array(_SUMS, float32)
    N, K, M = x.shape[0], x.shape[3], y.shape[3]
    t = cuda.threadIdx.x
    across = (M + _ROWS - 1) // _ROWS
    m0, n0 = cuda.blockIdx.x % across * _ROWS, cuda.blockIdx.x // across * SAMPLES
    for i in range(_SUMS):
        own[i] = np.float32(0)
    for k in range(t, K, _THREADS):
        for s in range(SAMPLES):
            v = x[min(n0 + s, N - 1), 0, 0, k]
            for row in range(_ROWS):
                own[s * _ROWS + row] += v * w[min(m0 + row, M - 1) * K + k]
    for i in range(_SUMS):
        sums[i * _THREADS + t] = own[i]
    cuda.syncthreads()
    for i in range(t, _SUMS, _THREADS):
        total = np.float32(0)
        for k in range(_THREADS):
            total += sums[i * _THREADS + k]
        sums[i * _THREADS] = total
    cuda.syncthreads()
    for s in range(t, min(SAMPLES, N - n0), _THREADS):
        bits, n = 0, n0 + s
        for row in range(min(_ROWS, M - m0)):
            v, m = sums[(s * _ROWS + row) * _THREADS], m0 + row
            if b.size:
                v += b[m]
            if r.size:
                v += r[n, 0, 0, m]
            if lo < v < hi:
                bits |= 1 << row
            y[n, 0, 0, m] = clipped(v, lo, hi)
        if mask.size:
            mask[n, 0, 0, m0 // 8] = bits


@block_kernel(
    *(ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT),
    threads=(_COLUMNS, _SLICES),
    blocks=lambda *args: (-(-args[4].shape[3] // _COLUMNS) * -(-args[4].shape[0] // SAMPLES),),
)
def _gemm_bwd(gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int) -> None:
    """`gemm_bwd` without tensor cores.

    Rows of w that all samples of the block multiply by 0 are not read.
    """
    parts = cuda.shared.array(_PARTS, float32)
    own = cuda.local.array(SAMPLES, float32)
    factors = cuda.local.array(SAMPLES, float32)
    N, M, K = gx.shape[0], gy.shape[3], gx.shape[3]
    targets = targets_of(gy, mask)
    column, part = cuda.threadIdx.x, cuda.threadIdx.y
    across = (K + _COLUMNS - 1) // _COLUMNS
    k, n0 = cuda.blockIdx.x % across * _COLUMNS + column, cuda.blockIdx.x // across * SAMPLES
    for s in range(SAMPLES):
        own[s] = np.float32(0)
    for m in range(part, M, _SLICES):
        some = False
        for s in range(SAMPLES):
            factors[s] = gy[n0 + s, 0, 0, m] if n0 + s < N else np.float32(0)
            some = some or factors[s] != 0
        if some and k < K:
            v = w[m * K + k]
            for s in range(SAMPLES):
                own[s] += factors[s] * v
    for s in range(SAMPLES):
        parts[(s * _SLICES + part) * _COLUMNS + column] = own[s]
    cuda.syncthreads()
    for s in range(part, min(SAMPLES, N - n0), _SLICES):
        if k < K:
            v = np.float32(0)
            for i in range(_SLICES):
                v += parts[(s * _SLICES + i) * _COLUMNS + column]
            n = n0 + s
            write_gradient(v, k, gate, accumulate, gx, (n, 0, 0), mask, (n // targets, 0, 0))
