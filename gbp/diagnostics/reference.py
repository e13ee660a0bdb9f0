"""The model as others compute it, to compare with: onnxruntime, and onnx's reference evaluator in float64.

Both take the weights from the file again, and compute the file's own nodes: nothing is simplified or fused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .. import InputError, Model, UnsupportedError
from ..importer import folding_dated
from ..importer.branches import reads
from ..importer.proto import graphs_of, label, qualified
from ..importer.subgraph import Source
from ..ops import REWRITERS
from ..ops.dtypes import FLOATS
from ..ops.node import Node
from ..ops.written import Writer
from .evaluated import OPS

Values = dict[str, NDArray[Any]]

#: The IR version that onnxruntime reads even if it is older than onnx.  Newer versions have more number
#: types.
_IR_VERSION = 8
_MAX_BATCH = 256


class Reference(Protocol):
    """A runtime to compare with.

    `name` is printed.  `bound` is the relative L2 error that a step of gbp may have, compared with it.
    """

    name: str
    bound: float

    def run(self, x: NDArray[np.floating[Any]], names: Sequence[str]) -> Values:
        """The tensors of these names, for one sample x (1, …)."""


def references(model: Model, source: Source) -> tuple[Reference, Exact]:
    """The best reference that there is for the model, and the exact one.

    That is onnxruntime where it is installed and runs the model.  Raises InputError where the file is gone,
    and UnsupportedError where it takes more than `_MAX_BATCH` samples at once and no other number.
    """
    if source.has_batch and (source.input_shape[0] or 1) > _MAX_BATCH:
        raise UnsupportedError(
            f"the file takes {source.input_shape[0]} samples at once, and a reference computes them all.",
            supported=f"up to {_MAX_BATCH}",
            hint="Export it with an open batch, or a batch of 1.",
        )
    whole = _read_whole(model)
    stored = [tensor for tensor in whole.graph.initializer if tensor.name not in source.given]
    del whole.graph.initializer[:]
    whole.graph.initializer.extend(stored)
    whole.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in source.given.items())
    exact = Exact(whole, source)
    if source.dtype != "FLOAT" or _rounds(source, whole):  # to more than gbp errs by
        return exact, exact
    try:
        return OnnxRuntime(whole, source), exact
    except Exception:  # its exceptions have no common base
        return exact, exact


def _read_whole(model: Model) -> onnx.ModelProto:
    """A copy of the model with all its weights."""
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    except Exception:  # protobuf raises whatever its backend does
        raise InputError("the model cannot be read any more; has the file changed?") from None


def _read_by(source: Source, model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors that the nodes on the way read: stored ones, and what is given."""
    read = {name for node in source.nodes for name in reads(node)} - {source.input}
    return [tensor for tensor in model.graph.initializer if tensor.name in read]


def _in_inference(proto: onnx.NodeProto) -> onnx.NodeProto:
    """The node; a BatchNormalization with one output, because runtimes train old ones that have more."""
    if proto.op_type != "BatchNormalization":
        return proto
    node = onnx.NodeProto()
    node.CopyFrom(proto)
    del node.output[1:]
    return node


def _rounds(source: Source, model: onnx.ModelProto) -> bool:
    """Whether a runtime computes part of the model in numbers of 16 bits, which gbp computes in float32."""
    casts = (a.i for node in source.nodes if node.op_type == "Cast" for a in node.attribute if a.name == "to")
    halves = TensorProto.FLOAT16, TensorProto.BFLOAT16
    return any(kind in halves for kind in (*casts, *(t.data_type for t in _read_by(source, model))))


def _opsets(model: onnx.ModelProto, source: Source) -> list[onnx.OperatorSetIdProto]:
    """The opsets that the model imports.  Files of IR version 1 and 2 do not state them."""
    return list(model.opset_import) or [helper.make_opsetid("", source.opset)]


def _batch(x: NDArray[Any], source: Source) -> NDArray[Any]:
    """The sample, repeated to the file's batch size; without the batch axis if the file has none."""
    return np.repeat(x, source.input_shape[0] or 1, axis=0) if source.has_batch else x[0]


