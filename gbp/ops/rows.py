"""Ops on several rows of each sample: N samples with m rows each, such as the frames of N videos.

y[n, i] = op(x[n, i])        gx[n, i] = the op's gradient for gy[n, i]        for i in [0, m)

(N, m, …) is (N·m, …) in memory.  The op's own step takes N·m as its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from .affine import Affine
from .broadcast import Add, Mul
from .functions import Function
from .planes import OnParts
from .rectifier import Rectifier
from .shape import Reshape, Transpose
from .step import Clipped, Context, Floats, GradientSlot, Step, lower, view


def _merged(shape: Shape) -> Shape:
    """(N, m, …) as (N·m, …)."""
    return (shape[0] * shape[1], *shape[2:])


def _one(shape: Shape) -> Shape:
    """The shape of one row of one sample."""
    return (1, *shape[2:])


@dataclass(frozen=True, eq=False)
class Rows(Op):
    """Applies `op` to each row of a sample.  All inputs (N, m, …) have the same number of rows."""

    op: Op

    @property
    def parameters(self) -> int:
        return self.op.parameters

    @property
    def is_activation(self) -> bool:
        return self.op.is_activation

    def macs(self, y: Shape) -> int:
        return y[1] * self.op.macs(_one(y))

    @property
    def nbytes(self) -> int:
        return self.op.nbytes

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return y[1] * self.op.work(tuple(map(_one, x)), _one(y))

    def shape(self, *x: Shape) -> Shape:
        y = self.op.shape(*map(_merged, x))
        return (x[0][0], y[0] // x[0][0], *y[1:])

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        """The orders of the op, with the rows as outermost axis."""
        within = tuple(tuple(axis - 1 for axis in order if axis > 1) for order in given)
        wanted, result = self.op.orders(tuple(map(_merged, x)), within)
        outer = [(1, *(axis + 1 for axis in order)) for order in (*wanted, result)]
        return tuple(outer[:-1]), outer[-1]

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step | None:
        within = tuple(axis - 1 for axis in order if axis > 1)
        step = lower(self.op, tuple(map(_merged, x)), _merged(y), within, target)
        return step and RowsStep(step, y[1])


def over_rows(op: Op, samples: int) -> Op:
    """The op on (N, m, …) that computes what `op` computes on (N·m, …), for N = `samples`."""
    match op:
        case Rectifier() | Function() | Add() | Mul():  # number by number: passes know them as they are
            return op
        case Affine(a, b, axis):
            return Affine(a, b, axis + 1)
        case Reshape(to):
            return Reshape((samples, to[0] // samples, *to[1:]))
        case Transpose(perm):
            return Transpose((0, 1, *(axis + 1 for axis in perm[1:])))
    return Rows(op)


class RowsStep(OnParts):
    """Applies a step for (N·m, …) to arrays (N, m, …)."""

    wants_whole = True

    def _rows(self, x: NDArray[Any]) -> NDArray[Any]:
        return view(x, len(x) * self.count, *x.shape[2:]) if x.size else x

    def _mask(self, mask: NDArray[np.uint8], x: NDArray[Any]) -> NDArray[np.uint8]:
        """The mask of x (N, m, …) as (N·m, H, W, bytes)."""
        if not mask.size:
            return mask
        plane = x.shape[2:4] if x.ndim == 5 else (1, -1)  # as `op.pixels` sees a row
        return view(mask, len(mask) * self.count, *plane, mask.shape[-1])

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        of_rows = replace(
            context,
            mask=self._mask(context.mask, y),
            switches=self._rows(context.switches),
            parts=context.parts * self.count,
        )
        self.step.forward(tuple(map(self._rows, x)), self._rows(r), self._rows(y), clip, of_rows)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        saved = [a for a in (*context.x, context.y, context.switches, *(g.mask for g in gx)) if a.size]
        if all(len(a) == len(gy) for a in saved):
            self._vjp(slice(None), slice(None), gy, gx, context)
            return
        # The step takes N·m as its batch, where row n of gy no longer finds its sample: K targets of sample 0
        # come before sample 1, and each has m rows.  So one gradient at a time.
        targets = len(gy) // len(saved[0])
        for n in range(len(gy)):
            self._vjp(slice(n, n + 1), slice(n // targets, n // targets + 1), gy, gx, context)

    def _vjp(
        self, which: slice, samples: slice, gy: Floats, gx: tuple[GradientSlot, ...], context: Context
    ) -> None:
        """The vjp of some of the gradients, which belong to these samples."""

        def rows_of(saved: NDArray[Any]) -> NDArray[Any]:
            return self._rows(saved[samples]) if saved.size else saved

        slots = tuple(
            GradientSlot(
                self._rows(g.array[which]),
                g.accumulate,
                self._mask(g.mask[samples], g.array) if g.mask.size else g.mask,
                g.gate,
            )
            for g in gx
        )
        of_rows = replace(
            context,
            switches=rows_of(context.switches),
            x=tuple(map(rows_of, context.x)),
            y=rows_of(context.y),
            parts=context.parts * self.count,
        )
        self.step.vjp(self._rows(gy[which]), slots, of_rows)
