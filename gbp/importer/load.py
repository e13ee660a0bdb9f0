"""ModelProto → `Graph`.  Nodes that gbp does not support are refused by name, as many as possible at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import GbpError, InputError, ModelError, UnsupportedError, without_frames
from ..graph.graph import Graph
from ..graph.shapes import Shape
from ..limits import MAX_ELEMENTS, computing, elements
from ..ops import PARSERS, REWRITERS
from ..ops.node import Node, Positions
from .branches import reads
from .folding import FOLDS, evaluate
from .functions import inlined
from .layers import Layers
from .moved_batch import MovedBatch
from .node_queue import NodeQueue
from .outputs import with_heads_apart
from .proto import (
    Model,
    check_arity,
    check_tensors,
    declared_shape,
    fits,
    label,
    qualified,
    read,
    shape_constant,
    tensor_values,
)
from .refusals import instead, refusal, unsupported_nodes, with_way_out
from .sample_axis import Lifted, SampleAxis
from .sample_axis_nodes import by_rows, in_front
from .subgraph import Choice, Source, locate


def open_model(model: Model, choice: Choice | None = None) -> Source:
    """Read a model and find what is to be explained.

    Raises InputError, ModelError or UnsupportedError, which lists every unsupported node on the way.
    """
    proto, weights = read(model)
    proto = with_heads_apart(inlined(proto))
    check_tensors(proto)
    source = locate(proto, weights, choice)
    unsupported = unsupported_nodes(source)
    if unsupported:
        raise refusal(unsupported, (op for op in (*PARSERS, *REWRITERS) if "." not in op))
    if None not in source.input_shape[1:]:
        return source
    try:  # The file may be gone when an image of another size comes.
        return replace(source, weights=source.weights.kept())
    except OSError:
        raise InputError("the model cannot be read any more; has the file changed?") from None


def build(source: Source, input_shape: Shape) -> Graph:
    """The graph of `source` for images of `input_shape`, batch first.  Raises as `Builder.graph`."""
    return Builder(source, input_shape).graph()


class Builder:
    """Reads the nodes of a source one by one, in order of computation."""

    def __init__(self, source: Source, input_shape: Shape) -> None:
        graph = source.model.graph
        self.source = source
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.declared = {value.name: value for value in (*graph.value_info, *graph.output)}
        self.batch = SampleAxis(input_shape[0], bound=source.has_batch and source.input_shape[0] != 1)
        #: A tensor that does not depend on the image → its value.
        self.constants: dict[str, NDArray[Any]] = dict(source.given)
        #: Shapes that the file declares and its nodes do not make, for a note.
        self.stale: list[str] = []
        #: Tensors behind a refused node: those whose shape is the declared one, and those without a shape.
        self.guessed: set[str] = set()
        self.lost: set[str] = set()
        #: Where the batch is open: why the first node that was lifted could not be read as it stands.
        self.first_lifted: UnsupportedError | None = None
        self.read = {name for proto in source.nodes for name in reads(proto)} | {source.scores}
        taken = self.read | {name for proto in graph.node for name in proto.output}
        self.waiting = NodeQueue(source.nodes, self.constants, self.stored, self.read, taken)
        self.layers = Layers(source, input_shape, self.read, self.waiting.unused)
        self.moved = MovedBatch(self.layers, self.waiting, self.batch.samples)

    def graph(self) -> Graph:
        """The graph.  Raises ModelError, or one UnsupportedError about all nodes that are refused."""
        try:
            with computing():
                return self._graph()
        except GbpError as error:
            raise without_frames(error) from None

    def _graph(self) -> Graph:
        shape = self.layers.shapes[self.source.input]
        if min(shape) < 1 or elements(shape[1:]) > MAX_ELEMENTS:
            raise UnsupportedError(
                f"input {self.source.input!r} has shape {list(shape)}.",
                supported=f"sizes of at least 1 and up to {MAX_ELEMENTS} numbers a sample",
            )
        refused = self._read_nodes()
        if self.first_lifted is not None and (refused or self.source.scores not in self.layers.shapes):
            refused.insert(0, self.first_lifted)
        if refused:
            reasons = dict.fromkeys(map(str, refused))
            raise refused[0] if len(reasons) == 1 else UnsupportedError(" ".join(reasons))
        if self.source.scores in self.moved.tensors:
            raise self.moved.tensors[self.source.scores].refused()
        self.waiting.check(self.source.scores)
        if self.source.scores not in self.layers.shapes:
            raise ModelError(f"{self.source.scores!r} does not depend on the input {self.source.input!r}.")
        return Graph(
            self.source.input,
            self.source.scores,
            tuple(self.layers.made),
            self.layers.shapes,
            tuple(self._notes()),
            self.waiting.of_file - self.waiting.own,
        )

    def _read_nodes(self) -> list[UnsupportedError]:
        """Read all nodes, or as many as tell more than the first refusal.  Returns the refusals."""
        refused: list[UnsupportedError] = []
        while self.waiting.nodes:
            proto = self.waiting.nodes.popleft()
            if self.lost and not self.lost.isdisjoint(reads(proto)):
                self._lose(proto)
                continue
            try:
                self._check(proto)
                if not self.waiting.takes_branch(proto):
                    self._take(proto)
            except UnsupportedError as error:
                refused.append(without_frames(self._with_way_out(error, proto)))
                if self.layers.budget.is_spent:  # Reading on would cost time as well.
                    break
                self._lose(proto)
            except ModelError:
                if not refused and self.first_lifted is None:
                    raise
                if self.guessed.isdisjoint(proto.input):  # a damaged node, which is no news beside refusals
                    break
                self.lost.update(proto.output)  # a declared shape may have been wrong
            else:
                if not self.guessed.isdisjoint(proto.input):
                    self.guessed.update(proto.output)
        return refused

    def _notes(self) -> Iterator[str]:
        """Remarks on the file."""
        if self.stale:
            more = f" and {len(self.stale) - 1} more shapes" if len(self.stale) > 1 else ""
            yield f"The file declares {self.stale[0]}{more}: what its nodes compute counts."

    def _with_way_out(self, error: UnsupportedError, proto: onnx.NodeProto) -> UnsupportedError:
        """The error with the advice to explain a tensor before the node, if one could be read."""
        read = map(self.moved.origin, proto.input)
        made = (name for name in read if name in self.layers.file_shapes and name != self.source.input)
        return error if self.layers.budget.is_spent else with_way_out(error, next(made, None))

    def _lose(self, proto: onnx.NodeProto) -> None:
        """Continue behind a refused node whose output the file declares, to list other refusals too.

        The declared shape may be wrong, so it is used for nothing else: see `guessed`.
        """
        for name in filter(None, proto.output):
            self.moved.tensors.pop(name, None)
            shape = self._declared_by_sample(name)
            if shape:
                self.layers.shapes[name] = self.layers.file_shapes[name] = shape
                self.guessed.add(name)
            else:
                self.lost.add(name)

    def _declared_by_sample(self, name: str) -> Shape | None:
        """The declared shape of a tensor, if it is complete and begins with the input's batch."""
        if name not in self.declared or not self.source.has_batch:
            return None
        image = next(value for value in self.source.model.graph.input if value.name == self.source.input)
        batches = [value.type.tensor_type.shape.dim[:1] for value in (image, self.declared[name])]
        shape = declared_shape(self.declared[name])
        if not shape or None in shape[1:] or batches[0] != batches[1]:
            return None
        return (self.batch.samples, *(n or 1 for n in shape[1:]))

    def _check(self, proto: onnx.NodeProto) -> None:
        """Check a node's operands, and read those that the file stores."""
        check_arity(proto, self.source.opset)
        self.waiting.check_scale(proto)
        for name in filter(None, proto.input):
            if not (name in self.layers.shapes or name in self.constants):
                self.constants[name] = self._stored(name, proto)

    def _stored(self, name: str, reader: onnx.NodeProto) -> NDArray[Any]:
        """A tensor that the file stores.  `reader`: the node that messages name."""
        if name not in self.stored:
            raise ModelError(f"input {name!r} is made by no node.", node=label(reader), op=reader.op_type)
        return tensor_values(self.stored[name], name, reader, self.source.weights)

    def _take(self, proto: onnx.NodeProto) -> None:
        """Fold the node, replace it by others, or parse it into layers."""
        names, op = [name for name in proto.input if name], qualified(proto)
        if op in ("Shape", "Size") and names[0] not in self.constants:
            self.constants[proto.output[0]] = shape_constant(proto, self.layers.file_shapes[names[0]])
            return
        is_constant = all(name in self.constants for name in names)
        if is_constant and (op in FOLDS or op not in REWRITERS):
            values = {name: self.constants[name] for name in names}
            self.constants.update(evaluate(proto, values, self.source.opset, self.layers.budget))
            return
        if op == "CastLike" and proto.input[1] in self.layers.file_shapes:  # to float, as all are
            if (value := self.constants.get(proto.input[0])) is not None:
                self.constants[proto.output[0]] = value.astype(np.float32)
                return
            like, proto = proto, onnx.NodeProto()
            proto.CopyFrom(like)
            del proto.input[1]
        if self.batch.bound and self.moved.takes(self._node(proto)):
            return
        if op in REWRITERS:
            self.waiting.put(self.waiting.rewritten(self._node(proto)))
        elif op in PARSERS:
            self._parse(proto)
        else:  # The op is in the branch of an If, which `open_model` has not seen.
            self._node(proto).refuse("gbp does not support this op.", hint=instead(op, None))

    def _parse(self, proto: onnx.NodeProto) -> None:
        """Add the layers of a node.  Its tensors are read as (N, …), or else as `sample_axis.py` says."""
        first: ModelError | None = None
        for is_read in (self._by_sample, self._in_front, self._by_rows):
            before = self.layers.mark()
            try:
                if is_read(proto):
                    break
            except ModelError as error:
                first = first or without_frames(error)
                if self.layers.budget.is_spent:
                    break
                self.layers.undo(before)
        else:
            if first is not None:
                raise first
            shapes = ", ".join(str(list(shape)) for shape in self._shapes_read(proto))
            found = f"its inputs, {shapes}, have not the batch for their first axis."
            Node(proto, self.source.opset, []).refuse(found)
        if first is not None and self.layers.budget.is_spent:
            raise first
        if first is not None and self.batch.bound and isinstance(first, UnsupportedError):
            self.first_lifted = self.first_lifted or self._with_way_out(first, proto)
        for name in filter(None, proto.output):
            declared = declared_shape(self.declared[name]) if name in self.declared else None
            shape = self.layers.file_shapes.get(name)
            if shape is not None and declared is not None and not fits(declared, shape):
                sizes = ["?" if n is None else n for n in declared]
                self.stale.append(f"{name!r} as {sizes}, which is {list(shape)}")

    def _by_sample(self, proto: onnx.NodeProto) -> bool:
        """Read the node as it is in the file: the first axis of its tensors is the batch."""
        if any(shape[:1] != (self.batch.samples,) for shape in self._shapes_read(proto)):
            return False
        node = self._node(proto)
        self.layers.add(node, PARSERS[qualified(proto)](node), lambda shape: shape)
        return True

    def _in_front(self, proto: onnx.NodeProto) -> bool:
        """Read the node with an axis of samples in front of its tensors."""
        return self._add_lifted(in_front(self._node(proto), self.batch))

    def _by_rows(self, proto: onnx.NodeProto) -> bool:
        """Read the node with each row of its tensors as a sample."""
        return self._add_lifted(by_rows(self._node(proto), self.batch))

    def _add_lifted(self, read: Lifted | None) -> bool:
        """Add the layers of a node that `sample_axis.py` has read.  Returns whether it has."""
        if read is None:
            return False

        def file_shape(shape: Shape) -> Shape:
            return () if read.is_scalar else self.batch.file_shape(shape)

        self.layers.add(read.node, read.parsed, file_shape)
        return True

    def _node(self, proto: onnx.NodeProto) -> Node:
        """The node, with the shapes that its operands have in the file."""
        operands = [self._operand(name) for name in proto.input]
        samples = self.batch.samples if self.batch.bound and self.source.input_shape[0] is None else 1
        return Node(proto, self.source.opset, operands, self.read, self.batch.bound, samples)

    def _shapes_read(self, proto: onnx.NodeProto) -> list[Shape]:
        """The shapes in the file of the computed tensors that a node reads."""
        return [self.layers.file_shapes[name] for name in proto.input if name in self.layers.file_shapes]

    def _operand(self, name: str) -> Shape | Positions | NDArray[Any] | None:
        """An operand as `Node` has it."""
        for known in (self.layers.positions, self.layers.file_shapes, self.constants):
            if name in known:
                return known[name]
        return None
