"""The algorithm for convolutions on a CUDA card: tiles, in both directions.

In the backward pass a stride s divides the pixels of gx into phases.  Tap k of window o reads pixel p + s·q
of an axis if

    o·s + k·d − begin = p + s·q,    so  k = k₀ + t·s/g,  o = q + (p + begin − k₀·d)/s − t·d/g,  g = gcd(d, s)

k₀ is the smallest tap for which the division has no remainder, if there is one.  So each phase p is a
convolution of stride 1 with these taps and dilation d/g.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Axis, Window
from ...graph.op import Target
from ...kernels.conv_direct_cuda import KERNELS, conv_bwd, conv_fwd, pack
from ...kernels.taps import Taps
from ..step import Clipped, Context, Floats, GradientSlot
from ..window import taps_of
from .algorithms import BackwardAlgorithm, ForwardAlgorithm


class TiledForward(ForwardAlgorithm):
    """Tiles, for any window."""

    algorithm = "tiles"
    kernels = tuple(forward for forward, _ in KERNELS.values())

    def __init__(self, w: NDArray[Any], b: NDArray[Any], window: Window, target: Target) -> None:
        self.w, self.b = target.constant(pack(w)), target.constant(b.astype(np.float32))
        self.taps = taps_of(window)
        self.begin = window.height.begin, window.width.begin

    def scratch(self, threads: int) -> tuple[int, int]:
        return 0, 0

    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        conv_fwd(x, self.w, self.b, r, y, context.mask, self.taps, *self.begin, clip.lo, clip.hi)


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


class TiledBackward(BackwardAlgorithm):
    """For any window: the forward kernel over gy, once for each phase of the stride."""

    algorithm = "tiles"
    kernels = tuple(reverse for _, reverse in KERNELS.values())

    def __init__(self, w: NDArray[Any], window: Window, target: Target) -> None:
        self.stride = window.height.stride, window.width.stride
        self.phases = list(product(_phases(window.height), _phases(window.width)))
        exchanged = w.transpose(1, 0, 2, 3)
        self.w = [
            target.constant(pack(exchanged[:, :, list(h.taps)][..., list(v.taps)])) for h, v in self.phases
        ]

    def scratch(self, threads: int) -> tuple[int, int]:
        return 0, 0

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        for (h, v), w in zip(self.phases, self.w, strict=True):
            pixels = slice(None), slice(h.start, None, self.stride[0]), slice(v.start, None, self.stride[1])
            taps = Taps(len(h.taps), len(v.taps), 1, 1, h.dilation, v.dilation)
            mask = gx.mask[pixels] if gx.mask.size else gx.mask
            target = mask, gx.gate, gx.array[pixels], int(gx.accumulate)
            conv_bwd(gy, w, *target, taps, h.begin, v.begin)
