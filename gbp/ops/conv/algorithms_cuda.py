"""The algorithms for convolutions on a CUDA card: tiles in both directions, and columns back to few channels.

In the backward pass a stride s divides the pixels of gx into phases.  Tap k of window o reads pixel p + s·q
of an axis if

    o·s + k·d − begin = p + s·q,    so  k = k₀ + t·s/g,  o = q + (p + begin − k₀·d)/s − t·d/g,  g = gcd(d, s)

k₀ is the smallest tap for which the division has no remainder, if there is one.  So each phase p is a
convolution of stride 1 with these taps and dilation d/g.

Cards with tensor cores for TF32 use them, at float32's accuracy (`kernels.conv_tensor_cuda`).  Other cards
multiply in registers (`kernels.conv_direct_cuda`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Axis, Window
from ...graph.op import Target
from ...kernels import conv_tiles_cuda as tensor
from ...kernels.codegen.gate import Gate
from ...kernels.codegen.jit_cuda import tensor_cores
from ...kernels.columns_cuda import col2im
from ...kernels.conv_direct_cuda import KERNELS, conv_bwd, conv_fwd, pack
from ...kernels.sums_cuda import finish_bwd, finish_fwd
from ...kernels.taps import Taps
from ...limits import elements
from ..step import NO_MASK, NO_TENSOR, NO_WEIGHTS, Clipped, Context, Floats, GradientSlot
from ..window import taps_of
from .algorithms import BackwardAlgorithm, ForwardAlgorithm

#: The backward pass into so few channels goes by columns.  Tiles of channels would be mostly empty.
_FEW_CHANNELS = 8
_POINT = Taps(1, 1)

#: Mask, gate, gx and whether to accumulate, as `GradientSlot.arguments`.
_Slot = tuple[NDArray[Any], Gate, NDArray[Any], int]


def algorithms_of(
    target: Target,
) -> tuple[Callable[..., ForwardAlgorithm], Callable[..., BackwardAlgorithm]]:
    """Functions that make the algorithms of one group: (w, b, window, target) and (w, window, target)."""
    return (TensorForward, _tensor_backward) if tensor_cores() else (TiledForward, TiledBackward)


def _tensor_backward(w: NDArray[Any], window: Window, target: Target) -> BackwardAlgorithm:
    if w.shape[1] <= _FEW_CHANNELS and window.taps > 1:
        return ColumnsBackward(w, window, target)
    return TensorBackward(w, window, target)


def _conv_of(target: Target) -> tensor.Conv:
    """The tensor cores' kernels.

    A float32 number is the sum of two TF32 numbers.  A product takes three products of these at float32's
    accuracy, and one for `tf32`.
    """
    return tensor.conv_of(tensor_cores(), 1 if target.tf32 else 3)


class TensorForward(ForwardAlgorithm):
    """Tensor cores, for any window."""

    algorithm = "tensor cores"

    def __init__(self, w: NDArray[Any], b: NDArray[Any], window: Window, target: Target) -> None:
        self.conv, self.taps = _conv_of(target), taps_of(window)
        self.kernels = *(forward for forward, _ in self.conv.kernels.values()), finish_fwd
        self.w = target.constant(tensor.pack(w, self.conv.products))
        self.b = target.constant(b.astype(np.float32))
        self.pixels = elements(window.output)
        self.parts = tensor.parts_of(self.pixels, len(w), tensor.steps_of(window.taps, w.shape[1]))

    def scratch(self, threads: int) -> tuple[int, int]:
        return tensor.scratch_of(self.pixels, self.b.size, self.parts)

    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        ends = self.taps, clip.lo, clip.hi, self.parts, context.scratch
        self.conv.forward(x, self.w, self.b, r, y, context.mask, *ends)


class TiledForward(ForwardAlgorithm):
    """Tiles, for any window."""

    algorithm = "tiles"
    kernels = tuple(forward for forward, _ in KERNELS.values())

    def __init__(self, w: NDArray[Any], b: NDArray[Any], window: Window, target: Target) -> None:
        self.w, self.b = target.constant(pack(w)), target.constant(b.astype(np.float32))
        self.taps = taps_of(window)

    def scratch(self, threads: int) -> tuple[int, int]:
        return 0, 0

    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        conv_fwd(x, self.w, self.b, r, y, context.mask, self.taps, clip.lo, clip.hi)


@dataclass(frozen=True)
class _Phase:
    """One phase of an axis of gx: pixels `start`, `start` + stride, … and the taps that read them.

    `taps` is in descending order.  `dilation` and `begin` are those of the convolution of stride 1.
    """

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
    """The forward kernel over gy, once for each phase of the stride."""

    def __init__(self, w: NDArray[Any], window: Window, target: Target) -> None:
        self.stride = window.height.stride, window.width.stride
        self.phases = list(product(_phases(window.height), _phases(window.width)))
        exchanged = w.transpose(1, 0, 2, 3)
        self.w = [
            target.constant(self.packed(exchanged[:, :, list(h.taps)][..., list(v.taps)]))
            for h, v in self.phases
        ]

    def packed(self, w: NDArray[Any]) -> NDArray[np.float32]:
        return pack(w)

    def scratch(self, threads: int) -> tuple[int, int]:
        return 0, 0

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        for i, (h, v) in enumerate(self.phases):
            pixels = slice(None), slice(h.start, None, self.stride[0]), slice(v.start, None, self.stride[1])
            taps = Taps(len(h.taps), len(v.taps), 1, 1, h.dilation, v.dilation, h.begin, v.begin)
            mask = gx.mask[pixels] if gx.mask.size else gx.mask
            target = mask, gx.gate, gx.array[pixels], int(gx.accumulate)
            self.phase(i, gy, target, taps, context.scratch)

    @abstractmethod
    def phase(self, i: int, gy: Floats, target: _Slot, taps: Taps, scratch: Floats) -> None:
        """One convolution to `target`."""


class TiledBackward(_Phased):
    """Registers, for any window."""

    algorithm = "tiles"
    kernels = tuple(backward for _, backward in KERNELS.values())

    def phase(self, i: int, gy: Floats, target: _Slot, taps: Taps, scratch: Floats) -> None:
        conv_bwd(gy, self.w[i], *target, taps)


class TensorBackward(_Phased):
    """Tensor cores, for any window."""

    algorithm = "tensor cores"

    def __init__(self, w: NDArray[Any], window: Window, target: Target) -> None:
        self.conv, (O, C) = _conv_of(target), w.shape[:2]
        super().__init__(w, window, target)
        self.kernels = *(backward for _, backward in self.conv.kernels.values()), finish_bwd
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

    def phase(self, i: int, gy: Floats, target: _Slot, taps: Taps, scratch: Floats) -> None:
        self.conv.backward(gy, self.w[i], *target, taps, self.parts[i], scratch)


class ColumnsBackward(BackwardAlgorithm):
    """Columns, for few channels in gx: gy times the weights gives columns, and gx gathers them."""

    algorithm = "columns"

    def __init__(self, w: NDArray[Any], window: Window, target: Target) -> None:
        O, count = len(w), window.taps * w.shape[1]
        self.conv, self.taps = _conv_of(target), taps_of(window)
        self.kernels = *(forward for forward, _ in self.conv.kernels.values()), col2im
        self.columns = *window.output, -(-count // 4) * 4
        columns = np.zeros((self.columns[-1], O, 1, 1), w.dtype)  # (i·KW + j)·C + c of them
        columns[:count] = w.transpose(2, 3, 1, 0).reshape(count, O, 1, 1)
        self.w = target.constant(tensor.pack(columns, self.conv.products))
        self.b = target.constant(np.zeros(len(columns), np.float32))

    def scratch(self, threads: int) -> tuple[int, int]:
        return 0, elements(self.columns)

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        shape = len(gy), *self.columns
        columns = context.scratch[: elements(shape)].reshape(shape)
        ends = _POINT, -np.inf, np.inf, 1, NO_WEIGHTS
        self.conv.forward(gy, self.w, self.b, NO_TENSOR, columns, NO_MASK, *ends)
        col2im(columns, *gx.arguments, self.taps)
