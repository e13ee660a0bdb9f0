"""Whether the score follows what a map says: deletion and insertion, infidelity and sensitivity."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import Attribution, Explainer, Images, InputError
from ..arguments import array_of, fits, numbers_of, whole_number
from ..errors import calling

#: Petsiuk et al. blur 224 pixels with a window of 11 and a deviation of 5.
_BLUR, _BLUR_TAPS = 5.0, 11
#: Samples that are perturbed at a time.
_CHUNK = 32


@dataclass(frozen=True, eq=False)
class Curve:
    """How the score moves while pixels are deleted or inserted.

    Parameters
    ----------
    fraction
        float64 (steps + 1,): the share of the pixels that were changed, 0 to 1.
    score
        float64 (N, steps + 1): the explained class' score, or probability, of each sample.
    """

    fraction: NDArray[np.float64]
    score: NDArray[np.float64]

    @property
    def auc(self) -> NDArray[np.float64]:
        """The area under the curve of each sample, float64 (N,), by trapezoids."""
        return np.asarray(np.trapezoid(self.score, self.fraction, axis=1))


def deletion(
    explainer: Explainer,
    images: Images,
    found: Attribution,
    *,
    steps: int = 50,
    baseline: ArrayLike = 0.0,
    measure: Callable[[NDArray[np.float32]], NDArray[Any]] | None = None,
) -> Curve:
    """Replace pixels by the baseline, the most relevant first: the lower the area, the better the map.

    Source: Petsiuk, Das & Saenko 2018 (RISE).

    Parameters
    ----------
    explainer
        The model.
    images
        The images that were explained, as for `Explainer.explain`.
    found
        Their explanation, with one target each.  Pixels are ordered by its `reduce("abs-max")`; of equal
        ones the first in row-major order goes first.
    steps
        In how many equal parts the pixels are replaced.
    baseline
        Numbers in the model's input layout that take the pixels' place; they broadcast to (N, …).
    measure
        The measured quantity, a function of the scores (n, classes) that returns numbers of their shape; by
        default the probabilities where the model makes some, else the scores themselves.

    Raises
    ------
    InputError
        Where images and explanation do not fit, and where `measure` fails or returns another shape.
    """
    x = explainer.prepare(images)
    return _curve(explainer, x, _filled(baseline, x), found, steps, measure)


def insertion(
    explainer: Explainer,
    images: Images,
    found: Attribution,
    *,
    steps: int = 50,
    baseline: ArrayLike | None = None,
    measure: Callable[[NDArray[np.float32]], NDArray[Any]] | None = None,
) -> Curve:
    """Put pixels into the baseline, the most relevant first: the higher the area, the better the map.

    Source: Petsiuk, Das & Saenko 2018 (RISE).

    Parameters
    ----------
    explainer, images, found, steps, measure
        As for `deletion`.
    baseline
        The images that the pixels are put into; by default the image, blurred by a Gaussian as in the paper:
        11 pixels with a deviation of 5.

    Raises
    ------
    InputError
        As `deletion`.
    """
    x = explainer.prepare(images)
    start = _blurred(x, found) if baseline is None else _filled(baseline, x)
    return _curve(explainer, start, x, found, steps, measure)


def infidelity(
    explainer: Explainer,
    x: NDArray[np.float32],
    maps: NDArray[Any],
    target: ArrayLike,
    perturbations: NDArray[Any],
    *,
    normalize: bool = False,
) -> NDArray[np.float64]:
    """The mean of (⟨I, map⟩ − (f(x) − f(x − I)))² over perturbations I.

    Source: Yeh, Hsieh, Suggala, Inouye & Ravikumar 2019, as Captum defines it.

    Parameters
    ----------
    explainer
        The model.
    x
        float32 (N, …): the samples, preprocessed.
    maps
        Their maps, of the same shape.
    target
        The explained class: one index, or (N,).
    perturbations
        (N, S, …): S perturbations of each sample.  Those of the paper are noise, or x where a square is and
        0 elsewhere.
    normalize
        Whether the map is first scaled by the β that fits best.

    Returns
    -------
    float64 (N,); smaller is better.

    Raises
    ------
    InputError
        Where the shapes do not fit.
    """
    if maps.shape != x.shape or perturbations.shape[:1] + perturbations.shape[2:] != x.shape:
        raise InputError(
            f"samples {list(x.shape)}, maps {list(maps.shape)} and perturbations "
            f"{list(perturbations.shape)} do not fit.",
            supported="(N, …), (N, …) and (N, S, …)",
        )
    scores = explainer.predict(x).astype(np.float64)
    given = array_of(target)
    known = given.dtype.kind in "iu" and fits(given, (len(x),)) and given.size > 0
    if not known or given.min() < 0 or given.max() >= scores.shape[1]:
        raise InputError(f"target is {target!r:.80}.", supported="a class index, or one for each sample")
    classes = np.broadcast_to(given.astype(np.int64), len(x))
    before = np.take_along_axis(scores, classes[:, None], 1)
    values = []
    for sample, m, moves, c, old in zip(x, maps, perturbations, classes, before, strict=True):
        said = np.tensordot(moves.astype(np.float64), m.astype(np.float64), m.ndim)
        new = _scores(explainer, (sample - part for part in _parts(moves)))[:, c]
        fell = old - new
        if normalize:
            square = float(said @ said)
            said = said * (float(said @ fell) / square if square else 0.0)
        values.append(float(np.mean((said - fell) ** 2)))
    return np.array(values)


def max_sensitivity(
    explain: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[Any]],
    x: NDArray[np.float32],
    *,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The largest ‖map(x′) − map(x)‖ / ‖map(x)‖ over points x′ whose numbers are within `radius` of x.

    Source: Yeh et al. 2019, as Captum defines it.

    Parameters
    ----------
    explain
        A function of samples, float32 (n, …), and the index in `x` of the original of each, int64 (n,): their
        maps.  It should explain the original's class:

            lambda x, of: explainer.explain(x, target=classes[of]).map
    x
        float32 (N, …): the samples, preprocessed.
    radius
        How far each number moves at most, in units of the preprocessed input.
    samples
        How many points are drawn for each sample.
    seed
        The seed of the draw.

    Returns
    -------
    float64 (N,); smaller is steadier.  Where the map is 0 everywhere the quotient's divisor is 1.

    Raises
    ------
    InputError
        For a radius that is not above 0, for samples and seeds that are none, and where `explain` fails or
        returns maps of another shape.
    """
    whole_number("samples", samples)
    if not 0 < radius < np.inf:
        raise InputError(f"radius is {radius}.", supported="numbers above 0")
    rng = np.random.default_rng(whole_number("seed", seed, 0))
    at = _maps(explain, x, np.arange(len(x)))
    values = []
    for i, sample in enumerate(x):
        norm = float(np.linalg.norm(at[i])) or 1.0
        worst = 0.0
        for count in _counts(samples):
            noise = rng.uniform(-radius, radius, (count, *sample.shape)).astype(np.float32)
            moved = _maps(explain, sample + noise, np.full(count, i), at.shape[1:]) - at[i]
            worst = max(worst, *np.linalg.norm(moved.reshape(count, -1), axis=1))
        values.append(worst / norm)
    return np.array(values)