def _sample(y: NDArray[Any], source: Source) -> NDArray[Any]:
    """The part of y that belongs to the first sample; all of it for a batch of one."""
    batch = source.input_shape[0] or 1
    return y if batch == 1 else y[: max(1, len(y) // batch)]


class Exact:
    """onnx's reference evaluator in float64, a node at a time: it holds only what is still to be read.

    Raises UnsupportedError where the evaluator lacks an op or cannot compute it.
    """

    name = f"onnx {onnx.__version__}'s reference evaluator (float64)"
    bound = 1e-5

    def __init__(self, model: onnx.ModelProto, source: Source) -> None:
        self._source = source
        self._constants: Values = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in _read_by(source, model)
        }
        self._nodes: list[_Node] = []
        for proto in map(_in_inference, source.nodes):
            op = qualified(proto)
            is_foreign = op in REWRITERS and not ("." not in op and onnx.defs.has(op))
            opsets = _opsets(model, source)
            node = _WrittenOut(proto, opsets, set(self._constants)) if is_foreign else _Node(proto, opsets)
            if all(name in self._constants for name in node.inputs):
                self._constants |= node.run(self._constants)
            else:
                self._nodes.append(node)
        self._last = {name: i for i, node in enumerate(self._nodes) for name in node.inputs}

    def run(self, x: NDArray[np.floating[Any]], names: Sequence[str]) -> Values:
        wanted, found = set(names), Values()
        values = self._constants | {self._source.input: _batch(x, self._source).astype(np.float64)}
        for i, node in enumerate(self._nodes):
            made = node.run(values)
            values |= made
            found |= {name: _sample(made[name], self._source) for name in wanted.intersection(made)}
            for name in (*node.inputs, *made):
                if self._last.get(name, i) == i:
                    values.pop(name, None)
        return found


class _Node:
    """One node; the floats that it reads and makes are made double."""

    def __init__(self, proto: onnx.NodeProto, imported: list[onnx.OperatorSetIdProto]) -> None:
        self.inputs = tuple(reads(proto))
        self._proto = proto
        versions = {entry.domain: entry.version for entry in imported}
        self._opset = versions.get("", versions.get("ai.onnx", 0))
        self._outputs = [name for name in proto.output if name]
        self._evaluator: ReferenceEvaluator | None = None
        if self._opset >= folding_dated.OLDEST or proto.domain:
            node, opsets = _understood(proto, imported)
            try:
                self._evaluator = self._evaluated(node, opsets, self.inputs)
            except Exception as error:  # what it raises for an op that it does not have differs by version
                raise self._refused(error) from None

    def _evaluated(
        self, node: onnx.NodeProto, opsets: list[onnx.OperatorSetIdProto], inputs: Iterable[str]
    ) -> ReferenceEvaluator:
        graph = helper.make_graph(
            [node],
            "node",
            list(map(helper.make_empty_tensor_value_info, inputs)),
            list(map(helper.make_empty_tensor_value_info, self._outputs)),
        )
        model = helper.make_model(graph, opset_imports=opsets)
        return ReferenceEvaluator(model, new_ops=OPS)

    def run(self, values: Mapping[str, NDArray[Any]]) -> Values:
        try:
            with np.errstate(all="ignore"):
                given = {name: _double(values[name]) for name in self.inputs}
                # Before opset 13 a softmax runs over all axes from one on; the evaluator knows the newest.
                is_dated = self._proto.op_type in folding_dated.SOFTMAX
                own = folding_dated.computed(self._proto, given, self._opset) if is_dated else None
                evaluator = self._evaluator
                if evaluator is None:  # in the words of an old opset, some of which depend on shapes
                    node, given, opset = folding_dated.modern(self._proto, given, self._opset)
                    node, opsets = _understood(node, [helper.make_opsetid("", opset)])
                    evaluator = self._evaluated(node, opsets, dict.fromkeys(filter(None, node.input)))
                made = evaluator.run(None, given) if own is None else [own]
        except Exception as error:  # it raises whatever NumPy does
            raise self._refused(error) from None
        return {name: _double(np.asarray(y)) for name, y in zip(self._outputs, made, strict=True)}

    def _refused(self, error: Exception) -> UnsupportedError:
        return UnsupportedError(
            f"onnx's reference evaluator does not compute it ({type(error).__name__}: {error!s:.120}).",
            node=label(self._proto),
            op=self._proto.op_type,
            hint="There is nothing to compare with.",
        )


class _WrittenOut(_Node):
    """A node that onnx does not know, as the ONNX nodes that it is replaced by."""

    def __init__(
        self, proto: onnx.NodeProto, imported: list[onnx.OperatorSetIdProto], constant: set[str]
    ) -> None:
        self.inputs, self._proto, self._imported = tuple(reads(proto)), proto, imported
        self._computed = {name for name in self.inputs if name not in constant}

    def run(self, values: Mapping[str, NDArray[Any]]) -> Values:
        opset = next(entry.version for entry in self._imported if entry.domain in ("", "ai.onnx"))
        operands: list[Any] = [
            None if not name else values[name].shape if name in self._computed else values[name]
            for name in self._proto.input
        ]
        writer = Writer(Node(self._proto, opset, operands), lambda name: name)
        REWRITERS[qualified(self._proto)](writer.node, writer)
        known = {name: values[name] for name in self.inputs} | writer.constants
        for proto in writer.nodes:
            known |= _Node(proto, self._imported).run(known)
        return {name: known[name] for name in self._proto.output if name in known}


def _make_double(node: onnx.NodeProto) -> None:
    """Make casts to floats casts to double, and the tensors of graphs within the node double."""
    if node.op_type == "Cast":
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
    for graph in graphs_of(node):
        tensors = [attribute.t for each in graph.node for attribute in each.attribute]
        for tensor in (*graph.initializer, *tensors):
            if tensor.data_type in FLOATS:
                values = numpy_helper.to_array(tensor).astype(np.float64)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        for each in graph.node:
            _make_double(each)


def _understood(
    node: onnx.NodeProto, opsets: list[onnx.OperatorSetIdProto]
) -> tuple[onnx.NodeProto, list[onnx.OperatorSetIdProto]]:
    """The node as the evaluator computes it in double and in inference, and the opsets to read it by."""
    understood = onnx.NodeProto()
    understood.CopyFrom(node)
    _make_double(understood)
    if node.op_type == "BatchNormalization":  # before opset 14 the evaluator computes it as in training
        del understood.attribute[:]
        understood.attribute.extend(a for a in node.attribute if a.name == "epsilon")
        opsets = [helper.make_opsetid("", 15)]
    if node.op_type == "GridSample":  # it knows the names since opset 20 alone
        for attribute in understood.attribute:
            attribute.s = {b"bilinear": b"linear", b"bicubic": b"cubic"}.get(attribute.s, attribute.s)
        understood.attribute.extend(
            [] if any(a.name == "mode" for a in node.attribute) else [helper.make_attribute("mode", "linear")]
        )
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):  # it has them from opset 19 on only
        opsets = [helper.make_opsetid("", max(19, *(entry.version for entry in opsets)))]
    return understood, opsets


