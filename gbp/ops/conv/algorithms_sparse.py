"""1×1 convolutions whose gy may be nearly all zero: lists for such samples, something else for the rest."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from ...graph.geometry import Window
from ...kernels.density import choose_sparse
from ...kernels.parallel.program import only_where
from ..step import Context, Floats, GradientSlot
from .algorithms import BackwardAlgorithm, PointwiseBackward


class SparseBackward(BackwardAlgorithm):
    """For 1×1 without padding: `dense`, but lists for samples whose gy is sparse.

    Behind scores that are averages of planes, gy has one channel that is not zero.  Each sample's own density
    decides, so that the rest of the batch changes no bit.
    """

    repeats = False
    algorithm = "lists"

    def __init__(self, w: Floats, window: Window, dense: BackwardAlgorithm, max_density: float) -> None:
        self.dense, self.max_density = dense, max_density
        self.listed = PointwiseBackward(w, window, 1.0)
        self.kernels = *self.listed.kernels, *dense.kernels

    def scratch(self, threads: int) -> tuple[int, int]:
        pairs = zip(self.dense.scratch(threads), self.listed.scratch(threads), strict=True)
        fixed, each = map(max, pairs)
        return fixed, each

    def __call__(self, gy: Floats, gx: GradientSlot, context: Context) -> None:
        chosen = np.zeros(len(gy), np.int64)
        choose_sparse(gy, chosen, self.max_density, context.threads)
        if len(gy) == 1:  # the choice is made where the kernels run
            with only_where(chosen, 1):
                self.listed(gy, gx, context)
            with only_where(chosen, 0):
                self.dense(gy, gx, context)
            return
        k = gx.targets
        for (_, sparse), rows in groupby(range(len(gy)), lambda n: (k > 1 and n // k, chosen[n])):
            start, *rest = rows
            stop = start + 1 + len(rest)
            (self.listed if sparse else self.dense)(gy[start:stop], gx.rows(start, stop), context)
