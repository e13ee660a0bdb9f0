"""Positions of the maxima of windows, and unpooling to them, as plain loops, because few networks use them.

    maxpool_indices:  y[o] = the position of the first maximum of window o, row-major, among the pixels of x
    unpool:           y[q] = x[s] for the last s with positions[s] = q, else 0;   owners[q] = s + 1, else 0
                      gx[s] += gy[q] where owners[q] = s + 1

Positions are whole numbers below 2²⁴, which float32 holds.

Source: ONNX MaxPool (Indices), MaxUnpool.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .codegen.emit import LANES
from .codegen.jit import INT, device_function, kernel
from .codegen.packing import Share
from .codegen.work import part_of
from .taps import inside

VOLUME = types.Array(types.float32, 5, "A")
LINES = types.Array(types.float32, 3, "A")
OWNERS = types.Array(types.uint32, 3, "A")
#: Kernel, stride, dilation and begin of depth, height and width.
AXES = types.UniTuple(types.UniTuple(types.int64, 4), 3)


@device_function
def _taps_inside(o: int, axis: Any, size: int) -> Any:
    """Window o of an axis: the pixel of its tap 0, and its taps [start, stop) on the axis."""
    kernel, stride, dilation, begin = axis
    first = o * stride - begin
    start, stop = inside(first, kernel, dilation, 0, size)
    return first, start, stop


@device_function
def _first_maximum(x: Any, n: int, c: int, depth: Any, height: Any, width: Any, dilations: Any) -> Any:
    """The pixel (d, h, w) of the first maximum of a window, whose taps `_taps_inside` found on each axis."""
    (d0, k0, k1), (h0, i0, i1), (w0, j0, j1) = depth, height, width
    dilation_d, dilation_h, dilation_w = dilations
    at_d, at_h, at_w = d0 + k0 * dilation_d, h0 + i0 * dilation_h, w0 + j0 * dilation_w
    best = x[n, at_d, at_h, at_w, c]
    for k in range(k0, k1):
        for i in range(i0, i1):
            for j in range(j0, j1):
                d, h, w = d0 + k * dilation_d, h0 + i * dilation_h, w0 + j * dilation_w
                v = x[n, d, h, w, c]
                if v > best:
                    best, at_d, at_h, at_w = v, d, h, w
    return at_d, at_h, at_w


@kernel(VOLUME, VOLUME, AXES, INT, INT)
def maxpool_indices(x: Any, y: Any, axes: Any, by_columns: int, threads: int, share: Share) -> None:
    """Write positions to y (N, OD, OH, OW, C), counted along W first, or `by_columns` along D first.

    axes: kernel, stride, dilation and begin of depth, height and width.  Every window must hold a pixel.
    """
    D, H, W = x.shape[1:4]
    N, OD, OH, OW, C = y.shape
    depth, height, width = axes
    dilations = depth[2], height[2], width[2]
    rows = N * OD * OH
    for row in range(*part_of(rows, share, threads)):
        n, od, oh = row // (OD * OH), row // OH % OD, row % OH
        taps_d, taps_h = _taps_inside(od, depth, D), _taps_inside(oh, height, H)
        for ow in range(OW):
            taps_w = _taps_inside(ow, width, W)
            for c in range(C):
                d, h, w = _first_maximum(x, n, c, taps_d, taps_h, taps_w, dilations)
                y[n, od, oh, ow, c] = d + D * (h + H * w) if by_columns else w + W * (h + H * d)


@kernel(LINES, LINES, LINES, OWNERS, INT)
def unpool_fwd(x: Any, positions: Any, y: Any, owners: Any, threads: int, share: Share) -> None:
    """Write y and owners (N, Q, C), each 0 before; x (N, S, C); positions (N or 1, S, C) within Q."""
    (N, S, C), Q = x.shape, y.shape[1]
    blocks = (C + LANES - 1) // LANES
    units = N * blocks
    for unit in range(*part_of(units, share, threads)):
        n, first = unit // blocks, unit % blocks * LANES
        for s in range(S):
            for c in range(first, min(C, first + LANES)):
                q = np.int64(positions[n % len(positions), s, c])
                if 0 <= q < Q:  # positions are data and become addresses, so they are checked
                    y[n, q, c] = x[n, s, c]
                    owners[n, q, c] = s + 1


@kernel(LINES, OWNERS, LINES, INT)
def unpool_bwd(gy: Any, owners: Any, gx: Any, threads: int, share: Share) -> None:
    """Add gy at each owner's positions to gx (N·K, S, C).  owners has one row for each of N samples."""
    M, Q, C = gy.shape
    targets = M // len(owners)
    blocks = (C + LANES - 1) // LANES
    units = M * blocks
    for unit in range(*part_of(units, share, threads)):
        m, first = unit // blocks, unit % blocks * LANES
        for q in range(Q):
            for c in range(first, min(C, first + LANES)):
                owner = np.int64(owners[m // targets, q, c])
                if owner:
                    gx[m, owner - 1, c] += gy[m, q, c]
