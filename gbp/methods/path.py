"""Integrated Gradients: the mean gradient on the way from a baseline to the image.

With the baseline x', the points x_i = x' + α_i (x - x') and their weights w_i, Σ w_i = 1 (Sundararajan, Taly
& Yan 2017, arXiv:1703.01365, section 3):

m = (x - x') · Σ_i w_i · ∂s/∂x(x_i)

It is complete: were the sum the integral, the map would add up to s(x) - s(x').
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arguments import array_of, fits, whole_number
from ..engine.repeated import Write
from ..engine.run import Run
from ..errors import InputError
from ..explainer import Explainer
from ..inputs import Images
from ..questions.questions import Question
from ..result.attribution import Attribution
from ..rules import Rule, rule_named
from .common import Questions, explained, mean_of_copies, with_details

Points: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]


def _gauss_legendre(steps: int) -> Points:
    points, weights = np.polynomial.legendre.leggauss(steps)
    return (1 + points) / 2, weights / 2


def _trapezoid(steps: int) -> Points:
    weights = np.full(steps, 1 / max(1, steps - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, steps), weights


def _midpoint(steps: int) -> Points:
    return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)


#: From the number of points to the points in 0..1 and their weights, which add up to 1.
QUADRATURES: dict[str, Callable[[int], Points]] = {
    "gauss-legendre": _gauss_legendre,
    "trapezoid": _trapezoid,
    "midpoint": _midpoint,
}
BASELINES = ("zero", "mean", "blur")
#: Most points.  Those of Gauss and Legendre are the eigenvalues of a matrix of as many rows.
_MAX_STEPS = {"gauss-legendre": 1000, "trapezoid": 1_000_000, "midpoint": 1_000_000}
#: The deviation of the blurred baseline, as a share of each side.
_BLUR = 0.1


def integrated_gradients(
    explainer: Explainer,
    images: Images,
    *,
    rule: str | Rule = "vanilla",
    target: Question = None,
    steps: int = 50,
    baseline: str | ArrayLike = "zero",
    quadrature: str = "gauss-legendre",
) -> Attribution:
    """Integrated Gradients (Sundararajan, Taly & Yan 2017, arXiv:1703.01365).

    Parameters
    ----------
    explainer
        The model.
    images, target
        As for `Explainer.explain`.
    rule
        The rule that explains each point.  The method is complete under "vanilla" alone.
    steps
        Points on the path: up to 1000 for "gauss-legendre", up to 1,000,000 for others; at least 2 for
        "trapezoid".
    baseline
        The start of the path.  "zero": zeros of the prepared input; where preprocessing subtracts a mean,
        that is the mean colour.  "mean": the mean of each channel in the sample.  "blur": the sample, blurred
        by a Gaussian whose deviation is a tenth of each side.  Or an array of prepared input: one number, (…)
        for all samples, or (N, …).
    quadrature
        "gauss-legendre", "trapezoid" or "midpoint".

    Returns
    -------
    An `Attribution`.  Its details hold "steps", "baseline" ("given" for an array) and "quadrature"; and
    float64 (N,), or (N, K) for K targets: "score_difference", s(x) - s(x'), and "completeness_error", the sum
    of the map minus that.

    Raises
    ------
    InputError
        For arguments that cannot be used.
    """
    if not isinstance(quadrature, str) or quadrature not in QUADRATURES:
        raise InputError(f"quadrature is {quadrature!r}.", supported=", ".join(QUADRATURES))
    count = whole_number("steps", steps)
    if quadrature == "trapezoid" and count < 2:
        raise InputError(f"steps is {count}.", supported="at least 2 for the trapezoid")
    if count > _MAX_STEPS[quadrature]:
        raise InputError(f"steps is {count}.", supported=f"up to {_MAX_STEPS[quadrature]} for {quadrature}")
    if isinstance(baseline, str) and baseline not in BASELINES:
        raise InputError(f"baseline is {baseline!r}.", supported=f"{', '.join(BASELINES)}, or an array")
    points, weights = QUADRATURES[quadrature](count)

    def of_sample(
        x: NDArray[np.float32], start: NDArray[np.float64], questions: Questions
    ) -> NDArray[np.float64]:
        way = x - start

        def copies(part: slice) -> Write:
            def write(some: slice, to: NDArray[np.float32]) -> None:
                to[...] = start + points[part][some].reshape(-1, *(1,) * x.ndim) * way

            return write

        mean = mean_of_copies(explainer, x, copies, count, weights, questions, rule, lambda scores: None)
        mean *= way
        return mean

    def compute(run: Run, questions: Questions) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        after = questions.values(run)
        run.close()  # its memory serves the points
        starts = _starts(baseline, run)
        runs = explainer.runs(starts.astype(np.float32), questions.kept)
        before = np.concatenate([questions[each.samples].values(each) for each in runs])
        difference = after - before
        each = enumerate(zip(run.x, starts, strict=True))
        maps = np.stack([of_sample(x, start, questions[i : i + 1]) for i, (x, start) in each])
        total = maps.reshape(*difference.shape, -1).sum(axis=2)
        return maps, {"score_difference": difference, "completeness_error": total - difference}

    found = explained(explainer, images, target, rule, "integrated-gradients", compute, looks_at_image=True)
    name = baseline if isinstance(baseline, str) else "given"
    return with_details(
        found,
        _notes(found, rule_named(rule), name, count, quadrature),
        steps=count,
        baseline=name,
        quadrature=quadrature,
    )


def _notes(found: Attribution, rule: Rule, baseline: str, steps: int, quadrature: str) -> list[str]:
    error, difference = found.details["completeness_error"], found.details["score_difference"]
    worst = np.unravel_index(np.abs(error).argmax(), error.shape)
    worst_of = "" if error.size == 1 else ", the largest of all"
    notes = [
        f"Integrated Gradients, {steps} points ({quadrature}) from the baseline {baseline!r}: the map adds "
        f"up to the score's difference of {difference[worst]:.4g} with an error of "
        f"{error[worst]:.2g}{worst_of}.  A pixel that equals the baseline gets 0, whatever it means to the "
        "network."
    ]
    is_gradient = (
        rule.forward_gate and not rule.gradient_gate and rule.rewrite is None and rule.finish is None
    )
    if not is_gradient:
        notes.append(
            f"Under {rule.name!r} Integrated Gradients is not complete: it is so for the gradient alone."
        )
    return notes


def _starts(baseline: str | ArrayLike, run: Run) -> NDArray[np.float64]:
    """The baseline of each sample of a run, float64 (n, …)."""
    x = run.x.astype(np.float64)
    if not isinstance(baseline, str):
        return _given(baseline, run)
    if baseline == "zero":
        return np.zeros_like(x)
    # The axes of a plane; a row of numbers has none, and is one channel.
    axes = {"NHWC": (1, 2), "NC": (1,)}.get(run.layout, tuple(range(2, x.ndim)))
    if baseline == "mean":
        return np.broadcast_to(x.mean(axis=axes, keepdims=True), x.shape)
    for axis in axes:
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ _gaussian(x.shape[axis]), -1, axis)
    return x


def _gaussian(size: int) -> NDArray[np.float64]:
    """The matrix (size, size) that blurs a row of numbers; at the ends its weights are made up to 1."""
    at = np.arange(size) / (_BLUR * size)
    weights = np.exp(-0.5 * (at[:, None] - at) ** 2)
    return np.asarray(weights / weights.sum(axis=0))


def _given(baseline: ArrayLike, run: Run) -> NDArray[np.float64]:
    """An array of the caller as one baseline for each sample of a run."""
    given, shape = array_of(baseline), (run.count, *run.x.shape[1:])
    if not fits(given, shape):
        sizes = ", ".join(map(str, shape[1:]))
        what = f"an array {list(given.shape)} of {given.dtype}" if given.ndim else f"{baseline!r:.80}"
        raise InputError(
            f"baseline is {what}.",
            supported=f"{', '.join(BASELINES)}, a finite number, or an array [{sizes}] or [N, {sizes}]",
        )
    return np.broadcast_to(given, shape)[run.samples].astype(np.float64)
