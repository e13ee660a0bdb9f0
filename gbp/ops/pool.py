"""Pooling (ONNX MaxPool, AveragePool, GlobalMaxPool, GlobalAveragePool).

    MaxPool        y = max over the window's pixels;  switch = offset of the first maximum, row-major
                   gx[switch's pixel] += gy          (unpooling: overlapping windows accumulate)
    AveragePool    y = Σ window / count;             gx[each pixel of the window] += gy / count

Padding never wins a maximum.  `count` is the window's pixels, with count_include_pad its padded cells too.
Source: ONNX operator specification; switches after Zeiler & Fergus 2013, section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..geometry import Axis, Window
from ..graph import Shape
from ..kernels.pool import (
    averagepool_bwd,
    averagepool_fwd,
    maxpool_bwd_u8,
    maxpool_bwd_u32,
    maxpool_fwd_u8,
    maxpool_fwd_u32,
)
from ..limits import elements
from .node import Node
from .op import CHANNELS_LAST, Clipped, Floats, Gradient, Op, Order, Saved, Step
from .window import MOST_PIXELS, read_window, reverse_work, taps_of


@dataclass(frozen=True)
class _Pool(Op):
    window: Window

    def shape(self, *x: Shape) -> Shape:
        return *x[0][:2], *self.window.output

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return super().work(x, y) + 8 * self.window.taps * elements(y) + reverse_work(self.window, y[1])

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        return (CHANNELS_LAST,), CHANNELS_LAST


@dataclass(frozen=True)
class MaxPool(_Pool):
    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order) -> Step:
        return MaxPoolStep(self)


@dataclass(frozen=True)
class AveragePool(_Pool):
    include_pad: bool = False

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order) -> Step:
        return AveragePoolStep(self)


def _has_an_empty_window(axis: Axis) -> bool:
    """Whether some window has no tap on a real pixel."""
    starts = np.arange(axis.outputs) * axis.stride - axis.begin
    first_inside = np.where(starts < 0, starts + -(starts // axis.dilation) * axis.dilation, starts)
    return bool(
        np.any((first_inside >= axis.size) | (first_inside > starts + (axis.kernel - 1) * axis.dilation))
    )


def _window(node: Node) -> Window:
    H, W = node.shape(0, rank=4)[2:]
    kernel = node.integers("kernel_shape")
    if kernel is None:
        node.invalid("kernel_shape is missing.")
    window = read_window(node, (H, W), kernel, ceil_mode=bool(node.integer("ceil_mode", 0)))
    if _has_an_empty_window(window.height) or _has_an_empty_window(window.width):
        node.refuse("some window lies in the padding alone.", supported="windows that see at least one pixel")
    return window


def _whole_plane(node: Node) -> Window:
    H, W = node.shape(0, rank=4)[2:]
    return Window.resolve((H, W), (H, W))


def parse_maxpool(node: Node) -> Op:
    node.ignore("storage_order")  # speaks of the Indices output, which is refused where it is used
    return _maxpool(node, _window(node))


def _maxpool(node: Node, window: Window) -> MaxPool:
    if window.taps > MOST_PIXELS:  # a switch has to be exact as a float32 for a while
        node.refuse(f"the window has {window.taps} taps.", supported=f"up to {MOST_PIXELS}")
    return MaxPool(window)


def parse_averagepool(node: Node) -> Op:
    return AveragePool(_window(node), include_pad=bool(node.integer("count_include_pad", 0)))


PARSERS = {
    "MaxPool": parse_maxpool,
    "AveragePool": parse_averagepool,
    "GlobalMaxPool": lambda node: _maxpool(node, _whole_plane(node)),
    "GlobalAveragePool": lambda node: AveragePool(_whole_plane(node)),
}


class MaxPoolStep(Step):
    gates = True

    def __init__(self, op: MaxPool) -> None:
        self.taps, window = taps_of(op.window), op.window
        self.begin = window.height.begin, window.width.begin
        small = window.taps <= 256
        self.switches = np.uint8 if small else np.uint32
        self.fwd, self.bwd = (maxpool_fwd_u8, maxpool_bwd_u8) if small else (maxpool_fwd_u32, maxpool_bwd_u32)
        self.how = "switches " + "×".join(map(str, window.kernel))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, saved: Saved) -> None:
        self.fwd(x[0], y, saved.switches, self.taps, *self.begin, saved.threads)

    def vjp(self, gy: Floats, gx: tuple[Gradient, ...], saved: Saved) -> None:
        g = gx[0]
        self.bwd(gy, saved.switches, *g.end, self.taps, *self.begin, saved.threads)


class AveragePoolStep(Step):
    gates = True

    def __init__(self, op: AveragePool) -> None:
        self.taps = taps_of(op.window)
        h, w = op.window.height, op.window.width
        self.sides = h.begin, w.begin, h.end, w.end
        self.include_pad = int(op.include_pad)
        self.how = "mean " + "×".join(map(str, op.window.kernel))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, saved: Saved) -> None:
        averagepool_fwd(x[0], y, self.taps, *self.sides, self.include_pad, saved.threads)

    def vjp(self, gy: Floats, gx: tuple[Gradient, ...], saved: Saved) -> None:
        g = gx[0]
        averagepool_bwd(gy, *g.end, self.taps, *self.sides, self.include_pad, saved.threads)
