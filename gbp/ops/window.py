"""The attributes that Conv and the pools share, read once into a `Window`."""

from __future__ import annotations

from ..geometry import Pair, Window
from .node import Node

_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def read_window(node: Node, size: Pair, kernel: tuple[int, ...], *, ceil_mode: bool = False) -> Window:
    """The window of `node` over a plane of `size` (ONNX: strides, dilations, pads, auto_pad)."""
    stride = node.ints("strides", (1, 1))
    dilation = node.ints("dilations", (1, 1))
    pads = node.ints("pads", (0, 0, 0, 0))
    auto_pad = node.string("auto_pad", "NOTSET") or "NOTSET"
    assert stride is not None and dilation is not None and pads is not None
    if auto_pad not in _AUTO_PADS:
        node.invalid(f"auto_pad is {auto_pad!r}, not one of {', '.join(_AUTO_PADS)}.")
    for name, values, count in (("strides", stride, 2), ("dilations", dilation, 2), ("pads", pads, 4)):
        if len(values) != count:
            node.refuse(f"{name} has {len(values)} values.", supported=f"two spatial axes, {count} values")
    if len(kernel) != 2:
        node.refuse(f"the kernel has {len(kernel)} axes.", supported="two spatial axes")
    if min(*kernel, *stride, *dilation) < 1 or min(pads) < 0:
        node.invalid(f"kernel {kernel}, strides {stride}, dilations {dilation}, pads {pads}: "
                     "kernel, strides and dilations are at least 1, pads at least 0.")
    window = Window.resolve(
        size, (kernel[0], kernel[1]), stride=(stride[0], stride[1]), dilation=(dilation[0], dilation[1]),
        pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode,
    )
    if min(window.output) < 1:
        node.invalid(f"a window of {kernel} with dilations {dilation} does not fit into a padded {size} plane.")
    return window
