"""Constant folding of convolutions and pools, with the windows that their layers have.

    Conv, ConvTranspose                     Σ x · w + b; a ConvTranspose is a Conv of spread pixels
    MaxPool, AveragePool, LpPool            of the cells of a window; padding never wins and adds 0
    GlobalLpPool                            of all pixels

The parsers in `ops/` read the windows, so a constant is refused where a layer would be.  onnx's reference
implementation has other windows where groups, dilations, `ceil_mode` or `auto_pad` come together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..graph.geometry import Axis
from ..limits import elements
from ..ops.conv.conv import read_conv
from ..ops.conv_transpose import read_transposed
from ..ops.lp_pool import read_p
from ..ops.node import Node
from ..ops.pool import read_pool_axes

Array = NDArray[Any]

#: Ops that are computed here.
WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalLpPool")


def windowed(proto: onnx.NodeProto, values: Mapping[str, Array], opset: int) -> Array:
    """The output of a node of `WINDOWED` for constant inputs.

    Parameters
    ----------
    proto
        The node.  It has one output.
    values
        Its inputs by name.  The first has shape (N, C, …), with one to three spatial axes.
    opset
        The file's opset.

    Raises
    ------
    ModelError, UnsupportedError
        As the op's parser raises them.

    Source: ONNX Conv-11, ConvTranspose-11, MaxPool-12, AveragePool-19, LpPool-18, GlobalLpPool-2.
    """
    x, *others = [values.get(name) for name in proto.input]
    assert x is not None  # `check_arity` has seen it
    node = Node(proto, opset, [x.shape, *others])
    y = _COMPUTED[proto.op_type](node, x)
    node.check_all_attributes_read()
    return np.asarray(y, x.dtype)


def _windows(x: Array, axes: Sequence[Axis], fill: float) -> Array:
    """x (N, C, …) as (N, C, outputs, taps, …), with two axes for each spatial one.  Padding is `fill`."""
    for i, axis in enumerate(axes):
        at = 2 + 2 * i
        taps = np.arange(axis.outputs)[:, None] * axis.stride - axis.begin
        taps = taps + np.arange(axis.kernel) * axis.dilation
        is_inside = ((taps >= 0) & (taps < axis.size)).reshape(*taps.shape, *(1,) * (x.ndim - at - 1))
        x = np.where(is_inside, x.take(taps.clip(0, axis.size - 1), axis=at), x.dtype.type(fill))
    return x


def _taps(axes: Sequence[Axis]) -> tuple[int, ...]:
    """The axes of `_windows` that count taps."""
    return tuple(range(3, 3 + 2 * len(axes), 2))


def _convolved(node: Node, x: Array, axes: Sequence[Axis], w: Array, group: int) -> Array:
    """x (N, C, …) by weights (O, C / group, …)."""
    N, O, rank = len(x), len(w), len(axes)
    windows = _windows(x.astype(np.float64), axes, 0)
    moved = windows.transpose(0, *range(2, 2 + 2 * rank, 2), 1, *_taps(axes))
    rows = moved.reshape(-1, group, elements(w.shape[1:]))
    matrices = w.astype(np.float64).reshape(group, O // group, -1)
    y: Array = np.einsum("pgk,gok->pgo", rows, matrices, optimize=True)
    y = np.moveaxis(y.reshape(N, *(a.outputs for a in axes), O), -1, 1)
    return y + node.constant(2).reshape(O, *(1,) * rank) if node.has(2) else y


def _conv(node: Node, x: Array) -> Array:
    w, axes, group = read_conv(node)
    return _convolved(node, x, axes, w, group)


def _conv_transpose(node: Node, x: Array) -> Array:
    w, spread, axes, group = read_transposed(node)
    padded = np.zeros(spread.shape(x.shape), x.dtype)
    kept, to = zip(*spread.cells(x.shape), strict=True)
    padded[..., *to] = x[..., *kept]
    return _convolved(node, padded, axes, w, group)


def _max_pool(node: Node, x: Array) -> Array:
    node.integer("storage_order", 0)  # of Indices, which are not computed here
    axes = read_pool_axes(node)
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    y: Array = _windows(x, axes, least).max(axis=_taps(axes))
    return y


def _average_pool(node: Node, x: Array) -> Array:
    """The divisor counts the cells of the plane, or with `count_include_pad` of the padded plane."""
    axes = read_pool_axes(node)
    y: Array = _windows(x.astype(np.float64), axes, 0).sum(axis=_taps(axes))
    includes = node.integer("count_include_pad", 0)
    for i, axis in enumerate(axes):
        taps = np.arange(axis.outputs)[:, None] * axis.stride + np.arange(axis.kernel) * axis.dilation
        first, stop = (
            (0, axis.begin + axis.size + axis.end) if includes else (axis.begin, axis.begin + axis.size)
        )
        count = ((taps >= first) & (taps < stop)).sum(axis=1)
        y = y / count.reshape(-1, *(1,) * (len(axes) - i - 1))
    return y


def _lp_pool(node: Node, x: Array) -> Array:
    p, axes = read_p(node), read_pool_axes(node)
    return _norm(_windows(x.astype(np.float64), axes, 0), p, _taps(axes))


def _global_lp_pool(node: Node, x: Array) -> Array:
    return _norm(x.astype(np.float64), read_p(node), tuple(range(2, x.ndim)), keepdims=True)


def _norm(x: Array, p: int, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """The p-norm along axes.  It is scaled by the largest number, so that no power overflows."""
    top = np.abs(x).max(axis=axes, keepdims=True)
    sums = ((np.abs(x) / np.where(top == 0, 1, top)) ** p).sum(axis=axes, keepdims=True)
    y: Array = top * sums ** (1 / p)
    return y if keepdims else y.squeeze(axes)


_COMPUTED = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalLpPool": _global_lp_pool,
}
