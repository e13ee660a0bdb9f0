"""The map against finite differences of the score.

    d = √n · (⟨map, u⟩ − (f(x + hu) − f(x − hu)) / 2h)        for random unit directions u in ℝⁿ

f is the explained score in float64.  The map's error is the root mean square of d, divided by ‖map‖: if the
map has an error e, then ⟨e, u⟩ has the mean square ‖e‖² / n.

f is smooth except at kinks, where a rectifier or a maximum switches.  If a kink is nearer to x than h, the
differences to both sides disagree, and a smaller h is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .evaluated import Doubles

#: Called with a few words before each stage.
Report = Callable[[str], None]

_DIRECTIONS = 3
#: Values of h / ‖x‖ to try; and the relative difference between both sides up to which f counts as smooth.
_STEPS = (1e-7, 1e-8, 1e-9)
_SMOOTH = 1e-3


def gradient_error_of(
    rise: Callable[[Doubles], float],
    x: NDArray[np.float32],
    gradient: NDArray[np.float32],
    rng: np.random.Generator,
    report: Report,
) -> tuple[float | None, int]:
    """Estimate the relative error of the gradient.

    Parameters
    ----------
    rise
        The score at a point, minus the score at x.
    x
        The point, float32.
    gradient
        The gradient at x that is tested.
    rng
        Chooses the directions.
    report
        Called before each direction.

    Returns
    -------
    The error, or None; and in how many directions the score is smooth.
    """
    origin, root = x.astype(np.float64), math.sqrt(x.size)
    length, norm = float(np.linalg.norm(origin)) or 1.0, float(np.linalg.norm(gradient))
    found = []
    for i in range(_DIRECTIONS):
        report(f"finite differences, direction {i + 1} of {_DIRECTIONS}")
        u = rng.standard_normal(x.shape)
        u /= np.linalg.norm(u)
        for relative in _STEPS:
            h = relative * length
            ahead, behind = rise(origin + h * u) / h, -rise(origin - h * u) / h
            slope = (ahead + behind) / 2
            if root * abs(ahead - behind) <= _SMOOTH * max(norm, root * abs(slope)):
                found.append((float(np.vdot(gradient, u)), slope))
                break
    if not found:
        return None, 0
    projections, slopes = np.array(found).T
    error, scale = (root * math.sqrt(np.mean(v**2)) for v in (projections - slopes, slopes))
    return (error / max(norm, scale) if error else 0.0), len(found)
