"""Activations that pass through integers, in the QDQ format."""

from __future__ import annotations

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
    "quantized, opset 10": Case(qdq(np.uint8, 0.02, 120), opset=10, reference="is younger"),
}
