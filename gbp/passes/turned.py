"""A graph with its Transposes behind the layers that work element by element.

An exporter may write a part of an activation between two Transposes, as tf2onnx does where a PReLU has a
slope for each place.  In the turned graph such parts follow each other.  It serves to find them, and is not
executed: the file has no names for its tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from ..graph.graph import Graph, Layer, unused
from ..graph.op import Op
from ..graph.shapes import Shape
from ..ops.affine import Affine, Scale
from ..ops.binary import Binary, Choice
from ..ops.broadcast import Add, Mul
from ..ops.functions import Function, PRelu
from ..ops.rectifier import Rectifier
from ..ops.shape import Reshape, Transpose

Perm = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """A tensor of a graph as `name` of the turned graph with its axes in the order `perm`."""

    name: str
    perm: Perm

    @property
    def is_turned(self) -> bool:
        return self.perm != tuple(range(len(self.perm)))


def inverse(perm: Perm) -> Perm:
    """The order of axes that undoes `perm`."""
    return tuple(perm.index(axis) for axis in range(len(perm)))


def before(op: Op, shape: Shape, perm: Perm) -> Op | None:
    """The op that does before a Transpose what `op` does behind it to tensors of `shape`; None for others."""
    back = inverse(perm)

    def turn(c: NDArray[Any]) -> NDArray[Any]:
        return c.transpose(back) if c.ndim == len(back) else c

    match op:
        case Function() | Rectifier() | Mul() | Add():
            return op
        case Affine(a, b, axis):
            return Affine(a, b, perm[axis])
        case Scale(a, b):
            return Scale(turn(a), turn(b))
        case PRelu(slopes, axis):
            return PRelu(turn(slopes) if axis is None else slopes, None if axis is None else perm[axis])
        case Reshape(to) if to == shape:
            return Reshape(tuple(to[axis] for axis in back))
        case Binary(name, constants) | Choice(name, constants):
            return type(op)(name, tuple(c if c is None else turn(c) for c in constants))
    return None


def turned(graph: Graph) -> tuple[Graph, dict[str, View]]:
    """The turned graph, and the tensors of `graph` that its elementwise layers make before a Transpose."""
    taken, shapes = set(graph.shapes), dict(graph.shapes)
    layers: list[Layer] = []
    views: dict[str, View] = {}
    moved: dict[str, View] = {}
    made: set[str] = set()

    def whole(name: str) -> str:
        """The tensor itself."""
        view = views.get(name)
        if view is None or name in made:
            return name
        if not view.is_turned:
            return view.name
        layers.append(Layer(name, Transpose(view.perm), (view.name,), name))
        made.add(name)
        return name

    for layer in graph.layers:
        op, given = layer.op, [views.get(name) for name in layer.inputs]
        if isinstance(op, Transpose):
            x = given[0] or View(layer.inputs[0], tuple(range(len(op.perm))))
            views[layer.output] = View(x.name, tuple(x.perm[axis] for axis in op.perm))
            continue
        found = [view for view in given if view and view.is_turned]
        if found and len(found) == len(given) and len({view.perm for view in found}) == 1:
            perm, shape = found[0].perm, shapes[layer.output]
            same = all(shapes[name] == shape for name in layer.inputs)
            if same and (op_ := before(op, shape, perm)) is not None:
                name = unused(f"{layer.output}/turned", taken)
                taken.add(name)
                shapes[name] = tuple(shape[axis] for axis in inverse(perm))
                layers.append(Layer(layer.name, op_, tuple(view.name for view in found), name, layer.kind))
                moved[layer.output] = views[layer.output] = View(name, perm)
                continue
        layers.append(replace(layer, inputs=tuple(map(whole, layer.inputs))))
    graph = replace(graph, output=whole(graph.output), shapes=shapes)
    return graph.with_layers(layers), moved
