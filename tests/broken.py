"""A small valid model, and changes that break it: each a function of the model, made from a few words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Model = onnx.ModelProto
CLASSES = 4


def valid(opset: int = 13) -> Model:
    """conv, bn, relu, pool, flatten, fc, softmax on (N, 3, 8, 8)."""
    rng = np.random.default_rng(0)
    stored = {
        "w": rng.normal(size=(8, 3, 3, 3)) / 5,
        "b": rng.normal(size=8),
        **{name: rng.uniform(0.5, 1.5, size=8) for name in ("scale", "shift", "mean", "var")},
        "fc_w": rng.normal(size=(CLASSES, 128)) / 11,
        "fc_b": rng.normal(size=CLASSES),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc_w", "fc_b"], ["z"], name="fc", transB=1),
        helper.make_node("Softmax", ["z"], ["y"], name="softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.float32(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def image(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=shape or (1, 3, 8, 8)).astype(np.float32)


def node(m: Model, name: str) -> onnx.NodeProto:
    return next(node for node in m.graph.node if node.name == name)


def tensor(m: Model, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in m.graph.initializer if tensor.name == name)


def put(m: Model, before: str, op: str, *inputs: str, output: str = "new", **attributes: Any) -> None:
    """Insert a node that takes the place of the first input of node `before`."""
    reader = node(m, before)
    at = [n.name for n in m.graph.node].index(before)
    new = helper.make_node(op, [reader.input[0], *inputs], [output], name="new", **attributes)
    reader.input[0] = output
    m.graph.node.insert(at, new)


def store(m: Model, name: str, values: Any) -> str:
    for i, old in enumerate(m.graph.initializer):
        if old.name == name:
            del m.graph.initializer[i]
            break
    m.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


# ---------------------------------------------------------------------------- changes, each from a few words


Change = Callable[[Model], Any]


def stored(name: str, values: Any) -> Change:
    return lambda m: store(m, name, values)


def with_(name: str, **attributes: Any) -> Change:
    """Node `name` with these attributes, None to remove one."""

    def change(m: Model) -> None:
        target = node(m, name)
        kept = [a for a in target.attribute if a.name not in attributes]
        del target.attribute[:]
        target.attribute.extend(kept)
        target.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items() if v is not None)

    return change


def before(name: str, op: str, *inputs: str, **attributes: Any) -> Change:
    """A node `new` in front of node `name`; stored inputs by "name=integers"."""

    def change(m: Model) -> None:
        names = []
        for text in inputs:
            key, equals, values = text.partition("=")
            numbers = np.array([int(v) for v in values.split(",") if v], np.int64)
            names.append(store(m, key, numbers) if equals else text)
        put(m, name, op, *names, **attributes)

    return change


def inputs(name: str, *names: str) -> Change:
    def change(m: Model) -> None:
        node(m, name).input[:] = names

    return change


def made_by(op: str, reader: str, at: int, *constants: Any, **attributes: Any) -> Change:
    """Input `at` of node `reader` made by a node `made` of constants."""

    def change(m: Model) -> None:
        names = [store(m, f"k{i}", np.asarray(value)) for i, value in enumerate(constants)]
        m.graph.node.insert(0, helper.make_node(op, names, ["made"], name="made", **attributes))
        node(m, reader).input[at] = "made"

    return change


def all_of(*changes: Change) -> Change:
    def change(m: Model) -> None:
        for one in changes:
            one(m)

    return change


def field(path: str, value: Any) -> Change:
    """`path` such as "graph.input[0].name" set to a value."""
    return lambda m: exec(f"m.{path} = value", {"m": m, "value": value})


def raw(name: str, change_bytes: Callable[[bytes], bytes]) -> Change:
    def change(m: Model) -> None:
        tensor(m, name).raw_data = change_bytes(tensor(m, name).raw_data)

    return change


def dims(name: str, *sizes: int) -> Change:
    def change(m: Model) -> None:
        tensor(m, name).dims[:] = sizes

    return change


def input_dims(*sizes: int | str) -> Change:
    def change(m: Model) -> None:
        m.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, list(sizes)))

    return change


def declared(name: str, *sizes: int) -> Change:
    return lambda m: m.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))


def renamed(name: str, op: str, domain: str = "") -> Change:
    def change(m: Model) -> None:
        node(m, name).op_type, node(m, name).domain = op, domain

    return change


def unknown_ops(m: Model) -> None:
    for name, op in (("relu", "Frobnicate"), ("pool", "LSTM"), ("flatten", "NonZero")):
        node(m, name).op_type = op


def subgraph(op: str) -> Change:
    def change(m: Model) -> None:
        body = helper.make_graph(
            [helper.make_node("Identity", ["n"], ["o"])],
            "body",
            [],
            [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
        )
        renamed("relu", op)(m)
        names = ("then_branch", "else_branch") if op == "If" else ("body",)
        node(m, "relu").attribute.extend(helper.make_attribute(name, body) for name in names)

    return change


def external(m: Model) -> None:
    t = tensor(m, "w")
    t.data_location = TensorProto.EXTERNAL
    t.external_data.add(key="location", value="/etc/passwd")


def external_constant(m: Model) -> None:
    made_by("Constant", "conv", 1, value=numpy_helper.from_array(np.ones(3, np.float32), "hidden"))(m)
    value = node(m, "made").attribute[0].t
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="/etc/passwd")


def constant(**attributes: Any) -> Change:
    return made_by("Constant", "conv", 1, **attributes)


def sparse() -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.ones(1, np.float32), "values")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([5]), "at"), [2**40])


def weights(*shape: int, dtype: Any = np.float32) -> Change:
    return stored("w", np.ones(shape, dtype))
