"""Algorithms for the input gradient that use lists of the nonzero values of gy where it is mostly zero."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Window
from ...kernels.averaged import averaged_pointwise_bwd, averaged_scratch
from ...kernels.codegen.emit import LANES
from ...kernels.conditions import only_where
from ...kernels.conv_lists import (
    choose_lists,
    conv_lists_bwd,
    list_plane,
    list_pooled_plane,
    listing_of,
    lists_floats,
    pack_lists,
    pooled_floats,
    sums_floats,
)
from ...kernels.density import choose_sparse
from ...kernels.taps import Taps
from ...limits import elements
from ..pool import MaxPoolStep
from ..step import Context, Floats, GradientSlot, Step, view
from ..window import taps_of
from .algorithms import BackwardAlgorithm, PointwiseBackward, as_row, compute_others

#: Floats of a gradient that may stand in scratch between an average and a convolution.
_MAX_BETWEEN = 2**18
#: Floats of a sample's gradient above which it leaves a core's caches, so that a max-pool had better list it.
_LARGE = 2**20


class ByDensity(BackwardAlgorithm):
    """Lists for samples whose gy is mostly zero, `dense` for the others.

    Each sample's own density decides, so that the rest of the batch changes no bit.

    Parameters
    ----------
    dense
        The other algorithm.
    max_density
        The density of gy up to which lists are used.
    """

    algorithm = "lists"

    def __init__(self, dense: BackwardAlgorithm, max_density: float) -> None:
        self.dense, self.max_density = dense, max_density

    @abstractmethod
    def _choose(self, gy: Floats, chosen: NDArray[np.int64], context: Context) -> None:
        """Write 1 to chosen (1,) if one row gy is to be computed by lists, else 0."""

    @abstractmethod
    def _by_lists(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        """Compute one row by lists, directly after it was chosen."""

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        group = len(gy) if gx.targets == 1 else gx.targets
        for start in range(0, len(gy), group):
            self._group(gy, gx, range(start, start + group), context)

    def _group(self, gy: Floats, gx: GradientSlot, rows: range, context: Context) -> None:
        """Compute rows that `gx` can address together.  All choices are made where the kernels run."""
        listed = np.zeros(len(rows), np.int64)
        for i, row in enumerate(rows):
            one = gy[row : row + 1]
            self._choose(one, listed[i : i + 1], context)
            with only_where(listed[i : i + 1], 1):
                self._by_lists(one, gx.rows(row, row + 1), context)
        start, stop = rows.start, rows.stop
        compute_others(self.dense, gy[start:stop], gx.rows(start, stop), listed, context)


class ListsBackward(ByDensity):
    """For 3×3 and stride 1."""

    def __init__(self, w: Floats, window: Window, dense: BackwardAlgorithm, max_density: float) -> None:
        super().__init__(dense, max_density)
        self.w, self.taps = pack_lists(w), taps_of(window)
        self.kernels = conv_lists_bwd, *dense.kernels
        self.listing = listing_of(*window.output, len(w), max_density)

        #: Whether `through_pool` is faster than the pool's vjp and then this.
        self.takes_in_pool = self._plane > _LARGE

    @property
    def _plane(self) -> int:
        """Floats of a sample's gy."""
        return elements(self.listing[:3])

    def scratch(self, threads: int) -> tuple[int, int]:
        (fixed, each), lists = self.dense.scratch(threads), lists_floats(self.listing) + sums_floats(threads)
        if self.takes_in_pool:
            lists, fixed = lists + pooled_floats(self.listing, threads), self._middle + fixed
        return max(fixed, lists), each

    @property
    def _middle(self) -> int:
        """Floats of scratch for a sample's gradient behind a max-pool, in whole lines of the cache."""
        return -(-self._plane // LANES) * LANES

    def through_pool(
        self,
        gy: Floats,
        pool: MaxPoolStep,
        read: Context,
        between: GradientSlot,
        gx: GradientSlot,
        context: Context,
    ) -> None:
        """The same from the gradient of a max-pool behind the convolution: see `Step.vjp_through`.

        The gradient between is written only for rows that are not mostly zero, one after the other.
        """
        targets, shape = len(gy) // len(read.switches), (1, *self.listing[:3])
        middle, rest = view(context.scratch[: self._plane], *shape), context.scratch[self._middle :]
        for row in range(len(gy)):
            one, own, few = gy[row : row + 1], gx.rows(row, row + 1), np.zeros(1, np.int64)
            sample = slice(row // targets, row // targets + 1)
            passing = replace(between, mask=between.mask[sample], array=middle)
            behind = replace(read, switches=read.switches[sample])
            self._choose_pooled(one, behind.switches, pool.taps, passing, few, context)
            with only_where(few, 1):
                self._by_lists(one, own, context)
            with only_where(few, 0):
                pool.vjp(one, (passing,), behind)
                self.dense(middle, own, context.with_scratch(rest))

    def _choose_pooled(
        self,
        gy: Floats,
        switches: NDArray[np.uint8],
        pool: Taps,
        between: GradientSlot,
        chosen: NDArray[np.int64],
        context: Context,
    ) -> None:
        """`_choose` for the gradient behind a max-pool, from one row of the pool's own."""
        size, count = lists_floats(self.listing), self.max_density * self._plane
        lists, rows = context.scratch[:size], context.scratch[size + sums_floats(context.threads) :]
        counts, end = np.empty(self.listing.H, np.int64), (rows, context.threads)
        list_pooled_plane(
            gy, switches, pool, between.mask, between.gate, lists, self.listing, counts, count, *end
        )
        choose_lists(counts, count, chosen, 1)

    def _choose(self, gy: Floats, chosen: NDArray[np.int64], context: Context) -> None:
        lists, counts = context.scratch[: lists_floats(self.listing)], np.empty(self.listing.H, np.int64)
        count = self.max_density * gy.size
        list_plane(gy, lists, self.listing, counts, count, context.threads)
        choose_lists(counts, count, chosen, 1)

    def _by_lists(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        size = lists_floats(self.listing)
        lists, sums = context.scratch[:size], context.scratch[size:]
        conv_lists_bwd(lists, self.listing, self.w, *gx.arguments, sums, self.taps, context.threads)


class SparseBackward(ByDensity):
    """For 1×1 without padding, where gy may have a value in a few channels alone.

    Behind scores that are averages of planes it has one in the channel of the explained class.
    """

    def __init__(self, w: Floats, window: Window, dense: BackwardAlgorithm, max_density: float) -> None:
        super().__init__(dense, max_density)
        self._lists, self._size = PointwiseBackward(w, window, 1.0), window.output
        self.kernels = *self._lists.kernels, *dense.kernels
        #: Whether `through_average` can compute it, in little scratch.
        self.takes_in_average = window.is_pointwise and elements(window.output) * len(w) <= _MAX_BETWEEN

    def scratch(self, threads: int) -> tuple[int, int]:
        (fixed, each), (lists, _) = self.dense.scratch(threads), self._lists.scratch(threads)
        averaged = averaged_scratch(self._lists.outputs, threads) if self.takes_in_average else 0
        return max(self._middle + max(fixed, lists), averaged), each

    @property
    def _middle(self) -> int:
        """Floats of scratch for the gradient between, of one sample, in whole lines of the cache."""
        floats = elements(self._size) * self._lists.outputs if self.takes_in_average else 0
        return -(-floats // LANES) * LANES

    def _choose(self, gy: Floats, chosen: NDArray[np.int64], context: Context) -> None:
        choose_sparse(gy, chosen, self.max_density, 1)

    def _by_lists(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        self._lists(gy, gx, context)

    def through_average(
        self, gy: Floats, mean: Step, between: GradientSlot, gx: GradientSlot, context: Context
    ) -> None:
        """The same from the gradient of averages of whole planes behind the convolution.

        Where a row of gy has a value in a few channels alone, the gradient between is not written.

        Parameters
        ----------
        gy, mean
            (N, 1, 1, O): the gradient of the averages, and their step.
        between, gx, context
            As for `ColumnsBackward.through_pool`.
        """
        shape = 1, *self._size, gy.shape[3]
        middle = view(context.scratch[: elements(shape)], *shape)
        rest = context.with_scratch(context.scratch[self._middle :])
        targets = len(gy) // max(1, len(between.mask))
        for row in range(len(gy)):
            one, own, few = gy[row : row + 1], gx.rows(row, row + 1), np.zeros(1, np.int64)
            mask = between.mask[row // targets : row // targets + 1]
            choose_sparse(one, few, self.max_density, 1)
            with only_where(few, 1):
                self._by_average(one, replace(between, mask=mask), own, context)
            with only_where(few, 0):
                mean.vjp(one, (replace(between, mask=mask, array=middle),), context)
                self.dense(middle, own, rest)

    def _by_average(self, gy: Floats, between: GradientSlot, gx: GradientSlot, context: Context) -> None:
        passing, target = (as_row(between.mask), between.gate), (as_row(gx.mask), gx.gate, as_row(gx.array))
        end = int(gx.accumulate), context.scratch, context.threads
        averaged_pointwise_bwd(gy, *passing, self._lists.w, *target, *end)
