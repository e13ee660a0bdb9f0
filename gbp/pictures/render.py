"""Maps become uint8 pixels.  The functions are pure and touch no files.

Every map is divided by a limit and clipped to ±1 before it is coloured.  One pixel of a gradient map may be
ten times larger than the rest; if it were the limit, everything else would be black.  So the default limit is
the 99.5th percentile of the map's magnitude (`robust_limit`).  To compare maps, give them the same limit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from .palettes import DIVERGING, GLOW, HEAT, Pixels, rounded

#: The percentile of `robust_limit`.
PERCENTILE = 99.5
#: The shares of its brightness and of its colour that an image keeps under a map.  The scripts of
#: `report/page.html` and `serve/page.html` have these two and `STEEPNESS` too.
DIMMED, SATURATION = 0.72, 0.6
#: Opacity grows with this power of a map's magnitude.  With the first power, the small values that a gradient
#: has nearly everywhere would tint white ground pink.
STEEPNESS = 1.5


def robust_limit(m: NDArray[Any], percentile: float = PERCENTILE) -> float:
    """The default limit of a map: a percentile of |m|.

    Parameters
    ----------
    m
        Any shape.
    percentile
        Above 0 and up to 100.

    Returns
    -------
    The percentile; the maximum of |m| if that is 0; 1 if all of m is 0.

    Raises
    ------
    InputError
        For a map that is empty or holds NaN or infinity.
    """
    _refuse_unfit(m)
    magnitude = np.abs(m.astype(np.float64))
    return float(np.percentile(magnitude, percentile)) or float(magnitude.max()) or 1.0


def gray(m: NDArray[Any], *, limit: float | None = None) -> Pixels:
    """Draw the magnitude of a map (H, W) in grey: uint8 (H, W).  0 is black; `limit` and above are white."""
    return _to_8bit(np.abs(_normalised(m, limit)))


def diverging(m: NDArray[Any], *, limit: float | None = None, colours: Pixels | None = None) -> Pixels:
    """Draw a signed map (H, W) as uint8 (H, W, 3): negative blue, 0 white, positive red.

    Both signs have the same scale, so the picture of -m has swapped colours and is otherwise the same.
    `colours` (255, 3) are those of the levels -127 to 127.
    """
    level = np.rint(_normalised(m, limit) * 127).astype(np.intp)
    pixels: Pixels = (DIVERGING if colours is None else colours)[level + 127]
    return pixels


def coloured(m: NDArray[Any], colours: Pixels, *, limit: float | None = None) -> Pixels:
    """Draw the magnitude of a map (H, W) in colours (256, 3): uint8 (H, W, 3)."""
    return colours[_to_8bit(np.abs(_normalised(m, limit)))]


def overlay(
    m: NDArray[Any],
    base: Pixels,
    *,
    alpha: float = 0.85,
    limit: float | None = None,
    colours: Pixels | None = None,
) -> Pixels:
    """Draw the magnitude of a map as heat over an image.

    The image is darkened and loses some of its colour, so that the heat stands out.

    Parameters
    ----------
    m
        The map (H, W).
    base
        The image, uint8 (H, W, 3).
    alpha
        The opacity of the heat at `limit`, 0 to 1.  Below, it falls as `STEEPNESS` says.
    limit
        The magnitude that is drawn at full strength; by default `robust_limit`.
    colours
        (256, 3), from no magnitude to the strongest; by default `palettes.HEAT`.

    Returns
    -------
    uint8 (H, W, 3).

    Raises
    ------
    InputError
        Where the sizes differ or alpha is out of range.
    """
    if base.shape != (*m.shape, 3):
        raise InputError(f"a map of shape {m.shape} does not fit an image of shape {base.shape}.")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}.", supported="0 to 1")
    relevance = np.abs(_normalised(m, limit))
    opacity = (alpha * relevance**STEEPNESS)[:, :, None].astype(np.float32)
    luma = base @ np.array([0.299, 0.587, 0.114], np.float32)
    dimmed = np.float32(DIMMED) * (SATURATION * base + (1 - SATURATION) * luma[:, :, None])
    heat = (HEAT if colours is None else colours)[_to_8bit(relevance)]
    return rounded((1 - opacity) * dimmed + opacity * heat)


def heat(m: NDArray[Any]) -> Pixels:
    """Draw a map (H, W) as heat, from its least value to its largest: uint8 (H, W, 3)."""
    _refuse_unfit(m)
    plane = m.astype(np.float64) - float(m.min())
    return GLOW[_to_8bit(plane / (plane.max() or 1.0))]


def rgb(m: NDArray[Any], *, limit: float | None = None) -> Pixels:
    """Draw a map (C, H, W) in its own colours, as the paper on guided backpropagation does.

    C is 3, red first, or 1.  The result is uint8 (H, W, 3): 0 is mid-grey, `limit` is 255 and -`limit` is 0.
    Raises `InputError` for another number of channels.
    """
    if m.ndim != 3 or m.shape[0] not in (1, 3):
        raise InputError(f"a map of shape {m.shape} has no colours.", supported="(1 or 3, H, W)")
    pixels = _to_8bit((_normalised(m, limit) + 1) / 2).transpose(1, 2, 0)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*m.shape[1:], 3)))


def _refuse_unfit(m: NDArray[Any]) -> None:
    if m.size == 0 or not np.isfinite(m).all():
        raise InputError("the map is empty or holds NaN or infinity.")


def _normalised(m: NDArray[Any], limit: float | None) -> NDArray[np.float64]:
    _refuse_unfit(m)
    limit = robust_limit(m) if limit is None else limit
    if not 0 < limit < np.inf:
        raise InputError(f"the limit of a map is {limit}.", supported="numbers above 0")
    return np.clip(m.astype(np.float64), -limit, limit) / limit


def _to_8bit(unit: NDArray[np.float64]) -> Pixels:
    return rounded(unit * 255)


def smoothed(m: NDArray[Any], sigma: float) -> NDArray[np.float64]:
    """A map (H, W) convolved with a Gaussian of σ pixels, cut at 4σ; at the border with the part inside.

    A constant map stays as it is, and σ = 0 changes nothing.
    """
    x = m.astype(np.float64)
    reach = int(np.ceil(4 * sigma))
    if reach == 0:
        return x
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for axis in (0, 1):
        inside = np.convolve(np.ones(x.shape[axis]), weights)[reach : reach + x.shape[axis]]
        wide = np.pad(np.moveaxis(x, axis, 0), ((reach, reach), (0, 0)))
        n = x.shape[axis]
        total = sum(weight * wide[i : i + n] for i, weight in enumerate(weights))
        x = np.moveaxis(total / inside[:, None], 0, axis)
    return x


Box = tuple[int, int, int, int]


def placed(m: NDArray[Any], box: Box, size: tuple[int, int], *, sharp: bool = False) -> NDArray[np.float32]:
    """A map (H, W) enlarged, or reduced, to fill a box of a larger one, which is 0 elsewhere.

    Parameters
    ----------
    m
        The map, about 1 in size: float32 must hold it.
    box
        Left, top, right and bottom; it may reach beyond the larger map.
    size
        (width, height) of the larger map.
    sharp
        Whether pixels become squares; else it is bicubic.
    """
    left, top, right, bottom = box
    width, height = size
    method = Image.Resampling.NEAREST if sharp else Image.Resampling.BICUBIC
    part = np.asarray(Image.fromarray(m.astype(np.float32)).resize((right - left, bottom - top), method))
    whole = np.zeros((height, width), np.float32)
    x, y = max(left, 0), max(top, 0)
    whole[y : max(bottom, 0), x : max(right, 0)] = part[y - top : height - top, x - left : width - left]
    return whole
