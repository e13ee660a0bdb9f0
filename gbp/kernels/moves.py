"""Copies between memory orders, on the CPU.

y[a, b, c, d]  = x[a, b, c, d]        x and y of any strides
"""

from __future__ import annotations

from typing import Any

from numba import types

from .codegen.emit import LANES
from .codegen.jit import INT, kernel
from .codegen.packing import Share
from .codegen.simd import at, load_scalar, load_some, store_scalar, store_some
from .codegen.work import part_of

#: Four axes with any strides.
STRIDED = types.Array(types.float32, 4, "A")


@kernel(STRIDED, STRIDED, INT, INT)
def reorder(x: Any, y: Any, accumulate: int, threads: int, share: Share) -> None:
    """Write x to y of the same shape, or add it with `accumulate`.  Threads share the first three axes."""
    A, B, C, D = y.shape
    x_step, y_step = x.strides[3], y.strides[3]
    dense = x_step == 4 and y_step == 4
    runs = A * B * C
    for run in range(*part_of(runs, share, threads)):
        row = run // C
        a, b, c = row // B, row % B, run % C
        xa, ya = at(x, a, b, c), at(y, a, b, c)
        if dense:
            for d in range(0, D, LANES):
                v = load_some(xa + 4 * d, D - d)
                if accumulate:
                    v = v + load_some(ya + 4 * d, D - d)
                store_some(ya + 4 * d, v, D - d)
        else:
            for _ in range(D):
                value = load_scalar(xa)
                if accumulate:
                    value = value + load_scalar(ya)
                store_scalar(ya, value)
                xa, ya = xa + x_step, ya + y_step
