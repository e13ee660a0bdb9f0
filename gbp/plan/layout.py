"""Memory orders: a `Graph` becomes a list of `Instruction`s on physical tensors.

Every op names the memory order that it needs (`Op.orders`).  Where a tensor is stored in another order, a
copy is inserted.  Where only axes of size 1 differ, or an op only renames axes, the result is a view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ..graph.graph import Graph, unused
from ..graph.op import Target
from ..graph.shapes import Order, Shape, row_major
from ..limits import elements
from ..ops.shape import CopyStep
from ..ops.step import UNCLIPPED, Clipped, Step, lower


@dataclass(frozen=True)
class PhysicalTensor:
    """A tensor as it is stored.

    Parameters
    ----------
    name
        The tensor's name in the graph, or a name made for a copy.
    shape
        Sizes of the axes in memory order, without the batch.
    order
        The memory order of the axes.
    """

    name: str
    shape: Shape
    order: Order

    @property
    def row(self) -> int:
        """Elements along the innermost axis."""
        return self.shape[-1] if self.shape else 1

    @cached_property
    def logical_axes(self) -> tuple[int, ...]:
        """The permutation that turns the array, batch first, into the file's order."""
        return (0, *(1 + self.order.index(axis) for axis in range(1, len(self.order) + 1)))

    @property
    def mask_shape(self) -> Shape:
        """(H, W, bytes) of the mask: one bit a unit, each pixel's channels padded to whole bytes."""
        *outer, channels = (1, *self.shape)
        rows = (outer[1], outer[2]) if len(outer) == 3 else (1, elements(outer))
        return *rows, -(-channels // 8)


@dataclass(frozen=True)
class Instruction:
    """One step with the names of the tensors that it reads and writes.

    Parameters
    ----------
    layers
        Names of the graph's layers that it computes; several after fusion.
    step
        The step that computes it.
    inputs, output
        Names of physical tensors.
    residual
        A tensor that the epilogue adds, or None.
    clip
        The bounds to which the epilogue clips.
    clamped
        Whether it is an activation but no rectifier, and a rule's gradient gate clamps its gradient.
    macs
        Multiply-adds of one sample in one direction, where the op multiplies by weights.
    """

    layers: tuple[str, ...]
    step: Step
    inputs: tuple[str, ...]
    output: str
    residual: str | None = None
    clip: Clipped = UNCLIPPED
    clamped: bool = False
    macs: int = 0

    @cached_property
    def has_mask(self) -> bool:
        """Whether the forward run writes a mask: one bit a unit, 1 where the clip changed nothing."""
        return self.clip != UNCLIPPED

    @property
    def has_gate(self) -> bool:
        """Whether the gradient of the output passes a gate."""
        return self.has_mask or self.clamped

    @cached_property
    def saves(self) -> tuple[str, ...]:
        """Tensors that the vjp reads again."""
        return (self.inputs if self.step.saves_x else ()) + ((self.output,) if self.step.saves_y else ())

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors that the forward run reads."""
        return self.inputs if self.residual is None else (*self.inputs, self.residual)


@dataclass
class Layout:
    """Instructions in order, and their physical tensors, which are found by logical names too."""

    instructions: list[Instruction] = field(default_factory=list)
    tensors: dict[str, PhysicalTensor] = field(default_factory=dict)
    #: Tensors that share another tensor's memory under another shape: view → the tensor that owns the memory.
    views: dict[str, str] = field(default_factory=dict)
    #: The names of the graph's tensors.
    named: frozenset[str] = frozenset()
    #: (tensor, order) → the name of its copy in that order.
    ordered: dict[tuple[str, Order], str] = field(default_factory=dict)


def lay_out(graph: Graph, target: Target, clamp: bool = False) -> Layout:
    """Choose memory orders along the graph and lower every op.

    Parameters
    ----------
    graph
        The network.
    target
        The device, and the algorithm for convolutions.
    clamp
        Whether rules with a gradient gate clamp the gradient of activations that are no rectifiers.
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
        layout.instructions.append(
            Instruction(
                (layer.name,),
                step,
                inputs,
                tensor.name,
                clip=step.clip,
                clamped=clamp and layer.op.is_activation,
                macs=layer.op.macs(y),
            )
        )
    return layout


def _physical_shape(shape: Shape, order: Order) -> Shape:
    return tuple(shape[axis] for axis in order)


def _add_tensor(layout: Layout, name: str, shape: Shape, order: Order) -> PhysicalTensor:
    tensor = PhysicalTensor(name, _physical_shape(shape, order), order)
    layout.tensors[name] = tensor
    return tensor


def _add_view(layout: Layout, source: str, name: str, shape: Shape, order: Order) -> None:
    """Add `name` as a view of `source`; under the same physical shape it is the same tensor."""
    base = layout.tensors[source]
    physical = _physical_shape(shape, order)
    if physical == base.shape:
        layout.tensors[name] = PhysicalTensor(base.name, physical, order)
    else:
        layout.tensors[name] = PhysicalTensor(name, physical, order)
        layout.views[name] = layout.views.get(base.name, base.name)


def _in_order(layout: Layout, name: str, shape: Shape, order: Order) -> str:
    """The physical tensor that holds `name` in memory `order`.  Adds a copy where there is none."""
    tensor = layout.tensors[name]
    if tensor.order == order:
        return tensor.name
    ordered = layout.ordered.get((name, order))
    if ordered is None:
        ordered = unused(f"{name} in order {order}", layout.named)
        layout.ordered[name, order] = ordered
        if _memory(shape, tensor.order) == _memory(shape, order):
            _add_view(layout, tensor.name, ordered, shape, order)
        else:
            copy = _add_tensor(layout, ordered, shape, order)
            step = CopyStep(tensor.order, order)
            layout.instructions.append(Instruction((f"({name})",), step, (tensor.name,), copy.name))
    return layout.tensors[ordered].name


def _memory(shape: Shape, order: Order) -> Order:
    """The order without axes of size 1, which make no difference in memory."""
    return tuple(axis for axis in order if shape[axis] > 1)
