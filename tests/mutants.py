"""`mutated(seed)`: one of six valid model files, damaged in its bytes, its fields or its meaning."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from builder import Builder
from damage import NUMBERS, damaged_bytes
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from gbp.ops import PARSERS

OPS = (*sorted(PARSERS), "ConstantOfShape", "If", "Loop", "Range", "Shape", "Size", "Nonsense")


# ------------------------------------------------------------------------------------------- valid models


def modern() -> onnx.ModelProto:
    """Opset 13: residual, concatenation, groups, shape arithmetic, constants in nodes."""
    rng = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 4,
        "b1": rng.normal(size=8),
        **{name: rng.uniform(0.5, 1.5, size=8) for name in ("scale", "shift", "mean", "var")},
        "w2": rng.normal(size=(8, 4, 3, 3)) / 4,
        "w3": rng.normal(size=(8, 1, 3, 3)),
        "w4": rng.normal(size=(5, 12)),
        "b4": rng.normal(size=5),
        "six": np.array(6.0),
        "zero": np.array(0.0),
        "bias": rng.normal(size=(8, 1, 1)),
    }
    whole = {"first": np.array([0]), "rest": np.array([-1]), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    n = helper.make_node
    nodes = [
        n("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        n("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"], name="bn"),
        n("Relu", ["n1"], ["r1"], name="relu1"),
        n("Conv", ["r1", "w2"], ["c2"], name="conv2", group=2, auto_pad="SAME_UPPER", dilations=[1, 1]),
        n("Add", ["c2", "r1"], ["a1"], name="add"),
        n("Clip", ["a1", "zero", "six"], ["r2"], name="relu6"),
        n("Pad", ["r2", "pads"], ["p1"], name="pad"),
        n("Conv", ["p1", "w3"], ["c3"], name="depthwise", group=8),
        n("Add", ["c3", "bias"], ["a2"], name="shift"),
        n("MaxPool", ["a2"], ["m1"], name="maxpool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        n("Split", ["m1"], ["s1", "s2"], name="split", axis=1),
        n("AveragePool", ["s1"], ["v1"], name="averagepool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        n("Concat", ["v1", "m1"], ["j1"], name="concat", axis=1),
        n("Transpose", ["j1"], ["t1"], name="there", perm=[0, 2, 3, 1]),
        n("Transpose", ["t1"], ["t2"], name="back", perm=[0, 3, 1, 2]),
        n("GlobalAveragePool", ["t2"], ["g1"], name="gap"),
        n("Shape", ["g1"], ["shape"], name="shape"),
        n("Gather", ["shape", "first"], ["batch"], name="gather", axis=0),
        n("Concat", ["batch", "rest"], ["target"], name="join", axis=0),
        n("Reshape", ["g1", "target"], ["flat"], name="reshape"),
        n("Gemm", ["flat", "w4", "b4"], ["logits"], name="fc", transB=1),
        n("Constant", [], ["two"], name="two", value=numpy_helper.from_array(np.float32(2))),
        n("Mul", ["logits", "two"], ["scaled"], name="double"),
        n("Softmax", ["scaled"], ["y"], name="softmax", axis=-1),
    ]
    return _model(nodes, stored, whole, 13, 5)


def classic() -> onnx.ModelProto:
    """Opset 9: attributes where there are inputs now, LRN, overlapping pools, Dropout, ceil-less padding."""
    rng = np.random.default_rng(1)
    stored = {
        "w1": rng.normal(size=(6, 3, 5, 5)) / 5,
        "b1": rng.normal(size=6),
        "w2": rng.normal(size=(4, 6, 1, 1)),
        "w3": rng.normal(size=(4, 4)),
    }
    n = helper.make_node
    nodes = [
        n("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", strides=[2, 2], kernel_shape=[5, 5]),
        n("Relu", ["c1"], ["r1"], name="relu1"),
        n("LRN", ["r1"], ["l1"], name="lrn", size=3, alpha=0.1, beta=0.6, bias=2.0),
        n("MaxPool", ["l1"], ["m1"], name="maxpool", kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1]),
        n("Conv", ["m1", "w2"], ["c2"], name="conv2"),
        n("Clip", ["c2"], ["r2"], name="relu6", min=0.0, max=6.0),
        n("Dropout", ["r2"], ["d1", "mask"], name="dropout", ratio=0.5),
        n(
            "AveragePool",
            ["d1"],
            ["v1"],
            name="pool",
            kernel_shape=[3, 3],
            strides=[2, 2],
            count_include_pad=1,
        ),
        n("Flatten", ["v1"], ["f1"], name="flatten"),
        n("MatMul", ["f1", "w3"], ["y1"], name="fc"),
        n("Unsqueeze", ["y1"], ["y2"], name="more", axes=[2]),
        n("Squeeze", ["y2"], ["y"], name="less", axes=[2]),
    ]
    return _model(nodes, stored, {}, 9, 4)


def wide() -> onnx.ModelProto:
    """Opset 20: one, two and three dimensions, up and down, activations of all kinds, integers in between."""
    b = Builder(20, seed=2)
    x = b.input(1, 3, 12, 12)
    scale, zero = b.constant(0.02), b.constant(128, np.uint8)
    y = b.node("DequantizeLinear", b.node("QuantizeLinear", x, scale, zero), scale, zero)
    y = b.relu(b.conv(y, 4, 3, pads=(1, 1, 1, 1)))
    y = b.mul(y, b.node("Sigmoid", y))
    y = b.node("InstanceNormalization", y, b.constant(b.noise(4)), b.constant(b.noise(4)))
    pooled, positions = b.nodes("MaxPool", y, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    y = b.node("MaxUnpool", b.node("Elu", pooled, alpha=0.5), positions, kernel_shape=[2, 2], strides=[2, 2])
    y = b.node("ConvTranspose", y, b.constant(b.noise(4, 3, 3, 3)), strides=[2, 2], group=1)
    y = b.node("Resize", y, "", "", b.constant([1, 3, 10, 10]), mode="linear")
    y = b.node("Pad", y, b.constant([0, 0, 1, 2, 0, 0, 2, 1]), mode="reflect")
    y = b.node("Slice", y, b.constant([1, 11]), b.constant([11, 0]), b.constant([2, 3]), b.constant([2, -1]))
    y = b.node("Where", b.node("Greater", y, b.constant(0.1)), y, b.node("Tanh", y))
    y = b.node("Gather", y, b.constant([2, 0, 0, 1]), axis=1)
    norm = b.node("ReduceL2", y, b.constant([1]), keepdims=1)
    y = b.node("Div", y, b.add(norm, b.constant(0.1)))
    y = b.node("Max", y, b.node("PRelu", y, b.constant(b.noise(4, 1, 1))), b.constant(-1.0))
    y = b.node("Unsqueeze", y, b.constant([2]))
    y = b.node("Conv", y, b.constant(b.noise(5, 4, 1, 3, 3)))
    y = b.node("Squeeze", y, b.constant([2]))
    y = b.node("LayerNormalization", y, b.constant(b.noise(9)), axis=-1)
    y = b.node("MatMul", y, b.constant(b.noise(9, 6)))
    y = b.node("MatMul", y, b.node("Transpose", y, perm=[0, 1, 3, 2]))
    y = b.node("ReduceMax", y, b.constant([3]), keepdims=0)
    y = b.node("Conv", y, b.constant(b.noise(4, 5, 2)))
    y = b.node("Softplus", b.node("DepthToSpace", b.node("Unsqueeze", y, b.constant([3])), blocksize=2))
    y = b.node("Sqrt", b.add(b.node("Tile", y, b.constant([1, 1, 1, 2])), b.constant(0.5)))
    return b.model(b.gemm(b.flatten(y), 3))


def series() -> onnx.ModelProto:
    """Opset 17: rows and volumes, norms, comparisons, a reshape for each kind of axis."""
    b = Builder(17, seed=3)
    x = b.input(1, 3, 12, 12)
    y = b.node("Reshape", x, b.constant([0, 3, -1]))
    y = b.node("Conv", y, b.constant(b.noise(4, 3, 3)), b.constant(b.noise(4)), strides=[2], pads=[1, 1])
    y = b.node("MaxPool", b.node("LeakyRelu", y, alpha=0.1), kernel_shape=[2], strides=[2])
    y = b.node("LayerNormalization", y, b.constant(b.noise(36)), b.constant(b.noise(36)), axis=-1)
    y = b.node("Reshape", y, b.constant([0, 2, 2, 6, 6]))
    y = b.node("Conv", y, b.constant(b.noise(4, 2, 2, 3, 3)), pads=[0, 1, 1, 0, 1, 1])
    y = b.node("AveragePool", y, kernel_shape=[1, 2, 2], strides=[1, 2, 2])
    y = b.node("Reshape", b.node("Selu", y), b.constant([0, 4, 9]))
    y = b.node("CumSum", y, b.constant(2))
    y = b.node("Div", y, b.node("Exp", b.node("ReduceMean", y, axes=[2], keepdims=1)))
    y = b.node("LpNormalization", y, axis=1, p=2)
    return b.model(b.node("LogSoftmax", b.gemm(b.flatten(y), 4), axis=1))


def quantized() -> onnx.ModelProto:
    """Opset 19: QDQ, per tensor and per channel, weights in int8, bias in int32."""
    b = Builder(19, seed=4)
    x = b.input(1, 3, 12, 12)

    def pair(y: str, scale: float) -> str:
        given = b.constant(scale), b.constant(0, np.int8)
        return b.node("DequantizeLinear", b.node("QuantizeLinear", y, *given), *given)

    w = np.random.default_rng(4).integers(-127, 128, (6, 3, 3, 3)).astype(np.int8)
    scales, zeros = b.constant(np.full(6, 0.01)), b.constant(np.zeros(6), np.int8)
    w = b.node("DequantizeLinear", b.constant(w, np.int8), scales, zeros, axis=0)
    bias = b.node("DequantizeLinear", b.constant([5, -5, 0, 1, 2, 3], np.int32), b.constant(0.001))
    y = b.node("Relu", b.node("Conv", pair(x, 0.03), w, bias, pads=[1, 1, 1, 1], strides=[2, 2]))
    y = b.node("MaxPool", pair(y, 0.02), kernel_shape=[2, 2], strides=[2, 2])
    y = b.node("Concat", y, pair(b.node("HardSwish", y), 0.02), axis=1)
    return b.model(b.node("Sigmoid", b.gemm(b.flatten(pair(y, 0.02)), 3)))


#: What lies in this file beside the model that `apart` makes.
BESIDE = "weights.bin"


def beside() -> bytes:
    return np.random.default_rng(5).normal(size=9000).astype("<f4").tobytes()


def apart() -> onnx.ModelProto:
    """`classic`, of whose weights some lie in a file beside it, and one is large enough to be cut out."""
    model = classic()
    for i, tensor in enumerate(model.graph.initializer[:3]):
        nbytes = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", BESIDE), ("offset", str(4096 * i)), ("length", str(nbytes))):
            tensor.external_data.add(key=key, value=value)
    large = np.random.default_rng(6).normal(size=(4, 4, 9, 9)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(large, "large"))
    node = next(node for node in model.graph.node if node.name == "dropout")
    conv = helper.make_node("Conv", [node.output[0], "large"], ["apart"], name="apart", pads=[4] * 4)
    model.graph.node.insert(list(model.graph.node).index(node) + 1, conv)
    next(node for node in model.graph.node if node.name == "pool").input[0] = "apart"
    return model


def _model(
    nodes: list[onnx.NodeProto],
    stored: dict[str, np.ndarray],
    whole: dict[str, np.ndarray],
    opset: int,
    classes: int,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in stored.items()]
    tensors += [numpy_helper.from_array(value, name) for name, value in whole.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


MODELS = (modern, classic, wide, series, quantized, apart)


# ---------------------------------------------------------------------------------------------- mutations


def _any_name(m: onnx.ModelProto, rng: random.Random) -> str:
    names = [name for node in m.graph.node for name in (*node.input, *node.output)]
    return rng.choice([*names, *(t.name for t in m.graph.initializer), "", "nowhere", "x", "y"])


def change_tensor(m: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(m.graph.initializer)
    match rng.randrange(7):
        case 0 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
        case 1:
            dims = list(tensor.dims)
            rng.shuffle(dims)
            tensor.dims[:] = dims
        case 2:
            tensor.data_type = rng.choice([*range(24), 10**6])
        case 3:
            tensor.raw_data = tensor.raw_data[: rng.randrange(1 + len(tensor.raw_data))]
        case 4:
            tensor.raw_data = rng.randbytes(len(tensor.raw_data))
        case 5:
            tensor.name = _any_name(m, rng)
        case _:
            kind = rng.choice((np.float16, np.float64, np.int64, np.int32, np.uint8, np.bool_, np.float32))
            shape = [rng.choice((0, 1, 2, 3, 8)) for _ in range(rng.randrange(6))]
            tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, kind), tensor.name))


def empty(tensor: TensorProto, axis: int) -> None:
    """Leave no index along one axis of a tensor, so that it holds no number."""
    dims, kind, name = list(tensor.dims), tensor.data_type, tensor.name
    dims[axis] = 0
    tensor.CopyFrom(helper.make_tensor(name, kind, dims, b"", raw=True))


def change_node(m: onnx.ModelProto, rng: random.Random) -> None:
    graph = m.graph
    node = rng.choice(graph.node)
    match rng.randrange(10):
        case 0:
            node.op_type = rng.choice(OPS)
        case 1 if node.input:
            node.input[rng.randrange(len(node.input))] = _any_name(m, rng)
        case 2 if node.output:
            node.output[rng.randrange(len(node.output))] = _any_name(m, rng)
        case 3:
            node.input.append(_any_name(m, rng))
        case 4 if node.input:
            del node.input[rng.randrange(len(node.input))]
        case 5:
            node.output.append(_any_name(m, rng))
        case 6:
            graph.node.remove(node)
        case 7:
            graph.node.add().CopyFrom(node)
        case 8:
            node.domain = rng.choice(("ai.onnx", "com.example", "ai.onnx.ml"))
        case _:
            other = rng.choice(graph.node)
            kept = onnx.NodeProto()
            kept.CopyFrom(node)
            node.CopyFrom(other)
            other.CopyFrom(kept)


def change_attribute(m: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice([node for node in m.graph.node if node.attribute] or [m.graph.node[0]])
    if not node.attribute or rng.random() < 0.2:
        name = rng.choice(
            (
                "axis",
                "group",
                "pads",
                "strides",
                "dilations",
                "kernel_shape",
                "auto_pad",
                "value",
                "perm",
                "axes",
                "keepdims",
                "blocksize",
                "coordinate_transformation_mode",
                "output_padding",
            )
        )
        value: Any = rng.choice(
            (rng.choice(NUMBERS), [rng.choice(NUMBERS) for _ in range(4)], 0.5, "SAME_LOWER")
        )
        node.attribute.append(helper.make_attribute(name, value))
        return
    attribute = rng.choice(node.attribute)
    match rng.randrange(8):
        case 0 | 1 | 2 if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
        case 3 if attribute.ints:
            attribute.ints.append(rng.choice(NUMBERS))
        case 4 if attribute.ints:
            del attribute.ints[rng.randrange(len(attribute.ints))]
        case 5:
            attribute.type = rng.choice(range(15))
        case 6:
            attribute.name = rng.choice(
                ("axis", "group", "pads", "strides", "mode", "value_ints", "nonsense")
            )
        case 7:
            node.attribute.remove(attribute)
        case _:
            attribute.i = rng.choice(NUMBERS)
            attribute.f = rng.choice((0.0, -1.0, 1e30, -1e-30, float("nan"), float("inf")))
            attribute.s = rng.choice((b"", b"SAME_LOWER", b"VALID", b"reflect", b"\xff"))


def change_model(m: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice((*m.graph.input, *m.graph.output))
    dims = value.type.tensor_type.shape.dim
    match rng.randrange(7):
        case 0 | 1 if dims:
            dims[rng.randrange(len(dims))].dim_value = rng.choice(NUMBERS)
        case 2:
            dims.add().dim_value = rng.choice(NUMBERS)
        case 3:
            value.name = _any_name(m, rng)
        case 4:
            value.type.tensor_type.elem_type = rng.choice(range(24))
        case 5:
            m.opset_import[0].version = rng.choice((*range(6, 28), 0, 999, -1, 2**62))
        case _:
            m.graph.value_info.add().CopyFrom(value)
            m.graph.value_info[-1].name = _any_name(m, rng)


def add_bomb(m: onnx.ModelProto, rng: random.Random) -> None:
    """Constants that grow, put in the place of an operand."""
    shape = numpy_helper.from_array(
        np.array([rng.choice(NUMBERS) for _ in range(rng.randrange(1, 5))]), "bomb"
    )
    m.graph.initializer.append(shape)
    one = numpy_helper.from_array(np.float32(1), "one")
    m.graph.initializer.append(one)
    op = rng.choice(("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Reshape", "OneHot"))
    operands = {"ConstantOfShape": ["bomb"], "Range": ["bomb", "bomb", "bomb"]}.get(op, ["one", "bomb"])
    m.graph.node.insert(0, helper.make_node(op, operands, ["boom"], name="boom"))
    victim = rng.choice([node for node in m.graph.node if len(node.input) > 1])
    victim.input[rng.randrange(len(victim.input))] = "boom"


def tie_a_knot(m: onnx.ModelProto, rng: random.Random) -> None:
    """A cycle, a chain of thousands, or a subgraph in a subgraph in a subgraph."""
    node = rng.choice(m.graph.node)
    match rng.randrange(3):
        case 0:
            later = rng.choice(m.graph.node)
            if node.input and later.output:
                node.input[0] = later.output[0]
        case 1:
            if node.input:
                names = [node.input[0], *(f"link {i}" for i in range(rng.choice((10, 1000, 20000))))]
                links = (
                    helper.make_node(rng.choice(("Relu", "Neg", "Identity")), [a], [b])
                    for a, b in pairwise(names)
                )
                at = list(m.graph.node).index(node)
                nodes = [*m.graph.node[:at], *links, *m.graph.node[at:]]
                node.input[0] = names[-1]
                del m.graph.node[:]
                m.graph.node.extend(nodes)
        case _:
            inner = helper.make_graph([], "inner", [], [])
            for _ in range(rng.choice((1, 20, 40))):
                body = helper.make_node("If", ["x"], ["o"], then_branch=inner, else_branch=inner)
                inner = helper.make_graph([body] if inner.ByteSize() < 2**16 else [], "inner", [], [])
            node.attribute.append(helper.make_attribute("body", inner))


def lie_elsewhere(m: onnx.ModelProto, rng: random.Random) -> None:
    """Weights that are said to be in another file."""
    tensor = rng.choice(m.graph.initializer)
    tensor.data_location = TensorProto.EXTERNAL
    places = ("/etc/passwd", "../secret", "a/../../b", ".", "", "/dev/zero", "model.onnx", "\0", "x" * 5000)
    for key, values in {
        "location": places,
        "offset": ("0", "-1", "9" * 40, "x", "4096"),
        "length": ("0", "4", str(2**62), "-4"),
    }.items():
        if rng.random() < 0.7:
            tensor.external_data.add(key=key, value=rng.choice(values))


# ------------------------------------------------------------------------------------- any field of protobuf

FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, 1e39, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "x",
    "y",
    "nowhere",
    "\x1b[31mred\r\n",
    "\u202e",
    "a" * 5000,
    "ai.onnx",
    "com.example",
    "0",
    "9" * 30,
)


def _schema() -> dict[str, tuple[tuple[FieldDescriptor, ...], Descriptor]]:
    """Every kind of message that a model may hold, and by which fields it is reached from the top."""
    top = onnx.ModelProto.DESCRIPTOR
    found: dict[str, tuple[tuple[FieldDescriptor, ...], Descriptor]] = {top.full_name: ((), top)}
    queue = [top]
    for descriptor in queue:
        path, _ = found[descriptor.full_name]
        for child in descriptor.fields:
            kind = child.message_type
            if kind is not None and kind.full_name not in found:
                found[kind.full_name] = ((*path, child), kind)
                queue.append(kind)
    return found


SCHEMA = _schema()
#: All that may be changed: the kind of a message, and a field of it.
FIELDS = tuple((name, child.name) for name, (_, kind) in SCHEMA.items() for child in kind.fields)


def _messages(message: Message, kind: str) -> list[Message]:
    """All messages of that kind in this one."""
    found = [message] if message.DESCRIPTOR.full_name == kind else []
    for child, value in message.ListFields():
        if child.message_type is not None:
            for inner in value if child.is_repeated else [value]:
                found += _messages(inner, kind)
    return found


def _made(m: onnx.ModelProto, kind: str, rng: random.Random) -> Message:
    """A message of that kind, made where one belongs."""
    at: Message = m
    for child in SCHEMA[kind][0]:
        value = getattr(at, child.name)
        if child.is_repeated:
            value = rng.choice(value) if value and rng.random() < 0.8 else value.add()
        else:
            value.SetInParent()
        at = value
    return at


def _scalar(m: onnx.ModelProto, child: FieldDescriptor, rng: random.Random) -> Any:
    match child.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if child.type == FieldDescriptor.TYPE_BYTES:
            return rng.choice((b"", b"\xff\xfe", b"SAME_LOWER", rng.randbytes(16), rng.randbytes(5000)))
        case FieldDescriptor.CPPTYPE_STRING:
            return _any_name(m, rng) if rng.random() < 0.5 else rng.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice([value.number for value in child.enum_type.values])
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice((*range(26), *(n for n in NUMBERS if -(2**31) <= n < 2**31)))
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice(NUMBERS) % 2**64
        case _:
            return rng.choice(NUMBERS)


def _fill(m: onnx.ModelProto, message: Message, rng: random.Random, depth: int = 0) -> None:
    """Some fields of a new message, or what another one of its kind holds."""
    others = _messages(m, message.DESCRIPTOR.full_name)
    if others and rng.random() < 0.6:
        data = rng.choice(others).SerializePartialToString()  # it may be within the other
        if len(data) < 2**16:
            message.Clear()
            message.MergeFromString(data)
            return
    for child in message.DESCRIPTOR.fields:
        if rng.random() < 0.4 and depth < 4:
            change_field(m, message, child, rng, depth + 1)


def change_field(
    m: onnx.ModelProto, message: Message, child: FieldDescriptor, rng: random.Random, depth: int = 0
) -> None:
    """Set, clear, add, drop, repeat or move what that field holds."""
    value = getattr(message, child.name)
    if not child.is_repeated:
        if rng.random() < 0.2:
            message.ClearField(child.name)
        elif child.message_type is not None:
            value.SetInParent()
            _fill(m, value, rng, depth)
        else:
            setattr(message, child.name, _scalar(m, child, rng))
        return
    match rng.randrange(6):
        case 0 if value:
            del value[rng.randrange(len(value))]
        case 1 if len(value) > 1:
            held = [copy.deepcopy(one) for one in value]
            rng.shuffle(held)
            message.ClearField(child.name)
            getattr(message, child.name).extend(held)
        case 2 if value and message.ByteSize() < 2**16:
            value.extend([copy.deepcopy(rng.choice(value))] * rng.choice((1, 2, 100)))
        case 3 if value and child.message_type is None:
            value[rng.randrange(len(value))] = _scalar(m, child, rng)
        case 4 if value:
            message.ClearField(child.name)
        case _ if child.message_type is not None:
            _fill(m, value.add(), rng, depth)
        case _:
            value.append(_scalar(m, child, rng))


def change_any(m: onnx.ModelProto, rng: random.Random) -> tuple[str, str]:
    """Change one field of one message, all as likely; which."""
    kind, name = rng.choice(FIELDS)
    found = _messages(m, kind)
    message = rng.choice(found) if found and rng.random() < 0.9 else _made(m, kind, rng)
    change_field(m, message, message.DESCRIPTOR.fields_by_name[name], rng)
    return kind, name


STRUCTURAL: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    change_tensor,
    change_node,
    change_node,
    change_attribute,
    change_attribute,
    change_model,
    add_bomb,
    tie_a_knot,
    lie_elsewhere,
)


@cache
def valid(make: Callable[[], onnx.ModelProto]) -> bytes:
    """One of `MODELS` as a file."""
    return make().SerializeToString()


def mutated(seed: int) -> bytes:
    rng = random.Random(seed)
    model = onnx.ModelProto.FromString(valid(rng.choice(MODELS)))
    kind = rng.random()
    if kind < 0.25:
        return damaged_bytes(model.SerializeToString(), rng)
    if kind < 0.65:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            change_any(model, rng)
        return model.SerializeToString()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if model.graph.node and model.graph.initializer:
            rng.choice(STRUCTURAL)(model, rng)
    tensors = [tensor for tensor in model.graph.initializer if tensor.dims]
    if tensors and rng.random() < 0.05:  # last, so that the mutant of a seed is otherwise what it was
        tensor = rng.choice(tensors)
        empty(tensor, rng.randrange(len(tensor.dims)))
    return model.SerializeToString()
