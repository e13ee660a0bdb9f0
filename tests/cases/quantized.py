"""Activations that pass through integers, in the QDQ format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from builder import Builder

from .case import Case, Net, chain, conv, pool


def qdq(
    kind: Any, scale: float, zero: int | None = None, *, by: int | None = None, inside: Net | None = None
) -> Net:
    """QuantizeLinear, `inside`, DequantizeLinear; one scale and zero point for each index of axis `by`."""

    def net(b: Builder, x: str) -> str:
        size = () if by is None else (b.shapes[x][by],)
        scales = b.constant(b.rng.uniform(scale, 2 * scale, size))
        zeros = [] if zero is None else [b.constant(zero + b.rng.integers(0, 9, size), kind)]
        options = {} if by is None else {"axis": by}
        y = b.node("QuantizeLinear", x, scales, *zeros, **options)
        return b.node("DequantizeLinear", inside(b, y) if inside else y, scales, *zeros, **options)

    return net


Product = Callable[[Builder, str, str], str]


def by_range(product: Product | None = None) -> Net:
    """DynamicQuantizeLinear and DequantizeLinear; or a product of integers, a Cast and a Mul by scales."""

    def net(b: Builder, x: str) -> str:
        q, scale, zero = b.nodes("DynamicQuantizeLinear", x, outputs=3)
        if product is None:
            return b.node("DequantizeLinear", q, scale, zero)
        return b.mul(b.node("Cast", product(b, q, zero), to=1), b.mul(scale, b.constant(0.02)))

    return net


def conv_integer(b: Builder, q: str, zero: str) -> str:
    w = b.constant(b.rng.integers(0, 255, (4, b.shapes[q][1], 3, 2)), np.uint8)
    zeros = b.constant(b.rng.integers(99, 150, 4), np.uint8)
    return b.node("ConvInteger", q, w, zero, zeros, pads=[1, 0, 1, 1], strides=[2, 1])


def matmul_integer(b: Builder, q: str, zero: str) -> str:
    w = b.constant(b.rng.integers(-99, 99, (b.shapes[q][-1], 4)), np.int8)
    return b.node("MatMulInteger", q, w, zero, b.constant(b.rng.integers(-9, 9, 4), np.int8))


def by_scale(product: Product) -> Net:
    """QuantizeLinear, and as behind DynamicQuantizeLinear."""

    def net(b: Builder, x: str) -> str:
        scale, zero = b.constant(0.02), b.constant(120, np.uint8)
        q = b.node("QuantizeLinear", x, scale, zero)
        return b.mul(b.node("Cast", product(b, q, zero), to=1), b.mul(scale, b.constant(0.02)))

    return net


_OF_BATCH = "takes the range of all samples"

CASES: dict[str, Case] = {
    "quantized": Case(qdq(np.uint8, 0.01)),
    "quantized to int8": Case(qdq(np.int8, 0.05, 0)),
    "quantized around a zero point": Case(qdq(np.uint8, 0.02, 120)),
    # Few numbers: they are some 300 steps large, and the larger, the more often float32's x / scale rounds to
    # another integer than the float64 of the reference; with many numbers some would.
    "quantized and saturated": Case(qdq(np.int8, 0.003, -20), (2, 3, 5, 7)),
    "quantized by channel": Case(qdq(np.int8, 0.01, -5, by=1)),
    "quantized by row": Case(qdq(np.uint8, 0.01, 100, by=2)),
    "quantized behind a convolution": Case(chain(conv(6), qdq(np.uint8, 0.02, 120))),
    "quantized before a convolution": Case(chain(qdq(np.uint8, 0.02, 120), conv(6))),
    "quantized around a pool": Case(
        qdq(np.uint8, 0.02, 120, inside=pool("MaxPool", 2, 2, strides=(2, 2))),
        reference="pools no integers without a warning",
    ),
    "quantized (N, C)": Case(qdq(np.uint8, 0.02, 120), (3, 7)),
    "quantized by range": Case(by_range(), reference=_OF_BATCH),
    "quantized by range, convolved": Case(by_range(conv_integer), reference=_OF_BATCH),
    "quantized by range, multiplied": Case(by_range(matmul_integer), (2, 6, 5), reference=_OF_BATCH),
    "quantized by range, multiplied (N, C)": Case(by_range(matmul_integer), (2, 7), reference=_OF_BATCH),
    "quantized, convolved as integers": Case(by_scale(conv_integer)),
    "quantized, multiplied as integers": Case(by_scale(matmul_integer), (2, 6, 5)),
    "quantized, opset 10": Case(qdq(np.uint8, 0.02, 120), opset=10, reference="is younger"),
}
