"""The attributes that Conv and the pools share, read once into a `Window`."""

from __future__ import annotations

from ..geometry import Pair, Window
from ..kernels.taps import Taps
from ..limits import ELEMENT, MOST_ELEMENTS
from .node import Node

_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")

#: Kernels, strides, dilations, pads and padded sides: beyond it kernels' addresses could overflow.
MOST_PIXELS = 2**24


def read_window(node: Node, size: Pair, kernel: tuple[int, ...], *, ceil_mode: bool = False) -> Window:
    """The window of `node` over a plane of `size` (ONNX: strides, dilations, pads, auto_pad)."""
    stride = node.integers("strides", (1, 1))
    dilation = node.integers("dilations", (1, 1))
    pads = node.integers("pads", (0, 0, 0, 0))
    auto_pad = node.text("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad not in _AUTO_PADS:
        node.invalid(f"auto_pad is {auto_pad!r}, not one of {', '.join(_AUTO_PADS)}.")
    for name, values, count in (("strides", stride, 2), ("dilations", dilation, 2), ("pads", pads, 4)):
        if len(values) != count:
            node.refuse(f"{name} has {len(values)} values.", supported=f"two spatial axes, {count} values")
    if len(kernel) != 2:
        node.refuse(f"the kernel has {len(kernel)} axes.", supported="two spatial axes")
    if min(*kernel, *stride, *dilation) < 1 or min(pads) < 0:
        node.invalid(
            f"kernel {kernel}, strides {stride}, dilations {dilation}, pads {pads}: "
            "kernel, strides and dilations are at least 1, pads at least 0."
        )
    if max(*kernel, *stride, *dilation, *pads) > MOST_PIXELS:
        node.refuse(
            f"kernel {kernel}, strides {stride}, dilations {dilation}, pads {pads}.",
            supported=f"up to {MOST_PIXELS} each",
        )
    window = Window.resolve(
        size,
        (kernel[0], kernel[1]),
        stride=(stride[0], stride[1]),
        dilation=(dilation[0], dilation[1]),
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    height, width = (a.size + a.begin + a.end for a in (window.height, window.width))
    if max(height, width) > MOST_PIXELS or height * width > MOST_ELEMENTS:
        node.refuse(
            f"padded, the plane has {height} × {width} pixels.",
            supported=f"up to {MOST_ELEMENTS} pixels, {MOST_PIXELS} a side",
        )
    if min(window.output) < 1:
        node.invalid(
            f"a window of {kernel} with dilations {dilation} does not fit into a padded {size} plane."
        )
    return window


def reverse_work(window: Window, channels: int) -> int:
    """What a reverse pass that asks each pixel for the windows that see it costs, in multiply-adds."""
    meets, searched = 1, 0
    for axis in (window.height, window.width):
        meets *= min(axis.outputs, -(-axis.kernel // axis.stride))
        if axis.dilation > 1:  # it looks for the first window that has a tap on the pixel
            searched += min(axis.outputs, axis.extent // axis.stride + 1, axis.dilation)
    return window.size[0] * window.size[1] * (meets * (8 * channels + 4 * ELEMENT) + searched * ELEMENT)


def taps_of(window: Window) -> Taps:
    """The window as kernels take it, padding apart."""
    h, w = window.height, window.width
    return Taps(h.kernel, w.kernel, h.stride, w.stride, h.dilation, w.dilation)
