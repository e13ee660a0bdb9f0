"""ONNX file → `Graph`.  What gbp cannot do is refused here, all of it at once, naming nodes and ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from .constants import FOLDABLE, evaluate
from .errors import InputError, ModelError, UnsupportedError
from .graph import Graph, Layer, Shape
from .limits import MOST_AXES, MOST_ELEMENTS, Budget, computing, elements
from .ops import PARSERS
from .ops.node import Node
from .ops.op import Op
from .ops.shape import Reshape
from .proto import (
    Model,
    check_arity,
    check_tensors,
    declared_shape,
    label,
    read,
    shape_constant,
    stored_bytes,
    tensor_values,
    type_name,
)

OLDEST_OPSET = 7
NEWEST_OPSET: int = onnx.defs.onnx_opset_version()

#: Ops that end a classifier: what feeds them are the logits.
_HEADS = ("Softmax", "LogSoftmax", "Sigmoid")
#: Ops behind a head that only dress its result.
_DRESS = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Transpose", "Cast")
#: Ops that read (N, C, H, W), and ops that do not care.
_PLANAR = (
    "Conv",
    "MaxPool",
    "AveragePool",
    "GlobalMaxPool",
    "GlobalAveragePool",
    "BatchNormalization",
    "LRN",
)
_PIXELWISE = ("Mul", "Add", "Sum", "Identity", "Dropout", "Relu", "Clip", "Pad")
#: Unsupported nodes that a message lists before it only counts them.
_MOST_LISTED = 50


@dataclass(frozen=True)
class Source:
    """A model that was read and checked as far as it can be without the size of an image.

    `input_shape` has None where the file leaves a size open; `scores` is the tensor to be explained, and
    `head` the op that makes probabilities of it: None where there is none, "" where it holds them itself.
    `channels_last`: whether the nodes behind a four-dimensional input read it so; None where they do not say.
    """

    model: onnx.ModelProto
    input: str
    input_shape: tuple[int | None, ...]
    scores: str
    opset: int
    nodes: tuple[onnx.NodeProto, ...]
    head: str | None
    channels_last: bool | None


def open_model(model: Model, output: str | None = None) -> Source:
    """Read a model and find what is to be explained.

    `output`: None for the logits of the only output, "probability" for that output itself, or the name of a
    tensor.  Raises ModelError or UnsupportedError; the latter lists every unsupported node on the way.
    """
    proto = read(model)
    check_tensors(proto)
    source = locate(proto, output)
    unsupported = unsupported_nodes(source)
    if unsupported:
        listed = "; ".join(unsupported[:_MOST_LISTED])
        if len(unsupported) > _MOST_LISTED:
            listed += f"; and {len(unsupported) - _MOST_LISTED} more"
        raise UnsupportedError(
            f"{len(unsupported)} node(s) that gbp does not do: {listed}.",
            supported=", ".join(sorted(PARSERS)) + ", and shape arithmetic that folds away",
        )
    return source


def locate(proto: onnx.ModelProto, output: str | None = None) -> Source:
    """Find input, explained tensor and the nodes between them, whether or not gbp does them."""
    opset = _opset(proto)
    name, shape = _image_input(proto)
    producers = _producers(proto)
    scores, head = _scores(proto, producers, output)
    nodes = _upstream(producers, scores)
    return Source(proto, name, shape, scores, opset, nodes, head, _reads_channels_last(nodes, name))


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
        raise UnsupportedError(
            f"input {value.name!r} holds {type_name(kind.elem_type)}.", supported="FLOAT (float32)"
        )
    shape = declared_shape(value)
    if shape is None:
        raise UnsupportedError(
            f"input {value.name!r} declares no shape.", supported="(N, C, H, W), (N, H, W, C), (N, W)"
        )
    if not 2 <= len(shape) <= 4:
        raise UnsupportedError(
            f"input {value.name!r} has shape {list(shape)}.", supported="2 to 4 axes, batch first"
        )
    return value.name, shape


def _producers(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor."""
    known = {tensor.name for tensor in proto.graph.initializer} | {value.name for value in proto.graph.input}
    producers: dict[str, onnx.NodeProto] = {}
    for node in proto.graph.node:
        for name in filter(None, node.output):
            if name in producers or name in known:
                raise ModelError(f"tensor {name!r} is made twice.", node=label(node), op=node.op_type)
            producers[name] = node
    return producers


