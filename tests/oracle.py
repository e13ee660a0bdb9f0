"""Whole ONNX models in plain float64, forward and in reverse under a rule: what the engine is compared with.

Nodes run in the order of the file, every tensor stays in a dict, every gradient is the sum over the tensor's
readers. Nothing is fused, folded or laid out anew, and nothing of gbp is imported: the arithmetic is that of
`naive`, this file only reads ONNX (opset 7 and later).

An operator is a function of a `Node` and of its operands, in ONNX's order. It returns its output (Split: a
list) and its vjp, which takes the output's gradient to those of the operands, in order; constants behind the
last computed operand may be left out. A rectifier returns a `Rectifier` instead: its reverse is the rule's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import naive
import numpy as np
import onnx
from naive import Array, f64

Vjp = Callable[..., Sequence[Array]]
Operand = Any  # an array, or None where an optional input is left out


class Node:
    """An ONNX node: its attributes, and the opset that says what they mean."""

    def __init__(self, proto: onnx.NodeProto, opset: int) -> None:
        self.op, self.opset = proto.op_type, opset
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def moved(self, name: str, since: int, operand: Operand, default: Any = None) -> Any:
        """A parameter that was attribute `name` and is an input since some opset."""
        value = operand if self.opset >= since else self.get(name)
        return default if value is None else value


class Rectifier(NamedTuple):
    """y = clip(x, lo, hi), and a rule decides what its vjp is."""

    x: Array
    lo: float
    hi: float


# --- Windows ------------------------------------------------------------------------------------------------


def window(n: Node, x: Array, kernel: Sequence[int]) -> dict[str, Any]:
    """The geometry keywords of `naive`."""
    stride, dilation = n.get("strides", [1, 1]), n.get("dilations", [1, 1])
    pads = n.get("pads", [0, 0, 0, 0])
    auto_pad = n.get("auto_pad", "NOTSET")
    if auto_pad != "NOTSET":
        (top, bottom), (left, right) = (
            naive.resolve_pads(auto_pad, x.shape[2 + i], kernel[i], stride[i], dilation[i]) for i in (0, 1)
        )
        pads = [top, left, bottom, right]
    return {"stride": stride, "pads": pads, "dilation": dilation}


def pool_window(n: Node, x: Array) -> dict[str, Any]:
    kernel = n.get("kernel_shape")
    return {"kernel": kernel, **window(n, x, kernel), "ceil_mode": bool(n.get("ceil_mode", 0))}


def conv(n: Node, x: Array, w: Array, b: Operand = None) -> tuple[Array, Vjp]:
    geometry = window(n, x, w.shape[2:]) | {"group": n.get("group", 1)}
    return naive.conv_fwd(x, w, b, **geometry), lambda gy: [naive.conv_bwd(gy, w, x.shape, **geometry)]


def max_pool(n: Node, x: Array) -> tuple[Array, Vjp]:
    geometry = pool_window(n, x)
    y, switches = naive.maxpool_fwd(x, **geometry)
    return y, lambda gy: [naive.maxpool_bwd(gy, switches, x.shape, **geometry)]


def average_pool(n: Node, x: Array) -> tuple[Array, Vjp]:
    geometry = pool_window(n, x) | {"count_include_pad": bool(n.get("count_include_pad", 0))}
    return naive.averagepool_fwd(x, **geometry), lambda gy: [naive.averagepool_bwd(gy, x.shape, **geometry)]


def global_max_pool(n: Node, x: Array) -> tuple[Array, Vjp]:
    y, switches = naive.global_maxpool_fwd(x)
    return y, lambda gy: [naive.global_maxpool_bwd(gy, switches, x.shape)]


def global_average_pool(n: Node, x: Array) -> tuple[Array, Vjp]:
    return naive.global_averagepool_fwd(x), lambda gy: [naive.global_averagepool_bwd(gy, x.shape)]


def reduce_mean(n: Node, x: Array, axes: Operand = None) -> tuple[Array, Vjp]:
    axes = n.moved("axes", 18, axes, default=range(x.ndim))
    mean = x.mean(axis=tuple(axes), keepdims=True)
    y = mean if n.get("keepdims", 1) else mean.squeeze(tuple(axes))
    return y, lambda gy: [np.broadcast_to(gy.reshape(mean.shape) * mean.size / x.size, x.shape)]


# --- Pointwise ----------------------------------------------------------------------------------------------


def relu(n: Node, x: Array) -> tuple[Array, Rectifier]:
    return naive.relu_fwd(x), Rectifier(x, 0.0, math.inf)


def clip(n: Node, x: Array, lo: Operand = None, hi: Operand = None) -> tuple[Array, Vjp | Rectifier]:
    lo = float(n.moved("min", 11, lo, default=-math.inf))
    hi = float(n.moved("max", 11, hi, default=math.inf))
    y = naive.clip_fwd(x, lo, hi)
    if lo == 0:
        return y, Rectifier(x, lo, hi)
    return y, lambda gy: [naive.rectifier_bwd(gy, x, lo=lo, hi=hi, forward_gate=True, gradient_gate=False)]


def batch_normalization(
    n: Node, x: Array, scale: Array, b: Array, mean: Array, var: Array
) -> tuple[Array, Vjp]:
    epsilon = n.get("epsilon", 1e-5)
    y = naive.batchnorm_fwd(x, scale, b, mean, var, epsilon=epsilon)
    return y, lambda gy: [naive.batchnorm_bwd(gy, scale, var, epsilon=epsilon)]


def lrn(n: Node, x: Array) -> tuple[Array, Vjp]:
    defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    constants = {"size": n.get("size"), **{name: n.get(name, value) for name, value in defaults.items()}}
    return naive.lrn_fwd(x, **constants), lambda gy: [naive.lrn_bwd(gy, x, **constants)]


def add(n: Node, *xs: Array) -> tuple[Array, Vjp]:
    return naive.add_fwd(*xs), lambda gy: naive.add_bwd(gy, *(x.shape for x in xs))


def mul(n: Node, *xs: Array) -> tuple[Array, Vjp]:
    return naive.mul_fwd(*xs), lambda gy: naive.mul_bwd(gy, *xs)


def _softmax(
    n: Node, x: Array, forward: Callable[..., Array], backward: Callable[..., Array]
) -> tuple[Array, Vjp]:
    """Along `axis` alone; before opset 13 over all axes from `axis` on."""
    if n.opset >= 13:
        y = forward(x, n.get("axis", -1))
        return y, lambda gy: [backward(gy, y, n.get("axis", -1))]
    rows = (math.prod(x.shape[: n.get("axis", 1)]), -1)
    y = forward(x.reshape(rows), 1)
    return y.reshape(x.shape), lambda gy: [backward(gy.reshape(rows), y, 1).reshape(x.shape)]


def softmax(n: Node, x: Array) -> tuple[Array, Vjp]:
    return _softmax(n, x, naive.softmax_fwd, naive.softmax_bwd)


def log_softmax(n: Node, x: Array) -> tuple[Array, Vjp]:
    return _softmax(n, x, naive.logsoftmax_fwd, naive.logsoftmax_bwd)


# --- Matrix products ----------------------------------------------------------------------------------------


def gemm(n: Node, a: Array, b: Array, c: Operand = None) -> tuple[Array, Vjp]:
    how = {
        "alpha": n.get("alpha", 1.0),
        "trans_a": bool(n.get("transA", 0)),
        "trans_b": bool(n.get("transB", 0)),
    }
    return naive.gemm_fwd(a, b, c, beta=n.get("beta", 1.0), **how), lambda gy: [naive.gemm_bwd(gy, b, **how)]


def matmul(n: Node, a: Array, b: Array) -> tuple[Array, Vjp]:
    return naive.matmul_fwd(a, b), lambda gy: naive.matmul_bwd(gy, a, b)


# --- Moving cells about -------------------------------------------------------------------------------------


def concat(n: Node, *xs: Array) -> tuple[Array, Vjp]:
    axis = n.get("axis")
    sizes = [x.shape[axis] for x in xs]
    return naive.concat_fwd(*xs, axis=axis), lambda gy: naive.concat_bwd(gy, sizes=sizes, axis=axis)


def split(n: Node, x: Array, sizes: Operand = None) -> tuple[list[Array], Vjp]:
    """Into the given sizes; else into equal parts, of which the last may be smaller (opset 18)."""
    axis, count = n.get("axis", 0), len(n.outputs)
    part = math.ceil(x.shape[axis] / count)
    sizes = n.moved("split", 13, sizes, default=[part] * (count - 1) + [x.shape[axis] - part * (count - 1)])
    return naive.split_fwd(x, sizes=sizes, axis=axis), lambda *gys: [naive.split_bwd(*gys, axis=axis)]


def _reshaped(x: Array, shape: Sequence[int]) -> tuple[Array, Vjp]:
    return x.reshape(shape), lambda gy: [gy.reshape(x.shape)]


def identity(n: Node, x: Array, *_: Operand) -> tuple[Array, Vjp]:
    return x, lambda gy: [gy]


def reshape(n: Node, x: Array, shape: Array) -> tuple[Array, Vjp]:
    """A size of -1 is what is left; 0 copies that of x, unless `allowzero`."""
    if n.get("allowzero", 0):
        return _reshaped(x, shape)
    return _reshaped(x, [x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def flatten(n: Node, x: Array) -> tuple[Array, Vjp]:
    axis = n.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return _reshaped(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def squeeze(n: Node, x: Array, axes: Operand = None) -> tuple[Array, Vjp]:
    ones = [i for i, size in enumerate(x.shape) if size == 1]
    axes = n.moved("axes", 13, axes, default=ones)
    return _reshaped(x, x.squeeze(tuple(axes)).shape)


def unsqueeze(n: Node, x: Array, axes: Operand = None) -> tuple[Array, Vjp]:
    return _reshaped(x, np.expand_dims(x, tuple(n.moved("axes", 13, axes))).shape)


def transpose(n: Node, x: Array) -> tuple[Array, Vjp]:
    perm = n.get("perm", range(x.ndim)[::-1])
    return x.transpose(perm), lambda gy: [gy.transpose(np.argsort(perm))]


def pad(
    n: Node, x: Array, pads: Operand = None, value: Operand = None, axes: Operand = None
) -> tuple[Array, Vjp]:
    given, value = n.moved("pads", 11, pads), float(n.moved("value", 11, value, default=0.0))
    axes = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    full = [0] * 2 * x.ndim
    for i, axis in enumerate(axes):
        full[axis], full[x.ndim + axis] = int(given[i]), int(given[i + len(axes)])
    return naive.pad_fwd(x, full, value), lambda gy: [naive.pad_bwd(gy, full, x.shape)]


OPERATORS: dict[str, Callable[..., tuple[Any, Vjp | Rectifier]]] = {
    "Add": add,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "Dropout": identity,
    "Flatten": flatten,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "Identity": identity,
    "LRN": lrn,
    "LogSoftmax": log_softmax,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mul": mul,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Relu": relu,
    "Reshape": reshape,
    "Softmax": softmax,
    "Split": split,
    "Squeeze": squeeze,
    "Sum": add,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}


# --- Models -------------------------------------------------------------------------------------------------


class Run:
    """One forward run of a model on x; `explain` goes back from it, as often as one likes.

    `values` holds every tensor by name. A model's only output is the last tensor; its image is the only input
    that is no initializer.
    """

    def __init__(self, model: onnx.ModelProto, x: Any) -> None:
        graph = model.graph
        (opset,) = (entry.version for entry in model.opset_import if entry.domain == "")
        self.values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.values = {k: f64(v) if v.dtype.kind == "f" else v for k, v in self.values.items()}
        (self.image,) = (value.name for value in graph.input if value.name not in self.values)
        (self.output,) = (value.name for value in graph.output)
        self.values[self.image] = f64(x)
        self.steps: list[tuple[Node, Vjp | Rectifier]] = []
        for node in (Node(proto, opset) for proto in graph.node):
            operands = [self.values[name] if name else None for name in node.inputs]
            result, vjp = OPERATORS[node.op](node, *operands)
            self.values.update(
                zip(node.outputs, result if isinstance(result, list) else [result], strict=False)
            )
            self.steps.append((node, vjp))

    def explain(self, rule: str, target: Any = None, output: str | None = None) -> tuple[Array, Array]:
        """Scores (N, classes), flattened, and the map of x's shape; (N, K, …) for targets (N, K).

        `target`: None for each sample's argmax, one index, (N,) or (N, K). `output`: None for the logits,
        "probability" for the model's output, or a tensor.
        """
        name = self._logits() if output is None else self.output if output == "probability" else output
        scores = self.values[name].reshape(len(self.values[name]), -1)
        target = np.asarray(scores.argmax(axis=1) if target is None else target)
        if target.ndim == 2:
            return scores, np.stack([self.explain(rule, column, name)[1] for column in target.T], axis=1)
        seed = np.zeros(scores.shape)
        seed[np.arange(len(seed)), target] = 1
        return scores, self.reverse(rule, name, seed.reshape(self.values[name].shape))

    def reverse(self, rule: str, output: str, seed: Array) -> Array:
        """The image's gradient under the rule, given that of tensor `output`."""
        forward_gate, gradient_gate = naive.RULES[rule]
        gradients = {output: seed}
        for node, vjp in reversed(self.steps):
            if not gradients.keys() & set(node.outputs):
                continue  # behind the output
            gys = [gradients.get(name, np.zeros(self.values[name].shape)) for name in self._made(node)]
            if isinstance(vjp, Rectifier):
                gates = {"forward_gate": forward_gate, "gradient_gate": gradient_gate}
                gxs: Sequence[Array] = [naive.rectifier_bwd(*gys, vjp.x, lo=vjp.lo, hi=vjp.hi, **gates)]
            else:
                gxs = vjp(*gys)
            for name, gx in zip(node.inputs, gxs, strict=False):
                gradients[name] = gradients.get(name, 0) + gx
        return gradients[self.image]

    def _made(self, node: Node) -> list[str]:
        """The outputs that were computed; Dropout's mask and MaxPool's indices are not."""
        return [name for name in node.outputs if name in self.values]

    def _logits(self) -> str:
        """What feeds the Softmax or LogSoftmax at the end; the output where there is none."""
        maker = {name: node for node, _ in self.steps for name in node.outputs}
        name = self.output
        while name in maker and maker[name].op in ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze"):
            name = maker[name].inputs[0]
        ends = name in maker and maker[name].op in ("Softmax", "LogSoftmax")
        return maker[name].inputs[0] if ends else self.output

    @property
    def margin(self) -> float:
        """How near rounding is to flipping a gate or a switch of this run.

        The smallest distance of a rectifier's input from a bound, or of a window's maximum from its
        runner-up, in units of the largest magnitude in that tensor. An exact tie, as between zeros that a
        Relu made, does not count: no rounding is in it.
        """
        return min((self._margin(node, vjp) for node, vjp in self.steps), default=math.inf)

    def _margin(self, node: Node, vjp: Vjp | Rectifier) -> float:
        x = self.values[node.inputs[0]]
        if node.op in ("Relu", "Clip"):
            bounds = [0.0, math.inf] if node.op == "Relu" else _bounds(node, self.values)
            distances = np.abs(x[..., None] - [bound for bound in bounds if math.isfinite(bound)])
        elif node.op in ("MaxPool", "GlobalMaxPool"):
            y = self.values[node.outputs[0]]
            distances = _runner_up_distances(x, y.shape, _max_geometry(node, x))
        else:
            return math.inf
        scale = np.abs(x).max()
        return float(np.min(distances[distances > 0], initial=math.inf) / scale) if scale else math.inf


