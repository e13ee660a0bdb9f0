"""Build a Concat on an earlier one that it begins with: in DenseNets each layer joins all that came before.

    y = [a, b],  z = [a, b, c]        becomes        y = [a, b],  z = [y, c]

In memory a tensor can be part of one whole only.  So it is part of y, and y of z, and none is copied.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.graph import Graph
from ..ops.concat import Concat


def nest_concat(graph: Graph) -> Graph:
    """The same graph with every Concat built on the longest earlier one that it begins with."""
    layers = []
    # What a Concat begins with, part by part, has a number: that of (all but its last part, the last).
    numbers: dict[tuple[int, str], int] = {}
    joined: dict[int, str] = {}
    for layer in graph.layers:
        inputs = layer.inputs
        if isinstance(layer.op, Concat) and not layer.op.constants:
            number = -layer.op.axis
            for count, part in enumerate(layer.inputs, start=1):
                number = numbers.setdefault((number, part), len(numbers) + 1)
                if number in joined:
                    inputs = (joined[number], *layer.inputs[count:])
            joined.setdefault(number, layer.output)
        layers.append(replace(layer, inputs=inputs))
    return graph.with_layers(layers)
