"""Convolution (ONNX Conv).  The equations are for two spatial axes; with one or three they are the same.

    y[n, o, oh, ow]  = Σ_{c, i, j} x[n, c, oh·sh + i·dh − top, ow·sw + j·dw − left] · w[o, c, i, j] + b[o]
    gx[n, c, h, w]   = Σ_{o, i, j} gy[n, o, (h + top − i·dh) / sh, (w + left − j·dw) / sw] · w[o, c, i, j]
                       over the (i, j) for which both divisions have no remainder and give a pixel of gy

o runs over the output channels of c's group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Axis, Window
from ...graph.op import ChannelsLast, Target
from ...graph.shapes import Order, Shape
from ...kernels.codegen.emit import TILE_ROWS
from ...kernels.codegen.jit import Kernel
from ...kernels.codegen.tile import TILE_CHANNELS
from ...kernels.conv_lists import SLID_CHANNELS
from ...kernels.depthwise import depthwise_bwd, depthwise_fwd
from ...kernels.depthwise_dense import WIDTHS, dense_kernels
from ...limits import ELEMENT, OPERAND, elements
from ..facts import Fact
from ..folded import as_convolution
from ..node import Node
from ..planes import by_planes
from ..pool import AveragePoolStep, MaxPoolStep
from ..step import Clipped, Context, Floats, GradientSlot, Step
from ..window import planes_of, read_axes, reverse_work, spatial_outputs, spatial_sizes, taps_of
from .algorithms import ColumnsBackward
from .algorithms_digits import digits_bytes
from .algorithms_lists import ListsBackward, SparseBackward
from .choice import algorithms_for, is_3x3, packed_bytes, whole
from .volume import VolumeStep

#: Most kernel calls of one convolution: one for each group, unless it is depthwise, and each tap of the
#: depth.
_MAX_GROUPS = 2**12


@dataclass(frozen=True, eq=False)
class Conv(ChannelsLast):
    """A convolution.

    Parameters
    ----------
    w
        (O, C / group, KH, KW), or with `depth` (O, C / group, KD, KH, KW).  float32, or float64 after
        folding.
    b
        float64 (O,).
    window
        The window over the last two axes of x, or over the only spatial axis.
    group
        The number of groups of channels.
    depth
        The window along the third last axis; None without it.
    """

    w: NDArray[Any]
    b: NDArray[np.float64]
    window: Window
    group: int
    depth: Axis | None = None

    @property
    def parameters(self) -> int:
        return self.w.size + self.b.size

    def macs(self, y: Shape) -> int:
        return elements(y[1:]) * elements(self.w.shape[1:])

    @property
    def is_depthwise(self) -> bool:
        return self.group > 1 and self.w.shape[1] == 1 and len(self.w) == self.group

    @property
    def calls(self) -> int:
        """Calls of kernels, each with packed weights of its own."""
        return (1 if self.is_depthwise else self.group) * self._deep

    @property
    def planning(self) -> int:
        return 1 + self.calls

    @property
    def is_padded(self) -> bool:
        sides = (self.window.height, self.window.width, *([self.depth] if self.depth else []))
        return any(side.begin or side.end for side in sides)

    @property
    def _deep(self) -> int:
        """Taps along the depth."""
        return self.depth.kernel if self.depth else 1

    @property
    def _packed(self) -> tuple[int, int]:
        """How many weights the forward and the backward kernel hold, padded to whole tiles."""
        O, C = len(self.w) // self.group, self.w.shape[1]
        each = self.group * self.window.taps * self._deep
        return each * whole(O, TILE_CHANNELS) * C, each * O * whole(C, TILE_CHANNELS)

    @property
    def nbytes(self) -> int:
        if self.is_depthwise:
            return 12 * self.w.size
        O, C = len(self.w) // self.group, self.w.shape[1]
        taps = self.group * self.window.taps * self._deep
        digits = taps * (digits_bytes(O, C) + digits_bytes(C, O))
        if not is_3x3(self.window):
            # The lists of `SparseBackward` have a copy of their own.
            listed = 4 * taps * O * whole(C, TILE_CHANNELS) if self.window.taps == 1 else 0
            return 8 * self.w.size + taps * (packed_bytes(O, C) + packed_bytes(C, O)) + listed + digits
        # Winograd's transform makes 36 weights of 9, and lists hold a copy of their own.
        listed = 9 * self._deep * len(self.w) * whole(C, SLID_CHANNELS)
        return 8 * self.w.size + 4 * (4 * sum(self._packed) + listed) + digits

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        pairs = planes_of(y) * self._deep  # (plane of y, plane of x that it reads)
        backward = 0
        if self.is_depthwise or not self.window.is_unstrided:
            backward = pairs * reverse_work(self.window, x[0][1])
        calls = 6 * OPERAND * self.calls if self.depth else 0
        if self.is_depthwise:
            moved = ELEMENT * self._deep * elements(y)
            return super().work(x, y) + 8 * self.macs(y) + backward + moved + calls
        h, w = self.window.height, self.window.width
        rows = (y[-2] if len(y) > 3 else 1) * whole(y[-1], TILE_ROWS), h.size * whole(w.size, TILE_ROWS)
        padded = x[0][1] * (h.size + h.begin + h.end) * (w.size + w.begin + w.end)
        tiles = planes_of(y) * sum(
            weights * pixels for weights, pixels in zip(self._packed, rows, strict=True)
        )
        handled = ELEMENT * (pairs * padded + self._deep * elements(y)) + 4 * OPERAND * self.group
        return tiles + handled + backward + calls

    def shape(self, *x: Shape) -> Shape:
        spatial = spatial_outputs(x[0], self.window)
        return x[0][0], len(self.w), *((self.depth.outputs, *spatial[1:]) if self.depth else spatial)

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        if self.depth is None:
            return by_planes(self._flat_step(target), x[0])
        none = np.zeros_like(self.b)
        taps = [replace(self, w=self.w[:, :, k], b=none, depth=None) for k in range(self.depth.kernel)]
        b = target.constant(self.b.astype(np.float32))
        return VolumeStep([tap._flat_step(target) for tap in taps], b, self.depth)

    def _flat_step(self, target: Target) -> Step:
        return DepthwiseStep(self, target) if self.is_depthwise else ConvStep(self, target)


def parse(node: Node) -> Conv:
    return convolution(node, *read_conv(node))


def read_conv(node: Node) -> tuple[NDArray[np.float32], tuple[Axis, ...], int]:
    """Weights (O, C / group, …), the window along each spatial axis, and the number of groups."""
    size, C = spatial_sizes(node), node.shape(0)[1]
    w = node.constant(1)
    if w.ndim != 2 + len(size):
        node.invalid(
            f"weights have shape {list(w.shape)}, expected (O, C / group) and {len(size)} spatial axes."
        )
    group = node.integer("group", 1)
    if group < 1 or w.size == 0 or len(w) % group or w.shape[1] * group != C:
        node.invalid(f"{C} input channels in {group} groups do not fit weights of shape {list(w.shape)}.")
    return w, read_axes(node, read_kernel(node, w)), group


def read_kernel(node: Node, w: NDArray[np.float32]) -> tuple[int, ...]:
    """The spatial sizes of weights w.  The attribute kernel_shape must agree, where there is one."""
    kernel = node.integers("kernel_shape", w.shape[2:])
    if kernel != w.shape[2:]:
        node.invalid(f"kernel_shape {kernel} differs from the weights' shape {list(w.shape)}.")
    return kernel


def convolution(node: Node, w: NDArray[np.float32], axes: Sequence[Axis], group: int) -> Conv:
    """The convolution with weights w (O, C / group, …) and the bias in input 2, over one to three `axes`."""
    O = len(w)
    b = node.constant(2) if node.has(2) else np.zeros(O, np.float32)
    if b.shape != (O,):
        node.invalid(f"bias has shape {list(b.shape)}, expected ({O},).")
    depth = None
    if len(axes) == 1:
        w = w[:, :, None]
    elif len(axes) == 3 and axes[0].is_point:
        w = w[:, :, 0]
    elif len(axes) == 3:
        depth = axes[0]
    conv = Conv(w, b.astype(np.float64), Window.over_plane(axes), group, depth=depth)
    if conv.calls > _MAX_GROUPS:
        found = f"it has {group} groups" + (f" and {depth.kernel} taps along the depth." if depth else ".")
        node.refuse(found, supported=f"up to {_MAX_GROUPS} in all, or one group for each channel")
    return conv


PARSERS = {"Conv": parse}

FACTS = {"Conv": Fact("made", reads_planes=True, slides=True, folds=as_convolution)}


class ConvStep(Step):
    """A forward and a backward algorithm for each group, on the channels of that group."""

    fuses_residual = True

    def __init__(self, op: Conv, target: Target) -> None:
        # A group's bits of a mask can be addressed only if its channels fill whole bytes.
        self.gates = op.group == 1 or op.w.shape[1] % 8 == 0
        self.fuses_clip = op.group == 1 or len(op.w) // op.group % 8 == 0
        parts = op.w.reshape(op.group, -1, *op.w.shape[1:])
        C, O = op.w.shape[1], len(op.w) // op.group
        self.groups = [(slice(g * C, (g + 1) * C), slice(g * O, (g + 1) * O)) for g in range(op.group)]
        biases = op.b.reshape(op.group, -1)
        forward, backward = algorithms_for(target)
        self.fwd = [forward(w, b, op.window, target) for w, b in zip(parts, biases, strict=True)]
        self.bwd = [backward(w, op.window, target) for w in parts]
        self.kernels = *self.fwd[0].kernels, *self.bwd[0].kernels
        names = dict.fromkeys((self.fwd[0].algorithm, self.bwd[0].algorithm))
        groups = f", {op.group} groups" if op.group > 1 else ""
        self.algorithm = f"{'×'.join(map(str, op.window.kernel))} {' / '.join(names)}{groups}"
        self.repeats = all(fwd.repeats for fwd in self.fwd)
        self.repeats_back = all(bwd.repeats for bwd in self.bwd)
        self.adds_up = isinstance(self.bwd[0], ColumnsBackward)

    def scratch(self, threads: int) -> tuple[int, int]:
        fwd, bwd = self.fwd[0].scratch(threads), self.bwd[0].scratch(threads)
        return max(fwd[0], bwd[0]), max(fwd[1], bwd[1])

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        if len(self.groups) == 1:  # making slices takes as long as a small layer
            self.fwd[0](x[0], r, y, clip, context)
            return
        for fwd, (ins, outs) in zip(self.fwd, self.groups, strict=True):
            own = replace(context, mask=context.mask[..., outs.start // 8 :])
            fwd(x[0][..., ins], r[..., outs], y[..., outs], clip, own)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (whole,) = gx
        if len(self.groups) == 1:
            self.bwd[0](gy, whole, context)
            return
        for bwd, (ins, outs) in zip(self.bwd, self.groups, strict=True):
            own = replace(whole, array=whole.array[..., ins], mask=whole.mask[..., ins.start // 8 :])
            bwd(gy[..., outs], own, context)

    def takes_in(self, reader: Step) -> bool:
        own = self.bwd[0]
        if len(self.bwd) > 1:
            return False
        if isinstance(reader, AveragePoolStep):
            return reader.is_global and isinstance(own, SparseBackward) and own.takes_in_average
        is_pool = isinstance(reader, MaxPoolStep) and reader.switches is np.uint8
        return is_pool and isinstance(own, ColumnsBackward | ListsBackward) and own.takes_in_pool

    def vjp_through(
        self,
        reader: Step,
        gy: Floats,
        read: Context,
        between: GradientSlot,
        gx: tuple[GradientSlot, ...],
        context: Context,
    ) -> None:
        (algorithm,) = self.bwd
        if isinstance(algorithm, SparseBackward):
            algorithm.through_average(gy, reader, between, gx[0], context)
            return
        assert isinstance(reader, MaxPoolStep)  # as `takes_in` says
        if isinstance(algorithm, ListsBackward):
            algorithm.through_pool(gy, reader, read, between, gx[0], context)
            return
        assert isinstance(algorithm, ColumnsBackward)
        algorithm.through_pool(gy, read.switches, reader.taps, between, gx[0], context)


class DepthwiseStep(Step):
    """One filter for each channel.  Vectors run over channels, and taps outside the image are left out."""

    repeats = repeats_back = True
    gates = True
    fuses_residual = True
    fuses_clip = True

    def __init__(self, op: Conv, target: Target) -> None:
        self.taps = taps_of(op.window)
        #: Whether the kernels for neighbours apply.  They change no bit; a card has one way only.
        plain = self.taps.stride_h, self.taps.stride_w, self.taps.dilation_h, self.taps.dilation_w
        self.is_dense = target.name == "cpu" and plain == (1, 1, 1, 1) and self.taps.columns in WIDTHS
        w = np.array(op.w[:, 0].transpose(1, 2, 0), np.float32, order="C").reshape(-1)
        self.w, self.b = target.constant(w), target.constant(op.b.astype(np.float32))
        self.algorithm = "depthwise " + "×".join(map(str, op.window.kernel))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        forward, _ = self._kernels
        forward(
            x[0],
            self.w,
            self.b,
            r,
            y,
            context.mask,
            self.taps,
            clip.lo,
            clip.hi,
            context.threads,
        )

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        g = gx[0]
        _, backward = self._kernels
        backward(gy, self.w, *g.arguments, self.taps, context.threads)

    @property
    def _kernels(self) -> tuple[Kernel, Kernel]:
        return dense_kernels(self.taps.columns) if self.is_dense else (depthwise_fwd, depthwise_bwd)
