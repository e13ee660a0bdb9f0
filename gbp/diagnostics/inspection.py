"""`inspect`: the layers of a model, how each would be computed, and the ops that gbp does not support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from numpy.typing import ArrayLike

from .. import Model, UnsupportedError
from ..graph.graph import Graph
from ..graph.op import check_algorithm
from ..graph.shapes import Shape
from ..importer.batch_axis import settled
from ..importer.functions import inlined
from ..importer.proto import check_tensors, read
from ..importer.refusals import advice, unsupported_nodes
from ..importer.subgraph import Choice, Source, locate
from ..limits import computing
from ..plan.plan import Plan


@dataclass(frozen=True)
class LayerRow:
    """One row of the table of layers.

    Parameters
    ----------
    name, op
        The node's name and op in the file.
    shape
        The output's logical shape, without the batch.
    parameters
        How many weights it holds.
    macs
        Multiply-adds for one sample.
    plan
        How it is computed, or that it is fused, folded or a view.
    """

    name: str
    op: str
    shape: Shape
    parameters: int
    macs: int
    plan: str


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`.

    Parameters
    ----------
    layers
        The table of layers.
    unsupported
        The nodes that gbp does not support, one message each.
    input, output
        Name and shape of both ends.
    hints
        Advice about the unsupported nodes.
    """

    layers: tuple[LayerRow, ...]
    unsupported: tuple[str, ...]
    input: str
    output: str
    hints: tuple[str, ...] = ()
    #: Remarks about the file, for the reader of the maps.
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
    """List the layers of a model.

    Parameters
    ----------
    model
        A path, the bytes of a file, or a ModelProto.
    size
        (H, W) where the model leaves it open; by default 224.
    algorithm, output, input, given
        As for `Explainer`.

    Returns
    -------
    An `Inspection`, which lists unsupported nodes too.

    Raises
    ------
    ModelError
        For a damaged model.
    InputError
        For an argument that cannot be used.
    """
    check_algorithm(algorithm)
    proto, weights = read(model)
    proto = inlined(proto)
    nodes: Sequence[onnx.NodeProto] = proto.graph.node
    try:
        source = locate(proto, weights, Choice(output, input, given or {}))
        refused = unsupported_nodes(source)
        unsupported = list(map(str, refused))
        hints = advice(refused)
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
    """The layers of a model that gbp supports."""
    shape = (source.input_shape[0] or 1, *source.sample_shape(size))
    source, graph = settled(source, shape)
    shape = graph.shapes[graph.input]
    with computing():
        plan = Plan.build(graph, algorithm)
    cells = _plan_cells(graph, plan)
    rows = tuple(
        LayerRow(
            layer.name,
            layer.kind,
            graph.shapes[layer.output][1:],
            layer.op.parameters,
            layer.op.macs(graph.shapes[layer.output]),
            cells[layer.name],
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


def _plan_cells(graph: Graph, plan: Plan) -> dict[str, str]:
    """For each layer: its algorithm and the layers fused with it, or "fused", "folded", "view", "reorder"."""
    # The plan has one layer that the file has not: the rectifier in a QuantizeLinear.
    kinds = {layer.name: layer.kind for layer in graph.layers}
    cells: dict[str, str] = {}
    for instruction in plan.instructions:
        first, *fused = instruction.layers
        cells[first] = " + ".join([instruction.step.algorithm, *(kinds.get(name, "Relu") for name in fused)])
        cells.update(dict.fromkeys(fused, "fused"))
    copied = {it.layers[0] for it in plan.instructions if it.step.algorithm == "reorder"}
    for layer in graph.layers:
        if layer.name not in cells:
            moves = any(f"({name})" in copied for name in layer.inputs)
            is_view = layer.op.moves_only
            cells[layer.name] = "reorder" if is_view and moves else "view" if is_view else "folded"
    return cells
