"""`Graph`: the layers of a network in order of computation.  It knows no ONNX, devices or memory orders."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from .op import Op
from .shapes import Shape


@dataclass(frozen=True)
class Layer:
    """One layer: `output` = op(`inputs`).

    Parameters
    ----------
    name
        The node's name in the file, for messages.
    op
        The function that the layer computes.  It holds the constants (weights).
    inputs, output
        Names of tensors.
    kind
        The op's name in the file, for messages.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    output: str
    kind: str = ""


@dataclass(frozen=True)
class Graph:
    """A network from one float32 input to one tensor of scores.

    Parameters
    ----------
    input, output
        Names of the two tensors.
    layers
        In order of computation.  Each tensor has one producer.
    shapes
        The logical shape of every tensor.  Axis 0 is the batch everywhere, so a plan may put any other number
        there.
    notes
        Remarks about the file, for the reader of the maps.
    of_file
        Tensors that have their name in the file.  The importer and passes make others.
    """

    input: str
    output: str
    layers: tuple[Layer, ...]
    shapes: dict[str, Shape]
    notes: tuple[str, ...] = ()
    of_file: frozenset[str] = frozenset()

    @property
    def batch(self) -> int:
        """Samples in the shapes of this graph."""
        return self.shapes[self.input][0]

    def consumers(self) -> dict[str, list[Layer]]:
        """For each tensor, the layers that read it: one entry per use."""
        found: dict[str, list[Layer]] = {name: [] for name in self.shapes}
        for layer in self.layers:
            for name in layer.inputs:
                found[name].append(layer)
        return found

    def with_layers(self, layers: Iterable[Layer]) -> Graph:
        """The same network, computed by other layers.  Shapes of tensors that no layer makes are dropped."""
        layers = tuple(layers)
        kept = {self.input, self.output, *(layer.output for layer in layers)}
        shapes = {name: shape for name, shape in self.shapes.items() if name in kept}
        return replace(self, layers=layers, shapes=shapes)


def unused(name: str, taken: Container[str]) -> str:
    """A name for a tensor that is made besides the file's: `name`, or one like it that is not taken."""
    while name in taken:
        name += "'"
    return name
