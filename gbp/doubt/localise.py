"""Where a map points: the pointing game, and the share of its relevance within a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import InputError


def pointing_game(
    relevance: NDArray[Any], mask: NDArray[Any], *, tolerance: float = 0.0
) -> NDArray[np.bool_]:
    """Whether the strongest pixel of each map is in the mask, or close to it.

    Source: Zhang, Lin, Brandt, Shen & Sclaroff 2016, with a tolerance of 15 pixels there.

    Parameters
    ----------
    relevance
        Planes (N, H, W), as `Attribution.reduce` makes them.  Among equal pixels the first in row-major order
        counts.
    mask
        bool (N, H, W): where the object is.
    tolerance
        How many pixels the strongest one may be away from the mask.

    Returns
    -------
    bool (N,).  A mask without any pixel is never hit.

    Raises
    ------
    InputError
        Where the shapes differ, or are no planes.
    """
    relevance, inside = _checked(relevance, mask)
    hits = []
    for plane, where in zip(relevance, inside, strict=True):
        y, x = np.unravel_index(plane.argmax(), plane.shape)
        ys, xs = np.nonzero(where)
        hits.append(bool((np.hypot(ys - y, xs - x) <= tolerance).any()))
    return np.array(hits, np.bool_)


def relevance_mass(relevance: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float64]:
    """The share of each map's relevance that is in the mask.

    Source: Arras, Osman & Samek 2020, "relevance mass accuracy".

    Parameters
    ----------
    relevance
        Planes (N, H, W) of numbers of at least 0, as `Attribution.reduce("positive")` makes them.
    mask
        bool (N, H, W): where the object is.

    Returns
    -------
    float64 (N,), 0 to 1; 0 for a map that is 0 everywhere.

    Raises
    ------
    InputError
        Where the shapes differ, are no planes, or relevance is negative.
    """
    relevance, inside = _checked(relevance, mask)
    if (relevance < 0).any():
        raise InputError(
            "the relevance is negative in places, and has no share then.",
            hint="Reduce the map with 'positive', 'abs-max' or 'norm'.",
        )
    total = relevance.sum(axis=(1, 2))
    found = np.where(inside, relevance, 0).sum(axis=(1, 2))
    return np.asarray(found / np.where(total == 0, 1, total))


def _checked(relevance: NDArray[Any], mask: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Relevance in float64, and its mask.  Raises InputError where they do not fit."""
    if relevance.ndim != 3 or relevance.shape != mask.shape or 0 in relevance.shape:
        raise InputError(
            f"relevance of shape {list(relevance.shape)} and a mask of shape {list(mask.shape)}.",
            supported="planes (N, H, W), both of one shape",
        )
    if mask.dtype.kind != "b":
        raise InputError(f"the mask holds {mask.dtype}.", supported="bool")
    return np.asarray(relevance, np.float64), mask
