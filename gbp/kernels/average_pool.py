"""Average pooling.

    y[o] = Σ_k x[p(o, k)] / divisor(o)
    gx[p] = Σ_{o, k: p(o, k) = p}  gy[o] / divisor(o)

p(o, k) is as in `pool`.  The divisor counts the taps on the plane, or with `include_pad` on the padded plane.
Taps that `ceil_mode` adds beyond that never count.  The backward pass computes each pixel of gx from its
windows, in row-major order.

Source: ONNX AveragePool, GlobalAveragePool.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .codegen.emit import LANES, VECTOR_BYTES
from .codegen.gate import GATE, MASK, Gate, write_gradient
from .codegen.jit import ACTIVATION, INT, device_function, inlined, kernel
from .codegen.packing import Share
from .codegen.simd import at, broadcast, fma, keep_rolled, load_some, store_some, zeros
from .codegen.work import part_of, sample_of, targets_of
from .pool import BLOCK, Patch, blocks_of, locate, patch_of
from .taps import TAPS, Taps, inside, taps_across, taps_down, windows_across, windows_down


class Counting(NamedTuple):
    """Windows along one axis, and the pixels [low, high) of it that their divisors count."""

    taps: int
    stride: int
    dilation: int
    begin: int
    low: int
    high: int


@device_function
def _counting(taps: Taps, H: int, W: int, include_pad: int) -> Any:
    """The `Counting` of rows and of columns, over a plane, or with `include_pad` over the padded plane."""
    top, bottom, left, right = 0, H, 0, W
    if include_pad:
        top, bottom, left, right = -taps.top, H + taps.bottom, -taps.left, W + taps.right
    return (
        Counting(taps.rows, taps.stride_h, taps.dilation_h, taps.top, top, bottom),
        Counting(taps.columns, taps.stride_w, taps.dilation_w, taps.left, left, right),
    )


@device_function
def _count(o: int, axis: Counting) -> Any:
    """How many taps of window o its divisor counts along an axis."""
    start, stop = inside(o * axis.stride - axis.begin, axis.taps, axis.dilation, axis.low, axis.high)
    return stop - start


@device_function
def _all_count(first: int, last: int, axis: Counting) -> Any:
    """Whether all taps of the windows from `first` to `last` count along an axis.

    Windows are cut at the ends of an axis, so if the outermost are whole, all are.
    """
    begin, end = first * axis.stride - axis.begin, last * axis.stride - axis.begin
    return begin >= axis.low and end + (axis.taps - 1) * axis.dilation < axis.high


@inlined
def _sum(patch: Patch, c: int, count: int) -> Any:
    """The sums of `count` channels from c on.

    Each row has its own sum: one chain over the thousands of pixels of a global pool would round more.
    """
    total = zeros()
    for i in range(patch.i1 - patch.i0):
        line = zeros()
        a = patch.x + i * patch.down + 4 * c
        for _ in range(patch.j0, patch.j1):
            keep_rolled()
            line = line + load_some(a, count)
            a += patch.right
        total = total + line
    return total


@inlined
def _four_sums(patch: Patch, c: int) -> Any:
    """`_sum` of each of the four vectors of a BLOCK: memory is read in longer runs."""
    t0, t1, t2, t3 = zeros(), zeros(), zeros(), zeros()
    for i in range(patch.i1 - patch.i0):
        l0, l1, l2, l3 = zeros(), zeros(), zeros(), zeros()
        a = patch.x + i * patch.down + 4 * c
        for _ in range(patch.j0, patch.j1):
            keep_rolled()
            l0, l1 = l0 + load_some(a, LANES), l1 + load_some(a + VECTOR_BYTES, LANES)
            l2 = l2 + load_some(a + 2 * VECTOR_BYTES, LANES)
            l3 = l3 + load_some(a + 3 * VECTOR_BYTES, LANES)
            a += patch.right
        t0, t1, t2, t3 = t0 + l0, t1 + l1, t2 + l2, t3 + l3
    return t0, t1, t2, t3


@kernel(ACTIVATION, ACTIVATION, TAPS, INT, INT)
def averagepool_fwd(
    x: Any,
    y: Any,
    taps: Taps,
    include_pad: int,
    threads: int,
    share: Share,
) -> None:
    """Write the average of each window to y (N, OH, OW, C).  Every divisor must be at least 1.

    `include_pad`: 1 if divisors count the padding.
    """
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    units = N * OH * blocks_of(C)
    rows, columns = _counting(taps, H, W, include_pad)
    for unit in range(*part_of(units, share, threads)):
        n, oh, first, stop = locate(unit, OH, C)
        down = taps_down(taps, oh, H)
        for ow in range(OW):
            patch = patch_of(x, n, down, taps_across(taps, ow, W), taps)
            divisor, ya = broadcast(np.float32(_count(oh, rows) * _count(ow, columns))), at(y, n, oh, ow)
            if stop - first == BLOCK:
                t0, t1, t2, t3 = _four_sums(patch, first)
                store_some(ya + 4 * first, t0 / divisor, LANES)
                store_some(ya + 4 * first + VECTOR_BYTES, t1 / divisor, LANES)
                store_some(ya + 4 * first + 2 * VECTOR_BYTES, t2 / divisor, LANES)
                store_some(ya + 4 * first + 3 * VECTOR_BYTES, t3 / divisor, LANES)
                continue
            for c in range(first, stop, LANES):
                store_some(ya + 4 * c, _sum(patch, c, C - c) / divisor, C - c)


class Gradients(NamedTuple):
    """The gradients of the windows that read a pixel, rows × columns of them, `down` and `right` bytes apart.

    `oh`, `ow`: the first window.  `step_oh`, `step_ow`: from window to window.
    """

    rows: int
    columns: int
    oh: int
    ow: int
    step_oh: int
    step_ow: int
    down: int
    right: int


@inlined
def _sum_all(g: int, of: Gradients, count: int) -> Any:
    """The sums of `count` channels, which are at g in the first gradient."""
    v = zeros()
    for p in range(of.rows):
        a = g + p * of.down
        for _ in range(of.columns):
            keep_rolled()
            v = v + load_some(a, count)
            a += of.right
    return v


@inlined
def _sum_divided(g: int, of: Gradients, rows: Counting, columns: Counting, count: int) -> Any:
    """`_sum_all` where each gradient is divided by its window's divisor."""
    v = zeros()
    for p in range(of.rows):
        a, counted = g + p * of.down, _count(of.oh + p * of.step_oh, rows)
        for q in range(of.columns):
            keep_rolled()
            divisor = np.float32(counted * _count(of.ow + q * of.step_ow, columns))
            v = fma(load_some(a, count), broadcast(np.float32(1) / divisor), v)
            a += of.right
    return v


