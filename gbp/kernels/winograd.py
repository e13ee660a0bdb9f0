"""The transforms of Winograd's F(4×4, 3×3), with the interpolation points 0, ±5/8, ±3/2, ∞.

    V = Bᵀ x B      from a patch of 6 × 6 pixels to 36 planes, one vector of channels after another
    y = Aᵀ M A      from 36 planes to a square of 4 × 4 pixels
    U = G w Gᵀ      once, when the weights are packed, in float64

With the usual points 0, ±1, ±2, ∞ the rounding errors are twice as large.

Sources: Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.3; Barabasz et al.
2020, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", on the
choice of points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codegen.emit import VECTOR_BYTES
from .codegen.jit import INT, device_function, shared
from .codegen.memory import aligned
from .codegen.simd import broadcast, fma, keep_rolled, load_each, store_each
from .codegen.tile import TILE_CHANNELS
from .codegen.work import copy_run, zero_run

SQUARE = 4
PATCH = 6
MATRICES = PATCH * PATCH
#: The points ±P and ±Q; their powers and products are exact in float32.
P, Q = 5 / 8, 3 / 2
_P2, _Q2 = P * P, Q * Q


def _rows_of(point: float, other: float) -> list[list[float]]:
    """The two rows of G at ±point.  `other` is the point of the other pair."""
    scale = 2 * point**2 * (point**2 - other**2)  # ∏ (point − every other finite point)
    return [[1 / scale, sign * point / scale, point**2 / scale] for sign in (1, -1)]


_G = np.array([[1 / (_P2 * _Q2), 0, 0], *_rows_of(P, Q), *_rows_of(Q, P), [0, 0, 1]])
#: G w Gᵀ as one matrix on the nine weights of a filter.
_GG = np.kron(_G, _G)


def pack_winograd(w: NDArray[Any]) -> NDArray[np.float32]:
    """Make U of weights (O, I, 3, 3), packed for tiles: [⌈O / TILE_CHANNELS⌉][MATRICES][I][TILE_CHANNELS]."""
    O, I = w.shape[:2]
    blocks = -(-O // TILE_CHANNELS)
    packed = aligned((blocks, MATRICES, I, TILE_CHANNELS))
    packed.fill(0)
    for block in range(blocks):
        part = w[block * TILE_CHANNELS : (block + 1) * TILE_CHANNELS].astype(np.float64)
        u = _GG @ part.transpose(2, 3, 1, 0).reshape(9, -1)
        packed[block, ..., : len(part)] = u.reshape(MATRICES, I, len(part))
    return packed.reshape(-1)


@device_function
def _times(factor: float, v: Any, total: Any) -> Any:
    """total + factor · v."""
    return fma(broadcast(np.float32(factor)), v, total)


@device_function
def _input_1d(d0: Any, d1: Any, d2: Any, d3: Any, d4: Any, d5: Any) -> Any:
    """Bᵀ d."""
    a, b = _times(-_Q2, d2, d4), _times(-_Q2, d1, d3)
    c, e = _times(-_P2, d2, d4), _times(-_P2, d1, d3)
    return (
        _times(_P2 * _Q2, d0, _times(-_P2 - _Q2, d2, d4)),
        _times(P, b, a),
        _times(-P, b, a),
        _times(Q, e, c),
        _times(-Q, e, c),
        _times(_P2 * _Q2, d1, _times(-_P2 - _Q2, d3, d5)),
    )


@device_function
def _output_1d(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any) -> Any:
    """Aᵀ m."""
    a, b, c, e = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        (m0 + a) + c,
        _times(P, b, Q * e),
        _times(_P2, a, _Q2 * c),
        _times(Q * _Q2, e, _times(P * _P2, b, m5)),
    )


@device_function
def _transform_vector(x: int, line: int, pixel: int, v: int, step: int) -> None:
    """Write Bᵀ x B of one vector of channels to the 36 planes at v."""
    a = _input_1d(*load_each(x, line, 6))
    b = _input_1d(*load_each(x + pixel, line, 6))
    c = _input_1d(*load_each(x + 2 * pixel, line, 6))
    d = _input_1d(*load_each(x + 3 * pixel, line, 6))
    e = _input_1d(*load_each(x + 4 * pixel, line, 6))
    f = _input_1d(*load_each(x + 5 * pixel, line, 6))
    store_each(v, step, _input_1d(a[0], b[0], c[0], d[0], e[0], f[0]))
    store_each(v + 6 * step, step, _input_1d(a[1], b[1], c[1], d[1], e[1], f[1]))
    store_each(v + 12 * step, step, _input_1d(a[2], b[2], c[2], d[2], e[2], f[2]))
    store_each(v + 18 * step, step, _input_1d(a[3], b[3], c[3], d[3], e[3], f[3]))
    store_each(v + 24 * step, step, _input_1d(a[4], b[4], c[4], d[4], e[4], f[4]))
    store_each(v + 30 * step, step, _input_1d(a[5], b[5], c[5], d[5], e[5], f[5]))


@shared(INT, INT, INT, INT, INT, INT)
def transform_patch(x: int, line: int, pixel: int, v: int, step: int, row: int) -> None:
    """Write Bᵀ x B of the patch at x to one row of each of the 36 planes at v.  A pixel has `row` bytes."""
    for c in range(0, row, VECTOR_BYTES):
        _transform_vector(x + c, line, pixel, v + c, step)


@device_function
def _transform_product(m: int, step: int, out: int) -> None:
    """Write Aᵀ M A of one vector of channels, from the 36 planes at m, to the square at `out`."""
    down, right, line = 6 * step, 4 * TILE_CHANNELS, SQUARE * 4 * TILE_CHANNELS
    a = _output_1d(*load_each(m, down, 6))
    b = _output_1d(*load_each(m + step, down, 6))
    c = _output_1d(*load_each(m + 2 * step, down, 6))
    d = _output_1d(*load_each(m + 3 * step, down, 6))
    e = _output_1d(*load_each(m + 4 * step, down, 6))
    f = _output_1d(*load_each(m + 5 * step, down, 6))
    store_each(out, right, _output_1d(a[0], b[0], c[0], d[0], e[0], f[0]))
    store_each(out + line, right, _output_1d(a[1], b[1], c[1], d[1], e[1], f[1]))
    store_each(out + 2 * line, right, _output_1d(a[2], b[2], c[2], d[2], e[2], f[2]))
    store_each(out + 3 * line, right, _output_1d(a[3], b[3], c[3], d[3], e[3], f[3]))


@shared(INT, INT, INT, INT)
def transform_product(m: int, step: int, channels: int, out: int) -> None:
    """Write Aᵀ M A, from one row of each of the 36 planes at m, for a block with `channels` real channels."""
    for v in range(0, 4 * min(TILE_CHANNELS, channels), VECTOR_BYTES):
        _transform_product(m + v, step, out + v)


@shared(*[INT] * 10)
def gather_patch(
    x: int, line: int, pixel: int, C: int, above: int, below: int, before: int, after: int, to: int, row: int
) -> None:
    """Copy the pixels [above, below) × [before, after) of the patch whose first pixel is at x to `to`.

    All other pixels become 0, and so does the padding of a pixel's C channels to `row` bytes.
    """
    for i in range(PATCH):
        keep_rolled()
        for j in range(PATCH):
            keep_rolled()
            if above <= i < below and before <= j < after:
                copy_run(x + i * line + j * pixel, to, C)
                zero_run(to + 4 * C, row // 4 - C)
            else:
                zero_run(to, row // 4)
            to += row
