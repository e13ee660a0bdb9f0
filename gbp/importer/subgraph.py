"""What is to be explained in a ModelProto: its image input, its scores, and the nodes between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto

from ..errors import InputError, ModelError, UnsupportedError
from ..head import PROBABILITY, Probability
from ..limits import MAX_AXES
from ..ops import fact
from ..ops.dtypes import FLOATS, type_name
from .branches import reads
from .outputs import axis_of, op_of, scores_of
from .proto import declared_shape, label, tensor_values
from .weights import Weights

OLDEST_OPSET = 1
NEWEST_OPSET: int = onnx.defs.onnx_opset_version()

#: What an explained input may hold: images may come as bytes, which the network then makes numbers of.
_EXPLAINED = (*FLOATS, TensorProto.UINT8)


@dataclass(frozen=True)
class Choice:
    """What a caller says of a model with several inputs or outputs.

    `output`: None for the logits of the only output, "probability" for that output itself, or the name of a
    tensor.  `input`: the one to explain.  `given`: values of other inputs, the same for all samples.
    """

    output: str | Probability | None = None
    input: str | None = None
    given: Mapping[str, ArrayLike] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A model that was read and checked as far as it can be without the size of an image.

    `input_shape` has None where the file leaves a size open; `scores` is the tensor to be explained, and
    `head` the op that makes probabilities of it: None where there is none, "" where it holds them itself.
    `given`: what the model's other inputs hold.  `dtype`: the type in which the file expects the input.
    `channels_last`: whether the nodes behind a four-dimensional input read it so; None where they do not say.
    `labels`: the names of the classes, where the file has them.  `has_batch`: whether the first axis of the
    file's input is the batch; else the file takes one sample, and `input_shape` has a batch of 1 in front of
    that.  `notes`: what a reader of the maps should know.
    """

    model: onnx.ModelProto
    weights: Weights
    input: str
    input_shape: tuple[int | None, ...]
    scores: str
    opset: int
    nodes: tuple[onnx.NodeProto, ...]
    head: str | None
    #: The axis attribute of a softmax; None where the file leaves it out.
    head_axis: int | None
    #: Whether `scores` are the model's own, and no tensor that was asked for by name.
    is_output: bool
    given: Mapping[str, NDArray[Any]]
    dtype: str
    channels_last: bool | None
    labels: tuple[str, ...] | None
    has_batch: bool = True
    notes: tuple[str, ...] = ()

    def without_batch(self) -> Source:
        """The same file, whose input is a single sample that has no axis for the batch."""
        sizes = ["?" if n is None else n for n in self.input_shape]
        note = f"The file has no batch axis: its input {self.input!r} of {sizes} is one sample."
        return replace(
            self,
            input_shape=(1, *self.input_shape),
            has_batch=False,
            channels_last=_reads_channels_last(self.nodes, self.input, has_batch=False),
            notes=(*self.notes, note),
        )

    def head_axes(self, rank: int) -> tuple[int, ...]:
        """The axes of one sample's scores, of `rank` with the batch, over which the head's softmax sums.

        Source: ONNX Softmax, which before opset 13 flattens the axes from `axis` on.
        """
        if self.head not in ("Softmax", "LogSoftmax"):
            return ()
        new, batch = self.opset >= 13, int(self.has_batch)
        file_rank = rank - 1 + batch
        axis = ((-1 if new else 1) if self.head_axis is None else self.head_axis) % file_rank
        axes = tuple(k - batch for k in ((axis,) if new else range(axis, file_rank)) if k >= batch)
        return axes or tuple(range(rank - 1))  # the batch of 1 was the file's only other axis

    def sample_shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """Without the batch; `size` = (H, W), by default 224, where the file leaves that open."""
        sizes = iter(size or (224, 224))
        return tuple(n or next(sizes, 1) for n in self.input_shape[1:])


def locate(proto: onnx.ModelProto, weights: Weights, choice: Choice | None = None) -> Source:
    """Find input, explained tensor and the nodes between them, whether or not gbp does them."""
    choice = choice or Choice()
    opset = _opset(proto)
    producers = _producers(proto)
    scores, head, notes = scores_of(proto, producers, choice.output)
    nodes = _upstream(producers, scores)
    given = _given(proto, choice.given)
    value, shape = _explained_input(proto, nodes, choice.input, given)
    source = Source(
        proto,
        weights,
        value.name,
        shape,
        scores,
        opset,
        nodes,
        op_of(head),
        axis_of(head),
        choice.output is None or choice.output is PROBABILITY,
        given,
        type_name(value.type.tensor_type.elem_type),
        _reads_channels_last(nodes, value.name),
        _labels(proto) if choice.output is None or choice.output is PROBABILITY else None,
        notes=notes,
    )
    return source.without_batch() if _lacks_batch(source) else source


def _opset(proto: onnx.ModelProto) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions and proto.ir_version < 3 and not proto.opset_import:
        versions = [1]  # which such files could not say (ONNX IR, "Opset Version")
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


