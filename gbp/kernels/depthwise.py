"""Depthwise convolution: every channel has its own filter, so all work is on vectors of channels.

    y[n, oh, ow, c] = clip(Σ_{i, j} x[n, oh·sh + i·dh − top, ow·sw + j·dw − left, c] · w[i, j, c]
                           + b[c] + r[n, oh, ow, c], lo, hi)
    gx[n, h, w, c]  = Σ_{i, j} gy[n, oh, ow, c] · w[i, j, c],   oh·sh = h + top − i·dh,  ow·sw likewise

There is little arithmetic, so x is read in place, and taps outside the image are left out.  Away from the
left and right border, FOUR pixels share each load of a weight: neighbours in the forward pass; in the
backward pass pixels one stride apart, which have the same taps.  Each output is one chain of multiply-adds,
alone or among four: over taps in row-major order forward, over windows in row-major order backward.

Source: ONNX Conv with group = C = O; Howard et al. 2017, "MobileNets", section 3.1.
"""

from __future__ import annotations

from typing import Any

from .codegen.bits import store_bits
from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate, clip, write_gradient
from .codegen.jit import ACTIVATION, FLOAT, INT, WEIGHTS, device_function, inlined, kernel, one_of_many
from .codegen.packing import Share
from .codegen.simd import (
    above,
    address_of,
    at,
    broadcast,
    fma,
    keep_rolled,
    load,
    load_first,
    load_some,
    store_some,
    zeros,
)
from .codegen.views import sample_of, targets_of
from .taps import TAPS, Taps, inside, meeting

FOUR = 4


def _sums_of(whole: bool) -> Any:
    """Make the functions that sum x · w over rows × columns taps, for one pixel and for FOUR.

    The four pixels are `pixel` bytes apart.  x and w have their own steps.  Whole vectors and parts of
    vectors have separate machine code.
    """

    @one_of_many(f"read_{'whole' if whole else 'part'}")
    def read(address: int, count: int) -> Any:
        if whole:
            return load(address)
        return load_first(address, count)

    @one_of_many(f"one_{'whole' if whole else 'part'}")
    def one(
        x: int,
        rows: int,
        x_down: int,
        columns: int,
        x_right: int,
        w: int,
        w_down: int,
        w_right: int,
        count: int,
    ) -> Any:
        v = zeros()
        for i in range(rows):
            a, b = x + i * x_down, w + i * w_down
            for _ in range(columns):
                keep_rolled()
                v = fma(read(a, count), read(b, count), v)
                a += x_right
                b += w_right
        return v

    @one_of_many(f"four_{'whole' if whole else 'part'}")
    def four(
        x: int,
        pixel: int,
        rows: int,
        x_down: int,
        columns: int,
        x_right: int,
        w: int,
        w_down: int,
        w_right: int,
        count: int,
    ) -> Any:
        v0, v1, v2, v3 = zeros(), zeros(), zeros(), zeros()
        for i in range(rows):
            a, b = x + i * x_down, w + i * w_down
            for _ in range(columns):
                keep_rolled()
                weight = read(b, count)
                v0 = fma(read(a, count), weight, v0)
                v1 = fma(read(a + pixel, count), weight, v1)
                v2 = fma(read(a + 2 * pixel, count), weight, v2)
                v3 = fma(read(a + 3 * pixel, count), weight, v3)
                a += x_right
                b += w_right
        return v0, v1, v2, v3

    return one, four


_one_whole, _four_whole = _sums_of(True)
_one_part, _four_part = _sums_of(False)


@device_function
def _one(
    x: int, rows: int, x_down: int, columns: int, x_right: int, w: int, w_down: int, w_right: int, count: int
) -> Any:
    if count >= LANES:
        return _one_whole(x, rows, x_down, columns, x_right, w, w_down, w_right, count)
    return _one_part(x, rows, x_down, columns, x_right, w, w_down, w_right, count)


@device_function
def _four(
    x: int,
    pixel: int,
    rows: int,
    x_down: int,
    columns: int,
    x_right: int,
    w: int,
    w_down: int,
    w_right: int,
    count: int,
) -> Any:
    if count >= LANES:
        return _four_whole(x, pixel, rows, x_down, columns, x_right, w, w_down, w_right, count)
    return _four_part(x, pixel, rows, x_down, columns, x_right, w, w_down, w_right, count)


