"""Quantization whose rounding passes gradients straight through."""

from __future__ import annotations

import numpy as np
from naive import Array

from .node import Kinked, Node, Operand, Operator, Vjp, margin


def _along(n: Node, x: Array, values: Array) -> Array:
    axis = n.get("axis", 1)
    return values if values.size == 1 else values.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def quantize(n: Node, x: Array, scale: Array, zero: Operand = None) -> tuple[Array, Kinked]:
    range_ = np.iinfo(np.uint8 if zero is None else zero.dtype)
    step, shift = _along(n, x, scale), _along(n, x, np.zeros(1) if zero is None else np.float64(zero))
    whole = np.round(x / step) + shift
    inside = (whole >= range_.min) & (whole <= range_.max)
    from_half = np.abs(x / step - np.floor(x / step) - 0.5)
    return whole.clip(range_.min, range_.max), Kinked(
        lambda gy: [gy / step * inside], lambda: margin(from_half, x / step)
    )


def dequantize(n: Node, x: Array, scale: Array, zero: Operand = None) -> tuple[Array, Vjp]:
    step, shift = _along(n, x, scale), _along(n, x, np.zeros(1) if zero is None else np.float64(zero))
    return (x - shift) * step, lambda gy: [gy * step]


OPERATORS: dict[str, Operator] = {"QuantizeLinear": quantize, "DequantizeLinear": dequantize}