def _scores(
    proto: onnx.ModelProto, producers: dict[str, onnx.NodeProto], output: str | None
) -> tuple[str, str | None]:
    """The tensor to be explained, and its head."""
    outputs = [value.name for value in proto.graph.output]
    if output is not None and output != "probability":
        if not isinstance(output, str) or output not in producers:
            raise InputError(
                f"no tensor is called {output!r}.", supported=f"outputs {outputs}, or any node's output"
            )
        return output, None
    if len(outputs) != 1:
        raise InputError(
            f"the model has {len(outputs)} outputs: {outputs}.", hint="Say which one with output=…."
        )
    (last,) = outputs
    if last not in producers:
        raise ModelError(f"output {last!r} is made by no node.")
    logits, head = _logits(producers, last)
    if output != "probability":
        return logits, head
    if head != "Softmax":
        raise InputError(
            f"the model ends in {head or 'scores'}, not in probabilities over classes.",
            supported='output="probability" where it ends in Softmax',
            hint="Leave output out to explain the logits.",
        )
    return last, ""


def _logits(producers: dict[str, onnx.NodeProto], last: str) -> tuple[str, str | None]:
    """What feeds the final Softmax, LogSoftmax or Sigmoid, and which of these; `last` where there is none."""
    name = last
    for _ in range(len(producers)):
        node = producers.get(name)
        if node is None or not node.input:
            break
        name = node.input[0]
        if node.op_type in _HEADS and name in producers:
            return name, str(node.op_type)
        if node.op_type not in _DRESS:
            break
    return last, None


def _reads_channels_last(nodes: tuple[onnx.NodeProto, ...], image: str) -> bool | None:
    """Whether the first node that tells channels from pixels reads the image as (N, H, W, C)."""
    names = {image}
    for node in nodes:
        if names.isdisjoint(node.input):
            continue
        if node.op_type in _PLANAR:
            return False
        if node.op_type == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            return True if perm == [0, 3, 1, 2] else None
        if node.op_type not in _PIXELWISE:
            return None
        names.update(node.output)
    return None


def _upstream(producers: dict[str, onnx.NodeProto], last: str) -> tuple[onnx.NodeProto, ...]:
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
                raise ModelError("the graph has a cycle.", node=label(before), op=before.op_type)
            if id(before) not in state:
                stack.append((before, False))
    return tuple(ordered)


def unsupported_nodes(source: Source) -> list[str]:
    """'Op 'node'' for every node on the way that neither a parser nor constant folding can take."""
    constant = {tensor.name for tensor in source.model.graph.initializer}
    found = []
    for node in source.nodes:
        standard = node.domain in ("", "ai.onnx")
        folds = node.op_type in FOLDABLE and all(name in constant for name in node.input if name)
        if standard and (folds or node.op_type in ("Shape", "Size")):
            constant.update(node.output)
        elif not standard or node.op_type not in PARSERS:
            op = node.op_type if standard else f"{node.domain}.{node.op_type}"
            found.append(f"{op} {(node.name or ', '.join(node.output))!r}")
    return found


def build(source: Source, input_shape: Shape) -> Graph:
    """The graph of `source` for images of `input_shape`, its first axis the batch.

    Raises ModelError or UnsupportedError naming the node.
    """
    if min(input_shape) < 1 or elements(input_shape[1:]) > MOST_ELEMENTS:
        raise UnsupportedError(
            f"input {source.input!r} has shape {list(input_shape)}.",
            supported=f"sizes of at least 1 and up to {MOST_ELEMENTS} numbers a sample",
        )
    with computing():
        return _Builder(source, input_shape).graph()


