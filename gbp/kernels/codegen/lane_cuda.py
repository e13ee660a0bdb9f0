"""Formulas of vectors as formulas of one float32: a thread of a card is one lane.

Formulas that kernels of the CPU compose of `simd.py`'s operations are composed again of the operations here,
so that they are not written twice.
"""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any

import numpy as np

from .jit_cuda import device_function

# Each rounds its operands to float32, as vectors do with numbers.


@device_function
def zeros() -> Any:
    return np.float32(0)


@device_function
def broadcast(value: Any) -> Any:
    return np.float32(value)


@device_function
def above(a: Any, b: Any) -> Any:
    """Whether a > b; false if either is NaN."""
    return np.float32(a) > np.float32(b)


@device_function
def select(bit: Any, a: Any, b: Any) -> Any:
    return np.float32(a) if bit else np.float32(b)


@device_function
def fma(a: Any, b: Any, c: Any) -> Any:
    return np.float32(a) * np.float32(b) + np.float32(c)


@device_function
def polynomial(x: Any, coefficients: Any) -> Any:
    """c₀·xⁿ + c₁·xⁿ⁻¹ + … + cₙ."""
    total = np.float32(0)
    for c in coefficients:
        total = total * np.float32(x) + np.float32(c)
    return total


@device_function
def power_of_two(k: Any) -> Any:
    """2ᵏ for whole k in −126 … 127, given as the float 1.5·2²³ + k, whose last bits are k's."""
    exponent = ((np.float32(k).view(np.int32) & 255) + 127) & 255
    return np.int32(exponent << 23).view(np.float32)


@device_function
def square_root(a: Any) -> Any:
    return math.sqrt(np.float32(a)) if a >= 0 else np.float32(np.nan)


_OPERATIONS = {
    function.__name__: function
    for function in (zeros, broadcast, above, select, fma, polynomial, power_of_two, square_root)
}


def names_of_lane(module: Any) -> dict[str, Any]:
    """The global names of a module of formulas, with the values that they have for one lane."""
    names = dict(vars(module))
    for name, value in vars(module).items():
        if name in _OPERATIONS:
            names[name] = _OPERATIONS[name]
        elif isinstance(value, (float, tuple)):
            names[name] = _rounded(value)
        elif getattr(value, "py_func", None) and value.py_func.__module__ == module.__name__:
            names[name] = of_lane(value.py_func, name, names)
    return names


def of_lane(formula: Any, name: str, names: dict[str, Any]) -> Any:
    """A formula of vectors as a device function of one lane, with the same name."""
    code = formula.__code__
    # A Python number would turn float32 operands into doubles.
    code = code.replace(co_consts=tuple(map(_rounded, code.co_consts)))
    copy = FunctionType(code, names, name)
    copy.__qualname__ = name
    return device_function(copy)


def _rounded(value: Any) -> Any:
    """A number as float32; a tuple of numbers likewise; anything else unchanged."""
    if isinstance(value, tuple):
        return tuple(map(_rounded, value))
    return np.float32(value) if isinstance(value, float) else value
