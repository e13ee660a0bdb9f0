"""The kernels of `binary.py` on a card, from the same tables: one thread for each element, in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from .binary import CHOICES, SLOPES, SWITCHES, VALUES
from .broadcast import BROADCAST
from .broadcast_cuda import distinct_elements, distinct_sizes, next_of_element, product_of
from .codegen.jit import INT
from .codegen.jit_cuda import CudaKernel, device_copy, device_function, elements_of, kernel, kernel_from
from .codegen.simd_cuda import targets_of
from .moves_cuda import index_of

#: Kernels that `value_kernel`, `slope_kernel` and `choice_kernel` make → the function of two in them.
_VALUES = {f"{name.lower()}_fwd": f for name, f in VALUES.items()}
_SLOPES = {f"{name.lower()}_bwd{i}": f for name, pair in SLOPES.items() for i, f in enumerate(pair)}
_CHOICES = {f"{name.lower()}_choice": f for name, f in CHOICES.items()}


@cache
def __getattr__(name: str) -> CudaKernel:
    """The twin of a kernel that is made from a row of a table."""
    if name in _VALUES:
        return kernel_from(
            *(_binary_fwd, name, *(BROADCAST,) * 3),
            units=lambda a, b, y: elements_of(y),
            value=device_copy(_VALUES[name], f"{name}_value"),
        )
    if name in _SLOPES:
        return kernel_from(
            *(_binary_bwd, name, *(BROADCAST,) * 4),
            units=lambda gy, a, b, gx: distinct_elements(gx),
            slope=device_copy(_SLOPES[name], f"{name}_slope"),
        )
    if name in _CHOICES:
        return kernel_from(
            *(_choice_fwd, name, BROADCAST, BROADCAST, INT, BROADCAST, SWITCHES),
            units=lambda x, c, i, y, switches: elements_of(y),
            wins=device_copy(_CHOICES[name], f"{name}_wins"),
        )
    raise AttributeError(f"{__name__} has no kernel {name}")


#: Names in the templates below: entries of the tables.
value: Any = None
slope: Any = None
wins: Any = None


def _binary_fwd(a: Any, b: Any, y: Any) -> None:
    """Write y = f(a, b); y may be a or b."""
    share_a, share_b = targets_of(y, a), targets_of(y, b)
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        n, j, k, l, m, o = index_of(i, y.shape)
        left = np.float64(a[n // share_a, j, k, l, m, o])
        right = np.float64(b[n // share_b, j, k, l, m, o])
        y[n, j, k, l, m, o] = np.float32(value(left, right))


def _binary_bwd(gy: Any, a: Any, b: Any, gx: Any) -> None:
    """Add the slope at (a, b) times gy to gx, which has gy's shape."""
    shape, strides = gx.shape, gx.strides
    apart = distinct_sizes(shape, strides)
    cells = product_of(apart)
    share_a, share_b = targets_of(gy, a), targets_of(gy, b)
    for i in range(cuda.grid(1), cells, cuda.gridsize(1)):
        at = index_of(i, apart)
        total = gx[at]
        for _ in range(gx.size // cells):
            n, j, k, l, m, o = at
            left = np.float64(a[n // share_a, j, k, l, m, o])
            right = np.float64(b[n // share_b, j, k, l, m, o])
            total = np.float32(total + gy[at] * slope(left, right))
            at = next_of_element(at, shape, strides)
        gx[at] = total


@device_function
def _place(at: Any, shape: Any) -> Any:
    """The position of an element in its row."""
    return (((at[1] * shape[2] + at[2]) * shape[3] + at[3]) * shape[4] + at[4]) * shape[5] + at[5]


def _choice_fwd(x: Any, c: Any, i: int, y: Any, switches: Any) -> None:
    """Where x wins, write x to y and i to the switches."""
    share_x, share_c = targets_of(y, x), targets_of(y, c)
    for unit in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        at = index_of(unit, y.shape)
        n, j, k, l, m, o = at
        candidate = x[n // share_x, j, k, l, m, o]
        if wins(candidate, y[at], c[n // share_c, j, k, l, m, o]):
            y[at] = candidate
            switches[n, _place(at, y.shape)] = i


@kernel(BROADCAST, SWITCHES, INT, BROADCAST, units=lambda gy, switches, i, gx: distinct_elements(gx))
def chosen_bwd(gy: Any, switches: Any, i: int, gx: Any) -> None:
    """Add gy to gx where the switch is i; gy and gx have N·K rows, the switches N."""
    shape, strides = gx.shape, gx.strides
    apart = distinct_sizes(shape, strides)
    cells = product_of(apart)
    sharing = targets_of(gy, switches)
    for unit in range(cuda.grid(1), cells, cuda.gridsize(1)):
        at = index_of(unit, apart)
        total = gx[at]
        for _ in range(gx.size // cells):
            if switches[at[0] // sharing, _place(at, shape)] == i:
                total += gy[at]
            at = next_of_element(at, shape, strides)
        gx[at] = total
