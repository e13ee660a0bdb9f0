"""`Gradient`: which gradient is asked of a run.  `Repeated`: the same is asked of many samples of a shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..devices.base import Later
from ..errors import InputError, ModelError
from ..graph.shapes import Shape
from ..limits import computing
from ..rules import Rule
from ..runtime.session import Session
from ..runtime.tape import Reduce, Tape
from .engine import GATES, Engine, finished
from .notes import refuse_meaningless

#: Writes these samples to an array.
Write: TypeAlias = Callable[[slice, NDArray[np.float32]], None]
#: Is given samples' gradients and scores, and the number of the first.
Take: TypeAlias = Callable[[int, NDArray[np.float32], NDArray[np.float32]], None]

#: Seeds whose largest number is below are multiplied by a power of two.
_TINY = 2.0**-20


class Gradient:
    """The gradients of Σ seed · tensor under a rule: all but the samples.

    Parameters
    ----------
    rule
        The rule.
    session
        That of the rule's rewrite.
    seeds
        float32 (n, K, …), finite: K seeds for each sample of a run, or (1, K, …) for all of them.  Those of
        scores are flat.
    of, wrt
        Kept tensors; or None for the scores, and for the input.
    most
        Samples of a run, at most.

    Raises
    ------
    InputError
        For a tensor that the rule's rewrite folds into another layer.
    """

    def __init__(
        self,
        rule: Rule,
        session: Session,
        seeds: NDArray[np.float32],
        of: str | None,
        wrt: str | None,
        most: int,
    ) -> None:
        for name in (of, wrt):
            if name is not None and name not in session.plan.kept:
                raise InputError(
                    f"{rule.name!r} has no tensor {name!r}, which is between layers that it folds into one."
                )
        self._rule, self._gate = rule, GATES[rule.forward_gate, rule.gradient_gate]
        self._session, self._of, self._wrt = session, of, wrt
        seeds, self._worth = _near_1(seeds)
        if of is None:
            seeds = seeds.reshape(*seeds.shape[:2], *session.plan.output_shape)
        self._seeds = np.broadcast_to(seeds, (most, *seeds.shape[1:]))

    def of_run(
        self, tape: Tape, values: Callable[[], NDArray[np.float32]], reduce: Reduce | None = None
    ) -> NDArray[np.float32]:
        """The gradients of a run's samples.

        Parameters
        ----------
        tape
            The forward run, by the session.
        values
            Returns what the tensor holds that the gradients are with respect to.
        reduce
            As for `Run.vjp`.

        Returns
        -------
        float32 (N, K, …); or what `reduce` returns.

        Raises
        ------
        ModelError
            Where the gradient overflows.
        """
        rule, worth = self._rule, self._worth
        with self._session.device.turn(), computing():
            early = reduce if rule.finish is None and worth is None else None
            seeds = self._seeds[: tape.n]
            gradient = self._session.vjp(tape, self._gate, seeds, self._of, self._wrt, early)
            overflows, tape.is_finite = not tape.is_finite, True
            if worth is not None:
                gradient *= worth[: tape.n].reshape(-1, worth.shape[1], *(1,) * (gradient.ndim - 2))
        if rule.finish is not None:
            gradient = finished(rule, gradient, values())
        if reduce is not None and early is None:
            gradient = reduce(gradient)
        if overflows:
            hint = "The network's values overflow float32."
            raise ModelError("the gradient holds NaN or infinity.", hint=hint)
        return gradient


class Repeated:
    """See `Network.repeated`.

    Parameters
    ----------
    engine
        The model.
    shape, seeds, rule, of, most
        As for `Network.repeated`.

    Raises
    ------
    InputError
        As `Network.repeated`.
    """

    def __init__(
        self, engine: Engine, shape: Shape, seeds: NDArray[np.float32], rule: Rule, of: str | None, most: int
    ) -> None:
        self._shape, self._k = shape, seeds.shape[1]
        self._session = engine.sessions.of(shape, () if of is None else (of,), rule.rewrite)
        refuse_meaningless(rule, self._session.plan)
        self._gradient = Gradient(rule, self._session, seeds, of, None, most)
        self._most = most

    def workers(self) -> int:
        """How many threads had best ask at the same time, for `most` samples each; see `Session.at_once`."""
        return self._session.at_once(self._most, self._k)

    def __call__(self, count: int, write: Write, take: Take) -> None:
        """Run samples forward, and their gradients back to the input.

        Parameters
        ----------
        count
            How many samples there are.
        write
            Writes some of them, (n, …) in the model's own layout, to an array of any strides.  It may be
            called again, and writes the same then.
        take
            Is given the number of a first sample, the gradients (n, K, …) from there on, and their scores
            (n, classes).  Gradients may be in the run's memory, so it keeps no more than a copy; and where
            they overflowed, they may hold NaN or infinity.

        Raises
        ------
        InputError
            Where a sample holds NaN or infinity, and the device looks for them.
        ModelError
            Where a score overflows.
        """
        x, session = Later((count, *self._shape), write), self._session
        for part in session.slices(count, self._k, None):
            for _ in session.fitting(part, lambda some: self._ask(x[some], some.start, take)):
                pass

    def _ask(self, x: Later, first: int, take: Take) -> None:
        """Ask about samples that fit into memory."""
        with self._session.device.turn(), computing():
            tape = self._session.run(x, first)

        def taken(gradients: NDArray[np.float32]) -> NDArray[np.float32]:
            take(first, gradients, tape.scores)
            return np.empty((len(x), 1, 0), np.float32)

        with tape:
            if self._k == 1:
                self._gradient.of_run(tape, lambda: np.asarray(x), taken)
            else:  # `taken` would be given some at a time, where the memory does not hold all K
                taken(self._gradient.of_run(tape, lambda: np.asarray(x)))


def _near_1(seeds: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Seeds (n, K, …), tiny ones multiplied by powers of two, and what their gradients are worth, (n, K).

    So the gradient of a small probability is as exact as another: products on AMX take what is below 2⁻¹²⁶,
    also the last bits of a number, as 0.  None where no seed is tiny.
    """
    largest = np.abs(seeds).reshape(*seeds.shape[:2], -1).max(axis=2)
    is_tiny = (largest > 0) & (largest < _TINY)
    if not is_tiny.any():
        return seeds, None
    exponents = np.where(is_tiny, np.frexp(largest)[1], 0)
    scaled = np.ldexp(seeds, -exponents.reshape(exponents.shape + (1,) * (seeds.ndim - 2)))
    return scaled, np.ldexp(np.float32(1), exponents)
