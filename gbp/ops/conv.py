"""Convolution (ONNX Conv, two spatial axes).

    y[n, o, oh, ow]  = Σ_{c, i, j} x[n, c, oh·sh + i·dh − top, ow·sw + j·dw − left] · w[o, c, i, j] + b[o]
    gx[n, c, h, w]   = Σ_{o, i, j} gy[n, o, (h + top − i·dh) / sh, (w + left − j·dw) / sw] · w[o, c, i, j]
                       over the (i, j) that divide and lie inside

with o running over the channels of c's group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..geometry import Window
from ..graph import Shape
from ..kernels.conv_winograd import MATRICES, SQUARE
from ..kernels.depthwise import depthwise_bwd, depthwise_fwd
from ..kernels.emit import LANES, TILE_ROWS
from ..kernels.tile import TILE_CHANNELS
from ..limits import ELEMENT, OPERAND, elements
from .conv_ways import (
    ColumnsReverse,
    DirectForward,
    DirectReverse,
    Forward,
    Reverse,
    WinogradForward,
    WinogradReverse,
)
from .node import Node
from .op import CHANNELS_LAST, Clipped, Floats, Gradient, Op, Order, Saved, Step
from .window import read_window, reverse_work, taps_of

#: With so few channels in gx, vectors of channels would run nearly empty: columns run full.
_FEW_CHANNELS = LANES // 2
#: Each group that is not one channel is a kernel call of its own.
_MOST_GROUPS = 2**12


def _whole(count: int, tile: int) -> int:
    return -(-count // tile) * tile


@dataclass(frozen=True, eq=False)
class Conv(Op):
    """w (O, C / group, KH, KW) and b (O,), float64 so that folding loses nothing."""

    w: NDArray[np.float64]
    b: NDArray[np.float64]
    window: Window
    group: int

    @property
    def parameters(self) -> int:
        return self.w.size + self.b.size

    def macs(self, y: Shape) -> int:
        return elements(y[1:]) * elements(self.w.shape[1:])

    @property
    def is_depthwise(self) -> bool:
        return self.group > 1 and self.w.shape[1] == 1 and len(self.w) == self.group

    @property
    def _packed(self) -> tuple[int, int]:
        """Weights of the forward and of the reverse kernel, with what fills up the tiles."""
        O, C = len(self.w) // self.group, self.w.shape[1]
        each = self.group * self.window.taps
        return each * _whole(O, TILE_CHANNELS) * C, each * O * _whole(C, TILE_CHANNELS)

    @property
    def nbytes(self) -> int:
        return 8 * self.w.size + (4 * self.w.size if self.is_depthwise else 4 * sum(self._packed))

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        reverse = 0 if self.window.is_dense and not self.is_depthwise else reverse_work(self.window, x[0][1])
        if self.is_depthwise:
            return super().work(x, y) + 8 * self.macs(y) + reverse
        h, w = self.window.height, self.window.width
        rows = (y[2] * _whole(y[3], TILE_ROWS), x[0][2] * _whole(x[0][3], TILE_ROWS))
        padded = x[0][1] * (h.size + h.begin + h.end) * (w.size + w.begin + w.end)
        tiles = sum(weights * pixels for weights, pixels in zip(self._packed, rows, strict=True))
        handled = ELEMENT * (padded + elements(y)) + 4 * OPERAND * self.group
        return tiles + handled + reverse

    def shape(self, *x: Shape) -> Shape:
        return x[0][0], len(self.w), *self.window.output

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        return (CHANNELS_LAST,), CHANNELS_LAST

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order) -> Step:
        return DepthwiseStep(self) if self.is_depthwise else ConvStep(self)


def parse(node: Node) -> Conv:
    C, H, W = node.shape(0, rank=4)[1:]
    w = node.constant(1)
    if w.ndim != 4:
        node.invalid(f"weights have shape {list(w.shape)}, expected (O, C / group, KH, KW).")
    O = w.shape[0]
    group = node.integer("group", 1)
    if group < 1 or w.size == 0 or O % group or w.shape[1] * group != C:
        node.invalid(f"{C} input channels in {group} groups do not fit weights of shape {list(w.shape)}.")
    kernel = node.integers("kernel_shape", w.shape[2:])
    if kernel != w.shape[2:]:
        node.invalid(f"kernel_shape {kernel} differs from the weights' shape {list(w.shape)}.")
    b = node.constant(2) if node.has(2) else np.zeros(O, np.float32)
    if b.shape != (O,):
        node.invalid(f"bias has shape {list(b.shape)}, expected ({O},).")
    window = read_window(node, (H, W), kernel)
    if group > _MOST_GROUPS and not group == O == C:
        node.refuse(f"it has {group} groups.", supported=f"up to {_MOST_GROUPS}, or one for each channel")
    return Conv(w.astype(np.float64), b.astype(np.float64), window, group)


PARSERS = {"Conv": parse}


def _winograd_pays(window: Window, O: int, C: int, plane: tuple[int, int]) -> bool:
    """Whether 3×3 windows over O × C weights, to a plane of that size, cost less by Winograd's transforms.

    In vector multiply-adds of a core: the products, and per square the transforms as measured.
    """
    fits = window.kernel == (3, 3) and window.is_dense and window.is_undilated
    blocks, vectors = _whole(O, TILE_CHANNELS) // LANES, _whole(C, LANES) // LANES
    squares = -(-plane[0] // SQUARE) * -(-plane[1] // SQUARE)
    winograd = squares * (MATRICES * C * blocks + 440 * vectors + 380 * blocks)
    return fits and winograd < elements(plane) * (9 * C * blocks + 6 * blocks)


class ConvStep(Step):
    """One way forward and one way back for each group, on the channels that are its own."""

    fuses_residual = True

    def __init__(self, op: Conv) -> None:
        # The masks of a group can be addressed only where its channels fill whole bytes.
        self.gates = op.group == 1 or op.w.shape[1] % 8 == 0
        self.fuses_clip = op.group == 1 or len(op.w) // op.group % 8 == 0
        parts = op.w.reshape(op.group, -1, *op.w.shape[1:])
        C, O = op.w.shape[1], len(op.w) // op.group
        self.groups = [(slice(g * C, (g + 1) * C), slice(g * O, (g + 1) * O)) for g in range(op.group)]
        biases = op.b.reshape(op.group, -1)
        self.ways = [_forward(w, b, op.window) for w, b in zip(parts, biases, strict=True)]
        self.ways_back = [_reverse(w, op.window) for w in parts]
        kernel = "×".join(map(str, op.window.kernel))
        self.how = f"{self.ways[0].how} {kernel}" + (f" in {op.group} groups" if op.group > 1 else "")

    def scratch(self, threads: int) -> tuple[int, int]:
        forward, reverse = self.ways[0].scratch(threads), self.ways_back[0].scratch(threads)
        return max(forward[0], reverse[0]), max(forward[1], reverse[1])

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, saved: Saved) -> None:
        for way, (ins, outs) in zip(self.ways, self.groups, strict=True):
            own = replace(saved, mask=saved.mask[..., outs.start // 8 :])
            way(x[0][..., ins], r[..., outs], y[..., outs], clip, own)

    def vjp(self, gy: Floats, gx: tuple[Gradient, ...], saved: Saved) -> None:
        (whole,) = gx
        for way, (ins, outs) in zip(self.ways_back, self.groups, strict=True):
            own = replace(whole, array=whole.array[..., ins], mask=whole.mask[..., ins.start // 8 :])
            way(gy[..., outs], own, saved)


def _forward(w: NDArray[np.float64], b: NDArray[np.float64], window: Window) -> Forward:
    """The way that costs least."""
    if _winograd_pays(window, len(w), w.shape[1], window.output):
        return WinogradForward(w, b, window)
    return DirectForward(w.astype(np.float32), b, window)


def _reverse(w: NDArray[np.float64], window: Window) -> Reverse:
    O, C = w.shape[:2]
    if not window.is_dense or (C <= _FEW_CHANNELS and window.taps > 1):
        return ColumnsReverse(w.astype(np.float32), window)
    if _winograd_pays(window, C, O, window.size):
        return WinogradReverse(w, window)
    return DirectReverse(w.astype(np.float32), window)


class DepthwiseStep(Step):
    """One filter a channel: vectors of channels, no reduction over them, taps clipped at the border."""

    gates = True
    fuses_residual = True
    fuses_clip = True

    def __init__(self, op: Conv) -> None:
        self.taps = taps_of(op.window)
        self.begin = op.window.height.begin, op.window.width.begin
        self.w = np.ascontiguousarray(op.w[:, 0].transpose(1, 2, 0), np.float32).reshape(-1)
        self.b = op.b.astype(np.float32)
        self.how = "depthwise " + "×".join(map(str, op.window.kernel))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, saved: Saved) -> None:
        depthwise_fwd(
            x[0], self.w, self.b, r, y, saved.mask, self.taps, *self.begin, clip.lo, clip.hi, saved.threads
        )

    def vjp(self, gy: Floats, gx: tuple[Gradient, ...], saved: Saved) -> None:
        g = gx[0]
        depthwise_bwd(gy, self.w, *g.end, self.taps, *self.begin, saved.threads)
