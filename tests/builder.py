"""`Builder`: ONNX models in a few lines, with seeded weights, in the dialect of any opset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NEWEST = onnx.defs.onnx_opset_version()

Shape = tuple[int, ...]


@cache  # onnx makes a copy of all schemas
def versions_of_ops() -> dict[str, set[int]]:
    """The opsets at which each of ONNX's ops came or changed."""
    versions: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and not schema.deprecated:
            versions.setdefault(schema.name, set()).add(schema.since_version)
    return versions


class Builder:
    """Grows a graph node by node. Tensors are names; `shapes` knows the shape of each.

        b = Builder(opset=13)
        x = b.input(1, 3, 9, 11)
        model = b.model(b.gemm(b.flatten(b.relu(b.conv(x, 8))), 10))

    The input's batch is declared open. Weights are random, of a size that keeps tensors near unit variance.
    """

    def __init__(self, opset: int = NEWEST, seed: int = 0) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.shapes: dict[str, Shape] = {}
        self._types: dict[str, onnx.TypeProto] = {}
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._checks = True

    # ------------------------------------------------------------------------------------------- the graph

    def input(self, *shape: int) -> str:
        self._know("x", helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
        self._inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape[1:]]))
        return "x"

    def constant(self, values: Any, dtype: Any = None) -> str:
        """An initializer: float32, or int64 where all values are whole numbers, unless `dtype` says more."""
        array = np.asarray(values)
        array = array.astype(dtype or (np.int64 if array.dtype.kind == "i" else np.float32))
        name = f"c{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(array, name)
        self._know(name, helper.make_tensor_type_proto(self._constants[name].data_type, array.shape))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output, whose name is returned."""
        return self.nodes(op, *inputs, outputs=1, **attributes)[0]

    def nodes(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Append a node of several outputs."""
        names = [f"{op.lower()}{len(self._nodes)}{'abcdefgh'[i] if i else ''}" for i in range(outputs)]
        node = helper.make_node(op, inputs, names, name=names[0], **attributes)
        self._nodes.append(node)
        types = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(op, self.opset),
            node,
            {name: self._types[name] for name in inputs if name},
            {name: self._constants[name] for name in inputs if name in self._constants},
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        for name in names:
            # What onnx infers no shape of, such as GroupNormalization, keeps that of its input.
            known = types[name].tensor_type.HasField("shape")
            self._know(name, types[name] if known else self._types[inputs[0]])
        return names

    def foreign(self, op: str, shape: Shape, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append a node of which onnx knows nothing; its output has this shape."""
        name = f"{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        self._know(name, helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
        self._checks = False
        return name

    def _know(self, name: str, kind: onnx.TypeProto) -> None:
        self._types[name] = kind
        self.shapes[name] = tuple(d.dim_value for d in kind.tensor_type.shape.dim)

    def model(self, output: str) -> onnx.ModelProto:
        """The model so far, checked where all of it is ONNX's; the sizes of its output are left open."""
        open_shape = [None] * len(self.shapes[output])
        scores = helper.make_tensor_value_info(output, TensorProto.FLOAT, open_shape)
        graph = helper.make_graph(self._nodes, "net", self._inputs, [scores], list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        if self._checks:
            onnx.checker.check_model(model)
        return model

    def _moved(self, op: str, x: str, since: int, parameters: dict[str, Any], **attributes: Any) -> str:
        """Append a node whose parameters were attributes and are inputs since some opset."""
        if self.opset < since:
            return self.node(op, x, **parameters, **attributes)
        return self.node(op, x, *map(self.constant, parameters.values()), **attributes)

    def noise(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.standard_normal(shape).astype(np.float32)

    # ------------------------------------------------------------------------------------ nodes with weights

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int | Shape = 3,
        *,
        group: int = 1,
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        """Conv; `attributes` are ONNX's strides, pads, auto_pad, dilations."""
        shape = (channels, self.shapes[x][1] // group, *self._taps(x, kernel))
        operands = [self.constant(self.noise(*shape) / math.sqrt(math.prod(shape[1:])))]
        operands += [self.constant(self.noise(channels))] if bias else []
        attributes |= {"group": group} if group > 1 else {}
        return self.node("Conv", x, *operands, **attributes)

    def conv_transpose(
        self,
        x: str,
        channels: int,
        kernel: int | Shape = 3,
        *,
        group: int = 1,
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        """ConvTranspose; `attributes` are ONNX's."""
        shape = (self.shapes[x][1], channels // group, *self._taps(x, kernel))
        operands = [self.constant(self.noise(*shape) / math.sqrt(shape[0]))]
        operands += [self.constant(self.noise(channels))] if bias else []
        attributes |= {"group": group} if group > 1 else {}
        return self.node("ConvTranspose", x, *operands, **attributes)

    def _taps(self, x: str, kernel: int | Shape) -> Shape:
        """An integer stands for as many taps along every spatial axis."""
        return (kernel,) * (len(self.shapes[x]) - 2) if isinstance(kernel, int) else kernel

    def batchnorm(self, x: str, **attributes: Any) -> str:
        C = self.shapes[x][1]
        scale, var = self.rng.uniform(0.5, 1.5, (2, C))
        scale *= self.rng.choice([-1, 1], C)
        statistics = (scale, self.noise(C), self.noise(C), var)
        return self.node("BatchNormalization", x, *map(self.constant, statistics), **attributes)

    def gemm(self, x: str, outputs: int, c_shape: Shape | None = None, **attributes: Any) -> str:
        """Gemm; C has shape (outputs,) unless `c_shape` says otherwise."""
        K = self.shapes[x][1]
        shape = (outputs, K) if attributes.get("transB") else (K, outputs)
        w = self.constant(self.noise(*shape) / math.sqrt(K))
        c = self.constant(self.noise(*((outputs,) if c_shape is None else c_shape)))
        return self.node("Gemm", x, w, c, **attributes)

    def matmul(self, x: str, outputs: int) -> str:
        K = self.shapes[x][-1]
        return self.node("MatMul", x, self.constant(self.noise(K, outputs) / math.sqrt(K)))

    # ----------------------------------------------------------------------------------------- other nodes

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def clip(self, x: str, lo: float | None = None, hi: float | None = None) -> str:
        if self.opset < 11:
            bounds = {"min": lo, "max": hi}
            return self.node("Clip", x, **{k: float(v) for k, v in bounds.items() if v is not None})
        return self.node("Clip", x, *("" if v is None else self.constant(float(v)) for v in (lo, hi)))

    def add(self, *xs: str) -> str:
        return self.node("Add", *xs)

    def mul(self, *xs: str) -> str:
        return self.node("Mul", *xs)

    def concat(self, *xs: str, axis: int = 1) -> str:
        return self.node("Concat", *xs, axis=axis)

    def split(self, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        if self.opset < 13:
            return self.nodes("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))
        return self.nodes("Split", x, self.constant(sizes), outputs=len(sizes), axis=axis)

    def flatten(self, x: str, axis: int = 1) -> str:
        return self.node("Flatten", x, axis=axis)

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", x, self.constant(shape))

    def transpose(self, x: str, *perm: int) -> str:
        return self.node("Transpose", x, perm=perm)

    def squeeze(self, x: str, *axes: int) -> str:
        return self._moved("Squeeze", x, 13, {"axes": axes})

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self._moved("Unsqueeze", x, 13, {"axes": axes})

    def pad(self, x: str, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> str:
        return self._moved("Pad", x, 11, {"pads": list(pads), "value": value}, mode=mode)

    def reduce_mean(self, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        return self._moved("ReduceMean", x, 18, {"axes": axes}, keepdims=keepdims)

    def dropout(self, x: str) -> str:
        return self._moved("Dropout", x, 12, {"ratio": 0.5})

    def head(self, x: str, classes: int = 4) -> str:
        """Scores (N, classes) to which every value of x contributes."""
        return self.gemm(self.flatten(x), classes)
