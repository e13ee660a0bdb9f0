"""Transposed convolution (ONNX ConvTranspose): pixels are spread by the stride, then convolved with stride 1.

y[n, o, p] = Σ_{c, i: q·s + i·d = p + begin} x[n, c, q] · w[c, o, i] + b[o]      along each spatial axis
           = Conv(Spread(x), flipped w, transposed within each group)

Col2Im adds up windows whose pixels are channels: a ConvTranspose in groups, where each channel has one pixel
of a window for its weights.

Spread       y[q·s + begin] = x[q], 0 elsewhere;  gx[q] = gy[q·s + begin].  Negative begin and end crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import starmap

import numpy as np
from numpy.typing import NDArray

from ..errors import counted
from ..graph.geometry import Axis
from ..graph.op import ChannelsLast, Op, Target
from ..graph.shapes import Order, Shape
from .conv.conv import convolution, read_kernel
from .facts import Fact
from .folded import as_convolution, as_inferred
from .node import Node
from .step import Clipped, Context, Floats, GradientSlot, Step
from .window import MAX_PIXELS, Sliding, check_room, read_sliding, spatial_sizes
from .written import Rewriter, Writer


@dataclass(frozen=True)
class Spread(ChannelsLast):
    """Puts pixels at distances of `step` and fills the gaps with zeros.

    `begin` and `end` are zeros before the first and behind the last pixel; negative numbers crop.  Each field
    has one number for each spatial axis.
    """

    step: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    def shape(self, *x: Shape) -> Shape:
        axes = zip(x[0][2:], self.step, self.begin, self.end, strict=True)
        return *x[0][:2], *((n - 1) * step + 1 + begin + end for n, step, begin, end in axes)

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return SpreadStep(self.cells(x[0]))

    def cells(self, x: Shape) -> list[tuple[slice, slice]]:
        """For each spatial axis, the pixels of x (N, C, …) that are not cropped, and their places."""
        return list(starmap(_cells, zip(x[2:], self.shape(x)[2:], self.step, self.begin, strict=True)))


def _cells(n: int, size: int, step: int, begin: int) -> tuple[slice, slice]:
    """Which of n pixels are not cropped, and their places on an axis of `size`."""
    first = max(0, -(begin // step))
    last = min(n - 1, (size - 1 - begin) // step)
    if last < first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last + 1), slice(begin + first * step, begin + last * step + 1, step)


def parse(node: Node) -> tuple[Op, ...]:
    w, spread, axes, group = read_transposed(node)
    if max(spread.step) == 1 and min(*spread.begin, *spread.end) >= 0:
        sides = zip(spatial_sizes(node), axes, spread.begin, spread.end, strict=True)
        padded = [_axis(size, axis.kernel, axis.dilation, *pads) for size, axis, *pads in sides]
        return (convolution(node, w, padded, group),)
    return spread, convolution(node, w, axes, group)


def read_transposed(node: Node) -> tuple[NDArray[np.float32], Spread, list[Axis], int]:
    """The convolution of spread pixels that is the same.

    Returns its weights (O, C / group, …), how pixels are spread, the window over them along each spatial
    axis, and the number of groups.
    """
    size, C = spatial_sizes(node), node.shape(0)[1]
    w = node.constant(1)
    if w.ndim != 2 + len(size) or len(w) != C or w.size == 0:
        node.invalid(
            f"weights have shape {list(w.shape)}, expected ({C}, O / group) and {len(size)} spatial axes."
        )
    group = node.integer("group", 1)
    if group < 1 or C % group:
        node.invalid(f"{C} input channels cannot be divided into {group} groups.")
    sliding = read_sliding(node, read_kernel(node, w))
    begin, end = _pads(node, size, sliding)
    spread = Spread(sliding.stride, begin, end)
    padded = spread.shape((1, C, *size))[2:]
    check_room(node, padded)
    taps = zip(padded, sliding.kernel, sliding.dilation, strict=True)
    return _as_convolution(w, group), spread, [_axis(*each, 0, 0) for each in taps], group


def _axis(size: int, kernel: int, dilation: int, begin: int, end: int) -> Axis:
    """A window with stride 1."""
    return Axis(size, kernel, 1, dilation, begin, end)


def _as_convolution(w: NDArray[np.float32], group: int) -> NDArray[np.float32]:
    """Weights (C, O / group, …) as those of a convolution: (O, C / group, …), flipped along spatial axes."""
    C, O, *kernel = w.shape
    parts = w.reshape(group, C // group, O, *kernel).swapaxes(1, 2)
    flipped = parts.reshape(group * O, C // group, *kernel)
    return np.flip(flipped, axis=tuple(range(2, w.ndim)))


def _pads(node: Node, size: Shape, sliding: Sliding) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The padding around the spread pixels, at the begin and at the end of each axis.

    An output_shape fixes how much is cut; SAME means an output_shape of size · stride.  An odd cell is cut at
    the end by SAME_UPPER, else at the begin.  Cells that no window fills are at the end.
    """
    extra = node.integers("output_padding", (0,) * len(size))
    wanted = node.integers("output_shape")
    for name, values in (("output_padding", extra), ("output_shape", wanted)):
        if values is not None and len(values) != len(size):
            node.refuse(
                f"{name} has {counted(len(values), 'value')}.", supported=f"one for each of {len(size)} axes"
            )
    if min(extra) < 0 or (wanted is not None and min(wanted) < 1):
        node.invalid(f"output_padding is {extra}, output_shape {wanted}.")
    if max((*extra, *(wanted or ()))) > MAX_PIXELS:
        node.refuse(
            f"output_padding is {extra}, output_shape {wanted}.", supported=f"up to {MAX_PIXELS} each"
        )
    if wanted is None and sliding.auto_pad.startswith("SAME"):
        wanted = tuple(n * step for n, step in zip(size, sliding.stride, strict=True))
    begins, ends = [], []
    for i, extent in enumerate(sliding.extents):
        full = (size[i] - 1) * sliding.stride[i] + extent + extra[i]
        if wanted is not None:
            half = max(0, full - wanted[i]) / 2
            begin = math.floor(half) if sliding.auto_pad == "SAME_UPPER" else math.ceil(half)
            end = full - wanted[i] - begin
        elif sliding.auto_pad == "VALID":
            begin = end = 0
        else:
            begin, end = sliding.pads[i], sliding.pads[i + len(size)]
        if full - begin - end < 1:
            node.invalid(f"nothing is left of {full} pixels without pads of {begin} and {end}.")
        begins.append(extent - 1 - begin)
        ends.append(extent - 1 - end + extra[i])
    return tuple(begins), tuple(ends)


