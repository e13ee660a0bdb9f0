"""Depthwise convolution: every channel has its own window, so a vector of channels is the unit of everything.

    y[n, oh, ow, c] = clip(Σ_{i, j} x[n, oh·sh + i·dh − top, ow·sw + j·dw − left, c] · w[i, j, c]
                           + b[c] + r[n, oh, ow, c], lo, hi)
    gx[n, h, w, c]  = Σ_{i, j} gy[n, oh, ow, c] · w[i, j, c],   oh·sh = h + top − i·dh,  ow·sw likewise

There is little arithmetic in it, so x lies where it lies and borders clip the taps.  Away from the left and
right border FOUR pixels share each load of a weight: neighbours in the forward; in the reverse pixels one
stride apart, which see the same taps.  Each output is one chain of multiply-adds, alone or in a four: taps
in row-major order in the forward, windows in row-major order in the reverse.

Source: ONNX Conv with group = C = O; Howard et al. 2017, "MobileNets", section 3.1.
"""

from __future__ import annotations

from typing import Any

from numba import prange

from .jit import ACTIVATION, DENSE, FLOAT, INT, device_function, kernel
from .rectifier import GATE, MASK, Gate, clip, gated
from .simd import LANES, above, broadcast, fma, load_some, store_bits, store_some, zeros
from .taps import TAPS, Taps, inside, meeting
from .views import at, targets_of

FOUR = 4


@device_function  # type: ignore[untyped-decorator]
def _one(
    x: int, rows: int, step_h: int, columns: int, step_w: int, w: int, w_step_h: int, w_step_w: int, count: int
) -> Any:
    """Sum x · w over rows × columns taps; w walks its own steps."""
    v = zeros()
    for i in range(rows):
        a, b = x + i * step_h, w + i * w_step_h
        for _ in range(columns):
            v = fma(load_some(a, count), load_some(b, count), v)
            a += step_w
            b += w_step_w
    return v


@device_function  # type: ignore[untyped-decorator]
def _four(
    x: int,
    pixel: int,
    rows: int,
    step_h: int,
    columns: int,
    step_w: int,
    w: int,
    w_step_h: int,
    w_step_w: int,
    count: int,
) -> Any:
    """`_one` for FOUR pixels, `pixel` bytes apart in x."""
    v0, v1, v2, v3 = zeros(), zeros(), zeros(), zeros()
    for i in range(rows):
        a, b = x + i * step_h, w + i * w_step_h
        for _ in range(columns):
            weight = load_some(b, count)
            v0 = fma(load_some(a, count), weight, v0)
            v1 = fma(load_some(a + pixel, count), weight, v1)
            v2 = fma(load_some(a + 2 * pixel, count), weight, v2)
            v3 = fma(load_some(a + 3 * pixel, count), weight, v3)
            a += step_w
            b += w_step_w
    return v0, v1, v2, v3


