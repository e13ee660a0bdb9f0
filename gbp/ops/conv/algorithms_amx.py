"""Algorithms for convolutions on Intel's AMX (`kernels.conv_amx`): windows in, calls of kernels out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Window
from ...kernels.amx_frame import Frame
from ...kernels.amx_shares import amx_scratch, band_of
from ...kernels.amx_sums import SUMS, chunks_of, pack_amx, paired
from ...kernels.codegen import amx
from ...kernels.codegen.emit import LANES
from ...kernels.codegen.tile import TILE_CHANNELS
from ...kernels.conv_amx import conv_amx_bwd, conv_amx_fwd
from ...kernels.taps import Taps
from ...limits import elements
from ..step import Clipped, Context, Floats, GradientSlot
from ..window import reversed_taps_of, taps_of
from .algorithms import READ, BackwardAlgorithm, ForwardAlgorithm, flipped, padded_bias

#: Costs in vector multiply-adds of a core, measured: of LANES products of float32; to split a value; to bring
#: a sum from its tile to the epilogue, and a pixel.
_PRODUCTS, _SPLIT, _STORE, _PIXEL = 0.38, 0.85, 1.0, 30.0
#: About how many pixels run through all weights together, where these leave the first-level cache.
_PIXELS = 4 * amx.ROWS
#: The cost up to which one thread computes a layer alone.  Another would fetch pixels from the first one's
#: cache, and the next layer half of its pixels from there, which takes as long as the layer.
_ALONE = 1.6e5
#: All samples are computed.
NO_SCALES = np.empty(0, np.float32)
#: More samples than any batch has.
_MANY = 2**40


def _shares_padding(taps: Taps, frame: Frame, size: tuple[int, int], right: int) -> bool:
    """Whether a column of padding behind a row of the frame can also be the one before the next row.

    Such a frame keeps at least as many columns as the plane of `size`, also for windows of one column.
    """
    is_dense = taps.stride_h == taps.stride_w == 1
    return is_dense and frame.left > 0 and right > 0 and frame.columns > size[1]


@dataclass(frozen=True)
class AmxLayer:
    """O channels of a plane of `size` from C channels of a frame.  It chooses how threads share the work."""

    C: int
    O: int
    taps: Taps
    frame: Frame
    size: tuple[int, int]
    #: Channels of a chunk, and floats of the sums of two tiles of pixels.
    depth: int = amx.DEPTH
    sums: int = SUMS
    #: Whether frames may hold pairs of pixels.
    may_pair: ClassVar[bool] = True

    @classmethod
    def of(cls, C: int, O: int, taps: Taps, frame: Frame, size: tuple[int, int], right: int = 0) -> AmxLayer:
        """The layer, with two taps of a row in one chunk, if they fit there.

        Otherwise, where a row of the frame begins with padding and ends with it, `right` columns, two rows
        share a column.
        """
        if cls.may_pair and 2 * C <= amx.DEPTH and taps.columns > 1 and taps.dilation_w == 1:
            taps = taps._replace(columns=(taps.columns + 1) // 2, dilation_w=2)
            frame = frame._replace(pairs=1)
        elif _shares_padding(taps, frame, size, right):
            frame = frame._replace(columns=frame.columns - 1, shared=1)
        return cls(C, O, taps, frame, size)

    def pack(self, w: Floats) -> Floats:
        """Pack weights (O, C, KH, KW)."""
        return pack_amx(paired(w) if self.frame.pairs else w)

    @classmethod
    def forward(cls, O: int, C: int, window: Window) -> AmxLayer:
        h, w = window.height, window.width
        if window.taps == 1 and window.is_unpadded:  # no other pixels are read
            return cls(C, O, Taps(1, 1), Frame(*window.output, 0, 0), window.output)
        rows, columns = ((axis.outputs - 1) * axis.stride + axis.extent for axis in (h, w))
        taps = taps_of(window)
        frame = Frame(rows, columns, taps.top, taps.left)
        return cls.of(C, O, taps, frame, window.output, columns - taps.left - w.size)

    @classmethod
    def backward(cls, O: int, C: int, window: Window) -> AmxLayer:
        """The convolution of gy, O channels, that gives gx, C channels, where the window has stride 1."""
        h, w = window.height, window.width
        rows, columns = (axis.size + axis.extent - 1 for axis in (h, w))
        taps = reversed_taps_of(window)
        frame = Frame(rows, columns, taps.top, taps.left)
        return cls.of(O, C, taps, frame, window.size, columns - taps.left - window.width.outputs)

    @property
    def cost(self) -> float:
        """Its time for one sample, in vector multiply-adds of a core; infinite where AMX may not be used."""
        return self.work if amx.is_usable() else math.inf

    @property
    def work(self) -> float:
        """Its time for one sample where AMX may be used."""
        taps, (H, W), depth = self.taps, self.size, amx.DEPTH * chunks_of(self.C)
        weights = taps.rows * taps.columns * depth * -(-self.O // LANES)
        reading = 1.5 * READ * weights  # six bytes, not four
        ends = _SPLIT * depth + _STORE * self.O + _PIXEL
        return _PRODUCTS * self.computed * weights + reading + H * W * ends

    @property
    def computed(self) -> int:
        """Pixels of whole tiles."""
        lines, length = self.size
        if self.taps.stride_h == self.taps.stride_w == 1:  # one line, through the padding at the sides too
            # The shared column counts: with it, the densities up to which lists are faster were measured.
            columns = self.frame.columns + self.frame.shared
            lines, length = 1, (lines - 1) * columns + length
        return lines * -(-length // amx.ROWS) * amx.ROWS

    def _band(self, n: int, threads: int) -> int:
        """Rows of the output that a thread computes at once of n samples; 0 if threads share the channels."""
        whole = band_of(self.C, self.frame, self.taps, self.depth)
        pixels, outputs = elements(self.size), self.taps.rows * self.taps.columns * self.O
        if pixels >= outputs or 2 * threads > -(-self.O // TILE_CHANNELS):
            return whole
        if self._narrows and n * pixels >= 2 * outputs:
            # Split pixels of many samples leave the caches; those of a few rows do not.
            return max(whole, _PIXELS // self.frame.columns)
        return 0

    @property
    def _narrows(self) -> bool:
        """Whether it is 1×1 and has so many inputs that most of its time goes into splitting them."""
        return self.taps.rows * self.taps.columns == 1 and self.C >= 2 * self.O

    def scratch(self, threads: int) -> tuple[int, int]:
        few, many = (
            amx_scratch(self.C, self.frame, self.taps, self._band(n, threads), threads, self.depth, self.sums)
            for n in (1, _MANY)
        )
        return max(few[0], many[0]), max(few[1], many[1])

    def arguments(self, n: int, context: Context) -> tuple[Any, ...]:
        """The last arguments of a kernel for n samples, from its scratch on."""
        return context.scratch, *self.geometry(n, context.threads)

    def geometry(self, n: int, threads: int) -> tuple[Any, ...]:
        """Those after the scratch."""
        sharing = 1 if n * self.work < _ALONE else threads
        return self.taps, self.frame, self._band(n, threads), threads, sharing


class AmxForward(ForwardAlgorithm):
    """Sums of products of bfloat16 parts."""

    algorithm = "amx"

    def __init__(self, w: Floats, b: NDArray[Any], window: Window) -> None:
        self.window, self.layer = window, AmxLayer.forward(len(w), w.shape[1], window)
        self.w, self.b = self.layer.pack(w), padded_bias(b)

    def scratch(self, threads: int) -> tuple[int, int]:
        return self.layer.scratch(threads)

    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        end = clip.lo, clip.hi, NO_SCALES, *self.layer.arguments(len(x), context)
        conv_amx_fwd(self.seen(x), self.w, self.b, r, y, context.mask, *end)

    def seen(self, x: Floats) -> Floats:
        """The pixels of x that are read."""
        if self.window.taps > 1 or not self.window.is_unpadded:
            return x
        h, w = self.window.height, self.window.width
        return x[:, :: h.stride, :: w.stride][:, : h.outputs, : w.outputs]


class AmxBackward(BackwardAlgorithm):
    """For stride 1: `AmxForward` over gy, with flipped and transposed weights."""

    algorithm = "amx"
    kernels = (conv_amx_bwd,)

    def __init__(self, w: Floats, window: Window) -> None:
        self.layer = AmxLayer.backward(len(w), w.shape[1], window)
        self.w = self.layer.pack(flipped(w))

    def scratch(self, threads: int) -> tuple[int, int]:
        return self.layer.scratch(threads)

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        target = gx.mask, gx.gate, gx.array, int(gx.accumulate)
        conv_amx_bwd(gy, self.w, *target, *self.layer.arguments(len(gy), context))
