"""Add and Mul under general broadcasting, as plain loops, because they are rare.

    add:  y = x0 + x1,   gx += gy              mul:  y = x0 · x1,   gx0 += gy · x1

Arrays have six axes.  The caller broadcasts with strides of 0.  Adding to such a view of gx sums over the
axes that were broadcast, in row-major order.  Threads share axis 0, the batch, so gx must not be broadcast
there.

Source: ONNX Add, Mul, and "Multidirectional Broadcasting".
"""

from __future__ import annotations

from typing import Any

from numba import types

from .codegen.jit import INT, device_function, kernel, kernel_from
from .codegen.packing import Share
from .codegen.simd import address_of, load_scalar, store_scalar
from .codegen.work import part_of, targets_of

BROADCAST = types.Array(types.float32, 6, "A")


@device_function
def lines(shape: Any) -> int:
    """Return how many lines along the last axis each index of axis 0 has."""
    return shape[1] * shape[2] * shape[3] * shape[4]


@device_function
def line_at(start: int, shape: Any, strides: Any, n: int, line: int) -> int:
    """Return the address of a line, counted in the order of the index, of the array at `start`."""
    address = start + n * strides[0]
    for axis in (4, 3, 2, 1):
        address += line % shape[axis] * strides[axis]
        line //= shape[axis]
    return address


#: Stands in the template below for the sum or the product of two numbers; `kernel_from` replaces it.
combined: Any = None


def _fwd(x0: Any, x1: Any, y: Any, threads: int, share: Share) -> None:
    """Write y = x0 + x1, or x0 · x1, all of one shape; y may be either."""
    N, size = y.shape[0], y.shape[5]
    for n in range(*part_of(N, share, threads)):
        for line in range(lines(y.shape)):
            a, b, to = (
                line_at(address_of(x0), x0.shape, x0.strides, n, line),
                line_at(address_of(x1), x1.shape, x1.strides, n, line),
                line_at(address_of(y), y.shape, y.strides, n, line),
            )
            for _ in range(size):
                store_scalar(to, combined(load_scalar(a), load_scalar(b)))
                a, b, to = a + x0.strides[5], b + x1.strides[5], to + y.strides[5]


_ARRAYS = BROADCAST, BROADCAST, BROADCAST
add_fwd = kernel_from(_fwd, "add_fwd", *_ARRAYS, INT, combined=lambda a, b: a + b)
mul_fwd = kernel_from(_fwd, "mul_fwd", *_ARRAYS, INT, combined=lambda a, b: a * b)


@kernel(BROADCAST, BROADCAST, INT)
def add_bwd(gy: Any, gx: Any, threads: int, share: Share) -> None:
    """Add gy to gx, of one shape."""
    N, size = gy.shape[0], gy.shape[5]
    for n in range(*part_of(N, share, threads)):
        for line in range(lines(gy.shape)):
            g, to = (
                line_at(address_of(gy), gy.shape, gy.strides, n, line),
                line_at(address_of(gx), gx.shape, gx.strides, n, line),
            )
            for _ in range(size):
                store_scalar(to, load_scalar(to) + load_scalar(g))
                g, to = g + gy.strides[5], to + gx.strides[5]


@kernel(BROADCAST, BROADCAST, BROADCAST, INT)
def mul_bwd(gy: Any, other: Any, gx: Any, threads: int, share: Share) -> None:
    """Add gy · other to gx; gy and gx have N·K rows, `other` N."""
    N, size = gy.shape[0], gy.shape[5]
    sharing = targets_of(gy, other)
    for n in range(*part_of(N, share, threads)):
        for line in range(lines(gy.shape)):
            g, a, to = (
                line_at(address_of(gy), gy.shape, gy.strides, n, line),
                line_at(address_of(other), other.shape, other.strides, n // sharing, line),
                line_at(address_of(gx), gx.shape, gx.strides, n, line),
            )
            for _ in range(size):
                store_scalar(to, load_scalar(to) + load_scalar(g) * load_scalar(a))
                g, a, to = g + gy.strides[5], a + other.strides[5], to + gx.strides[5]