class _Builder:
    def __init__(self, source: Source, input_shape: Shape) -> None:
        graph = source.model.graph
        self.source = source
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.constants: dict[str, NDArray[Any]] = {}
        self.shapes: dict[str, Shape] = {source.input: input_shape}
        self.layers: list[Layer] = []
        self.lost: set[str] = set()
        self.declared = {value.name: value for value in (*graph.value_info, *graph.output)}
        self.read = {name for proto in source.nodes for name in proto.input} | {source.scores}
        self.taken = self.read | {name for proto in graph.node for name in proto.output}
        self.budget = Budget.of(stored_bytes(source.model))

    def graph(self) -> Graph:
        refused: list[UnsupportedError] = []
        for proto in self.source.nodes:
            if not self.lost.isdisjoint(proto.input):
                self._lose(proto)
                continue
            check_arity(proto, self.source.opset)
            for name in filter(None, proto.input):
                if name not in self.shapes and name not in self.constants:
                    self.constants[name] = self._stored(name, proto)
            try:
                self._take(proto)
            except UnsupportedError as error:
                refused.append(error)
                self._lose(proto)
        if refused:
            raise refused[0] if len(refused) == 1 else UnsupportedError(" ".join(map(str, refused)))
        if self.source.scores not in self.shapes:
            raise ModelError(f"{self.source.scores!r} does not depend on the input {self.source.input!r}.")
        return Graph(self.source.input, self.source.scores, tuple(self.layers), self.shapes)

    def _lose(self, proto: onnx.NodeProto) -> None:
        """Go on behind a refused node, to list what else is refused, where the file says its shape."""
        for name in filter(None, proto.output):
            declared = declared_shape(self.declared[name]) if name in self.declared else None
            if declared and None not in declared[1:]:
                self.shapes[name] = (self.shapes[self.source.input][0], *(n or 1 for n in declared[1:]))
            else:
                self.lost.add(name)

    def _stored(self, name: str, reader: onnx.NodeProto) -> NDArray[Any]:
        if name not in self.stored:
            raise ModelError(f"input {name!r} is made by no node.", node=label(reader), op=reader.op_type)
        return tensor_values(self.stored[name], name, reader)

    def _take(self, proto: onnx.NodeProto) -> None:
        """Fold the node, or parse it into layers."""
        names = [name for name in proto.input if name]
        computed = tuple(name for name in names if name in self.shapes)
        if proto.op_type in ("Shape", "Size") and computed:
            self.constants[proto.output[0]] = shape_constant(proto, self.shapes[computed[0]])
            return
        if not computed:
            values = {name: self.constants[name] for name in names}
            self.constants.update(evaluate(proto, values, self.source.opset, self.budget))
            return
        operands = [
            None if not name else self.shapes.get(name, self.constants.get(name)) for name in proto.input
        ]
        node = Node(proto, self.source.opset, operands)
        parsed = PARSERS[proto.op_type](node)
        node.check_all_attributes_read()
        if isinstance(parsed, list):
            for i, (op, output) in enumerate(zip(parsed, proto.output, strict=True)):
                if output:
                    self._add(node, f"{node.name}[{i}]", (op,), computed, output)
        else:
            self._refuse_other_outputs(node)
            ops = parsed if isinstance(parsed, tuple) else (parsed,)
            self._add(node, node.name, ops, computed, proto.output[0])

    def _refuse_other_outputs(self, node: Node) -> None:
        """Dropout's mask, MaxPool's indices, BatchNormalization's statistics: fine if never read."""
        others = self.read.intersection(filter(None, node.proto.output[1:]))
        if others or not node.proto.output[0]:
            node.refuse(f"output {min(others, default='')!r} is used.", supported="the first output")

    def _add(self, node: Node, name: str, ops: tuple[Op, ...], inputs: tuple[str, ...], output: str) -> None:
        """Layers that apply `ops` one after another."""
        for i, op in enumerate(ops):
            result = output if i == len(ops) - 1 else self._unused(f"{output}/{i}")
            given = tuple(self.shapes[x] for x in inputs)
            if min(map(len, given)) < 2 and not isinstance(op, Reshape):
                node.refuse("its input has no axis besides the batch.")
            shape = op.shape(*given)
            if any(n < 1 for n in shape):
                node.invalid(f"the output would have shape {list(shape)}.")
            if elements(shape[1:]) > MOST_ELEMENTS or len(shape) > MOST_AXES:
                node.refuse(
                    f"the output would have shape {list(shape)}.",
                    supported=f"up to {MOST_AXES} axes and {MOST_ELEMENTS} numbers a sample",
                )
            self._check_declared(node, result, shape)
            self._spend(node, op, given, shape)
            self.shapes[result] = shape
            title = name if i == len(ops) - 1 else f"{name}/{i}"
            self.layers.append(Layer(title, op, inputs, result, node.op))
            inputs = (result,)

    def _unused(self, name: str) -> str:
        """A name for a tensor that the file has none for."""
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name

    def _spend(self, node: Node, op: Op, x: tuple[Shape, ...], y: Shape) -> None:
        """Weights that the file holds once and many layers read are packed for each; work adds up."""
        self.budget.weights -= op.nbytes
        self.budget.work -= op.work(tuple((1, *shape[1:]) for shape in x), (1, *y[1:]))
        if self.budget.weights < 0:
            node.refuse("with its weights the network takes many times the memory of its file.")
        if self.budget.work < 0:
            node.refuse(
                "with it one image takes more than some trillion multiply-adds.",
                hint="Are kernels, strides and sizes what they should be?",
            )

    def _check_declared(self, node: Node, name: str, shape: Shape) -> None:
        """The file may leave shapes open but may not contradict the arithmetic, batch aside."""
        declared = declared_shape(self.declared[name]) if name in self.declared else None
        if declared is None:
            return
        agrees = len(declared) == len(shape) and all(
            a is None or a == b for a, b in zip(declared[1:], shape[1:], strict=True)
        )
        if not agrees:
            node.invalid(f"output {name!r} is declared as {list(declared)} but is {list(shape)}.")
