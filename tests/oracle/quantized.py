"""Quantization whose rounding passes gradients straight through."""

from __future__ import annotations

import numpy as np
from naive import Array

from . import classic
from .node import Kinked, Node, Operand, Operator, Vjp, margin


def _along(n: Node, x: Array, values: Array) -> Array:
    axis = n.get("axis", 1)
    return (
        values
        if values.size == 1 or values.ndim == x.ndim
        else values.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    )


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


def quantize_by_range(n: Node, x: Array) -> tuple[list[Array], Kinked]:
    """Scales and zero points are of each sample, and are held: no gradient goes through them."""
    axes = tuple(range(1, x.ndim))
    lo, hi = np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0)
    step = np.where(lo == hi, 1, hi - lo) / 255
    zero = np.round(-lo / step)
    whole = (np.round(x / step) + zero).clip(0, 255)
    exact = np.concatenate([(x / step).reshape(-1), (lo / step).reshape(-1)])
    from_half = np.abs(exact - np.floor(exact) - 0.5)
    return [whole, step, zero], Kinked(lambda gq, gs, gz: [gq / step], lambda: margin(from_half, exact))


def _less(w: Array, zero: Operand) -> Array:
    """Weights less a zero point for each output channel."""
    return np.float64(w) - (0 if zero is None else np.reshape(zero, [-1] + [1] * (w.ndim - 1)))


def conv_integer(
    n: Node, x: Array, w: Array, zero: Operand = None, others: Operand = None
) -> tuple[Array, Vjp]:
    return classic.conv(n, x - (0 if zero is None else np.float64(zero)), _less(w, others))


def matmul_integer(
    n: Node, a: Array, b: Array, zero: Operand = None, others: Operand = None
) -> tuple[Array, Vjp]:
    shifted = np.float64(b) - (0 if others is None else np.float64(others))
    return classic.matmul(n, a - (0 if zero is None else np.float64(zero)), shifted)


OPERATORS: dict[str, Operator] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": quantize_by_range,
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
}