def _maps(
    explain: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[Any]],
    x: NDArray[np.float32],
    of: NDArray[np.int64],
    shape: tuple[int, ...] | None = None,
) -> NDArray[np.float64]:
    """The maps of a user's own function: one for each sample, of this shape or of any."""
    with calling("explain"):
        found = explain(x, of)
    maps = numbers_of("explain returned", found, (len(x), *(shape or ())), more=shape is None)
    return maps.astype(np.float64)


def _curve(
    explainer: Explainer,
    start: NDArray[np.float32],
    end: NDArray[np.float32],
    found: Attribution,
    steps: int,
    measure: Callable[[NDArray[np.float32]], NDArray[Any]] | None,
) -> Curve:
    """The scores while the pixels of `start` are replaced by those of `end`, the most relevant first."""
    whole_number("steps", steps)
    if found.target.ndim != 1 or len(found) != len(start) or found.map.shape != start.shape:
        raise InputError(
            f"images of shape {list(start.shape)} and maps of shape {list(found.map.shape)} do not fit.",
            supported="the explanation of the same images, with one target each",
        )
    if measure is None and found.head is not None:
        measure = found.head.probabilities
    planes = found.reduce("abs-max")
    fraction = np.linspace(0, 1, steps + 1)
    rows = []
    for i, plane in enumerate(planes):
        order = np.argsort(-plane.reshape(-1), kind="stable")
        rank = np.empty(order.size, np.int64)
        rank[order] = np.arange(order.size)
        ranks = _as_input(rank.reshape(plane.shape), found.layout)
        counts = np.rint(fraction * rank.size).astype(np.int64)
        thresholds = counts.reshape(-1, *[1] * ranks.ndim)
        mixed = (np.where(ranks < part, end[i], start[i]) for part in _parts(thresholds))
        rows.append(_scores(explainer, mixed, measure)[:, found.target[i]])
    return Curve(fraction, np.array(rows))


def _as_input(plane: NDArray[np.int64], layout: str) -> NDArray[np.int64]:
    """A plane, (H, W), in a shape that broadcasts to one sample."""
    if layout == "NHWC":
        return plane[:, :, None]
    if layout == "NCHW":
        return plane[None]
    return plane.reshape(-1) if layout == "NC" else plane


def _scores(
    explainer: Explainer,
    parts: Iterable[NDArray[Any]],
    measure: Callable[[NDArray[np.float32]], NDArray[Any]] | None = None,
) -> NDArray[np.float64]:
    scores = np.concatenate([explainer.predict(np.asarray(part, np.float32)) for part in parts])
    if measure is None:
        return scores.astype(np.float64)
    with calling("measure"):
        found = measure(scores)
    return numbers_of("measure returned", found, scores.shape).astype(np.float64)


def _parts(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]


def _counts(samples: int) -> list[int]:
    return [min(_CHUNK, samples - i) for i in range(0, samples, _CHUNK)]


def _filled(baseline: ArrayLike, x: NDArray[np.float32]) -> NDArray[np.float32]:
    given = array_of(baseline)
    if not fits(given, x.shape):
        raise InputError(
            f"the baseline holds {given.dtype} of shape {list(given.shape)}, or is not finite in float32.",
            supported=f"numbers, finite in float32, that broadcast to {list(x.shape)}",
        )
    return np.broadcast_to(given.astype(np.float32), x.shape)


def _blurred(x: NDArray[np.float32], found: Attribution) -> NDArray[np.float32]:
    """Every sample, blurred along the axes of its plane."""
    axes = {"NCHW": (2, 3), "NHWC": (1, 2), "NC": (1,), "NCL": (2,)}.get(found.layout, ())
    weight = np.exp(-0.5 * ((np.arange(_BLUR_TAPS) - _BLUR_TAPS // 2) / _BLUR) ** 2)
    y = x.astype(np.float64)
    for axis in axes:
        width = [(_BLUR_TAPS // 2,) * 2 if a == axis else (0, 0) for a in range(y.ndim)]
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(y, width, mode="edge"), _BLUR_TAPS, axis=axis
        )
        y = windows @ (weight / weight.sum())
    return y.astype(np.float32)
