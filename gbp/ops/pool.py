"""Pooling (ONNX MaxPool, AveragePool, GlobalMaxPool, GlobalAveragePool).

    MaxPool        y = max over the window's pixels;  switch = offset of the first maximum, row-major
                   gx[switch's pixel] += gy          (unpooling: overlapping windows accumulate)
    AveragePool    y = Σ window / count;             gx[each pixel of the window] += gy / count

Padding never wins a maximum.  `count` is the number of real pixels in the window; with count_include_pad the
padded cells count too.  Volumes are pooled plane by plane, then along the depth; their counts are products.
Source: ONNX operator specification; switches after Zeiler & Fergus 2013, section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph.geometry import Axis, Window
from ..graph.op import ChannelsLast, Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.average_pool import averagepool_bwd, averagepool_fwd
from ..kernels.pool import maxpool_bwd_u8, maxpool_bwd_u32, maxpool_fwd_u8, maxpool_fwd_u32
from ..limits import elements
from .facts import Fact
from .folded import as_operands, as_pool
from .node import Node
from .planes import by_planes
from .shape import Reshape
from .step import Clipped, Context, Floats, GradientSlot, Step
from .unpool import Indices
from .window import (
    MAX_PIXELS,
    planes_of,
    read_axes,
    reverse_work,
    spatial_outputs,
    spatial_sizes,
    taps_of,
)


@dataclass(frozen=True)
class _Pool(ChannelsLast):
    """A pool whose window slides over the last two axes of x, or over the only spatial axis."""

    window: Window

    def shape(self, *x: Shape) -> Shape:
        return *x[0][:2], *spatial_outputs(x[0], self.window)

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        reverse = planes_of(y) * reverse_work(self.window, y[1])
        return super().work(x, y) + 8 * self.window.taps * elements(y) + reverse


@dataclass(frozen=True)
class MaxPool(_Pool):
    """The maximum of each window."""

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return by_planes(MaxPoolStep(self), x[0])


@dataclass(frozen=True)
class AveragePool(_Pool):
    """The mean of each window, of its real pixels alone unless `include_pad`."""

    include_pad: bool = False

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of a whole plane."""
        return self.window.kernel == self.window.size and self.window.is_unpadded

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return by_planes(AveragePoolStep(self), x[0])


def _has_an_empty_window(axis: Axis) -> bool:
    """Whether some window reads padding only."""
    starts = np.arange(axis.outputs) * axis.stride - axis.begin
    first_inside = np.where(starts < 0, starts + -(starts // axis.dilation) * axis.dilation, starts)
    return bool(
        np.any((first_inside >= axis.size) | (first_inside > starts + (axis.kernel - 1) * axis.dilation))
    )


def read_pool_axes(node: Node) -> tuple[Axis, ...]:
    """The window of a pool along each spatial axis.  Windows that read padding only are refused."""
    kernel = node.integers("kernel_shape")
    if kernel is None:
        node.invalid("kernel_shape is missing.")
    axes = read_axes(node, kernel, ceil_mode=bool(node.integer("ceil_mode", 0)))
    if any(map(_has_an_empty_window, axes)):
        node.refuse("some window sees padding alone.", supported="windows that see at least one pixel")
    return axes


def separable(node: Node, axes: Sequence[Axis], pool: Callable[[Window], Op]) -> tuple[Op, ...]:
    """Pool each plane; and, with three axes, pool the results along the depth.

    Both passes take the first maximum, so together they take the volume's first maximum in row-major order.
    """
    plane = Window.over_plane(axes)
    if len(axes) < 3 or axes[0].is_point:
        return (pool(plane),)
    shape, depth, pixels = node.shape(0), axes[0], elements(plane.output)
    along = pool(Window(depth, Axis(pixels, 1, 1, 1, 0, 0)))
    columns, result = (*shape[:3], pixels), (*shape[:2], depth.outputs, *plane.output)
    first = () if plane.is_pointwise else (pool(plane),)
    return (*first, Reshape(columns), along, Reshape(result))


def over_everything(node: Node, pool: Callable[[Window], Op]) -> tuple[Op, ...]:
    """Pool over all pixels.  One or three spatial axes are reshaped to a plane that is nearly square."""
    shape, size = node.shape(0), spatial_sizes(node)
    if len(size) == 2:
        return (pool(_whole_plane(node)),)
    count = elements(size)
    lines = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    plane = lines, count // lines
    one = (1,) * len(size)
    return Reshape((*shape[:2], *plane)), pool(Window.resolve(plane, plane)), Reshape((*shape[:2], *one))


def _whole_plane(node: Node) -> Window:
    H, W = node.shape(0, rank=4)[2:]
    return Window.resolve((H, W), (H, W))


def parse_maxpool(node: Node) -> tuple[Op, ...] | list[Any]:
    axes = read_pool_axes(node)
    by_columns = bool(node.integer("storage_order", 0))
    ops = separable(node, axes, lambda window: _maxpool(node, window))
    return [ops, Indices(axes, by_columns)] if node.is_read(1) else ops


def _maxpool(node: Node, window: Window) -> MaxPool:
    if window.taps > MAX_PIXELS:  # the kernel holds a switch in a float32, which must be exact
        node.refuse(f"the window has {window.taps} taps.", supported=f"up to {MAX_PIXELS}")
    return MaxPool(window)


def parse_averagepool(node: Node) -> tuple[Op, ...]:
    include_pad = bool(node.integer("count_include_pad", 0))
    return separable(node, read_pool_axes(node), lambda window: AveragePool(window, include_pad))


PARSERS = {
    "MaxPool": parse_maxpool,
    "AveragePool": parse_averagepool,
    "GlobalMaxPool": lambda node: over_everything(node, lambda window: _maxpool(node, window)),
    "GlobalAveragePool": lambda node: over_everything(node, AveragePool),
}

FACTS = {
    "MaxPool": Fact("other", reads_planes=True, slides=True, folds=as_pool),
    "AveragePool": Fact("read", reads_planes=True, slides=True, folds=as_pool),
    "GlobalMaxPool": Fact("read", reads_planes=True, folds=as_operands),
    "GlobalAveragePool": Fact("read", reads_planes=True, averages=True, folds=as_operands),
}


class MaxPoolStep(Step):
    repeats = repeats_back = True
    gates = True

    def __init__(self, op: MaxPool) -> None:
        self.taps, window = taps_of(op.window), op.window
        small = window.taps <= 256
        self.switches = np.uint8 if small else np.uint32
        self.fwd, self.bwd = (maxpool_fwd_u8, maxpool_bwd_u8) if small else (maxpool_fwd_u32, maxpool_bwd_u32)
        self.algorithm = "switches " + "×".join(map(str, window.kernel))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        self.fwd(x[0], y, context.switches, self.taps, context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        g = gx[0]
        self.bwd(gy, context.switches, *g.arguments, self.taps, context.threads)


class AveragePoolStep(Step):
    repeats = repeats_back = True
    gates = True

    def __init__(self, op: AveragePool) -> None:
        self.taps = taps_of(op.window)
        self.include_pad = int(op.include_pad)
        #: Whether the whole plane is averaged.
        self.is_global = op.window.kernel == op.window.size and op.window.is_unpadded
        self.algorithm = "mean " + "×".join(map(str, op.window.kernel))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        averagepool_fwd(x[0], y, self.taps, self.include_pad, context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        g = gx[0]
        averagepool_bwd(gy, *g.arguments, self.taps, self.include_pad, context.threads)
