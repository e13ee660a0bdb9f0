"""Probabilities and shares as text, in Python and on pages."""

from __future__ import annotations

import math

#: The place in a page's script for `_SCRIPT`.
_MARK = "/* percent */"
#: `percent` in JavaScript: the same steps of float64 arithmetic, so the same text for every number.
_SCRIPT = (
    'const percent = p => p < .001 ? "<0.1 %" : p > .999 ? ">99.9 %" '
    ': (Math.floor(1000 * p + .5) / 10).toFixed(1) + " %";'
)


def percent(chance: float) -> str:
    """A probability in per cent with one decimal; "<0.1 %" and ">99.9 %" at the ends."""
    if chance < 0.001:
        return "<0.1 %"
    return f"{math.floor(1000 * chance + 0.5) / 10:.1f} %" if chance <= 0.999 else ">99.9 %"


def whole_percent(share: float) -> str:
    """A share in per cent without decimals; 0 % is none, 100 % is all, and "<1 %" and ">99 %" are between."""
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def with_percent(html: str) -> str:
    """A page whose script can call `percent`.

    Parameters
    ----------
    html
        The page, with the comment `/* percent */` where the function goes.
    """
    head, tail = html.split(_MARK)
    return head + _SCRIPT + tail
