"""The ways to compute a convolution on a card: tiles in both directions, and columns back to few channels.

A stride parts the pixels of gx into phases.  Pixel x = p + s·q of an axis meets tap k of window o where

    o·s + k·d − begin = p + s·q,    so  k = k₀ + t·s/g,  o = q + (p + begin − k₀·d)/s − t·d/g,  g = gcd(d, s)

for the smallest k₀ that divides, if there is one: so each phase is a convolution of stride 1 with those taps,
whose dilation is d/g.

Cards with tensor cores for TF32 use them, at float32's accuracy (`kernels.conv_tensor_cuda`); others multiply
in registers (`kernels.conv_direct_cuda`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Axis, Window
from ...kernels import conv_tiles_cuda as tensor
from ...kernels.codegen.jit_cuda import tensor_cores
from ...kernels.columns_cuda import col2im
from ...kernels.conv_direct_cuda import KERNELS, conv_bwd, conv_fwd, pack
from ...kernels.sums_cuda import finish_bwd, finish_fwd
from ...kernels.taps import Taps
from ...limits import elements
from ..step import NO_MASK, NO_TENSOR, NO_WEIGHTS, Clipped, Context, Floats, GradientSlot
from ..window import taps_of
from .algorithms import BackwardAlgorithm, ForwardAlgorithm

#: To so few channels the reverse goes by columns: tiles of channels would be mostly empty.
_FEW_CHANNELS = 8
_POINT = Taps(1, 1, 1, 1, 1, 1)


def ways_of(window: Window, products: int) -> tuple[Any, Any]:
    """What makes the forward, given weights and bias, and the reverse, given weights.

    `products`: of the two TF32 numbers that tensor cores take a float32 for, 3 at its accuracy, or 1.
    """
    algorithm = tensor_cores()
    if not how:
        return (lambda w, b: TiledForward(w, b, window)), (lambda w: TiledBackward(w, window))
    conv = tensor.conv_of(how, products)

    def reverse(w: NDArray[Any]) -> BackwardAlgorithm:
        if w.shape[1] <= _FEW_CHANNELS and window.taps > 1:
            return ColumnsBackward(w, window, conv)
        return TensorReverse(w, window, conv)

    return (lambda w, b: TensorForward(w, b, window, conv)), reverse


class TensorForward(ForwardAlgorithm):
    """Any window, on tensor cores."""

    algorithm = "tensor cores"

    def __init__(self, w: NDArray[Any], b: NDArray[Any], window: Window, conv: tensor.Conv) -> None:
        self.kernels = *(forward for forward, _ in conv.kernels.values()), finish_fwd
        self.conv, self.taps = conv, taps_of(window)
        self.w, self.b = tensor.pack(w, conv.products), b.astype(np.float32)
        self.begin = window.height.begin, window.width.begin
        self.pixels = elements(window.output)
        self.parts = tensor.parts_of(self.pixels, len(w), tensor.steps_of(window.taps, w.shape[1]))

    def scratch(self, threads: int) -> tuple[int, int]:
        return tensor.scratch_of(self.pixels, self.b.size, self.parts)

    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        ends = self.taps, *self.begin, clip.lo, clip.hi, self.parts, context.scratch
        self.conv.forward(x, self.w, self.b, r, y, context.mask, *ends)


class TiledForward(ForwardAlgorithm):
    """Any window."""

    algorithm = "tiles"
    kernels = tuple(forward for forward, _ in KERNELS.values())

    def __init__(self, w: NDArray[Any], b: NDArray[Any], window: Window) -> None:
        self.w, self.b, self.taps = pack(w), b.astype(np.float32), taps_of(window)
        self.begin = window.height.begin, window.width.begin

    def scratch(self, threads: int) -> tuple[int, int]:
        return 0, 0

    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        conv_fwd(x, self.w, self.b, r, y, context.mask, self.taps, *self.begin, clip.lo, clip.hi)


@dataclass(frozen=True)
class _Phase:
    """Pixels `start`, `start` + stride, … of an axis of gx: which taps meet them, the last first."""

    start: int
    taps: range
    dilation: int
    begin: int


def _phases(axis: Axis) -> list[_Phase]:
    s, d = axis.stride, axis.dilation
    step, dilation = s // gcd(s, d), d // gcd(s, d)
    phases = []
    for p in range(min(s, axis.size)):
        first = next(
            (k for k in range(min(step, axis.kernel)) if (p + axis.begin - k * d) % s == 0), axis.kernel
        )
        taps = range(first, axis.kernel, step)[::-1]
        offset = (p + axis.begin - first * d) // s
        phases.append(_Phase(p, taps, dilation, max(0, len(taps) - 1) * dilation - offset))
    return phases


class _Phased(BackwardAlgorithm):
    """For each phase of a window's stride a convolution of gy."""

    def __init__(self, w: NDArray[Any], window: Window) -> None:
        self.stride = window.height.stride, window.width.stride
        self.phases = list(product(_phases(window.height), _phases(window.width)))
        exchanged = w.transpose(1, 0, 2, 3)
        self.w = [self.packed(exchanged[:, :, list(h.taps)][..., list(v.taps)]) for h, v in self.phases]

    def packed(self, w: NDArray[Any]) -> NDArray[np.float32]:
        return pack(w)

    def scratch(self, threads: int) -> tuple[int, int]:
        return 0, 0

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        for i, (h, v) in enumerate(self.phases):
            pixels = slice(None), slice(h.start, None, self.stride[0]), slice(v.start, None, self.stride[1])
            taps = Taps(len(h.taps), len(v.taps), 1, 1, h.dilation, v.dilation)
            mask = gx.mask[pixels] if gx.mask.size else gx.mask
            target = mask, gx.gate, gx.array[pixels], int(gx.accumulate)
            self.phase(i, gy, target, (taps, h.begin, v.begin), context.scratch)

    @abstractmethod
    def phase(self, i: int, gy: Floats, target: Any, window: Any, scratch: Floats) -> None:
        """One convolution: to `target`, as `GradientSlot.end` has it, with taps and begins."""


