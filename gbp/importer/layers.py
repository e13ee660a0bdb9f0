"""The layers of a graph while it is read, with the shapes of their tensors and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from ..graph.graph import Layer
from ..graph.op import Op
from ..graph.shapes import Shape
from ..limits import MAX_AXES, MAX_ELEMENTS, MAX_NODES, Budget, elements
from ..ops.node import Node, Positions
from ..ops.shape import Reshape
from ..ops.unpool import Indices
from .proto import stored_bytes
from .sample_axis import Parsed, one_after_another
from .subgraph import Source


class Layers:
    """Layers in order of computation.

    Parameters
    ----------
    source
        The file, with its input and its scores.
    input_shape
        The image's shape, batch first.
    read
        Tensors that some node reads.
    unused
        Makes a name that no tensor has from a given one.
    """

    def __init__(
        self, source: Source, input_shape: Shape, read: set[str], unused: Callable[[str], str]
    ) -> None:
        self.made: list[Layer] = []
        #: A computed tensor → its shape as it is computed, and the shape that it has in the file.
        self.shapes = {source.input: input_shape}
        self.file_shapes = {source.input: input_shape if source.has_batch else input_shape[1:]}
        #: A tensor that holds positions, as MaxPool's Indices.
        self.positions: dict[str, Positions] = {}
        #: (tensor, another shape) → the tensor that is the same in that shape.
        self._views: dict[tuple[str, Shape], str] = {}
        self.budget = Budget.of(stored_bytes(source.model, source.weights))
        self._scores, self._read, self._unused = source.scores, read, unused

    def mark(self) -> tuple[int, Budget]:
        """The state to which `undo` returns."""
        return len(self.made), copy(self.budget)

    def undo(self, mark: tuple[int, Budget]) -> None:
        """Remove what a failed attempt at reading a node has added."""
        count, self.budget = mark
        for layer in self.made[count:]:
            self._views.pop((layer.inputs[0], self.shapes.pop(layer.output)), None)
            self.file_shapes.pop(layer.output, None)
            self.positions.pop(layer.output, None)
        del self.made[count:]

    def add(self, node: Node, parsed: Parsed, file_shape: Callable[[Shape], Shape]) -> None:
        """Add the layers of a node.  `file_shape`: an output's shape in the file, from its computed shape."""
        node.check_all_attributes_read()
        computed = tuple(self._viewed(node.proto.input[i], node.operands[i]) for i in node.computed())
        if isinstance(parsed, list):
            for i, (ops, output) in enumerate(zip(parsed, node.proto.output, strict=True)):
                if output:
                    self._add(node, f"{node.name}[{i}]", one_after_another(ops), computed, output)
        else:
            self._refuse_other_outputs(node)
            self._add(node, node.name, one_after_another(parsed), computed, node.proto.output[0])
        for name in filter(None, node.proto.output):
            if name in self.shapes:
                self.file_shapes[name] = file_shape(self.shapes[name])

    def _viewed(self, name: str, operand: Any) -> str:
        """The name of tensor `name` in the shape in which a node reads it."""
        shape: Shape = operand.shape if isinstance(operand, Positions) else operand
        if self.shapes[name] == shape:
            return name
        if (name, shape) not in self._views:
            view = self._unused(f"{name} as {list(shape)}")
            self.made.append(Layer(view, Reshape(shape), (name,), view, "Reshape"))
            self.shapes[view] = shape
            self._views[name, shape] = view
        return self._views[name, shape]

    def _refuse_other_outputs(self, node: Node) -> None:
        """Refuse a node whose second output is read: Dropout's mask, say, or MaxPool's indices."""
        others = self._read.intersection(filter(None, node.proto.output[1:]))
        if others or not node.proto.output[0]:
            node.refuse(f"output {min(others, default='')!r} is used.", supported="the first output")

    def _add(self, node: Node, name: str, ops: tuple[Op, ...], inputs: tuple[str, ...], output: str) -> None:
        """Add layers that apply `ops` one after another."""
        for i, op in enumerate(ops):
            result = output if i == len(ops) - 1 else self._unused(f"{output}/{i}")
            given = tuple(self.shapes[x] for x in inputs)
            if min(map(len, given)) < 2 and not isinstance(op, Reshape):
                node.refuse("its input has no axis besides the batch.")
            shape = op.shape(*given)
            if any(n < 1 for n in shape):
                node.invalid(f"the output would have shape {list(shape)}.")
            if elements(shape[1:]) > MAX_ELEMENTS or len(shape) > 1 + MAX_AXES:  # 1 for samples in front
                node.refuse(
                    f"the output would have shape {list(shape)}.",
                    supported=f"up to {MAX_AXES} axes and {MAX_ELEMENTS} numbers a sample",
                )
            self._spend(node, op, given, shape)
            self.shapes[result] = shape
            title = name if i == len(ops) - 1 else f"{name}/{i}"
            self.made.append(Layer(title, op, inputs, result, node.op))
            if isinstance(op, Indices):
                self.positions[result] = Positions(shape, op.plane)
                if result == self._scores:
                    node.refuse("its Indices have no gradient to explain.", supported="other outputs")
            inputs = (result,)

    def _spend(self, node: Node, op: Op, x: tuple[Shape, ...], y: Shape) -> None:
        """Charge a layer, its weights and its work to the budget.

        Layers that share weights in the file each pack a copy.
        """
        self.budget.layers -= op.planning
        self.budget.weights -= op.nbytes
        self.budget.work -= op.work(tuple((1, *shape[1:]) for shape in x), (1, *y[1:]))
        if self.budget.layers < 0:
            node.refuse(
                "with it the network has too many layers to plan.",
                supported=f"up to {MAX_NODES} layers; some kinds count as several",
            )
        if self.budget.weights < 0:
            node.refuse("with its weights the network takes many times the memory of its file.")
        if self.budget.work < 0:
            node.refuse(
                "with it one image takes more than some trillion multiply-adds.",
                hint="Are kernels, strides and sizes what they should be?",
            )
