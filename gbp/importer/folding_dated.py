"""Constant folding where onnx's reference knows only an op's newest meaning, or differs from runtimes.

These are computed here, and all others by the reference:

    Softmax, LogSoftmax, Hardmax before opset 13   over all axes from `axis` on, as one row
    Resize, Upsample                               by the tables of `ops.resample`
    BatchNormalization before opset 14             in inference
    GroupNormalization                             scaled by channel; before opset 21 by group
    LRN                                            of any rank, with the windows of runtimes
    Conv, pools, …                                 with the windows of layers: `folding_windows.py`
    LpNormalization                                by the sum of magnitudes
    Scatter, GatherElements                        whose indices may be fewer than x along any axis
    OneHot, CumSum                                 whose depth or axis is a list of one number
    RoiAlign before opset 16                       without half a pixel's shift
    Unique, not sorted                             in the order of the first occurrence, along any axis
    QuantizeLinear, DequantizeLinear               at any opset: `folding_quantized.py`
    Add, Pow, And … before opset 7                 the second operand's axes are the first's from `axis` on
    Cast, Concat, Selu, … before opset 7           with the attributes and defaults of then
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..errors import UnsupportedError
from ..limits import elements
from ..ops.node import Node
from ..ops.resample import Resample, parse_resize, parse_upsample
from .folding_quantized import dequantized, quantized
from .folding_windows import WINDOWED, windowed

Array = NDArray[Any]

#: Ops whose meaning changed at opset 13.
SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")
_RESIZE = {"Resize": parse_resize, "Upsample": parse_upsample}
_BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")


#: The first opset of which onnx's reference has all ops that are older.
OLDEST = 7
#: Attributes of ops before opset 7 that have no meaning in inference.
_DROPPED = {"consumed_inputs", "is_test"}


def modern(
    node: onnx.NodeProto, values: Mapping[str, Array], opset: int
) -> tuple[onnx.NodeProto, dict[str, Array], int]:
    """A node, its inputs and the opset as onnx's reference computes them.

    Before opset 7 a node broadcasts along an axis, and some attributes and defaults differ.  Before opset 16
    RoiAlign does not shift.  A depth or an axis may be a list of one number.  Other nodes stay unchanged.

    Parameters
    ----------
    node
        The node.  All its inputs are constant.
    values
        Its inputs by name, of any shape and type.
    opset
        The file's opset.

    Source: ONNX Add-6 and its like, attributes `broadcast` and `axis`; Cast-1, Concat-1, Gemm-6, Selu-1.
    """
    given = dict(values)
    if node.op_type in ("OneHot", "CumSum") and given[node.input[1]].size == 1:
        given[node.input[1]] = given[node.input[1]].reshape(())
    if node.op_type == "RoiAlign" and opset < 16:
        unshifted = onnx.NodeProto()
        unshifted.CopyFrom(node)
        mode = helper.make_attribute("coordinate_transformation_mode", "output_half_pixel")
        unshifted.attribute.append(mode)
        return unshifted, given, opset
    if opset >= OLDEST:
        return node, given, opset
    old = _attributes(node)
    today = {name: value for name, value in old.items() if name not in _DROPPED}
    inputs = list(node.input)
    if node.op_type in _BROADCAST:
        first, second = (values[name] for name in node.input)
        axis = today.pop("axis", -1)  # of which nothing is behind the second operand
        behind = 0 if axis == -1 else first.ndim - axis - second.ndim
        if axis < -1 or behind < 0:
            raise ValueError(f"axis {axis} of {first.ndim}")
        today.pop("broadcast", None)
        inputs[1] += " along its axis"
        given[inputs[1]] = second.reshape(second.shape + (1,) * behind)
    elif node.op_type == "Gemm":
        today.pop("broadcast", None)
    elif node.op_type == "Cast" and isinstance(today.get("to"), bytes):
        today["to"] = TensorProto.DataType.Value(today["to"].decode().upper())
    elif node.op_type == "Concat":
        today = {"axis": 1} | today
    elif node.op_type == "Reshape" and "shape" in today:
        inputs.append(f"shape of {node.output[0]}")
        given[inputs[1]] = np.array(today.pop("shape"), np.int64)
    elif node.op_type == "Pad" and "paddings" in today:
        today["pads"] = today.pop("paddings")
    elif node.op_type == "Selu" and opset < 6:
        today = {"alpha": 1.6732, "gamma": 1.0507} | today
    return helper.make_node(node.op_type, inputs, node.output, node.name, **today), given, OLDEST


def computed(node: onnx.NodeProto, values: Mapping[str, Array], opset: int) -> Array | None:
    """The output of a node of constants; None if onnx's reference implementation computes it correctly.

    Parameters
    ----------
    node
        The node.  All its inputs are constant.
    values
        Its inputs by name, of any shape and type.
    opset
        The file's opset.

    Raises
    ------
    ModelError
        If the node contradicts the specification.
    UnsupportedError
        If the result would be too large.
    ValueError
        If its inputs do not fit.  Other exceptions of NumPy are possible.

    Source: ONNX Softmax-11, LogSoftmax-11, Hardmax-11, BatchNormalization-9, GroupNormalization-18 and -21,
    LRN-13; Resize-19 and Upsample-9; Unique-11.
    """
    if node.op_type in SOFTMAX and opset < 13:
        return _softmax(node, values[node.input[0]])
    if node.op_type in _RESIZE:
        return _resized(node, values, opset)
    given = [values[name] for name in node.input if name]
    if node.op_type == "BatchNormalization" and opset < 14:
        return _batchnorm(node, *given)
    if node.op_type == "GroupNormalization":
        return _groupnorm(node, *given)
    if node.op_type == "LRN":
        return _lrn(node, *given)
    if node.op_type in WINDOWED and not any(node.output[1:]):
        return windowed(node, values, opset)
    if node.op_type == "LpNormalization":
        return _lp_normalized(node, *given)
    if node.op_type == "GatherElements":
        x, indices = given
        return np.asarray(x[_places(node, indices)])
    if node.op_type == "Scatter":
        x, indices, updates = given
        y = x.copy()
        y[_places(node, indices)] = updates
        return y
    if node.op_type == "Unique" and not _attributes(node).get("sorted", 1):
        return _first_of_each(node, *given)
    if node.op_type == "QuantizeLinear":
        return quantized(node, *given)
    if node.op_type == "DequantizeLinear":
        return dequantized(node, *given)
    return None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _batchnorm(node: onnx.NodeProto, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
    given = _attributes(node)
    if not given.get("spatial", 1) or not given.get("is_test", 1) or given.get("training_mode", 0):
        raise ValueError("it normalizes by sample, or as in training")
    shape = (-1, *(1,) * (x.ndim - 2))
    a = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + given.get("epsilon", 1e-5))
    y = x * a.reshape(shape) + (bias - mean * a).reshape(shape)
    return np.asarray(y, x.dtype)


def _groupnorm(node: onnx.NodeProto, x: Array, scale: Array, bias: Array) -> Array:
    """A scale and a shift may be given for each channel, or for each group."""
    given = _attributes(node)
    N, C, groups = *x.shape[:2], int(given["num_groups"])
    rows = x.astype(np.float64).reshape(N, groups, -1)
    rows = rows - rows.mean(axis=2, keepdims=True)
    rows = rows / np.sqrt((rows**2).mean(axis=2, keepdims=True) + given.get("epsilon", 1e-5))
    shape = (-1, *(1,) * (x.ndim - 2))
    a, b = (np.repeat(v, C // len(v)).reshape(shape) for v in (scale, bias))
    return np.asarray(rows.reshape(x.shape) * a + b, x.dtype)


def _lrn(node: onnx.NodeProto, x: Array) -> Array:
    """LRN over a window of channels, which is cut at the first and the last one."""
    given = _attributes(node)
    size, alpha = int(given["size"]), given.get("alpha", 1e-4)
    if x.ndim < 2 or size < 1:
        raise ValueError(f"size {size} does not fit {list(x.shape)}")
    C = x.shape[1]
    # Channels of the window on either side; more than C are as good as C, and may not fit an integer.
    before, after = min((size - 1) // 2, C), min(size - 1 - (size - 1) // 2, C)
    sums = np.zeros((len(x), 1 + C, *x.shape[2:]))  # of all squares before each channel
    np.cumsum(x.astype(np.float64) ** 2, axis=1, out=sums[:, 1:])
    first, stop = np.maximum(np.arange(C) - before, 0), np.minimum(np.arange(C) + after + 1, C)
    window = sums[:, stop] - sums[:, first]
    scale = (given.get("bias", 1.0) + alpha / size * window) ** given.get("beta", 0.75)
    return np.asarray(x / scale, x.dtype)


def _lp_normalized(node: onnx.NodeProto, x: Array) -> Array:
    """x by its norm along an axis; 0 where that is 0."""
    given = _attributes(node)
    if given.get("p", 2) not in (1, 2):
        raise ValueError(f"p is {given['p']}, and may be 1 or 2")
    norm = np.linalg.norm(x.astype(np.float64), given.get("p", 2), given.get("axis", -1), keepdims=True)
    return np.asarray(x / np.where(norm == 0, 1, norm), x.dtype)


def _places(node: onnx.NodeProto, indices: Array) -> tuple[Array, ...]:
    """Where in x each index points to: at its own place, and along an axis at its value."""
    places: list[Array] = list(np.indices(indices.shape))
    places[_attributes(node).get("axis", 0)] = indices
    return tuple(places)


def _first_of_each(node: onnx.NodeProto, x: Array) -> Array | None:
    """Unique values in the order in which they come, of the whole tensor or along an axis.

    With more outputs, the reference implementation orders them so, but only of a tensor of one axis.
    """
    axis = _attributes(node).get("axis")
    if any(node.output[1:]):
        if x.ndim != 1:
            raise UnsupportedError(
                "it is not sorted, and puts out places besides.",
                node=node.name or node.output[0],
                op=node.op_type,
                supported="one output, or a tensor of one axis",
            )
        return None
    along, values = (0, x.reshape(-1)) if axis is None else (axis, x)
    _, places = np.unique(values, return_index=True, axis=along)
    return values.take(np.sort(places), along)


def _softmax(node: onnx.NodeProto, x: Array) -> Array:
    """Softmax and its like over all axes from `axis` on, as one row."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if not -x.ndim <= axis <= x.ndim:
        raise ValueError(f"axis {axis} of {x.ndim}")
    rows = x.astype(np.float64).reshape(elements(x.shape[:axis]), -1)
    if node.op_type == "Hardmax":
        y = np.arange(rows.shape[1]) == rows.argmax(axis=1)[:, None]
    else:
        shifted = rows - rows.max(axis=1, keepdims=True)
        y = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        y = y if node.op_type == "LogSoftmax" else np.exp(y)
    return np.asarray(y.reshape(x.shape), x.dtype)


def _resized(node: onnx.NodeProto, values: Mapping[str, Array], opset: int) -> Array | None:
    """The resized constant; None where the parser refuses the node."""
    x = values[node.input[0]]
    parsed = Node(node, opset, [x.shape, *(values.get(name) for name in node.input[1:])])
    try:
        ops = _RESIZE[node.op_type](parsed)
        parsed.check_all_attributes_read()
    except UnsupportedError:  # of the batch axis, say: a constant has none
        return None
    y: Array = x.astype(np.float64)
    for op in ops:
        if isinstance(op, Resample):
            weights = op.table.weights.reshape((-1,) + (1,) * (y.ndim - op.axis - 1))
            y = np.add.reduceat(y.take(op.table.taps, op.axis) * weights, op.table.starts[:-1], op.axis)
    return np.asarray(y, x.dtype)
