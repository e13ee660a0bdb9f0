"""Convolutions on Intel's AMX by digits (`kernels.conv_digits`): windows in, calls of kernels out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Window
from ...kernels.amx_balance import Balance, balance_of
from ...kernels.amx_digits import (
    DIGITS_BLOCK,
    DIGITS_DEPTH,
    LEVELS,
    MOST_TERMS,
    pack_digits,
)
from ...kernels.amx_scale import FACTS
from ...kernels.codegen import amx
from ...kernels.codegen.emit import LANES
from ...kernels.conv_amx import conv_amx_fwd
from ...kernels.conv_digits import conv_digits_bwd, conv_digits_fwd
from ...limits import elements
from ..step import Clipped, Context, Floats, GradientSlot
from .algorithms import READ, Algorithm, BackwardAlgorithm, ForwardAlgorithm, compute_others, flipped
from .algorithms_amx import AmxForward, AmxLayer

#: The crest factor of a sample (`scale_from`) times the spread of the weights (`Balance`) up to which three
#: levels are exact enough: their error is then about 10⁻⁶ of the outputs'.
_MAX_CREST_AND_SPREAD = 64.0
#: The crest factor alone, and the spread alone, up to which 24 bits are.
_MAX_CREST, _MAX_SPREAD = 64.0, 16.0
#: Costs, as `algorithms_amx` has them: of LANES products; to split a value and to look at it before; to add
#: the levels of a sum; of a pixel; and of two calls with more phases, after each of which threads wait for
#: each other.
_PRODUCTS, _SPLIT, _LEVELS, _PIXEL, _CALLS = 0.24, 0.8, 2.5, 30.0, 2e5


@dataclass(frozen=True)
class DigitsLayer(AmxLayer):
    """`AmxLayer` with chunks of twice the channels, and levels for sums."""

    depth: int = DIGITS_DEPTH
    sums: int = LEVELS // 4
    may_pair: ClassVar[bool] = False

    @property
    def cost(self) -> float:
        terms = self.taps.rows * self.taps.columns * -(-self.C // DIGITS_DEPTH) * DIGITS_DEPTH
        if not amx.has_bytes() or terms > MOST_TERMS:
            return math.inf
        weights = terms * -(-self.O // LANES)
        ends = _SPLIT * terms / (self.taps.rows * self.taps.columns) + _LEVELS * self.O + _PIXEL
        reading = 0.75 * READ * weights  # three bytes, not four
        return _PRODUCTS * self.computed * weights + reading + elements(self.size) * ends + _CALLS


def suits_digits(balance: Balance) -> bool:
    """Whether weights of this balance are as exact in 24 bits of the largest of their channel."""
    return balance.spread <= _MAX_SPREAD


def digits_bytes(O: int, C: int) -> int:
    """Most bytes of the digits of one tap, O channels from C."""
    channels = -(-C // DIGITS_DEPTH) * DIGITS_DEPTH
    return -(-O // DIGITS_BLOCK) * DIGITS_BLOCK * (amx.PARTS * channels + 4) + 4 * channels


def _max_crest_3(balance: Balance) -> float:
    """The crest factor of a sample up to which three levels are exact enough: see `scale_from`."""
    return min(_MAX_CREST, _MAX_CREST_AND_SPREAD / balance.spread)


def _scratch(layer: AmxLayer, rows: int, other: Algorithm, threads: int) -> tuple[int, int]:
    """See `Algorithm.scratch`.  `rows`: of a plane; `other`: what computes the other samples."""
    (fixed, each), (other_fixed, other_each) = layer.scratch(threads), other.scratch(threads)
    fixed, each = max(other_fixed, fixed), max(other_each, each + FACTS * rows)
    # Whole vectors, and one for the scale of each sample, so that what is behind is aligned.
    return -(-fixed // LANES) * LANES, (1 + -(-each // LANES)) * LANES


class DigitsForward(ForwardAlgorithm):
    """Sums of products of digits; `AmxForward` for samples that these do not suit.

    balance: `balance_of(w)`, where that is known.
    """

    algorithm = "digits"

    def __init__(self, w: Floats, b: NDArray[Any], window: Window, balance: Balance | None = None) -> None:
        balance = balance or balance_of(w)
        self.parts = AmxForward(w, b, window)
        self.layer = DigitsLayer.forward(len(w), w.shape[1], window)
        self.w, self.max_crest_3 = pack_digits(w, balance.divisors), _max_crest_3(balance)

    def scratch(self, threads: int) -> tuple[int, int]:
        return _scratch(self.layer, self.parts.window.height.size, self.parts, threads)

    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        if context.parts > 1:  # equal windows of two parts would have different scales
            self.parts(x, r, y, clip, context)
            return
        n, threads, x = len(x), context.threads, self.parts.seen(x)
        scales, scratch = context.scratch[:n], context.scratch[n * LANES :]
        ends, bias, mask = (clip.lo, clip.hi), self.parts.b, context.mask
        geometry = self.layer.geometry(n, threads)
        conv_digits_fwd(
            x, self.w, bias, r, y, mask, *ends, self.max_crest_3, _MAX_CREST, scales, scratch, *geometry
        )  # fmt: skip
        geometry = self.parts.layer.geometry(n, threads)
        conv_amx_fwd(x, self.parts.w, bias, r, y, mask, *ends, scales, scratch, *geometry)


class DigitsBackward(BackwardAlgorithm):
    """For stride 1: sums of products of digits of gy, for the rows that these suit; `other` for the rest.

    Rules with a gradient gate, such as guided, leave no negative values in gy.  balance: that of the flipped
    weights, where it is known.
    """

    algorithm = "digits"

    def __init__(
        self, w: Floats, window: Window, other: BackwardAlgorithm, balance: Balance | None = None
    ) -> None:
        self.other, self.rows = other, window.height.outputs
        self.layer, back = DigitsLayer.backward(len(w), w.shape[1], window), flipped(w)
        balance = balance or balance_of(back)
        self.w, self.max_crest_3 = pack_digits(back, balance.divisors), _max_crest_3(balance)
        self.kernels = conv_digits_bwd, *other.kernels

    def scratch(self, threads: int) -> tuple[int, int]:
        return _scratch(self.layer, self.rows, self.other, threads)

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        if context.parts > 1:  # as forward
            self.other(gy, gx, context)
            return
        n, done = len(gy), np.zeros(len(gy), np.int64)
        scales, scratch = context.scratch[:n], context.scratch[n * LANES :]
        target = gx.mask, gx.gate, gx.array, int(gx.accumulate)
        limits, geometry = (self.max_crest_3, _MAX_CREST), self.layer.geometry(n, context.threads)
        conv_digits_bwd(gy, self.w, *target, *limits, scales, done, scratch, *geometry)
        compute_others(self.other, gy, gx, done, context)
