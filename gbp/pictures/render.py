"""Array → picture: relevance maps as uint8 pixels, and panels on one canvas.  Pure functions, no files.

Every map is divided by a limit and clipped to ±1 before it takes colour.  Gradient maps have long tails: one
pixel may be ten times the rest and would leave everything else black, so the limit is by default the
99.5th percentile of the map's magnitude (`robust_limit`).  To compare maps, give them one limit.
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
    """Return the magnitude that is drawn at full strength: the 99.5th percentile of |m|.

    A map so sparse that this is 0 takes its maximum; a map of zeros takes 1, so that it draws as zeros.
    Raises `InputError` for a map that is empty or holds NaN or infinity.
    """
    _refuse_unfit(m)
    magnitude = np.abs(m.astype(np.float64))
    return float(np.percentile(magnitude, PERCENTILE)) or float(magnitude.max()) or 1.0


def gray(m: NDArray[Any], *, limit: float | None = None) -> Pixels:
    """Draw the magnitude of a map (H, W) in grey (H, W): 0 black, `limit` and above white."""
    return _to_8bit(np.abs(_normalised(m, limit)))


def diverging(m: NDArray[Any], *, limit: float | None = None) -> Pixels:
    """Draw a signed map (H, W) as (H, W, 3): negative blue, 0 white, positive red.

    The scale is the same on both sides, so `-m` swaps the colours and changes nothing else.
    """
    level = np.rint(_normalised(m, limit) * 127).astype(np.intp)
    pixels: Pixels = _diverging_palette()[level + 127]
    return pixels


def overlay(m: NDArray[Any], base: Pixels, *, alpha: float = 0.95, limit: float | None = None) -> Pixels:
    """Lay the magnitude of a map (H, W) as heat over the image `base` (H, W, 3); returns (H, W, 3).

    The image is dimmed and half drained of colour, so that heat glows on it.  Opacity grows with
    relevance from 0 to `alpha` (0..1): the image stays visible wherever little is relevant.
    Raises `InputError` when the sizes differ or alpha is out of range.
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


def rgb(m: NDArray[Any], *, limit: float | None = None) -> Pixels:
    """Draw a map (C, H, W) in its own colours (H, W, 3): 0 is mid-grey, ±`limit` is full on or off.

    C is 3, red first, or 1.  This is the picture of the guided backpropagation paper.
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
INK, FRAME = "#222222", "#d0d0d0"


def strip(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Put images side by side on one white canvas, each over its caption; returns an RGB image.

    Small images are enlarged by a whole factor to at least 288 pixels, each pixel a sharp square, because
    smoothing would invent detail.  A caption may have several lines; what is too wide ends in "…".
    Raises `InputError` when there are no images or not as many captions.
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
    canvas = Image.new("RGB", (width, top + lines * line_height + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    left = MARGIN
    for panel, caption in zip(panels, captions, strict=True):
        frame = (left - 1, MARGIN - 1, left + panel.width, MARGIN + panel.height)
        draw.rectangle(frame, outline=FRAME)  # tells a white panel from the paper
        canvas.paste(panel, (left, MARGIN))
        for row, line in enumerate(caption.split("\n")):
            text = _fitted(line, panel.width, font)
            draw.text((left, top + row * line_height), text, fill=INK, font=font)
        left += panel.width + MARGIN
    return canvas


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, -(-PANEL // max(image.size)))
    sides = (max(factor, -(-PANEL // (6 * side))) for side in image.size)  # a single row is to be seen
    width, height = (side * factor for side, factor in zip(image.size, sides, strict=True))
    return image.resize((width, height), Image.Resampling.NEAREST)


def _fitted(text: str, width: int, font: Any) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
