"""SmoothGrad and its kin: maps of noisy copies of a sample.

With m_i the map of x + n_i, n_i ~ N(0, σ²), σ = noise · (max x - min x), and S copies:

SmoothGrad   1/S · Σ m_i                        Smilkov et al. 2017, section 3
SmoothGrad²  1/S · Σ m_i²                       Hooker et al. 2018, section 2.2
VarGrad      1/S · Σ m_i² - (1/S · Σ m_i)²      Adebayo et al. 2018

Each is a function of its own, with the same arguments: three papers, three names.

The class is fixed before noise is added.  All samples get the same draws, scaled by their own range, so that
a sample's map does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..arguments import array_of, whole_number
from ..engine.repeated import Blend, Write
from ..engine.run import Run
from ..errors import InputError, counted
from ..explainer import Explainer
from ..inputs import Images
from ..limits import elements
from ..pictures.percent import whole_percent
from ..questions.questions import Question
from ..result.attribution import Attribution
from ..rules import Rule
from .common import Copies, Questions, add_each, explained, mean_of_copies, of_copies, with_details
from .early import last_copy_early

#: The deviation as a share of a sample's range; or the noise itself, (S, …) for all samples or (S, N, …).
Noise: TypeAlias = float | NDArray[Any]
#: Bytes of draws that are kept for the next sample.
_MAX_DRAWN = 2**25


def smoothgrad(
    explainer: Explainer,
    images: Images,
    *,
    rule: str | Rule = "vanilla",
    target: Question = None,
    samples: int = 25,
    noise: Noise = 0.15,
    seed: int = 0,
) -> Attribution:
    """SmoothGrad: the mean map of noisy copies (Smilkov et al. 2017, arXiv:1706.03825).

    Parameters
    ----------
    explainer
        The model.
    images, target
        As for `Explainer.explain`.
    rule
        The rule that explains each copy.
    samples
        How many copies; as many as there is noise, where `noise` is an array.
    noise
        The deviation of the noise, as a share of the range of the prepared sample: its largest number minus
        its smallest.  Or the noise itself: float (samples, …) for every sample, or (samples, N, …).
    seed
        The seed of NumPy's default generator.

    Returns
    -------
    An `Attribution`.  Its details hold "samples", "noise" and "seed" (both None where the noise was given),
    and "same_class", float (N,): the share of the copies in which the sample's best class stayed the best.

    Raises
    ------
    InputError
        For arguments that cannot be used.
    """
    return _noisy(_SMOOTHGRAD, explainer, images, rule, target, samples, noise, seed)


def smoothgrad_squared(
    explainer: Explainer,
    images: Images,
    *,
    rule: str | Rule = "vanilla",
    target: Question = None,
    samples: int = 25,
    noise: Noise = 0.15,
    seed: int = 0,
) -> Attribution:
    """SmoothGrad²: the mean of the squared maps of noisy copies (Hooker et al. 2018, arXiv:1806.10758).

    Parameters
    ----------
    explainer, images, rule, target, samples, noise, seed
        As for `smoothgrad`.

    Returns
    -------
    As `smoothgrad`.

    Raises
    ------
    InputError
        For arguments that cannot be used.
    """
    return _noisy(_SMOOTHGRAD_SQUARED, explainer, images, rule, target, samples, noise, seed)


def vargrad(
    explainer: Explainer,
    images: Images,
    *,
    rule: str | Rule = "vanilla",
    target: Question = None,
    samples: int = 25,
    noise: Noise = 0.15,
    seed: int = 0,
) -> Attribution:
    """VarGrad: the variance of the maps of noisy copies (Adebayo et al. 2018, arXiv:1810.03307).

    Parameters
    ----------
    explainer, images, rule, target, samples, noise, seed
        As for `smoothgrad`.

    Returns
    -------
    As `smoothgrad`.

    Raises
    ------
    InputError
        For arguments that cannot be used, and for a single copy.
    """
    return _noisy(_VARGRAD, explainer, images, rule, target, samples, noise, seed)


@dataclass(frozen=True)
class _Statistic:
    """The map of a method, made of the maps of the copies.

    Parameters
    ----------
    method
        The method's name.
    remark
        The limits of its map.
    of
        From the mean of the maps and the mean of their squares to its map.
    reads_squares
        Whether it reads the second mean.
    least
        How many copies it needs.
    """

    method: str
    remark: str
    of: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    reads_squares: bool = True
    least: int = 1


_SMOOTHGRAD = _Statistic(
    "smoothgrad",
    "SmoothGrad explains the neighbourhood of an image, and not the image itself",
    lambda mean, square: mean,
    reads_squares=False,
)
_SMOOTHGRAD_SQUARED = _Statistic(
    "smoothgrad-squared",
    "SmoothGrad² has no sign: it tells where the score is sensitive, and not what speaks for the class",
    lambda mean, square: square,
)
_VARGRAD = _Statistic(
    "vargrad",
    "VarGrad tells where the map changes under noise: a pixel that matters equally in all copies gets 0",
    lambda mean, square: np.maximum(square - mean * mean, 0),
    least=2,
)


def _noisy(
    statistic: _Statistic,
    explainer: Explainer,
    images: Images,
    rule: str | Rule,
    target: Question,
    samples: int,
    noise: Noise,
    seed: int,
) -> Attribution:
    copies = _Copies.checked(samples, noise, seed, statistic.least)

    def of_sample(
        x: NDArray[np.float32], scores: NDArray[np.float32], questions: Questions, index: int, images: int
    ) -> tuple[NDArray[np.float32], float]:
        """A sample's map, and the share of its copies in which its best class stayed the best."""
        sums, count = _Sums(int(scores.argmax())), copies.count
        made = made_early() or copies.of(x, index, images)
        if statistic.reads_squares:
            of_copies(explainer, x, made, count, questions, rule, sums.add)
            means = sums.means(count)
        else:
            mean = mean_of_copies(explainer, x, made, count, None, questions, rule, sums.look)
            means = mean, mean
        with np.errstate(over="ignore", invalid="ignore"):  # `explained` looks at the result
            return statistic.of(*means).astype(np.float32), sums.same / count

    def compute(run: Run, questions: Questions) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        run.close()  # its memory serves the copies
        offset = run.samples.start
        each = enumerate(zip(run.x, run.scores, strict=True))
        found = [of_sample(x, scores, questions[i : i + 1], offset + i, run.count) for i, (x, scores) in each]
        maps = found[0][0][None] if len(found) == 1 else np.stack([m for m, _ in found])
        return maps, {"same_class": np.array([kept for _, kept in found])}

    early = last_copy_early(explainer, images, rule, target, copies.count, copies.in_any_order)
    with early as (ready, made_early):
        found = explained(explainer, ready, target, rule, statistic.method, compute)
    made = counted(copies.count, "copy", "copies")
    note = (
        f"{statistic.remark}. {made}, {copies.noise}: the best class stayed the best in "
        f"{whole_percent(found.details['same_class'].mean())} of them."
    )
    return with_details(found, (note,), samples=copies.count, noise=copies.share, seed=copies.seed)


