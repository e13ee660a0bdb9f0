"""Convolution (ONNX Conv, two spatial axes).

    y[n, o, oh, ow]  = Σ_{c, i, j} x[n, c, oh·sh + i·dh − top, ow·sw + j·dw − left] · w[o, c, i, j] + b[o]
    gx[n, c, h, w]   = Σ_{o, i, j} gy[n, o, (h + top − i·dh) / sh, (w + left − j·dw) / sw] · w[o, c, i, j]
                       over the (i, j) that divide and lie inside

with o running over the channels of c's group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import Window
from ..graph import Shape
from ..kernels.columns import col2im
from ..kernels.conv_direct import conv_bwd, conv_fwd, pack, pad
from ..kernels.depthwise import depthwise_bwd, depthwise_fwd
from ..kernels.emit import LANES, TILE_ROWS
from ..kernels.memory import aligned
from ..kernels.taps import POINTWISE
from ..kernels.tile import TILE_CHANNELS, TILE_FLOATS
from ..limits import ELEMENT, OPERAND, elements
from .node import Node
from .op import CHANNELS_LAST, NO_MASK, NO_TENSOR, Clipped, Floats, Gradient, Op, Order, Saved, Step
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


def _padded_bias(b: NDArray[Any]) -> Floats:
    """b up to whole tiles."""
    padded = aligned((-(-len(b) // TILE_CHANNELS) * TILE_CHANNELS,))
    padded[:] = 0
    padded[: len(b)] = b
    return padded


def _as_row(x: NDArray[Any]) -> NDArray[Any]:
    """All pixels of a dense (N, H, W, C) in one row, so that tiles are full."""
    return x.reshape(x.shape[0], 1, -1, x.shape[3]) if x.size else x


def _scratch_of(saved: Saved) -> tuple[Floats, Floats]:
    """Scratch for one tile a thread, and the rest."""
    floats = saved.threads * TILE_FLOATS
    return saved.scratch[:floats], saved.scratch[floats:]


def _framed(x: Floats, plane: tuple[int, int], top: int, left: int, scratch: Floats, threads: int) -> Floats:
    """x laid into planes of zeros at (top, left), in scratch."""
    shape = len(x), *plane, x.shape[3]
    framed = scratch[: int(np.prod(shape))].reshape(shape)
    pad(x, framed, top, left, threads)
    return framed


class ConvStep(Step):
    """Direct tile kernels.  The reverse of stride 1 is the forward kernel with flipped, transposed weights;
    other strides, and gradients of few channels, multiply into columns and gather them.
    """

    fuses_residual = True

    def __init__(self, op: Conv) -> None:
        self.window, self.group = op.window, op.group
        # The masks of a group can be addressed only where its channels fill whole bytes.
        self.gates = op.group == 1 or op.w.shape[1] % 8 == 0
        self.fuses_clip = op.group == 1 or len(op.w) // op.group % 8 == 0
        self.taps = taps_of(op.window)
        w = op.w.astype(np.float32)
        self.channels = w.shape[1] * op.group
        self.per_group = w.shape[1], len(w) // op.group
        self.by_columns = not self.window.is_dense or (w.shape[1] <= _FEW_CHANNELS and self.window.taps > 1)
        # Threads share what is larger, a sample's pixels or the weights; the other they all read.
        self.by_rows = int(np.prod(op.window.size) * self.channels > w.size)
        kernel = "×".join(map(str, op.window.kernel))
        self.how = f"direct {kernel}" + (f" in {op.group} groups" if op.group > 1 else "")

        groups = w.reshape(op.group, -1, *w.shape[1:])
        self.w = [pack(part) for part in groups]
        self.b = [_padded_bias(part) for part in op.b.reshape(op.group, -1)]
        self.w_bwd = [pack(self._reversed(part)) for part in groups]
        self.no_bias = _padded_bias(np.zeros(self.window.taps * w.shape[1]))

    def _reversed(self, w: Floats) -> Floats:
        """Weights (O, C, KH, KW) of one group as the reverse pass multiplies gy with them."""
        if self.by_columns:  # row (i·KW + j)·C + c of the columns
            return w.transpose(2, 3, 1, 0).reshape(-1, len(w), 1, 1)
        return w.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]

    # How much room the padded planes take: x for the forward, gy for the reverse.

    def _input_plane(self) -> tuple[int, int]:
        h, w = self.window.height, self.window.width
        return (h.outputs - 1) * h.stride + h.extent, (w.outputs - 1) * w.stride + w.extent

    def _gradient_plane(self) -> tuple[int, int]:
        h, w = self.window.height, self.window.width
        return h.size + h.extent - 1, w.size + w.extent - 1

    def _columns_shape(self) -> tuple[int, int, int, int]:
        return 1, *self.window.output, self.window.taps * self.per_group[0]

    def scratch(self, threads: int) -> tuple[int, int]:
        fixed = threads * TILE_FLOATS
        if self.by_columns:
            fixed += int(np.prod(self._columns_shape()))
        x_plane, g_plane = self._input_plane(), self._gradient_plane()
        outputs = self.per_group[1] * self.group
        return fixed, max(x_plane[0] * x_plane[1] * self.channels, g_plane[0] * g_plane[1] * outputs)

    def _groups(self) -> list[tuple[slice, slice]]:
        """The input and output channels of each group."""
        C, O = self.per_group
        return [(slice(g * C, (g + 1) * C), slice(g * O, (g + 1) * O)) for g in range(self.group)]

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, saved: Saved) -> None:
        (source,), mask = x, saved.mask
        tile, rest = _scratch_of(saved)
        h, w = self.window.height, self.window.width
        if self.window.is_pointwise:
            source, r, y, mask = _as_row(source), _as_row(r), _as_row(y), _as_row(mask)
        elif self._input_plane() != self.window.size or h.begin or w.begin:
            source = _framed(source, self._input_plane(), h.begin, w.begin, rest, saved.threads)
        shared = tile, self.taps, clip.lo, clip.hi, self.by_rows, saved.threads
        for g, (ins, outs) in enumerate(self._groups()):
            out = r[..., outs], y[..., outs], mask[..., outs.start // 8 :]
            conv_fwd(source[..., ins], self.w[g], self.b[g], *out, *shared)

    def vjp(self, gy: Floats, gx: tuple[Gradient, ...], saved: Saved) -> None:
        if self.by_columns:
            self._vjp_columns(gy, gx[0], saved)
        else:
            self._vjp_dense(gy, gx[0], saved)

    def _vjp_dense(self, gy: Floats, gx: Gradient, saved: Saved) -> None:
        tile, rest = _scratch_of(saved)
        h, w = self.window.height, self.window.width
        target, mask = gx.array, gx.mask
        if self.window.is_pointwise:
            gy, target, mask = _as_row(gy), _as_row(target), _as_row(mask)
        elif self.window.taps > 1 or self.window.size != self.window.output:
            top, left = h.extent - 1 - h.begin, w.extent - 1 - w.begin
            gy = _framed(gy, self._gradient_plane(), top, left, rest, saved.threads)
        shared = int(gx.accumulate), tile, self.taps, self.by_rows, saved.threads
        for g, (ins, outs) in enumerate(self._groups()):
            gate = mask[..., ins.start // 8 :], gx.gate
            conv_bwd(gy[..., outs], self.w_bwd[g], *gate, target[..., ins], *shared)

    def _vjp_columns(self, gy: Floats, gx: Gradient, saved: Saved) -> None:
        tile, rest = _scratch_of(saved)
        shape = self._columns_shape()
        columns = rest[: int(np.prod(shape))].reshape(shape)
        begin = self.window.height.begin, self.window.width.begin
        multiply = _as_row(columns), NO_MASK, tile, POINTWISE, -np.inf, np.inf, self.by_rows, saved.threads
        gather = int(gx.accumulate), self.taps, *begin, saved.threads
        targets = len(gy) // max(1, len(gx.mask))
        for n in range(len(gy)):
            sample, mask = slice(n, n + 1), gx.mask[n // targets : n // targets + 1]
            for g, (ins, outs) in enumerate(self._groups()):
                row = _as_row(gy[sample, ..., outs])
                conv_fwd(row, self.w_bwd[g], self.no_bias, NO_TENSOR, *multiply)
                col2im(columns, mask[..., ins.start // 8 :], gx.gate, gx.array[sample, ..., ins], *gather)


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
