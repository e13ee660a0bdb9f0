"""Suggests preprocessing from a model's file: from its metadata, and from nodes that normalise its input.

It is offered as a suggestion, and never taken: a wrong guess gives wrong scores without any error.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray

from .proto import tensor_values
from .subgraph import Source

#: Values of the metadata "Image.NominalPixelRange", of ONNX's image denotation, and their presets.
_RANGES = {"NominalRange_0_255": "raw", "Normalized_0_1": "unit", "Normalized_1_1": "tf"}
#: The most numbers of a constant in a normalisation, which has one for each channel.
_MAX_NUMBERS = 8
#: Constants of a normalisation are above it for pixels from 0 to 255, and below it for those from 0 to 1.
_UNIT = 2
_LOOKED_THROUGH = ("Identity", "Cast", "Transpose", "Dropout")


def suggestion(source: Source) -> str:
    """A sentence that suggests a preset, with the reason; "" if the file suggests none."""
    metadata = {entry.key: entry.value for entry in source.model.metadata_props}
    preset = _RANGES.get(metadata.get("Image.NominalPixelRange", ""))
    if preset:
        blue = metadata.get("Image.BitmapPixelFormat", "").startswith("Bgr")
        order = " with blue first (bgr)" if blue else ""
        return f"The file's metadata suggest preprocess={preset!r}{order}."
    if {"stride", "names", "imgsz"} <= metadata.keys():
        return "The file's metadata are those of a YOLO: they suggest preprocess='unit' with resize='fit'."
    if source.dtype == "UINT8":
        return "The file takes bytes, which suggests preprocess='raw'."
    return _of_nodes(source)


def _of_nodes(source: Source) -> str:
    """The suggestion of the first node that computes with the input."""
    at = source.input
    for node in source.nodes:
        if at not in node.input:
            continue
        if node.op_type in _LOOKED_THROUGH:
            at = node.output[0]
            continue
        found = _normalisation(node, at, source)
        if found is None:
            return ""
        does, range_ = found
        preset = "raw" if range_ > _UNIT else "unit"
        return f"The file's first node {does} by itself, which suggests preprocess={preset!r}."
    return ""


def _normalisation(node: onnx.NodeProto, image: str, source: Source) -> tuple[str, float] | None:
    """Describe what a node does to pixels, with a number as large as their range; None for other nodes.

    Raises ModelError where its constants are damaged.
    """
    constants = {tensor.name: tensor for tensor in source.model.graph.initializer}

    def value(k: int) -> NDArray[np.float64] | None:
        tensor = constants.get(node.input[k]) if k < len(node.input) else None
        if tensor is None or not 0 < math.prod(tensor.dims) <= _MAX_NUMBERS:  # larger ones are not read yet
            return None
        array = tensor_values(tensor, tensor.name, node, source.weights)
        return array.astype(np.float64) if array.dtype.kind in "fiu" else None

    if node.op_type not in ("Sub", "Div", "Mul", "BatchNormalization"):
        return None
    other = value(1 if node.input[0] == image else 0)
    if node.op_type == "Sub" and node.input[0] == image and other is not None:
        return f"subtracts {other.mean():.4g}", float(np.abs(other).mean())
    if node.op_type == "Div" and node.input[0] == image and other is not None:
        return f"divides by {other.mean():.4g}", float(np.abs(other).mean())
    if node.op_type == "Mul" and other is not None and 0 < np.abs(other).mean() < 0.1:
        return f"multiplies by {other.mean():.4g}", 255.0
    mean = value(3) if node.op_type == "BatchNormalization" and node.input[0] == image else None
    if mean is not None and np.abs(mean).mean() > 0.1:
        return f"normalises around {mean.mean():.4g}", float(np.abs(mean).mean())
    return None
