"""Which taps of a sliding window meet which pixels, along one axis.

Tap k of window o lies on pixel  o·stride + k·dilation − begin.  `inside` asks a window for its taps on the
plane (forward); `meeting` asks a pixel for the windows that see it (reverse), so that every kernel gathers
and each output has one writer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import types

from .jit import device_function


class Taps(NamedTuple):
    """The window of a convolution or pooling as the kernels see it; padding is an argument of its own."""

    rows: int
    columns: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int


TAPS = types.NamedUniTuple(types.int64, 6, Taps)
POINTWISE = Taps(1, 1, 1, 1, 1, 1)


@device_function  # type: ignore[untyped-decorator]
def _ceil_div(a: int, b: int) -> int:
    return a if b == 1 else -(-a // b)  # dilations and many strides are 1, and a division is slow


@device_function  # type: ignore[untyped-decorator]
def inside(first: int, kernel: int, dilation: int, low: int, high: int) -> Any:
    """Return the taps [start, stop) whose pixels lie in [low, high); tap 0 lies on pixel `first`."""
    start = max(0, _ceil_div(low - first, dilation))
    stop = min(kernel, _ceil_div(high - first, dilation))
    return start, max(start, stop)


@device_function  # type: ignore[untyped-decorator]
def common_divisor(a: int, b: int) -> int:
    """Return the greatest common divisor."""
    while b:
        a, b = b, a % b
    return a


@device_function  # type: ignore[untyped-decorator]
def meeting(position: int, kernel: int, stride: int, dilation: int, windows: int) -> Any:
    """Return (count, o, o's step, k, k's step) of the windows o whose tap k lies on pixel position − begin.

    o ascends, so k descends.  Stride and dilation together skip windows: o·stride + k·dilation = position has a
    solution only every dilation / gcd windows.
    """
    if dilation == 1:
        o = max(0, _ceil_div(position - kernel + 1, stride))
        last = min(windows - 1, position if stride == 1 else position // stride)
        return max(0, last - o + 1), o, 1, position - o * stride, -stride
    divisor = common_divisor(stride, dilation)
    o = max(0, _ceil_div(position - (kernel - 1) * dilation, stride))
    last = min(windows - 1, position // stride)
    while o <= last and (position - o * stride) % dilation:
        o += 1
    step = dilation // divisor
    return max(0, (last - o) // step + 1), o, step, (position - o * stride) // dilation, -(stride // divisor)