def _double(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float64, copy=False) if values.dtype.kind == "f" else values


class OnnxRuntime:
    """onnxruntime in float32, without its graph optimisations."""

    bound = 1e-4  # it has roundings of its own

    def __init__(self, model: onnx.ModelProto, source: Source) -> None:
        """Raises ImportError where it is not installed, and what it will for a model that it does not run."""
        import onnxruntime

        self._runtime = onnxruntime
        self.name = f"onnxruntime {onnxruntime.__version__} (float32)"
        self._source = source
        image = [value for value in model.graph.input if value.name == source.input]
        nodes = list(map(_in_inference, source.nodes))
        graph = helper.make_graph(nodes, "reference", image, [], _read_by(source, model))
        self._model = helper.make_model(graph, opset_imports=_opsets(model, source), ir_version=_IR_VERSION)
        self._session([source.scores])

    def _session(self, names: Sequence[str]) -> Any:
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        del self._model.graph.output[:]
        self._model.graph.output.extend(map(helper.make_empty_tensor_value_info, names))
        return self._runtime.InferenceSession(
            self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, x: NDArray[np.floating[Any]], names: Sequence[str]) -> Values:
        given = _batch(x, self._source).astype(np.float32)
        try:
            found = self._session(names).run(None, {self._source.input: given})
        except Exception as error:  # its exceptions have no common base
            raise UnsupportedError(f"onnxruntime does not run the model ({error!s:.300}).") from None
        return {name: _sample(value, self._source) for name, value in zip(names, found, strict=True)}