class TiledBackward(_Phased):
    """Any window, in registers."""

    algorithm = "tiles"
    kernels = tuple(reverse for _, reverse in KERNELS.values())

    def phase(self, i: int, gy: Floats, target: Any, window: Any, scratch: Floats) -> None:
        conv_bwd(gy, self.w[i], *target, *window)


class TensorReverse(_Phased):
    """Any window, on tensor cores."""

    algorithm = "tensor cores"

    def __init__(self, w: NDArray[Any], window: Window, conv: tensor.Conv) -> None:
        self.conv, (O, C) = conv, w.shape[:2]
        super().__init__(w, window)
        self.kernels = *(reverse for _, reverse in conv.kernels.values()), finish_bwd
        self.channels = C
        self.pixels = [
            len(range(h.start, window.height.size, self.stride[0]))
            * len(range(v.start, window.width.size, self.stride[1]))
            for h, v in self.phases
        ]
        steps = [tensor.steps_of(len(h.taps) * len(v.taps), O) for h, v in self.phases]
        self.parts = [tensor.parts_of(p, C, s) for p, s in zip(self.pixels, steps, strict=True)]

    def packed(self, w: NDArray[Any]) -> NDArray[np.float32]:
        return tensor.pack(w, self.conv.products)

    def scratch(self, threads: int) -> tuple[int, int]:
        phases = zip(self.pixels, self.parts, strict=True)
        sizes = [tensor.scratch_of(pixels, self.channels, parts) for pixels, parts in phases]
        return max(fixed for fixed, _ in sizes), max(each for _, each in sizes)

    def phase(self, i: int, gy: Floats, target: Any, window: Any, scratch: Floats) -> None:
        (mask, gate, gx, accumulate), (taps, top, left) = target, window
        ends = self.parts[i], scratch
        self.conv.reverse(gy, self.w[i], mask, gate, gx, accumulate, taps, top, left, *ends)


class ColumnsBackward(BackwardAlgorithm):
    """Few channels in gx: gy times the weights gives columns, which gx gathers."""

    algorithm = "columns"

    def __init__(self, w: NDArray[Any], window: Window, conv: tensor.Conv) -> None:
        O, count = len(w), window.taps * w.shape[1]
        self.kernels = *(forward for forward, _ in conv.kernels.values()), col2im
        self.conv, self.taps = conv, taps_of(window)
        self.begin = window.height.begin, window.width.begin
        self.columns = *window.output, -(-count // 4) * 4
        columns = np.zeros((self.columns[-1], O, 1, 1), w.dtype)  # (i·KW + j)·C + c of them
        columns[:count] = w.transpose(2, 3, 1, 0).reshape(count, O, 1, 1)
        self.w, self.b = tensor.pack(columns, conv.products), np.zeros(len(columns), np.float32)

    def scratch(self, threads: int) -> tuple[int, int]:
        return 0, elements(self.columns)

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        shape = len(gy), *self.columns
        columns = context.scratch[: elements(shape)].reshape(shape)
        ends = _POINT, 0, 0, -np.inf, np.inf, 1, NO_WEIGHTS
        self.conv.forward(gy, self.w, self.b, NO_TENSOR, columns, NO_MASK, *ends)
        col2im(columns, gx.mask, gx.gate, gx.array, int(gx.accumulate), self.taps, *self.begin)
