"""Graph → Graph, each of them leaving scores and maps as they are."""

from ..graph import Graph
from .drop_dead import drop_dead
from .fold_affine import fold_affine
from .fold_pad import fold_pad
from .nest_concat import nest_concat

PASSES = (drop_dead, fold_pad, fold_affine, nest_concat)


def simplify(graph: Graph) -> Graph:
    """All passes in order."""
    for apply in PASSES:
        graph = apply(graph)
    return graph
