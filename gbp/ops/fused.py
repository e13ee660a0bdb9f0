"""Ops of onnxruntime, WinML and TensorFlow that stand for several ONNX ops, or for one under another name.

com.microsoft.FusedConv       act(Conv(x, w, b) + z)
com.microsoft.FusedGemm       act(α · A · B + β · C)
com.microsoft.FusedMatMul     α · A · B, either transposed; once TransposeMatMul
com.microsoft.Gelu, BiasGelu, FastGelu, QuickGelu          x Φ(x), Φ or its tanh or x σ(αx), behind a bias
com.microsoft.SkipLayerNormalization                       LayerNormalization(x + skip + bias)
SimplifiedLayerNormalization                               RMSNormalization(x)
com.microsoft.SkipSimplifiedLayerNormalization             RMSNormalization(x + skip + bias)
com.microsoft.QuantizeLinear, DequantizeLinear             as ONNX's, with 16 bits before opset 21
com.microsoft.GridSample, Trilu                            as ONNX's, before opsets 16 and 14
ai.onnx.ml.Scaler             (x − offset) · scale by feature
Crop, DynamicSlice            a Slice             (opset 1, experimental)
ScaledTanh                    α tanh(β x)         (opset 1, experimental)
ParametricSoftplus            α log(1 + exp β x)  (opset 1, experimental)
Erfc, Expm1, Log1p            1 − erf x, exp x − 1, log(1 + x)      (TensorFlow's, which tf2onnx leaves)

Source: onnxruntime's ContribOperators.md; ONNX 1.2's schemas of experimental ops.
"""

from __future__ import annotations

import numpy as np

from .facts import Fact
from .node import Node
from .written import Rewriter, Writer


def copied(node: Node, w: Writer, op: str, *inputs: str, without: tuple[str, ...] = (), to: str = "") -> str:
    """An ONNX node with the same attributes, except some."""
    made = w.write(op, *inputs, to=to)
    node.ignore(*(attribute.name for attribute in node.proto.attribute))
    w.nodes[-1].attribute.extend(a for a in node.proto.attribute if a.name not in without)
    return made


def _activated(node: Node, w: Writer, x: str, parameters: tuple[float, ...]) -> None:
    """Apply the activation that the node names to x."""
    name, to = node.text("activation", ""), node.proto.output[0]
    if name == "":
        w.write("Identity", x, to=to)
    elif name in ("Relu", "Tanh", "Sigmoid"):
        w.write(name, x, to=to)
    elif name == "LeakyRelu" and len(parameters) == 1:
        w.write(name, x, to=to, alpha=parameters[0])
    elif name == "HardSigmoid" and len(parameters) == 2:
        w.write(name, x, to=to, alpha=parameters[0], beta=parameters[1])
    elif name == "Clip" and len(parameters) == 2:
        if w.opset < 11:
            w.write(name, x, to=to, min=parameters[0], max=parameters[1])
        else:
            w.write(name, x, *(w.constant(np.float32(v)) for v in parameters), to=to)
    else:
        node.refuse(
            f"activation is {name!r} with {len(parameters)} parameters.",
            supported="Relu, Tanh, Sigmoid, LeakyRelu, HardSigmoid, Clip",
        )


def fused_conv(node: Node, w: Writer) -> None:
    names = [*node.proto.input, *[""] * (4 - len(node.proto.input))]
    inputs = [name for name in names[:3] if name]
    made = copied(node, w, "Conv", *inputs, without=("activation", "activation_params"))
    if names[3]:
        made = w.write("Add", made, names[3])
    _activated(node, w, made, node.numbers("activation_params", ()))


def fused_gemm(node: Node, w: Writer) -> None:
    own = ("activation", "activation_alpha", "activation_beta", "activation_gamma")
    made = copied(node, w, "Gemm", *filter(None, node.proto.input), without=own)
    given = {attribute.name for attribute in node.proto.attribute}
    parameters = tuple(node.number(name, 0.0) for name in own[1:] if name in given)
    _activated(node, w, made, parameters)


def _swapped(node: Node, w: Writer, index: int) -> str:
    """Operand `index` with its last two axes swapped."""
    operand = node.operands[index]
    rank = operand.ndim if isinstance(operand, np.ndarray) else len(node.shape(index))
    if rank < 2:
        return str(node.proto.input[index])
    perm = (*range(rank - 2), rank - 1, rank - 2)
    return w.write("Transpose", node.proto.input[index], perm=perm)


