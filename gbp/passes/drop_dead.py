"""Drop the layers that the scores do not depend on."""

from ..graph.graph import Graph


def drop_dead(graph: Graph) -> Graph:
    """The same graph without the layers that the scores do not depend on."""
    wanted = {graph.output}
    kept = []
    for layer in reversed(graph.layers):
        if layer.output in wanted:
            kept.append(layer)
            wanted.update(layer.inputs)
    return graph.with_layers(reversed(kept))
