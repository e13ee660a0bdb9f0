"""Explains what is more than classes: hidden units, contrasts, and scores made of the class scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..graph.tensors import Tensor
from ..inputs import Images
from ..limits import elements
from ..questions.questions import Channel, Contrast, Question, Score, Several, Unit
from ..questions.score import Value, of_classes, of_function
from ..questions.targets import Classes
from ..result.attribution import Attribution, joined
from ..result.doubts import doubted
from ..rules import Rule
from .network import Network
from .run import Run

#: Bytes of seeds that are made at a time.
_MAX_BYTES = 2**26


@dataclass(frozen=True)
class Asked:
    """One question, asked of each sample of a run.

    Parameters
    ----------
    of
        A kept tensor, or None for the scores.
    seed
        float32 (N, …): where the backward pass starts.
    value
        float32 (N,): what is explained.
    names
        Its name in captions, for each sample.
    classes
        int64 (N,): the class that it is about; that of the highest score for a hidden unit.
    """

    of: str | None
    seed: NDArray[np.float32]
    value: NDArray[np.float32]
    names: Sequence[str]
    classes: NDArray[np.int64]


def explained(
    network: Network,
    images: Images,
    rule: Rule,
    question: Question,
    score: Score | None,
    batch_size: int | None,
) -> Attribution:
    """The maps of a question.

    Parameters
    ----------
    network, images
        The model, and what is explained.
    rule
        The rule of the maps.
    question
        One that `Explainer.explain` takes as `target`, or several.
    score, batch_size
        As for `Explainer.explain`.

    Raises
    ------
    InputError
        Where the model has no such unit or class, or the score does not go with the question.
    """
    items = question.targets if isinstance(question, Several) else (question,)
    keep = [item.tensor for item in items if isinstance(item, (Unit, Channel))]
    if keep and score is not None:
        raise InputError("a hidden unit has no score.", hint="Leave the score out.")
    parts: list[Attribution] = []
    for run in network.runs(images, keep, batch_size=batch_size):
        asked, is_one = ask(run, items, score, first=not parts)
        maps = _maps(run, asked, rule)
        classes = np.stack([each.classes for each in asked], axis=1)
        found = run.attribution(maps[:, 0] if is_one else maps, classes[:, 0] if is_one else classes, rule)
        names = np.array([each.names for each in asked]).T
        values = np.stack([each.value for each in asked], axis=1)
        details: dict[str, Any] = {
            "question": names[:, 0] if is_one else names,
            "value": values[:, 0] if is_one else values,
        }
        parts.append(replace(found, details=details))
    found = joined(parts)
    # Seeds of other scores and of hidden units depend on the image themselves.
    looks = bool(keep) or score not in (None, "logit", "sum")
    found = replace(found, notes=(*found.notes, *_dead(found, bool(keep))))
    return doubted(found, looks)


def ask(
    run: Run, items: Sequence[Any], score: Score | None = None, first: bool = False
) -> tuple[list[Asked], bool]:
    """The questions about a run; and whether there is one for each sample, without an axis for K.

    Parameters
    ----------
    run
        The run, which keeps the tensors of `Unit` and `Channel`.
    items
        The values of `target`.
    score
        As for `Explainer.explain`.
    first
        Whether a function of the scores is compared with finite differences.
    """
    if callable(score):
        if list(items) != [None]:
            raise InputError("the score is a function of all scores.", hint="Leave the target out.")
        name = getattr(score, "__name__", "function")
        best = run.scores.argmax(axis=1)
        return [_of_scores(of_function(score, run.scores, first), [name] * len(run), best)], True
    found = [_of_item(run, item, score) for item in items]
    asked = [each for several, _ in found for each in several]
    if score != "sum":
        return asked, len(items) == 1 and found[0][1]
    if any(isinstance(item, Contrast) for item in items):
        raise InputError("score is 'sum', and the target a contrast.", hint="Leave the score out.")
    return [_sum(asked)], True


def _of_item(run: Run, item: Any, score: Any) -> tuple[list[Asked], bool]:
    """The questions that one value of `target` asks, and whether it is one, without an axis for K."""
    if isinstance(item, (Unit, Channel)):
        return [_hidden(run, item)], True
    if isinstance(item, Contrast):
        return [_contrast(run, item, score)], True
    classes, targets = Classes(run.score_shape, run.labels), run.targets(item)
    asked = []
    for column in targets.reshape(len(run), -1).T:
        value = of_classes(_named(score), run.scores, column, run.head, classes)
        asked.append(_of_scores(value, _names(run, column, _named(score)), column))
    return asked, targets.ndim == 1


def _contrast(run: Run, item: Contrast, score: Any) -> Asked:
    """The difference of two classes' scores."""
    classes = Classes(run.score_shape, run.labels)
    for_ = _classes_of(run, item.for_)
    other = item.against
    ends = (for_, classes.beside(for_, other) if isinstance(other, str) else _classes_of(run, other))
    a, b = (of_classes(_named(score), run.scores, end, run.head, classes) for end in ends)
    names = [f"{x} - {y}" for x, y in zip(*(_names(run, end, "logit") for end in ends), strict=True)]
    prefix = "" if score is None else f"{score} of "
    return _of_scores(a - b, [prefix + name for name in names], ends[0])


