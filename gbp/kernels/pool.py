"""Max-pooling: the maximum of each window, with a switch for its position.

    y[o] = max_k x[p(o, k)],   switches[o] = the first such k (row-major: i·KW + j)
    gx[p] = Σ_{o, k: p(o, k) = p, switches[o] = k}  gy[o]

p(o, k) = o · stride + k · dilation − begin along each axis.  Taps in the padding are ignored, so padding
never wins.  The backward pass computes each pixel of gx from its windows, in row-major order.  With switches,
the vector-Jacobian product is the DeconvNet's unpooling.

Source: ONNX MaxPool, GlobalMaxPool; Zeiler & Fergus 2013, section 2.1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from .codegen.bits import integers_equal, store_integers
from .codegen.emit import LANES, VECTOR_BYTES
from .codegen.gate import GATE, MASK, Gate, gated, write_gradient
from .codegen.jit import ACTIVATION, INT, Kernel, device_function, inlined, kernel_from
from .codegen.packing import Share
from .codegen.simd import at, broadcast, exceeds, keep_rolled, load_some, select, store_some, zeros
from .codegen.work import part_of, sample_of, targets_of
from .taps import TAPS, Taps, taps_across, taps_down, windows_across, windows_down

#: Channels in a unit of work.  A global pool has one output pixel, so threads share blocks of channels as
#: well.
BLOCK = 4 * LANES

#: A byte holds one of 256 taps.  Inside the kernel a float32 holds the tap, exactly up to 2²⁴.
SWITCHES_U8 = types.Array(types.uint8, 4, "A")
SWITCHES_U32 = types.Array(types.uint32, 4, "A")


@device_function
def blocks_of(channels: int) -> int:
    return (channels + BLOCK - 1) // BLOCK


@device_function
def locate(unit: int, OH: int, C: int) -> Any:
    """A unit of work of y (N, OH, OW, C), as n, oh and its channels [first, stop)."""
    blocks = blocks_of(C)
    row, block = unit // blocks, unit % blocks
    return row // OH, row % OH, block * BLOCK, min(C, (block + 1) * BLOCK)


class Patch(NamedTuple):
    """The pixels of x that a window reads: those of its taps in rows [i0, i1) and columns [j0, j1).

    `x`: the address of the first pixel.  `down`, `right`: bytes from tap to tap.  `columns`: taps in a row of
    the window.
    """

    x: int
    i0: int
    i1: int
    j0: int
    j1: int
    down: int
    right: int
    columns: int


@device_function
def patch_of(x: Any, n: int, down: Any, across: Any, taps: Taps) -> Patch:
    """The patch of a window whose taps `taps_down` and `taps_across` found."""
    (h, i0, i1), (w, j0, j1) = down, across
    first = at(x, n, h + i0 * taps.dilation_h, w + j0 * taps.dilation_w)
    steps = taps.dilation_h * x.strides[1], taps.dilation_w * x.strides[2]
    return Patch(first, i0, i1, j0, j1, steps[0], steps[1], taps.columns)


@device_function
def _better(v: Any, tap: Any, best: Any, winner: Any) -> Any:
    """The larger of v and best with its tap; best where they are equal."""
    better = exceeds(v, best)
    return select(better, v, best), select(better, tap, winner)


@inlined
def _maximum(patch: Patch, c: int, count: int) -> Any:
    """The maxima of `count` channels from c on, and the taps of the first maxima."""
    best, winner = load_some(patch.x + 4 * c, count), _tap(patch, patch.i0)
    for i in range(patch.i0, patch.i1):
        a, tap = patch.x + (i - patch.i0) * patch.down + 4 * c, _tap(patch, i)
        for _ in range(patch.j0, patch.j1):
            keep_rolled()
            best, winner = _better(load_some(a, count), tap, best, winner)
            tap = tap + broadcast(np.float32(1))
            a += patch.right
    return best, winner


@inlined
def _four_maxima(patch: Patch, c: int) -> Any:
    """`_maximum` of each of the four vectors of a BLOCK."""
    a = patch.x + 4 * c
    b0, b1 = load_some(a, LANES), load_some(a + VECTOR_BYTES, LANES)
    b2, b3 = load_some(a + 2 * VECTOR_BYTES, LANES), load_some(a + 3 * VECTOR_BYTES, LANES)
    w0 = _tap(patch, patch.i0)
    w1, w2, w3 = w0, w0, w0
    for i in range(patch.i0, patch.i1):
        a, tap = patch.x + (i - patch.i0) * patch.down + 4 * c, _tap(patch, i)
        for _ in range(patch.j0, patch.j1):
            keep_rolled()
            b0, w0 = _better(load_some(a, LANES), tap, b0, w0)
            b1, w1 = _better(load_some(a + VECTOR_BYTES, LANES), tap, b1, w1)
            b2, w2 = _better(load_some(a + 2 * VECTOR_BYTES, LANES), tap, b2, w2)
            b3, w3 = _better(load_some(a + 3 * VECTOR_BYTES, LANES), tap, b3, w3)
            tap = tap + broadcast(np.float32(1))
            a += patch.right
    return (b0, w0), (b1, w1), (b2, w2), (b3, w3)


@device_function
def _tap(patch: Patch, i: int) -> Any:
    """The number of the first tap of row i, in all lanes."""
    return broadcast(np.float32(i * patch.columns + patch.j0))


@inlined
def _write(maximum: Any, y: int, switches: Any, s: int, count: int) -> None:
    """Write `count` maxima to address y, and their taps to address s of switches."""
    store_some(y, maximum[0], count)
    store_integers(switches, s, maximum[1], count)


def _maxpool_fwd(x: Any, y: Any, switches: Any, taps: Taps, threads: int, share: Share) -> None:
    """Write the maximum of each window to y, the tap of the first maximum to switches, both (N, OH, OW, C).

    Every window must hold a pixel.  The first NaN of a window wins.
    """
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    units, s_vector = N * OH * blocks_of(C), LANES * switches.itemsize
    for unit in range(*part_of(units, share, threads)):
        n, oh, first, stop = locate(unit, OH, C)
        down = taps_down(taps, oh, H)
        whole = first + (stop - first) // BLOCK * BLOCK
        for ow in range(OW):
            patch = patch_of(x, n, down, taps_across(taps, ow, W), taps)
            ya, sa = at(y, n, oh, ow), at(switches, n, oh, ow)
            for c in range(first, whole, BLOCK):
                m0, m1, m2, m3 = _four_maxima(patch, c)
                to, s = ya + 4 * c, sa + c * switches.itemsize
                _write(m0, to, switches, s, LANES)
                _write(m1, to + VECTOR_BYTES, switches, s + s_vector, LANES)
                _write(m2, to + 2 * VECTOR_BYTES, switches, s + 2 * s_vector, LANES)
                _write(m3, to + 3 * VECTOR_BYTES, switches, s + 3 * s_vector, LANES)
            for c in range(whole, stop, LANES):
                to, s = ya + 4 * c, sa + c * switches.itemsize
                _write(_maximum(patch, c, C - c), to, switches, s, C - c)


@device_function
def _won(switches: Any, s: int, tap: int, g: int, count: int) -> Any:
    """`count` values at g, with 0 in place of those whose window was won by another tap."""
    return select(integers_equal(switches, s, tap, count), load_some(g, count), zeros())


class Windows(NamedTuple):
    """The windows that read a pixel, rows × columns of them.

    `g`, `s`, `tap`: where the gradient and the switch of the first are, and its tap that reads the pixel.
    `…_down`, `…_right`: the same of the next row, and of the next window, less these.
    """

    rows: int
    columns: int
    g: int
    g_down: int
    g_right: int
    s: int
    s_down: int
    s_right: int
    tap: int
    tap_down: int
    tap_right: int


@inlined
def sum_won(windows: Windows, switches: Any, c: int, count: int) -> Any:
    """The sums of the gradients of the windows that the pixel won, of `count` channels from c on."""
    v = zeros()
    g_row, s_row, tap_row = windows.g + 4 * c, windows.s + c * switches.itemsize, windows.tap
    for _ in range(windows.rows):
        g, s, tap = g_row, s_row, tap_row
        for _ in range(windows.columns):
            keep_rolled()
            v = v + _won(switches, s, tap, g, count)
            g, s, tap = g + windows.g_right, s + windows.s_right, tap + windows.tap_right
        g_row, s_row, tap_row = g_row + windows.g_down, s_row + windows.s_down, tap_row + windows.tap_down
    return v


@inlined
def sum_won_four(windows: Windows, switches: Any, c: int) -> Any:
    """`sum_won` of each of the four vectors of a BLOCK."""
    v0, v1, v2, v3 = zeros(), zeros(), zeros(), zeros()
    s_vector = LANES * switches.itemsize
    g_row, s_row, tap_row = windows.g + 4 * c, windows.s + c * switches.itemsize, windows.tap
    for _ in range(windows.rows):
        g, s, tap = g_row, s_row, tap_row
        for _ in range(windows.columns):
            keep_rolled()
            v0 = v0 + _won(switches, s, tap, g, LANES)
            v1 = v1 + _won(switches, s + s_vector, tap, g + VECTOR_BYTES, LANES)
            v2 = v2 + _won(switches, s + 2 * s_vector, tap, g + 2 * VECTOR_BYTES, LANES)
            v3 = v3 + _won(switches, s + 3 * s_vector, tap, g + 3 * VECTOR_BYTES, LANES)
            g, s, tap = g + windows.g_right, s + windows.s_right, tap + windows.tap_right
        g_row, s_row, tap_row = g_row + windows.g_down, s_row + windows.s_down, tap_row + windows.tap_down
    return v0, v1, v2, v3


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
    """Write a row of gx, or add it with `accumulate`; then apply the gate.

    Parameters
    ----------
    gy, switches, mask, gate, accumulate, taps
        As in all kernels (`gbp.kernels`).
    gx, pixel
        The address of the row's first pixel, and bytes from pixel to pixel.
    size
        How many pixels and channels the row has.
    n, h
        Which row it is: row h of row n of the batch.
    """
    W, C = size
    sample = sample_of(n, targets_of(gy, switches))
    count_h, oh, step_oh, i, step_i = windows_down(taps, h, gy.shape[1])
    mask_row = at(mask, sample_of(n, targets_of(gy, mask)), h, 0)
    whole = C // BLOCK * BLOCK
    for w in range(W):
        count_w, ow, step_ow, j, step_j = windows_across(taps, w, gy.shape[2])
        xa, ma = gx + w * pixel, mask_row + w * mask.strides[2]
        windows = Windows(
            count_h, count_w,
            at(gy, n, oh, ow), step_oh * gy.strides[1], step_ow * gy.strides[2],
            at(switches, sample, oh, ow), step_oh * switches.strides[1], step_ow * switches.strides[2],
            i * taps.columns + j, step_i * taps.columns, step_j,
        )  # fmt: skip
        for c in range(0, whole, BLOCK):
            v0, v1, v2, v3 = sum_won_four(windows, switches, c)
            write_gradient(v0, c, gate, accumulate, xa, ma, LANES)
            write_gradient(v1, c + LANES, gate, accumulate, xa, ma, LANES)
            write_gradient(v2, c + 2 * LANES, gate, accumulate, xa, ma, LANES)
            write_gradient(v3, c + 3 * LANES, gate, accumulate, xa, ma, LANES)
        for c in range(whole, C, LANES):
            v = sum_won(windows, switches, c, C - c)
            write_gradient(v, c, gate, accumulate, xa, ma, C - c)


@inlined
def windows_at(gy: Any, switches: Any, n: int, sample: int, down: Any, across: Any, taps: Taps) -> Windows:
    """The windows of row n of the batch that `windows_down` and `windows_across` found.

    `unpool_row` does without this function, because with it it took 2 % longer.
    """
    (count_h, oh, step_oh, i, step_i), (count_w, ow, step_ow, j, step_j) = down, across
    return Windows(
        count_h, count_w,
        at(gy, n, oh, ow), step_oh * gy.strides[1], step_ow * gy.strides[2],
        at(switches, sample, oh, ow), step_oh * switches.strides[1], step_ow * switches.strides[2],
        i * taps.columns + j, step_i * taps.columns, step_j,
    )  # fmt: skip


@device_function
def unpool_row_of_all(
    gy: Any,
    switches: Any,
    mask: Any,
    gate: Gate,
    gx: int,
    size: Any,
    taps: Taps,
    rows: Any,
    h: int,
) -> None:
    """Write the sum of a row of gx over several rows of the batch, each gated before it is added.

    The windows of a pixel are found once.  To find them takes almost half as long as to add up their
    gradients in one sample.

    Parameters
    ----------
    gy, switches, mask, gate, size, taps, h
        As for `unpool_row`.
    gx
        The address of the row's first pixel; all pixels follow each other.
    rows
        The first row of the batch, where they stop, and the step from one to the next.
    """
    W, C = size
    first, stop, step = rows
    down = windows_down(taps, h, gy.shape[1])
    whole = C // BLOCK * BLOCK
    for w in range(W):
        across = windows_across(taps, w, gy.shape[2])
        for c in range(0, whole, BLOCK):
            v0, v1, v2, v3 = zeros(), zeros(), zeros(), zeros()
            for n in range(first, stop, step):
                keep_rolled()
                sample = sample_of(n, targets_of(gy, switches))
                ma = at(mask, sample_of(n, targets_of(gy, mask)), h, w) + c // 8
                windows = windows_at(gy, switches, n, sample, down, across, taps)
                u0, u1, u2, u3 = sum_won_four(windows, switches, c)
                v0 = v0 + gated(u0, gate, ma, LANES)
                v1 = v1 + gated(u1, gate, ma + LANES // 8, LANES)
                v2 = v2 + gated(u2, gate, ma + 2 * (LANES // 8), LANES)
                v3 = v3 + gated(u3, gate, ma + 3 * (LANES // 8), LANES)
            xa = gx + 4 * (w * C + c)
            store_some(xa, v0, LANES)
            store_some(xa + VECTOR_BYTES, v1, LANES)
            store_some(xa + 2 * VECTOR_BYTES, v2, LANES)
            store_some(xa + 3 * VECTOR_BYTES, v3, LANES)
        for c in range(whole, C, LANES):
            v = zeros()
            for n in range(first, stop, step):
                sample = sample_of(n, targets_of(gy, switches))
                ma = at(mask, sample_of(n, targets_of(gy, mask)), h, w) + c // 8
                windows = windows_at(gy, switches, n, sample, down, across, taps)
                v = v + gated(sum_won(windows, switches, c, C - c), gate, ma, C - c)
            store_some(gx + 4 * (w * C + c), v, C - c)


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
