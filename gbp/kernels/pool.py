"""Pooling: the maximum of each window with a switch for its position, and the average.

    maxpool:      y[o] = max_k x[p(o, k)],   switches[o] = the first such k (row-major: i·KW + j)
                  gx[p] = Σ_{o, k: p(o, k) = p, switches[o] = k}  gy[o]
    averagepool:  y[o] = Σ_k x[p(o, k)] / divisor(o)
                  gx[p] = Σ_{o, k: p(o, k) = p}  gy[o] / divisor(o)

p(o, k) = o · stride + k · dilation − begin along each axis.  Taps in the padding are ignored, so padding
never wins.  The divisor counts the taps on the plane, or with `include_pad` on the padded plane.  Taps that
`ceil_mode` adds beyond that never count.  The backward pass computes each pixel of gx from its windows, in
row-major order.  With switches, the vector-Jacobian product is the DeconvNet's unpooling.

Source: ONNX MaxPool, AveragePool, GlobalMaxPool, GlobalAveragePool; Zeiler & Fergus 2013, section 2.1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from .codegen.bits import integers_equal, store_integers
from .codegen.emit import LANES, VECTOR_BYTES
from .codegen.gate import GATE, MASK, Gate, write_gradient
from .codegen.jit import ACTIVATION, INT, Kernel, device_function, kernel, kernel_from
from .codegen.packing import Share
from .codegen.simd import at, broadcast, exceeds, fma, keep_rolled, load_some, select, store_some, zeros
from .codegen.views import part_of, sample_of, targets_of
from .taps import TAPS, Taps, inside, taps_across, taps_down, windows_across, windows_down

#: Channels in a unit of work.  A global pool has one output pixel, so threads share blocks of channels as
#: well.
BLOCK = 4 * LANES

#: A byte holds one of 256 taps.  Inside the kernel a float32 holds the tap, exactly up to 2²⁴.
SWITCHES_U8 = types.Array(types.uint8, 4, "A")
SWITCHES_U32 = types.Array(types.uint32, 4, "A")


@device_function
def _blocks(channels: int) -> int:
    return (channels + BLOCK - 1) // BLOCK


@device_function
def _locate(unit: int, OH: int, C: int) -> Any:
    """A unit of work of y (N, OH, OW, C), as n, oh and its channels [first, stop)."""
    blocks = _blocks(C)
    row, block = unit // blocks, unit % blocks
    return row // OH, row % OH, block * BLOCK, min(C, (block + 1) * BLOCK)


@device_function
def _better(v: Any, tap: Any, best: Any, winner: Any) -> Any:
    """The larger of v and best with its tap; best where they are equal."""
    better = exceeds(v, best)
    return select(better, v, best), select(better, tap, winner)


def _maxpool_fwd(x: Any, y: Any, switches: Any, taps: Taps, threads: int, share: Share) -> None:
    """Write the maximum of each window to y, the tap of the first maximum to switches, both (N, OH, OW, C).

    Every window must hold a pixel.  The first NaN of a window wins.
    """
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    units = N * OH * _blocks(C)
    one, s_vector = broadcast(np.float32(1)), LANES * switches.itemsize
    step_h, step_w = taps.dilation_h * x.strides[1], taps.dilation_w * x.strides[2]
    for unit in range(*part_of(units, share, threads)):
        n, oh, first, stop = _locate(unit, OH, C)
        h, i0, i1 = taps_down(taps, oh, H)
        whole = first + (stop - first) // BLOCK * BLOCK
        for ow in range(OW):
            w, j0, j1 = taps_across(taps, ow, W)
            xa = at(x, n, h + i0 * taps.dilation_h, w + j0 * taps.dilation_w)
            ya, sa = at(y, n, oh, ow), at(switches, n, oh, ow)
            for c in range(first, whole, BLOCK):
                a = xa + 4 * c
                b0, b1 = load_some(a, LANES), load_some(a + VECTOR_BYTES, LANES)
                b2, b3 = load_some(a + 2 * VECTOR_BYTES, LANES), load_some(a + 3 * VECTOR_BYTES, LANES)
                w0 = broadcast(np.float32(i0 * taps.columns + j0))
                w1, w2, w3 = w0, w0, w0
                for i in range(i0, i1):
                    a = xa + (i - i0) * step_h + 4 * c
                    tap = broadcast(np.float32(i * taps.columns + j0))
                    for _ in range(j0, j1):
                        keep_rolled()
                        b0, w0 = _better(load_some(a, LANES), tap, b0, w0)
                        b1, w1 = _better(load_some(a + VECTOR_BYTES, LANES), tap, b1, w1)
                        b2, w2 = _better(load_some(a + 2 * VECTOR_BYTES, LANES), tap, b2, w2)
                        b3, w3 = _better(load_some(a + 3 * VECTOR_BYTES, LANES), tap, b3, w3)
                        tap = tap + one
                        a += step_w
                a, s = ya + 4 * c, sa + c * switches.itemsize
                store_some(a, b0, LANES)
                store_some(a + VECTOR_BYTES, b1, LANES)
                store_some(a + 2 * VECTOR_BYTES, b2, LANES)
                store_some(a + 3 * VECTOR_BYTES, b3, LANES)
                store_integers(switches, s, w0, LANES)
                store_integers(switches, s + s_vector, w1, LANES)
                store_integers(switches, s + 2 * s_vector, w2, LANES)
                store_integers(switches, s + 3 * s_vector, w3, LANES)
            for c in range(whole, stop, LANES):
                best = load_some(xa + 4 * c, C - c)
                winner = broadcast(np.float32(i0 * taps.columns + j0))
                for i in range(i0, i1):
                    a = xa + (i - i0) * step_h + 4 * c
                    tap = broadcast(np.float32(i * taps.columns + j0))
                    for _ in range(j0, j1):
                        keep_rolled()
                        best, winner = _better(load_some(a, C - c), tap, best, winner)
                        tap = tap + one
                        a += step_w
                store_some(ya + 4 * c, best, C - c)
                store_integers(switches, sa + c * switches.itemsize, winner, C - c)


@device_function
def _won(switches: Any, s: int, tap: int, g: int, count: int) -> Any:
    """`count` values at g, with 0 in place of those whose window was won by another tap."""
    return select(integers_equal(switches, s, tap, count), load_some(g, count), zeros())


@device_function
def unpool_row(
    gy: Any,
    switches: Any,
    mask: Any,
    gate: Gate,
    gx: int,
    pixel: int,
    size: Any,
    accumulate: int,
    taps: Taps,
    n: int,
    h: int,
) -> None:
    """Write row h of gx, row n of the batch: its first pixel to address gx, the next `pixel` bytes further.

    `size`: pixels and channels of the row.
    """
    W, C = size
    sample, s_vector = sample_of(n, targets_of(gy, switches)), LANES * switches.itemsize
    count_h, oh, step_oh, i, step_i = windows_down(taps, h, gy.shape[1])
    g_down, s_down = step_oh * gy.strides[1], step_oh * switches.strides[1]
    tap_down = step_i * taps.columns
    mask_row = at(mask, sample_of(n, targets_of(gy, mask)), h, 0)
    for w in range(W):
        count_w, ow, step_ow, j, step_j = windows_across(taps, w, gy.shape[2])
        xa, ma = gx + w * pixel, mask_row + w * mask.strides[2]
        ga, sa, first_tap = at(gy, n, oh, ow), at(switches, sample, oh, ow), i * taps.columns + j
        g_right, s_right = step_ow * gy.strides[2], step_ow * switches.strides[2]
        whole = C // BLOCK * BLOCK
        for c in range(0, whole, BLOCK):
            v0, v1, v2, v3 = zeros(), zeros(), zeros(), zeros()
            g_row, s_row, tap_row = ga + 4 * c, sa + c * switches.itemsize, first_tap
            for _ in range(count_h):
                g, s, tap = g_row, s_row, tap_row
                for _ in range(count_w):
                    keep_rolled()
                    v0 = v0 + _won(switches, s, tap, g, LANES)
                    v1 = v1 + _won(switches, s + s_vector, tap, g + VECTOR_BYTES, LANES)
                    v2 = v2 + _won(switches, s + 2 * s_vector, tap, g + 2 * VECTOR_BYTES, LANES)
                    v3 = v3 + _won(switches, s + 3 * s_vector, tap, g + 3 * VECTOR_BYTES, LANES)
                    g, s, tap = g + g_right, s + s_right, tap + step_j
                g_row, s_row, tap_row = g_row + g_down, s_row + s_down, tap_row + tap_down
            write_gradient(v0, c, gate, accumulate, xa, ma, LANES)
            write_gradient(v1, c + LANES, gate, accumulate, xa, ma, LANES)
            write_gradient(v2, c + 2 * LANES, gate, accumulate, xa, ma, LANES)
            write_gradient(v3, c + 3 * LANES, gate, accumulate, xa, ma, LANES)
        for c in range(whole, C, LANES):
            v = zeros()
            g_row, s_row, tap_row = ga + 4 * c, sa + c * switches.itemsize, first_tap
            for _ in range(count_h):
                g, s, tap = g_row, s_row, tap_row
                for _ in range(count_w):
                    keep_rolled()
                    v = v + _won(switches, s, tap, g, C - c)
                    g, s, tap = g + g_right, s + s_right, tap + step_j
                g_row, s_row, tap_row = g_row + g_down, s_row + s_down, tap_row + tap_down
            write_gradient(v, c, gate, accumulate, xa, ma, C - c)


def _maxpool_bwd(
    gy: Any,
    switches: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    taps: Taps,
    threads: int,
    share: Share,
) -> None:
    """Write to each pixel of gx the sum of gy of the windows that it won, or add it with `accumulate`."""
    N, H, W, C = gx.shape
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        xa, pixel = at(gx, n, h, 0), gx.strides[2]
        unpool_row(gy, switches, mask, gate, xa, pixel, (W, C), accumulate, taps, n, h)


def _maxpool_pair(name: str, switches: Any) -> tuple[Kernel, Kernel]:
    given, target = (ACTIVATION, ACTIVATION, switches), (MASK, GATE, ACTIVATION, INT)
    return (
        kernel_from(_maxpool_fwd, f"maxpool_fwd_{name}", *given, TAPS, INT),
        kernel_from(_maxpool_bwd, f"maxpool_bwd_{name}", ACTIVATION, switches, *target, TAPS, INT),
    )


maxpool_fwd_u8, maxpool_bwd_u8 = _maxpool_pair("u8", SWITCHES_U8)
maxpool_fwd_u32, maxpool_bwd_u32 = _maxpool_pair("u32", SWITCHES_U32)


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


@kernel(ACTIVATION, ACTIVATION, TAPS, INT, INT)
def averagepool_fwd(
    x: Any,
    y: Any,
    taps: Taps,
    include_pad: int,
    threads: int,
    share: Share,
) -> None:
    """Write the average of each window to y (N, OH, OW, C).  Every divisor must be at least 1."""
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    units = N * OH * _blocks(C)
    rows, columns = _counting(taps, H, W, include_pad)
    step_h, step_w = taps.dilation_h * x.strides[1], taps.dilation_w * x.strides[2]
    for unit in range(*part_of(units, share, threads)):
        n, oh, first, stop = _locate(unit, OH, C)
        h, i0, i1 = taps_down(taps, oh, H)
        for ow in range(OW):
            w, j0, j1 = taps_across(taps, ow, W)
            divisor = broadcast(np.float32(_count(oh, rows) * _count(ow, columns)))
            xa, ya = at(x, n, h + i0 * taps.dilation_h, w + j0 * taps.dilation_w), at(y, n, oh, ow)
            for c in range(first, stop, LANES):
                total = zeros()
                for i in range(i1 - i0):
                    # Each row has its own sum: one chain over a global pool's thousands would round more.
                    line = zeros()
                    a = xa + i * step_h + 4 * c
                    for _ in range(j0, j1):
                        keep_rolled()
                        line = line + load_some(a, C - c)
                        a += step_w
                    total = total + line
                store_some(ya + 4 * c, total / divisor, C - c)


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
    """Write to each pixel of gx its part of the windows that read it, or add it with `accumulate`."""
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    targets = targets_of(gy, mask)
    rows, columns = _counting(taps, H, W, include_pad)
    whole = np.float32(1) / np.float32(taps.rows * taps.columns)
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        count_h, oh, step_oh, _, _ = windows_down(taps, h, OH)
        g_down = step_oh * gy.strides[1]
        whole_h = _all_count(oh, oh + (count_h - 1) * step_oh, rows)
        for w in range(W):
            count_w, ow, step_ow, _, _ = windows_across(taps, w, OW)
            inner = whole_h and _all_count(ow, ow + (count_w - 1) * step_ow, columns)
            xa, ga, ma = at(gx, n, h, w), at(gy, n, oh, ow), at(mask, sample_of(n, targets), h, w)
            g_right = step_ow * gy.strides[2]
            for c in range(0, C, LANES):
                v, g_row = zeros(), ga + 4 * c
                for p in range(count_h):
                    g = g_row + p * g_down
                    if inner:  # all divisors are equal: one product, at the end
                        for _ in range(count_w):
                            keep_rolled()
                            v = v + load_some(g, C - c)
                            g += g_right
                    else:
                        counted = _count(oh + p * step_oh, rows)
                        for q in range(count_w):
                            keep_rolled()
                            divisor = np.float32(counted * _count(ow + q * step_ow, columns))
                            v = fma(load_some(g, C - c), broadcast(np.float32(1) / divisor), v)
                            g += g_right
                if inner:
                    v = v * broadcast(whole)
                write_gradient(v, c, gate, accumulate, xa, ma, C - c)
