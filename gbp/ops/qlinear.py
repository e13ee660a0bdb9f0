"""Ops of integers that stand for an op of floats between quantizers (ONNX's and onnxruntime's QLinear…).

    y = quantize(op(dequantize(a), dequantize(b), …))

So they are read as DequantizeLinear, the op and QuantizeLinear, as the QDQ format writes them.

QLinearConv, QLinearMatMul                                                           (ONNX)
QLinearAdd, QLinearMul, QLinearConcat, QLinearAveragePool, QLinearGlobalAveragePool,
QLinearLeakyRelu, QLinearWhere, QGemm                                                (com.microsoft)

com.microsoft.MatMulNBits multiplies floats by weights of a few bits, in blocks of a scale each: a MatMul.
QLinearSigmoid and QLinearSoftmax, which may be heads, are taken apart before: `importer/outputs.py`.

Source: ONNX's operators; onnxruntime's ContribOperators.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """Quantize what was made by the scale at `index` and the zero point behind it.

    Without that it is 0, of the type of the first operand's.
    """
    scale, zero = (*node.proto.input[index : index + 2], "")[:2]
    if not zero:
        if not node.is_constant(2):
            node.refuse(
                "neither its operand nor its result has a zero point.", supported="one: it says the type"
            )
        zero = w.constant(np.zeros((), node.constant_integers(2).dtype))
    w.write("QuantizeLinear", made, scale, zero, to=node.proto.output[0])


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
    if node.integer("ceil_mode", 0) and node.integer("count_include_pad", 0):
        # Where a window ends behind the pads, onnxruntime divides by another number than AveragePool.
        node.refuse("ceil_mode and count_include_pad are 1.", supported="one of them")
    _quantized(node, w, copied(node, w, op, _real(node, w, 0), without=("channels_last",)), 3)


def where(node: Node, w: Writer) -> None:
    _quantized(node, w, w.write("Where", node.proto.input[0], _real(node, w, 1), _real(node, w, 4)), 7)


def concat(node: Node, w: Writer) -> None:
    parts = [_real(node, w, index) for index in range(2, len(node.proto.input), 3)]
    _quantized(node, w, copied(node, w, "Concat", *parts), 0)


def matmul_of_bits(node: Node, w: Writer) -> None:
    """Numbers of 2, 4 or 8 bits, the first in the lowest; a row for each output, block after block."""
    K, N, bits = (node.integer(name, default) for name, default in (("K", 0), ("N", 0), ("bits", 4)))
    size = node.integer("block_size", 0)
    node.ignore("accuracy_level")
    if bits not in (2, 4, 8) or node.has(4):
        node.refuse(f"its weights have {bits} bits, or an order.", supported="2, 4 or 8 bits, in their order")
    packed, scales = node.constant(1, np.uint8), node.constant(2).reshape(-1)
    blocks = -(-K // size) if size > 0 else 0
    is_whole = size * bits % 8 == 0 and packed.size * 8 == N * blocks * size * bits
    if min(K, N, blocks) < 1 or not is_whole or scales.size != N * blocks:
        node.invalid(f"{packed.size} bytes and {scales.size} scales are no {N} rows of {blocks} blocks.")
    zeros = np.full((N, blocks, 1), 1 << (bits - 1), np.float32)
    if node.has(3) and node.is_constant(3) and node.operands[3].dtype.kind == "f":  # type: ignore[union-attr]
        zeros = _fitting(node, node.constant(3), N * blocks).reshape(N, blocks, 1)
    elif node.has(3):
        rows = _fitting(node, node.constant(3, np.uint8), N * -(-blocks * bits // 8)).reshape(N, -1)
        zeros = _unpacked(rows, bits)[:, :blocks, None]
    values = (_unpacked(packed.reshape(N, blocks, -1), bits) - zeros) * scales.reshape(N, blocks, 1)
    weights = w.constant(values.reshape(N, -1)[:, :K].T)
    if node.has(5):
        made = w.write("MatMul", node.proto.input[0], weights)
        w.write("Add", made, node.proto.input[5], to=node.proto.output[0])
    else:
        w.write("MatMul", node.proto.input[0], weights, to=node.proto.output[0])


def _fitting(node: Node, zeros: NDArray[Any], count: int) -> NDArray[Any]:
    if zeros.size != count:
        node.invalid(f"{zeros.size} zero points, expected {count}.")
    return zeros


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    """The numbers in the bytes of the last axis."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1).astype(np.float32)


_OF_ONE = ("AveragePool", "GlobalAveragePool", "LeakyRelu")

REWRITERS: dict[str, Rewriter] = {
    "QLinearConv": conv,
    "QLinearMatMul": partial(_of_two, "MatMul"),
    "com.microsoft.MatMulNBits": matmul_of_bits,
    "com.microsoft.QGemm": gemm,
    "com.microsoft.QLinearAdd": partial(_of_two, "Add"),
    "com.microsoft.QLinearConcat": concat,
    "com.microsoft.QLinearMul": partial(_of_two, "Mul"),
    "com.microsoft.QLinearWhere": where,
    **{f"com.microsoft.QLinear{op}": partial(_of_one, op) for op in _OF_ONE},
}

FACTS = {
    "QLinearConv": Fact("made", reads_planes=True, slides=True, folds=as_inferred),
    "QLinearMatMul": Fact("read", folds=as_inferred),
    "com.microsoft.MatMulNBits": Fact("read", operands=(3, 6)),
    "com.microsoft.QGemm": Fact("read", operands=(6, 9)),
    "com.microsoft.QLinearConcat": Fact("kept", operands=(5, 2**31)),
    **dict.fromkeys(
        ("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul"),
        Fact("kept", operands=(7, 8)),
    ),
    "com.microsoft.QLinearAveragePool": Fact("read", operands=(4, 5)),
    "com.microsoft.QLinearGlobalAveragePool": Fact("read", operands=(5, 5)),
    "com.microsoft.QLinearWhere": Fact("other", operands=(9, 9)),
    "com.microsoft.QLinearLeakyRelu": Fact("kept", operands=(4, 5), optional=(2,)),
}