class _Sums:
    """Sums over copies: of their maps and these squared, in float64, in the order that maps have in memory.

    Parameters
    ----------
    best
        The sample's best class.
    """

    def __init__(self, best: int) -> None:
        self._best = best
        #: In how many copies the best class stayed the best.
        self.same = 0
        self._total, self._squares, self._square = np.empty(0), np.empty(0), np.empty(0)

    def add(self, offset: int, maps: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
        """Add maps (m, …) and scores (m, classes) of copies, from index `offset` on."""
        self.look(scores)
        if offset == 0:
            self._total = np.zeros_like(maps[0], np.float64)
            self._squares, self._square = np.zeros_like(self._total), np.zeros_like(self._total)
        add_each(self._total, list(maps))
        for one in maps:
            self._squares += np.multiply(one, one, out=self._square, dtype=np.float64)

    def look(self, scores: NDArray[np.float32]) -> None:
        """Look at the scores (m, classes) of copies."""
        self.same += int(np.count_nonzero(scores.argmax(axis=1) == self._best))

    def means(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean of all maps, so many, and that of their squares, in place of the sums."""
        self._total /= count
        self._squares /= count
        return self._total, self._squares


@dataclass(frozen=True)
class _Copies:
    """How noisy copies of a sample are made.

    Parameters
    ----------
    count
        How many there are.
    share
        The deviation of drawn noise, as a share of a sample's range; None where the noise is given.
    seed
        The seed of drawn noise.
    given
        The noise, float32 (S, …) or (S, N, …); None where it is drawn.
    """

    count: int
    share: float | None = None
    seed: int | None = None
    given: NDArray[np.float32] | None = None

    @classmethod
    def checked(cls, samples: int, noise: Noise, seed: int, least: int) -> _Copies:
        """By the arguments of `smoothgrad`, at least `least`.  Raises InputError."""
        share = float(noise) if isinstance(noise, Real) and not isinstance(noise, bool) else None
        if share is not None and not 0 <= share < np.inf:
            raise InputError(f"noise is {share}.", supported="a share of the image's range, 0.15 say")
        given = _array(noise) if share is None else None
        count = whole_number("samples", samples) if given is None else len(given)
        if count < least:
            raise InputError(f"samples is {count}.", supported=f"at least {least}")
        seed = whole_number("seed", seed, 0)
        return cls(count, share, seed if given is None else None, given)

    @property
    def noise(self) -> str:
        """The noise, in words."""
        return "given noise" if self.share is None else f"noise of {self.share:.3g} of an image's range"

    def in_any_order(self, x: NDArray[np.float32]) -> Copies | None:
        """The copies of the only image x; None where they must be asked for in order."""
        is_drawn_once = self.given is not None or _keeps(x.shape, self.count)
        return self.of(x, 0, 1) if is_drawn_once else None

    def of(self, x: NDArray[np.float32], index: int, images: int) -> Copies:
        """The copies of sample x, number `index` of so many images."""
        if self.given is not None:
            return _with_given(x, self.given, index, images)
        assert self.share is not None
        assert self.seed is not None
        return _with_drawn(x, self.share, self.count, self.seed)


def _with_drawn(x: NDArray[np.float32], share: float, count: int, seed: int) -> Copies:
    """Copies of a sample with drawn noise, which are asked for in order."""
    base, generator = _interleaved(x), np.random.Generator(np.random.SFC64(seed))
    deviation = np.float32(share * (float(x.max()) - float(x.min())))
    kept = _draws(x.shape, count, seed) if _keeps(x.shape, count) else None

    def copies(part: slice) -> Write:
        if kept is None:
            drawn = generator.standard_normal((part.stop - part.start, *x.shape), np.float32)
        else:
            drawn = kept[part]
        return Blend(base, drawn, deviation)

    return copies


def _keeps(shape: tuple[int, ...], count: int) -> bool:
    """Whether so many draws for samples of a shape are kept."""
    return 4 * count * elements(shape) <= _MAX_DRAWN


@lru_cache(maxsize=1)
def _draws(shape: tuple[int, ...], count: int, seed: int) -> NDArray[np.float32]:
    """The draws for all samples of a shape.  Drawing them takes a tenth of a small network's time."""
    draws = np.random.Generator(np.random.SFC64(seed)).standard_normal((count, *shape), np.float32)
    draws = _interleaved(draws)
    draws.flags.writeable = False
    return draws


def _interleaved(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same numbers (…, C, H, W), stored as (…, H, W, C), the order that a CPU computes in.

    An array with fewer axes, or with its few channels last already, is returned as it is.
    """
    if x.ndim < 3 or x.shape[-1] <= x.shape[-3]:
        return x
    stored = np.empty((*x.shape[:-3], *x.shape[-2:], x.shape[-3]), x.dtype)
    for c in range(x.shape[-3]):  # several times as fast as a copy of all
        stored[..., c] = x[..., c, :, :]
    return np.moveaxis(stored, -1, -3)


def _with_given(x: NDArray[np.float32], noise: NDArray[np.float32], index: int, images: int) -> Copies:
    """Copies of a sample with the caller's noise."""
    one = noise[:, index] if noise.ndim == x.ndim + 2 and noise.shape[1] == images else noise
    if one.shape[1:] != x.shape:
        sizes = ", ".join(map(str, x.shape))
        raise InputError(
            f"noise has shape {list(noise.shape)}.",
            supported=f"one number, or an array of shape [S, {sizes}] or [S, N, {sizes}]",
        )

    def copies(part: slice) -> Write:
        def write(some: slice, to: NDArray[np.float32]) -> None:
            np.add(x, one[part][some], out=to)

        return write

    return copies


def _array(noise: Any) -> NDArray[np.float32]:
    array = array_of(noise)
    if array.dtype.kind not in "fiu" or array.ndim < 2 or not array.size or not np.isfinite(array).all():
        raise InputError(
            f"noise is {noise!r:.80}.", supported="a share of the image's range, or an array (samples, …)"
        )
    return array.astype(np.float32)
