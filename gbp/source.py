"""What is to be explained in a ModelProto: its image input, its scores, and the nodes between them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from .errors import InputError, ModelError, UnsupportedError
from .proto import declared_shape, label, type_name
from .weights import Weights

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
    "InstanceNormalization",
    "GroupNormalization",
    "DepthToSpace",
    "SpaceToDepth",
)
_PIXELWISE = ("Mul", "Add", "Sum", "Identity", "Dropout", "Relu", "Clip", "Pad")


@dataclass(frozen=True)
class Source:
    """A model that was read and checked as far as it can be without the size of an image.

    `input_shape` has None where the file leaves a size open; `scores` is the tensor to be explained, and
    `head` the op that makes probabilities of it: None where there is none, "" where it holds them itself.
    `channels_last`: whether the nodes behind a four-dimensional input read it so; None where they do not say.
    """

    model: onnx.ModelProto
    weights: Weights
    input: str
    input_shape: tuple[int | None, ...]
    scores: str
    opset: int
    nodes: tuple[onnx.NodeProto, ...]
    head: str | None
    channels_last: bool | None


def locate(proto: onnx.ModelProto, weights: Weights, output: str | None = None) -> Source:
    """Find input, explained tensor and the nodes between them, whether or not gbp does them."""
    opset = _opset(proto)
    name, shape = _image_input(proto)
    producers = _producers(proto)
    scores, head = _scores(proto, producers, output)
    nodes = _upstream(producers, scores)
    return Source(proto, weights, name, shape, scores, opset, nodes, head, _reads_channels_last(nodes, name))


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
