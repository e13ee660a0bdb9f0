"""Algorithms for a convolution and for its input gradient; `conv.py` has the equations and chooses.

An algorithm is made once, from the weights of one op.  It packs them in the order in which its kernel reads
them, and states how much scratch it needs.  All algorithms of one direction give the same result up to
rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Window
from ...kernels.codegen.emit import LANES, TILE_ROWS
from ...kernels.codegen.gate import OPEN
from ...kernels.codegen.jit import Compiled
from ...kernels.codegen.memory import aligned
from ...kernels.codegen.tile import TILE_CHANNELS, TILE_FLOATS
from ...kernels.columns import col2im
from ...kernels.conditions import leave_others, only_where
from ...kernels.conv_direct import conv_bwd, conv_fwd, pack, pad
from ...kernels.conv_pointwise import conv_pointwise_bwd, pointwise_scratch
from ...kernels.conv_winograd import conv_winograd_bwd, conv_winograd_fwd, winograd_scratch
from ...kernels.pointwise import pointwise_bwd
from ...kernels.pooled_columns import pooled_columns_bwd, pooled_columns_scratch
from ...kernels.taps import Taps
from ...kernels.winograd import pack_winograd
from ...limits import elements
from ..step import NO_MASK, NO_WEIGHTS, Clipped, Context, Floats, GradientSlot, clear, view
from ..window import reversed_taps_of, taps_of

#: Squares that a Winograd kernel transforms together: as many as fit a core's cache, or the shared cache.
_SQUARES_A_THREAD = 2 * 14
_SQUARES_OF_ALL = 4 * 14
#: Blocks of channels whose products a thread holds at once, up to a MiB.  Patches are read once for all of
#: them.
_BLOCKS = 4


#: How many vector multiply-adds take as long as reading one vector of weights from memory.
READ = 16


class Algorithm(ABC):
    """One way to compute a convolution in one direction."""

    #: Its name, for `gbp inspect`.
    algorithm: str
    #: See `Step.repeats`.
    repeats = True
    #: See `Step.kernels`.
    kernels: tuple[Compiled, ...] = ()

    @abstractmethod
    def scratch(self, threads: int) -> tuple[int, int]:
        """Floats of scratch that one call needs: (a fixed number, more for each sample)."""


class ForwardAlgorithm(Algorithm):
    """Computes y = clip(conv(x) + b + r)."""

    @abstractmethod
    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        """See `Step.forward`."""


class BackwardAlgorithm(Algorithm):
    """Computes gx from gy."""

    @abstractmethod
    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        """See `Step.vjp`."""


def compute_others(
    algorithm: BackwardAlgorithm, gy: Floats, gx: GradientSlot, done: NDArray[np.int64], context: Context
) -> None:
    """Compute the rows that another algorithm has left: all at once if it left all, otherwise one by one.

    Parameters
    ----------
    algorithm
        Computes them.
    gy, gx, context
        As for `BackwardAlgorithm`.
    done
        int64 (rows of gy,): 0 for each row that is left.  The words are read where the kernels run.
    """
    none, alone = np.zeros(1, np.int64), np.zeros(len(done), np.int64)
    leave_others(done, none, alone, 1)
    with only_where(none, 1):
        algorithm(gy, gx, context)
    if len(done) == 1:
        return
    for row in range(len(done)):
        with only_where(alone[row : row + 1], 1):
            algorithm(gy[row : row + 1], gx.rows(row, row + 1), context)


def padded_bias(b: NDArray[Any]) -> Floats:
    """b, padded with zeros to whole tiles."""
    size = -(-len(b) // TILE_CHANNELS) * TILE_CHANNELS
    if not b.any():
        return _no_bias(size)
    padded = aligned((size,))
    padded[:] = 0
    padded[: len(b)] = b
    return padded


@lru_cache(64)
def _no_bias(size: int) -> Floats:
    """Zeros, which all layers without a bias share."""
    zeros = aligned((size,))
    zeros.fill(0)
    zeros.flags.writeable = False
    return zeros


def as_row(x: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W, C) with all pixels of a sample in one row, so that tiles are full."""
    return view(x, len(x), 1, -1, x.shape[3]) if x.size else x


