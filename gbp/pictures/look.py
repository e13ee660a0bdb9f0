"""`Look`: how maps are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, get_args

from ..errors import InputError

Limits = Literal["own", "shared"]
Canvas = Literal["photo", "network"]


class LookOptions(TypedDict, total=False):
    """The fields of `Look`, as arguments of the methods that draw."""

    smooth: float | None
    alpha: float
    percentile: float
    limit: float | None
    palette: str | None
    limits: Limits
    canvas: Canvas | None
    max_side: int | None


@dataclass(frozen=True)
class Look:
    """How maps are drawn.  The methods that draw take these fields as arguments.

    Parameters
    ----------
    smooth
        σ in pixels of the network's input of the Gaussian that a map is smoothed with.  By default 1/90 of
        the input's mean side in the style "overlay", 2.5 for 224; 1/150 in "gray" and "diverging"; 0 in "rgb"
        and for maps of inner layers.
    alpha
        The opacity of the strongest heat of "overlay", 0 to 1.
    percentile
        Which percentile of a map's magnitude is drawn at full strength, above 0 and up to 100.  One pixel of
        a gradient may be ten times larger than the rest; at 100 everything else would be black.
    limit
        The magnitude that is drawn at full strength, in place of the percentile's.
    palette
        "heat" (by default, of "overlay"), "gray" or "red-blue" (of "diverging"); or the name of a colour map
        of Matplotlib, where that is installed (extra gbp-explain[plot]).
    limits
        "own": each map of a strip has its own limit; "shared": all have the same, so that they compare.
    canvas
        "photo": a map is drawn on the whole photo, at its resolution; "network": on what the network saw, in
        its pixels.  By default "photo" in the style "overlay" where the photo is known, else "network".
    max_side
        Most pixels of a photo's longer side; a larger one is drawn smaller.  By default 1600, and in a strip
        what makes its panels 448 pixels high.

    Raises
    ------
    InputError
        For a value out of range.
    """

    smooth: float | None = None
    alpha: float = 0.85
    percentile: float = 99.5
    limit: float | None = None
    palette: str | None = None
    limits: Limits = "own"
    canvas: Canvas | None = None
    max_side: int | None = None

    def __post_init__(self) -> None:
        _check(self.smooth is None or _within(self.smooth, 0, 100), "smooth", self.smooth, "0 to 100 pixels")
        _check(_within(self.alpha, 0, 1), "alpha", self.alpha, "0 to 1")
        good = _within(self.percentile, 0, 100) and self.percentile > 0
        _check(good, "percentile", self.percentile, "above 0, up to 100")
        good = self.limit is None or (_within(self.limit, 0, math.inf) and 0 < self.limit < math.inf)
        _check(good, "limit", self.limit, "numbers above 0")
        _check(self.limits in get_args(Limits), "limits", self.limits, "'own', 'shared'")
        _check(self.canvas in (None, *get_args(Canvas)), "canvas", self.canvas, "'photo', 'network'")
        good = self.max_side is None or (isinstance(self.max_side, int) and 16 <= self.max_side <= 16384)
        _check(good, "max_side", self.max_side, "16 to 16384 pixels")

    def but(self, **changes: Any) -> Look:
        """The same with some fields changed."""
        return replace(self, **changes)


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _check(good: bool, name: str, value: object, supported: str) -> None:
    if not good:
        raise InputError(f"{name} is {value!r}.", supported=supported)