def col2im(node: Node, w: Writer) -> None:
    columns, window = node.shape(0, rank=3)[1:]
    sizes, kernel = node.constant_ints(1), node.constant_ints(2)
    rank, taps = len(kernel), math.prod(kernel)
    if not 1 <= rank <= 3 or len(sizes) != rank or min(kernel) < 1 or columns % taps:
        node.invalid(f"blocks of {list(kernel)} in an image of {list(sizes)} do not part {columns} columns.")
    if columns * taps > MAX_PIXELS:
        node.refuse(
            f"{columns} columns hold windows of {taps} pixels.", supported=f"up to {MAX_PIXELS} in all"
        )
    strides, dilations, pads = (
        node.integers(name, default)
        for name, default in (("strides", [1] * rank), ("dilations", [1] * rank), ("pads", [0] * 2 * rank))
    )
    if len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank or min(strides) < 1:
        node.invalid(f"strides {strides}, dilations {dilations}, pads {pads} do not fit {rank} axes.")
    room = [n + pads[i] + pads[i + rank] - dilations[i] * (kernel[i] - 1) - 1 for i, n in enumerate(sizes)]
    places = [n // stride + 1 for n, stride in zip(room, strides, strict=True)]
    if min(room) < 0 or math.prod(places) != window:
        node.invalid(f"an image of {list(sizes)} has windows at {places}, and the input {window}.")
    one_each = np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel)
    w.write(
        "ConvTranspose",
        w.reshaped(node.proto.input[0], (0, columns, *places)),
        w.constant(np.tile(one_each, (columns // taps, *[1] * (rank + 1)))),
        to=node.proto.output[0],
        group=columns // taps,
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=[n % stride for n, stride in zip(room, strides, strict=True)],
    )


PARSERS = {"ConvTranspose": parse}

REWRITERS: dict[str, Rewriter] = {"Col2Im": col2im}

FACTS = {
    "ConvTranspose": Fact("made", reads_planes=True, slides=True, folds=as_convolution),
    "Col2Im": Fact("kept", folds=as_inferred),
}


class SpreadStep(Step):
    """Copies the pixels that are not cropped, `kept` of x, to their places, `to` in y."""

    algorithm = "spread"

    def __init__(self, cells: list[tuple[slice, slice]]) -> None:
        kept, to = zip(*cells, strict=True)
        self.kept, self.to = (slice(None), *kept), (slice(None), *to)

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        y.fill(0)
        y[self.to] = x[0][self.kept]

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (g,) = gx
        g.begin(context.threads)
        g.array[self.kept] += gy[self.to]
