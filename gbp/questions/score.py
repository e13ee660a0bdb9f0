"""Scores: a number that is made of the class scores, with its gradient.

    logit             s_c                      e_c
    probability       p_c, of a Softmax        p_c · (e_c − p)         p: over the axes of the head
                      p_c, of a Sigmoid        p_c · (1 − p_c) · e_c
    log-probability   log p_c                  the same, divided by p_c
    margin            s_c − s_r                e_c − e_r               r: the best other class; in a detector,
                                                                       that of the same box
    sum               Σ s_c over the targets   Σ e_c
    a function f      f(s)                     ∂f/∂s

s are the class scores, and e_c is 1 at class c and 0 elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, calling
from .head import Head
from .questions import ScoreFunction, ScoreName
from .targets import Classes

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Value:
    """A score of each sample.

    Parameters
    ----------
    value
        float64 (N,).
    gradient
        float64 (N, classes): with respect to the class scores.
    """

    value: Doubles
    gradient: Doubles

    def __sub__(self, other: Value) -> Value:
        return Value(self.value - other.value, self.gradient - other.gradient)


def of_classes(
    name: ScoreName,
    scores: NDArray[np.float32],
    targets: NDArray[np.int64],
    head: Head | None,
    classes: Classes,
) -> Value:
    """A score of one class of each sample.

    Parameters
    ----------
    name
        Any but "sum".
    scores
        float32 (N, classes).
    targets
        int64 (N,).
    head
        The model's head, or None.
    classes
        The shape and the labels of a sample's scores.

    Raises
    ------
    InputError
        For a probability without a head, and for the margin of a single class, or where nothing says which
        axis of the scores holds the classes.
    """
    s, rows = scores.astype(np.float64), np.arange(len(scores))
    if name == "probability" and head is not None and not head.op:
        name = "logit"  # the scores are probabilities
    one = np.zeros_like(s)
    one[rows, targets] = 1
    if name == "margin":
        runner = np.where(_rivals(targets, classes, head), s, -np.inf).argmax(axis=1)
        one[rows, runner] -= 1
        return Value(s[rows, targets] - s[rows, runner], one)
    if name in ("probability", "log-probability"):
        if head is None:
            raise InputError(
                f"score is {name!r}, and the model has no head that makes probabilities.",
                supported="logit, margin, sum, or a function of the scores",
            )
        log_p, gradient = _log_probability(s, targets, one, head)
        if name == "probability":
            return Value(np.exp(log_p), gradient * np.exp(log_p)[:, None])
        return Value(log_p, gradient)
    return Value(s[rows, targets], one)


def _rivals(targets: NDArray[np.int64], classes: Classes, head: Head | None) -> NDArray[np.bool_]:
    """Which scores each target competes with, (N, classes): the other classes of the same box or pixel."""
    sizes: tuple[int, ...] = classes.axes
    along: tuple[int, ...] = (classes.labelled_axis or 0,)
    if len(sizes) > 1 and classes.labelled_axis is None:
        if head is None or not head.axes:
            raise InputError(
                f"scores of shape {list(classes.shape)} have no runner-up: nothing says which axis holds the "
                "classes.",
                hint="Give labels; or contrast two scores: Contrast(At(…), At(…)), --against.",
            )
        sizes, along = head.shape, head.axes
    rivals = np.zeros((len(targets), *sizes), np.bool_)
    for n, target in enumerate(targets):
        index = [int(i) for i in np.unravel_index(int(target), sizes)]
        group: list[Any] = [slice(None) if axis in along else i for axis, i in enumerate(index)]
        rivals[n][tuple(group)] = True
        rivals[n][tuple(index)] = False
    if not rivals.any():
        raise InputError("there is one class only, and no runner-up.", supported="score='logit'")
    return rivals.reshape(len(targets), -1)


def _log_probability(
    s: Doubles, targets: NDArray[np.int64], one: Doubles, head: Head
) -> tuple[Doubles, Doubles]:
    """log p of one class of each sample, and its gradient."""
    chosen = (s * one).sum(axis=1)
    if not head.op:
        if (chosen <= 0).any():
            raise InputError("the probability of a target is 0, and has no logarithm.")
        return np.log(chosen), one / chosen[:, None]
    if head.op == "Sigmoid":
        return -np.logaddexp(0, -chosen), one * np.exp(-np.logaddexp(0, chosen))[:, None]
    values, gradient = np.empty(len(s)), one.reshape(len(s), *head.shape).copy()
    for n, target in enumerate(targets):
        index = np.unravel_index(int(target), head.shape)
        group = tuple(slice(None) if axis in head.axes else i for axis, i in enumerate(index))
        x = s[n].reshape(head.shape)[group]
        log_sum = x.max() + np.log(np.exp(x - x.max()).sum())
        values[n] = chosen[n] - log_sum
        gradient[(n, *group)] -= np.exp(x - log_sum)
    return values, gradient.reshape(s.shape)


def of_function(f: ScoreFunction, scores: NDArray[np.float32], check: bool) -> Value:
    """The value and the gradient of a function of the scores.

    Parameters
    ----------
    f
        See `questions.ScoreFunction`.
    scores
        float32 (N, classes).
    check
        Whether its gradient is compared with finite differences.

    Raises
    ------
    InputError
        For results of another shape, for NaN and infinity, and where the gradient is not that of the value.
    """
    s = scores.astype(np.float64)
    found = _call(f, s)
    if check:
        rng, size = np.random.default_rng(0), max(1.0, float(np.abs(s).max()))
        for _ in range(2):
            direction = rng.standard_normal(s.shape)
            slope = (found.gradient * direction).sum(axis=1)
            steps = (1e-5 * size, 1e-3 * size)
            if not any(_is_slope(f, s, direction * step, slope * step) for step in steps):
                raise InputError(
                    f"the gradient that {_name(f)} returns is not that of its value.",
                    supported="(values (N,), their gradient (N, classes)), as finite differences find it",
                )
    return found


def _is_slope(f: ScoreFunction, s: Doubles, step: Doubles, expected: Doubles) -> bool:
    """Whether f changes by what is expected on a small step."""
    above, below = _call(f, s + step).value, _call(f, s - step).value
    changed = (above - below) / 2
    rounding = 1e-13 * np.maximum(np.abs(above), np.abs(below))
    return bool(
        (np.abs(changed - expected) <= 1e-2 * np.abs(changed) + 1e-3 * np.abs(expected) + rounding).all()
    )


def _call(f: ScoreFunction, s: Doubles) -> Value:
    """The caller's function of scores.  Raises InputError where it fails or returns something else."""
    expected = f"float (N,) and (N, classes), here {[len(s)]} and {list(s.shape)}"
    with calling(_name(f), expected):
        value, gradient = (np.asarray(found) for found in f(s))
        if not {value.dtype.kind, gradient.dtype.kind} <= set("fiub"):
            raise TypeError(f"it returned {value.dtype} and {gradient.dtype}")
        found = Value(value.astype(np.float64), gradient.astype(np.float64))
    if found.value.shape != s.shape[:1] or found.gradient.shape != s.shape:
        shapes = f"{list(found.value.shape)} and {list(found.gradient.shape)}"
        raise InputError(f"{_name(f)} returned shapes {shapes}.", supported=expected)
    if not (np.isfinite(found.value).all() and np.isfinite(found.gradient).all()):
        raise InputError(f"{_name(f)} returned NaN or infinity.")
    return found


def _name(f: ScoreFunction) -> str:
    return f"the score {getattr(f, '__name__', 'function')!r}"
