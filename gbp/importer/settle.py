"""Decides whether a file that fixes all its sizes has a batch axis: where its graph can be built so."""

from __future__ import annotations

from dataclasses import replace

from ..errors import GbpError, ModelError, UnsupportedError
from ..graph.graph import Graph
from ..graph.shapes import Shape
from .load import build
from .refusals import with_hint
from .subgraph import Source

#: A batch size that no file has by chance.
_MANY = 61


def settled(source: Source, input_shape: Shape) -> tuple[Source, Graph]:
    """Build the graph for images of `input_shape`, and decide whether the file has a batch axis.

    Where the graph cannot be built with a batch, there are two more attempts.  If the file leaves the batch
    open, the graph is built for a batch of one, and kept if it can be built for many samples as well.  If the
    file fixes all its sizes, it may use its first axis in a way that a batch does not allow.  Then it holds
    one sample and no batch.

    Returns the source, with that decision, and the graph.  Raises what `build` raises, with a hint where
    another attempt says more.
    """
    try:
        return source, build(source, input_shape)
    except ModelError as error:
        batch = source.input_shape[0] if source.has_batch else 1
        if isinstance(error, UnsupportedError) and batch is None:
            graph = _built(replace(source, input_shape=(1, *source.input_shape[1:])), input_shape)
            if isinstance(graph, Graph):
                # Samples that stay apart in a batch of this size stay apart in any batch.
                if isinstance(_built(source, (_MANY, *input_shape[1:])), Graph):
                    return source, graph
                raise with_hint(error, "Or fix the batch at 1 in the file: then nothing mixes.") from None
        if batch != 1 and input_shape == source.input_shape:
            alone = source.without_batch()
            graph = _built(alone, (1, *input_shape))
            if isinstance(graph, Graph):
                return alone, graph
            if isinstance(error, UnsupportedError) and str(graph) != str(error):
                raise with_hint(error, f"Nor as one sample without a batch: {graph}") from None
        raise


def _built(source: Source, input_shape: Shape) -> Graph | GbpError:
    """The graph, or the error that there is none."""
    try:
        return build(source, input_shape)
    except GbpError as error:
        return error
