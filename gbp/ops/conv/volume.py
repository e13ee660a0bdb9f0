"""Convolution of volumes: a two-dimensional step for each tap along the depth, on all planes that it reads.

    y[:, od] = b + r + Σ_k conv₂(x[:, od·s + k·d − begin], w[:, :, k])

At first y holds b + r.  Each tap adds to y, and the last tap on each plane clips.  In the backward pass the
first tap on each plane of gx writes (unless the slot accumulates), the others add, and the last one applies
the gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Axis
from ...kernels.pointwise import pointwise_fwd
from ..planes import planes
from ..step import (
    NO_MASK,
    NO_WEIGHTS,
    UNCLIPPED,
    Clipped,
    Context,
    Floats,
    GradientSlot,
    Step,
    strided,
    view,
)


@dataclass(frozen=True)
class _Run:
    """Consecutive planes for one tap.

    Parameters
    ----------
    tap
        Its index along the depth.
    outs, ins
        The planes of y, and the planes of x that the tap reads for them.
    first, last
        Whether no other tap works on these planes before it, or after it.
    """

    tap: int
    outs: slice
    ins: slice
    first: bool
    last: bool


def _outputs_of(axis: Axis, tap: int) -> tuple[int, int, int]:
    """(start, stop, shift): for outputs o in [start, stop) the tap reads input o · stride + shift."""
    shift = tap * axis.dilation - axis.begin
    start = max(0, -(shift // axis.stride))
    stop = min(axis.outputs, (axis.size - 1 - shift) // axis.stride + 1)
    return start, max(start, stop), shift


def _runs(axis: Axis, of_inputs: bool) -> Iterator[_Run]:
    """Cut the planes of each tap into runs with the same `first` and `last`.  The taps are in order.

    `of_inputs`: whether `first` and `last` count the taps that read a plane of x, for the backward pass;
    otherwise those that add to a plane of y.
    """
    size, stride = (axis.size if of_inputs else axis.outputs), axis.stride
    firsts, lasts = np.full(size, axis.kernel), np.full(size, -1)

    def planes_at(start: int, stop: int, shift: int) -> slice:
        return _at(start, stop, stride, shift) if of_inputs else slice(start, stop)

    for tap in range(axis.kernel):  # find the first and the last tap of each plane
        here = planes_at(*_outputs_of(axis, tap))
        firsts[here] = np.minimum(firsts[here], tap)
        lasts[here] = tap
    for tap in range(axis.kernel):
        start, stop, shift = _outputs_of(axis, tap)
        here = planes_at(start, stop, shift)
        first, last = firsts[here] == tap, lasts[here] == tap
        changes = np.flatnonzero((first[1:] != first[:-1]) | (last[1:] != last[:-1])) + 1
        edges = [0, *map(int, changes), stop - start]
        for a, b in pairwise(edges):
            if a < b:
                ins = _at(start + a, start + b, stride, shift)
                yield _Run(tap, slice(start + a, start + b), ins, bool(first[a]), bool(last[a]))


def _at(start: int, stop: int, stride: int, shift: int) -> slice:
    """The inputs that outputs [start, stop) read."""
    if start == stop:
        return slice(0, 0)
    return slice(start * stride + shift, (stop - 1) * stride + shift + 1, stride)


def _cover(runs: Sequence[_Run], size: int, of_inputs: bool) -> bool:
    """Whether every plane has a tap that works on it."""
    reached = np.zeros(size, np.bool_)
    for run in runs:
        reached[run.ins if of_inputs else run.outs] = True
    return bool(reached.all())


def _volumes(x: NDArray[np.generic], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask of x (N, D, H, W, C) as (N, D, H, W, bytes)."""
    return view(mask, len(mask), *x.shape[1:4], mask.shape[-1])


class VolumeStep(Step):
    """Convolves volumes.

    Parameters
    ----------
    taps
        A two-dimensional step without bias for each tap along the depth.
    b
        The bias, float32 (O,).
    depth
        The window along the depth.
    """

    fuses_residual = True

    def __init__(self, taps: Sequence[Step], b: Floats, depth: Axis) -> None:
        self.taps, self.depth = taps, depth
        self.b = view(b, 1, 1, 1, -1)  # kernels read it as they do tensors
        self.runs, self.runs_back = list(_runs(depth, of_inputs=False)), list(_runs(depth, of_inputs=True))
        self.fuses_clip = taps[0].fuses_clip and _cover(self.runs, depth.outputs, of_inputs=False)
        self.reaches_all = _cover(self.runs_back, depth.size, of_inputs=True)
        self.gates = taps[0].gates and self.reaches_all
        self.kernels = taps[0].kernels
        self.algorithm = f"{taps[0].algorithm}, {depth.kernel} deep"

    def scratch(self, threads: int) -> tuple[int, int]:
        fixed, each = self.taps[0].scratch(threads)
        return fixed + self.depth.outputs * each, 0

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        to = planes(y)
        bias = strided(self.b, to.shape, (0, 0, 0, self.b.itemsize))
        unclipped = NO_MASK, UNCLIPPED.lo, UNCLIPPED.hi
        pointwise_fwd(bias, NO_WEIGHTS, NO_WEIGHTS, planes(r), to, *unclipped, context.threads)
        mask = _volumes(y, context.mask) if context.mask.size else None
        for n in range(len(y)):
            for run in self.runs:
                part = y[n, run.outs]
                bits = NO_MASK if mask is None or not run.last else mask[n, run.outs]
                own = replace(context, mask=bits, parts=self.depth.size)
                end = clip if run.last else UNCLIPPED
                self.taps[run.tap].forward((x[0][n, run.ins],), part, part, end, own)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (whole,) = gx
        mask = _volumes(whole.array, whole.mask) if whole.mask.size else None
        if not (whole.accumulate or self.reaches_all):
            whole.array.fill(0)
        parts = replace(context, parts=self.depth.size)
        for m in range(len(gy)):
            for run in self.runs_back:
                part = GradientSlot(whole.array[m, run.ins], whole.accumulate or not run.first)
                if run.last:  # an activation that is rectified has a gate and no mask
                    own = NO_MASK if mask is None else mask[m // whole.targets, run.ins]
                    part = replace(part, mask=own, gate=whole.gate)
                self.taps[run.tap].vjp(gy[m, run.outs], (part,), parts)
