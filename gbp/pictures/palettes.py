"""Tables of colours: gbp's own, and those of Matplotlib where that is installed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Pixels = NDArray[np.uint8]


def rounded(level: NDArray[Any]) -> Pixels:
    """Levels from 0 to 255 as whole numbers."""
    pixels: Pixels = np.rint(level).astype(np.uint8)
    return pixels


def between(colours: tuple[str, ...], entries: int) -> Pixels:
    """Interpolate evenly spaced "#rrggbb" colours to a table (entries, 3)."""
    points = np.array([list(bytes.fromhex(colour[1:])) for colour in colours])
    at, known = np.linspace(0, 1, entries), np.linspace(0, 1, len(points))
    table = np.stack([np.interp(at, known, points[:, channel]) for channel in range(3)], axis=1)
    return rounded(table)


#: Magenta → orange → pale yellow: lightness rises evenly, so it also reads in greyscale.
_HEAT = ("#a92b74", "#dd4a5d", "#f87c45", "#fdb54e", "#fcf3b4")
HEAT = between(_HEAT, 256)
#: The same from black on, for maps that are not drawn over a photo.
GLOW = between(("#000000", *_HEAT), 256)
GRAY = between(("#000000", "#ffffff"), 256)
# White → blue and white → red: the two mirror each other in lightness, so neither sign looks stronger.
_NEGATIVE = between(("#ffffff", "#cde0f1", "#8fbce0", "#4b8fcb", "#1a57a5", "#113a85"), 128)
_POSITIVE = between(("#ffffff", "#f9d9cc", "#f2a98f", "#e06a56", "#bd2a38", "#a0182f"), 128)
#: The colours of the levels -127 to 127.
DIVERGING = np.concatenate([_NEGATIVE[:0:-1], _POSITIVE])

OWN = {"heat": HEAT, "gray": GRAY, "red-blue": DIVERGING}


@cache
def palette(name: str, entries: int) -> Pixels:
    """The colours of this name, (entries, 3).

    Parameters
    ----------
    name
        A name in `OWN`, or of a colour map of Matplotlib.
    entries
        256 for magnitudes, 255 for signed levels.

    Raises
    ------
    InputError
        For an unknown name, or one of Matplotlib's where that is not installed.
    """
    if name in OWN:
        table = OWN[name]
        at = np.rint(np.linspace(0, len(table) - 1, entries)).astype(np.intp)
        return np.asarray(table[at])
    try:
        from matplotlib import colormaps
    except ImportError:
        raise InputError(
            f"palette is {name!r}.",
            supported=", ".join(map(repr, OWN)),
            hint="With the extra gbp-explain[plot] any colour map of Matplotlib, 'viridis' say.",
        ) from None
    if name not in colormaps:
        raise InputError(
            f"palette is {name!r}.",
            supported=f"{', '.join(map(repr, OWN))} and the names of Matplotlib, 'viridis' say",
        )
    return rounded(255 * np.asarray(colormaps[name](np.linspace(0, 1, entries)))[:, :3])
