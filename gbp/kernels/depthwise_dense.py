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
from typing import Any, NamedTuple

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, FLOAT, INT, WEIGHTS, Kernel, copy_of, inlined, kernel_from
from .codegen.packing import Share
from .codegen.simd import address_of, keep_rolled, load_each
from .codegen.slide import load_each_between, slide, slide_first
from .codegen.tile import tile_zeros
from .codegen.work import part_of, targets_of
from .depthwise import FOUR, write_four
from .epilogue import Forward, Plane, backward, pixel_of, place_of, plane_of
from .taps import TAPS, Taps

#: The widths of windows that there is a kernel for.
WIDTHS = (3, 5, 7)


class Window(NamedTuple):
    """A window of `rows` rows, whose top left tap reads pixel (−top, −left) for pixel (0, 0) of the output.

    `w`: the address of that tap's weights.  Steps are bytes, from row to row and from column to column.
    """

    rows: int
    top: int
    left: int
    w: int
    w_down: int
    w_right: int


#: Columns of x that FOUR windows of a row see.  Each copy of the functions below has its own.
_SEEN = FOUR + WIDTHS[0] - 1


@inlined
def _whole_block(a: int, x: Plane, start: int, stop: int, below: int, w: int, window: Window) -> Any:
    """Sum up FOUR neighbours of a row, and those below, for a vector of channels inside the plane.

    The windows of the upper row begin at address a, of which rows [start, stop) are in the plane.
    `below`: the first row of the lower windows, or the window's `rows` if there are none.
    """
    upper, lower = tile_zeros(FOUR, 1), tile_zeros(FOUR, 1)
    for k in range(start, stop):
        keep_rolled()
        v = load_each(a + k * x.line, x.pixel, _SEEN)
        if k < window.rows:
            upper = slide(upper, v, w + k * window.w_down, window.w_right)
        if k >= below:
            lower = slide(lower, v, w + (k - 1) * window.w_down, window.w_right)
    return upper, lower


@inlined
def _edge_block(
    a: int, x: Plane, start: int, stop: int, below: int, w: int, window: Window,
    first: int, last: int, count: int,
) -> Any:  # fmt: skip
    """The same for any block: columns [first, last) are in the plane, and `count` channels."""
    upper, lower = tile_zeros(FOUR, 1), tile_zeros(FOUR, 1)
    for k in range(start, stop):
        keep_rolled()
        v = load_each_between(a + k * x.line, x.pixel, first, last, count, _SEEN)
        if k < window.rows:
            upper = slide_first(upper, v, w + k * window.w_down, window.w_right, count)
        if k >= below:
            lower = slide_first(lower, v, w + (k - 1) * window.w_down, window.w_right, count)
    return upper, lower


@inlined
def _compute_rows(x: Plane, window: Window, row: int, last_row: int, end: Any) -> None:
    """Compute rows of all samples, counted through the batch."""
    H, W, C = end.out.H, end.out.W, end.out.C
    while row < last_row:
        n, oh = row // H, row % H
        two = row + 1 < last_row and oh + 1 < H
        h, below = oh - window.top, 1 if two else window.rows
        start, stop = max(0, -h), min(window.rows + (1 if two else 0), x.H - h)
        for ow in range(0, W, FOUR):
            left_out, pixels = window.left - ow, min(FOUR, W - ow)
            is_inside = left_out <= 0 and _SEEN - left_out <= x.W and pixels == FOUR
            first = pixel_of(x, n, h, -left_out)
            place, place_below = place_of(n, oh, ow, end), place_of(n, oh + 1, ow, end)
            for c in range(0, C, LANES):
                a, w, count = first + 4 * c, window.w + 4 * c, C - c
                if is_inside and count >= LANES:
                    upper, lower = _whole_block(a, x, start, stop, below, w, window)
                    write_four(upper, FOUR, 1, c, place, LANES, end)
                    if two:
                        write_four(lower, FOUR, 1, c, place_below, LANES, end)
                else:
                    upper, lower = _edge_block(
                        a, x, start, stop, below, w, window, left_out, x.W + left_out, count
                    )
                    write_four(upper, pixels, 1, c, place, count, end)
                    if two:
                        write_four(lower, pixels, 1, c, place_below, count, end)
        row += 2 if two else 1


@cache
def dense_kernels(columns: int) -> tuple[Kernel, Kernel]:
    """The kernels of windows of so many columns, which take what `depthwise_fwd` and `depthwise_bwd` take."""
    rows = copy_of(_compute_rows, f"{columns}", _SEEN=FOUR + columns - 1)
    return (
        kernel_from(
            _fwd, f"depthwise_{columns}_fwd",
            ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, TAPS, FLOAT, FLOAT, INT,
            compute_rows=rows,
        ),
        kernel_from(
            _bwd, f"depthwise_{columns}_bwd",
            ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, TAPS, INT,
            compute_rows=rows,
        ),
    )  # fmt: skip


def made(name: str) -> Kernel:
    """The kernel of this name, which `dense_kernels` makes."""
    columns, way = name.removeprefix("depthwise_").split("_")
    return dense_kernels(int(columns))[("fwd", "bwd").index(way)]


#: A name in the templates below, which `kernel_from` replaces by a copy of `_compute_rows`.
compute_rows: Any = None


def _fwd(
    x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, taps: Taps, lo: float, hi: float,
    threads: int, share: Share,
) -> None:  # fmt: skip
    """See `depthwise_fwd`."""
    bias = address_of(b) if b.size else 0
    end = Forward(plane_of(y), plane_of(r), plane_of(mask), bias, lo, hi)
    N, H, C = y.shape[0], y.shape[1], y.shape[3]
    window = Window(taps.rows, taps.top, taps.left, address_of(w), 4 * C * taps.columns, 4 * C)
    first, last = part_of(N * H, share, threads)
    compute_rows(plane_of(x), window, first, last, end)


def _bwd(
    gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps,
    threads: int, share: Share,
) -> None:  # fmt: skip
    """See `depthwise_bwd`: the forward kernel over gy, with the taps from last to first."""
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gy, mask), gate)
    N, H, C = gx.shape[0], gx.shape[1], gx.shape[3]
    rows, columns = taps.rows, taps.columns
    last_tap = address_of(w) + 4 * C * (rows * columns - 1)
    top, left = rows - 1 - taps.top, columns - 1 - taps.left
    window = Window(rows, top, left, last_tap, -4 * C * columns, -4 * C)
    first, last = part_of(N * H, share, threads)
    compute_rows(plane_of(gy), window, first, last, end)
