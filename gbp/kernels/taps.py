"""Which taps of a sliding window read which pixels, along one axis.

Tap k of window o reads pixel  o·stride + k·dilation − begin.  Forward, `taps_down` and `taps_across` find a
window's taps that are on the plane.  Backward, `windows_down` and `windows_across` find the windows that read
a pixel.  So every kernel loops over its outputs, and each output is written by one thread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import types

from .codegen.jit import device_function


class Taps(NamedTuple):
    """The window of a convolution or pooling, as kernels take it.  Sizes of planes are those of the arrays.

    `rows`, `columns`: taps.  `top`, `left`, `bottom`, `right`: padded pixels; negative numbers crop.
    """

    rows: int
    columns: int
    stride_h: int = 1
    stride_w: int = 1
    dilation_h: int = 1
    dilation_w: int = 1
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0


TAPS = types.NamedUniTuple(types.int64, len(Taps._fields), Taps)


@device_function
def floor_div(a: int, b: int) -> int:
    """Return ⌊a / b⌋: strides and dilations are 1 or 2, and a division is slow."""
    if b == 1:
        return a
    if b == 2:
        return a >> 1
    return a // b


@device_function
def inside(first: int, kernel: int, dilation: int, low: int, high: int) -> Any:
    """Return the taps [start, stop) that read pixels in [low, high); tap 0 reads pixel `first`."""
    start = max(0, -floor_div(first - low, dilation))
    stop = min(kernel, -floor_div(first - high, dilation))
    return start, max(start, stop)


@device_function
def common_divisor(a: int, b: int) -> int:
    """Return the greatest common divisor."""
    while b:
        a, b = b, a % b
    return a


@device_function
def taps_down(taps: Taps, o: int, H: int) -> Any:
    """(first, start, stop): the row that tap 0 of window o reads, and the taps [start, stop) on the plane."""
    first = o * taps.stride_h - taps.top
    start, stop = inside(first, taps.rows, taps.dilation_h, 0, H)
    return first, start, stop


@device_function
def taps_across(taps: Taps, o: int, W: int) -> Any:
    """`taps_down` of columns."""
    first = o * taps.stride_w - taps.left
    start, stop = inside(first, taps.columns, taps.dilation_w, 0, W)
    return first, start, stop


@device_function
def windows_that_read(position: int, kernel: int, stride: int, dilation: int, windows: int) -> Any:
    """(count, o, o's step, k, k's step) of the windows o whose tap k reads pixel position − begin.

    There are `windows` in all.  o ascends, so k descends.  Stride and dilation together skip windows:
    o·stride + k·dilation = position has a solution only every dilation / gcd windows.
    """
    if dilation == 1:
        o = max(0, -floor_div(kernel - 1 - position, stride))
        last = min(windows - 1, floor_div(position, stride))
        return max(0, last - o + 1), o, 1, position - o * stride, -stride
    divisor = common_divisor(stride, dilation)
    o = max(0, -floor_div((kernel - 1) * dilation - position, stride))
    last = min(windows - 1, floor_div(position, stride))
    while o <= last and (position - o * stride) % dilation:
        o += 1
    step = dilation // divisor
    return max(0, (last - o) // step + 1), o, step, (position - o * stride) // dilation, -(stride // divisor)


@device_function
def windows_down(taps: Taps, h: int, windows: int) -> Any:
    """`windows_that_read` row h, among so many rows of windows."""
    return windows_that_read(h + taps.top, taps.rows, taps.stride_h, taps.dilation_h, windows)


@device_function
def windows_across(taps: Taps, w: int, windows: int) -> Any:
    """`windows_that_read` column w, among so many columns of windows."""
    return windows_that_read(w + taps.left, taps.columns, taps.stride_w, taps.dilation_w, windows)