def _sum(asked: Sequence[Asked]) -> Asked:
    """The sum of what is asked, about the first class."""
    total = Value(
        np.sum([each.value for each in asked], axis=0, dtype=np.float64),
        np.sum([each.seed for each in asked], axis=0, dtype=np.float64),
    )
    names = [" + ".join(row) for row in zip(*(each.names for each in asked), strict=True)]
    return _of_scores(total, names, asked[0].classes)


def _named(score: Any) -> Any:
    """The score of a single class."""
    return "logit" if score in (None, "sum") else score


def _of_scores(value: Value, names: Sequence[str], classes: NDArray[np.int64]) -> Asked:
    return Asked(None, value.gradient.astype(np.float32), value.value.astype(np.float32), names, classes)


def _classes_of(run: Run, target: Any) -> NDArray[np.int64]:
    found = run.targets(target)
    if found.ndim != 1:
        raise InputError(f"a contrast holds {target!r}.", supported="a class index, a label, or At(…)")
    return found


def _names(run: Run, targets: NDArray[np.int64], score: str) -> list[str]:
    classes = Classes(run.score_shape, run.labels)
    names = [classes.name(int(number)) for number in targets]
    return names if score == "logit" else [f"{score} of {name}" for name in names]


def _hidden(run: Run, item: Unit | Channel) -> Asked:
    """A unit or a channel of a kept tensor."""
    tensor = run.tensor(item.tensor)
    value = run.value(tensor.name)
    n, flat = len(run), value.reshape(len(run), -1)
    where = np.zeros(tensor.shape, np.bool_)
    where[_place(item, tensor)] = True
    chosen = np.broadcast_to(where.reshape(-1), flat.shape)
    if isinstance(item, Unit) or item.how == "max":
        best = np.where(chosen, flat, -np.inf).argmax(axis=1)
        chosen = np.arange(flat.shape[1]) == best[:, None]
        units = [":".join(map(str, np.unravel_index(int(i), tensor.shape))) for i in best]
        names = [f"{tensor.name} {unit}" for unit in units]
    else:
        names = [f"{tensor.name} channel {item.channel}"] * n
    seed = (chosen * (flat if item.seed == "activation" else np.float32(1))).astype(np.float32)
    is_scores = tensor.name == run.scores_name
    return Asked(
        None if is_scores else tensor.name,
        seed if is_scores else seed.reshape(value.shape),
        np.where(chosen, flat, 0).sum(axis=1, dtype=np.float64).astype(np.float32),
        names,
        run.scores.argmax(axis=1),
    )


def _place(item: Unit | Channel, tensor: Tensor) -> tuple[Any, ...]:
    """The index of a unit or a channel into a sample's tensor.  Raises InputError where there is none."""
    shape = tensor.shape
    if isinstance(item, Channel):
        axis = (tensor.channels or 0) if item.axis is None else item.axis
        if axis >= len(shape) or item.channel >= shape[axis]:
            raise InputError(
                f"{item.tensor!r} has shape {list(shape)}, and no channel {item.channel} along axis {axis}."
            )
        return (slice(None),) * axis + (item.channel,)
    if not item.position:
        return (...,)
    real = [i for i, size in enumerate(shape) if size > 1]
    axes = real if len(item.position) == len(real) else list(range(len(shape)))
    if len(item.position) != len(axes) or any(
        i >= shape[axis] for i, axis in zip(item.position, axes, strict=True)
    ):
        place = ",".join(map(str, item.position))
        raise InputError(
            f"{item.tensor!r} has shape {list(shape)}, and no unit {place}.",
            supported="an index for each axis",
        )
    index = [0] * len(shape)
    for i, axis in zip(item.position, axes, strict=True):
        index[axis] = i
    return tuple(index)


def _maps(run: Run, asked: Sequence[Asked], rule: Rule) -> NDArray[np.float32]:
    """The maps (N, K, …): neighbours that are of the same tensor as one batch."""
    parts: list[NDArray[np.float32]] = []
    start = 0
    while start < len(asked):
        first = asked[start]
        limit = start + max(1, _MAX_BYTES // (4 * elements(first.seed.shape)))
        stop = start + 1
        while stop < min(limit, len(asked)) and asked[stop].of == first.of:
            stop += 1
        seeds = np.stack([each.seed for each in asked[start:stop]], axis=1)
        parts.append(run.vjp(seeds, rule, of=first.of))
        start = stop
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _dead(found: Attribution, hidden: bool) -> list[str]:
    """A note where hidden units are 0."""
    count = int((found.details["value"] == 0).sum()) if hidden else 0
    if not count:
        return []
    total = found.details["value"].size
    return [f"{count} of {total} explained units are 0: nothing in the image excites them."]
