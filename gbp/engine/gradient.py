"""`Gradient`: which gradient is asked of a run, settled before the run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError
from ..limits import computing
from ..rules import Rule
from ..runtime.session import Session
from ..runtime.tape import Reduce, Tape
from ..runtime.total import Total
from .engine import GATES, finished

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
    max_samples
        The most samples of a run.

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
        max_samples: int,
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
        if len(seeds) != max_samples:
            seeds = np.broadcast_to(seeds, (max_samples, *seeds.shape[1:]))
        self._seeds = seeds

    def of_run(
        self,
        tape: Tape,
        values: Callable[[], NDArray[np.float32]],
        reduce: Reduce | None = None,
        part: slice = slice(None),
        weights: NDArray[np.float32] | None = None,
        total: Total | None = None,
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
        part
            Which of the K seeds are asked about.
        weights
            float32 (N,): a positive factor for each sample's gradient; None for 1.
        total
            As for `Session.vjp`.  The rule has no `finish`, and seeds were given for all samples.

        Returns
        -------
        float32 (N, K, …), or (1, K, …) with `total`; or what `reduce` returns.

        Raises
        ------
        ModelError
            Where the gradient overflows.
        """
        rule, worth = self._rule, self._worth
        with self._session.device.turn(), computing():
            early = reduce if rule.finish is None and worth is None else None
            seeds = self._seeds[: tape.n, part]
            if weights is not None:
                seeds = seeds * weights.reshape(-1, *(1,) * (seeds.ndim - 1))
            gradient = self._session.vjp(tape, self._gate, seeds, self._of, self._wrt, early, total)
            overflows, tape.is_finite = not tape.is_finite, True
            if worth is not None:
                own = worth[: tape.n, part]
                gradient *= own.reshape(*own.shape, *(1,) * (gradient.ndim - 2))
        if rule.finish is not None:
            gradient = finished(rule, gradient, values())
        if reduce is not None and early is None:
            gradient = reduce(gradient)
        if overflows:
            hint = "The network's values overflow float32."
            raise ModelError("the gradient holds NaN or infinity.", hint=hint)
        return gradient


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
