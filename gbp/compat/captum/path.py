"""The mean gradient along the line from a baseline to a sample, by the quadratures that Captum offers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ... import InputError
from ...arguments import whole_number
from ..core import Floats


def points_of(method: str, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points between 0 and 1 at which an integral is sampled, and the weight of each sample.

    Parameters
    ----------
    method
        Captum's name of the quadrature.
    steps
        The number of points.

    Raises
    ------
    InputError
        For a method that Captum does not have, or for fewer than 2 points where the method needs 2.
    """
    if whole_number("n_steps", steps) < 2 and method != "gausslegendre":
        raise InputError(f"n_steps is {steps}.", supported="at least 2")
    weights = np.full(steps, 1.0 / steps)
    if method == "gausslegendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return (1 + points) / 2, weights / 2
    if method == "riemann_trapezoid":  # its weights add up to 1 - 1 / steps, as in Captum
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    firsts = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}
    if method not in firsts:
        raise InputError(
            f"method is {method!r}.", supported=f"gausslegendre, riemann_trapezoid, {', '.join(firsts)}"
        )
    return (np.arange(steps) + firsts[method]) / steps, weights


def path_integral(
    gradient: Callable[[Floats, int], Floats],
    x: Floats,
    start: Floats,
    steps: int,
    method: str,
    multiply: bool,
    at_once: int | None,
) -> Floats:
    """The weighted mean of the gradient along the line from `start` to `x`, for each sample.

    Parameters
    ----------
    gradient
        Computes the gradients at m points of one sample's line: it takes float32 (m, …) and the index of the
        sample, and returns (m, …).
    x, start
        The samples and their baselines, float32 (N, …).
    steps, method
        As for `points_of`.
    multiply
        Whether the mean is multiplied by x - start.
    at_once
        How many points are computed at a time; by default, and at most, 32.
    """
    points, weights = points_of(method, steps)
    maps, size = [], min(at_once or 32, 32)
    for i, (a, b) in enumerate(zip(start.astype(np.float64), x.astype(np.float64), strict=True)):
        mean = np.zeros(a.shape)
        for k in range(0, steps, size):
            at = points[k : k + size].reshape(-1, *(1,) * a.ndim)
            gradients = gradient((a + at * (b - a)).astype(np.float32), i).astype(np.float64)
            mean += np.tensordot(weights[k : k + size], gradients, 1)
        maps.append(mean * (b - a) if multiply else mean)
    return np.array(maps, np.float32)
