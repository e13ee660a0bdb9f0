"""ONNX file → `Graph`.  What gbp cannot do is refused here, all of it at once, naming nodes and ops."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .constants import FOLDABLE, evaluate
from .errors import GbpError, InputError, ModelError, UnsupportedError
from .graph import Graph, Layer, Shape
from .ops import PARSERS
from .ops.node import Node

OLDEST_OPSET = 7
NEWEST_OPSET: int = onnx.defs.onnx_opset_version()

#: Ops that end a classifier: what feeds them are the logits.
_HEADS = ("Softmax", "LogSoftmax", "Sigmoid")
#: Ops behind a head that only dress its result.
_DRESS = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Transpose", "Cast")

#: No tensor of a CNN comes near; a shape beyond it is a mistake or an attack.
MOST_ELEMENTS = 2**29


@dataclass(frozen=True)
class Source:
    """A model that was read and checked as far as it can be without the size of an image.

    `input_shape` has None where the file leaves a size open; `scores` is the tensor to be explained.
    """

    model: onnx.ModelProto
    input: str
    input_shape: tuple[int | None, ...]
    scores: str
    opset: int
    nodes: tuple[onnx.NodeProto, ...]


def read(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> onnx.ModelProto:
    """The ModelProto in a file or in bytes.

    Raises ModelError where there is none, or where its tensors lie in other files.
    """
    if isinstance(model, onnx.ModelProto):
        proto = model
    else:
        name = "the bytes" if isinstance(model, bytes) else f"{os.fspath(model)!r}"
        try:
            data = model if isinstance(model, bytes) else Path(model).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {name}: {error.strerror or error}.") from None
        try:
            proto = onnx.load_model_from_string(data)
        except Exception:  # protobuf raises whatever its backend does
            raise ModelError(f"{name} is not an ONNX file, or is damaged.") from None
        if not proto.graph.node:
            raise ModelError(f"{name} holds no ONNX graph.", hint="Is it a model file, and complete?")
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise UnsupportedError(
                f"tensor {tensor.name!r} lies in another file.",
                supported="weights inside the ONNX file",
                hint="Save the model with save_as_external_data=False.",
            )
    return proto


def open_model(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, output: str | None = None
) -> Source:
    """Read a model and find what is to be explained.

    `output`: None for the logits of the only output, "probability" for that output itself, or the name of a
    tensor.  Raises ModelError or UnsupportedError; the latter lists every unsupported node on the way.
    """
    proto = read(model)
    opset = _opset(proto)
    name, shape = _image_input(proto)
    producers = _producers(proto)
    scores = _scores(proto, producers, output, name)
    nodes = _upstream(proto, producers, scores)
    unsupported = unsupported_nodes(proto, nodes)
    if unsupported:
        raise UnsupportedError(
            f"{len(unsupported)} node(s) that gbp does not do: {'; '.join(unsupported)}.",
            supported=", ".join(sorted(PARSERS)) + ", and shape arithmetic that folds away",
        )
    return Source(proto, name, shape, scores, opset, nodes)


def _opset(proto: onnx.ModelProto) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError("the model imports no version of the ONNX operators.")
    opset = int(max(versions))
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UnsupportedError(
            f"the model uses opset {opset}.",
            supported=f"opset {OLDEST_OPSET} to {NEWEST_OPSET}",
            hint="onnx.version_converter can often bring a model to another opset.",
        )
    return opset


def _image_input(proto: onnx.ModelProto) -> tuple[str, tuple[int | None, ...]]:
    """Name and declared shape of the one input that is no initializer."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise UnsupportedError(f"the model has {len(inputs)} inputs ({names}).", supported="one")
    (value,) = inputs
    kind = value.type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        found = TensorProto.DataType.Name(kind.elem_type) if kind.elem_type in TensorProto.DataType.values() else "?"
        raise UnsupportedError(f"input {value.name!r} holds {found}.", supported="FLOAT (float32)")
    if not kind.HasField("shape"):
        raise UnsupportedError(f"input {value.name!r} declares no shape.", supported="(N, C, H, W), (N, H, W, C), (N, W)")
    shape = _declared(value)
    assert shape is not None
    if not 2 <= len(shape) <= 4:
        raise UnsupportedError(f"input {value.name!r} has shape {list(shape)}.", supported="2 to 4 axes, batch first")
    return value.name, shape