def _scratch_of(context: Context) -> tuple[Floats, Floats]:
    """The scratch, cut into one tile for each thread and the rest."""
    floats = context.threads * TILE_FLOATS
    return context.scratch[:floats], context.scratch[floats:]


def _framed(x: Floats, plane: tuple[int, int], taps: Taps, scratch: Floats, threads: int) -> Floats:
    """A copy of x in scratch, inside planes of zeros, which are the padding of the window."""
    shape = len(x), *plane, x.shape[3]
    framed = scratch[: elements(shape)].reshape(shape)
    pad(x, framed, taps, threads)
    return framed


def flipped(w: NDArray[Any]) -> NDArray[Any]:
    """Weights (O, C, KH, KW) as the backward pass of stride 1 needs them: gx is gy convolved with these."""
    return w.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]


def _by_rows(plane: tuple[int, int]) -> int:
    """1 if threads share the rows of a plane; 0 if it has few tiles, so that they share the channels."""
    return int(elements(plane) >= 8 * TILE_ROWS)


class DirectForward(ForwardAlgorithm):
    """Tiles of pixels × channels over x.  x is first copied into a frame of zeros if the window is padded."""

    def __init__(self, w: Floats, b: NDArray[Any], window: Window) -> None:
        self.window, self.taps, self.channels = window, taps_of(window), w.shape[1]
        self.w, self.b = pack(w), padded_bias(b)
        self.by_rows = _by_rows(window.output)
        self.algorithm = "direct"

    @cached_property
    def _is_padded(self) -> bool:
        sees, size = self._plane(), self.window.size
        begins = self.window.height.begin or self.window.width.begin
        return bool(begins) or sees[0] > size[0] or sees[1] > size[1]

    def _plane(self) -> tuple[int, int]:
        """The sides of the plane that the windows read, with padding."""
        h, w = self.window.height, self.window.width
        return (h.outputs - 1) * h.stride + h.extent, (w.outputs - 1) * w.stride + w.extent

    def scratch(self, threads: int) -> tuple[int, int]:
        return threads * TILE_FLOATS, elements(self._plane()) * self.channels if self._is_padded else 0

    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        tile, rest = _scratch_of(context)
        mask = context.mask
        if self.window.is_pointwise:
            x, r, y, mask = as_row(x), as_row(r), as_row(y), as_row(mask)
        elif self._is_padded:
            x = _framed(x, self._plane(), self.taps, rest, context.threads)
        end = tile, self.taps, clip.lo, clip.hi, self.by_rows, context.threads
        conv_fwd(x, self.w, self.b, r, y, mask, *end)


class DirectBackward(BackwardAlgorithm):
    """For stride 1: the forward kernel over gy, with flipped and transposed weights."""

    kernels = conv_bwd, pad

    def __init__(self, w: Floats, window: Window) -> None:
        self.window, self.taps, self.channels = window, reversed_taps_of(window), len(w)
        self.w = pack(flipped(w))
        self.by_rows = _by_rows(window.size)
        self.algorithm = "direct"

    def _plane(self) -> tuple[int, int]:
        h, w = self.window.height, self.window.width
        return h.size + h.extent - 1, w.size + w.extent - 1

    def scratch(self, threads: int) -> tuple[int, int]:
        return threads * TILE_FLOATS, elements(self._plane()) * self.channels

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        tile, rest = _scratch_of(context)
        gy = _framed(gy, self._plane(), self.taps, rest, context.threads)
        conv_bwd(gy, self.w, *gx.arguments, tile, self.taps, self.by_rows, context.threads)


