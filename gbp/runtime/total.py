"""`Total`: the sum of several samples' gradients, where a route adds it up in its last instruction.

See `Route.adds_up`.  `TotalOfRuns` gives the same bits where the memory does not hold all samples at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from ..ops.step import Context, Floats, GradientSlot, Step
from ..plan.backward import Route
from ..plan.plan import Plan


class Total:
    """The sum over all samples of a run, by one kernel.

    Parameters
    ----------
    targets
        K: how many gradients each sample has.  There is a sum for each.
    """

    def __init__(self, targets: int) -> None:
        self.targets = targets

    def through(
        self,
        maker: Step,
        reader: Step,
        gy: Floats,
        read: Context,
        between: GradientSlot,
        gx: tuple[GradientSlot, ...],
        own: Context,
    ) -> tuple[Callable[[], None], bool]:
        """The function that computes the instruction, and whether a program can repeat it.

        Parameters
        ----------
        maker
            The step whose vjp is the last.
        reader, gy, read, between
            As for `Step.vjp_through`.
        gx
            Slots with a row for each sample and target.  The sums are in the first K.
        own
            The context of `maker`.
        """
        sums = tuple(GradientSlot(slot.array[: self.targets], False) for slot in gx)
        vjp = partial(maker.vjp_through, reader, gy, read, between, sums, own)
        return vjp, reader.repeats_back and maker.repeats_back


class TotalOfRuns(Total):
    """The sum over the samples of several runs, each of one gradient.

    Parameters
    ----------
    plan, route
        The runs' plan, and the backward pass, which adds up.
    """

    def __init__(self, plan: Plan, route: Route) -> None:
        super().__init__(1)
        maker = route.instructions[-1].maker
        assert maker is not None  # as `Route.adds_up` says
        shape = plan.tensors[plan.instructions[maker.instruction].output].shape
        self._total = np.zeros((1, *shape), np.float32)
        self._term = np.empty_like(self._total)

    def through(
        self,
        maker: Step,
        reader: Step,
        gy: Floats,
        read: Context,
        between: GradientSlot,
        gx: tuple[GradientSlot, ...],
        own: Context,
    ) -> tuple[Callable[[], None], bool]:
        def vjp() -> None:
            for n in range(len(gy)):
                part = slice(n, n + 1)
                slot = GradientSlot(self._term, False, between.mask[part], between.gate)
                reader.vjp(gy[part], (slot,), replace(read, switches=read.switches[part]))
                np.add(self._total, self._term, out=self._total)
            maker.vjp(self._total, tuple(GradientSlot(slot.array[:1], False) for slot in gx), own)

        return vjp, False
