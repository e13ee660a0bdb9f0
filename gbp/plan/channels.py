"""Which axis of a tensor has the channels."""

from __future__ import annotations

from ..graph.graph import Graph
from ..ops import fact
from ..ops.shape import Reshape, Transpose


def channel_axes(graph: Graph) -> dict[str, int]:
    """For each tensor the axis of its channels, as far as the ops say.

    Ops that read planes have channels behind the batch.  A Transpose moves them.  Other ops that keep the
    rank leave them where they are, except Reshape, which says nothing.

    Parameters
    ----------
    graph
        The network.

    Returns
    -------
    The axis in the shape of one sample.
    """
    known: dict[str, int] = {}
    for layer in graph.layers:
        x, y, shapes = layer.inputs[0], layer.output, graph.shapes
        if fact(layer.kind).reads_planes:
            known.setdefault(x, 1)
            known[y] = 1
        elif isinstance(layer.op, Transpose):
            if x in known:
                known[y] = layer.op.perm.index(known[x])
        elif not isinstance(layer.op, Reshape):
            alike = [name for name in layer.inputs if name in known and len(shapes[name]) == len(shapes[y])]
            if alike:
                known[y] = known[alike[0]]
    return {name: axis - 1 for name, axis in known.items() if axis > 0}
