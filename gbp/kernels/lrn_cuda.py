"""The kernels of `lrn.py` on a card: the threads of a block share some pixels.

The terms of the windows' sums are in shared memory, because y may be x and gx may be gy.  A block computes
the values of its pixels chunk by chunk, in the order of the channels.  Value e is in cell e % _LINE.  So all
terms that the windows of a chunk need are still there after the chunk before it has been written.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT
from .codegen.jit_cuda import SIMULATED, block_kernel, device_function
from .codegen.simd_cuda import at_pixel, targets_of, write_gradient

#: A line holds a chunk and the values that its windows reach.  So a window has _LINE − _CHUNK + 1 at most.
_LINE, _CHUNK = (32, 16) if SIMULATED else (2**13, 2**12)
_THREADS = 4 if SIMULATED else 512
#: The values of a block, unless a single pixel has more.
_TILE = 64 if SIMULATED else 2048


def _pixels_of(C: int) -> int:
    """How many pixels a block computes."""
    return max(1, _TILE // C)


_pixels = device_function(_pixels_of)


def _blocks(y: Any) -> tuple[int, ...]:
    N, H, W, C = y.shape
    return (int(-(-(N * H * W) // _pixels_of(C))),)


@device_function
def _values(block: int, shape: Any) -> Any:
    """The first pixel of a block of an array (N, H, W, C), and how many values its pixels have."""
    N, H, W, C = shape
    first = block * _pixels(C)
    return first, min(_pixels(C), N * H * W - first) * C


@device_function
def _window_sum(line: Any, e: int, c: int, C: int, below: int, size: int) -> Any:
    """The sum over the region of value e, of channel c, which reaches `below` down; line has the values."""
    total = np.float32(0)
    for i in range(max(0, c - below), min(C, c - below + size)):
        total += line[(e + i - c) % _LINE]
    return total


@device_function
def _denominator(x: Any, n: int, h: int, w: int, c: int, below: int, size: int, scale: Any, bias: Any) -> Any:
    """d of channel c, from x itself."""
    total = np.float32(0)
    for i in range(max(0, c - below), min(x.shape[3], c - below + size)):
        v = x[n, h, w, i]
        total += v * v
    return total * scale + bias


@device_function
def _power(d: Any, beta: Any) -> Any:
    """d^−β."""
    if beta == np.float32(0.75):
        root = np.float32(math.sqrt(d))
        return np.float32(1) / (root * np.float32(math.sqrt(root)))
    return d**-beta


@block_kernel(
    *(ACTIVATION, ACTIVATION, DENSE, INT, FLOAT, FLOAT, FLOAT),
    threads=(_THREADS,),
    blocks=lambda x, y, *_: _blocks(y),
)
def lrn_fwd(x: Any, y: Any, scratch: Any, size: int, alpha: float, beta: float, bias: float) -> None:
    """Write y; y may be x."""
    squares = cuda.shared.array(_LINE, float32)
    H, W, C = x.shape[1], x.shape[2], x.shape[3]
    scale = np.float32(alpha / size)
    below = (size - 1) // 2
    above = size - 1 - below
    first, values = _values(cuda.blockIdx.x, x.shape)
    there = 0
    for start in range(0, values, _CHUNK):
        reached = min(values, start + _CHUNK + above)
        for e in range(there + cuda.threadIdx.x, reached, _THREADS):
            n, h, w = at_pixel(first + e // C, H, W)
            v = x[n, h, w, e % C]
            squares[e % _LINE] = v * v
        there = reached
        cuda.syncthreads()
        for e in range(start + cuda.threadIdx.x, min(values, start + _CHUNK), _THREADS):
            n, h, w = at_pixel(first + e // C, H, W)
            c = e % C
            d = _window_sum(squares, e, c, C, below, size) * scale + bias
            y[n, h, w, c] = x[n, h, w, c] * _power(d, beta)
        cuda.syncthreads()


@block_kernel(
    *(ACTIVATION, ACTIVATION, MASK, GATE, ACTIVATION, INT, DENSE, INT, FLOAT, FLOAT, FLOAT),
    threads=(_THREADS,),
    blocks=lambda *args: _blocks(args[4]),
)
def lrn_bwd(
    gy: Any,
    x: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    size: int,
    alpha: float,
    beta: float,
    bias: float,
) -> None:
    """Write the gradient to gx, or add it with `accumulate`; then apply the gate.

    gx may be gy.
    """
    terms = cuda.shared.array(_LINE, float32)
    H, W, C = gx.shape[1], gx.shape[2], gx.shape[3]
    sharing, targets = targets_of(gy, x), targets_of(gy, mask)
    scale = np.float32(alpha / size)
    slope = np.float32(-2 * alpha * beta / size)
    below = (size - 1) // 2
    above = size - 1 - below  # region(c) reaches this far up, so i is in regions of channels this far down
    first, values = _values(cuda.blockIdx.x, gx.shape)
    there = 0
    for start in range(0, values, _CHUNK):
        reached = min(values, start + _CHUNK + below)
        for e in range(there + cuda.threadIdx.x, reached, _THREADS):
            n, h, w = at_pixel(first + e // C, H, W)
            c = e % C
            d = _denominator(x, n // sharing, h, w, c, below, size, scale, bias)
            terms[e % _LINE] = gy[n, h, w, c] * _power(d, beta) * x[n // sharing, h, w, c] / d
        there = reached
        cuda.syncthreads()
        for e in range(start + cuda.threadIdx.x, min(values, start + _CHUNK), _THREADS):
            n, h, w = at_pixel(first + e // C, H, W)
            c = e % C
            d = _denominator(x, n // sharing, h, w, c, below, size, scale, bias)
            total = _window_sum(terms, e, c, C, above, size) * slope
            v = total * x[n // sharing, h, w, c] + gy[n, h, w, c] * _power(d, beta)
            write_gradient(v, c, gate, accumulate, gx, (n, h, w), mask, (n // targets, h, w))
        cuda.syncthreads()
