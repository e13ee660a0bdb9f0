"""Insert a tap behind each tensor that is kept, before other passes fold the layers around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..graph.graph import Graph, Layer
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
    taps: dict[str, str] = {}
    for name in names:
        made = f"{name}/kept"
        while made in graph.shapes:
            made += "'"
        taps[name] = made
    layers: list[Layer] = []
    for layer in graph.layers:
        inputs = tuple(taps.get(x, x) for x in layer.inputs)
        layers.append(layer if inputs == layer.inputs else replace(layer, inputs=inputs))
        if layer.output in taps:
            made = taps[layer.output]
            layers.append(Layer(made, Tap(), (layer.output,), made, "Tap"))
    shapes = graph.shapes | {made: graph.shapes[name] for name, made in taps.items()}
    return replace(graph, shapes=shapes).with_layers(layers), taps
