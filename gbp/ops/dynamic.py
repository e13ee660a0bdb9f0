"""Activations with a scale of their own, and products of integers, as quantize_dynamic of onnxruntime writes.

    DynamicQuantizeLinear   s = (hi − lo) / 255,  z = round(−lo / s),  q = round(x / s) + z
                            lo, hi: the least and the greatest of x and 0
    MatMulInteger           (a − za) · (b − zb)                         ConvInteger likewise
    com.microsoft.DynamicQuantizeMatMul, MatMulIntegerToFloat           the product times both scales

Here y = (q − z) · s is computed in place of q, and s is 1 and z is 0; `importer/scales.py` checks that the
file multiplies by s what it made of q − z.  So the integer ops are MatMul and Conv.

ONNX takes lo and hi over all samples of a batch.  gbp takes them of each sample, as if it were alone.

    gx = gy        nothing saturates, because the range is that of x

The rounding is ignored, as in `quantize.py`.  Then how s depends on x does not matter: (x / s) · s is x.

Source: ONNX's operators; onnxruntime's ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from .facts import Fact
from .folded import as_inferred, as_operands
from .fused import copied
from .node import Node
from .step import Clipped, Context, Floats, GradientSlot, NumpyStep, Step
from .written import Rewriter, Writer

_LEVELS = np.float32(255)


@dataclass(frozen=True)
class QuantizeByRange(Op):
    """Rounds to 256 levels between the least and the greatest number of a sample, and 0."""

    is_straight_through = True

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return QuantizeByRangeStep()


def parse(node: Node) -> list[Any]:
    """Its scale and zero point are constants, which the importer knows."""
    node.shape(0)
    return [QuantizeByRange(), (), ()]


def _real(node: Node, w: Writer, index: int, zero: int, *shape: int) -> str:
    """The integers at `index` less the zero point at `zero`, whose numbers are put in `shape`."""
    name = str(node.proto.input[index])
    shift = node.constant_integers(zero).astype(np.float32) if node.has(zero) else np.zeros((), np.float32)
    shift = shift.reshape(()) if shift.size == 1 else shift.reshape(shape) if shift.ndim == 1 else shift
    if node.is_constant(index):
        values = node.constant_integers(index).astype(np.float32)
        try:
            shifted = values - shift
        except ValueError:
            shifted = values[:0]
        if shifted.shape != values.shape:
            node.invalid(f"a zero point of shape {list(shift.shape)} for integers of {list(values.shape)}.")
        return w.constant(shifted)
    return w.write("Sub", name, w.constant(shift)) if shift.any() else name


def matmul(node: Node, w: Writer) -> None:
    """A zero point for each row of the first factor, or for each column of the second."""
    w.write("MatMul", _real(node, w, 0, 2, -1, 1), _real(node, w, 1, 3, -1), to=node.proto.output[0])


def conv(node: Node, w: Writer) -> None:
    """A zero point for each output channel of the weights.  Padding is the zero point of x."""
    shape = node.operands[1].shape if node.is_constant(1) else node.shape(1)  # type: ignore[union-attr]
    if node.has(2) and node.constant_integers(2).size != 1:
        node.invalid("the zero point of x is no scalar.")
    weights = _real(node, w, 1, 3, -1, *[1] * (len(shape) - 1))
    copied(node, w, "Conv", _real(node, w, 0, 2), weights, to=node.proto.output[0])


def _product(node: Node, w: Writer, a: str, at: tuple[int, int], bias: int) -> None:
    """a times the second operand in floats, whose scale and zero point are `at`, and a bias."""
    operands = [node.proto.input[i] for i in (1, *at) if i < len(node.proto.input)]
    b = w.write("DequantizeLinear", *filter(None, operands), axis=-1)
    if node.has(bias):
        w.write("Add", w.write("MatMul", a, b), node.proto.input[bias], to=node.proto.output[0])
    else:
        w.write("MatMul", a, b, to=node.proto.output[0])


def quantized_matmul(node: Node, w: Writer) -> None:
    parts = [w.name(what) for what in (" quantized", " scale", " zero point")]
    w.nodes.append(helper.make_node("DynamicQuantizeLinear", node.proto.input[:1], parts, name=node.name))
    _product(node, w, w.write("DequantizeLinear", *parts), (2, 3), 4)


def matmul_to_float(node: Node, w: Writer) -> None:
    if node.is_constant(2) and node.operands[2].size != 1:  # type: ignore[union-attr]
        node.refuse("the scale of its first factor is no scalar.", supported="one scale")
    operands = [node.proto.input[i] for i in (0, 2, 4) if i < len(node.proto.input)]
    _product(node, w, w.write("DequantizeLinear", *filter(None, operands)), (3, 5), 6)


PARSERS = {"DynamicQuantizeLinear": parse}

REWRITERS: dict[str, Rewriter] = {
    "ConvInteger": conv,
    "MatMulInteger": matmul,
    "com.microsoft.DynamicQuantizeMatMul": quantized_matmul,
    "com.microsoft.MatMulIntegerToFloat": matmul_to_float,
}

FACTS = {
    "DynamicQuantizeLinear": Fact("kept", keeps_values=True, is_pixelwise=True, folds=as_operands),
    "ConvInteger": Fact("made", reads_planes=True, slides=True, folds=as_inferred),
    "MatMulInteger": Fact("read", folds=as_inferred),
    "com.microsoft.DynamicQuantizeMatMul": Fact("read", operands=(3, 5)),
    "com.microsoft.MatMulIntegerToFloat": Fact("read", operands=(4, 7)),
}


class QuantizeByRangeStep(NumpyStep):
    algorithm = "quantize by range"

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        for given, to in zip(x[0], y, strict=True):
            lo, hi = min(given.min(), np.float32(0)), max(given.max(), np.float32(0))
            scale = (hi - lo) / _LEVELS or np.float32(1)
            zero = np.rint(np.clip(-lo / scale, 0, _LEVELS))
            np.divide(given, scale, out=to)
            np.rint(to, out=to)
            np.clip(to, -zero, _LEVELS - zero, out=to)
            np.multiply(to, scale, out=to)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        gx[0].put(gy)
