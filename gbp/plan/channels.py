"""Which axis of a tensor has the channels, and which tensor has their means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..graph.graph import Graph
from ..ops import fact
from ..ops.pool import AveragePool
from ..ops.shape import Reshape, Transpose


def channel_axes(graph: Graph) -> dict[str, int]:
    """For each tensor the axis of its channels, as far as the ops say.

    Ops that read planes have channels behind the batch.  A Transpose moves them.  Other ops that keep the
    rank leave them where they are, except a Reshape to another shape, which says nothing.

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
        elif not isinstance(layer.op, Reshape) or shapes[x] == shapes[y]:
            alike = [name for name in layer.inputs if name in known and len(shapes[name]) == len(shapes[y])]
            if alike:
                known[y] = known[alike[0]]
    return {name: axis - 1 for name, axis in known.items() if axis > 0}


def channel_means(graph: Graph, channels: Mapping[str, int]) -> dict[str, str]:
    """The tensors that are read by a mean of each channel alone, and the file's tensor that holds the means.

    That is the scores, where the means are the scores, or become them by a new shape alone.

    An AveragePool averages the last two axes of its input, or the only one behind the first.  The mean of a
    channel is over all axes but that of the channels.  So the two agree only where the first axis of a sample
    has the channels, and where no more than two are behind it: a volume has a depth, too.

    Parameters
    ----------
    graph
        The network.
    channels
        The axis of each tensor's channels in one sample, as `channel_axes` finds them.
    """
    readers = Counter(name for layer in graph.layers for name in layer.inputs)
    planes_of: dict[str, str] = {}
    for layer in graph.layers:
        x, y, op = next(iter(layer.inputs), ""), layer.output, layer.op
        if isinstance(op, AveragePool) and op.is_mean and readers[x] == 1:
            if channels.get(x) == 0 and len(graph.shapes[x]) <= 4:
                planes_of[y] = x
        elif isinstance(op, Reshape) and x in planes_of:
            is_part = x not in graph.of_file  # of ReduceMean
            if is_part or (y == graph.output and readers[x] == 1):
                planes_of[y] = planes_of[x]
    file = graph.of_file
    return {planes: means for means, planes in planes_of.items() if means in file and planes in file}
