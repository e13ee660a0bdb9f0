"""`inspect`: what a model is made of, how each layer would be computed, and all that gbp does not do."""

from __future__ import annotations

import os
from dataclasses import dataclass

import onnx

from .errors import UnsupportedError
from .graph import Graph, Shape
from .load import Source, build, open_model, read, unsupported_nodes
from .ops.pointwise import Affine
from .ops.shape import Pad
from .plan import Plan

_DEFAULT_SIZE = 224


@dataclass(frozen=True)
class LayerRow:
    """One layer: its output's logical shape, parameters, multiply-adds a sample, and how it is planned."""

    name: str
    op: str
    shape: Shape
    parameters: int
    macs: int
    plan: str


@dataclass(frozen=True)
class Inspection:
    layers: tuple[LayerRow, ...]
    unsupported: tuple[str, ...]
    input: str
    output: str


def inspect(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, size: tuple[int, int] | None = None
) -> Inspection:
    """The layer table of a model, for images of `size` = (H, W) where the file leaves it open (224 by default).

    Raises ModelError for a damaged model; what is merely unsupported is listed in the result.
    """
    proto = read(model)
    try:
        source = open_model(proto)
        return _inspect(source, size or (_DEFAULT_SIZE, _DEFAULT_SIZE))
    except UnsupportedError as error:
        unsupported = unsupported_nodes(proto, proto.graph.node) or [str(error)]
    rows = tuple(
        LayerRow(node.name or ", ".join(node.output), node.op_type, (), 0, 0, "") for node in proto.graph.node
    )
    return Inspection(rows, tuple(unsupported), "?", ", ".join(value.name for value in proto.graph.output))


def _inspect(source: Source, size: tuple[int, int]) -> Inspection:
    given = source.input_shape
    open_sizes = iter(size)
    shape = (given[0] or 1, *(n or next(open_sizes, 1) for n in given[1:]))
    graph = build(source, shape)
    plan = Plan.build(graph)
    how = _how(graph, plan)
    rows = tuple(
        LayerRow(
            layer.name,
            type(layer.op).__name__,
            graph.shapes[layer.output][1:],
            layer.op.parameters,
            layer.op.macs(graph.shapes[layer.output]),
            how[layer.name],
        )
        for layer in graph.layers
    )
    return Inspection(
        rows, (), f"{source.input} {'×'.join(map(str, shape[1:]))}",
        f"{source.scores} {'×'.join(map(str, graph.shapes[source.scores][1:]))}",
    )


def _how(graph: Graph, plan: Plan) -> dict[str, str]:
    """For each layer: its kernel, or the layer that it became part of."""
    how: dict[str, str] = {}
    for call in plan.calls:
        first, *fused = call.layers
        how[first] = call.step.how
        for name in fused:
            how[name] = f"in {first}"
    for layer in graph.layers:
        if layer.name not in how:
            how[layer.name] = "folded" if isinstance(layer.op, (Affine, Pad)) else "view"
    return how
