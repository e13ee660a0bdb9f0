"""Functions that a model defines (ONNX FunctionProto) are inlined by onnx.inliner.

The nodes that this would make are counted first.  A file of one kilobyte can call its way to a billion nodes,
or in circles.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from ..errors import ModelError, UnsupportedError
from ..limits import MAX_NODES
from .proto import graphs_of, label

_Key = tuple[str, str, str]


def _key(node: onnx.NodeProto) -> _Key:
    return str(node.domain), str(node.op_type), str(node.overload)


def _key_of(function: onnx.FunctionProto) -> _Key:
    return str(function.domain), str(function.name), str(function.overload)


class _Counter:
    """Counts the nodes that a node becomes."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.functions = {_key_of(function): function for function in proto.functions}
        self.known: dict[_Key, int] = {}
        self.open: set[_Key] = set()

    def node(self, node: onnx.NodeProto, depth: int) -> int:
        inside = sum(self.node(each, depth + 1) for graph in graphs_of(node) for each in graph.node)
        return inside + (self.call(_key(node), node, depth) if _key(node) in self.functions else 1)

    def call(self, key: _Key, node: onnx.NodeProto, depth: int) -> int:
        if key in self.open or depth > 200:
            raise ModelError("the functions of the model call each other in circles.", node=label(node))
        if key not in self.known:
            self.open.add(key)
            self.known[key] = sum(self.node(each, depth + 1) for each in self.functions[key].node)
            self.open.discard(key)
        return self.known[key]


def _at_opset(function: onnx.FunctionProto, model: onnx.ModelProto) -> onnx.FunctionProto:
    """The function, declared for the model's opset if all its ops have the same version there.

    onnx.inliner leaves a call to a function of another opset as it is.
    """
    (own, its) = (
        next((e.version for e in imports if e.domain in ("", "ai.onnx")), None)
        for imports in (model.opset_import, function.opset_import)
    )
    if own is None or its is None or own == its:
        return function
    for node in function.node:
        if node.domain in ("", "ai.onnx") and not _is_same(node.op_type, own, its):
            return function
    copy = onnx.FunctionProto()
    copy.CopyFrom(function)
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = own
    return copy


def _is_same(op: str, *opsets: int) -> bool:
    """Whether an op has the same version at both opsets."""
    try:
        versions = {onnx.defs.get_schema(op, opset, "").since_version for opset in opsets}
    except onnx.defs.SchemaError:
        return False
    return len(versions) == 1


def _give_defaults(model: onnx.ModelProto) -> None:
    """Write the defaults of a function's attributes into the calls that leave them out.

    onnx.inliner knows no such defaults: it leaves the attribute out, and the op inside takes its own default.
    """
    defaults = {_key_of(function): function.attribute_proto for function in model.functions}

    def fill(nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            given = {attribute.name for attribute in node.attribute}
            missing = [each for each in defaults.get(_key(node), ()) if each.name not in given]
            node.attribute.extend(missing)
            for graph in graphs_of(node):
                fill(graph.node)

    fill(model.graph.node)
    for function in model.functions:
        fill(function.node)


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without functions; `proto` itself if it calls none.

    Raises ModelError if functions call each other in circles or cannot be inlined, UnsupportedError if that
    would make too many nodes.
    """
    if not proto.functions:
        return proto
    counter = _Counter(proto)
    count = sum(counter.node(node, 0) for node in proto.graph.node)
    if count > MAX_NODES:
        raise UnsupportedError(
            f"with the functions of the model written out the graph has {count} nodes.",
            supported=f"up to {MAX_NODES}",
        )
    # onnx.inliner needs names and types only.  Weights would be copied, and may exceed what protobuf can
    # hold.
    bare = onnx.ModelProto(ir_version=proto.ir_version)
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(_at_opset(function, proto) for function in proto.functions)
    bare.graph.name = "graph"  # The message of this error may be no text.
    bare.graph.node.extend(proto.graph.node)
    for mine, its in ((bare.graph.input, proto.graph.input), (bare.graph.output, proto.graph.output)):
        mine.extend(its)
    stored = (
        onnx.TensorProto(name=t.name, data_type=t.data_type, dims=t.dims) for t in proto.graph.initializer
    )
    bare.graph.initializer.extend(stored)
    _give_defaults(bare)
    from onnx import inliner  # Slow to import, and few models have functions.

    try:
        flat = inliner.inline_local_functions(bare, convert_version=False)
    except Exception as error:
        raise ModelError(f"its functions cannot be written out: {error!s:.200}.") from None
    result = onnx.ModelProto(ir_version=proto.ir_version)
    result.opset_import.extend(flat.opset_import)
    result.graph.CopyFrom(proto.graph)
    del result.graph.node[:]
    result.graph.node.extend(flat.graph.node)
    return result
