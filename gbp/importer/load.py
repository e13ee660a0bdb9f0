"""ModelProto → `Graph`.  What gbp cannot do is refused here, as much of it at once as can be, by name."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import InputError, ModelError, UnsupportedError
from ..graph.graph import Graph, Layer, Shape
from ..limits import MAX_AXES, MAX_ELEMENTS, Budget, computing, elements
from ..ops import PARSERS, REWRITERS
from ..ops.node import Node, Positions
from ..ops.shape import Reshape
from ..ops.step import Op
from ..ops.unpool import Indices
from ..ops.written import Writer
from .branches import reads, taken
from .folding import FOLDABLE, evaluate
from .functions import inlined
from .moved import READERS, Moved, scattered
from .proto import (
    Model,
    check_arity,
    check_tensors,
    declared_shape,
    label,
    qualified,
    read,
    shape_constant,
    stored_bytes,
    tensor_values,
)
from .subgraph import Choice, Source, locate

#: Unsupported nodes that a message lists before it only counts them.
_MAX_LISTED = 50


def open_model(model: Model, choice: Choice | None = None) -> Source:
    """Read a model and find what is to be explained.

    Raises InputError, ModelError or UnsupportedError, which lists every unsupported node on the way.
    """
    proto, weights = read(model)
    proto = inlined(proto)
    check_tensors(proto)
    source = locate(proto, weights, choice)
    unsupported = unsupported_nodes(source)
    if unsupported:
        listed = "; ".join(map(str, unsupported[:_MAX_LISTED]))
        if len(unsupported) > _MAX_LISTED:
            listed += f"; and {len(unsupported) - _MAX_LISTED} more"
        raise UnsupportedError(
            f"{len(unsupported)} node(s) that gbp does not do: {listed}.",
            supported=", ".join(sorted(op for op in (*PARSERS, *REWRITERS) if "." not in op))
            + "; shape arithmetic",
            hint=" ".join(dict.fromkeys(node.hint for node in unsupported if node.hint)) or None,
        )
    if None not in source.input_shape[1:]:
        return source
    try:  # the file may be gone when an image of another size comes
        return replace(source, weights=source.weights.kept())
    except OSError:
        raise InputError("the model cannot be read any more; has the file changed?") from None


@dataclass(frozen=True)
class Unsupported:
    """A node on the way from the input to the scores that gbp does not do: the `place`-th of `count`."""

    op: str
    name: str
    place: int
    count: int
    hint: str | None

    def __str__(self) -> str:
        return f"{self.op} {self.name!r} (node {self.place} of {self.count})"


def unsupported_nodes(source: Source) -> list[Unsupported]:
    """Every node on the way that neither a parser nor constant folding can take."""
    constant = {tensor.name for tensor in source.model.graph.initializer} | set(source.given)
    constant.discard(source.input)
    found = []
    for place, node in enumerate(source.nodes, start=1):
        op = qualified(node)
        folds = (op in FOLDABLE or op in REWRITERS) and all(name in constant for name in node.input if name)
        if op == "If" and node.input and node.input[0] in constant:  # so is known once sizes are
            if constant.issuperset(reads(node)):
                constant.update(node.output)
        elif folds or op in ("Shape", "Size"):
            constant.update(node.output)
        elif op not in PARSERS and op not in REWRITERS:
            hint = _instead(op, node)
            found.append(Unsupported(op, label(node), place, len(source.nodes), hint))
    return found


def _instead(op: str, node: onnx.NodeProto) -> str | None:
    """What to do about an op that gbp does not do."""
    if "QLinear" in op or op in ("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"):
        return "Integer arithmetic has no gradient: quantize in the QDQ format, or export in float32."
    if op in ("TopK", "ArgMax", "ArgMin", "Hardmax", "NonMaxSuppression", "NonZero", "Unique"):
        return (
            f"Nothing flows back through {op}: explain what feeds it, output={next(iter(node.input), '')!r}."
        )
    if op in ("LSTM", "GRU", "RNN", "If", "Loop", "Scan"):
        return "gbp explains networks that go forward, once, through every node."
    return None


def build(source: Source, input_shape: Shape) -> Graph:
    """The graph of `source` for images of `input_shape`, its first axis the batch.

    Raises ModelError or UnsupportedError naming the node.
    """
    if min(input_shape) < 1 or elements(input_shape[1:]) > MAX_ELEMENTS:
        raise UnsupportedError(
            f"input {source.input!r} has shape {list(input_shape)}.",
            supported=f"sizes of at least 1 and up to {MAX_ELEMENTS} numbers a sample",
        )
    with computing():
        return _Builder(source, input_shape).graph()


class _Builder:
    def __init__(self, source: Source, input_shape: Shape) -> None:
        graph = source.model.graph
        self.source = source
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.constants: dict[str, NDArray[Any]] = dict(source.given)
        self.shapes: dict[str, Shape] = {source.input: input_shape}
        self.positions: dict[str, Positions] = {}
        self.moved: dict[str, Moved] = {}
        self.layers: list[Layer] = []
        self.lost: set[str] = set()
        self.declared = {value.name: value for value in (*graph.value_info, *graph.output)}
        self.read = {name for proto in source.nodes for name in reads(proto)} | {source.scores}
        self.taken = self.read | {name for proto in graph.node for name in proto.output}
        #: What is still to be read; nodes that others say come first.
        self.waiting = deque(source.nodes)
        self.budget = Budget.of(stored_bytes(source.model, source.weights))

    def graph(self) -> Graph:
        refused: list[UnsupportedError] = []
        while self.waiting:
            proto = self.waiting.popleft()
            if not self.lost.isdisjoint(reads(proto)):
                self._lose(proto)
                continue
            check_arity(proto, self.source.opset)
            for name in filter(None, proto.input):
                if not (name in self.shapes or name in self.constants or name in self.moved):
                    self.constants[name] = self._stored(name, proto)
            try:
                if not (self._branch(proto) or self._move(proto)):
                    self._take(proto)
            except UnsupportedError as error:
                refused.append(error)
                if self.budget.is_spent:  # to go on would take time as well
                    break
                self._lose(proto)
        if refused:
            told = dict.fromkeys(map(str, refused))
            raise refused[0] if len(told) == 1 else UnsupportedError(" ".join(told))
        if self.source.scores in self.moved:
            raise self._moves_batch(self.moved[self.source.scores])
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
        return tensor_values(self.stored[name], name, reader, self.source.weights)

    def _branch(self, proto: onnx.NodeProto) -> bool:
        """Of an If with a known condition its branch comes next."""
        if qualified(proto) != "If" or proto.input[0] not in self.constants:
            return False
        condition = self.constants[proto.input[0]]
        if condition.size != 1:
            raise ModelError(
                f"its condition has shape {list(condition.shape)}.", node=label(proto), op=proto.op_type
            )
        nodes, tensors = taken(proto, bool(condition.reshape(())), self._unused)
        self.stored.update({tensor.name: tensor for tensor in tensors})
        self._read_next(nodes)
        return True

    def _read_next(self, nodes: list[onnx.NodeProto]) -> None:
        self.read.update(name for node in nodes for name in reads(node))
        self.waiting.extendleft(reversed(nodes))

    def _move(self, proto: onnx.NodeProto) -> bool:
        """A Transpose that moves the batch, and what reads such a tensor: see `moved.py`."""
        op, here = qualified(proto), [name for name in proto.input if name in self.moved]
        if op == "Transpose" and not here and proto.input[0] in self.shapes:
            shape = self.shapes[proto.input[0]]
            perm = next((tuple(a.ints) for a in proto.attribute if a.name == "perm"), ())
            if sorted(perm) != list(range(len(shape))) or perm[0] == 0 or proto.input[0] in self.positions:
                return False
            self.moved[proto.output[0]] = Moved(proto.input[0], shape, perm, label(proto))
            return True
        if not here:
            return False
        first = self.moved[here[0]]
        node = Node(proto, self.source.opset, [self._operand(name) for name in proto.input], self.read)
        writer = Writer(node, self._unused)
        if op == "ScatterND":
            x, updates = (
                self.moved.get(name, self.constants.get(name)) for name in (proto.input[0], proto.input[2])
            )
            if x is None or updates is None:
                raise self._moves_batch(first)
            result: Moved | None = scattered(node, writer, x, updates)
        elif op in READERS and here == [proto.input[0]]:
            result = READERS[op](node, writer, first)
        else:
            raise self._moves_batch(first)
        node.check_all_attributes_read()
        if result is not None:
            self.moved[proto.output[0]] = result
        self.constants.update(writer.constants)
        self._read_next(writer.nodes)
        return True

    def _moves_batch(self, moved: Moved) -> UnsupportedError:
        return UnsupportedError(
            f"perm {list(moved.perm)} moves the batch axis.",
            node=moved.node,
            op="Transpose",
            supported="perm[0] = 0, or a Transpose that moves it back behind GatherND or ScatterND",
        )

    def _rewrite(self, node: Node) -> None:
        """Other nodes take this one's place."""
        writer = Writer(node, self._unused)
        REWRITERS[qualified(node.proto)](node, writer)
        node.check_all_attributes_read()
        made = {name for written in writer.nodes for name in written.output}
        missing = self.read.intersection(filter(None, node.proto.output)) - made
        if missing:
            node.refuse(f"output {min(missing)!r} is used.", supported="the first output")
        self.constants.update(writer.constants)
        self._read_next(writer.nodes)

    def _take(self, proto: onnx.NodeProto) -> None:
        """Fold the node, or parse it into layers."""
        names = [name for name in proto.input if name]
        computed = tuple(name for name in names if name in self.shapes)
        if qualified(proto) in ("Shape", "Size") and computed:
            self.constants[proto.output[0]] = shape_constant(proto, self.shapes[computed[0]])
            return
        op = qualified(proto)
        if not computed and (op in FOLDABLE or op not in REWRITERS):
            values = {name: self.constants[name] for name in names}
            self.constants.update(evaluate(proto, values, self.source.opset, self.budget))
            return
        operands = list(map(self._operand, proto.input))
        if op == "CastLike" and isinstance(operands[1], tuple):  # it is floating point
            (value, _), operands = operands, operands[:1]
            if isinstance(value, np.ndarray):
                self.constants[proto.output[0]] = value.astype(np.float32)
                return
        node = Node(proto, self.source.opset, operands, self.read)
        if op in REWRITERS:
            self._rewrite(node)
            return
        if op not in PARSERS:  # in the branch of an If
            node.refuse("gbp does not do this op.", hint=_instead(op, proto))
        parsed = PARSERS[op](node)
        node.check_all_attributes_read()
        computed = node.computed()
        if isinstance(parsed, list):
            for i, (op, output) in enumerate(zip(parsed, proto.output, strict=True)):
                if output:
                    ops = op if isinstance(op, tuple) else (op,)
                    self._add(node, f"{node.name}[{i}]", ops, computed, output)
        else:
            self._refuse_other_outputs(node)
            ops = parsed if isinstance(parsed, tuple) else (parsed,)
            self._add(node, node.name, ops, computed, proto.output[0])

    def _operand(self, name: str) -> Shape | Positions | NDArray[Any] | None:
        for known in (self.positions, self.shapes, self.constants):
            if name in known:
                return known[name]
        return None

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
            if elements(shape[1:]) > MAX_ELEMENTS or len(shape) > MAX_AXES:
                node.refuse(
                    f"the output would have shape {list(shape)}.",
                    supported=f"up to {MAX_AXES} axes and {MAX_ELEMENTS} numbers a sample",
                )
            self._check_declared(node, result, shape)
            self._spend(node, op, given, shape)
            self.shapes[result] = shape
            if isinstance(op, Indices):
                self.positions[result] = Positions(shape, op.plane)
                if result == self.source.scores:
                    node.refuse("its Indices have no gradient to explain.", supported="other outputs")
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
