"""`Graph`: what the network means, in order of computation, with no word of ONNX, devices or layouts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .op import Op
from .shapes import Shape


@dataclass(frozen=True)
class Layer:
    """One step of meaning: `output` = op(inputs).  Constants (weights) live in the op.

    `kind` is what the file calls the op, for people.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    output: str
    kind: str = ""


@dataclass(frozen=True)
class Graph:
    """A network from one float32 input to one tensor of scores.

    `layers` are in order of computation and each tensor has one producer.  `shapes` gives every tensor's
    logical shape, batch first; axis 0 is `batch` everywhere, so a plan may put any other number there.
    `notes`: what a reader of the maps should know of the file.
    """

    input: str
    output: str
    layers: tuple[Layer, ...]
    shapes: dict[str, Shape]
    notes: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        return self.shapes[self.input][0]

    def consumers(self) -> dict[str, list[Layer]]:
        """For each tensor the layers that read it, once per use."""
        found: dict[str, list[Layer]] = {name: [] for name in self.shapes}
        for layer in self.layers:
            for name in layer.inputs:
                found[name].append(layer)
        return found

    def with_layers(self, layers: Iterable[Layer]) -> Graph:
        """The same network computed by other layers; forgets the shapes of tensors that are gone."""
        layers = tuple(layers)
        kept = {self.input, self.output, *(layer.output for layer in layers)}
        shapes = {name: shape for name, shape in self.shapes.items() if name in kept}
        return Graph(self.input, self.output, layers, shapes, self.notes)
