"""Which classes to explain: the argument `target` becomes indices into the scores."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arguments import array_of, whole_number
from ..errors import InputError, counted


@dataclass(frozen=True)
class Top:
    """A value for `target=`: the k classes with the highest scores, for each sample its own.

    Parameters
    ----------
    k
        How many classes; all of them where the model has fewer.

    Raises
    ------
    InputError
        Unless k is a whole number of at least 1.
    """

    k: int = 5

    def __post_init__(self) -> None:
        whole_number("k", self.k)


class At:
    """A value for `target=`: one score of a detector or a segmenter, by its index along each axis.

    `At(5763, 1)` is score 1 of box 5763 where a sample's scores have the shape (8400, 85).  A label alone is
    the highest score of its class.

    Parameters
    ----------
    *indices
        One for each axis of a sample's scores, without the batch; axes of size 1 may be left out.  Along the
        axis that has labels, a label will do: `At(5763, "dog")`.

    Raises
    ------
    InputError
        For what is neither a whole number of at least 0 nor a label.
    """

    def __init__(self, *indices: int | str) -> None:
        for index in indices:
            is_index = isinstance(index, (int, np.integer)) and not isinstance(index, bool) and index >= 0
            if not (is_index or isinstance(index, str)):
                raise InputError(f"At holds {index!r}.", supported="whole numbers of at least 0, and a label")
        if not indices:
            raise InputError("At() has no index.", supported="one for each axis of a sample's scores")
        self.indices: tuple[int | str, ...] = tuple(i if isinstance(i, str) else int(i) for i in indices)

    def __repr__(self) -> str:
        return f"At({', '.join(map(repr, self.indices))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, At) and self.indices == other.indices

    def __hash__(self) -> int:
        return hash(self.indices)


Target: TypeAlias = int | str | Top | At | Sequence[str] | ArrayLike | None

_SUPPORTED = (
    "None, a class index, a label, Top(k), At(index, …), indices or labels (N,) or (N, K), one-hot (N, C)"
)
#: Labels that a message shows.
_MAX_SHOWN = 5
#: Digits of an index; Python refuses to read 5,000.
_MAX_DIGITS = 18


@dataclass(frozen=True)
class Classes:
    """The shape and the labels of one sample's scores.

    Parameters
    ----------
    shape
        The shape of the explained tensor, without the batch.  A class is an index into it, flattened.
    labels
        Names along one of the axes: the last axis whose size is the number of labels.
    """

    shape: tuple[int, ...]
    labels: tuple[str, ...] | None = None

    def check_labels(self) -> None:
        """Raise InputError if there are labels and no axis has as many elements."""
        if self.labels is not None and self.labelled_axis is None:
            found = (
                counted(self.count, "score") if len(self.axes) == 1 else f"scores of shape {list(self.shape)}"
            )
            if self.count == 1:
                hint = "A network of one score has one class: name what a high score stands for."
            elif len(self.labels) + 1 in self.axes:
                hint = "Some models have a background class at index 0: put a line for it."
            elif len(self.axes) > 1:
                hint = "Labels name all elements of one axis of the scores, the sides of boxes too."
            else:
                hint = "Labels name each score, in the order of the network."
            raise InputError(
                f"{counted(len(self.labels), 'label')} and {found} do not fit together.", hint=hint
            )

    @property
    def count(self) -> int:
        """How many scores there are."""
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[int, ...]:
        """The sizes of the axes with more than one element; one axis if the labels name all scores."""
        if self.labels is not None and len(self.labels) == self.count:
            return (self.count,)
        return tuple(n for n in self.shape if n != 1) or (1,)

    @property
    def labelled_axis(self) -> int | None:
        """The position in `axes` of the axis that the labels name; None if there is none."""
        found = [i for i, n in enumerate(self.axes) if self.labels is not None and n == len(self.labels)]
        return found[-1] if found else None

    def position(self, number: int) -> str:
        """The position of a score in the form of the command line: "5763:1", or "7" with a single axis."""
        return ":".join(map(str, np.unravel_index(number, self.axes)))

    def name(self, number: int) -> str:
        """The label of a score, with its position if there are several axes; "class 7" without labels."""
        place, axis = self.position(number), self.labelled_axis
        if self.labels is None or axis is None:
            return f"class {place}" if len(self.axes) == 1 else f"score {place}"
        label = self.labels[np.unravel_index(number, self.axes)[axis]]
        return label if len(self.axes) == 1 else f"{label} ({place})"

    def number(self, target: At) -> int:
        """The class that `target` means, an index into the flattened scores.  Raises InputError for none."""
        sizes = self.axes if len(target.indices) == len(self.axes) else self.shape
        if len(target.indices) != len(sizes):
            raise InputError(
                f"target {target!r} has {len(target.indices)} indices, and the scores have shape "
                f"{list(self.shape)}.",
                supported="one index for each axis",
            )
        real = [i for i, n in enumerate(sizes) if n != 1 or len(sizes) == 1]
        named = real[self.labelled_axis or 0] if len(real) == len(self.axes) else None
        indices: list[int] = []
        for axis, (given, size) in enumerate(zip(target.indices, sizes, strict=True)):
            if isinstance(given, str) and axis != named and self.labels is not None:
                raise InputError(f"target {target!r} has a label along axis {axis}, which has none.")
            index = _labelled(given, self.labels) if isinstance(given, str) else given
            if index >= size:
                raise InputError(
                    f"target {target!r}: there is no {index} along axis {axis} of the scores.",
                    supported=f"0 to {size - 1}",
                )
            indices.append(index)
        return int(np.ravel_multi_index(indices, sizes))

    def labelled(self, name: str, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """The class with this label for each sample; with several axes, its highest score.

        Parameters
        ----------
        name
            The label.
        scores
            float32 (n, classes).

        Returns
        -------
        Class indices, int64 (n,).

        Raises
        ------
        InputError
            If no class has the label, or more than one.
        """
        numbers = np.arange(self.count).reshape(self.axes)
        named = numbers.take(_labelled(name, self.labels), axis=self.labelled_axis or 0).reshape(-1)
        return np.asarray(named[scores[:, named].argmax(axis=1)], np.int64)

    def beside(self, numbers: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        """The class with this label for each sample; with several axes, at the place of `numbers` (n,)."""
        places = list(np.unravel_index(numbers, self.axes))
        places[self.labelled_axis or 0] = np.full_like(numbers, _labelled(name, self.labels))
        return np.asarray(np.ravel_multi_index(places, self.axes), np.int64)


def target_of(text: str) -> int | str | At:
    """A target that is written as text: "7" is an index, "5763:1" or "5763:dog" an `At`, all else a label."""
    if text.removeprefix("-").isdecimal() and len(text) <= _MAX_DIGITS:
        return int(text)
    parts = text.split(":")
    named = [part for part in parts if not (part.isdecimal() and len(part) <= _MAX_DIGITS)]
    if len(parts) > 1 and len(named) <= 1 and all(parts):
        return At(*(part if part in named else int(part) for part in parts))
    return text


def resolve(
    target: Any, scores: NDArray[np.float32], classes: Classes, part: slice, count: int
) -> NDArray[np.int64]:
    """Resolve a target for one slice of a batch.

    Parameters
    ----------
    target
        See `Explainer.explain`.
    scores
        float32 (n, classes): the scores of the slice.
    classes
        The shape and the labels of the scores.
    part
        The slice of the batch: n samples.
    count
        Samples in the whole batch.

    Returns
    -------
    Class indices, int64 (n,) or (n, K).

    Raises
    ------
    InputError
        For an index or a label that does not exist, and for an array whose shape does not fit.
    """
    n, asked = len(scores), target
    if target is None:
        return np.asarray(scores.argmax(axis=1), np.int64)
    if type(target) is int and 0 <= target < classes.count:
        return np.array([target] * n, np.int64)
    if isinstance(target, Top):
        best = np.argsort(-scores, axis=1, kind="stable")
        return best[:, : min(target.k, classes.count)].astype(np.int64)
    if isinstance(target, At):
        return np.full(n, classes.number(target), np.int64)
    if isinstance(target, str):
        return classes.labelled(target, scores)
    if isinstance(target, (list, tuple)) and target and all(isinstance(t, str) for t in target):
        named = np.array([classes.labelled(str(t), scores) for t in target])  # a row for each label
        target = named[:, 0]
        if len(target) == count:
            target[part] = named[part].diagonal()
    elif isinstance(target, (list, tuple)) and target and all(isinstance(t, At) for t in target):
        target = [classes.number(t) for t in target if isinstance(t, At)]
    elif isinstance(target, (list, tuple)) and len(classes.axes) == 1:
        target = [
            [_number(t, classes) for t in row] if isinstance(row, (list, tuple)) else _number(row, classes)
            for row in target
        ]
    given = _array(target, asked)
    if given.ndim == 0:
        return np.full(n, _checked(given.reshape(1), classes.count)[0], np.int64)
    if given.ndim > 2 or len(given) != count:
        raise InputError(
            f"target has shape {list(given.shape)} for {counted(count, 'image')} of {classes.count} classes.",
            supported=_SUPPORTED,
            hint=_hint_of_several(asked),
        )
    indices = _from_one_hot(given, classes.count)
    return _checked(indices, classes.count)[part]


def _number(target: Any, classes: Classes) -> Any:
    """A label or a place as the number of the class; all else as it is."""
    if isinstance(target, At):
        return classes.number(target)
    return _labelled(target, classes.labels) if isinstance(target, str) else target


def _hint_of_several(target: Any) -> str | None:
    """Advice on a list that names a target for each image, where it does not name as many."""
    if not isinstance(target, (list, tuple)) or not all(isinstance(t, (int, str, At)) for t in target):
        return None
    shown = [*map(repr, target[:_MAX_SHOWN]), *(["…"] * (len(target) > _MAX_SHOWN))]
    return f"For several targets of each image give gbp.Several({', '.join(shown)})."


def _array(target: Any, asked: Any) -> NDArray[Any]:
    given = array_of(target)
    if given.dtype.kind not in "iufb" or given.size == 0 or (given.dtype.kind == "b" and given.ndim < 2):
        raise InputError(f"target is {asked!r:.80}.", supported=_SUPPORTED)
    return given


def _from_one_hot(given: NDArray[Any], classes: int) -> NDArray[Any]:
    """The positions of the ones, if `given` is one-hot: float or bool (N, C).  Else `given` itself."""
    if given.ndim != 2 or given.shape[1] != classes or given.dtype.kind not in "fb":
        return given
    is_one_hot = bool(((given == 0) | (given == 1)).all() and (given.sum(axis=1) == 1).all())
    return given.argmax(axis=1) if is_one_hot else given


def _checked(indices: NDArray[Any], classes: int) -> NDArray[np.int64]:
    if indices.dtype.kind not in "iu":
        raise InputError(f"target holds {indices.dtype}.", supported=_SUPPORTED)
    wrong = indices[(indices < 0) | (indices >= classes)]
    if wrong.size:
        found = f"target {int(wrong.reshape(-1)[0])} is no class"
        if classes == 1:
            raise InputError(
                f"{found}: the network has one score, which is class 0.",
                hint="Of two classes a high score stands for one: what lowers it speaks for the other.",
            )
        raise InputError(f"{found}.", supported=f"0 to {classes - 1}")
    return indices.astype(np.int64)


def _labelled(name: str, labels: tuple[str, ...] | None) -> int:
    """The index of a label: as it is, else in other case, else as one of the synonyms of a label."""
    best = re.fullmatch(r"top(\d+)", name.casefold())  # as the command line and `gbp serve` take it
    several = f"For the highest scores give gbp.Top({best[1]})." if best else None
    if labels is None:
        raise InputError(
            f"target is {name!r}, and the labels of this model are not known.", hint=several or "Give labels."
        )
    found = [i for i, label in enumerate(labels) if label == name]
    found = found or [i for i, label in enumerate(labels) if label.casefold() == name.casefold()]
    # ImageNet's labels list synonyms: "lion, king of beasts, Panthera leo".
    found = found or [
        i
        for i, label in enumerate(labels)
        if name.casefold() in (part.strip().casefold() for part in label.split(","))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"target {name!r} names {len(found)} classes: {found[:5]}.", hint="Give the index.")
    near = _near(name, labels)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else None
    if name.strip().isdecimal():
        hint = "An index is an integer, and no text."
    raise InputError(f"no class is called {name!r}.", hint=several or hint)


def _near(name: str, labels: tuple[str, ...]) -> list[str]:
    """Labels with the name as a word, else with words that begin so, else spelled alike or around it."""
    said = name.casefold()
    words = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
    begin = re.compile(rf"(?<!\w){re.escape(name)}", re.IGNORECASE)
    near = [label for label in labels if name and words.search(label)]
    near = near or [label for label in labels if name and begin.search(label)]
    if not near:
        spelled: dict[str, list[str]] = {}
        for label in labels:
            text = label.casefold()
            for part in {*map(str.strip, text.split(",")), *re.findall(r"\w+", text)}:
                spelled.setdefault(part, []).append(label)
        parts = get_close_matches(said, spelled, _MAX_SHOWN)
        parts.sort(key=lambda part: sorted(part) != sorted(said))  # the same letters in another order first
        near = [label for part in parts for label in spelled[part]]
        near += [label for label in labels if name and said in label.casefold()]
    return list(dict.fromkeys(near))[:_MAX_SHOWN]
