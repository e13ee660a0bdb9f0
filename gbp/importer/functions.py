"""Functions that a model defines (ONNX FunctionProto) are written out in place of their calls.

The nodes that this would make are counted first.  A file of one kilobyte can call its way to a billion nodes,
or in circles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest

import onnx
from onnx import helper

from ..errors import ModelError, UnsupportedError, readable_bytes
from ..graph.graph import unused
from ..limits import MAX_NAMES, MAX_NODES, max_bytes_made_of
from .proto import all_nodes, graphs_of, label, qualified

_Key = tuple[str, str, str]
_ONNX = ("", "ai.onnx")
#: Most bytes of the nodes that are written out: each call copies the names and attributes of a body.
_MAX_BYTES = max_bytes_made_of(0)
#: How deep calls may be within each other: each takes some frames of Python's stack.
_MAX_DEPTH = 100


def _key(node: onnx.NodeProto) -> _Key:
    return str(node.domain), str(node.op_type), str(node.overload)


def _key_of(function: onnx.FunctionProto) -> _Key:
    return str(function.domain), str(function.name), str(function.overload)


class _Counter:
    """Counts the nodes that a node becomes.  A call counts as one where its function has no node.

    It also refuses calls in circles, and too many within each other.
    """

    def __init__(self, functions: Mapping[_Key, onnx.FunctionProto]) -> None:
        self.functions = functions
        #: A function → its nodes, written out, and how many calls and graphs are within each other there.
        self.known: dict[_Key, tuple[int, int]] = {}
        #: The depth that what was counted last has reached.
        self.deepest = 0
        self.open: set[_Key] = set()

    def node(self, node: onnx.NodeProto, depth: int) -> int:
        inside = sum(self.node(each, depth + 1) for graph in graphs_of(node) for each in graph.node)
        return inside + (self.call(_key(node), node, depth) if _key(node) in self.functions else 1)

    def call(self, key: _Key, node: onnx.NodeProto, depth: int) -> int:
        if key in self.open:
            raise ModelError("the functions of the model call each other in circles.", node=label(node))
        outer, self.deepest = self.deepest, depth
        if key not in self.known and depth <= _MAX_DEPTH:
            self.open.add(key)
            body = self.functions[key].node
            count = max(1, sum(self.node(each, depth + 1) for each in body))
            self.open.discard(key)
            self.known[key] = count, self.deepest - depth
        count, height = self.known.get(key, (0, 0))
        if depth + height > _MAX_DEPTH:
            raise UnsupportedError(
                "the functions of the model call each other too deeply.",
                node=label(node),
                supported=f"up to {_MAX_DEPTH} calls within each other",
            )
        self.deepest = max(outer, depth + height)
        return count


class _Writer:
    """Writes calls out.  Tensors of a body get the number of the call behind their names.

    Parameters
    ----------
    graph
        The graph of the model.
    functions
        The functions of the model.
    opset
        The opset of the model; None if it has no node of ONNX.
    """

    def __init__(
        self, graph: onnx.GraphProto, functions: Mapping[_Key, onnx.FunctionProto], opset: int | None
    ) -> None:
        self.functions = functions
        self.opset = opset
        self.taken = {each.name for each in (*graph.initializer, *graph.input)}
        self.taken.update(name for node in graph.node for name in node.output)
        self.calls = 0
        self.bytes = self.names = 0

    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        """The nodes, and bodies in place of calls, also in the graphs that nodes hold."""
        for node in nodes:
            if (function := self.functions.get(_key(node))) is not None:
                yield from self.nodes(self._body(function, node))
                continue
            written = node
            if any(graphs_of(node)):
                written = onnx.NodeProto()
                written.CopyFrom(node)
                for graph in graphs_of(written):
                    inside = list(self.nodes(graph.node))
                    del graph.node[:]
                    graph.node.extend(inside)
            yield written

    def _body(self, function: onnx.FunctionProto, call: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes of a function for one call of it."""
        self._refuse_another_opset(function, call)
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise _wrong(call, "it has more inputs or outputs than its function.")
        self.calls += 1
        names = dict(zip_longest(function.input, call.input, fillvalue=""))
        ends = []
        for inner, outer in zip_longest(function.output, call.output, fillvalue=""):
            if outer and inner in names:  # an input, or another output
                ends.append(helper.make_node("Identity", [names[inner]], [outer], name=label(call)))
            elif outer:
                names[inner] = outer
        made = [name for node in function.node for name in node.output if name]
        if len(set(made)) < len(made) or not set(made).isdisjoint(function.input):
            raise _wrong(call, "its function makes a tensor twice.")
        names |= {name: self._unused(name) for name in made if name not in names}
        given = {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}
        nodes = [self._written(node, names, given, call) for node in function.node]
        return [*nodes, *ends]

    def _written(
        self,
        node: onnx.NodeProto,
        names: Mapping[str, str],
        given: Mapping[str, onnx.AttributeProto],
        call: onnx.NodeProto,
    ) -> onnx.NodeProto:
        """A copy of a node of a body, with the names and the attributes of a call.

        An attribute that refers to one that the call leaves out, and that has no default, is left out too.
        So a call in the body takes its own function's default (ONNX IR, "Attributes" of functions).
        """
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.name:
            copy.name = f"{node.name}__{self.calls}"
        for side in (copy.input, copy.output):
            if missing := [name for name in side if name and name not in names]:
                raise _wrong(call, f"its function reads {missing[0]!r}, which no node of it makes.")
            side[:] = [names[name] if name else "" for name in side]
        del copy.attribute[:]
        for attribute in node.attribute:
            kept = given.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if kept is not None:
                copy.attribute.add().CopyFrom(kept)
                copy.attribute[-1].name = attribute.name
        self.bytes += copy.ByteSize()
        self.names += len(copy.input) + len(copy.output)
        if self.bytes > _MAX_BYTES or self.names > MAX_NAMES:
            raise UnsupportedError(
                "the functions of the model are too large, written out.",
                supported=f"up to {MAX_NAMES} names and {readable_bytes(_MAX_BYTES)} of nodes",
            )
        for graph in graphs_of(copy):
            self._rename(graph, names, given, call)
        return copy

    def _rename(
        self,
        graph: onnx.GraphProto,
        names: Mapping[str, str],
        given: Mapping[str, onnx.AttributeProto],
        call: onnx.NodeProto,
    ) -> None:
        """Write out a graph that a node of a body holds."""
        own = [each.name for each in (*graph.input, *graph.initializer)]
        own += [name for node in graph.node for name in node.output if name]
        names = {**names, **{name: self._unused(name) for name in own}}
        nodes = [self._written(node, names, given, call) for node in graph.node]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        for each in (*graph.input, *graph.initializer, *graph.output):
            each.name = names.get(each.name, each.name)

    def _unused(self, name: str) -> str:
        """A name for a tensor of the body of this call."""
        name = unused(f"{name}__{self.calls}", self.taken)
        self.taken.add(name)
        return name

    def _refuse_another_opset(self, function: onnx.FunctionProto, call: onnx.NodeProto) -> None:
        """Refuse a function of another opset than the model's, if an op of it has another version there."""
        its = _opset(function)
        if self.opset is None or its is None or self.opset == its:
            return
        for node in all_nodes(function.node):
            if node.domain in _ONNX and not _is_same(node.op_type, self.opset, its):
                raise UnsupportedError(
                    f"its function is written for opset {its}, and the model for opset {self.opset}, where "
                    f"{node.op_type} has another version, or none.",
                    node=label(call),
                    op=qualified(call),
                    supported="functions of the model's opset, or whose ops are the same there",
                    hint=f"Export the model for opset {its}.",
                )