@kernel(ACTIVATION, MASK, GATE, ACTIVATION, INT, TAPS, INT, INT)
def averagepool_bwd(
    gy: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    taps: Taps,
    include_pad: int,
    threads: int,
    share: Share,
) -> None:
    """Write to each pixel of gx its part of the windows that read it, or add it with `accumulate`.

    `include_pad`: 1 if divisors count the padding.
    """
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    targets = targets_of(gy, mask)
    rows, columns = _counting(taps, H, W, include_pad)
    whole = broadcast(np.float32(1) / np.float32(taps.rows * taps.columns))
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        count_h, oh, step_oh, _, _ = windows_down(taps, h, OH)
        g_down = step_oh * gy.strides[1]
        whole_h = _all_count(oh, oh + (count_h - 1) * step_oh, rows)
        for w in range(W):
            count_w, ow, step_ow, _, _ = windows_across(taps, w, OW)
            inner = whole_h and _all_count(ow, ow + (count_w - 1) * step_ow, columns)
            xa, ga, ma = at(gx, n, h, w), at(gy, n, oh, ow), at(mask, sample_of(n, targets), h, w)
            of = Gradients(count_h, count_w, oh, ow, step_oh, step_ow, g_down, step_ow * gy.strides[2])
            for c in range(0, C, LANES):
                if inner:  # all divisors are equal: one product, at the end
                    v = _sum_all(ga + 4 * c, of, C - c) * whole
                else:
                    v = _sum_divided(ga + 4 * c, of, rows, columns, C - c)
                write_gradient(v, c, gate, accumulate, xa, ma, C - c)
