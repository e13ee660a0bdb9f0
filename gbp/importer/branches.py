"""Nodes that hold graphs: which tensors they read, and the branch of an If once its condition is known.

A graph inside a node reads tensors of the graph around it by name (ONNX IR, "Name Scoping").  The branch that
is taken joins the nodes around it; its own tensors get new names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
from onnx import helper

from ..errors import ModelError, UnsupportedError
from .proto import graphs_of, label


def reads(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads: its inputs, and outer tensors that its graphs read."""
    names = [name for name in node.input if name]
    for graph in graphs_of(node):
        names += _outer(graph)
    return list(dict.fromkeys(names))


def _own(graph: onnx.GraphProto) -> set[str]:
    """The tensors that a graph makes or stores, and its inputs."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    return own.union(name for node in graph.node for name in node.output)


def _outer(graph: onnx.GraphProto) -> list[str]:
    """The tensors that a graph reads from around it."""
    own = _own(graph)
    read = [name for node in graph.node for name in reads(node)]
    return [name for name in (*read, *(value.name for value in graph.output)) if name and name not in own]


def taken(
    node: onnx.NodeProto, condition: bool, unused: Callable[[str], str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes of the branch that an If takes, which make the If's outputs, and the branch's initializers.

    Raises ModelError, or UnsupportedError if the branch is no plain graph.
    """
    name = "then_branch" if condition else "else_branch"
    branch = next((a.g for a in node.attribute if a.name == name and a.HasField("g")), None)
    if branch is None or len(branch.output) != len(node.output) or branch.input:
        raise ModelError(f"its {name} does not make its outputs.", node=label(node), op=node.op_type)
    if branch.sparse_initializer:
        raise UnsupportedError(f"its {name} stores sparse tensors.", node=label(node), op=node.op_type)
    inner = [tensor.name for tensor in branch.initializer]
    inner += [output for each in branch.node for output in each.output if output]
    if len(set(inner)) < len(inner):
        raise ModelError(f"its {name} makes a tensor twice.", node=label(node), op=node.op_type)
    names = {made: unused(f"{label(node)}/{made}") for made in inner}
    tensors = []
    for tensor in branch.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
        tensors.append(copy)
    nodes = [_renamed(each, names) for each in branch.node]
    for value, output in zip(branch.output, node.output, strict=True):
        if output:
            given = names.get(value.name, value.name)
            nodes.append(helper.make_node("Identity", [given], [output], name=label(node)))
    return nodes, tensors


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for graph in graphs_of(copy):
        _rename_outer(graph, names)
    return copy


def _rename_outer(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename what a graph reads from outside, and in graphs inside it.  Names that it makes itself stay."""
    own = _own(graph)
    names = {old: new for old, new in names.items() if old not in own}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for inner in graphs_of(node):
            _rename_outer(inner, names)
    for value in graph.output:
        value.name = names.get(value.name, value.name)
