"""Insert a tap behind each tensor that is kept, before other passes fold the layers around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..graph.graph import Graph, Layer, unused
from ..ops.tap import Tap


def tap(graph: Graph, names: Iterable[str]) -> tuple[Graph, dict[str, str]]:
    """The same graph with taps.

    Parameters
    ----------
    graph
        The network.
    names
        Tensors that layers make, none of them the scores.

    Returns
    -------
    The graph; and for each tensor the name of its tap, which all its readers read.
    """
    taps = {name: unused(f"{name}/kept", graph.shapes) for name in names}
    layers: list[Layer] = []
    for layer in graph.layers:
        inputs = tuple(taps.get(x, x) for x in layer.inputs)
        layers.append(layer if inputs == layer.inputs else replace(layer, inputs=inputs))
        if layer.output in taps:
            made = taps[layer.output]
            layers.append(Layer(made, Tap(), (layer.output,), made, "Tap"))
    shapes = graph.shapes | {made: graph.shapes[name] for name, made in taps.items()}
    return replace(graph, shapes=shapes).with_layers(layers), taps
