"""Name the rectifiers and activations that exporters write in parts, or as other ops.

    ReLU           Where(x > 0, x, 0), x · (x > 0), LeakyRelu of slope 0
    ReLU6          Min(Relu(x), 6), Max(Min(x, 6), 0)
    SiLU           x · Sigmoid(x)                      HardSigmoid    Clip(x + 3, 0, 6) / 6
    HardSwish      x · Clip(x + 3, 0, 6) / 6           GELU           x · (Erf(x / √2) + 1) / 2
    Mish           x · Tanh(Softplus(x))               PReLU          Relu(x) − a · Relu(−x)
                   and so on, in any order and grouping

What is recognised is the function, not how it is written: layers that take one tensor to one tensor, number
by number, compute a function of one number, and its values tell which it is.  So under every rule the map is
that of the function as one op: a rectifier obeys the rule, and a Clip that is part of an activation does not.

An activation in float16 constants differs from the function by what these were rounded by.  It is computed as
it is written, and named where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..graph.graph import Graph, Layer
from ..ops.functions import End, Function, PRelu
from ..ops.rectifier import Rectifier, Threshold
from .elementwise import Search, Subgraph
from .known import Known, known
from .signs import nonnegative


def name_activations(graph: Graph) -> Graph:
    """The same graph with every rectifier and activation as one layer, or as layers that end in `End`."""
    graph = _rename(graph)
    search, positive = Search(graph), nonnegative(graph)
    taken = set(graph.shapes)
    replaced: set[str] = set()
    layers: list[Layer] = []
    for layer in reversed(graph.layers):
        if layer.output in replaced:
            continue
        found = _largest(search, layer.output, positive)
        if found is None:
            layers.append(layer)
            continue
        parts, is_ = found
        replaced |= {part.output for part in parts.layers}
        if is_.equal:
            layers.append(Layer(parts.layers[-1].name, is_.op, (parts.x,), parts.y, is_.kind))
        else:
            layers += reversed(_kept(parts, is_.kind, taken))
    shapes = dict(graph.shapes)
    for layer in layers:
        if isinstance(layer.op, End):
            shapes[layer.inputs[0]] = shapes[layer.output]
    return replace(graph, shapes=shapes).with_layers(reversed(layers))


def _rename(graph: Graph) -> Graph:
    """The same graph with every layer that is a rectifier by itself as one, such as LeakyRelu of slope 0."""
    search, positive = Search(graph), nonnegative(graph)
    layers = []
    for layer in graph.layers:
        alone = next(search.ending_at(layer.output), None)
        found = known(alone) if alone is not None and len(alone.layers) == 1 else None
        if alone is not None and found is not None and _is_news(alone, found, positive):
            layer = replace(layer, op=found.op)  # noqa: PLW2901  # it stands for the loop's
        layers.append(layer)
    return graph.with_layers(layers)


def _largest(search: Search, y: str, positive: set[str]) -> tuple[Subgraph, Known] | None:
    """The largest subgraph that ends at y and is known."""
    for parts in reversed(list(search.ending_at(y))):
        found = known(parts)
        if found is not None and _is_news(parts, found, positive):
            return parts, found
    return None


def _is_news(parts: Subgraph, found: Known, positive: set[str]) -> bool:
    """Whether the layers are not that already."""
    inner = [known(parts.until(layer.output)) for layer in parts.layers[:-1]]
    is_rectifier = isinstance(found.op, Rectifier)
    if not is_rectifier and any(other is not None and other.kind == found.kind for other in inner):
        return False  # what comes behind is another thing, as a guard against 0 behind a Sigmoid
    if len(parts.layers) > 1 and _bends(found) and _holds_another(parts, inner):
        return False
    if not isinstance(found.op, Rectifier):
        return len(parts.layers) > 1
    rectifies = any(isinstance(part.op, Rectifier) and part.op.clip.is_rectifier for part in parts.layers)
    is_guard = found.op.clip.lo > 0 and not isinstance(found.op, Threshold)
    if is_guard and parts.x in positive and not rectifies:
        return False  # against 0, of a norm, a variance or a probability say
    return len(parts.layers) > 1 or parts.layers[0].op != found.op


def _bends(found: Known) -> bool:
    """Whether it is straight but for bends, as some functions of another that bends are."""
    return isinstance(found.op, (Rectifier, PRelu)) or found.kind in ("LeakyRelu", "Shrink")


def _holds_another(parts: Subgraph, inner: Sequence[Known | None]) -> bool:
    """Whether among the layers is an activation, in parts or not, or a Clip around 0.

    Relu of LeakyRelu has Relu's values, but here each node has its own gate or slope.
    """
    for layer in parts.layers:
        if layer.op.is_activation:
            return True
        if isinstance(layer.op, Rectifier) and -np.inf < layer.op.clip.lo < 0 and layer.op.clip.hi < np.inf:
            return True
    return any(found is not None and not isinstance(found.op, Rectifier) for found in inner)


def _kept(parts: Subgraph, kind: str, taken: set[str]) -> list[Layer]:
    """The layers as they are, none of them a rectifier or an activation by itself, and their end."""
    y = f"{parts.y}/in parts"
    while y in taken:
        y += "'"
    taken.add(y)
    layers = []
    for layer in parts.layers:
        op = layer.op
        if isinstance(op, Rectifier):
            op = replace(op, clip=replace(op.clip, is_rectifier=False))
        if isinstance(op, Function):
            op = replace(op, is_part=True)
        layers.append(replace(layer, op=op, output=y if layer.output == parts.y else layer.output))
    return [*layers, Layer(parts.layers[-1].name, End(), (y,), parts.y, kind)]