#: The density of gy up to which its nonzero values alone are faster than dense tiles.  The index is the
#: number of blocks of channels in gx.
_MAX_LISTED = (0.0, 0.2, 0.45, 0.6)
#: With fewer channels in gy than this, to look for nonzero values takes a notable share of the time.
FEW_OUTPUTS, _MAX_OF_FEW = 48, 0.3


def _max_listed(channels: int, outputs: int) -> float:
    """The density of gy up to which nonzero values are faster, for so many channels in gx and in gy."""
    if channels <= LANES:
        return 0.0
    density = _MAX_LISTED[min(3, -(-channels // TILE_CHANNELS))]
    return min(density, _MAX_OF_FEW) if outputs < FEW_OUTPUTS else density


class PointwiseBackward(BackwardAlgorithm):
    """For 1×1 without padding: each pixel of gy times the weights.  Zeros in gy need no weights.

    `max_density`: the density of gy up to which zeros are left out; None for the measured limit.
    """

    def __init__(self, w: Floats, window: Window, max_density: float | None) -> None:
        self.window, self.w, self.outputs = window, pack(flipped(w)), len(w)
        self.max_density = _max_listed(w.shape[1], len(w)) if max_density is None else max_density
        self.algorithm = "lists" if self.max_density else "direct"

    def scratch(self, threads: int) -> tuple[int, int]:
        return pointwise_scratch(threads), 0

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        end = context.scratch, self.max_density, context.threads
        if self.window.is_pointwise:
            target = as_row(gx.mask), gx.gate, as_row(gx.array), int(gx.accumulate)
            conv_pointwise_bwd(as_row(gy), self.w, *target, *end)
        elif gx.accumulate:
            conv_pointwise_bwd(gy, self.w, NO_MASK, OPEN, self._seen(gx.array), 1, *end)
            if gx.gate != OPEN:  # here, because the gate applies to pixels that no window reads as well
                pointwise_bwd(gx.array, NO_WEIGHTS, gx.mask, gx.gate, gx.array, 0, context.threads)
        else:
            clear(gx.array, context.threads)
            conv_pointwise_bwd(gy, self.w, self._seen(gx.mask), gx.gate, self._seen(gx.array), 0, *end)

    def _seen(self, x: NDArray[Any]) -> NDArray[Any]:
        """The pixels of (N, H, W, …) that the windows read."""
        h, w = self.window.height, self.window.width
        return x[:, :: h.stride, :: w.stride][:, : h.outputs, : w.outputs]


class ColumnsBackward(BackwardAlgorithm):
    """For any stride, and for few channels in gx: gy times the weights gives columns, which gx sums up.

    `max_density`: see `PointwiseBackward`.
    """

    def __init__(self, w: Floats, window: Window, max_density: float | None) -> None:
        self.window, self.taps = window, taps_of(window)
        self.columns = 1, *window.output, window.taps * w.shape[1]
        # Row (i·KW + j)·C + c of the columns is tap (i, j) of channel c.
        columns = np.ascontiguousarray(w.transpose(2, 3, 1, 0)).reshape(-1, len(w), 1, 1)
        self.w, self.outputs = pack(columns), len(w)
        self.max_density = _max_listed(self.columns[-1], len(w)) if max_density is None else max_density
        self.algorithm = "columns"

    def scratch(self, threads: int) -> tuple[int, int]:
        apart = pointwise_scratch(threads) + elements(self.columns)
        return max(apart, self._pooled_scratch(threads)), 0

    def _pooled_scratch(self, threads: int) -> int:
        _, _, width, columns = self.columns
        return pooled_columns_scratch(width, self.outputs, columns, self.taps, threads)

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        own = pointwise_scratch(context.threads)
        columns = context.scratch[own : own + elements(self.columns)].reshape(self.columns)
        target = NO_MASK, OPEN, as_row(columns), 0
        for n in range(len(gy)):
            row = as_row(gy[n : n + 1])
            conv_pointwise_bwd(row, self.w, *target, context.scratch[:own], self.max_density, context.threads)
            col2im(columns, *gx.rows(n, n + 1).arguments, self.taps, context.threads)

    @property
    def takes_in_pool(self) -> bool:
        """Whether `through_pool` is faster than the pool's vjp and then this: if few columns are shared."""
        return self.taps.dilation_h == 1 and self.taps.rows <= 2 * self.taps.stride_h

    def through_pool(
        self,
        gy: Floats,
        switches: NDArray[np.uint8],
        pool: Taps,
        between: GradientSlot,
        gx: GradientSlot,
        context: Context,
    ) -> None:
        """The same from the gradient of a max-pool behind the convolution: see `Step.vjp_through`.

        Parameters
        ----------
        gy, switches, pool
            The gradient of the pool's output, its switches and its window.
        between
            The mask and the gate of the convolution's output.
        gx, context
            Where the gradient goes, and what the convolution's forward run saved.
        """
        _, height, width, _ = self.columns
        scratch = context.scratch[: self._pooled_scratch(context.threads)]
        gate = between.mask, between.gate, self.w
        end = self.taps, height, width, scratch, self.max_density, context.threads
        pooled_columns_bwd(gy, switches, pool, *gate, *gx.arguments, *end)


@dataclass(frozen=True)
class _Squares:
    """How threads share an output plane of `size` in a Winograd kernel.  `inputs`, `outputs`: channels."""

    size: tuple[int, int]
    inputs: int
    outputs: int

    def choose(self, threads: int) -> tuple[int, int, int]:
        """(squares transformed together, blocks of channels held at once, 1 if threads share squares else 0).

        Threads share the squares.  If the weights are larger than the plane and there are enough blocks of
        channels, they share the blocks instead.
        """
        plane, blocks = elements(self.size) * self.inputs, -(-self.outputs // TILE_CHANNELS)
        if blocks >= 2 * threads and plane < 9 * self.inputs * self.outputs:
            return _SQUARES_OF_ALL, min(_BLOCKS, -(-blocks // threads)), 0
        return _SQUARES_A_THREAD, min(_BLOCKS, blocks), 1

    def scratch(self, threads: int) -> tuple[int, int]:
        together, width, by_squares = self.choose(threads)
        return winograd_scratch(together, width, self.inputs, bool(by_squares), threads), 0


class WinogradForward(ForwardAlgorithm):
    """For 3×3 and stride 1: Winograd's F(4×4, 3×3)."""

    def __init__(self, w: NDArray[np.float64], b: NDArray[Any], window: Window) -> None:
        self.taps = taps_of(window)
        self.u, self.b = pack_winograd(w), padded_bias(b)
        self.squares = _Squares(window.output, w.shape[1], len(w))
        self.algorithm = "winograd"

    def scratch(self, threads: int) -> tuple[int, int]:
        return self.squares.scratch(threads)

    def __call__(self, x: Floats, r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        share = *self.squares.choose(context.threads), context.threads
        limits = clip.lo, clip.hi
        conv_winograd_fwd(x, self.u, self.b, r, y, context.mask, context.scratch, self.taps, *limits, *share)


class WinogradBackward(BackwardAlgorithm):
    """`WinogradForward` over gy, with flipped and transposed weights."""

    kernels = (conv_winograd_bwd,)

    def __init__(self, w: NDArray[np.float64], window: Window) -> None:
        self.taps = reversed_taps_of(window)
        self.u = pack_winograd(flipped(w))
        self.squares = _Squares(window.size, len(w), w.shape[1])
        self.algorithm = "winograd"

    def scratch(self, threads: int) -> tuple[int, int]:
        return self.squares.scratch(threads)

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        share = *self.squares.choose(context.threads), context.threads
        conv_winograd_bwd(gy, self.u, *gx.arguments, context.scratch, self.taps, *share)
