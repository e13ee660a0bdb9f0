"""Positions of maxima, and unpooling to them (the Indices of ONNX MaxPool; MaxUnpool).

    Indices     y[n, c, o] = the position of the first maximum within the channel's plane;  gx = 0
    MaxUnpool   y[n, c, positions[n, c, s]] = x[n, c, s], 0 elsewhere
                gx[n, c, s] = gy at that position; where positions coincide, the last one in row-major order
                is written and gets the gradient

ONNX counts positions through the whole tensor.  gbp counts them within a plane, as float32 numbers, and
allows MaxUnpool alone to read them.  Both counts give the same result if MaxUnpool writes planes of the size
that the MaxPool read; other sizes are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.geometry import Axis
from ..graph.op import ChannelsLast, Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.unpool import maxpool_indices, unpool_bwd, unpool_fwd
from ..limits import ELEMENT, elements
from .facts import Fact
from .folded import as_inferred
from .node import Node
from .planes import volume
from .step import Clipped, Context, Floats, GradientSlot, Step, view
from .window import MAX_PIXELS, check_room, read_sliding, spatial_sizes

#: The cost of a tap in a plain loop, in multiply-adds.
_TAP = 2**5


@dataclass(frozen=True)
class Indices(ChannelsLast):
    """The positions of the maxima of a MaxPool.

    Parameters
    ----------
    axes
        The pool's window along each spatial axis.
    by_columns
        Whether positions count along the first spatial axis first (ONNX: storage_order 1).
    """

    axes: tuple[Axis, ...]
    by_columns: bool

    @property
    def plane(self) -> Shape:
        """The spatial sizes that positions refer to."""
        return tuple(axis.size for axis in self.axes)

    def shape(self, *x: Shape) -> Shape:
        return *x[0][:2], *(axis.outputs for axis in self.axes)

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return super().work(x, y) + _TAP * elements([axis.kernel for axis in self.axes]) * elements(y)

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return IndicesStep(self)


@dataclass(frozen=True, eq=False)
class MaxUnpool(ChannelsLast):
    """Unpools to planes of size `plane`.

    `positions`: float32 (1, C, …) where they are constant; None where they are the second input.
    """

    plane: Shape
    positions: NDArray[np.float32] | None = None

    @property
    def parameters(self) -> int:
        return 0 if self.positions is None else self.positions.size

    def shape(self, *x: Shape) -> Shape:
        return *x[0][:2], *self.plane

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return super().work(x, y) + ELEMENT * elements(y)

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return MaxUnpoolStep(self, target)


def parse(node: Node) -> Op:
    shape = node.shape(0)
    smallest, plane = _planes(node)
    if elements(plane) > MAX_PIXELS:  # positions have to be exact as float32
        node.refuse(f"it unpools to {elements(plane)} pixels.", supported=f"up to {MAX_PIXELS}")
    if node.is_constant(1):
        if plane != smallest:  # ONNX's own test counts them in the smallest plane, other runtimes do not
            node.refuse(
                f"constant indices, and an output_shape of {list(plane)} pixels.",
                supported=f"{list(smallest)}, as the windows say",
            )
        return MaxUnpool(plane, _constant_positions(node, shape, plane))
    found = node.positions(1)
    if found is None:
        node.refuse("its indices are computed, by another op.", supported="those of a MaxPool, and constants")
    if found.shape != shape:
        node.invalid(f"indices of shape {list(found.shape)} do not fit x of shape {list(shape)}.")
    if found.plane != plane:
        node.refuse(
            f"its indices are those of {list(found.plane)} pooled pixels, its output has {list(plane)}.",
            supported="as many pixels as were pooled",
            hint="output_shape says how many there shall be.",
        )
    return MaxUnpool(plane)


def _planes(node: Node) -> tuple[Shape, Shape]:
    """The spatial sizes that the windows fill, and those of the output, which output_shape may change."""
    shape, size = node.shape(0), spatial_sizes(node)
    kernel = node.integers("kernel_shape")
    if kernel is None:
        node.invalid("kernel_shape is missing.")
    sliding = read_sliding(node, kernel)
    begins, ends = sliding.pads[: len(size)], sliding.pads[len(size) :]
    axes = zip(size, kernel, sliding.stride, begins, ends, strict=True)
    smallest = plane = tuple((n - 1) * stride + k - begin - end for n, k, stride, begin, end in axes)
    if node.has(2):
        target = node.constant_ints(2)
        if len(target) != len(shape) or target[:2] != shape[:2]:
            node.invalid(f"output_shape is {list(target)}, for x of shape {list(shape)}.")
        plane = target[2:]
    if min(plane) < 1:
        node.invalid(f"the output would have {list(plane)} pixels.")
    check_room(node, plane)
    return smallest, plane


def _constant_positions(node: Node, shape: Shape, plane: Shape) -> NDArray[np.float32]:
    """Constant indices within each plane."""
    indices = node.constant(1, np.int64)
    if indices.shape != (1, *shape[1:]):
        node.refuse(
            f"constant indices have shape {list(indices.shape)}.",
            supported=f"{[1, *shape[1:]]}, as x but for the batch",
        )
    channels = np.arange(shape[1]).reshape(1, -1, *(1,) * len(plane))
    positions = indices - channels * elements(plane)
    if positions.size and not 0 <= positions.min() <= positions.max() < elements(plane):
        node.refuse("an index is outside its channel's plane.", supported="indices within each plane")
    return positions.astype(np.float32)


PARSERS = {"MaxUnpool": parse}

FACTS = {"MaxUnpool": Fact("other", folds=as_inferred)}


def _lines(x: Floats) -> Floats:
    """A physical tensor as (N, pixels, C)."""
    return view(x, len(x), -1, x.shape[-1])


class IndicesStep(Step):
    algorithm = "indices"
    yields_positions = True

    def __init__(self, op: Indices) -> None:
        axes = [(a.kernel, a.stride, a.dilation, a.begin) for a in op.axes]
        self.axes = (*[(1, 1, 1, 0)] * (3 - len(axes)), *axes)
        self.by_columns = int(op.by_columns)

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        maxpool_indices(volume(x[0]), volume(y), self.axes, self.by_columns, context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        gx[0].begin(context.threads)  # it adds nothing


class MaxUnpoolStep(Step):
    algorithm = "unpool"
    switches = np.uint32

    def __init__(self, op: MaxUnpool, target: Target) -> None:
        constant = op.positions
        self.positions = None if constant is None else target.constant(np.moveaxis(constant, 1, -1).copy())

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        positions = x[1] if self.positions is None else self.positions
        y.fill(0)
        context.switches.fill(0)
        unpool_fwd(_lines(x[0]), _lines(positions), _lines(y), _lines(context.switches), context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        for g in gx:
            g.begin(context.threads)
        unpool_bwd(_lines(gy), _lines(context.switches), _lines(gx[0].array), context.threads)
