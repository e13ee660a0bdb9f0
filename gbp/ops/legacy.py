"""Ops of old exporters that ONNX dropped or never had, expressed by current ops.

ImageScaler                     y = scale · x + bias by channel          (opset 1, experimental)
Affine, Scale                   y = alpha · x + beta;  y = scale · x     (opset 1, experimental)
FC                              y = x · wᵀ + b, both flattened           (opset 1, experimental)
com.microsoft.LegacyPadding     x padded for Caffe's pools, whose last window may reach beyond the end
"""

from __future__ import annotations

import numpy as np

from ..errors import counted
from ..graph.op import Op
from ..limits import elements
from .affine import scale_and_shift
from .facts import Fact
from .gemm import Dense
from .node import Node
from .shape import Pad, Reshape


def parse_image_scaler(node: Node) -> Op:
    shape, bias = node.shape(0, rank=4), np.array(node.numbers("bias", (0.0,)))
    if len(bias) not in (1, shape[1]):
        node.invalid(f"bias has {counted(len(bias), 'value')} for {counted(shape[1], 'channel')}.")
    return scale_and_shift(node, shape, np.array(node.number("scale", 1.0)), bias.reshape(-1, 1, 1))


def _affine(node: Node, a: float, b: float) -> Op:
    return scale_and_shift(node, node.shape(0), np.array(a), np.array(b))


def parse_fc(node: Node) -> tuple[Op, ...]:
    shape = node.shape(0)
    axis, axis_w = node.integer("axis", 1), node.integer("axis_w", 1)
    w, b = node.constant(1), node.constant(2)
    if axis != 1 or axis_w != 1:
        node.refuse(f"axis {axis}, axis_w {axis_w}.", supported="1: all but the batch, all but the outputs")
    K = elements(shape[1:])
    if w.ndim < 2 or w.size == 0 or elements(w.shape[1:]) != K or b.shape != w.shape[:1]:
        node.invalid(f"weights {list(w.shape)} and bias {list(b.shape)} do not fit {K} inputs.")
    return Reshape((shape[0], K)), Dense(w.reshape(len(w), K), b.astype(np.float64))


def parse_legacy_padding(node: Node) -> Op:
    """Pad for windows that start at −pad, a stride apart, until one covers the end.

    Source: Caffe's PoolingLayer; WinMLTools.
    """
    shape = node.shape(0, rank=4)
    kernel, strides = node.integers("kernel_shape", ()), node.integers("strides", ())
    pads, value = node.integers("pads", (0, 0)), node.number("value", 0.0)
    if not len(kernel) == len(strides) == len(pads) == 2 or min(*kernel, *strides) < 1 or min(pads) < 0:
        node.invalid(f"kernel {kernel}, strides {strides}, pads {pads} are not two sizes each.")
    end = list(pads)
    for i, (n, k, s, p) in enumerate(zip(shape[2:], kernel, strides, pads, strict=True)):
        room = n + 2 * p - k
        if room < 0 or s > k or p >= k:
            node.refuse(
                f"kernel {kernel}, strides {strides}, pads {pads}.", supported="windows that overlap x"
            )
        windows = -(-room // s) + 1
        if p and (windows - 1) * s >= n + p:  # Caffe drops a window that starts in the padding
            windows -= 1
        end[i] += max(0, (windows - 1) * s + k - (n + 2 * p))
    return Pad((0, 0, *pads), (0, 0, *end), value)


PARSERS = {
    "ImageScaler": parse_image_scaler,
    "Affine": lambda node: _affine(node, node.number("alpha", 1.0), node.number("beta", 0.0)),
    "Scale": lambda node: _affine(node, node.number("scale", 1.0), 0.0),
    "FC": parse_fc,
    "com.microsoft.LegacyPadding": parse_legacy_padding,
}

FACTS = {
    "ImageScaler": Fact("other", operands=(1, 1), reads_planes=True),
    "Affine": Fact("kept", operands=(1, 1)),
    "Scale": Fact("kept", operands=(1, 1)),
    "FC": Fact("read", operands=(3, 3)),
    "com.microsoft.LegacyPadding": Fact("other", operands=(1, 1)),
}