def _wrong(call: onnx.NodeProto, found: str) -> ModelError:
    return ModelError(found, node=label(call), op=qualified(call))


def _opset(proto: onnx.ModelProto | onnx.FunctionProto) -> int | None:
    return next((int(entry.version) for entry in proto.opset_import if entry.domain in _ONNX), None)


def _is_same(op: str, *opsets: int) -> bool:
    """Whether an op has the same version at both opsets."""
    try:
        versions = {onnx.defs.get_schema(op, opset, "").since_version for opset in opsets}
    except onnx.defs.SchemaError:
        return False
    return len(versions) == 1


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without functions; `proto` itself if it calls none.

    Raises ModelError if functions call each other in circles or do not fit their calls, UnsupportedError if
    that would make too many nodes, or a function is of an opset that means something else.
    """
    if not proto.functions:
        return proto
    functions = {_key_of(function): function for function in proto.functions}
    if len(functions) < len(proto.functions):
        raise ModelError("the model defines a function twice.")
    counter = _Counter(functions)
    count = sum(counter.node(node, 0) for node in proto.graph.node)
    if count > MAX_NODES:
        raise UnsupportedError(
            f"with the functions of the model written out the graph has {count} nodes.",
            supported=f"up to {MAX_NODES}",
        )
    result = onnx.ModelProto(ir_version=proto.ir_version)
    result.opset_import.extend(proto.opset_import)
    if _opset(proto) is None:  # only functions have nodes of ONNX
        result.opset_import.extend(e for e in proto.functions[0].opset_import if e.domain in _ONNX)
    nodes = list(_Writer(proto.graph, functions, _opset(result)).nodes(proto.graph.node))
    result.graph.CopyFrom(proto.graph)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result
