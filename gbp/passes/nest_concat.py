"""Nest a Concat in a later one that begins with the same inputs, as in DenseNets.

    y = [a, b],  z = [a, b, c]        becomes        y = [a, b],  z = [y, c]

A tensor can be a slice of one buffer only.  After this pass a is a slice of y, and y is a slice of z, so none
of them is copied.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.graph import Graph
from ..ops.concat import Concat


def nest_concat(graph: Graph) -> Graph:
    """The same graph; every Concat reads the longest earlier Concat whose inputs it begins with."""
    layers = []
    # Each sequence of inputs has a number, found by (the number of all but the last input, the last input).
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
        layers.append(layer if inputs is layer.inputs else replace(layer, inputs=inputs))
    return graph.with_layers(layers)
