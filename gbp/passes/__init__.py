"""Passes rewrite a graph without a change to scores or maps.

There are two exceptions: `name_activations` and `rectify_quantized` change maps under rules with gates,
because they decide what is a rectifier.  The graph of a file comes in; the same network in fewer layers comes
out.  It may import ops, graph and errors.
"""

from ..graph.graph import Graph
from .drop_dead import drop_dead
from .fold_affine import fold_affine
from .fold_pad import fold_pad
from .name_activations import name_activations
from .nest_concat import nest_concat
from .rectify_quantized import rectify_quantized

#: The passes that decide what is a rectifier or an activation, which is one layer then, with no tensors
#: inside.
NAMING = (drop_dead, name_activations, rectify_quantized)
#: The passes that fold layers into others.
FOLDING = (fold_pad, fold_affine, nest_concat)


def named(graph: Graph) -> Graph:
    """Apply the passes of `NAMING`, in order."""
    for apply in NAMING:
        graph = apply(graph)
    return graph


def folded(graph: Graph) -> Graph:
    """Apply the passes of `FOLDING`, in order."""
    for apply in FOLDING:
        graph = apply(graph)
    return graph
