"""Skeletons of VGG16, ResNet-18 and MobileNetV2, node for node as torchvision computes them at inference.

A skeleton has the form of the onnx package's own: opset 9, one float32 (1, 3, 224, 224) input, 1000 scores,
and every parameter a `ConstantOfShape` node that `zoo.build` replaces by a drawn initializer.

    VGG16        13 convolutions 3×3 in five blocks, three dense layers   (Simonyan & Zisserman 2014)
    ResNet-18    v1: the strided 3×3 first, BatchNormalization, skips     (He et al. 2015)
    MobileNetV2  width 1.0: inverted residuals, ReLU6, linear bottlenecks (Sandler et al. 2018)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 224
CLASSES = 1000
OPSET = 9

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RESNET18_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, first stride; two blocks each
#: Expansion, channels, blocks, first stride: Table 2 of the paper.
MOBILENET_V2_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


class _Skeleton:
    """A graph that grows node by node; each method appends one and returns the name of its output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.shapes: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def parameter(self, owner: str, role: str, *shape: int) -> str:
        name = f"{owner}.{role}"
        self.shapes.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}.shape"))
        self.nodes.append(helper.make_node("ConstantOfShape", [f"{name}.shape"], [name]))
        return name

    def conv(
        self,
        x: str,
        channels: tuple[int, int],
        kernel: int,
        stride: int = 1,
        group: int = 1,
        *,
        bias: bool = False,
    ) -> str:
        """channels: in, out; padded by half the kernel."""
        C, O = channels
        owner = f"conv_{len(self.nodes)}"
        parameters = [self.parameter(owner, "weight", O, C // group, kernel, kernel)]
        if bias:
            parameters.append(self.parameter(owner, "bias", O))
        attributes = {
            "kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group
        }  # fmt: skip
        return self.node("Conv", x, *parameters, **attributes)

    def normalized(
        self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, group: int = 1
    ) -> str:
        """A convolution without bias, then BatchNormalization."""
        y = self.conv(x, channels, kernel, stride, group)
        owner = f"norm_{len(self.nodes)}"
        roles = ("scale", "bias", "mean", "variance")
        return self.node("BatchNormalization", y, *(self.parameter(owner, r, channels[1]) for r in roles))

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        owner = f"dense_{len(self.nodes)}"
        w, b = self.parameter(owner, "weight", outputs, inputs), self.parameter(owner, "bias", outputs)
        return self.node("Gemm", x, w, b, transB=1)

    def max_pool(self, x: str, kernel: int, pad: int = 0) -> str:
        return self.node("MaxPool", x, kernel_shape=[kernel] * 2, strides=[2, 2], pads=[pad] * 4)

    def pooled(self, x: str) -> str:
        """The mean over the plane: (N, C)."""
        return self.node("Flatten", self.node("GlobalAveragePool", x))

    def model(self, scores: str) -> onnx.ModelProto:
        picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
        output = helper.make_tensor_value_info(scores, TensorProto.FLOAT, [1, CLASSES])
        graph = helper.make_graph(self.nodes, self.name, [picture], [output], self.shapes)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def _vgg16() -> onnx.ModelProto:
    net, x, C = _Skeleton("vgg16"), "image", 3
    for block in VGG16_BLOCKS:
        for O in block:
            x = net.node("Relu", net.conv(x, (C, O), 3, bias=True))
            C = O
        x = net.max_pool(x, 2)
    x = net.node("Flatten", x)
    x = net.node("Relu", net.dense(x, C * 7 * 7, 4096))
    x = net.node("Relu", net.dense(x, 4096, 4096))
    return net.model(net.dense(x, 4096, CLASSES))


def _resnet18() -> onnx.ModelProto:
    net, C = _Skeleton("resnet18"), 64
    x = net.max_pool(net.node("Relu", net.normalized("image", (3, C), 7, 2)), 3, pad=1)
    for O, first_stride in RESNET18_STAGES:
        for stride in (first_stride, 1):
            y = net.node("Relu", net.normalized(x, (C, O), 3, stride))
            y = net.normalized(y, (O, O), 3)
            skip = x if (C, stride) == (O, 1) else net.normalized(x, (C, O), 1, stride)
            x = net.node("Relu", net.node("Add", y, skip))
            C = O
    return net.model(net.dense(net.pooled(x), C, CLASSES))


def _mobilenet_v2() -> onnx.ModelProto:
    net, C = _Skeleton("mobilenet_v2"), 32

    def relu6(x: str) -> str:
        return net.node("Clip", x, min=0.0, max=6.0)

    x = relu6(net.normalized("image", (3, C), 3, 2))
    for expansion, O, blocks, first_stride in MOBILENET_V2_STAGES:
        for stride in (first_stride, *[1] * (blocks - 1)):
            E = C * expansion
            y = x if expansion == 1 else relu6(net.normalized(x, (C, E), 1))
            y = relu6(net.normalized(y, (E, E), 3, stride, group=E))
            y = net.normalized(y, (E, O), 1)
            x = net.node("Add", x, y) if (C, stride) == (O, 1) else y
            C = O
    x = relu6(net.normalized(x, (C, 1280), 1))
    return net.model(net.dense(net.pooled(x), 1280, CLASSES))


BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "vgg16": _vgg16,
    "resnet18": _resnet18,
    "mobilenet_v2": _mobilenet_v2,
}