@inlined
def write_y(
    v: Any, c: int, ba: int, ra: int, ya: int, ma: int, given: Any, low: Any, high: Any, count: int
) -> None:
    """Finish channels c … of the pixel at these addresses.  `given`: whether there are b, r and mask."""
    if given[0]:
        v = v + load_some(ba + 4 * c, count)
    if given[1]:
        v = v + load_some(ra + 4 * c, count)
    if given[2]:
        store_bits(ma + c // 8, above(v, low) & above(high, v), count)
    store_some(ya + 4 * c, clip(v, low, high), count)


@kernel(ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, TAPS, FLOAT, FLOAT, INT)
def depthwise_fwd(
    x: Any,
    w: Any,
    b: Any,
    r: Any,
    y: Any,
    mask: Any,
    taps: Taps,
    lo: float,
    hi: float,
    threads: int,
    share: Share,
) -> None:
    """Write y = clip(depthwise(x, w) + b + r, lo, hi) and the bit lo < · < hi of each unit to mask.

    w (KH·KW·C,) from [KH][KW][C]; b (C,), r and mask may be empty.
    """
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    top, left = taps.top, taps.left
    low, high = broadcast(lo), broadcast(hi)
    KH, KW, sw, dh, dw = taps.rows, taps.columns, taps.stride_w, taps.dilation_h, taps.dilation_w
    x_down, x_right, pixel = dh * x.strides[1], dw * x.strides[2], sw * x.strides[2]
    ba, given = address_of(b), (b.size > 0, r.size > 0, mask.size > 0)
    r_next, y_next, m_next = r.strides[2], y.strides[2], mask.strides[2]
    # The windows [first, last) touch neither the left nor the right border.
    first, last = (left + sw - 1) // sw, min(OW, (W - 1 - (KW - 1) * dw + left) // sw + 1)
    rows = N * OH
    for t in range(share.first, share.last):
        for row in range(rows * t // threads, rows * (t + 1) // threads):
            n, oh = row // OH, row % OH
            h = oh * taps.stride_h - top
            i0, i1 = inside(h, KH, dh, 0, H)
            ow = 0
            while ow < OW:
                together = first <= ow and ow + FOUR <= last
                j0, j1 = inside(ow * sw - left, KW, dw, 0, W)
                xa = at(x, n, h + i0 * dh, ow * sw - left + j0 * dw)
                wa = address_of(w) + 4 * C * (i0 * KW + j0)
                ra, ya, ma = at(r, n, oh, ow), at(y, n, oh, ow), at(mask, n, oh, ow)
                for c in range(0, C, LANES):
                    a, k, count = xa + 4 * c, wa + 4 * c, C - c
                    if together:
                        v0, v1, v2, v3 = _four(
                            a, pixel, i1 - i0, x_down, KW, x_right, k, 4 * C * KW, 4 * C, count
                        )
                        write_y(v0, c, ba, ra, ya, ma, given, low, high, count)
                        write_y(v1, c, ba, ra + r_next, ya + y_next, ma + m_next, given, low, high, count)
                        write_y(
                            v2,
                            c,
                            ba,
                            ra + 2 * r_next,
                            ya + 2 * y_next,
                            ma + 2 * m_next,
                            given,
                            low,
                            high,
                            count,
                        )
                        write_y(
                            v3,
                            c,
                            ba,
                            ra + 3 * r_next,
                            ya + 3 * y_next,
                            ma + 3 * m_next,
                            given,
                            low,
                            high,
                            count,
                        )
                    else:
                        v = _one(a, i1 - i0, x_down, j1 - j0, x_right, k, 4 * C * KW, 4 * C, count)
                        write_y(v, c, ba, ra, ya, ma, given, low, high, count)
                ow += FOUR if together else 1


@kernel(ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, TAPS, INT)
def depthwise_bwd(
    gy: Any,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    taps: Taps,
    threads: int,
    share: Share,
) -> None:
    """Write the transposed convolution to gx, or add it with `accumulate`; then apply the gate."""
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    top, left = taps.top, taps.left
    targets = targets_of(gy, mask)
    KH, KW, sw, dw = taps.rows, taps.columns, taps.stride_w, taps.dilation_w
    x_next, m_next = sw * gx.strides[2], sw * mask.strides[2]
    # For the pixels [first, last), no window is missing at the borders.
    first, last = (KW - 1) * dw - left, min(W, OW * sw - left)
    rows = N * H
    for t in range(share.first, share.last):
        for row in range(rows * t // threads, rows * (t + 1) // threads):
            n, h = row // H, row % H
            count_h, oh, step_oh, i, step_i = meeting(h + top, KH, taps.stride_h, taps.dilation_h, OH)
            g_down, w_down = step_oh * gy.strides[1], step_i * 4 * C * KW
            group = 0
            while group < W:
                together = first <= group and group + FOUR * sw <= last
                for q in range(group, group + (sw if together else 1)):
                    count_w, ow, step_ow, j, step_j = meeting(q + left, KW, sw, dw, OW)
                    g_right, w_right = step_ow * gy.strides[2], step_j * 4 * C
                    ga, wa = at(gy, n, oh, ow), address_of(w) + 4 * C * (i * KW + j)
                    xa, ma = at(gx, n, h, q), at(mask, sample_of(n, targets), h, q)
                    for c in range(0, C, LANES):
                        a, k, count = ga + 4 * c, wa + 4 * c, C - c
                        if together:
                            v0, v1, v2, v3 = _four(
                                a, gy.strides[2], count_h, g_down, count_w, g_right, k, w_down, w_right, count
                            )
                            write_gradient(v0, c, gate, accumulate, xa, ma, count)
                            write_gradient(v1, c, gate, accumulate, xa + x_next, ma + m_next, count)
                            write_gradient(v2, c, gate, accumulate, xa + 2 * x_next, ma + 2 * m_next, count)
                            write_gradient(v3, c, gate, accumulate, xa + 3 * x_next, ma + 3 * m_next, count)
                        else:
                            v = _one(a, count_h, g_down, count_w, g_right, k, w_down, w_right, count)
                            write_gradient(v, c, gate, accumulate, xa, ma, count)
                group += FOUR * sw if together else 1
