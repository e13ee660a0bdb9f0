"""The operators of classic networks, on the arithmetic of `naive`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import naive
import numpy as np
import onnx
from naive import Array, f64

from .node import Kinked, Node, Operand, Operator, Rectifier, Vjp, margin

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


def _runner_up_distances(x: Array, y_shape: Sequence[int], geometry: naive.Geometry) -> Array:
    """Maximum minus second largest of every window that has two cells."""
    largest, second = np.full(y_shape, -math.inf), np.full(y_shape, -math.inf)
    for _, windows, cells in naive.taps(x.shape[2:], y_shape[2:], geometry):
        top, cell = largest[:, :, *windows], x[:, :, *cells]
        second[:, :, *windows] = np.maximum(second[:, :, *windows], np.minimum(top, cell))
        largest[:, :, *windows] = np.maximum(top, cell)
    return (largest - second)[second > -math.inf]


def max_pool(n: Node, x: Array) -> tuple[Array, Kinked]:
    geometry = pool_window(n, x)
    y, switches = naive.maxpool_fwd(x, **geometry)
    window = naive.Geometry(*(geometry[name] for name in ("kernel", "stride", "pads", "dilation")))
    return y, Kinked(
        lambda gy: [naive.maxpool_bwd(gy, switches, x.shape, **geometry)],
        lambda: margin(_runner_up_distances(x, y.shape, window), x),
    )


def average_pool(n: Node, x: Array) -> tuple[Array, Vjp]:
    geometry = pool_window(n, x) | {"count_include_pad": bool(n.get("count_include_pad", 0))}
    return naive.averagepool_fwd(x, **geometry), lambda gy: [naive.averagepool_bwd(gy, x.shape, **geometry)]


def global_max_pool(n: Node, x: Array) -> tuple[Array, Kinked]:
    y, switches = naive.global_maxpool_fwd(x)
    window = naive.Geometry(x.shape[2:], (1, 1), (0, 0, 0, 0), (1, 1))
    return y, Kinked(
        lambda gy: [naive.global_maxpool_bwd(gy, switches, x.shape)],
        lambda: margin(_runner_up_distances(x, y.shape, window), x),
    )


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


def clip(n: Node, x: Array, lo: Operand = None, hi: Operand = None) -> tuple[Array, Rectifier]:
    lo = float(n.moved("min", 11, lo, default=-math.inf))
    hi = float(n.moved("max", 11, hi, default=math.inf))
    return naive.clip_fwd(x, lo, hi), Rectifier(x, lo, hi, obeys=lo == 0)


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
    beta = n.get("beta", 1.0)

    def vjp(gy: Array) -> list[Array]:
        gc = [] if c is None else [np.zeros(b.shape), naive.unbroadcast(beta * gy, c.shape)]
        return [naive.gemm_bwd(gy, b, **how), *gc]

    return naive.gemm_fwd(a, b, c, beta=beta, **how), vjp


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


def constant(n: Node) -> tuple[Any, Vjp]:
    value = onnx.numpy_helper.to_array(n.get("value"))
    return f64(value) if value.dtype.kind == "f" else value, lambda gy: []


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


OPERATORS: dict[str, Operator] = {
    "Add": add,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Clip": clip,
    "Concat": concat,
    "Constant": constant,
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
