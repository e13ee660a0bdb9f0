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

from typing import Any, NamedTuple

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, FLOAT, INT, WEIGHTS, copy_of, device_function, inlined, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, at, fma, keep_rolled, load, load_first, zeros
from .codegen.work import part_of, targets_of
from .epilogue import Forward, Place, backward, place_of, plane_of, right_of, write
from .taps import TAPS, Taps, taps_across, taps_down, windows_across, windows_down

FOUR = 4


class Terms(NamedTuple):
    """The terms of a pixel's sum, rows × columns of them: where the first are, and steps in bytes."""

    x: int
    w: int
    rows: int
    columns: int
    x_down: int
    x_right: int
    w_down: int
    w_right: int


#: Whether the functions below sum up whole vectors of channels.  Each of their copies has its own.
_WHOLE: bool = True


@device_function
def _read(address: int, count: int) -> Any:
    if _WHOLE:
        return load(address)
    return load_first(address, count)


@device_function
def _sum_one(terms: Terms, c: int, count: int) -> Any:
    """Sum up a vector of channels from c on, for one pixel."""
    v = zeros()
    for i in range(terms.rows):
        a, b = terms.x + i * terms.x_down + 4 * c, terms.w + i * terms.w_down + 4 * c
        for _ in range(terms.columns):
            keep_rolled()
            v = fma(_read(a, count), _read(b, count), v)
            a += terms.x_right
            b += terms.w_right
    return v


@device_function
def _sum_four(terms: Terms, apart: int, c: int, count: int) -> Any:
    """Sum up a vector of channels from c on, for FOUR pixels, whose terms are `apart` bytes apart in x."""
    v0, v1, v2, v3 = zeros(), zeros(), zeros(), zeros()
    for i in range(terms.rows):
        a, b = terms.x + i * terms.x_down + 4 * c, terms.w + i * terms.w_down + 4 * c
        for _ in range(terms.columns):
            keep_rolled()
            weight = _read(b, count)
            v0 = fma(_read(a, count), weight, v0)
            v1 = fma(_read(a + apart, count), weight, v1)
            v2 = fma(_read(a + 2 * apart, count), weight, v2)
            v3 = fma(_read(a + 3 * apart, count), weight, v3)
            a += terms.x_right
            b += terms.w_right
    return v0, v1, v2, v3


_one_whole, _four_whole = (copy_of(each, "whole", _WHOLE=True) for each in (_sum_one, _sum_four))
_one_part, _four_part = (copy_of(each, "part", _WHOLE=False) for each in (_sum_one, _sum_four))


@device_function
def _one(terms: Terms, c: int, count: int) -> Any:
    return _one_whole(terms, c, count) if count >= LANES else _one_part(terms, c, count)


@device_function
def _four(terms: Terms, apart: int, c: int, count: int) -> Any:
    return _four_whole(terms, apart, c, count) if count >= LANES else _four_part(terms, apart, c, count)


@inlined
def write_four(v: Any, pixels: int, step: int, c: int, place: Place, count: int, end: Any) -> None:
    """Finish channels c … of the first `pixels` of FOUR pixels, which are `step` pixels apart."""
    write(v[0], c, place, count, end)
    if pixels > 1:
        write(v[1], c, right_of(place, step, end), count, end)
    if pixels > 2:
        write(v[2], c, right_of(place, 2 * step, end), count, end)
    if pixels > 3:
        write(v[3], c, right_of(place, 3 * step, end), count, end)


@inlined
def _compute(terms: Terms, together: bool, apart: int, step: int, place: Place, end: Any) -> None:
    """Compute a pixel, or `together` FOUR pixels, which are `step` pixels apart."""
    C = end.out.C
    for c in range(0, C, LANES):
        if together:
            write_four(_four(terms, apart, c, C - c), FOUR, step, c, place, C - c, end)
        else:
            write(_one(terms, c, C - c), c, place, C - c, end)


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

    Parameters
    ----------
    w, b
        (KH·KW·C,) from [KH][KW][C]; (C,) or empty.
    x, r, y, mask, taps, lo, hi, threads, share
        As in all kernels (`gbp.kernels`).
    """
    bias = address_of(b) if b.size else 0
    end = Forward(plane_of(y), plane_of(r), plane_of(mask), bias, lo, hi)
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    KW, left, sw, dh, dw = taps.columns, taps.left, taps.stride_w, taps.dilation_h, taps.dilation_w
    x_down, x_right, w_down, w_right = dh * x.strides[1], dw * x.strides[2], 4 * C * KW, 4 * C
    # The windows [first, last) touch neither the left nor the right border.
    first, last = (left + sw - 1) // sw, min(OW, (W - 1 - (KW - 1) * dw + left) // sw + 1)
    for row in range(*part_of(N * OH, share, threads)):
        n, oh = row // OH, row % OH
        h, i0, i1 = taps_down(taps, oh, H)
        ow = 0
        while ow < OW:
            together = first <= ow and ow + FOUR <= last
            q, j0, j1 = taps_across(taps, ow, W)
            xa, wa = at(x, n, h + i0 * dh, q + j0 * dw), address_of(w) + i0 * w_down + j0 * w_right
            terms = Terms(xa, wa, i1 - i0, j1 - j0, x_down, x_right, w_down, w_right)
            _compute(terms, together, sw * x.strides[2], 1, place_of(n, oh, ow, end), end)
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
    """Write the transposed convolution to gx, or add it with `accumulate`; then apply the gate.

    Parameters
    ----------
    w
        That of `depthwise_fwd`.
    gy, mask, gate, gx, accumulate, taps, threads, share
        As in all kernels (`gbp.kernels`).
    """
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gy, mask), gate)
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    KW, left, sw, dw = taps.columns, taps.left, taps.stride_w, taps.dilation_w
    # For the pixels [first, last), no window is missing at the borders.
    first, last = (KW - 1) * dw - left, min(W, OW * sw - left)
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        count_h, oh, step_oh, i, step_i = windows_down(taps, h, OH)
        g_down, w_down = step_oh * gy.strides[1], step_i * 4 * C * KW
        group = 0
        while group < W:
            together = first <= group and group + FOUR * sw <= last
            for q in range(group, group + (sw if together else 1)):
                count_w, ow, step_ow, j, step_j = windows_across(taps, q, OW)
                g_right, w_right = step_ow * gy.strides[2], step_j * 4 * C
                ga, wa = at(gy, n, oh, ow), address_of(w) + 4 * C * (i * KW + j)
                terms = Terms(ga, wa, count_h, count_w, g_down, g_right, w_down, w_right)
                _compute(terms, together, gy.strides[2], sw, place_of(n, h, q, end), end)
            group += FOUR * sw if together else 1
