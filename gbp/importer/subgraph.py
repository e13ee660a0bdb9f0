"""Find what is to be explained in a ModelProto: the input, the scores and the nodes between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto

from ..arguments import sizes_fit
from ..errors import InputError, ModelError, UnsupportedError
from ..limits import MAX_AXES
from ..ops.dtypes import FLOATS, type_name
from .branches import reads
from .first_nodes import first_nodes, reads_channels_last, with_channels
from .outputs import PROBABILITY, Probability, scores_of
from .proto import declared_shape, label, tensor_values
from .weights import Weights

OLDEST_OPSET = 1
NEWEST_OPSET: int = onnx.defs.onnx_opset_version()

#: Types of an explained input.  Images may come as bytes; the network then casts them.
_EXPLAINED = (*FLOATS, TensorProto.UINT8)


@dataclass(frozen=True)
class Choice:
    """The caller's choice, for models with several inputs or outputs.

    Parameters
    ----------
    output
        None for the logits of the only output, `PROBABILITY` for that output itself, or a tensor's name.
    input
        The input to explain.
    given
        Values of the other inputs, the same for all samples.
    """

    output: str | Probability | None = None
    input: str | None = None
    given: Mapping[str, ArrayLike] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A model that was read, and checked as far as possible without the size of an image.

    Parameters
    ----------
    model, weights
        The file.  Large weights are apart.
    input, input_shape
        The input to explain; None for each size that the file leaves open.
    scores
        The tensor to explain.
    opset
        The version of the ONNX operators.
    nodes
        Those between the input and the scores, in order of computation.
    head, head_axis
        As in `outputs.Scores`.
    is_output
        Whether `scores` are the model's own scores, and not a tensor that the caller named.
    given
        Values of the model's other inputs.
    dtype
        The type that the file declares for the input.
    channels_last
        Whether the network reads a four-dimensional input as (N, H, W, C).  None if its nodes do not show it.
    labels
        The names of the classes, if the file has them.
    has_batch
        Whether the first axis of the file's input is the batch.  If not, the file takes one sample, and
        `input_shape` has a batch of 1 in front.
    notes
        Remarks for readers of the maps.
    """

    model: onnx.ModelProto
    weights: Weights
    input: str
    input_shape: tuple[int | None, ...]
    scores: str
    opset: int
    nodes: tuple[onnx.NodeProto, ...]
    head: str | None
    head_axis: int | None
    is_output: bool
    given: Mapping[str, NDArray[Any]]
    dtype: str
    channels_last: bool | None
    labels: tuple[str, ...] | None
    has_batch: bool = True
    notes: tuple[str, ...] = ()

    def without_batch(self) -> Source:
        """The same file, read as one sample without a batch axis."""
        sizes = ["?" if n is None else n for n in self.input_shape]
        note = f"The file has no batch axis: its input {self.input!r} of {sizes} is one sample."
        return replace(
            self,
            input_shape=(1, *self.input_shape),
            has_batch=False,
            channels_last=reads_channels_last(self.nodes, self.input, has_batch=False),
            notes=(*self.notes, note),
        )

    def head_axes(self, rank: int) -> tuple[int, ...]:
        """The axes of one sample's scores over which the head's softmax sums.  `rank` counts the batch axis.

        Source: ONNX Softmax.  Before opset 13 it flattens all axes from `axis` on.
        """
        if self.head not in ("Softmax", "LogSoftmax"):
            return ()
        new, batch = self.opset >= 13, int(self.has_batch)
        file_rank = rank - 1 + batch
        axis = ((-1 if new else 1) if self.head_axis is None else self.head_axis) % file_rank
        axes = tuple(k - batch for k in ((axis,) if new else range(axis, file_rank)) if k >= batch)
        return axes or tuple(range(rank - 1))  # The batch of 1 was the only other axis.

    def sample_shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """The shape of one sample.

        `size` = (H, W), by default 224, replaces sizes that the file leaves open.  Raises InputError where it
        leaves the number of channels open, and no first Conv says it.
        """
        sizes_of_file = self.input_shape[1:]
        is_image = self.channels_last is not None and len(sizes_of_file) > 1
        channels = sizes_of_file[-1 if self.channels_last else 0] if is_image else 1
        if channels is None or sizes_of_file == (None, None, None):
            raise InputError(
                f"input {self.input!r} leaves the number of its channels open.",
                hint="Write it into the file, or pass an array.",
            )
        sizes = iter(size or (224, 224))
        return tuple(n or next(sizes, 1) for n in sizes_of_file)


def locate(proto: onnx.ModelProto, weights: Weights, choice: Choice | None = None) -> Source:
    """Find the input, the scores and the nodes between them, whether or not gbp supports these nodes."""
    choice = choice or Choice()
    opset = _opset(proto)
    producers = _producers(proto)
    scores = scores_of(proto, producers, choice.output)
    nodes = _upstream(producers, scores.name)
    given = _given(proto, choice.given)
    value, shape = _explained_input(proto, nodes, choice.input, given)
    channels_last = reads_channels_last(nodes, value.name)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    shape = with_channels(shape, nodes, value.name, stored, channels_last)
    is_output = choice.output is None or choice.output is PROBABILITY
    source = Source(
        model=proto,
        weights=weights,
        input=value.name,
        input_shape=shape,
        scores=scores.name,
        opset=opset,
        nodes=nodes,
        head=scores.head,
        head_axis=scores.head_axis,
        is_output=is_output,
        given=given,
        dtype=type_name(value.type.tensor_type.elem_type),
        channels_last=channels_last,
        labels=_labels(proto) if is_output else None,
        notes=scores.notes,
    )
    if not _adds_axis_in_front(source):
        return source
    name = _shared_batch(source)
    if name is None:
        return source.without_batch()
    note = f"The file names the first axis of {source.input!r} and of the scores {name!r}: it is the batch."
    return replace(source, notes=(*source.notes, note))