@device_function  # type: ignore[untyped-decorator]
def _write_y(
    v: Any, b: Any, r: Any, y: Any, mask: Any, n: int, h: int, w: int, c: int, low: Any, high: Any
) -> None:
    count = y.shape[3] - c
    if b.size:
        v = v + load_some(b.ctypes.data + 4 * c, count)
    if r.size:
        v = v + load_some(at(r, n, h, w) + 4 * c, count)
    if mask.size:
        store_bits(at(mask, n, h, w) + c // 8, above(v, low) & above(high, v), count)
    store_some(at(y, n, h, w) + 4 * c, clip(v, low, high), count)


@kernel(ACTIVATION, DENSE, DENSE, ACTIVATION, ACTIVATION, MASK, TAPS, INT, INT, FLOAT, FLOAT, INT)
def depthwise_fwd(
    x: Any,
    w: Any,
    b: Any,
    r: Any,
    y: Any,
    mask: Any,
    taps: Taps,
    top: int,
    left: int,
    lo: float,
    hi: float,
    threads: int,
) -> None:
    """Write y = clip(depthwise(x, w) + b + r, lo, hi) and the bit lo < · < hi of each unit to mask.

    w (KH·KW·C,) from [KH][KW][C]; b (C,), r and mask may be empty.
    """
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    low, high = broadcast(lo), broadcast(hi)
    KH, KW, sw, dh, dw = taps.rows, taps.columns, taps.stride_w, taps.dilation_h, taps.dilation_w
    step_h, step_w, pixel = dh * x.strides[1], dw * x.strides[2], sw * x.strides[2]
    # The windows [first, last) lie between the left and the right border.
    first, last = (left + sw - 1) // sw, min(OW, (W - 1 - (KW - 1) * dw + left) // sw + 1)
    rows = N * OH
    for t in prange(threads):
        for row in range(rows * t // threads, rows * (t + 1) // threads):
            n, oh = row // OH, row % OH
            h = oh * taps.stride_h - top
            i0, i1 = inside(h, KH, dh, 0, H)
            ow = 0
            while ow < OW:
                j0, j1 = inside(ow * sw - left, KW, dw, 0, W)
                xa = at(x, n, h + i0 * dh, ow * sw - left + j0 * dw)
                wa = w.ctypes.data + 4 * C * (i0 * KW + j0)
                if first <= ow and ow + FOUR <= last:
                    for c in range(0, C, LANES):
                        v0, v1, v2, v3 = _four(
                            xa + 4 * c,
                            pixel,
                            i1 - i0,
                            step_h,
                            KW,
                            step_w,
                            wa + 4 * c,
                            4 * C * KW,
                            4 * C,
                            C - c,
                        )
                        _write_y(v0, b, r, y, mask, n, oh, ow, c, low, high)
                        _write_y(v1, b, r, y, mask, n, oh, ow + 1, c, low, high)
                        _write_y(v2, b, r, y, mask, n, oh, ow + 2, c, low, high)
                        _write_y(v3, b, r, y, mask, n, oh, ow + 3, c, low, high)
                    ow += FOUR
                else:
                    for c in range(0, C, LANES):
                        v = _one(
                            xa + 4 * c, i1 - i0, step_h, j1 - j0, step_w, wa + 4 * c, 4 * C * KW, 4 * C, C - c
                        )
                        _write_y(v, b, r, y, mask, n, oh, ow, c, low, high)
                    ow += 1


@device_function  # type: ignore[untyped-decorator]
def _write_gx(
    v: Any, mask: Any, targets: int, gate: Gate, gx: Any, accumulate: int, n: int, h: int, w: int, c: int
) -> None:
    count, to = gx.shape[3] - c, at(gx, n, h, w) + 4 * c
    if accumulate:
        v = v + load_some(to, count)
    store_some(to, gated(v, gate, at(mask, n // targets, h, w) + c // 8, count), count)


@kernel(ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, TAPS, INT, INT, INT)
def depthwise_bwd(
    gy: Any,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    taps: Taps,
    top: int,
    left: int,
    threads: int,
) -> None:
    """Write the transpose of the convolution to gx, added to gx with `accumulate`; of that, what passes the gate.

    w as in `depthwise_fwd`.
    """
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    targets = targets_of(gy, mask)
    KH, KW, sw, dw = taps.rows, taps.columns, taps.stride_w, taps.dilation_w
    # Every window that has a tap on the pixels [first, last) exists.
    first, last = (KW - 1) * dw - left, min(W, OW * sw - left)
    rows = N * H
    for t in prange(threads):
        for row in range(rows * t // threads, rows * (t + 1) // threads):
            n, h = row // H, row % H
            count_h, oh, step_oh, i, step_i = meeting(h + top, KH, taps.stride_h, taps.dilation_h, OH)
            step_h, w_step_h = step_oh * gy.strides[1], step_i * 4 * C * KW
            pixel = 0
            while pixel < W:
                together = first <= pixel and pixel + FOUR * sw <= last
                for q in range(pixel, pixel + (sw if together else 1)):
                    count_w, ow, step_ow, j, step_j = meeting(q + left, KW, sw, dw, OW)
                    step_w, w_step_w = step_ow * gy.strides[2], step_j * 4 * C
                    ga = at(gy, n, oh, ow)
                    wa = w.ctypes.data + 4 * C * (i * KW + j)
                    for c in range(0, C, LANES):
                        if together:
                            v0, v1, v2, v3 = _four(
                                ga + 4 * c,
                                gy.strides[2],
                                count_h,
                                step_h,
                                count_w,
                                step_w,
                                wa + 4 * c,
                                w_step_h,
                                w_step_w,
                                C - c,
                            )
                            _write_gx(v0, mask, targets, gate, gx, accumulate, n, h, q, c)
                            _write_gx(v1, mask, targets, gate, gx, accumulate, n, h, q + sw, c)
                            _write_gx(v2, mask, targets, gate, gx, accumulate, n, h, q + 2 * sw, c)
                            _write_gx(v3, mask, targets, gate, gx, accumulate, n, h, q + 3 * sw, c)
                        else:
                            v = _one(
                                ga + 4 * c,
                                count_h,
                                step_h,
                                count_w,
                                step_w,
                                wa + 4 * c,
                                w_step_h,
                                w_step_w,
                                C - c,
                            )
                            _write_gx(v, mask, targets, gate, gx, accumulate, n, h, q, c)
                pixel += FOUR * sw if together else 1
