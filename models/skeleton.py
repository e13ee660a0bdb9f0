"""`Skeleton`: a graph without weights that grows node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = "image"

Kernel = int | tuple[int, int]


class Skeleton:
    """A graph of one float32 (1, 3, size, size) input; each method appends a layer and names its output.

    It has the form of the onnx package's own skeletons: every parameter is a `ConstantOfShape` node, which
    `zoo.build` replaces by a drawn initializer.  `channels` knows those of each activation, so that a layer
    is told only how many it makes of them.
    """

    def __init__(self, name: str, size: int, opset: int) -> None:
        self.name, self.size, self.opset = name, size, opset
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.channels = {IMAGE: 3}

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        channels = [self.channels[tensor] for tensor in inputs if tensor in self.channels]
        if channels:
            self.channels[output] = sum(channels) if op == "Concat" else channels[0]
        return output

    def parameter(self, owner: str, role: str, *shape: int) -> str:
        name = f"{owner}.{role}"
        self._store(f"{name}.shape", shape)
        self.nodes.append(helper.make_node("ConstantOfShape", [f"{name}.shape"], [name]))
        return name

    def constant(self, value: float | Sequence[float]) -> str:
        """A float32 that is no parameter: a scalar or a vector."""
        return self.node("Constant", value=numpy_helper.from_array(np.array(value, np.float32)))

    def model(self, scores: str) -> onnx.ModelProto:
        image = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, [1, 3, self.size, self.size])
        output = helper.make_tensor_value_info(scores, TensorProto.FLOAT, [1, self.channels[scores]])
        graph = helper.make_graph(self.nodes, self.name, [image], [output], self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])

    def _store(self, name: str, integers: Sequence[int]) -> str:
        self.stored.append(numpy_helper.from_array(np.array(integers, np.int64), name))
        return name

    # -------------------------------------------------------------------------- layers with parameters

    def conv(
        self,
        x: str,
        channels: int,
        kernel: Kernel,
        stride: int = 1,
        group: int = 1,
        *,
        bias: bool = False,
        padded: bool = True,
    ) -> str:
        """To so many channels.  Padded, the plane shrinks by the stride and no more."""
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        pads = [(k - stride + 1) // 2 if padded else 0 for k in size]
        owner = f"conv_{len(self.nodes)}"
        parameters = [self.parameter(owner, "weight", channels, self.channels[x] // group, *size)]
        if bias:
            parameters.append(self.parameter(owner, "bias", channels))
        attributes = {"kernel_shape": size, "strides": [stride] * 2, "pads": pads * 2, "group": group}
        y = self.node("Conv", x, *parameters, **attributes)
        self.channels[y] = channels
        return y

    def norm(self, x: str) -> str:
        owner = f"norm_{len(self.nodes)}"
        roles = ("scale", "bias", "mean", "variance")
        return self.node(
            "BatchNormalization", x, *(self.parameter(owner, r, self.channels[x]) for r in roles)
        )

    def normalized(
        self,
        x: str,
        channels: int,
        kernel: Kernel,
        stride: int = 1,
        group: int = 1,
        *,
        padded: bool = True,
    ) -> str:
        """A convolution without bias, then BatchNormalization."""
        return self.norm(self.conv(x, channels, kernel, stride, group, padded=padded))

    def depthwise(self, x: str, kernel: int, stride: int = 1) -> str:
        """Each channel's own convolution, then BatchNormalization."""
        return self.normalized(x, self.channels[x], kernel, stride, group=self.channels[x])

    def layer_norm(self, x: str) -> str:
        """Over the last axis, which must be that of the channels."""
        owner = f"norm_{len(self.nodes)}"
        parameters = (self.parameter(owner, role, self.channels[x]) for role in ("scale", "bias"))
        return self.node("LayerNormalization", x, *parameters, axis=-1, epsilon=1e-6)

    def dense(self, x: str, outputs: int) -> str:
        """A dense layer over all columns of a matrix (N, inputs)."""
        owner = f"dense_{len(self.nodes)}"
        w = self.parameter(owner, "weight", outputs, self.channels[x])
        y = self.node("Gemm", x, w, self.parameter(owner, "bias", outputs), transB=1)
        self.channels[y] = outputs
        return y

    def dense_of_last_axis(self, x: str, outputs: int) -> str:
        """The nodes of a linear layer whose input has more than two axes."""
        owner = f"dense_{len(self.nodes)}"
        y = self.node("MatMul", x, self.parameter(owner, "weight", self.channels[x], outputs))
        self.channels[y] = outputs
        return self.node("Add", self.parameter(owner, "bias", outputs), y)

    def squeeze_excite(self, x: str, squeezed: int, activation: str, gate: str) -> str:
        """Each channel times a gate that the means of all channels decide (Hu et al. 2018)."""
        s = self.conv(self.node("GlobalAveragePool", x), squeezed, 1, bias=True)
        s = self.conv(self.activation(activation, s), self.channels[x], 1, bias=True)
        return self.node("Mul", self.activation(gate, s), x)

    # ----------------------------------------------------------------------------- layers without them

    def activation(self, name: str, x: str) -> str:
        """An op of ONNX by its own name, or one of those that exporters write out."""
        match name:
            case "Relu6":
                return self.node("Clip", x, min=0.0, max=6.0)
            case "Silu":
                return self.node("Mul", x, self.node("Sigmoid", x))
            case "Gelu":
                y = self.node("Erf", self.node("Div", x, self.constant(2**0.5)))
                y = self.node("Mul", x, self.node("Add", y, self.constant(1)))
                return self.node("Mul", y, self.constant(0.5))
            case "HardSigmoid":  # alpha is 1/5 unless told
                return self.node("HardSigmoid", x, alpha=1 / 6, beta=0.5)
        return self.node(name, x)

    def max_pool(self, x: str, kernel: int, stride: int = 2, pad: int = 0) -> str:
        return self.node("MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def pooled(self, x: str) -> str:
        """The mean over the plane: (N, C)."""
        return self.node("Flatten", self.node("GlobalAveragePool", x))

    def concat(self, *parts: str) -> str:
        return self.node("Concat", *parts, axis=1)

    def halves(self, x: str) -> tuple[str, str]:
        """The first half of the channels, and the second."""
        C = self.channels[x] // 2
        first, second = f"first_{len(self.nodes)}", f"second_{len(self.nodes)}"
        self.nodes.append(helper.make_node("Split", [x], [first, second], axis=1, split=[C, C]))
        self.channels[first] = self.channels[second] = C
        return first, second

    def shuffled(self, x: str, groups: int, plane: int) -> str:
        """The channels of the groups by turns (Zhang et al. 2018); x is (N, C, plane, plane)."""
        C = self.channels[x]
        y = self._reshape(x, 1, groups, C // groups, plane, plane)
        return self._reshape(self.node("Transpose", y, perm=[0, 2, 1, 3, 4]), 1, C, plane, plane)

    def _reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", x, self._store(f"shape_{len(self.nodes)}", shape))
