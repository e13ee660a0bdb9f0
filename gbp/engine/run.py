"""`Run`: one forward run of some samples, of which any gradient can be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..arguments import array_of, numbers_of
from ..errors import InputError, calling, counted
from ..graph.tensors import Tensor, find
from ..inputs import Batch
from ..limits import computing, is_finite
from ..pictures.layout import Layout
from ..plan.plan import Rewrite
from ..questions.head import Head
from ..questions.questions import Question
from ..result.attribution import Attribution
from ..rules import Rule, rule_named
from ..runtime.session import Session
from ..runtime.tape import Reduce, Tape
from .engine import Engine
from .gradient import Gradient
from .notes import refuse_meaningless


class Run:
    """One forward run of N samples.  One thread at a time may ask it.

    It is a context manager.  Leaving it gives its memory back; then `value` and `vjp` raise InputError.

    Parameters
    ----------
    engine
        The model.
    session, session_for
        Its session for these samples, and those for rules' rewrites.
    batch, part
        Prepared samples, and which of them to run.
    offset, count
        The index of the batch's first sample among all, and how many samples there are in all.
    to_input
        As for `Network.runs`.
    """

    def __init__(
        self,
        engine: Engine,
        session: Session,
        session_for: Callable[[Rewrite | None], Session],
        batch: Batch,
        part: slice,
        offset: int,
        count: int,
        to_input: bool = True,
    ) -> None:
        self._to_input = to_input
        self._engine, self._session, self._session_for, self._is_open = engine, session, session_for, True
        self._batch, self._part = batch, part
        self._runs: dict[Rewrite | None, tuple[Session, Tape]] = {}
        #: float32 (N, …): the prepared samples, in the model's own input layout.
        self.x = batch.x[part]
        #: How many images were given in all.
        self.count = count
        #: Which of them these are.
        self.samples = slice(offset + part.start, offset + part.start + len(self.x))
        self._tape = self._on(None)[1]
        #: float32 (N, classes): the scores, flattened, as those of an `Attribution`.
        self.scores: NDArray[np.float32] = self._tape.scores

    @property
    def pictures(self) -> Sequence[Image.Image] | None:
        """The samples as pictures, or None where they are unknown."""
        pictures = self._batch.pictures
        is_all = len(self.x) == len(self._batch.x)
        return pictures if is_all else pictures and pictures[self._part]

    @property
    def scores_name(self) -> str:
        """The name of the scores in the file."""
        return self._session.plan.scores

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the classes, or None."""
        return self._engine.labels

    @property
    def head(self) -> Head | None:
        """The op that turns the scores into probabilities; None where the model has none."""
        return self._engine.head(self._session.plan)

    @property
    def score_shape(self) -> tuple[int, ...]:
        """The shape of one sample's scores before they were flattened, such as (8400, 85)."""
        return self._session.plan.output_shape

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        if self._is_open:
            self._is_open = False
            for _, tape in self._runs.values():
                tape.__exit__()

    def _on(self, rewrite: Rewrite | None) -> tuple[Session, Tape]:
        """The session for a rewrite, and the forward run of its plan: one for each that is asked for."""
        if rewrite not in self._runs:
            session = self._session if rewrite is None else self._session_for(rewrite)
            with session.device.turn(), computing():
                self._runs[rewrite] = session, session.run(self.x, self.samples.start, self._to_input)
        return self._runs[rewrite]

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        kept = ", ".join(self._session.plan.kept) or "nothing"
        return f"<Run of {counted(len(self), 'sample')}, {kept} kept>"

    def value(
        self, name: str, reduce: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    ) -> NDArray[np.float32]:
        """The values of a kept tensor, or a function of them.

        Parameters
        ----------
        name
            As in `keep`; or the name of the input or of the scores.
        reduce
            A function of the values, of which it returns another array, of any shape.  It sees them in the
            run's memory, which saves a copy, and may neither keep nor change them.

        Returns
        -------
        float32 (N, …), in the file's shape and order of axes, before gbp fuses anything.  The scores
        have the file's shape here, too; `scores` and seeds of them for `vjp` are flat, (N, classes).
        With `reduce`, what it returns.

        Raises
        ------
        InputError
            For a tensor that was not kept, a `reduce` that fails or returns no array of numbers, and where
            the run is closed.
        """
        self._refuse_closed()
        name, plan = self._known(name), self._session.plan
        reduce = None if reduce is None else partial(_reduced, reduce, 0)
        if name in plan.kept:
            with self._session.device.turn(), computing():
                return self._tape.value(plan.kept[name], reduce)
        found = self.x if name == plan.input.name else self.scores.reshape(-1, *plan.output_shape)
        return found if reduce is None else reduce(found)

    def vjp(
        self,
        seed: ArrayLike,
        rule: str | Rule = "vanilla",
        of: str | None = None,
        wrt: str | None = None,
        reduce: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """The gradient of Σ seed · tensor under a rule: a vector-Jacobian product, and the rule's finish.

        A kept tensor's gradient is the sum of what its readers pass back.  For the output of a rectifier this
        is the gradient before the rectifier's own gate, which acts on the way to the rectifier's input.  A
        seed of such an output passes the gate on its way to `wrt`, as gradients from above do.

        Parameters
        ----------
        seed
            float32 (N, …), one for each number of `of`; for the scores (N, classes), flattened.  Or
            (N, K, …): K seeds for each sample, which are computed as one batch.
        rule
            The name of a rule, or a `Rule`.  One that rewrites the graph runs forward once more, in memory of
            its own, which is held until the run is closed.
        of
            The tensor that the seed is of: a kept one, or None for the scores.  Nothing behind it is
            computed.
        wrt
            The tensor whose gradient is wanted: a kept one, or None for the input.  Nothing before it is
            computed.
        reduce
            A function of the gradients of some of the K seeds, float32 (N, k, …), of which it returns another
            array (N, k, …).  It sees them in the run's memory, as in `value`.  An overflow that it hides may
            stay unseen.

        Returns
        -------
        float32 (N, …), or (N, K, …), in the shape of `wrt`.  It is 0 where `of` does not depend on `wrt`.
        With `reduce`, what it returns, without the axis K where one seed for each sample was given.

        Raises
        ------
        InputError
            For a seed of another shape, a tensor that was not kept, the input where the run was made with
            `to_input=False`, a `reduce` that fails or returns no array (N, k, …) of numbers, and where the
            run is closed.
        ModelError
            Where the gradient overflows.
        """
        self._refuse_closed()
        rule, plan = rule_named(rule), self._session.plan
        refuse_meaningless(rule, plan)
        reduce = None if reduce is None else partial(_reduced, reduce, 2)
        start = plan.scores if of is None else self._known(of)
        end = plan.input.name if wrt is None else self._known(wrt)
        if start == plan.input.name:
            raise InputError(f"of is {of!r}, the input.", supported="the scores, and kept tensors")
        if end == plan.scores:
            raise InputError(f"wrt is {wrt!r}, the scores.", supported="the input, and kept tensors")
        if not self._to_input and end == plan.input.name:
            raise InputError("this run goes back to kept tensors only.", hint="Make it with to_input=True.")
        is_inner = start != plan.scores
        shape = plan.shape_of(start) if is_inner else self.scores.shape[1:]
        seeds, is_one = _seeds(seed, len(self), shape)
        session, tape = self._on(rule.rewrite)
        of_kept, wrt_kept = start if is_inner else None, end if end in plan.kept else None
        asked = Gradient(rule, session, seeds, of_kept, wrt_kept, len(self))
        gradient = asked.of_run(tape, lambda: self.x if wrt_kept is None else self.value(wrt_kept), reduce)
        return gradient[:, 0] if is_one else gradient

    @property
    def layout(self) -> Layout:
        """The axes of the network's input."""
        return self._engine.inputs.layout(self.x.shape)

    def tensor(self, name: str) -> Tensor:
        """A tensor between the input and the scores, by a name as in `keep`.

        Parameters
        ----------
        name
            As in `keep`.

        Raises
        ------
        InputError
            For a name that no tensor has, or several.
        """
        return find(self._session.plan.named, name)

    def targets(self, target: Question = None) -> NDArray[np.int64]:
        """The classes that a target means for these samples.

        Parameters
        ----------
        target
            Classes, as for `Explainer.explain`.

        Returns
        -------
        Indices into the scores, int64 (N,); or (N, K), where K classes are meant.

        Raises
        ------
        InputError
            As `Explainer.explain`.
        """
        return self._engine.resolve(target, self._session.plan, self.scores, self.samples, self.count)

    def attribution(
        self, map: NDArray[np.float32], target: NDArray[np.int64], rule: str | Rule = "vanilla"
    ) -> Attribution:
        """A map that was made of this run as an `Attribution`, which draws and saves it.

        Parameters
        ----------
        map
            float32 (N, …), or (N, K, …) for K targets.
        target
            int64 (N,) or (N, K): the classes that were explained.
        rule
            The rule of the backward passes.

        Raises
        ------
        InputError
            For a map or a target of another shape, and for what is no class.
        """
        plan, of = self._session.plan, rule_named(rule)
        map, target = _checked(map, target, *self.scores.shape)
        photos = self._batch.photos and self._batch.photos[self._part]
        return self._engine.attribution(plan, self.x, of, map, self.scores, target, self.pictures, photos)

    def _refuse_closed(self) -> None:
        """Raises InputError where the memory of the run may hold another one."""
        if not self._is_open:
            raise InputError("the run is closed.", hint="Ask it inside its `with` block.")

    def _known(self, name: str) -> str:
        """The name in the file of the input, of the scores or of a kept tensor."""
        plan = self._session.plan
        if name == plan.input.name:
            return name
        found = find(plan.named, name).name
        if found != plan.scores and found not in plan.kept:
            raise InputError(f"tensor {found!r} was not kept.", hint=f"Say keep=[{found!r}] for the run.")
        return found


def _checked(
    map: ArrayLike, target: ArrayLike, n: int, classes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A map of n samples and the classes that it explains.  Raises InputError where they do not fit."""
    maps, targets = array_of(map), array_of(target)
    are_numbers = maps.dtype.kind in "fiu" and targets.dtype.kind in "iu"
    is_one_or_many = targets.ndim in (1, 2) and targets.size > 0 and len(targets) == n
    fits = maps.ndim > targets.ndim and maps.shape[: targets.ndim] == targets.shape and maps.size > 0
    if not (are_numbers and is_one_or_many and fits):
        supported = f"numbers [{n}, …] with indices [{n}], or [{n}, K, …] with [{n}, K]"
        raise InputError(
            f"the map has shape {list(maps.shape)} of {maps.dtype}, and the target {list(targets.shape)}.",
            supported=supported,
        )
    if targets.min() < 0 or targets.max() >= classes:
        wrong = targets[(targets < 0) | (targets >= classes)]
        raise InputError(f"target {int(wrong[0])} is no class.", supported=f"0 to {classes - 1}")
    return maps.astype(np.float32, copy=False), targets.astype(np.int64, copy=False)


def _reduced(reduce: Reduce, axes: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A user's function of values.

    Raises InputError where it fails or returns no numbers, or others along the first `axes` axes.
    """
    with calling("reduce"):
        found = reduce(values)
    return numbers_of("reduce returned", found, values.shape[:axes], more=True)


def _seeds(seed: ArrayLike, n: int, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], bool]:
    """The seeds (n, K, *shape), and whether one for each sample was given."""
    given = array_of(seed)
    is_one = given.shape == (n, *shape)
    is_many = given.ndim == len(shape) + 2 and (*given.shape[:1], *given.shape[2:]) == (n, *shape)
    if given.dtype.kind not in "fiub" or not (is_one or is_many) or not given.size:
        sizes = ", ".join(map(str, shape))
        raise InputError(
            f"the seed has shape {list(given.shape)} and holds {given.dtype}.",
            supported=f"numbers of shape [{n}, {sizes}], or [{n}, K, {sizes}] for K seeds a sample",
        )
    with np.errstate(over="ignore"):  # which is refused below
        seeds = given.astype(np.float32)
    if not is_finite(seeds):
        raise InputError("the seed holds NaN or infinity.")
    return seeds[:, None] if is_one else seeds, is_one
