"""In which order of axes each tensor lies in memory: `Graph` → a list of `Instruction`s on physical tensors.

Every op says which memory order it wants (`Op.orders`).  Where a tensor lies otherwise a copy is put in
between; where only axes of size 1 differ, or an op moves no bytes, the result is a view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ..graph.graph import Graph
from ..graph.op import Target
from ..graph.shapes import Order, Shape, row_major
from ..limits import elements
from ..ops.shape import CopyStep
from ..ops.step import UNCLIPPED, Clipped, Step, lower


@dataclass(frozen=True)
class PhysicalTensor:
    """A tensor in memory: its axes in memory `order`, batch first; `shape` without the batch."""

    name: str
    shape: Shape
    order: Order

    @property
    def row(self) -> int:
        """Elements along the innermost axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def logical_axes(self) -> tuple[int, ...]:
        """The permutation that turns the array, batch first, into the file's order."""
        return (0, *(1 + self.order.index(axis) for axis in range(1, len(self.order) + 1)))

    @property
    def mask_shape(self) -> Shape:
        """One bit a unit, channels up to whole bytes, in the (H, W, C) that kernels see (`pixels`)."""
        *outer, channels = (1, *self.shape)
        rows = (outer[1], outer[2]) if len(outer) == 3 else (1, elements(outer))
        return *rows, -(-channels // 8)


@dataclass(frozen=True)
class Instruction:
    """One step at work on physical tensors, by name.

    Fusion may give it a `residual` to add and a `clip` to end with; `layers` are the names of those layers of
    the graph that it computes.  `rectified`: it is an activation whose gradient the rule's gradient gate
    clamps, though it is no rectifier.
    """

    layers: tuple[str, ...]
    step: Step
    inputs: tuple[str, ...]
    output: str
    residual: str | None = None
    clip: Clipped = UNCLIPPED
    rectified: bool = False

    @cached_property
    def has_mask(self) -> bool:
        return self.clip != UNCLIPPED

    @property
    def has_gate(self) -> bool:
        return self.has_mask or self.rectified

    @property
    def saves(self) -> tuple[str, ...]:
        """What the vjp reads again."""
        return (self.inputs if self.step.saves_x else ()) + ((self.output,) if self.step.saves_y else ())

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inputs if self.residual is None else (*self.inputs, self.residual)


@dataclass
class Layout:
    """Calls in order, and the physical tensors they run on.  `tensors` also knows logical names."""

    instructions: list[Instruction] = field(default_factory=list)
    tensors: dict[str, PhysicalTensor] = field(default_factory=dict)
    #: Tensors that are others under another shape: view → whose memory it is.
    views: dict[str, str] = field(default_factory=dict)
    #: The graph's own names, and those of copies of a tensor in another order.
    named: frozenset[str] = frozenset()
    ordered: dict[tuple[str, Order], str] = field(default_factory=dict)


def lay_out(graph: Graph, target: Target, clamp: bool = False) -> Layout:
    """Choose memory orders along the graph and lower every op for `target`.

    `clamp`: rules with a gradient gate clamp the gradient of activations that are no rectifiers too.
    """
    layout = Layout(named=frozenset(graph.shapes))
    first = graph.shapes[graph.input]
    readers = graph.consumers()[graph.input]
    order = row_major(len(first))
    if readers and len(readers[0].inputs) == 1:
        order = readers[0].op.orders((first,), (order,))[0][0]
    _add_tensor(layout, graph.input, first, order)

    for layer in graph.layers:
        shapes = tuple(graph.shapes[name] for name in layer.inputs)
        given = tuple(layout.tensors[name].order for name in layer.inputs)
        wanted, result = layer.op.orders(shapes, given)
        inputs = tuple(
            _in_order(layout, name, shape, order)
            for name, shape, order in zip(layer.inputs, shapes, wanted, strict=True)
        )
        y = graph.shapes[layer.output]
        step = lower(layer.op, shapes, y, wanted[0], target)
        if step is None:
            _add_view(layout, inputs[0], layer.output, y, result)
            continue
        tensor = _add_tensor(layout, layer.output, y, result)
        rectified = clamp and layer.op.is_activation
        layout.instructions.append(
            Instruction((layer.name,), step, inputs, tensor.name, clip=step.clip, rectified=rectified)
        )
    return layout


def _physical_shape(shape: Shape, order: Order) -> Shape:
    return tuple(shape[axis] for axis in order)


def _add_tensor(layout: Layout, name: str, shape: Shape, order: Order) -> PhysicalTensor:
    tensor = PhysicalTensor(name, _physical_shape(shape, order), order)
    layout.tensors[name] = tensor
    return tensor


def _add_view(layout: Layout, source: str, name: str, shape: Shape, order: Order) -> None:
    """`name` as a view of `source`; the very same tensor where not even the physical shape differs."""
    base = layout.tensors[source]
    physical = _physical_shape(shape, order)
    if physical == base.shape:
        layout.tensors[name] = PhysicalTensor(base.name, physical, order)
    else:
        layout.tensors[name] = PhysicalTensor(name, physical, order)
        layout.views[name] = layout.views.get(base.name, base.name)


def _in_order(layout: Layout, name: str, shape: Shape, order: Order) -> str:
    """The physical tensor that holds `name` in memory `order`, copied there if need be."""
    tensor = layout.tensors[name]
    if tensor.order == order:
        return tensor.name
    ordered = layout.ordered.get((name, order))
    if ordered is None:
        ordered = f"{name} in order {order}"
        while ordered in layout.named:
            ordered += "'"
        layout.ordered[name, order] = ordered
        if _memory(shape, tensor.order) == _memory(shape, order):
            _add_view(layout, tensor.name, ordered, shape, order)
        else:
            copy = _add_tensor(layout, ordered, shape, order)
            step = CopyStep(tensor.order, order)
            layout.instructions.append(Instruction((f"({name})",), step, (tensor.name,), copy.name))
    return layout.tensors[ordered].name


def _memory(shape: Shape, order: Order) -> Order:
    """The order without the axes that take no room."""
    return tuple(axis for axis in order if shape[axis] > 1)
