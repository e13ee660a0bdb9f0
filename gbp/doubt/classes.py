"""Class sensitivity: whether the map of one class differs from the maps of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import InputError
from ..arguments import numbers_of, whole_number
from ..errors import calling
from ..result.similarity import cosine


def class_sensitivity(
    explain: Callable[[NDArray[np.int64]], NDArray[Any]],
    scores: NDArray[Any],
    *,
    others: int = 8,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The cosine of each sample's best class' map with the maps of other classes, drawn at random.

    About 1 means that the maps do not depend on the class.  For one rule of an `Explainer`:

        class_sensitivity(lambda t: explainer.explain(x, rule="guided", target=t).map, explainer.predict(x))

    Parameters
    ----------
    explain
        A function that explains the same N samples: targets, int64 (N, 1 + K), → maps (N, 1 + K, …).
    scores
        The samples' scores, (N, classes).
    others
        How many other classes, at most; fewer where the model has fewer.
    seed
        The seed of the draw.

    Returns
    -------
    float64 (N, K): one cosine for each other class.

    Raises
    ------
    InputError
        For a model of one score, for arguments that cannot be used, and where `explain` fails or returns
        maps of another shape.
    """
    whole_number("others", others)
    n, classes = scores.shape
    if classes < 2:
        raise InputError("the model has one score.", supported="two classes and more")
    rng, k = np.random.default_rng(whole_number("seed", seed, 0)), min(others, classes - 1)
    best = scores.argmax(axis=1)
    drawn = np.array([rng.permutation(np.delete(np.arange(classes), b))[:k] for b in best], np.int64)
    with calling("explain"):
        found = explain(np.concatenate([best[:, None], drawn], axis=1))
    maps = numbers_of("explain returned", found, (n, 1 + k), more=True)
    return np.array([[cosine(first, other) for other in rest] for first, *rest in maps])
