"""Which classes to explain: the argument `target` becomes indices into the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .limits import at_least_one


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
        at_least_one("k", self.k)


Target: TypeAlias = int | str | Top | Sequence[str] | ArrayLike | None

_SUPPORTED = "None, a class index, a label, Top(k), indices (N,) or (N, K), labels (N,), one-hot (N, C)"


def resolve(
    target: Target, scores: NDArray[np.float32], labels: tuple[str, ...] | None, part: slice, count: int
) -> NDArray[np.int64]:
    """Resolve a target for one slice of a batch.

    Parameters
    ----------
    target
        See `Explainer.explain`.
    scores
        float32 (n, classes): the scores of the slice.
    labels
        The names of the classes, or None.
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
    n, classes = scores.shape
    if target is None:
        return np.asarray(np.argmax(scores, axis=1), np.int64)
    if isinstance(target, Top):
        return np.argsort(-scores, axis=1, kind="stable")[:, : min(target.k, classes)].astype(np.int64)
    if isinstance(target, str):
        return np.full(n, _labelled(target, labels), np.int64)
    if isinstance(target, (list, tuple)) and target and all(isinstance(t, str) for t in target):
        target = [_labelled(str(t), labels) for t in target]
    given = _array(target)
    if given.ndim == 0:
        return np.full(n, _checked(given.reshape(1), classes)[0], np.int64)
    if given.ndim > 2 or len(given) != count:
        raise InputError(
            f"target has shape {list(given.shape)} for {count} image(s) and {classes} classes.",
            supported=_SUPPORTED,
        )
    indices = _from_one_hot(given, classes)
    return _checked(indices, classes)[part]


def _array(target: Any) -> NDArray[Any]:
    try:
        given = np.asarray(target)
    except ValueError:
        given = np.empty(0, object)
    if given.dtype.kind not in "iufb" or given.size == 0 or (given.dtype.kind == "b" and given.ndim < 2):
        raise InputError(f"target is {target!r:.80}.", supported=_SUPPORTED)
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
        raise InputError(f"target {int(wrong.reshape(-1)[0])} is no class.", supported=f"0 to {classes - 1}")
    return indices.astype(np.int64)


def _labelled(name: str, labels: tuple[str, ...] | None) -> int:
    if labels is None:
        raise InputError(
            f"target is {name!r}, and the labels of this model are not known.", hint="Give labels."
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
    near = [label for label in labels if name.casefold() in label.casefold()][:3]
    raise InputError(
        f"no class is called {name!r}.",
        hint=f"Did you mean {' or '.join(map(repr, near))}?" if near else None,
    )
