"""Maps become uint8 pixels, and panels are put on one canvas.  The functions are pure and touch no files.

Every map is divided by a limit and clipped to ±1 before it is coloured.  One pixel of a gradient map may be
ten times larger than the rest; if it were the limit, everything else would be black.  So the default limit is
the 99.5th percentile of the map's magnitude (`robust_limit`).  To compare maps, give them the same limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError

Pixels = NDArray[np.uint8]

PERCENTILE = 99.5

# Magenta → orange → pale yellow: lightness rises evenly, so it also reads in greyscale.
HEAT = ("#a92b74", "#dd4a5d", "#f87c45", "#fdb54e", "#fcf3b4")
# White → blue and white → red: the two mirror each other in lightness, so neither sign looks stronger.
NEGATIVE = ("#ffffff", "#cde0f1", "#8fbce0", "#4b8fcb", "#1a57a5", "#113a85")
POSITIVE = ("#ffffff", "#f9d9cc", "#f2a98f", "#e06a56", "#bd2a38", "#a0182f")


def robust_limit(m: NDArray[Any]) -> float:
    """The default limit of a map: the 99.5th percentile of |m|.

    Parameters
    ----------
    m
        Any shape.

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
    return float(np.percentile(magnitude, PERCENTILE)) or float(magnitude.max()) or 1.0


def gray(m: NDArray[Any], *, limit: float | None = None) -> Pixels:
    """Draw the magnitude of a map (H, W) in grey: uint8 (H, W).  0 is black; `limit` and above are white."""
    return _to_8bit(np.abs(_normalised(m, limit)))


def diverging(m: NDArray[Any], *, limit: float | None = None) -> Pixels:
    """Draw a signed map (H, W) as uint8 (H, W, 3): negative blue, 0 white, positive red.

    Both signs have the same scale, so the picture of -m has swapped colours and is otherwise the same.
    """
    level = np.rint(_normalised(m, limit) * 127).astype(np.intp)
    pixels: Pixels = _diverging_palette()[level + 127]
    return pixels


def overlay(m: NDArray[Any], base: Pixels, *, alpha: float = 0.95, limit: float | None = None) -> Pixels:
    """Draw the magnitude of a map as heat over an image.

    The image is darkened and loses half of its colour, so that the heat stands out.

    Parameters
    ----------
    m
        The map (H, W).
    base
        The image, uint8 (H, W, 3).
    alpha
        The opacity of the heat at `limit`, 0 to 1.  The opacity is proportional to the map's magnitude.
    limit
        The magnitude that is drawn at full strength; by default `robust_limit`.

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
    opacity = alpha * relevance[:, :, None]
    luma = base @ np.array([0.299, 0.587, 0.114])
    dimmed = 0.6 * (0.5 * base + 0.5 * luma[:, :, None])
    heat = _palette(HEAT, 256)[_to_8bit(relevance)]
    return _rounded((1 - opacity) * dimmed + opacity * heat)


def heat(m: NDArray[Any]) -> Pixels:
    """Draw a map (H, W) as heat, from its least value to its largest: uint8 (H, W, 3)."""
    _refuse_unfit(m)
    plane = m.astype(np.float64) - float(m.min())
    return _palette(("#000000", *HEAT), 256)[_to_8bit(plane / (plane.max() or 1.0))]


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
    return _rounded(unit * 255)


def _rounded(level: NDArray[np.float64]) -> Pixels:
    pixels: Pixels = np.rint(level).astype(np.uint8)
    return pixels


@cache
def _palette(colours: tuple[str, ...], entries: int) -> Pixels:
    """Interpolate evenly spaced "#rrggbb" colours to a table (entries, 3)."""
    points = np.array([list(bytes.fromhex(colour[1:])) for colour in colours])
    at, known = np.linspace(0, 1, entries), np.linspace(0, 1, len(points))
    table = np.stack([np.interp(at, known, points[:, channel]) for channel in range(3)], axis=1)
    return _rounded(table)


@cache
def _diverging_palette() -> Pixels:
    """Table (255, 3) of the levels -127 to 127."""
    return np.concatenate([_palette(NEGATIVE, 128)[:0:-1], _palette(POSITIVE, 128)])


# ----------------------------------------------------------------------------------------------- panels

PANEL = 288
MARGIN = 12
INK, FRAME, WARNING = "#222222", "#d0d0d0", "#a0182f"


def strip(images: Sequence[Image.Image], captions: Sequence[str], remarks: Sequence[str] = ()) -> Image.Image:
    """Put images side by side on one white canvas, each above its caption.

    Small images are enlarged by a whole factor to at least 288 pixels.  Each pixel becomes a sharp square,
    because smoothing would add detail that is not there.

    Parameters
    ----------
    images
        At least one.
    captions
        One for each image.  A caption may have several lines; a line that is too wide is cut and ends in "…".
    remarks
        Lines in red below all captions.

    Returns
    -------
    An RGB image.

    Raises
    ------
    InputError
        Without images, or with another number of captions.
    """
    if not images or len(images) != len(captions):
        raise InputError(f"{len(captions)} captions do not fit {len(images)} images.")
    panels = [_enlarged(image.convert("RGB")) for image in images]
    font = ImageFont.load_default(max(14, round(max(panel.width for panel in panels) / 20)))
    lines = max(caption.count("\n") + 1 for caption in captions)
    # A given size makes it a FreeTypeFont, which has metrics.
    line_height = round(sum(font.getmetrics()) * 1.1)  # type: ignore[union-attr]
    top = MARGIN + max(panel.height for panel in panels) + MARGIN // 2
    width = sum(panel.width + MARGIN for panel in panels) + MARGIN
    bottom = top + (lines + len(remarks)) * line_height
    canvas = Image.new("RGB", (width, bottom + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    left = MARGIN
    for panel, caption in zip(panels, captions, strict=True):
        frame = (left - 1, MARGIN - 1, left + panel.width, MARGIN + panel.height)
        draw.rectangle(frame, outline=FRAME)  # so that a white panel shows on the white canvas
        canvas.paste(panel, (left, MARGIN))
        for row, line in enumerate(caption.split("\n")):
            text = _fitted(line, panel.width, font)
            draw.text((left, top + row * line_height), text, fill=INK, font=font)
        left += panel.width + MARGIN
    for row, remark in enumerate(remarks, start=lines):
        text = _fitted(remark, width - 2 * MARGIN, font)
        draw.text((MARGIN, top + row * line_height), text, fill=WARNING, font=font)
    return canvas


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Put pictures one below the other, on white, at the left.

    Parameters
    ----------
    rows
        RGB images, at least one.
    """
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, -(-PANEL // max(image.size)))
    sides = (max(factor, -(-PANEL // (6 * side))) for side in image.size)  # a single row must be visible
    width, height = (side * factor for side, factor in zip(image.size, sides, strict=True))
    return image.resize((width, height), Image.Resampling.NEAREST)


def _fitted(text: str, width: int, font: Any) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
