"""The kernels of `unpool.py` on a card."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .codegen.jit import INT
from .codegen.jit_cuda import device_function, elements_of, kernel
from .taps_cuda import inside
from .unpool import AXES, LINES, OWNERS, VOLUME


@device_function
def _taps_inside(o: int, axis: Any, size: int) -> Any:
    """Window o of an axis: the pixel of its tap 0, and its taps [start, stop) on the axis."""
    first = o * axis[1] - axis[3]
    start, stop = inside(first, axis[0], axis[2], 0, size)
    return first, start, stop


@kernel(VOLUME, VOLUME, AXES, INT, units=lambda *args: elements_of(args[1]))
def maxpool_indices(x: Any, y: Any, axes: Any, by_columns: int) -> None:
    """Write positions to y (N, OD, OH, OW, C), counted along W first, or `by_columns` along D first.

    Every window must hold a pixel.
    """
    D, H, W = x.shape[1], x.shape[2], x.shape[3]
    N, OD, OH, OW, C = y.shape
    depth, height, width = axes
    for unit in range(cuda.grid(1), N * OD * OH * OW * C, cuda.gridsize(1)):
        c, row = unit % C, unit // C
        ow, row = row % OW, row // OW
        n, od, oh = row // (OD * OH), row // OH % OD, row % OH
        d0, k0, k1 = _taps_inside(od, depth, D)
        h0, i0, i1 = _taps_inside(oh, height, H)
        w0, j0, j1 = _taps_inside(ow, width, W)
        at_d, at_h, at_w = d0 + k0 * depth[2], h0 + i0 * height[2], w0 + j0 * width[2]
        best = x[n, at_d, at_h, at_w, c]
        for k in range(k0, k1):
            d = d0 + k * depth[2]
            for i in range(i0, i1):
                h = h0 + i * height[2]
                for j in range(j0, j1):
                    w = w0 + j * width[2]
                    v = x[n, d, h, w, c]
                    if v > best:
                        best, at_d, at_h, at_w = v, d, h, w
        by_rows = at_w + W * (at_h + H * at_d)
        y[n, od, oh, ow, c] = at_d + D * (at_h + H * at_w) if by_columns else by_rows


@kernel(LINES, LINES, LINES, OWNERS, units=lambda *args: args[0].shape[0] * args[0].shape[2])
def unpool_fwd(x: Any, positions: Any, y: Any, owners: Any) -> None:
    """Write y and owners (N, Q, C), each 0 before; x (N, S, C); positions (N or 1, S, C) within Q.

    A thread has a channel of a sample: where positions coincide, the last one in its order stays.
    """
    N, S, C = x.shape
    Q = y.shape[1]
    for line in range(cuda.grid(1), N * C, cuda.gridsize(1)):
        n, c = line // C, line % C
        for s in range(S):
            q = np.int64(positions[n % positions.shape[0], s, c])
            if 0 <= q < Q:  # they are data, and an address is made of them
                y[n, q, c] = x[n, s, c]
                owners[n, q, c] = s + 1


@kernel(LINES, OWNERS, LINES, units=lambda *args: elements_of(args[0]))
def unpool_bwd(gy: Any, owners: Any, gx: Any) -> None:
    """Add to gx (N·K, S, C) what its owners have of gy; owners of N samples.

    A thread has an element of gy: none shares its owner, which has one position.
    """
    M, Q, C = gy.shape
    targets = M // owners.shape[0]
    for i in range(cuda.grid(1), M * Q * C, cuda.gridsize(1)):
        c, line = i % C, i // C
        m, q = line // Q, line % Q
        owner = np.int64(owners[m // targets, q, c])
        if owner:
            gx[m, owner - 1, c] += gy[m, q, c]
