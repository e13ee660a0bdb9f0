"""Attributes that convolutions and pools share, read into one `Axis` for each spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import counted
from ..graph.geometry import Axis, Window, resolve_axes
from ..graph.shapes import Shape
from ..kernels.taps import Taps
from ..limits import ELEMENT, MAX_ELEMENTS, elements
from .node import Node

_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")

#: Largest kernel, stride, dilation, pad and padded side.  Beyond it, addresses in kernels could overflow.
MAX_PIXELS = 2**24


@dataclass(frozen=True)
class Sliding:
    """ONNX's attributes of a sliding window.

    Parameters
    ----------
    kernel, stride, dilation
        One value for each spatial axis.
    pads
        The begins of all spatial axes, then their ends.
    auto_pad
        "NOTSET", "SAME_UPPER", "SAME_LOWER" or "VALID".
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str

    @property
    def extents(self) -> tuple[int, ...]:
        """Pixels from the first to the last tap, both included, along each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))


def spatial_sizes(node: Node) -> Shape:
    """The spatial axes of input 0, (N, C, …)."""
    shape = node.shape(0)
    if not 3 <= len(shape) <= 5:
        node.refuse(f"input 0 has shape {list(shape)}.", supported="(N, C, …) with 1 to 3 spatial axes")
    return shape[2:]


def read_sliding(node: Node, kernel: tuple[int, ...]) -> Sliding:
    """Read and check strides, dilations, pads and auto_pad."""
    rank = len(spatial_sizes(node))
    stride = node.integers("strides", (1,) * rank)
    dilation = node.integers("dilations", (1,) * rank)
    pads = node.integers("pads", (0,) * 2 * rank)
    auto_pad = node.text("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad not in _AUTO_PADS:
        node.invalid(f"auto_pad is {auto_pad!r}, not one of {', '.join(_AUTO_PADS)}.")
    for name, values, count in (
        ("strides", stride, rank),
        ("dilations", dilation, rank),
        ("pads", pads, 2 * rank),
    ):
        if len(values) != count:
            node.refuse(
                f"{name} has {counted(len(values), 'value')}.",
                supported=f"{count}, as input 0 has {rank + 2} axes",
            )
    if len(kernel) != rank:
        node.refuse(
            f"the kernel has {counted(len(kernel), 'axis', 'axes')}.",
            supported=f"{rank}, as input 0 has {rank + 2}",
        )
    if min(*kernel, *stride, *dilation) < 1 or min(pads) < 0:
        node.invalid(
            f"kernel {kernel}, strides {stride}, dilations {dilation}, pads {pads}: "
            "kernel, strides and dilations are at least 1, pads at least 0."
        )
    if max(*kernel, *stride, *dilation, *pads) > MAX_PIXELS:
        node.refuse(
            f"kernel {kernel}, strides {stride}, dilations {dilation}, pads {pads}.",
            supported=f"up to {MAX_PIXELS} each",
        )
    return Sliding(kernel, stride, dilation, pads, auto_pad)


def read_axes(node: Node, kernel: tuple[int, ...], *, ceil_mode: bool = False) -> tuple[Axis, ...]:
    """The window of `node` along each spatial axis of its input."""
    size, sliding = spatial_sizes(node), read_sliding(node, kernel)
    axes = resolve_axes(
        size,
        kernel,
        stride=sliding.stride,
        dilation=sliding.dilation,
        pads=sliding.pads,
        auto_pad=sliding.auto_pad,
        ceil_mode=ceil_mode,
    )
    check_room(node, [a.size + a.begin + a.end for a in axes])
    if min(a.outputs for a in axes) < 1:
        node.invalid(
            f"a window of {kernel} with dilations {sliding.dilation} does not fit into a padded {size} plane."
        )
    return axes


def check_room(node: Node, padded: Sequence[int]) -> None:
    """Refuse a plane that kernels could not address.  `padded`: its sides, with padding."""
    if max(padded) > MAX_PIXELS or elements(padded) > MAX_ELEMENTS:
        node.refuse(
            f"padded, the plane has {' × '.join(map(str, padded))} pixels.",
            supported=f"up to {MAX_ELEMENTS} pixels, {MAX_PIXELS} a side",
        )


def spatial_outputs(x: Shape, window: Window) -> Shape:
    """The spatial axes of the output for an input of shape x.  The window slides over the last one or two."""
    return (*x[2:-2], *window.output)[2 - len(x) :]


def planes_of(x: Shape) -> int:
    """How many (H, W) planes each channel of a sample has."""
    return elements(x[2:-2])


def reverse_work(window: Window, channels: int) -> int:
    """The cost, in multiply-adds, of a backward kernel that finds the windows of each input pixel."""
    windows, searched = 1, 0
    for axis in (window.height, window.width):
        windows *= min(axis.outputs, -(-axis.kernel // axis.stride))
        if axis.dilation > 1:  # it looks for the first window that has a tap on the pixel
            searched += min(axis.outputs, axis.extent // axis.stride + 1, axis.dilation)
    return window.size[0] * window.size[1] * (windows * (8 * channels + 4 * ELEMENT) + searched * ELEMENT)


def taps_of(window: Window) -> Taps:
    """The window as kernels take it."""
    h, w = window.height, window.width
    sides = h.begin, w.begin, h.end, w.end
    return Taps(h.kernel, w.kernel, h.stride, w.stride, h.dilation, w.dilation, *sides)


def reversed_taps_of(window: Window) -> Taps:
    """For stride 1: the window over gy whose convolution, with flipped weights, gives gx."""
    h, w = window.height, window.width
    down, across = h.extent - 1, w.extent - 1
    sides = down - h.begin, across - w.begin, down - h.end, across - w.end
    return Taps(h.kernel, w.kernel, 1, 1, h.dilation, w.dilation, *sides)
