"""Quantized activations between QuantizeLinear and DequantizeLinear (ONNX; the QDQ format).

    QuantizeLinear     y = min(max(round(x / scale) + zero, lo), hi)     gx = gy / scale where not clipped
    DequantizeLinear   y = (x − zero) · scale                            gx = gy · scale

The gradient of rounding is 0 almost everywhere, so the rounding is ignored in the backward pass: the
straight-through estimator (Bengio et al. 2013).  The integers between the two ops are whole float32 numbers,
so that other ops can read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..limits import elements
from .dtypes import type_name
from .facts import Fact
from .folded import Constants, Cost, makes
from .node import Node
from .shape import Reshape
from .step import Clipped, Context, Floats, GradientSlot, NumpyStep, Step

#: Ranges of the integer types that a float32 holds exactly.
_RANGES = {
    f"{sign}INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if not sign else (0, 2**bits - 1)
    for sign in ("", "U")
    for bits in (4, 8, 16)
}


@dataclass(frozen=True, eq=False)
class _Linear(Op):
    """`scale` and `zero` broadcast to x and have its rank."""

    scale: NDArray[np.float32]
    zero: NDArray[np.float32]

    def _physical(self, order: Order) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.scale.transpose(0, *order), self.zero.transpose(0, *order)


@dataclass(frozen=True, eq=False)
class Quantize(_Linear):
    """Rounds to whole numbers from `lo` to `hi`."""

    lo: int
    hi: int

    is_straight_through = True

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return QuantizeStep(*self._physical(order), self.lo, self.hi, tuple(x[0][axis] for axis in order))


@dataclass(frozen=True, eq=False)
class Dequantize(_Linear):
    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return DequantizeStep(*self._physical(order), elements(x[0][1:]))


def _along(node: Node, values: NDArray[Any]) -> NDArray[np.float32]:
    """A scalar, or one value for each index of `axis`, shaped to broadcast to x."""
    shape = node.shape(0)
    axis = node.axis(node.integer("axis", 1), len(shape))
    if values.size == 1:
        return values.reshape((1,) * len(shape)).astype(np.float32)
    if values.shape != (shape[axis],) or axis == 0:
        node.refuse(
            f"scale or zero point of shape {list(values.shape)} for x of shape {list(shape)}.",
            supported="a scalar, or one value for each index of an axis that is not the batch",
        )
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))]).astype(np.float32)


def _scale(node: Node) -> NDArray[np.float32]:
    scale = node.constant(1)
    if not (scale > 0).all():
        node.refuse("a scale is not positive.")
    if node.integer("block_size", 0):
        node.refuse("it quantizes by blocks.", supported="one scale, or one for each channel")
    node.ignore("saturate", "precision")
    return _along(node, scale)


def parse_quantize(node: Node) -> Op:
    kind = int(onnx.TensorProto.UINT8)
    if node.has(2):
        zero = node.constant_integers(2)
        kind = int(onnx.helper.np_dtype_to_tensor_dtype(zero.dtype))
    kind = node.integer("output_dtype", 0) or kind
    name = type_name(kind)
    if name not in _RANGES:
        node.refuse(f"it quantizes to {name}.", supported=", ".join(sorted(_RANGES)))
    lo, hi = _RANGES[name]
    scale = _scale(node)
    zeros = _along(node, zero) if node.has(2) else np.zeros_like(scale)
    return Quantize(scale, zeros, lo, hi)


def parse_dequantize(node: Node) -> Op:
    scale = _scale(node)
    zero = _along(node, node.constant_integers(2)) if node.has(2) else np.zeros_like(scale)
    if (scale == 1).all() and not zero.any():
        return Reshape(node.shape(0))
    return Dequantize(scale, zero)


PARSERS = {"QuantizeLinear": parse_quantize, "DequantizeLinear": parse_dequantize}


def _folded(given: Constants) -> Cost:
    """The result has the shape of the first operand, in float32 or in less."""
    return makes(given, float(given.values[0].size))._replace(width=4)


FACTS = dict.fromkeys(PARSERS, Fact("kept", keeps_values=True, folds=_folded))


class QuantizeStep(NumpyStep):
    """`row`: the physical shape of one sample."""

    algorithm = "quantize"
    saves_x = True

    def __init__(self, scale: Floats, zero: Floats, lo: int, hi: int, row: Shape) -> None:
        super().__init__((1, *row), (1, *row))
        self.scale, self.zero, self.lo, self.hi = scale, zero, lo, hi

    def _rounded(self, x: Floats, y: Floats) -> None:
        np.divide(x, self.scale, out=y)
        np.rint(y, out=y)
        np.add(y, self.zero, out=y)

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        self._rounded(x[0], y)
        np.clip(y, self.lo, self.hi, out=y)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (x,) = context.x
        whole, inside = self.temporaries(context)
        targets = len(gy) // len(x)
        for row in range(len(gy)):
            if row % targets == 0:
                self._rounded(x[row // targets : row // targets + 1], whole)
                np.clip(whole, self.lo, self.hi, out=inside)
                np.subtract(whole, inside, out=whole)  # how far the clip moves it
                np.equal(whole, 0, out=inside)
            g = whole  # its numbers are not needed any more
            np.divide(gy[row : row + 1], self.scale, out=g)
            np.multiply(g, inside, out=g)
            gx[0].rows(row, row + 1).put(g)


class DequantizeStep(Step):
    algorithm = "dequantize"

    def __init__(self, scale: Floats, zero: Floats, size: int) -> None:
        self.scale, self.zero, self.size = scale, zero, size

    def scratch(self, threads: int) -> tuple[int, int]:
        return self.size, 0

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        np.subtract(x[0], self.zero, out=y)
        np.multiply(y, self.scale, out=y)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        gx[0].put_product(gy, self.scale, context.scratch)
