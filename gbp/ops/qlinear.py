"""Ops of integers that stand for an op of floats between quantizers (ONNX's and onnxruntime's QLinear…).

    y = quantize(op(dequantize(a), dequantize(b), …))

So they are read as DequantizeLinear, the op and QuantizeLinear, as the QDQ format writes them.

QLinearConv, QLinearMatMul                                                           (ONNX)
QLinearAdd, QLinearMul, QLinearConcat, QLinearAveragePool, QLinearGlobalAveragePool,
QLinearLeakyRelu, QGemm                                                              (com.microsoft)

QLinearSigmoid and QLinearSoftmax, which may be heads, are taken apart before: `importer/outputs.py`.

Source: ONNX's operators; onnxruntime's ContribOperators.md.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .facts import Fact
from .folded import as_inferred
from .fused import copied
from .node import Node
from .written import Rewriter, Writer


def _real(node: Node, w: Writer, index: int, axis: int = 1) -> str:
    """The operand at `index`, whose scale and zero point follow, in floats.

    `axis` is the one along which a scale may differ.
    """
    return w.write("DequantizeLinear", *filter(None, node.proto.input[index : index + 3]), axis=axis)


def _quantized(node: Node, w: Writer, made: str, index: int) -> None:
    """Quantize what was made by the scale at `index` and the zero point behind it."""
    if not node.has(index + 1):
        node.refuse("its result has no zero point.", supported="one, which says the type")
    w.write("QuantizeLinear", made, *node.proto.input[index : index + 2], to=node.proto.output[0])


def _bias(node: Node, w: Writer, index: int, x: int, weights: int) -> str:
    """The bias at `index`, of 32 bits, in floats: its scale is that of x times that of the weights."""
    scale = (node.constant(x) * node.constant(weights)).reshape(-1)
    return w.write("DequantizeLinear", node.proto.input[index], w.constant(scale), axis=0)


def conv(node: Node, w: Writer) -> None:
    operands = [_real(node, w, 0), _real(node, w, 3, axis=0)]
    if node.has(8):
        operands.append(_bias(node, w, 8, 1, 4))
    _quantized(node, w, copied(node, w, "Conv", *operands), 6)


def gemm(node: Node, w: Writer) -> None:
    """alpha multiplies the bias as well, which is added to the integers of the product."""
    by_column = 0 if node.integer("transB", 0) else 1
    operands = [_real(node, w, 0), _real(node, w, 3, axis=by_column)]
    if node.has(6):
        alpha = w.constant(np.float32(node.number("alpha", 1.0)))
        operands.append(w.write("Mul", _bias(node, w, 6, 1, 4), alpha))
    made = copied(node, w, "Gemm", *operands)
    if node.has(7):
        _quantized(node, w, made, 7)
    else:
        w.write("Identity", made, to=node.proto.output[0])


def _of_two(op: str, node: Node, w: Writer) -> None:
    made = w.write(op, _real(node, w, 0), _real(node, w, 3, axis=-1))
    _quantized(node, w, made, 6)


def _of_one(op: str, node: Node, w: Writer) -> None:
    if node.integer("channels_last", 0):
        node.refuse("channels_last is 1.", supported="0")
    _quantized(node, w, copied(node, w, op, _real(node, w, 0), without=("channels_last",)), 3)


def concat(node: Node, w: Writer) -> None:
    parts = [_real(node, w, index) for index in range(2, len(node.proto.input), 3)]
    _quantized(node, w, copied(node, w, "Concat", *parts), 0)


_OF_ONE = ("AveragePool", "GlobalAveragePool", "LeakyRelu")

REWRITERS: dict[str, Rewriter] = {
    "QLinearConv": conv,
    "QLinearMatMul": partial(_of_two, "MatMul"),
    "com.microsoft.QGemm": gemm,
    "com.microsoft.QLinearAdd": partial(_of_two, "Add"),
    "com.microsoft.QLinearConcat": concat,
    "com.microsoft.QLinearMul": partial(_of_two, "Mul"),
    **{f"com.microsoft.QLinear{op}": partial(_of_one, op) for op in _OF_ONE},
}

FACTS = {
    "QLinearConv": Fact("made", reads_planes=True, slides=True, folds=as_inferred),
    "QLinearMatMul": Fact("other", folds=as_inferred),
    "com.microsoft.QGemm": Fact("other", operands=(6, 9)),
    "com.microsoft.QLinearConcat": Fact("kept", operands=(5, 2**31)),
    **dict.fromkeys(("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul"), Fact("kept", operands=(8, 8))),
    **{f"com.microsoft.QLinear{op}": Fact("other", operands=(5, 5)) for op in _OF_ONE},
}
