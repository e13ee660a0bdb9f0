"""`Repeated`: one question that is asked about many samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..devices.base import Blend, GeneratedSamples
from ..errors import OutOfMemoryError
from ..graph.shapes import Shape
from ..inputs import Batch, Images
from ..limits import computing
from ..rules import Rule
from ..runtime.session import Session
from ..runtime.tape import Tape
from ..runtime.total import Total, TotalOfRuns
from .gradient import Gradient
from .network import Network
from .notes import refuse_meaningless

__all__ = ["Blend", "Ran", "Repeated", "Take", "Write", "only_image"]

#: Writes these samples to an array.
Write: TypeAlias = Callable[[slice, NDArray[np.float32]], None]
#: Is given the index of a first sample, and the gradients and scores from there on.
Take: TypeAlias = Callable[[int, NDArray[np.float32], NDArray[np.float32]], None]


@dataclass(frozen=True)
class Ran:
    """Writes a sample that ran forward before the question to it was known.

    Parameters
    ----------
    write
        Writes it.
    session, tape
        The run, which serves one question.
    """

    write: Write
    session: Session
    tape: Tape

    @classmethod
    def of(cls, session: Session, write: Write) -> Ran:
        """Run the sample.  Raises ModelError where a score overflows."""
        with session.device.turn(), computing():
            x = GeneratedSamples((1, *session.plan.input_shape), write)
            return cls(write, session, session.run(x))

    def __call__(self, some: slice, to: NDArray[np.float32]) -> None:
        self.write(some, to)


def only_image(network: Network, images: Images) -> tuple[Batch, Session] | None:
    """The image, prepared, and its session; None where there are several.

    Raises InputError for what is no image.
    """
    engine = network._engine
    return next(engine.batches(images, check_finite=False)) if engine.inputs.count(images) == 1 else None


class Repeated:
    """One question to many samples of a shape, as to copies of one sample.  Several threads may ask it.

    All that does not depend on the samples is settled once.  To settle it for each run would take as long as
    a small layer, because the layers have driven the interpreter out of a processor's caches.

    Parameters
    ----------
    network
        The model.
    shape
        The shape of a sample, without the batch.
    seeds
        float32 (1, K, …), finite: K seeds for each sample.
    rule
        The rule.
    of
        The tensor of the seeds, or None for the scores.
    max_samples
        The most samples of one call.

    Raises
    ------
    InputError
        For a rule that has no meaning for the network, or folds the tensor into another layer.
    """

    def __init__(
        self,
        network: Network,
        shape: Shape,
        seeds: NDArray[np.float32],
        rule: Rule,
        of: str | None,
        max_samples: int,
    ) -> None:
        self._shape, self._k = shape, seeds.shape[1]
        self._session = network._engine.sessions.of(shape, () if of is None else (of,), rule.rewrite)
        refuse_meaningless(rule, self._session.plan)
        self._gradient = Gradient(rule, self._session, seeds, of, None, max_samples)
        self.max_samples, self._of = max_samples, of
        self._adds_up = rule.finish is None

    def workers(self) -> int:
        """How many threads should ask at the same time, for `max_samples` each; see `Session.at_once`."""
        return self._session.at_once(self.max_samples, self._k)

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
            Is given the index of a first sample, the gradients (n, K, …) from there on, and their scores
            (n, classes).  Gradients may be in the run's memory, so it keeps no more than a copy; and where
            they overflowed, they may hold NaN or infinity.

        Raises
        ------
        InputError
            Where a sample holds NaN or infinity, and the device looks for them.
        ModelError
            Where a score overflows.
        """
        x, session = GeneratedSamples((count, *self._shape), write), self._session
        for part in session.slices(count, self._k, None):
            for _ in session.fitting(part, lambda some: self._ask(x[some], some.start, take)):
                pass

    def adds_up(self, count: int) -> bool:
        """Whether `total` of so many samples is faster than their gradients one by one."""
        return self._adds_up and self._session.adds_up(count, self._k, self._of)

    def total(self, count: int, write: Write, take: Take, weights: NDArray[np.float32] | None) -> None:
        """Run samples forward, and the sum of their gradients back to the input.

        Parameters
        ----------
        count, write
            As for a call; `adds_up`, and at most `max_samples`.
        take
            Is given 0, the sum of all gradients (1, K, …), and all scores (count, classes).
        weights
            float32 (count,): a positive factor for each sample's gradient; None for 1.

        Raises
        ------
        InputError, ModelError
            As a call.
        """
        x, session = GeneratedSamples((count, *self._shape), write), self._session
        if len([*session.slices(count, self._k, None)]) == 1:
            try:
                self._ask(x, 0, take, weights, Total(self._k))
            except OutOfMemoryError:
                pass
            else:
                return
            session.pool.clear()  # outside the handler: the error holds references to the memory
        route, scores = session.route(self._of, None), []
        assert route is not None  # as `adds_up` says
        totals = [TotalOfRuns(session.plan, route) for _ in range(self._k)]
        for n in range(count):
            with session.device.turn(), computing():
                tape = session.run(x[n : n + 1], n)
            own = None if weights is None else weights[n : n + 1]
            with tape:
                gradients = [
                    self._gradient.of_run(tape, lambda: np.asarray(x), None, slice(k, k + 1), own, total)
                    for k, total in enumerate(totals)
                ]
            scores.append(tape.scores)
        take(0, np.concatenate(gradients, axis=1), np.concatenate(scores))

    def _ask(
        self,
        x: GeneratedSamples,
        offset: int,
        take: Take,
        weights: NDArray[np.float32] | None = None,
        total: Total | None = None,
    ) -> None:
        """Ask about samples that fit into memory."""
        if isinstance(x.write, Ran) and x.write.session is self._session:
            tape = x.write.tape
        else:
            with self._session.device.turn(), computing():
                tape = self._session.run(x, offset)

        def taken(gradients: NDArray[np.float32]) -> NDArray[np.float32]:
            take(offset, gradients, tape.scores)
            return np.empty((len(x), 1, 0), np.float32)

        with tape:
            # Where the memory does not hold all K, `taken` would be given some at a time.
            early = taken if self._k == 1 else None
            found = self._gradient.of_run(tape, lambda: np.asarray(x), early, weights=weights, total=total)
            if early is None:
                taken(found)
