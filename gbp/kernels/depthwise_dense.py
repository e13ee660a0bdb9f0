"""Depthwise convolution of stride 1 without dilation, and its input gradient, for windows of usual widths.

The result is that of `depthwise`, to the bit: each output is one chain of multiply-adds over the same taps in
the same order.  But FOUR neighbours in each of two rows are computed together, so a vector of x that several
of their windows share is loaded once: 5.3 loads an output instead of 11.3 for 3×3, 12 instead of 31 for 5×5.
That is less than the arithmetic takes, so what remains is arithmetic or the memory's speed.

Columns outside the image enter as zeros, which add nothing; rows outside are left out.

Source: see `depthwise`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate, write_gradient
from .codegen.jit import ACTIVATION, FLOAT, INT, WEIGHTS, Kernel, inlined, kernel_from
from .codegen.packing import Share
from .codegen.simd import address_of, at, broadcast, keep_rolled, load_each
from .codegen.slide import load_each_between, slide, slide_first
from .codegen.tile import tile_zeros
from .codegen.views import sample_of, targets_of
from .depthwise import FOUR, write_y
from .taps import TAPS, Taps

#: The widths of windows that there is a kernel for.
WIDTHS = (3, 5, 7)


def _whole_block(columns: int) -> Any:
    """Make the function that sums up a block inside the plane, for whole vectors of channels."""
    seen = FOUR + columns - 1

    def block(
        x: int, x_down: int, x_right: int, start: int, stop: int, rows: int, below: int, w: int, w_down: int,
        w_right: int,
    ) -> Any:  # fmt: skip
        """Return the sums of FOUR neighbours of a row, and of those below.

        The windows of the upper row begin at x, of which rows [start, stop) are in the plane.  `below`: the
        first row of the lower windows, or `rows` if there are none.
        """
        upper, lower = tile_zeros(FOUR, 1), tile_zeros(FOUR, 1)
        for k in range(start, stop):
            keep_rolled()
            v = load_each(x + k * x_down, x_right, seen)
            if k < rows:
                upper = slide(upper, v, w + k * w_down, w_right)
            if k >= below:
                lower = slide(lower, v, w + (k - 1) * w_down, w_right)
        return upper, lower

    return block


def _edge_block(columns: int) -> Any:
    """Make the same function for any block: columns [first, last) are in the plane, and `count` channels."""
    seen = FOUR + columns - 1

    def block(
        x: int, x_down: int, x_right: int, start: int, stop: int, rows: int, below: int, w: int, w_down: int,
        w_right: int, first: int, last: int, count: int,
    ) -> Any:  # fmt: skip
        upper, lower = tile_zeros(FOUR, 1), tile_zeros(FOUR, 1)
        for k in range(start, stop):
            keep_rolled()
            v = load_each_between(x + k * x_down, x_right, first, last, count, seen)
            if k < rows:
                upper = slide_first(upper, v, w + k * w_down, w_right, count)
            if k >= below:
                lower = slide_first(lower, v, w + (k - 1) * w_down, w_right, count)
        return upper, lower

    return block


@inlined
def _write_row(
    v: Any, pixels: int, c: int, ba: int, ra: int, r_next: int, ya: int, y_next: int, ma: int, m_next: int,
    given: Any, low: Any, high: Any, count: int,
) -> None:  # fmt: skip
    """Finish the first `pixels` of FOUR neighbours, the first at these addresses."""
    write_y(v[0], c, ba, ra, ya, ma, given, low, high, count)
    if pixels > 1:
        write_y(v[1], c, ba, ra + r_next, ya + y_next, ma + m_next, given, low, high, count)
    if pixels > 2:
        write_y(v[2], c, ba, ra + 2 * r_next, ya + 2 * y_next, ma + 2 * m_next, given, low, high, count)
    if pixels > 3:
        write_y(v[3], c, ba, ra + 3 * r_next, ya + 3 * y_next, ma + 3 * m_next, given, low, high, count)


@inlined
def _write_gradients(
    v: Any, pixels: int, c: int, gate: Gate, accumulate: int, xa: int, x_next: int, ma: int, m_next: int,
    count: int,
) -> None:  # fmt: skip
    """Finish the first `pixels` of FOUR neighbours, the first at these addresses."""
    write_gradient(v[0], c, gate, accumulate, xa, ma, count)
    if pixels > 1:
        write_gradient(v[1], c, gate, accumulate, xa + x_next, ma + m_next, count)
    if pixels > 2:
        write_gradient(v[2], c, gate, accumulate, xa + 2 * x_next, ma + 2 * m_next, count)
    if pixels > 3:
        write_gradient(v[3], c, gate, accumulate, xa + 3 * x_next, ma + 3 * m_next, count)


@cache
def dense_kernels(columns: int) -> tuple[Kernel, Kernel]:
    """The kernels of windows of so many columns, which take what `depthwise_fwd` and `depthwise_bwd` take."""
    blocks = {"whole_block": _whole_block(columns), "edge_block": _edge_block(columns)}
    return (
        kernel_from(
            _fwd, f"depthwise_{columns}_fwd",
            ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, TAPS, FLOAT, FLOAT, INT, **blocks,
        ),
        kernel_from(
            _bwd, f"depthwise_{columns}_bwd",
            ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, TAPS, INT, **blocks,
        ),
    )  # fmt: skip


def made(name: str) -> Kernel:
    """The kernel of this name, which `dense_kernels` makes."""
    columns, way = name.removeprefix("depthwise_").split("_")
    return dense_kernels(int(columns))[("fwd", "bwd").index(way)]


#: Names for the two functions in the templates below; `kernel_from` replaces them.
whole_block: Any = None
edge_block: Any = None


def _fwd(
    x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, taps: Taps, lo: float, hi: float,
    threads: int, share: Share,
) -> None:  # fmt: skip
    """See `depthwise_fwd`."""
    H, W = x.shape[1], x.shape[2]
    N, OH, OW, C = y.shape
    low, high = broadcast(lo), broadcast(hi)
    KH, KW, top, left = taps.rows, taps.columns, taps.top, taps.left
    x_down, x_right, w_down, w_right = x.strides[1], x.strides[2], 4 * C * KW, 4 * C
    wa, ba, given = address_of(w), address_of(b), (b.size > 0, r.size > 0, mask.size > 0)
    r_next, y_next, m_next = r.strides[2], y.strides[2], mask.strides[2]
    r_down, y_down, m_down = r.strides[1], y.strides[1], mask.strides[1]
    rows = N * OH
    for t in range(share.first, share.last):
        row, end = rows * t // threads, rows * (t + 1) // threads
        while row < end:
            n, oh = row // OH, row % OH
            two = row + 1 < end and oh + 1 < OH
            h, below = oh - top, 1 if two else KH
            start, stop = max(0, -h), min(KH + (1 if two else 0), H - h)
            for ow in range(0, OW, FOUR):
                left_out, pixels = left - ow, min(FOUR, OW - ow)
                is_inside = left_out <= 0 and FOUR + KW - 1 - left_out <= W and pixels == FOUR
                xa = at(x, n, h, -left_out)
                ra, ya, ma = at(r, n, oh, ow), at(y, n, oh, ow), at(mask, n, oh, ow)
                for c in range(0, C, LANES):
                    a, k, count = xa + 4 * c, wa + 4 * c, C - c
                    if is_inside and count >= LANES:
                        upper, lower = whole_block(
                            a, x_down, x_right, start, stop, KH, below, k, w_down, w_right
                        )
                        _write_row(
                            upper, FOUR, c, ba, ra, r_next, ya, y_next, ma, m_next, given, low, high, LANES
                        )
                        if two:
                            _write_row(
                                lower, FOUR, c, ba, ra + r_down, r_next, ya + y_down, y_next,
                                ma + m_down, m_next, given, low, high, LANES,
                            )  # fmt: skip
                    else:
                        upper, lower = edge_block(
                            a, x_down, x_right, start, stop, KH, below, k, w_down, w_right,
                            left_out, W + left_out, count,
                        )  # fmt: skip
                        _write_row(
                            upper, pixels, c, ba, ra, r_next, ya, y_next, ma, m_next, given, low, high, count
                        )
                        if two:
                            _write_row(
                                lower, pixels, c, ba, ra + r_down, r_next, ya + y_down, y_next,
                                ma + m_down, m_next, given, low, high, count,
                            )  # fmt: skip
            row += 2 if two else 1


def _bwd(
    gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps,
    threads: int, share: Share,
) -> None:  # fmt: skip
    """See `depthwise_bwd`: the forward kernel over gy, with the taps from last to first."""
    OH, OW = gy.shape[1], gy.shape[2]
    N, H, W, C = gx.shape
    targets = targets_of(gy, mask)
    KH, KW, top, left = taps.rows, taps.columns, taps.top, taps.left
    g_down, g_right, w_down, w_right = gy.strides[1], gy.strides[2], -4 * C * KW, -4 * C
    wa = address_of(w) + 4 * C * (KH * KW - 1)
    x_next, m_next, x_down, m_down = gx.strides[2], mask.strides[2], gx.strides[1], mask.strides[1]
    rows = N * H
    for t in range(share.first, share.last):
        row, end = rows * t // threads, rows * (t + 1) // threads
        while row < end:
            n, h = row // H, row % H
            two = row + 1 < end and h + 1 < H
            oh, below = h + top - (KH - 1), 1 if two else KH
            start, stop = max(0, -oh), min(KH + (1 if two else 0), OH - oh)
            for q in range(0, W, FOUR):
                left_out, pixels = KW - 1 - left - q, min(FOUR, W - q)
                is_inside = left_out <= 0 and FOUR + KW - 1 - left_out <= OW and pixels == FOUR
                ga = at(gy, n, oh, -left_out)
                xa, ma = at(gx, n, h, q), at(mask, sample_of(n, targets), h, q)
                for c in range(0, C, LANES):
                    a, k, count = ga + 4 * c, wa + 4 * c, C - c
                    if is_inside and count >= LANES:
                        upper, lower = whole_block(
                            a, g_down, g_right, start, stop, KH, below, k, w_down, w_right
                        )
                        _write_gradients(upper, FOUR, c, gate, accumulate, xa, x_next, ma, m_next, LANES)
                        if two:
                            _write_gradients(
                                lower, FOUR, c, gate, accumulate, xa + x_down, x_next, ma + m_down, m_next,
                                LANES,
                            )  # fmt: skip
                    else:
                        upper, lower = edge_block(
                            a, g_down, g_right, start, stop, KH, below, k, w_down, w_right,
                            left_out, OW + left_out, count,
                        )  # fmt: skip
                        _write_gradients(upper, pixels, c, gate, accumulate, xa, x_next, ma, m_next, count)
                        if two:
                            _write_gradients(
                                lower, pixels, c, gate, accumulate, xa + x_down, x_next, ma + m_down, m_next,
                                count,
                            )  # fmt: skip
            row += 2 if two else 1