def _opset(proto: onnx.ModelProto) -> int:
    """The version of the ONNX operators.  Raises ModelError, UnsupportedError."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions and proto.ir_version < 3 and not proto.opset_import:
        versions = [1]  # Files of IR version 1 and 2 name no opset (ONNX IR, "Opset Version").
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
    """The values of the other inputs, cast to the types that the file declares."""
    declared = {value.name: value for value in proto.graph.input}
    if not isinstance(given, Mapping):
        raise InputError(f"given is {given!r:.80}.", supported="a table, {name: array}")
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
        if np.isnan(array).any():
            raise InputError(f"what is given for input {name!r} holds NaN.")
        if shape is not None and not sizes_fit(array.shape, shape):
            fitting = _with_axes_of_one(array, shape)
            if fitting is None:
                raise InputError(
                    f"what is given for input {name!r} has shape {list(array.shape)}.",
                    supported=f"{['?' if n is None else n for n in shape]}",
                )
            array = fitting
        result[name] = array
    return result


def _with_axes_of_one(array: NDArray[Any], shape: tuple[int | None, ...]) -> NDArray[Any] | None:
    """The array in a declared shape, if only axes of one element are missing in front: [5] as [1, 5]."""
    missing = len(shape) - array.ndim
    if missing < 1 or any(n not in (1, None) for n in shape[:missing]):
        return None
    return array[(None,) * missing] if sizes_fit(array.shape, shape[missing:]) else None


def _explained_input(
    proto: onnx.ModelProto,
    nodes: tuple[onnx.NodeProto, ...],
    chosen: str | None,
    given: Mapping[str, NDArray[Any]],
) -> tuple[onnx.ValueInfoProto, tuple[int | None, ...]]:
    """The input to explain, which is the only one without a value, and its declared shape."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    read = {name for node in nodes for name in reads(node)}
    declared = {value.name: value for value in proto.graph.input}
    if chosen is not None and (chosen not in declared or chosen in given):
        inputs = ", ".join(repr(name) for name in declared if name not in stored)
        raise InputError(f"{chosen!r} is no input to explain.", supported=inputs)
    # An initializer that is also listed as an input is the default of that input.
    open_ = [n for n in declared if n not in given and (n not in stored or n == chosen)]
    free = [n for n in open_ if n in read] or open_[:1]
    if not free:
        raise UnsupportedError("the model has no input to explain.", supported="one, or several")
    if len(free) > 1 and chosen in free:
        others = ", ".join(repr(name) for name in free if name != chosen)
        raise InputError(
            f"other inputs have no value: {others}.", hint="Say given={name: array} for each of them."
        )
    if len(free) > 1 or chosen not in (None, *free):
        raise InputError(
            f"{len(free)} inputs, {', '.join(map(repr, free))}, have no value.",
            supported="one that is explained; all others given",
            hint=f"Say input={free[0]!r}, if that is the image, and given={{name: array}} for the others.",
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
    """The class names in the file's ZipMap node."""
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


def _shared_batch(source: Source) -> str | None:
    """The name of the first axis of the input and of the scores, if it is one, and none of a picture's.

    Nodes alone do not say whether an added axis is the batch.  A network that makes a picture of a picture
    may name their sides alike: its axes are as many, or another name is shared as well.
    """
    named = {value.name: value for value in (*source.model.graph.input, *source.model.graph.output)}
    ends = [named[name] for name in (source.input, source.scores) if name in named]
    sizes = [[dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in ends]
    if len(sizes) < 2 or not all(sizes) or len(sizes[0]) == len(sizes[1]):
        return None
    (image, *others), (scores, *rest) = sizes
    return image if image and image == scores and not {*others} & {*rest} - {""} else None


def _adds_axis_in_front(source: Source) -> bool:
    """Whether the first node that is not pixelwise adds an axis in front: the batch's, as a rule."""
    if source.input_shape[0] == 1:  # Whether it is a batch of one or one plane, it is one sample.
        return False
    stored = {tensor.name: tensor for tensor in source.model.graph.initializer}
    stored |= {
        node.output[0]: attribute.t
        for node in source.nodes
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    rank, name = len(source.input_shape), source.input
    nodes = iter(source.nodes)  # Nodes are in order of computation, so readers of a node's output come later.
    while (node := next(first_nodes(nodes, name), None)) is not None:
        if node.op_type != "Transpose":
            break
        name = node.output[0]
    if node is None or node.op_type != "Unsqueeze":
        return False
    axes = [value for attribute in node.attribute if attribute.name == "axes" for value in attribute.ints]
    if len(node.input) > 1 and node.input[1] in stored:
        axes = tensor_values(stored[node.input[1]], node.input[1], node).reshape(-1).tolist()
    front = {0, -rank - len(axes)}  # either name of the first axis of the result
    return bool(front & set(axes))


def _upstream(producers: dict[str, onnx.NodeProto], last: str) -> tuple[onnx.NodeProto, ...]:
    """The nodes that `last` depends on, in order of computation.  The file may have any order."""
    ordered: list[onnx.NodeProto] = []
    state: dict[int, bool] = {}  # {id of a node: whether all that it depends on is in the list}
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
