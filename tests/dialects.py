"""How exporters write the parts of a network: each move of `Writer` has two ways, as ops and in a dialect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from builder import Builder
from cases import CASES, Case
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from test_in_parts import ACTIVATIONS, RECTIFIERS, commuted, say

Array = NDArray[Any]
Shape = tuple[int, ...]


class Writer:
    """Throws the dice of `seed`, alike for either way of writing.

    Half of the networks hold an op of the table of cases, at the opset of its case.
    """

    def __init__(self, seed: int, in_parts: bool) -> None:
        self.rng = np.random.default_rng([seed, 7])
        self.in_parts = in_parts
        self.said: list[str] = []
        self.case: Case | None = None
        opset = int(self.rng.choice([9, 10, 11, 12, 13, 15, 17, 18, 20, 22]))
        if self.one_of(True, False):
            # Where runtimes overflow, they are no reference.
            name = str(self.one_of(*sorted(name for name in CASES if CASES[name].reference != "overflows")))
            self.case = CASES[name]
            opset = self.case.opset
            self.said.append(f"case {name}")
        self.b = Builder(opset, seed)

    def one_of(self, *values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def network(self) -> tuple[onnx.ModelProto, Shape]:
        if self.case is not None:
            shape = self.case.shape
            y = self.b.input(*shape)
            # Negative values and those near 0 are outside of what some ops are defined for.
            y = self.case.net(self.b, y if self.one_of(True, False) else self.dense(y, shape[1]))
            if self.case.ends:
                return self.b.model(y), shape
            y = self.b.flatten(y)
        else:
            rank = self.one_of(2, 3, 4, 4, 4, 5)
            shape = (int(self.rng.integers(1, 3)), *(int(n) for n in self.rng.integers(3, 7, rank - 1)))
            y = self.b.input(*shape)
        for _ in range(int(self.rng.integers(2, 6)) if self.case is None else 1):
            y = self.one_of(*_MOVES)(self, self.dense(y))
        # Through a rectifier in the end, so that every rule has a meaning.
        return self.b.model(self.b.head(self.b.relu(self.dense(y)))), shape

    def dense(self, y: str, channels: int = 0) -> str:
        b, channels = self.b, channels or int(self.rng.integers(3, 8))
        if len(b.shapes[y]) == 2:
            return self.one_of(_gemm, _gemm, _einsum)(self, y, channels)
        kernel = self.one_of(1, 3)
        return self.one_of(_conv, _conv, _quantized_weights, _fused)(self, y, channels, kernel)

    def part(self, table: dict[str, Any], y: str) -> str:
        """One of a table of functions, as its op or in parts, of those that the opset can say."""
        names = [
            name for name, (_, known, since) in table.items() if max(since, _since(known)) <= self.b.opset
        ]
        name = str(self.one_of(*names))
        written, known, _ = table[name]
        turn = self.one_of(False, True)
        self.said.append(name + ", commuted" * turn)
        if not self.in_parts:
            return say(self.b, known, y)
        return say(self.b, commuted(written) if turn else written, y)


def _since(part: Any) -> int:
    """The first opset that has all ops of it."""
    if not isinstance(part, tuple):
        return 1
    op, *operands = part
    own = {"Gelu": 20, "Swish": 24, "HardSwish": 14, "Mish": 18, "Celu": 12, "Shrink": 9}.get(op, 7)
    return max(own, *map(_since, operands), 7)


def _rectify(w: Writer, y: str) -> str:
    return w.part(RECTIFIERS, y)


def _activate(w: Writer, y: str) -> str:
    return w.part(ACTIVATIONS, y)


def _prelu(w: Writer, y: str) -> str:
    """As Keras writes it."""
    shape = w.b.shapes[y]
    spread = (shape[1], *(1,) * (len(shape) - 2)) if w.one_of(True, False) else shape[1:]
    slopes = w.rng.uniform(-0.5, 0.9, spread)
    w.said.append("prelu")
    known = ("PRelu", "x", slopes)
    return say(
        w.b, ("Sub", ("Relu", "x"), ("Mul", slopes, ("Relu", ("Neg", "x")))) if w.in_parts else known, y
    )


def _resize(w: Writer, y: str) -> str:
    b, rank = w.b, len(w.b.shapes[y])
    if rank != 4:
        return y
    scales = [1.0, 1.0, float(w.one_of(0.7, 1.4, 0.9, 2.3, 1.3, 2.0)), float(w.one_of(0.7, 1.5, 1.0, 2.0))]
    if b.opset < 10:
        scales = [max(1.0, scale) for scale in scales]
    scales = [scale if size else 1.0 for scale, size in zip(scales, _sizes(b, y, scales), strict=True)]
    if _sizes(b, y, scales) == list(b.shapes[y]):
        scales[2] = 2.0  # onnxruntime copies what keeps its size, whatever the scale says
    mode = w.one_of("nearest", "linear")
    if b.opset < 10:
        w.said.append("upsample")
        return _sized(b, b.node("Upsample", y, b.constant(scales), mode=mode), y, scales)
    w.said.append(f"resize {mode} by {scales}")
    if b.opset < 11:
        return _sized(b, b.node("Resize", y, b.constant(scales), mode=mode), y, scales)
    how = w.one_of("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    if mode == "nearest":
        how = "asymmetric"  # others put pixels half-way, where rounding decides
    no_roi = b.constant(np.zeros(0, np.float32))
    options = {"mode": mode, "coordinate_transformation_mode": how}
    return _sized(b, b.node("Resize", y, no_roi, b.constant(scales), **options), y, scales)


def _sized(b: Builder, y: str, x: str, scales: list[float]) -> str:
    """With the shape that runtimes give it, which shape inference may not."""
    b._know(y, helper.make_tensor_type_proto(TensorProto.FLOAT, _sizes(b, x, scales)))
    return y


def _sizes(b: Builder, x: str, scales: list[float]) -> list[int]:
    return [int(np.float32(n) * np.float32(s)) for n, s in zip(b.shapes[x], scales, strict=True)]


def _constant(w: Writer, y: str) -> str:
    """A product with what folds."""
    b, shape = w.b, w.b.shapes[y]
    op = w.one_of("Softmax", "Sigmoid", "Exp", "Clip", "Sin", "Cos", "Abs", "InstanceNormalization", "LRN")
    if op in ("InstanceNormalization", "LRN") and len(shape) < 3:
        op = "Sin"
    c = b.constant(w.rng.standard_normal((1, *shape[1:])))
    w.said.append(f"constant {op}")
    if op == "Softmax":
        c = b.node("Softmax", c, axis=int(w.rng.integers(0 if b.opset < 13 else 1, len(shape))))
    elif op == "Clip":
        c = b.clip(c, -0.5, 0.5)
    elif op == "InstanceNormalization":
        c = b.node(op, c, *(b.constant(b.noise(shape[1])) for _ in range(2)))
    elif op == "LRN":
        c = b.node(op, c, size=3)
    else:
        c = b.node(op, c)
    return b.mul(y, c)


def _quantize(w: Writer, y: str) -> str:
    """Behind a rectifier, or saturating as one."""
    b = w.b
    if b.opset < 13:
        return y
    kind, zero = w.one_of((np.uint8, 0), (np.int8, -128))
    w.said.append("quantized")
    y = y if w.in_parts else b.relu(y)
    scale, zeros = b.constant(0.05), b.constant(np.full((), zero), kind)
    return b.node("DequantizeLinear", b.node("QuantizeLinear", y, scale, zeros), scale, zeros)


def _gemm(w: Writer, y: str, outputs: int) -> str:
    return w.b.gemm(y, outputs)


def _einsum(w: Writer, y: str, outputs: int) -> str:
    matrix = w.b.constant(w.b.noise(w.b.shapes[y][1], outputs) / math.sqrt(w.b.shapes[y][1]))
    if w.in_parts and w.b.opset >= 12:
        w.said.append("einsum")
        return w.b.node("Einsum", y, matrix, equation="ni,io->no")
    return w.b.node("MatMul", y, matrix)


def _conv(w: Writer, y: str, channels: int, kernel: int) -> str:
    return w.b.conv(y, channels, kernel, **({"auto_pad": "SAME_UPPER"} if kernel > 1 else {}))


def _quantized_weights(w: Writer, y: str, channels: int, kernel: int) -> str:
    """Weights of eight bits, with a scale for all or, since opset 13, for each output channel."""
    b, rank = w.b, len(w.b.shapes[y])
    shape = (channels, b.shapes[y][1], *(kernel,) * (rank - 2))
    by_channel = b.opset >= 13 and w.one_of(True, False)
    q = b.rng.integers(-127, 128, shape).astype(np.int8)
    scale = b.rng.uniform(0.005, 0.01, (channels,) if by_channel else ()).astype(np.float32)
    options = {"auto_pad": "SAME_UPPER"} if kernel > 1 else {}
    if w.in_parts and b.opset >= 10:
        w.said.append(f"weights of int8{' by channel' * by_channel}")
        operands = [b.constant(q, np.int8), b.constant(scale)]
        operands += [b.constant(np.zeros_like(scale), np.int8)] if w.one_of(True, False) else []
        weights = b.node("DequantizeLinear", *operands, **({"axis": 0} if by_channel else {}))
    else:
        w.one_of(True, False)
        weights = b.constant(q * scale.reshape(-1, *(1,) * (rank - 1) if by_channel else ()))
    return b.node("Conv", y, weights, **options)


def _fused(w: Writer, y: str, channels: int, kernel: int) -> str:
    """A convolution with its activation, as onnxruntime's optimizer saves it."""
    b = w.b
    activation, parameters = w.one_of(("Relu", []), ("LeakyRelu", [0.2]), ("Clip", [0.0, 6.0]))
    operands = [b.noise(channels, b.shapes[y][1], *(kernel,) * (len(b.shapes[y]) - 2)) / 3, b.noise(channels)]
    pads = [kernel // 2] * 2 * (len(b.shapes[y]) - 2)
    if w.in_parts and w.case is None and len(b.shapes[y]) == 4:
        w.said.append(f"FusedConv, {activation}")
        options = {"activation": activation, "pads": pads}
        if parameters:
            options["activation_params"] = parameters
        shape = (b.shapes[y][0], channels, *b.shapes[y][2:])
        return b.foreign("FusedConv", shape, y, *map(b.constant, operands), domain="com.microsoft", **options)
    y = b.node("Conv", y, *map(b.constant, operands), pads=pads)
    if activation == "Clip":
        return b.clip(y, *parameters)
    return b.node(activation, y, **({"alpha": parameters[0]} if parameters else {}))


def _permuted(w: Writer, y: str) -> str:
    """x[:, order], as torch's newer exporter writes it."""
    b, shape = w.b, w.b.shapes[y]
    order = w.rng.permutation(shape[1])
    w.said.append("permuted")
    if not w.in_parts or b.opset < 11:
        return b.node("Gather", y, b.constant(order), axis=1)
    perm = (1, 0, *range(2, len(shape)))
    picked = b.node("GatherND", b.transpose(y, *perm), b.constant(order[:, None]))
    return b.transpose(picked, *perm)


def _alone(w: Writer, y: str) -> str:
    """What changes nothing: a Concat of one tensor, casts there and back, a bound of infinity."""
    way = w.one_of("concat", "cast", "max", "dropout")
    w.said.append(f"nothing, as {way}")
    if not w.in_parts:
        return y
    if way == "concat":
        return w.b.concat(y, axis=0)
    if way == "cast":
        return w.b.node("Cast", w.b.node("Cast", y, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)
    if way == "max":
        return w.b.node("Max", y, w.b.constant(-np.inf))
    return w.b.dropout(y)


def _pool(w: Writer, y: str) -> str:
    """A max-pool whose padding is -inf, as an op of its own or of the pool."""
    b, rank = w.b, len(w.b.shapes[y])
    if rank != 4:
        return y
    w.said.append("padded pool")
    if w.in_parts:
        return b.node("MaxPool", b.pad(y, [0, 0, 1, 1, 0, 0, 1, 1], -np.inf), kernel_shape=[3, 3])
    return b.node("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


_MOVES: tuple[Callable[[Writer, str], str], ...] = (
    _rectify, _rectify, _rectify, _activate, _activate, _activate, _prelu, _resize, _constant, _quantize,
    _permuted, _alone, _pool,
)  # fmt: skip


# ------------------------------------------------------------------------------- how a whole file is written


def _open_sizes(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Sizes of -1, as PaddlePaddle writes them."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1


def _stale_sizes(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """The sizes of inner tensors as they were before the file was edited."""
    for node in model.graph.node:
        if rng.random() < 0.3 and node.op_type in ("Conv", "Gemm", "MatMul"):
            stale = [int(n) for n in rng.integers(1, 9, rng.integers(1, 6))]
            model.graph.value_info.append(
                helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, stale)
            )


def _as_function(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node is the body of a function of the file."""
    node = model.graph.node[int(rng.integers(len(model.graph.node)))]
    if node.op_type in ("Constant", "If") or len(node.output) > 1 or "" in node.input:
        return
    names = [f"in{i}" for i in range(len(node.input))]
    body = onnx.NodeProto()
    body.CopyFrom(node)
    del body.input[:], body.output[:]
    body.input.extend(names)
    body.output.append("out")
    imports = [*model.opset_import]
    model.functions.append(helper.make_function("local", "Body", names, ["out"], [body], imports))
    node.op_type, node.domain = "Body", "local"
    del node.attribute[:]
    model.opset_import.append(helper.make_opsetid("local", 1))


def _as_branch(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node before the last one is a branch of an If whose condition is constant.

    A head is looked for among the file's own nodes.
    """
    node = model.graph.node[int(rng.integers(max(1, len(model.graph.node) - 1)))]
    if len(node.output) > 1 or node.domain or model.opset_import[0].version < 11:
        return
    inner, other = onnx.NodeProto(), helper.make_node("Identity", [node.input[0]], ["else_y"])
    inner.CopyFrom(node)
    inner.output[0] = "then_y"
    then, otherwise = (
        helper.make_graph([n], f"branch{i}", [], [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)])
        for i, (n, y) in enumerate(((inner, "then_y"), (other, "else_y")))
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    branch = helper.make_node("If", ["condition"], node.output, then_branch=then, else_branch=otherwise)
    node.CopyFrom(branch)


def _squeezed(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A file of one sample, whose scores have no batch axis."""
    graph = model.graph
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    scores = graph.output[0].name
    graph.node.append(helper.make_node("Squeeze", [scores], ["squeezed"]))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("squeezed", TensorProto.FLOAT, None))


def _best(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """The file's only output is the index of the best class."""
    scores = model.graph.output[0].name
    model.graph.node.append(helper.make_node("ArgMax", [scores], ["best"], axis=1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("best", TensorProto.INT64, None))


DRESSES: tuple[Callable[[onnx.ModelProto, np.random.Generator], None], ...] = (
    _open_sizes, _stale_sizes, _as_function, _as_branch, _squeezed, _best,
)  # fmt: skip
