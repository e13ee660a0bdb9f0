"""The base of all methods: runs with their targets, copies of a sample, and the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..engine.asking import ask
from ..engine.at_once import InTurn, in_order
from ..engine.repeated import Repeated, Take, Write
from ..engine.run import Run
from ..errors import InputError, ModelError
from ..explainer import Explainer
from ..inputs import Images
from ..limits import elements, is_finite
from ..questions.questions import Channel, Question, Several, Unit, is_hidden
from ..result.attribution import Attribution, joined
from ..result.doubts import doubted
from ..rules import Rule, rule_named

#: Copies of a sample that are computed at a time, and bytes that they, their seeds and their maps may take:
#: few enough that what is computed of them, about ten times as much, stays in a processor's caches.
_MAX_COPIES = 32
_MAX_BYTES = 7 * 2**20
#: Blocks of copies whose maps are added up come in so many.
_BLOCKS = 4
#: Numbers of sums that are added to together.
_PIECE = 2**15


@dataclass(frozen=True)
class Questions:
    """The question to the samples of a run: K classes, contrasts or hidden units each.

    Parameters
    ----------
    of
        The tensor of the seeds, kept; None for the scores.
    seeds
        float32 (n, K, …): where backward passes start.  They stay the same for copies of a sample.
    targets
        int64 (n, K): the classes that they are about.
    """

    of: str | None
    seeds: NDArray[np.float32]
    targets: NDArray[np.int64]

    def __getitem__(self, part: slice) -> Questions:
        """Those of some samples."""
        return replace(self, seeds=self.seeds[part], targets=self.targets[part])

    @property
    def kept(self) -> tuple[str, ...]:
        """The tensors that a run must keep."""
        return () if self.of is None else (self.of,)

    def gradient(
        self,
        run: Run,
        rule: str | Rule = "vanilla",
        wrt: str | None = None,
        reduce: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """Their gradients (n, K, …) in a run of these samples, with respect to the input or a kept tensor."""
        return run.vjp(self.seeds, rule, of=self.of, wrt=wrt, reduce=reduce)

    def values(self, run: Run) -> NDArray[np.float64]:
        """The explained numbers, Σ seed · tensor, in a run of these samples or of others: float64 (n, K)."""
        tensor = run.scores if self.of is None else run.value(self.of)
        seeds = self.seeds.reshape(*self.targets.shape, -1).astype(np.float64)
        flat = tensor.reshape(len(tensor), -1, 1).astype(np.float64)
        return np.asarray((seeds @ flat)[..., 0])


#: From a run and its questions to maps (n, K, …), and details with one row for each sample.
Compute = Callable[[Run, Questions], tuple[NDArray[Any], Mapping[str, NDArray[Any]]]]
#: From a part of the copies of a sample to what writes some of that part to an array.
Copies: TypeAlias = Callable[[slice], Write]


def tensors_of(target: Question) -> tuple[str, ...]:
    """The hidden tensors that a target names."""
    items = target.targets if isinstance(target, Several) else (target,)
    return tuple(item.tensor for item in items if isinstance(item, (Unit, Channel)))


def _questions(run: Run, target: Question) -> tuple[Questions, bool, dict[str, NDArray[Any]]]:
    """The questions about a run; whether there is one for each sample; and their names and values."""
    if not is_hidden(target):
        targets = run.targets(target)
        columns = targets.reshape(len(run), -1)
        seeds = np.zeros((*columns.shape, run.scores.shape[1]), np.float32)
        seeds.reshape(columns.size, -1)[np.arange(columns.size), columns.reshape(-1)] = 1
        return Questions(None, seeds, columns), targets.ndim == 1, {}
    asked, is_one = ask(run, target.targets if isinstance(target, Several) else (target,))
    if len({each.of for each in asked}) > 1:
        raise InputError("a method explains units of one tensor at a time.", hint="Ask one after the other.")
    seeds = np.stack([each.seed for each in asked], axis=1)
    targets = np.stack([each.classes for each in asked], axis=1)
    details: dict[str, NDArray[Any]] = {
        "question": np.array([each.names for each in asked]).T,
        "value": np.stack([each.value for each in asked], axis=1),
    }
    return Questions(asked[0].of, seeds, targets), is_one, details


def explained(
    explainer: Explainer,
    images: Images,
    target: Question,
    rule: str | Rule,
    method: str,
    compute: Compute,
    keep: Sequence[str] = (),
    *,
    looks_at_image: bool = False,
    to_input: bool = True,
) -> Attribution:
    """Run images slice by slice, and join what `compute` makes of the runs.

    Parameters
    ----------
    explainer
        The model.
    images, target, rule
        As for `Explainer.explain`.
    method
        The method's name.
    compute
        Makes the maps of a run, and the details of its samples.
    keep
        As for `Explainer.runs`.  The layer that the method is about comes first.
    looks_at_image
        Whether the maps are made of the image, or of activations, beside backward passes.
    to_input
        As for `Explainer.runs`.

    Raises
    ------
    InputError
        As `Explainer.explain`.
    ModelError
        Where a map overflows float32.
    """
    parts: list[Attribution] = []
    for run in explainer.runs(images, (*keep, *tensors_of(target)), to_input=to_input):
        if run.scores_name in keep[:1]:
            raise InputError(f"layer {run.scores_name!r} holds the scores.", supported="layers before them")
        questions, one, names = _questions(run, target)
        maps, details = compute(run, questions)
        with np.errstate(over="ignore"):
            single = maps.astype(np.float32, copy=False)
        if not is_finite(single):
            raise ModelError("the map holds NaN or infinity.", hint="The network's values overflow float32.")
        targets = questions.targets[:, 0] if one else questions.targets
        found = run.attribution(single[:, 0] if one else single, targets, rule)
        rows = {**details, **names}
        rows = {key: row[:, 0] if one and row.ndim == 2 else row for key, row in rows.items()}
        parts.append(replace(found, method=method, details=rows))
    return doubted(joined(parts), looks_at_image)


def with_details(found: Attribution, notes: Sequence[str], **details: Any) -> Attribution:
    """The result with more notes behind its own, and with details that hold for all samples."""
    return replace(found, notes=(*found.notes, *notes), details={**details, **found.details})


def of_copies(
    explainer: Explainer,
    x: NDArray[np.float32],
    copies: Copies,
    count: int,
    questions: Questions,
    rule: str | Rule,
    add: Take,
) -> None:
    """Explain copies of one sample, one forward run each, and add up their maps.

    Parameters
    ----------
    explainer
        The model.
    x
        The sample, float32.
    copies
        Said which of the copies, which it is in order, it returns what writes them: given some of these, and
        an array (m, …).
    count
        How many there are.
    questions
        Those of the sample, the same for all copies.
    rule
        The rule.
    add
        Is called with the index of a first copy, the maps (m, K, …) from there on, and their scores
        (m, classes).  It keeps no maps, because they may be in a run's memory.  It is called in order, one
        call at a time, not always by this thread.  Maps have the device's order in memory, and sums in the
        same order are fastest.
    """
    _one_by_one(_asked(explainer, x, questions, rule), copies, range(count), add)


def mean_of_copies(
    explainer: Explainer,
    x: NDArray[np.float32],
    copies: Copies,
    count: int,
    weights: NDArray[np.float64] | None,
    questions: Questions,
    rule: str | Rule,
    look: Callable[[NDArray[np.float32]], None],
) -> NDArray[np.float64]:
    """The mean map of copies of one sample, one forward run each.

    Where their maps can be added up before they are maps (`Route.adds_up`), that is done for blocks of
    copies.  How many these are depends on the number of copies, the size of a sample and the number of
    targets alone, because it changes last bits.

    Parameters
    ----------
    explainer, x, copies, count, questions, rule
        As for `of_copies`.
    weights
        float64 (count,), positive and with a sum of 1: that of each copy; None for equal weights.
    look
        Is called with the scores (m, classes) of the copies, in order, by any thread.

    Returns
    -------
    float64 (K, …), in the device's order in memory.
    """
    ask = _asked(explainer, x, questions, rule)
    factors = None if weights is None else weights * count
    block, blocks = _blocks(count, ask.max_samples)
    blocks = blocks if ask.adds_up(block) else 0
    in_blocks = block * blocks
    total = _Sum()

    def add_block(_: int, maps: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
        look(scores[0])
        total.add(maps, None)  # the seeds had the factors

    turns = InTurn(add_block)

    def compute(number: int, part: slice, write: Write) -> None:
        own = None if factors is None else factors[part].astype(np.float32)
        ask.total(block, write, lambda _, maps, scores: turns.bring(number, maps, scores[None]), own)

    def works() -> Iterator[Callable[[], None]]:
        for number in range(blocks):
            part = slice(block * number, block * (number + 1))
            yield partial(compute, number, part, copies(part))

    for _ in in_order(works(), ask.workers()):
        pass

    def add_rest(i: int, maps: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
        look(scores)
        own = slice(in_blocks + i, in_blocks + i + len(maps))
        total.add(maps, None if factors is None else factors[own])

    _one_by_one(ask, copies, range(in_blocks, count), add_rest)
    return total.divided_by(count)


class _Sum:
    """A sum of maps in float64, in the order that maps have in memory."""

    def __init__(self) -> None:
        self._total = self._term = np.empty(0)

    def add(self, maps: NDArray[np.float32], factors: NDArray[np.float64] | None) -> None:
        """Add maps (m, …), each times its factor (m,); None for 1."""
        if not self._total.size:
            self._total = np.zeros_like(maps[0], np.float64)
            self._term = np.empty_like(self._total)  # memory that is not touched where there are no factors
        if factors is None:
            add_each(self._total, list(maps))
            return
        for one, factor in zip(maps, factors, strict=True):
            self._total += np.multiply(one, factor, out=self._term)

    def divided_by(self, count: int) -> NDArray[np.float64]:
        """The sum divided by a number, in place of the sum."""
        self._total /= count
        return self._total


def _asked(explainer: Explainer, x: NDArray[np.float32], questions: Questions, rule: str | Rule) -> Repeated:
    """The question to copies of a sample."""
    most = max_copies(elements(x.shape), questions.targets.shape[1], questions.seeds.size)
    return Repeated(explainer, x.shape, questions.seeds, rule_named(rule), questions.of, most)


def max_copies(size: int, targets: int, seeds: int) -> int:
    """How many copies are computed at a time, by the numbers in a sample, and in the seeds of its targets."""
    return max(1, min(_MAX_COPIES, _MAX_BYTES // (4 * (size + targets * size + seeds))))


def _one_by_one(ask: Repeated, copies: Copies, which: range, add: Take) -> None:
    """Explain these of the copies, the last ones, and call `add` as `of_copies` does; it counts from 0."""
    workers, turns, begin = ask.workers(), InTurn(add), which.start
    left = min(len(which), _left_over(which.stop, workers))
    alone = which.stop - left
    # They share the caches; but one copy at a time would read the weights too often.
    step = _even(alone - begin, max(min(ask.max_samples, 2), -(-ask.max_samples // workers)), workers)

    def compute(part: slice, write: Write) -> None:
        first = part.start - begin
        ask(part.stop - part.start, write, lambda i, *found: turns.bring(first + i, *found))

    def works(begin: int, end: int) -> Iterator[Callable[[], None]]:
        for start in range(begin, end, step):
            part = slice(start, min(start + step, end))
            yield partial(compute, part, copies(part))

    busy = workers if begin < alone else 1  # to begin threads without work takes as long as a small layer
    for _ in chain(in_order(works(begin, alone), busy), in_order(works(alone, which.stop), 1)):
        pass


def add_each(total: NDArray[np.float64], terms: Sequence[NDArray[Any]]) -> None:
    """Add terms to a sum, one after another: a piece of all, then the next piece, while a cache holds it.

    All have the same shape.  It is fastest where all have the same order in memory.
    """
    order = sorted(range(total.ndim), key=lambda axis: -total.strides[axis])
    flat, *each = (one.transpose(order).reshape(-1) for one in (total, *terms))
    for start in range(0, flat.size, _PIECE):
        part = slice(start, start + _PIECE)
        for term in each:
            flat[part] += term[part]


def _blocks(count: int, max_copies: int) -> tuple[int, int]:
    """Blocks of up to `max_copies` copies: their size, and how many there are, a multiple of `_BLOCKS`.

    Fewer copies than that remain.  Size and number depend on nothing else, and the workers have equal shares
    where there are two or four.
    """
    blocks = _BLOCKS * (count // (_BLOCKS * (max_copies + 1)) + 1)
    return count // blocks, blocks


def _left_over(count: int, workers: int) -> int:
    """How many copies remain for all threads together after each worker had an equal share.

    None remain where they keep more than half of the workers busy, one each: a thread alone wastes less.
    """
    left = count % workers
    return left if left < count and 2 * left <= workers else 0


def _even(count: int, largest: int, workers: int) -> int:
    """The size of slices, up to `largest`, with which the workers have equal shares.

    Among those it is a size that leaves no rest, because runs of one size share their memory; then the
    largest.
    """

    def largest_share(size: int) -> int:
        rounds, rest = divmod(count, size * workers)  # the workers take slices in turn
        return rounds * size + min(rest, size)

    sizes = range(min(largest, count) // 2 + 1, min(largest, count) + 1)
    return min(sizes, key=lambda size: (largest_share(size), count % size > 0, -size), default=1)