def fused_matmul(node: Node, w: Writer) -> None:
    if node.integer("transBatchA", 0) or node.integer("transBatchB", 0):
        node.refuse("transBatchA or transBatchB is set.", supported="0")
    a, b = (
        _swapped(node, w, i) if node.integer(name, 0) else str(node.proto.input[i])
        for i, name in enumerate(("transA", "transB"))
    )
    alpha = node.number("alpha", 1.0)
    if alpha == 1.0:
        w.write("MatMul", a, b, to=node.proto.output[0])
    else:
        w.write("Mul", w.write("MatMul", a, b), w.constant(np.float32(alpha)), to=node.proto.output[0])


def _gelu(x: str, w: Writer, to: str, tanh: bool) -> None:
    """GELU in parts, which a pass recognises.  ONNX has the op since opset 20 only."""
    if w.opset >= 20:
        w.write("Gelu", x, to=to, approximate="tanh" if tanh else "none")
        return
    half = w.constant(np.float32(0.5))
    if tanh:
        cubed = w.write("Mul", w.write("Mul", x, x), x)
        inside = w.write("Add", x, w.write("Mul", cubed, w.constant(np.float32(0.044715))))
        inside = w.write("Mul", inside, w.constant(np.float32(np.sqrt(2 / np.pi))))
        curve = w.write("Tanh", inside)
    else:
        curve = w.write("Erf", w.write("Div", x, w.constant(np.float32(np.sqrt(2)))))
    share = w.write("Add", curve, w.constant(np.float32(1)))
    w.write("Mul", w.write("Mul", x, share), half, to=to)


def gelu(node: Node, w: Writer) -> None:
    x, *bias = filter(None, node.proto.input)
    if bias:
        x = w.write("Add", x, bias[0])
    _gelu(x, w, node.proto.output[0], tanh=node.op == "FastGelu")


def quick_gelu(node: Node, w: Writer) -> None:
    x, alpha = node.proto.input[0], node.number("alpha", 1.702)
    inside = w.write("Mul", x, w.constant(np.float32(alpha)))
    w.write("Mul", x, w.write("Sigmoid", inside), to=node.proto.output[0])


def skip_norm(node: Node, w: Writer) -> None:
    """A norm over the last axis, of a sum that later nodes may read (output 3)."""
    is_rms = node.op == "SkipSimplifiedLayerNormalization"
    names = [*node.proto.input, *[""] * (5 - len(node.proto.input))]
    x, skip, gamma = names[:3]
    beta, bias = ("", names[3]) if is_rms else names[3:5]
    total = w.write("Add", x, skip)
    if bias:
        total = w.write("Add", total, bias)
    w.write(
        "RMSNormalization" if is_rms else "LayerNormalization",
        *filter(None, (total, gamma, beta)),
        to=node.proto.output[0],
        axis=-1,
        epsilon=node.number("epsilon", 1e-12),
    )
    if len(node.proto.output) > 3 and node.proto.output[3]:
        w.write("Identity", total, to=node.proto.output[3])


def scaler(node: Node, w: Writer) -> None:
    """By feature, which is the last axis; one number for all, or none."""
    offset, scale = node.numbers("offset", (0.0,)), node.numbers("scale", (1.0,))
    shifted = w.write("Sub", node.proto.input[0], w.constant(np.array(offset, np.float32)))
    w.write("Mul", shifted, w.constant(np.array(scale, np.float32)), to=node.proto.output[0])


def _slice(w: Writer, x: str, starts: list[int], ends: list[int], axes: list[int], to: str) -> None:
    if w.opset < 10:
        w.write("Slice", x, to=to, starts=starts, ends=ends, axes=axes)
    else:
        w.write("Slice", x, *(w.constant(np.array(v, np.int64)) for v in (starts, ends, axes)), to=to)


def crop(node: Node, w: Writer) -> None:
    """`border` = (left, top, right, bottom) goes; with `scale` = (height, width) so much stays from there."""
    shape = node.shape(0, rank=4)
    border, scale = node.integers("border", (0, 0, 0, 0)), node.integers("scale")
    if len(border) != 4 or min(border) < 0 or (scale is not None and len(scale) != 2):
        node.invalid(f"border {border}, scale {scale} do not crop an image.")
    left, top, right, bottom = border
    ends = [shape[2] - bottom, shape[3] - right]
    if scale is not None:
        ends = [top + scale[0], left + scale[1]]
    if not (top < ends[0] <= shape[2] and left < ends[1] <= shape[3]):
        node.invalid(f"border {border}, scale {scale} do not fit {list(shape)}.")
    _slice(w, node.proto.input[0], [top, left], ends, [2, 3], node.proto.output[0])


