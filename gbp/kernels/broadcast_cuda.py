"""The kernels of `broadcast.py` on a card.

A stride of 0 means that an axis was broadcast, and gx is summed over it.  One thread computes each element of
gx.  It adds the contributions in the order of their indices.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from .broadcast import BROADCAST
from .codegen.jit_cuda import device_function, kernel
from .codegen.simd_cuda import targets_of
from .moves_cuda import add, index_of, multiply


def add_fwd(x0: Any, x1: Any, y: Any) -> None:
    """Write y = x0 + x1, all of one shape; y may be x0 or x1."""
    add(y, x0, x1)


def mul_fwd(x0: Any, x1: Any, y: Any) -> None:
    """Write y = x0 · x1, all of one shape; y may be x0 or x1."""
    multiply(y, x0, x1)


def distinct_elements(gx: Any) -> int:
    """How many elements gx (N, …) has in memory: the units of work of a kernel with one for each."""
    count = int(gx.shape[0])
    for size, stride in zip(gx.shape[1:], gx.strides[1:], strict=True):
        count *= size if stride else 1
    return count


@device_function
def distinct_sizes(shape: Any, strides: Any) -> Any:
    """The shape of what gx (N, …) has in memory: 1 for an axis that was broadcast; the first never is."""
    return (
        shape[0],
        shape[1] if strides[1] else 1,
        shape[2] if strides[2] else 1,
        shape[3] if strides[3] else 1,
        shape[4] if strides[4] else 1,
        shape[5] if strides[5] else 1,
    )


@device_function
def product_of(shape: Any) -> Any:
    return shape[0] * shape[1] * shape[2] * shape[3] * shape[4] * shape[5]


@device_function
def next_of_element(at: Any, shape: Any, strides: Any) -> Any:
    """The next index, in order, of the same element of memory as index `at`; after the last, the first."""
    n, a, b, c, d, e = at
    if not strides[5]:
        e += 1
        if e < shape[5]:
            return n, a, b, c, d, e
        e = 0
    if not strides[4]:
        d += 1
        if d < shape[4]:
            return n, a, b, c, d, e
        d = 0
    if not strides[3]:
        c += 1
        if c < shape[3]:
            return n, a, b, c, d, e
        c = 0
    if not strides[2]:
        b += 1
        if b < shape[2]:
            return n, a, b, c, d, e
        b = 0
    if not strides[1]:
        a += 1
        if a < shape[1]:
            return n, a, b, c, d, e
        a = 0
    return n, a, b, c, d, e


@kernel(BROADCAST, BROADCAST, units=lambda gy, gx: distinct_elements(gx))
def add_bwd(gy: Any, gx: Any) -> None:
    """Add gy to gx; both have one shape."""
    shape, strides = gx.shape, gx.strides
    apart = distinct_sizes(shape, strides)
    cells = product_of(apart)
    for i in range(cuda.grid(1), cells, cuda.gridsize(1)):
        at = index_of(i, apart)
        total = gx[at]
        for _ in range(gx.size // cells):
            total += gy[at]
            at = next_of_element(at, shape, strides)
        gx[at] = total


@kernel(BROADCAST, BROADCAST, BROADCAST, units=lambda gy, other, gx: distinct_elements(gx))
def mul_bwd(gy: Any, other: Any, gx: Any) -> None:
    """Add gy · other to gx; gy and gx have N·K rows, `other` N."""
    shape, strides = gx.shape, gx.strides
    apart = distinct_sizes(shape, strides)
    cells = product_of(apart)
    sharing = targets_of(gy, other)
    for i in range(cuda.grid(1), cells, cuda.gridsize(1)):
        at = index_of(i, apart)
        total = gx[at]
        for _ in range(gx.size // cells):
            n, a, b, c, d, e = at
            total += gy[at] * other[n // sharing, a, b, c, d, e]
            at = next_of_element(at, shape, strides)
        gx[at] = total
