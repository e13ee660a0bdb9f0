"""The input gradient of convolutions with strides, on Intel's AMX (`kernels.conv_amx`).

Pixels of gx that have the same remainders by the strides are a *phase*.  The same taps reach all its pixels,
so a phase is gy convolved with these taps, with stride 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from ...graph.geometry import Axis, Window
from ...kernels.amx_frame import Frame
from ...kernels.amx_sums import pack_amx
from ...kernels.codegen.emit import LANES
from ...kernels.codegen.gate import OPEN
from ...kernels.conv_amx import conv_amx_bwd
from ...kernels.pointwise import clear_pixels, pointwise_bwd
from ...kernels.taps import Taps
from ...limits import elements
from ..step import NO_MASK, NO_WEIGHTS, Context, Floats, GradientSlot, view
from .algorithms import BackwardAlgorithm, flipped
from .algorithms_amx import AmxLayer

#: The cost of moving a vector from one plane to another, in vector multiply-adds.
_MOVE = 15


@dataclass(frozen=True)
class Phase:
    """A phase along one axis.  Its pixel q reads `taps` pixels of gy, from q − `before` on.

    Parameters
    ----------
    which
        Its pixels in gx.
    count
        How many they are.
    first
        The first of their taps; the others follow a stride apart, and the last reads gy first.
    """

    which: slice
    count: int
    first: int
    taps: int
    before: int

    @classmethod
    def all_of(cls, axis: Axis) -> list[Phase]:
        """One for each remainder, for an axis without dilation."""
        found = []
        for remainder in range(min(axis.stride, axis.size)):
            place = remainder + axis.begin  # of pixel 0 in the padded input
            first = place % axis.stride
            taps = len(range(first, axis.kernel, axis.stride))
            which = slice(remainder, None, axis.stride)
            count = len(range(remainder, axis.size, axis.stride))
            found.append(cls(which, count, first, taps, taps - 1 - place // axis.stride))
        return found


class AmxPhases(BackwardAlgorithm):
    """A convolution for each phase, which writes its pixels in place.  Those that no tap reaches are 0."""

    algorithm = "amx"
    kernels = conv_amx_bwd, clear_pixels, pointwise_bwd

    def __init__(self, w: Floats, window: Window) -> None:
        self.phases = []
        for h, v in self._phases(window):
            own = w[:, :, h.first :: window.height.stride, v.first :: window.width.stride]
            packed = pack_amx(flipped(own)) if h.taps * v.taps else NO_WEIGHTS
            self.phases.append(((h.which, v.which), packed, self._layer(len(w), w.shape[1], h, v)))

    @staticmethod
    def _phases(window: Window) -> Iterator[tuple[Phase, Phase]]:
        return product(Phase.all_of(window.height), Phase.all_of(window.width))

    @staticmethod
    def _layer(O: int, C: int, h: Phase, v: Phase) -> AmxLayer:
        frame = Frame(h.count + h.taps - 1, v.count + v.taps - 1, h.before, v.before)
        return AmxLayer(O, C, Taps(h.taps, v.taps, top=h.before, left=v.before), frame, (h.count, v.count))

    @classmethod
    def cost(cls, O: int, C: int, window: Window) -> float:
        """As `AmxLayer.cost`; infinite with dilation."""
        if not window.is_undilated:
            return math.inf
        layers = [cls._layer(O, C, h, v) for h, v in cls._phases(window) if h.taps * v.taps]
        return sum(layer.cost for layer in layers)

    def scratch(self, threads: int) -> tuple[int, int]:
        needs = [layer.scratch(threads) for _, packed, layer in self.phases if packed.size]
        return max((fixed for fixed, _ in needs), default=0), max((each for _, each in needs), default=0)

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        threads, accumulate = context.threads, int(gx.accumulate)
        for (rows, columns), packed, layer in self.phases:
            own, mask = gx.array[:, rows, columns], gx.mask[:, rows, columns]
            if packed.size:
                conv_amx_bwd(gy, packed, mask, gx.gate, own, accumulate, *layer.arguments(len(gy), context))
            elif not gx.accumulate:
                clear_pixels(own, threads)
            elif gx.gate != OPEN:
                pointwise_bwd(own, NO_WEIGHTS, mask, gx.gate, own, 0, threads)


class AmxMerged(BackwardAlgorithm):
    """`AmxPhases` for few channels: one convolution computes all phases, as further channels.

    It has the taps of all of them; the weights of those that a phase has not are 0.  Then each phase is moved
    to its pixels of gx.
    """

    algorithm = "amx"
    kernels = conv_amx_bwd, pointwise_bwd

    def __init__(self, w: Floats, window: Window) -> None:
        (O, self.channels), (height, width) = w.shape[:2], self._phases(window)
        self.layer = self._layer(O, self.channels, height, width)
        taps, sides = self.layer.taps, (window.height.stride, window.width.stride)
        self.places = [(h.which, v.which) for h, v in product(height, width)]
        merged = np.zeros((len(self.places), self.channels, O, taps.rows, taps.columns), np.float32)
        for own, (h, v) in zip(merged, product(height, width), strict=True):
            i, j = taps.top - h.before, taps.left - v.before
            if h.taps * v.taps:
                part = w[:, :, h.first :: sides[0], v.first :: sides[1]]
                own[:, :, i : i + h.taps, j : j + v.taps] = flipped(part)
        self.w = pack_amx(merged.reshape(-1, *merged.shape[2:]))

    @staticmethod
    def _phases(window: Window) -> tuple[list[Phase], list[Phase]]:
        return Phase.all_of(window.height), Phase.all_of(window.width)

    @staticmethod
    def _layer(O: int, C: int, height: list[Phase], width: list[Phase]) -> AmxLayer:
        (top, rows, h), (left, columns, v) = map(_span, (height, width))
        frame = Frame(h + rows - 1, v + columns - 1, top, left)
        return AmxLayer(
            O, C * len(height) * len(width), Taps(rows, columns, top=top, left=left), frame, (h, v)
        )

    @classmethod
    def cost(cls, O: int, C: int, window: Window) -> float:
        """As `AmxLayer.cost`; infinite with dilation."""
        if not window.is_undilated:
            return math.inf
        return cls._layer(O, C, *cls._phases(window)).cost + _MOVE * elements(window.size) * -(-C // LANES)

    @property
    def _merged(self) -> int:
        """Floats of the merged gradient of one sample, in whole lines of the cache."""
        return -(-elements(self.layer.size) * self.layer.O // LANES) * LANES

    def scratch(self, threads: int) -> tuple[int, int]:
        fixed, each = self.layer.scratch(threads)
        return fixed, each + self._merged

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        (H, W), C = self.layer.size, self.channels
        floats = len(gy) * H * W * self.layer.O
        merged = view(context.scratch[:floats], len(gy), H, W, self.layer.O)
        rest = context.with_scratch(context.scratch[len(gy) * self._merged :])
        conv_amx_bwd(gy, self.w, NO_MASK, OPEN, merged, 0, *self.layer.arguments(len(gy), rest))
        for k, (rows, columns) in enumerate(self.places):
            own, mask = gx.array[:, rows, columns], gx.mask[:, rows, columns]
            part = merged[:, : own.shape[1], : own.shape[2], k * C : (k + 1) * C]
            pointwise_bwd(part, NO_WEIGHTS, mask, gx.gate, own, int(gx.accumulate), context.threads)


def _span(phases: list[Phase]) -> tuple[int, int, int]:
    """The window that reads what all phases of an axis read: pixels before, taps; and the most pixels."""
    reached = [phase for phase in phases if phase.taps]
    before = max((phase.before for phase in reached), default=0)
    behind = max((phase.taps - phase.before for phase in reached), default=1)
    return before, before + behind, phases[0].count