def _bounds(node: Node, values: dict[str, Any]) -> list[float]:
    operands = [values[name] if name else None for name in node.inputs[1:]] + [None, None]
    return [
        float(node.moved("min", 11, operands[0], -math.inf)),
        float(node.moved("max", 11, operands[1], math.inf)),
    ]


def _max_geometry(node: Node, x: Array) -> naive.Geometry:
    if node.op == "GlobalMaxPool":
        return naive.Geometry(x.shape[2:], (1, 1), (0, 0, 0, 0), (1, 1))
    geometry = pool_window(node, x)
    return naive.Geometry(*(geometry[name] for name in ("kernel", "stride", "pads", "dilation")))


def _runner_up_distances(x: Array, y_shape: Sequence[int], geometry: naive.Geometry) -> Array:
    """Maximum minus second largest of every window that has two cells."""
    found = [np.empty(0)]
    for _, _, taps in naive.windows(x.shape[2:], y_shape[2:], geometry):
        cells = np.sort([x[:, :, ih, iw].ravel() for _, _, ih, iw in taps], axis=0)
        found += [cells[-1] - cells[-2]] if len(cells) > 1 else []
    return np.concatenate(found)


def explain(
    model: onnx.ModelProto, x: Any, rule: str, target: Any = None, output: str | None = None
) -> tuple[Array, Array]:
    """Run the model on x and go back from the output under a rule: `Run.explain`."""
    return Run(model, x).explain(rule, target, output)
