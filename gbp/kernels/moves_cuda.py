"""Replacements of NumPy's functions on a card: copies, and sums and products of arrays.

Arrays have MOVED_AXES axes and any strides; a stride of 0 broadcasts.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from .codegen.jit import DENSE
from .codegen.jit_cuda import device_function, elements_of, kernel
from .codegen.simd_cuda import quotient

MOVED_AXES = 6
MOVED = types.Array(types.float32, MOVED_AXES, "A")


@device_function
def index_of(i: int, shape: Any) -> Any:
    """The index of element i in row-major order."""
    e = quotient(i, shape[5])
    d = quotient(e, shape[4])
    c = quotient(d, shape[3])
    b = quotient(c, shape[2])
    a = quotient(b, shape[1])
    return (
        a,
        b - a * shape[1],
        c - b * shape[2],
        d - c * shape[3],
        e - d * shape[4],
        i - e * shape[5],
    )


@kernel(MOVED, types.float32, units=lambda y, value: elements_of(y))
def fill(y: Any, value: float) -> None:
    """Write the value to all elements of y."""
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        y[index_of(i, y.shape)] = value


@kernel(DENSE, DENSE, units=lambda x, marks: elements_of(x))
def mark_not_finite(x: Any, marks: Any) -> None:
    """Write 1 to the mark of each sample of x that holds NaN or infinity; marks are (N,)."""
    each = x.size // marks.size
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        if x[i] - x[i] != 0:
            marks[i // each] = 1


@kernel(MOVED, MOVED, units=lambda x, y: elements_of(y))
def copy(x: Any, y: Any) -> None:
    """Write y = x."""
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        at = index_of(i, y.shape)
        y[at] = x[at]


@kernel(MOVED, MOVED, MOVED, units=lambda y, a, b: elements_of(y))
def add(y: Any, a: Any, b: Any) -> None:
    """Write y = a + b; y may be a or b."""
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        at = index_of(i, y.shape)
        y[at] = a[at] + b[at]


@kernel(MOVED, MOVED, MOVED, units=lambda y, a, b: elements_of(y))
def subtract(y: Any, a: Any, b: Any) -> None:
    """Write y = a − b; y may be a or b."""
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        at = index_of(i, y.shape)
        y[at] = a[at] - b[at]


@kernel(MOVED, MOVED, MOVED, units=lambda y, a, b: elements_of(y))
def multiply(y: Any, a: Any, b: Any) -> None:
    """Write y = a · b; y may be a or b."""
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        at = index_of(i, y.shape)
        y[at] = a[at] * b[at]
