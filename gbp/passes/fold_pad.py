"""Fold a Pad of zeros into the Conv that reads it.  A Conv pads without a pass over memory."""

from __future__ import annotations

from dataclasses import replace

from ..graph.geometry import Axis, Window
from ..graph.graph import Graph, Layer
from ..ops.conv.conv import Conv
from ..ops.shape import Pad


def _widen(axis: Axis, begin: int, end: int) -> Axis:
    """The axis before padding, which the window now adds."""
    return replace(axis, size=axis.size - begin - end, begin=axis.begin + begin, end=axis.end + end)


def _folded(pad: Pad, conv: Conv) -> Conv | None:
    """The convolution of the unpadded input; None where its windows cannot pad as `pad` does."""
    deep, high, wide = ((0, 0), (0, 0), *zip(pad.begin[2:], pad.end[2:], strict=True))[-3:]
    if pad.value != 0 or pad.begin[1] or pad.end[1] or (any(deep) and conv.depth is None):
        return None
    window = Window(_widen(conv.window.height, *high), _widen(conv.window.width, *wide))
    return replace(conv, window=window, depth=conv.depth and _widen(conv.depth, *deep))


def fold_pad(graph: Graph) -> Graph:
    """The same graph; a Pad of zeros whose only reader is a convolution becomes part of its window."""
    consumers = graph.consumers()
    pads = {layer.output: layer for layer in graph.layers if isinstance(layer.op, Pad)}
    layers = []
    folded = set()
    for layer in graph.layers:
        pad = pads.get(layer.inputs[0])
        if pad and isinstance(pad.op, Pad) and isinstance(layer.op, Conv) and pad.output != graph.output:
            conv = _folded(pad.op, layer.op) if len(consumers[pad.output]) == 1 else None
            if conv is not None:
                folded.add(pad.output)
                layers.append(Layer(layer.name, conv, pad.inputs, layer.output, layer.kind))
                continue
        layers.append(layer)
    return graph.with_layers(layer for layer in layers if layer.output not in folded)
