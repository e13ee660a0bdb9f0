"""Decides whether a file that fixes all its sizes has a batch axis: where its graph can be built so.

Refuses a file of an open batch where one sample's scores depend on how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import GbpError, ModelError, UnsupportedError
from ..graph.graph import Graph, Layer
from ..graph.shapes import Shape
from ..ops.shape import TARGETS, Reshape
from .batch_place import MANY, Followed, Place
from .batch_place_nodes import through
from .folding import evaluate
from .load import Builder, build
from .proto import all_nodes, declared_shape, qualified, shape_constant, tensor_values
from .refusals import with_hint
from .subgraph import Source
from .weights import StandIns

#: Ops that leave the axis in front where it is, or are refused.
_IN_FRONT = re.compile(
    "Add|AveragePool|BatchNormalization|Cast|Clip|Concat|Conv|Div|Dropout|Elu|Gemm|GlobalAveragePool|GlobalMaxPool"
    "|HardSigmoid|HardSwish|Identity|LRN|LeakyRelu|LogSoftmax|MatMul|MaxPool|Mul|PRelu|Pad|ReduceMean|Relu|Reshape"
    "|Selu|Sigmoid|Softmax|Softplus|Sub|Tanh"
)

_ALONE = "Fix the batch at 1 in the file: then each sample is computed alone."
_OR_ALONE = "Or fix the batch at 1 in the file: then nothing mixes."


def settled(source: Source, input_shape: Shape) -> tuple[Source, Graph]:
    """Build the graph for images of `input_shape`, and decide whether the file has a batch axis.

    Returns the source, with that decision, and the graph.  Raises what `build` raises, with a hint where
    another attempt says more, and UnsupportedError for a network that is another for more samples.
    """
    batch = source.input_shape[0] if source.has_batch else 1
    if batch is None:
        return source, _with_open_batch(source, input_shape)
    if batch != 1 and input_shape == source.input_shape:
        return _with_fixed_batch(source, input_shape)
    return source, build(source, input_shape)


def _with_open_batch(source: Source, input_shape: Shape) -> Graph:
    """The graph of a file that leaves the batch open: as it stands, or by following the batch.

    It is built for one sample and for many, and must be the same: a network that counts its samples, or puts
    a constant number of rows in place of them, has no scores of one sample.
    """
    try:
        if _may_count(source):
            _refuse_if_it_counts(source, input_shape)
        return build(source, input_shape)
    except UnsupportedError as error:
        followed = _by_following(source, input_shape)
        if isinstance(followed, Graph):
            return followed
        raise _explained(error, followed, source, input_shape) from None


def _by_following(source: Source, input_shape: Shape) -> Graph | GbpError | None:
    """The graph for one sample, if the nodes keep more apart, wherever they put the batch (`batch_place.py`).

    None if the scores do not have the batch in front.
    """
    graph = _graph_of(builder := _Apart(source, input_shape))
    return None if isinstance(graph, Graph) and builder.places[source.scores] != Place(0) else graph


def _explained(
    error: UnsupportedError, followed: GbpError | None, source: Source, input_shape: Shape
) -> UnsupportedError:
    """The refusal of a file with an open batch, with what a batch of one says about it.

    `error` is raised by the file as it stands, `followed` where the batch is followed.
    """
    alone = _graph_of(Builder(replace(source, input_shape=(1, *source.input_shape[1:])), input_shape))
    if isinstance(alone, UnsupportedError):
        return error
    if not isinstance(alone, Graph):
        return with_hint(error, f"Nor with a batch of one: {alone}")
    if isinstance(followed, UnsupportedError) and repr(followed.node) not in str(error):
        error = followed  # It is about a later node.
    return error if _ALONE in str(error) else with_hint(error, _rows_given(source) or _OR_ALONE)


def _with_fixed_batch(source: Source, input_shape: Shape) -> tuple[Source, Graph]:
    """A file that fixes all its sizes, with several samples; or else with one, and no batch.

    Its nodes may do with the first axis what no batch allows.
    """
    try:
        return source, build(source, input_shape)
    except ModelError as error:
        without = source.without_batch()
        whole = _graph_of(Builder(without, (1, *input_shape)))
        if isinstance(whole, Graph):
            return without, whole
        if isinstance(error, UnsupportedError) and str(whole) != str(error):
            raise with_hint(error, f"Nor as one sample without a batch: {whole}") from None
        raise


def _graph_of(builder: Builder) -> Graph | GbpError:
    """The graph that a builder makes, or the error that there is none."""
    try:
        return builder.graph()
    except GbpError as error:
        return error


def _rows_given(source: Source) -> str | None:
    """Advice where another input was given several rows, of which an open batch may have one a sample."""
    for value in source.model.graph.input:
        array, shape = source.given.get(value.name), declared_shape(value)
        if array is not None and array.ndim and len(array) > 1 and (shape is None or shape[:1] == (None,)):
            return (
                f"What is given for {value.name!r} has {len(array)} rows: if they are one for each sample, "
                "give one that all samples share."
            )
    return None


def _may_count(source: Source) -> bool:
    """Whether what a node does may depend on the number of samples.

    It may of a Shape, a Size or a Reshape, and of a Slice that takes the first sample; all others keep axis 0
    or are refused.  A Reshape to [-1, 64] does not where the batch is in front: it makes rows of 64 numbers,
    however many samples there are.
    """
    nodes = list(all_nodes(source.nodes))
    stored = {tensor.name: tensor for tensor in source.model.graph.initializer}
    if any(node.op_type == "Slice" and _may_pick(node, stored, source) for node in nodes):
        return True
    counting = [node for node in nodes if node.op_type in ("Shape", "Size", "Reshape")]
    if not counting or not all(map(_keeps_in_front, nodes)):
        return bool(counting)
    return not all(_makes_rows(node, stored, source) for node in counting)


def _may_pick(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto], source: Source) -> bool:
    """Whether a Slice may give fewer samples than it reads: not if its axes are stored and positive."""
    axes = [axis for attribute in node.attribute if attribute.name == "axes" for axis in attribute.ints]
    if len(node.input) > 3 and node.input[3] in stored and node.input[3] not in source.given:
        try:
            axes = list(tensor_values(stored[node.input[3]], node.input[3], node, source.weights).reshape(-1))
        except ModelError:
            return True
    return not axes or min(axes) <= 0


def _keeps_in_front(node: onnx.NodeProto) -> bool:
    """Whether a node leaves the axis in front where it is, or is refused.  Not all that do are listed."""
    given = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Transpose":
        return "perm" in given and given["perm"].ints[:1] == [0]
    if node.op_type == "Flatten":
        return "axis" not in given or given["axis"].i > 0
    return _IN_FRONT.fullmatch(node.op_type) is not None


def _makes_rows(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto], source: Source) -> bool:
    """Whether a node is a Reshape whose target is stored, as -1 before sizes."""
    if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] in source.given:
        return False
    try:
        target = tensor_values(stored[node.input[1]], node.input[1], node, source.weights)
    except (KeyError, ModelError):
        return False
    return target.ndim == 1 and target.size > 1 and bool(target[0] == -1 and (target[1:] > 0).all())


def _refuse_if_it_counts(source: Source, input_shape: Shape) -> None:
    """Raise UnsupportedError unless a network for one sample and the same for many do the same with each.

    Both are built without their large weights, which would be in memory twice.  A network that cannot be
    built for one sample is refused elsewhere.  One that cannot be built for many is refused only where a node
    counts samples (`_counts`): constant indices for one sample, for example, leave each sample alone.
    """
    light = replace(source, weights=StandIns(**vars(source.weights)))
    builders = [_Watched(light, (n, *input_shape[1:])) for n in (1, MANY)]
    one, many = map(_graph_of, builders)
    if not isinstance(one, Graph):
        return
    if not isinstance(many, Graph):
        is_counted = any(_counts(*failed, *builders) for failed in builders[1].failed)
        if not (is_counted and isinstance(many, ModelError)):
            return
        raise UnsupportedError(
            f"the batch is open, but with {MANY} samples: {many.found}",
            node=many.node,
            op=many.op,
            supported=many.supported,
            hint=_ALONE,
        )
    if (layer := _first_difference(one, many)) is not None:
        raise UnsupportedError(
            "what it computes depends on the number of samples, and the file leaves its batch open.",
            node=layer.name,
            op=layer.kind,
            supported="scores of a sample that do not depend on others",
            hint=_ALONE,
        )


class _Watched(Builder):
    """A builder that remembers which nodes it could not read, with the errors."""

    def __init__(self, source: Source, input_shape: Shape) -> None:
        super().__init__(source, input_shape)
        self.failed: list[tuple[onnx.NodeProto, ModelError]] = []

    def _take(self, proto: onnx.NodeProto) -> None:
        try:
            super()._take(proto)
        except ModelError as error:
            self.failed.append((proto, error))
            raise


def _counts(node: onnx.NodeProto, error: ModelError, one: Builder, many: Builder) -> bool:
    """Whether a node that can be read for one sample, and not for many, shows that samples are counted.

    It does where it is a Reshape, which would mix samples, or a Slice, which picks one of them, or where it
    reads other constants for many, such as a Range over them.
    """
    mixes = node.op_type in (*TARGETS, "Slice") and isinstance(error, UnsupportedError)
    read = [name for name in node.input if name in one.constants and name in many.constants]
    return mixes or not all(_is_alike(one.constants[n], many.constants[n]) for n in read)


def _first_difference(one: Graph, many: Graph) -> Layer | None:
    """The first layer that does something else with each sample; None if both networks do the same."""
    places = [{graph.input: -1} for graph in (one, many)]  # tensor → the layer that makes it
    for i, (a, b) in enumerate(zip_longest(one.layers, many.layers)):
        if a is None or b is None:
            return a or b
        reads = [[place[name] for name in layer.inputs] for place, layer in zip(places, (a, b), strict=True)]
        if reads[0] != reads[1] or not _is_alike(a.op, b.op):
            return a
        places[0][a.output] = places[1][b.output] = i
    return None


def _is_alike(one: Any, many: Any) -> bool:
    """Whether two ops, or two values that they hold, are equal but for the number of samples."""
    if type(one) is not type(many):
        return False
    if isinstance(one, Reshape):
        return bool(one.to[1:] == many.to[1:])
    if isinstance(one, np.ndarray):
        is_repeated = one.shape[:1] == (1,) and one.shape[1:] == many.shape[1:]
        return (is_repeated or one.shape == many.shape) and bool((one == many).all())
    if is_dataclass(one):
        return all(_is_alike(getattr(one, each.name), getattr(many, each.name)) for each in fields(one))
    if isinstance(one, Mapping):
        return _is_alike(list(one.items()), list(many.items()))
    if isinstance(one, (tuple, list)):
        return len(one) == len(many) and all(map(_is_alike, one, many))
    return bool(one == many)


class _Apart(Builder):
    """Builds the graph for one sample, and follows the batch through the nodes as if there were more.

    Constants that depend on the number of samples, such as the target of a Reshape, are computed for `MANY`
    samples as well.
    """

    def __init__(self, source: Source, input_shape: Shape) -> None:
        super().__init__(replace(source, input_shape=(1, *source.input_shape[1:])), (1, *input_shape[1:]))
        #: A computed tensor → where it holds the batch.
        self.places = {source.input: Place(0)}
        #: A constant that is another for `MANY` samples → its value then.
        self.many: dict[str, NDArray[Any]] = {}
        #: Tensors of nodes that stand for others, through which the batch has been followed.
        self.written: set[str] = set()

    def _lose(self, proto: onnx.NodeProto) -> None:
        """Stop at the first refusal, because nothing can be followed further."""
        self.waiting.nodes.clear()

    def _check(self, proto: onnx.NodeProto) -> None:
        super()._check(proto)
        if qualified(proto) == "If" and proto.input[0] in self.many:
            self._node(proto).refuse("its condition depends on the number of samples.")

    def _take(self, proto: onnx.NodeProto) -> None:
        before = len(self.waiting.nodes)
        super()._take(proto)
        if self.written.isdisjoint(proto.output):
            self._follow(proto)
        new = islice(self.waiting.nodes, max(0, len(self.waiting.nodes) - before))
        self.written.update(name for node in new for name in node.output if name)

    def _follow(self, proto: onnx.NodeProto) -> None:
        """Find where the outputs of a node hold the batch, or what they are for many samples."""
        op, first, given = qualified(proto), proto.output[0], [name for name in proto.input if name]
        if op in ("Shape", "Size") and given[0] in self.places:
            shape = self.places[given[0]].of(self.layers.file_shapes[given[0]], MANY)
            self._keep(first, shape_constant(proto, shape))
        elif first not in self.constants:
            places = [self.places.get(name) for name in proto.input]
            many = [self.many.get(name) for name in proto.input]
            found = through(Followed(self._node(proto), places, many, self.layers.file_shapes.get(first, ())))
            self.places.update((n, found) for n in proto.output if n and n not in self.constants)
        elif not self.many.keys().isdisjoint(given):
            if op == "CastLike" and given[1] in self.places:
                self._keep(first, self.many[given[0]].astype(np.float32))
                return
            values = {name: self.many.get(name, self.constants[name]) for name in given}
            for name, value in evaluate(proto, values, self.source.opset, self.layers.budget).items():
                self._keep(name, value)

    def _keep(self, name: str, value: NDArray[Any]) -> None:
        """Keep a constant for many samples, if it is another than for one."""
        if not np.array_equal(value, self.constants[name]):
            self.many[name] = value
