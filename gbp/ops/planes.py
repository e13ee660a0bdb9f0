"""Tensors of one or three spatial axes, for steps that compute on (N, H, W, C) only.

    (N, L, C)          counts as one plane of one row for each sample
    (N, D, H, W, C)    counts as D planes for each sample

Both are views in memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from ..graph.shapes import Shape
from .step import Clipped, Context, Floats, GradientSlot, Step, view
from .window import planes_of


def planes(x: NDArray[Any]) -> NDArray[Any]:
    """A physical tensor as (N · planes, H, W, C)."""
    return view(x, -1, *(1, *x.shape[1:])[-3:]) if x.size else x


def volume(x: NDArray[Any]) -> NDArray[Any]:
    """A physical tensor as (N, D, H, W, C)."""
    return view(x, len(x), *(1, 1, *x.shape[1:])[-4:])


def mask_planes(mask: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """The mask of x in the shape of `planes(x)`."""
    return view(mask, -1, *planes(x).shape[1:3], mask.shape[-1]) if mask.size else mask


class OnParts(Step):
    """Applies a step to each of the `count` parts of a sample: planes, or rows.

    It declares what the step does, except that it repeats the same calls, which its classes may.
    """

    def __init__(self, step: Step, count: int) -> None:
        self.step, self.count = step, count
        self.algorithm, self.kernels, self.switches = step.algorithm, step.kernels, step.switches
        self.gates, self.saves_x, self.saves_y = step.gates, step.saves_x, step.saves_y
        self.fuses_residual, self.fuses_clip = step.fuses_residual, step.fuses_clip
        self.needs_host, self.yields_positions = step.needs_host, step.yields_positions

    def scratch(self, threads: int) -> tuple[int, int]:
        fixed, each = self.step.scratch(threads)
        return fixed, each * self.count


class Planes(OnParts):
    """Applies a step for (N, H, W, C) to each plane of a sample."""

    def __init__(self, step: Step, count: int) -> None:
        super().__init__(step, count)
        self.repeats, self.repeats_back = step.repeats, step.repeats_back

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        own = replace(
            context,
            mask=mask_planes(context.mask, y),
            switches=planes(context.switches),
            parts=context.parts * self.count,
        )
        self.step.forward(tuple(map(planes, x)), planes(r), planes(y), clip, own)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        # One row at a time: gy has a row for each target and the context one for each sample, so the planes
        # of both would not match.
        rows = [slice(None)] if self.count == 1 else [slice(m, m + 1) for m in range(len(gy))]
        for row in rows:
            kept = replace(
                context,
                switches=planes(_sample_of(context.switches, row, gy)),
                x=tuple(planes(_sample_of(x, row, gy)) for x in context.x),
                y=planes(_sample_of(context.y, row, gy)),
                parts=context.parts * self.count,
            )
            parts = (
                replace(
                    g, array=planes(g.array[row]), mask=mask_planes(_sample_of(g.mask, row, gy), g.array[row])
                )
                for g in gx
            )
            self.step.vjp(planes(gy[row]), tuple(parts), kept)


def _sample_of(array: NDArray[Any], row: slice, gy: Floats) -> NDArray[Any]:
    """The row of `array`, which has one for each sample, that belongs to a row of gy; all of it to all."""
    if row.start is None or not array.size:
        return array
    n = row.start * len(array) // len(gy)
    return array[n : n + 1]


def by_planes(step: Step, x: Shape) -> Step:
    """Make `step`, which knows (N, H, W, C) only, work on inputs of logical shape x."""
    return step if len(x) == 4 else Planes(step, planes_of(x))
