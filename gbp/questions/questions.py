"""Values for `target=` and `score=` that ask for more than one class's score: units, contrasts, functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ..arguments import whole_number
from ..errors import InputError
from .targets import At, Target

#: The gradient with which a hidden unit starts the backward pass: 1, or its activation.
UnitSeed: TypeAlias = Literal["one", "activation"]
#: A function of the scores, float64 (N, classes), that returns its values (N,) and its gradient (N, classes).
ScoreFunction: TypeAlias = Callable[[NDArray[np.float64]], tuple[Any, Any]]
ScoreName: TypeAlias = Literal["logit", "probability", "log-probability", "margin", "sum"]
Score: TypeAlias = ScoreName | ScoreFunction

SCORES: tuple[ScoreName, ...] = get_args(ScoreName)


def _checked_seed(seed: str) -> UnitSeed:
    if seed == "one":
        return "one"
    if seed == "activation":
        return "activation"
    raise InputError(f"seed is {seed!r}.", supported=", ".join(get_args(UnitSeed)))


def _argument_of(seed: UnitSeed) -> str:
    return "" if seed == "one" else f", seed={seed!r}"


class _Question:
    """Equal where all fields are."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *map(str, vars(self).items())))


class Unit(_Question):
    """A value for `target=`: one unit of a hidden tensor, or its strongest.

    `Unit("relu3", 17, 5, 7)` is the unit of channel 17 in row 5 and column 7.

    Parameters
    ----------
    tensor
        The name of a tensor or node, or a part of it that no other has; `Explainer.tensors` lists them.
    *position
        Its index along each axis of a sample's tensor, in the file's order; axes of size 1 may be left out.
        Without any: each sample's strongest unit.
    seed
        "one", or "activation": the gradient times the unit's activation, as DeconvNets have it.

    Raises
    ------
    InputError
        For what is no index or no seed.
    """

    def __init__(self, tensor: str, *position: int, seed: UnitSeed = "one") -> None:
        self.tensor, self.seed = tensor, _checked_seed(seed)
        self.position = tuple(whole_number("an index of a unit", i, 0) for i in position)

    def __repr__(self) -> str:
        return f"Unit({', '.join(map(repr, (self.tensor, *self.position)))}{_argument_of(self.seed)})"


class Channel(_Question):
    """A value for `target=`: one channel of a hidden tensor.

    Parameters
    ----------
    tensor
        As for `Unit`.
    channel
        Its index.
    how
        "max": each sample's strongest unit of the channel; "sum": the sum of its units.
    seed
        As for `Unit`.
    axis
        The axis of a sample's tensor that holds the channels; by default what the ops say of it
        (`Tensor.channels`), else 0.

    Raises
    ------
    InputError
        For what is no index, no seed, or no other of these values.
    """

    def __init__(
        self,
        tensor: str,
        channel: int,
        how: Literal["max", "sum"] = "max",
        *,
        seed: UnitSeed = "one",
        axis: int | None = None,
    ) -> None:
        if how not in ("max", "sum"):
            raise InputError(f"how is {how!r}.", supported="max, sum")
        self.tensor, self.channel, self.how = tensor, whole_number("channel", channel, 0), how
        self.seed, self.axis = _checked_seed(seed), None if axis is None else whole_number("axis", axis, 0)

    def __repr__(self) -> str:
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"Channel({self.tensor!r}, {self.channel}, {self.how!r}{_argument_of(self.seed)}{axis})"


class Contrast(_Question):
    """A value for `target=`: the score of one class minus that of another.

    Parameters
    ----------
    for_
        A class: an index, a label, or `At(…)`.
    against
        Another class.  A label is looked up beside `for_` where the scores have several axes: of the same box
        or pixel.
    """

    def __init__(self, for_: int | str | At, against: int | str | At) -> None:
        self.for_, self.against = for_, against

    def __repr__(self) -> str:
        return f"Contrast({self.for_!r}, {self.against!r})"


class Several(_Question):
    """A value for `target=`: several questions, the same for each sample, with a map for each.

    Parameters
    ----------
    *targets
        Class indices, labels, `At`, `Unit`, `Channel` and `Contrast`, in any mixture.

    Raises
    ------
    InputError
        Without any.
    """

    def __init__(self, *targets: Any) -> None:
        if not targets:
            raise InputError("Several() has no target.", supported="at least one")
        self.targets = targets

    def __repr__(self) -> str:
        return f"Several({', '.join(map(repr, self.targets))})"


def is_hidden(target: object) -> bool:
    """Whether a target is more than classes."""
    if isinstance(target, Several):
        return any(map(is_hidden, target.targets))
    return isinstance(target, (Unit, Channel, Contrast))


Question: TypeAlias = Target | Unit | Channel | Contrast | Several


def checked_score(score: Score | None) -> Score | None:
    """`score`, None for "logit".  Raises InputError for another name."""
    if score is not None and not callable(score) and not (isinstance(score, str) and score in SCORES):
        raise InputError(
            f"score is {score!r:.80}.", supported=f"{', '.join(SCORES)}, or a function of the scores"
        )
    return None if score == "logit" else score