def _declared(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """The declared shape, None for each open size; None where nothing is declared."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    shape = tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in kind.shape.dim)
    if any(n is not None and n < 0 for n in shape):
        raise ModelError(f"tensor {value.name!r} declares shape {list(shape)}.")
    return tuple(n or None for n in shape)  # some exporters write 0 for an open size


def _producers(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor."""
    known = {tensor.name for tensor in proto.graph.initializer} | {value.name for value in proto.graph.input}
    producers: dict[str, onnx.NodeProto] = {}
    for node in proto.graph.node:
        for name in filter(None, node.output):
            if name in producers or name in known:
                raise ModelError(f"tensor {name!r} is made twice.", node=node.name, op=node.op_type)
            producers[name] = node
    return producers


def _scores(
    proto: onnx.ModelProto, producers: dict[str, onnx.NodeProto], output: str | None, image: str
) -> str:
    """The tensor to be explained."""
    outputs = [value.name for value in proto.graph.output]
    if output is not None and output != "probability":
        if output not in producers:
            raise InputError(f"no tensor is called {output!r}.", supported=f"outputs {outputs}, or any node's output")
        return output
    if len(outputs) != 1:
        raise InputError(f"the model has {len(outputs)} outputs: {outputs}.", hint="Say which one with output=….")
    (last,) = outputs
    if last not in producers:
        raise ModelError(f"output {last!r} is made by no node.")
    return last if output == "probability" else _logits(producers, last)


def _logits(producers: dict[str, onnx.NodeProto], last: str) -> str:
    """What feeds the final Softmax, LogSoftmax or Sigmoid; `last` itself where there is none."""
    name = last
    for _ in range(len(producers)):
        node = producers.get(name)
        if node is None or not node.input:
            return last
        name = node.input[0]
        if node.op_type in _HEADS:
            return name if name in producers else last
        if node.op_type not in _DRESS:
            return last
    return last


def _upstream(
    proto: onnx.ModelProto, producers: dict[str, onnx.NodeProto], last: str
) -> tuple[onnx.NodeProto, ...]:
    """The nodes that `last` depends on, in order of computation, whatever order the file has."""
    ordered: list[onnx.NodeProto] = []
    state: dict[int, bool] = {}  # id of node → finished
    stack: list[tuple[onnx.NodeProto, bool]] = [(producers[last], False)]
    while stack:
        node, finished = stack.pop()
        if finished:
            state[id(node)] = True
            ordered.append(node)
            continue
        if id(node) in state:
            continue
        state[id(node)] = False
        stack.append((node, True))
        for name in filter(None, node.input):
            before = producers.get(name)
            if before is None:
                continue
            if state.get(id(before)) is False:
                raise ModelError("the graph has a cycle.", node=before.name, op=before.op_type)
            if id(before) not in state:
                stack.append((before, False))
    return tuple(ordered)


def unsupported_nodes(proto: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """'Op 'node'' for every node that neither a parser nor constant folding can take."""
    constant = {tensor.name for tensor in proto.graph.initializer}
    found = []
    for node in nodes:
        standard = node.domain in ("", "ai.onnx")
        if standard and node.op_type in FOLDABLE and all(name in constant for name in node.input if name):
            constant.update(node.output)
        elif standard and node.op_type in ("Shape", "Size"):
            constant.update(node.output)
        elif not standard or node.op_type not in PARSERS:
            op = node.op_type if standard else f"{node.domain}.{node.op_type}"
            found.append(f"{op} {(node.name or ', '.join(node.output))!r}")
    return found


def build(source: Source, input_shape: Shape) -> Graph:
    """The graph of `source` for images of `input_shape`, its first axis the batch.

    Raises ModelError or UnsupportedError naming the node.
    """
    return _Builder(source, input_shape).graph()


class _Builder:
    def __init__(self, source: Source, input_shape: Shape) -> None:
        self.source = source
        self.stored = {tensor.name: tensor for tensor in source.model.graph.initializer}
        self.constants: dict[str, NDArray[Any]] = {}
        self.shapes: dict[str, Shape] = {source.input: input_shape}
        self.layers: list[Layer] = []
        graph = source.model.graph
        self.declared = {value.name: value for value in (*graph.value_info, *graph.output)}

    def graph(self) -> Graph:
        for proto in self.source.nodes:
            for name in proto.input:
                if name and name not in self.shapes:
                    self._constant(name, proto)
            self._take(proto)
        if self.source.scores not in self.shapes:
            raise ModelError(f"{self.source.scores!r} does not depend on the input {self.source.input!r}.")
        return Graph(self.source.input, self.source.scores, tuple(self.layers), self.shapes)

    def _constant(self, name: str, reader: onnx.NodeProto) -> NDArray[Any]:
        if name not in self.constants:
            if name not in self.stored:
                raise ModelError(f"input {name!r} is made by no node.", node=reader.name, op=reader.op_type)
            self.constants[name] = _array(self.stored[name], reader)
        return self.constants[name]

    def _take(self, proto: onnx.NodeProto) -> None:
        """Fold the node, or parse it into layers."""
        if proto.op_type in ("Shape", "Size") and proto.input[0] in self.shapes:
            shape = np.array(self.shapes[proto.input[0]], np.int64)
            self.constants.update(evaluate(proto, {proto.input[0]: np.broadcast_to(np.float32(0), shape)}, self.source.opset))
            return
        if all(name in self.constants for name in proto.input if name):
            values = {name: self.constants[name] for name in proto.input if name}
            self.constants.update(evaluate(proto, values, self.source.opset))
            return
        operands = [None if not name else self.shapes.get(name, self.constants.get(name)) for name in proto.input]
        node = Node(proto, self.source.opset, operands)
        parsed = PARSERS[proto.op_type](node)
        node.check_all_attributes_read()
        inputs = tuple(name for name in proto.input if name in self.shapes)
        if isinstance(parsed, list):
            for i, (op, output) in enumerate(zip(parsed, proto.output, strict=True)):
                self._add(node, f"{node.name}[{i}]", (op,), inputs, output)
        else:
            self._refuse_other_outputs(node)
            self._add(node, node.name, parsed if isinstance(parsed, tuple) else (parsed,), inputs, proto.output[0])

    def _refuse_other_outputs(self, node: Node) -> None:
        """Dropout's mask, MaxPool's indices, BatchNormalization's statistics: fine as long as nobody reads them."""
        others = set(filter(None, node.proto.output[1:]))
        read = {name for proto in self.source.nodes for name in proto.input} | {self.source.scores}
        if others & read:
            node.refuse(f"output {sorted(others & read)[0]!r} is used.", supported="the first output")

    def _add(self, node: Node, name: str, ops: tuple[Any, ...], inputs: tuple[str, ...], output: str) -> None:
        """Layers that apply `ops` one after another."""
        for i, op in enumerate(ops):
            result = output if i == len(ops) - 1 else f"{output}/{i}"
            shape = op.shape(*(self.shapes[x] for x in inputs))
            if any(n < 1 for n in shape) or np.prod([float(n) for n in shape]) > MOST_ELEMENTS:
                node.invalid(f"the output would have shape {list(shape)}.")
            self._check_declared(node, result, shape)
            self.shapes[result] = shape
            self.layers.append(Layer(name if i == len(ops) - 1 else f"{name}/{i}", op, inputs, result))
            inputs = (result,)

    def _check_declared(self, node: Node, name: str, shape: Shape) -> None:
        """The file may leave shapes open but may not contradict the arithmetic, batch aside."""
        declared = _declared(self.declared[name]) if name in self.declared else None
        if declared is None:
            return
        agrees = len(declared) == len(shape) and all(
            a is None or a == b for a, b in zip(declared[1:], shape[1:], strict=True)
        )
        if not agrees:
            node.invalid(f"output {name!r} is declared as {list(declared)} but is {list(shape)}.")


def _array(tensor: onnx.TensorProto, reader: onnx.NodeProto) -> NDArray[Any]:
    """The values of an initializer, finite."""
    size = float(np.prod([float(n) for n in tensor.dims]))
    if size > MOST_ELEMENTS or any(n < 0 for n in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has shape {list(tensor.dims)}.", node=reader.name, op=reader.op_type)
    try:
        values: NDArray[Any] = numpy_helper.to_array(tensor)
    except Exception:  # the bytes do not fit the shape, the type is unknown, …
        raise ModelError(f"tensor {tensor.name!r} is damaged.", node=reader.name, op=reader.op_type) from None
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ModelError(f"tensor {tensor.name!r} holds NaN or infinity.", node=reader.name, op=reader.op_type)
        if values.dtype != np.float32:
            raise UnsupportedError(
                f"tensor {tensor.name!r} holds {helper.tensor_dtype_to_np_dtype(tensor.data_type)}.",
                node=reader.name, op=reader.op_type, supported="float32",
            )
    return values


__all__ = ["GbpError", "Source", "build", "open_model", "read", "unsupported_nodes"]
