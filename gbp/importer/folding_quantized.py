"""Quantized constants at any opset: QuantizeLinear and DequantizeLinear of weights (ONNX, opsets 10 to 25).

    QuantizeLinear     y = min(max(round(x / scale) + zero, lo), hi)
    DequantizeLinear   y = (x − zero) · scale

There is one scale and zero point for all of x; since opset 13 one for each index of `axis`; since opset 21
one for each block of `block_size` along it.  onnx's reference implementation knows neither at an opset before
19.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]


def _along(node: onnx.NodeProto, values: Array, x: Array) -> Array:
    """A scale or zero point in a shape that broadcasts to x.  Raises ValueError if it does not fit."""
    given = {attribute.name: int(attribute.i) for attribute in node.attribute}
    if values.size == 1:
        return values.reshape(())
    axis = given.get("axis", 1)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} of {x.ndim}")
    axis %= x.ndim
    block = given.get("block_size", 0)
    if block > 0 and values.ndim == x.ndim:
        if values.shape[axis] * block - x.shape[axis] not in range(block):
            raise ValueError(f"blocks of {block}")
        values = np.repeat(values, block, axis).take(range(x.shape[axis]), axis)
        if values.shape != x.shape:
            raise ValueError(f"scales of shape {values.shape}")
        return values
    if values.shape != (x.shape[axis],):
        raise ValueError(f"{values.shape} for axis {axis} of {x.shape}")
    return values.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def dequantized(node: onnx.NodeProto, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """DequantizeLinear of a constant.  The result has the type of its scale.

    Parameters
    ----------
    node
        The node, for its attributes axis and block_size.
    x
        Integers or 8-bit floating point, of any shape.
    scale, zero
        One element; or (size of axis,); or x's shape except for blocks along `axis`.

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    y: Array = x.astype(np.float32)
    if zero is not None and zero.astype(np.float32).any():
        y -= _along(node, zero, x).astype(np.float32)
    factor = _along(node, scale, x)
    y *= factor.astype(np.float32)
    return y.astype(factor.dtype, copy=False)


def quantized(node: onnx.NodeProto, x: Array, scale: Array, zero: Array | None = None) -> Array | None:
    """QuantizeLinear of a constant to integers; None for other result types.

    Parameters and errors are those of `dequantized`.  The type is that of `zero`, or `output_dtype`, or
    uint8.
    """
    kind = next((int(a.i) for a in node.attribute if a.name == "output_dtype" and a.i), 0)
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    if kind and zero is None:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    if dtype.kind not in "iu":
        return None
    y = np.rint(x.astype(np.float32) / _along(node, scale, x).astype(np.float32)).astype(np.float64)
    if zero is not None:
        y += _along(node, zero, x)
    bounds = np.iinfo(dtype)
    return np.clip(y, bounds.min, bounds.max).astype(dtype)