def _given(proto: onnx.ModelProto, given: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """The values of inputs, in the types that the file declares."""
    declared = {value.name: value for value in proto.graph.input}
    result = {}
    for name, value in given.items():
        if name not in declared:
            raise InputError(f"the model has no input {name!r}.", supported=", ".join(map(repr, declared)))
        kind, shape = declared[name].type.tensor_type.elem_type, declared_shape(declared[name])
        if kind == TensorProto.STRING:
            raise InputError(
                f"input {name!r} takes text, and gbp computes with numbers alone.",
                hint="It needs no value where the explained tensor does not depend on it.",
            )
        try:
            array = np.asarray(value)
            wanted = np.dtype(np.float32) if kind in FLOATS else onnx.helper.tensor_dtype_to_np_dtype(kind)
            if array.dtype.kind not in "fiub" or not np.can_cast(array.dtype, wanted, "same_kind"):
                raise TypeError
            array = array.astype(wanted)
        except (TypeError, ValueError, KeyError):
            raise InputError(f"what is given for input {name!r} is not of {type_name(kind)}.") from None
        fits = shape is None or (
            array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        )
        if not fits or np.isnan(array).any():
            raise InputError(
                f"what is given for input {name!r} has shape {list(array.shape)}, or holds NaN.",
                supported=f"{['?' if n is None else n for n in shape or ()]}",
            )
        result[name] = array
    return result


def _explained_input(
    proto: onnx.ModelProto,
    nodes: tuple[onnx.NodeProto, ...],
    chosen: str | None,
    given: Mapping[str, NDArray[Any]],
) -> tuple[onnx.ValueInfoProto, tuple[int | None, ...]]:
    """The input to explain, the only one that nobody gives a value, and its declared shape."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    read = {name for node in nodes for name in reads(node)}
    declared = {value.name: value for value in proto.graph.input}
    if chosen is not None and (chosen not in declared or chosen in given):
        inputs = ", ".join(repr(name) for name in declared if name not in stored)
        raise InputError(f"{chosen!r} is no input to explain.", supported=inputs)
    # An initializer that is listed as an input too is that input's default.
    open_ = [n for n in declared if n not in given and (n not in stored or n == chosen)]
    free = [n for n in open_ if n in read] or open_[:1]
    if not free:
        raise UnsupportedError("the model has no input to explain.", supported="one, or several")
    if len(free) > 1 or chosen not in (None, *free):
        raise InputError(
            f"{len(free)} inputs, {', '.join(map(repr, free))}, have no value.",
            supported="one that is explained; all others given",
            hint="Say input=name, and inputs={name: array} for the others (--input, --given).",
        )
    value = declared[free[0]]
    kind = value.type.tensor_type
    if kind.elem_type not in _EXPLAINED:
        raise UnsupportedError(
            f"input {value.name!r} holds {type_name(kind.elem_type)}.",
            supported=", ".join(map(type_name, _EXPLAINED)),
        )
    if any(d.dim_value < -1 for d in kind.shape.dim):
        raise ModelError(f"input {value.name!r} declares shape {[d.dim_value for d in kind.shape.dim]}.")
    shape = declared_shape(value)
    if shape is None:
        raise UnsupportedError(
            f"input {value.name!r} declares no shape.", supported="(N, C, H, W), (N, H, W, C), (N, W)"
        )
    if not 1 <= len(shape) <= MAX_AXES:
        raise UnsupportedError(
            f"input {value.name!r} has shape {list(shape)}.", supported=f"1 to {MAX_AXES} axes, batch first"
        )
    return value, shape


def _labels(proto: onnx.ModelProto) -> tuple[str, ...] | None:
    """The names that a ZipMap in the file gives to the classes."""
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "ZipMap" and attribute.name == "classlabels_strings":
                return tuple(text.decode(errors="replace") for text in attribute.strings)
    return None


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


def _reads_channels_last(
    nodes: tuple[onnx.NodeProto, ...], image: str, has_batch: bool = True
) -> bool | None:
    """Whether the first node that tells channels from pixels reads the image as (N, H, W, C)."""
    for node in _first_nodes(nodes, image):
        if fact(node.op_type).reads_planes:
            return False
        if node.op_type == "Unsqueeze" and not has_batch:
            return _reads_channels_last(nodes, node.output[0])
        if node.op_type == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            return True if perm == ([0, 3, 1, 2] if has_batch else [2, 0, 1]) else None
        return None
    return None


def _first_nodes(nodes: Iterable[onnx.NodeProto], image: str) -> Iterator[onnx.NodeProto]:
    """The nodes that read the image, or what others have made of it pixel by pixel."""
    names = {image}
    for node in nodes:
        if names.isdisjoint(node.input):
            continue
        if fact(node.op_type).is_pixelwise:
            names.update(node.output)
        else:
            yield node


def _lacks_batch(source: Source) -> bool:
    """Whether the first node that is not pixelwise puts an axis in front of the image: that of the batch."""
    stored = {tensor.name: tensor for tensor in source.model.graph.initializer}
    stored |= {
        node.output[0]: attribute.t
        for node in source.nodes
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    rank = len(source.input_shape)
    name = source.input
    if source.input_shape[0] == 1:  # a batch of one as well as a plane: either way one sample
        return False
    nodes = iter(source.nodes)  # in order of computation, so what reads a node's output comes later
    while (node := next(_first_nodes(nodes, name), None)) is not None:
        if node.op_type != "Transpose":
            break
        name = node.output[0]
    if node is None or node.op_type != "Unsqueeze":
        return False
    axes = [value for attribute in node.attribute if attribute.name == "axes" for value in attribute.ints]
    if len(node.input) > 1 and node.input[1] in stored:
        axes = tensor_values(stored[node.input[1]], node.input[1], node).reshape(-1).tolist()
    return bool({0, -rank - len(axes)} & set(axes))


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
        for name in reads(node):
            before = producers.get(name)
            if before is None:
                continue
            if state.get(id(before)) is False:
                raise ModelError("the graph has a cycle.", node=label(before), op=before.op_type)
            if id(before) not in state:
                stack.append((before, False))
    return tuple(ordered)
