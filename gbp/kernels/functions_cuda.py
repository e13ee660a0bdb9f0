"""The kernels of `functions.py` on a card, from the same table: one thread for each element."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from . import formulas
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, FLOAT, INT
from .codegen.jit_cuda import (
    SIMULATED,
    CudaKernel,
    device_copy,
    device_function,
    elements_of,
    kernel_from,
)
from .codegen.lane_cuda import names_of_lane, of_lane
from .codegen.numba_private import libdevice
from .codegen.simd_cuda import at_pixel, targets_of, write_gradient
from .formulas import NUMBERS, VECTORS
from .functions import BY_PLACE

_library: Any = np if SIMULATED else libdevice()
#: Functions of `NUMBERS` that come from NumPy, which Numba does not offer on cards.
_OWN: dict[str, Any] = {
    "Sign": lambda x, p, q: x if x == 0 or math.isnan(x) else math.copysign(1.0, x),
    "Floor": lambda x, p, q: _library.floor(x),
    "Ceil": lambda x, p, q: _library.ceil(x),
    "Round": lambda x, p, q: _library.rint(x),
}
_FUNCTIONS = {name.lower(): name for name in (*VECTORS, *NUMBERS, *BY_PLACE)}
_NAMES = names_of_lane(formulas)


def __getattr__(name: str) -> CudaKernel:
    """The twin of a kernel that `function_kernels` makes."""
    function, _, way = name.rpartition("_")
    if function not in _FUNCTIONS or way not in ("fwd", "bwd"):
        raise AttributeError(f"{__name__} has no kernel {name}")
    return _twin(_FUNCTIONS[function], way)


@cache
def _twin(function: str, way: str) -> CudaKernel:
    name = f"{function.lower()}_{way}"
    row = BY_PLACE.get(function, function)
    value, slope = VECTORS.get(row) or NUMBERS[row]
    formula = _OWN.get(function, value) if way == "fwd" else slope
    f: Any
    number: Any
    if row in VECTORS:
        f, number = of_lane(formula, f"{name}_formula", _NAMES), np.float32
    else:
        f, number = device_copy(formula, f"{name}_formula"), np.float64
    by_place = function in BY_PLACE
    given = ACTIVATION, ACTIVATION if by_place else FLOAT, FLOAT
    parameter = _of_place if by_place else _same
    if way == "fwd":
        return kernel_from(
            *(_fwd, name, *given, ACTIVATION),
            units=lambda *args: elements_of(args[3]),
            value=f,
            number=number,
            parameter=parameter,
        )
    return kernel_from(
        *(_bwd, name, ACTIVATION, *given, MASK, GATE, ACTIVATION, INT),
        units=lambda *args: elements_of(args[6]),
        slope=f,
        number=number,
        parameter=parameter,
    )


@device_function
def _same(p: float, h: int, w: int, c: int) -> float:
    return p


@device_function
def _of_place(p: Any, h: int, w: int, c: int) -> Any:
    return p[0, h, w, c]


#: Names in the templates below: the row of a table, the type that it computes with, and p of one place.
value: Any = None
slope: Any = None
number: Any = None
parameter: Any = None


def _fwd(x: Any, p: Any, q: float, y: Any) -> None:
    """Write y = f(x)."""
    N, H, W, C = y.shape
    for i in range(cuda.grid(1), N * H * W * C, cuda.gridsize(1)):
        n, h, w = at_pixel(i // C, H, W)
        c = i % C
        p_here = parameter(p, h, w, c)
        y[n, h, w, c] = value(number(x[n, h, w, c]), number(p_here), number(q))


def _bwd(gy: Any, x: Any, p: Any, q: float, mask: Any, gate: Gate, gx: Any, accumulate: int) -> None:
    """Write f'(x) · gy to gx, added to gx with `accumulate`; then apply the gate."""
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, x), targets_of(gy, mask)
    for i in range(cuda.grid(1), N * H * W * C, cuda.gridsize(1)):
        n, h, w = at_pixel(i // C, H, W)
        c = i % C
        p_here = parameter(p, h, w, c)
        v = gy[n, h, w, c] * slope(number(x[n // sharing, h, w, c]), number(p_here), number(q))
        write_gradient(v, c, gate, accumulate, gx, (n, h, w), mask, (n // targets, h, w))
