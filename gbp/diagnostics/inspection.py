"""`inspect`: what a model is made of, how each layer would be computed, and which ops gbp does not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from numpy.typing import ArrayLike

from ..errors import UnsupportedError
from ..graph.graph import Graph
from ..graph.shapes import Shape
from ..importer.functions import inlined
from ..importer.load import settled
from ..importer.proto import Model, check_tensors, read
from ..importer.refusals import unsupported_nodes
from ..importer.subgraph import Choice, Source, locate
from ..limits import computing
from ..ops.conv.conv import check_algorithm
from ..plan.plan import Plan


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
    #: What to do about what is unsupported, where there is something to say.
    hints: tuple[str, ...] = ()
    #: What a reader of the maps should know of the file.
    notes: tuple[str, ...] = ()


def inspect(
    model: Model,
    size: tuple[int, int] | None = None,
    algorithm: str = "auto",
    *,
    output: str | None = None,
    input: str | None = None,
    given: Mapping[str, ArrayLike] | None = None,
) -> Inspection:
    """The layer table of a model, for images of `size` = (H, W), by default 224, where it leaves that open.

    All other arguments as for `Explainer`.  Raises ModelError for a damaged model and InputError for an
    argument that cannot be used; what is merely unsupported is listed in the result.
    """
    check_algorithm(algorithm)
    proto, weights = read(model)
    proto = inlined(proto)
    nodes: Sequence[onnx.NodeProto] = proto.graph.node
    try:
        source = locate(proto, weights, Choice(output, input, given or {}))
        refused = unsupported_nodes(source)
        unsupported = list(map(str, refused))
        hints = tuple(dict.fromkeys(node.hint for node in refused if node.hint))
        nodes = source.nodes
        if not unsupported:
            check_tensors(proto)
            return _inspect(source, size, algorithm)
    except UnsupportedError as error:
        unsupported, hints = [str(error)], ()
    rows = (LayerRow(node.name or ", ".join(node.output), node.op_type, (), 0, 0, "") for node in nodes)
    outputs = ", ".join(value.name for value in proto.graph.output)
    return Inspection(tuple(rows), tuple(unsupported), "?", outputs, hints)


def _inspect(source: Source, size: tuple[int, int] | None, algorithm: str) -> Inspection:
    shape = (source.input_shape[0] or 1, *source.sample_shape(size))
    source, graph = settled(source, shape)
    shape = graph.shapes[graph.input]
    with computing():
        plan = Plan.build(graph, algorithm)
    how = _how(graph, plan)
    rows = tuple(
        LayerRow(
            layer.name,
            layer.kind,
            graph.shapes[layer.output][1:],
            layer.op.parameters,
            layer.op.macs(graph.shapes[layer.output]),
            how[layer.name],
        )
        for layer in graph.layers
    )
    return Inspection(
        rows,
        (),
        f"{source.input} {'×'.join(map(str, shape[1:]))}",
        f"{source.scores} {'×'.join(map(str, graph.shapes[source.scores][1:]))}",
        notes=source.notes + graph.notes,
    )


def _how(graph: Graph, plan: Plan) -> dict[str, str]:
    """For each layer: its kernel and what is fused with it, or that it became part of another."""
    # The plan has one layer that the file has not: the rectifier in a QuantizeLinear.
    kinds = {layer.name: layer.kind for layer in graph.layers}
    how: dict[str, str] = {}
    for instruction in plan.instructions:
        first, *fused = instruction.layers
        how[first] = " + ".join([instruction.step.algorithm, *(kinds.get(name, "Relu") for name in fused)])
        how.update(dict.fromkeys(fused, "fused"))
    copied = {it.layers[0] for it in plan.instructions if it.step.algorithm == "reorder"}
    for layer in graph.layers:
        if layer.name not in how:
            moves = any(f"({name})" in copied for name in layer.inputs)
            is_view = layer.op.moves_only
            how[layer.name] = "reorder" if is_view and moves else "view" if is_view else "folded"
    return how