def dynamic_slice(node: Node, w: Writer) -> None:
    starts, ends = list(node.constant_ints(1)), list(node.constant_ints(2))
    axes = list(node.constant_ints(3)) if node.has(3) else list(range(len(starts)))
    _slice(w, node.proto.input[0], starts, ends, axes, node.proto.output[0])


def scaled_tanh(node: Node, w: Writer) -> None:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    inside = w.write("Mul", node.proto.input[0], w.constant(np.float32(beta)))
    w.write("Mul", w.write("Tanh", inside), w.constant(np.float32(alpha)), to=node.proto.output[0])


def parametric_softplus(node: Node, w: Writer) -> None:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    inside = w.write("Mul", node.proto.input[0], w.constant(np.float32(beta)))
    w.write("Mul", w.write("Softplus", inside), w.constant(np.float32(alpha)), to=node.proto.output[0])


def erfc(node: Node, w: Writer) -> None:
    w.write("Sub", w.constant(np.float32(1)), w.write("Erf", node.proto.input[0]), to=node.proto.output[0])


def expm1(node: Node, w: Writer) -> None:
    w.write("Sub", w.write("Exp", node.proto.input[0]), w.constant(np.float32(1)), to=node.proto.output[0])


def log1p(node: Node, w: Writer) -> None:
    w.write("Log", w.write("Add", node.proto.input[0], w.constant(np.float32(1))), to=node.proto.output[0])


def _own(op: str) -> Rewriter:
    """ONNX's op of this name."""

    def rewrite(node: Node, w: Writer) -> None:
        copied(node, w, op, *node.proto.input, to=node.proto.output[0])

    return rewrite


REWRITERS: dict[str, Rewriter] = {
    "com.microsoft.FusedConv": fused_conv,
    "com.microsoft.FusedGemm": fused_gemm,
    **dict.fromkeys(("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul"), fused_matmul),
    "com.microsoft.Gelu": gelu,
    "com.microsoft.BiasGelu": gelu,
    "com.microsoft.FastGelu": gelu,
    "com.microsoft.QuickGelu": quick_gelu,
    "com.microsoft.SkipLayerNormalization": skip_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": skip_norm,
    "SimplifiedLayerNormalization": _own("RMSNormalization"),
    "com.microsoft.QuantizeLinear": _own("QuantizeLinear"),
    "com.microsoft.DequantizeLinear": _own("DequantizeLinear"),
    "com.microsoft.GridSample": _own("GridSample"),
    "com.microsoft.Trilu": _own("Trilu"),
    "ai.onnx.ml.Scaler": scaler,
    "Crop": crop,
    "DynamicSlice": dynamic_slice,
    "ScaledTanh": scaled_tanh,
    "ParametricSoftplus": parametric_softplus,
    "Erfc": erfc,
    "Expm1": expm1,
    "Log1p": log1p,
}

FACTS = {
    "com.microsoft.FusedConv": Fact("made", operands=(2, 4)),
    "com.microsoft.FusedGemm": Fact("read", operands=(2, 3)),
    **dict.fromkeys(
        ("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul"), Fact("read", operands=(2, 2))
    ),
    "com.microsoft.Gelu": Fact("kept", operands=(1, 1)),
    "com.microsoft.BiasGelu": Fact("kept", operands=(2, 2)),
    "com.microsoft.FastGelu": Fact("kept", operands=(1, 2)),
    "com.microsoft.QuickGelu": Fact("kept", operands=(1, 1)),
    "com.microsoft.SkipLayerNormalization": Fact("other", operands=(3, 5)),
    "com.microsoft.SkipSimplifiedLayerNormalization": Fact("other", operands=(3, 4)),
    "SimplifiedLayerNormalization": Fact("other", operands=(2, 2)),
    "com.microsoft.QuantizeLinear": Fact("kept", operands=(2, 3)),
    "com.microsoft.DequantizeLinear": Fact("kept", operands=(2, 3)),
    "com.microsoft.GridSample": Fact("other", operands=(2, 2)),
    "com.microsoft.Trilu": Fact("other", operands=(1, 2)),
    "ai.onnx.ml.Scaler": Fact("other", operands=(1, 1)),
    "Crop": Fact("other", operands=(1, 1)),
    "DynamicSlice": Fact("other", operands=(3, 4)),
    "ScaledTanh": Fact("kept", operands=(1, 1)),
    "ParametricSoftplus": Fact("kept", operands=(1, 1)),
    "Erfc": Fact("other", operands=(1, 1)),
    "Expm1": Fact("other", operands=(1, 1)),
    "Log1p": Fact("other", operands=(1, 1)),
}
