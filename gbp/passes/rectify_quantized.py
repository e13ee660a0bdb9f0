"""Put a rectifier before each QuantizeLinear that is one.

If its zero point is the smallest integer, numbers below 0 saturate, so its output is that of a quantized
Relu.  Quantizers use this and leave out a Relu or Clip(0, b) before such a node.  After this pass the map of
every rule is the same whether the file has the rectifier or not.

    QuantizeLinear   =   the same after Clip(0, (hi − zero) · scale)       under one scale
                     =   the same after Relu                               under one scale a channel

If its input is never negative, such as pooled or concatenated outputs of rectifiers, or if it is the image,
nothing is inserted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph.graph import Graph, Layer, unused
from ..ops.quantize import Quantize
from ..ops.rectifier import Rectifier
from ..ops.step import Clipped
from .signs import nonnegative


def rectify_quantized(graph: Graph) -> Graph:
    """The same graph with a rectifier before each QuantizeLinear that rectifies."""
    if not any(isinstance(layer.op, Quantize) for layer in graph.layers):
        return graph
    positive = nonnegative(graph)
    readers = {name: len(found) for name, found in graph.consumers().items()}
    readers[graph.output] += 1
    shapes = dict(graph.shapes)
    layers: list[Layer] = []
    made: dict[str, int] = {}  # which of `layers` makes a tensor
    narrowed: set[str] = set()  # tensors that hold other numbers than the file's
    for layer in graph.layers:
        op, x = layer.op, layer.inputs[0]
        if isinstance(op, Quantize) and (op.zero == op.lo).all():
            clip, maker = _clip(op), layers[made[x]] if x in made else None
            before = maker.op.clip if maker is not None and type(maker.op) is Rectifier else None
            if maker is not None and before is not None and before.is_rectifier and readers[x] == 1:
                both = Clipped(before.lo, min(before.hi, clip.hi), is_rectifier=True)
                layers[made[x]] = replace(maker, op=Rectifier(both))
                narrowed.add(x)
            elif x not in positive:
                rectified = unused(f"{x}/rectified", shapes)
                shapes[rectified] = shapes[x]
                layers.append(Layer(f"{layer.name}/rectifier", Rectifier(clip), (x,), rectified, layer.kind))
                layer = replace(layer, inputs=(rectified,))  # noqa: PLW2901  # it stands for the loop's
        made[layer.output] = len(layers)
        layers.append(layer)
    return replace(graph, shapes=shapes, of_file=graph.of_file - narrowed).with_layers(layers)


def _clip(op: Quantize) -> Clipped:
    """The range of numbers that do not saturate, with its ends."""
    if op.scale.size > 1:
        return Clipped(0.0, np.inf, is_rectifier=True)
    largest = np.float32((op.hi - float(op.zero.flat[0])) * float(op.scale.flat[0]))
    return Clipped(0.0, float(np.nextafter(largest, np.float32(np.inf))), is_rectifier=True)
