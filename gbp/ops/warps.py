"""Ops that compute where to look: AffineGrid, and DeformConv as a GridSample and a convolution (ONNX).

AffineGrid    grid[n, o] = θ[n] · (o, 1), where o are the positions of pixels from −1 to 1
DeformConv    y = Conv(x at o·s + k·d − pad + offset[n, k, o], times the mask) for each tap k of the window

GridSample takes x at all taps, as K images one below the other.  The taps become channels behind each channel
of x, so the convolution has 1×1 windows.

Source: ONNX AffineGrid (opset 20), DeformConv (opsets 19, 22) and their reference implementations.
"""

from __future__ import annotations

import numpy as np

from ..limits import elements
from .facts import Fact
from .folded import as_inferred
from .node import Node
from .window import MAX_PIXELS
from .written import Rewriter, Writer


def affine_grid(node: Node, w: Writer) -> None:
    shape, size = node.shape(0, rank=3), node.constant_ints(1)
    spatial, corners = size[2:], node.integer("align_corners", 0)
    rank = len(spatial)
    if rank not in (2, 3) or shape[1:] != (rank, rank + 1) or min(size) < 1:
        node.invalid(f"theta of shape {list(shape)} makes no grid of size {list(size)}.")
    if size[0] != shape[0] or (corners and min(spatial) < 2) or elements(spatial) > MAX_PIXELS:
        node.refuse(
            f"theta of shape {list(shape)} makes a grid of size {list(size)}, align_corners {corners}.",
            supported=f"as many grids, of up to {MAX_PIXELS} pixels, and at least 2 between corners",
        )
    ends = [1.0 if corners else 1 - 1 / n for n in spatial]
    lines = [np.linspace(-end, end, n) for end, n in zip(ends, spatial, strict=True)]
    axes = [axis.reshape(-1) for axis in np.meshgrid(*lines, indexing="ij")]
    places = np.stack([*reversed(axes), np.ones_like(axes[0])], axis=1).astype(np.float32)
    turned = w.write("Transpose", node.proto.input[0], perm=(0, 2, 1))
    made = w.write("MatMul", w.constant(places), turned)
    w.reshaped(made, (0, *spatial, rank), to=node.proto.output[0])


def deform_conv(node: Node, w: Writer) -> None:
    (_, C, H, W), weights = node.shape(0, rank=4), node.constant(1)
    offsets = node.constant(2).shape if node.is_constant(2) else node.shape(2, rank=4)
    group, parts = node.integer("group", 1), node.integer("offset_group", 1)
    kernel = node.integers("kernel_shape", weights.shape[2:])
    strides, dilations = node.integers("strides", (1, 1)), node.integers("dilations", (1, 1))
    pads = node.integers("pads", (0, 0, 0, 0))
    taps, plane = elements(kernel), offsets[2:]
    fits = weights.ndim == len(offsets) == 4 and weights.shape[2:] == kernel and min(group, parts) > 0
    if not fits or C % parts or group * weights.shape[1] != C or offsets[1] != 2 * parts * taps:
        node.invalid(f"weights {list(weights.shape)}, offsets {list(offsets)} do not fit {C} channels.")
    if len(strides) != 2 or len(dilations) != 2 or len(pads) != 4:
        node.invalid(f"strides {strides}, dilations {dilations}, pads {pads} do not fit an image.")
    tap, out = np.indices(kernel).reshape(2, taps, 1), np.indices(plane).reshape(2, 1, -1)
    at = [out[i] * strides[i] + tap[i] * dilations[i] - pads[i] for i in (0, 1)]
    sizes = np.array([W, H], np.float32)
    start = (2 * np.stack([at[1], at[0]], axis=-1) + 1) / sizes - 1  # of pixels in the coordinates of a grid
    start = start.reshape(1, taps, *plane, 2).astype(np.float32)
    taken = []
    for part in range(parts):
        x = _part(w, node.proto.input[0], part, C // parts, C)
        moved = _part(w, node.proto.input[2], part, 2 * taps, offsets[1])
        moved = w.write("Transpose", w.reshaped(moved, (0, taps, 2, *plane)), perm=(0, 1, 3, 4, 2))
        moved = w.write("Gather", moved, w.constant(np.array([1, 0])), axis=4)
        moved = w.write("Add", w.write("Mul", moved, w.constant(2 / sizes)), w.constant(start))
        y = w.write("GridSample", x, w.reshaped(moved, (0, taps * plane[0], plane[1], 2)))
        y = w.reshaped(y, (0, C // parts, taps, elements(plane)))
        if node.has(4):
            mask = _part(w, node.proto.input[4], part, taps, taps * parts)
            y = w.write("Mul", y, w.reshaped(mask, (0, 1, taps, elements(plane))))
        taken.append(y)
    joined = taken[0] if parts == 1 else w.write("Concat", *taken, axis=1)
    w.write(
        "Conv",
        w.reshaped(joined, (0, C * taps, *plane)),
        w.constant(weights.reshape(len(weights), -1, 1, 1)),
        *([node.proto.input[3]] if node.has(3) else []),
        to=node.proto.output[0],
        group=group,
    )


def _part(w: Writer, x: str, part: int, size: int, channels: int) -> str:
    """Channels of x: `size` of them, behind as many for each part before."""
    if size == channels:
        return x
    bounds = (w.constant(np.array([n], np.int64)) for n in (part * size, (part + 1) * size, 1))
    return w.write("Slice", x, *bounds)


REWRITERS: dict[str, Rewriter] = {"AffineGrid": affine_grid, "DeformConv": deform_conv}

FACTS = {
    "AffineGrid": Fact("other", folds=as_inferred),
    "DeformConv": Fact("made", reads_planes=True, slides=True, folds=as_inferred),
}
