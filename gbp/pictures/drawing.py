"""Maps (C, H, W) become pictures in a named style, with what one must know to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import InputError
from . import render
from .look import Look
from .palettes import Pixels, palette
from .photo import MAX_SIDE, SHARP, Photo

Reduction = Literal["abs-max", "abs-mean", "positive", "negative", "norm", "sum"]
Panel = Literal["overlay", "diverging", "gray", "rgb"]
Style = Literal["overlay", "diverging", "gray", "rgb", "strip"]

#: A picture is at most so many times as wide as the longer side of a photo.
_WIDEST = 4
#: Numbers (…, C, H, W) → (…, H, W).
_REDUCTIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "abs-max": lambda m: np.abs(m).max(axis=-3),
    "abs-mean": lambda m: np.abs(m).mean(axis=-3),
    "positive": lambda m: np.maximum(m, 0).sum(axis=-3),
    "negative": lambda m: np.maximum(-m, 0).sum(axis=-3),
    "norm": lambda m: np.sqrt((m * m).sum(axis=-3)),
    "sum": lambda m: m.sum(axis=-3),
}
_PALETTES = {"overlay": "heat", "gray": "gray", "diverging": "red-blue"}


@dataclass(frozen=True)
class Drawn:
    """A picture of a map.

    Parameters
    ----------
    image
        The picture.
    limit
        The magnitude that is drawn at full strength.
    sigma
        σ of the Gaussian that smoothed the map, in pixels of the network's input.
    colours
        The colours (n, 3), from 0 to `limit`; from -`limit` to `limit` where `signed`.
    signed
        Whether colours show the sign.
    on_photo
        Whether it shows the whole photo.
    """

    image: Image.Image
    limit: float
    sigma: float
    colours: Pixels
    signed: bool
    on_photo: bool


def sigma_of(m: NDArray[np.float32], style: str, look: Look, size: tuple[int, int]) -> float:
    """σ of the Gaussian that smooths a map, in pixels of the input; by default 0 for maps of inner layers.

    Parameters
    ----------
    m, style, look, size
        As for `prepared`.
    """
    if look.smooth is not None:
        return float(look.smooth)
    if style == "rgb" or m.shape[1:] != size[::-1]:
        return 0.0
    return round(sum(size) / (180 if style == "overlay" else 300), 1)


def prepared(m: NDArray[np.float32], style: str, look: Look, size: tuple[int, int]) -> NDArray[np.float64]:
    """The planes that a style draws, smoothed.

    Parameters
    ----------
    m
        float32 (C, H, W).
    style
        One of `Panel`: "overlay" and "gray" draw the norm over the channels, "diverging" their sum, "rgb"
        each.
    look
        How maps are drawn.
    size
        (width, height) of the network's input.  A map of an inner layer is smaller.

    Returns
    -------
    float64 (1, H, W), or (C, H, W) for "rgb".

    Raises
    ------
    InputError
        For another style.
    """
    if style not in get_args(Panel):
        raise InputError(f"unknown style {style!r}.", supported=", ".join(get_args(Style)))
    sigma = sigma_of(m, style, look, size) * m.shape[2] / size[0]
    planes = m if style == "rgb" else reduce(m, "sum" if style == "diverging" else "norm")[None]
    return np.stack([render.smoothed(plane, sigma) for plane in planes])


def limit_of(maps: list[NDArray[np.float32]], style: str, look: Look, size: tuple[int, int]) -> float:
    """One limit for several maps in the same style.

    Parameters
    ----------
    maps
        Each float32 (C, H, W).
    style, look, size
        As for `prepared`.
    """
    planes = [prepared(m, style, look, size).ravel() for m in maps]
    return render.robust_limit(np.concatenate(planes), look.percentile)


def uses_photo(style: str, look: Look, photo: Photo | None) -> bool:
    """Whether a style is drawn on the whole photo.  Raises `InputError` where it is wanted and unknown."""
    if look.canvas == "photo" and photo is None:
        raise InputError("there is no photo: the sample came as an array.", supported="canvas='network'")
    if look.canvas is not None:
        return look.canvas == "photo"
    return style == "overlay" and photo is not None and photo.is_there()


def draw_map(
    m: NDArray[np.float32],
    style: str,
    image: Image.Image | None = None,
    photo: Photo | None = None,
    look: Look | None = None,
    height: int | None = None,
) -> Drawn:
    """Draw one map.

    Parameters
    ----------
    m
        float32 (C, H, W), colours red first.
    style
        One of `Panel`.
    image
        The network's input as a picture, over which "overlay" draws the map.
    photo
        The whole photo of which that is a part.
    look
        How it is drawn.
    height
        The picture's height in pixels; by default the photo's, up to `look.max_side`, or the map's.

    Raises
    ------
    InputError
        For another style, for "overlay" without an image, and as the functions of `render`.
    """
    look = look or Look()
    given = image.size if image else (m.shape[2], m.shape[1])
    planes = prepared(m, style, look, given)
    limit = look.limit or render.robust_limit(planes, look.percentile)
    sharp = max(given) < SHARP
    on_photo = uses_photo(style, look, photo)
    base: Image.Image | None = None
    if on_photo and photo is not None:
        size = photo_size(photo, look, height)
        box = box_on(photo, size)
        if style == "overlay":
            base = photo.open(size)
    else:
        size = given if height is None else size_of(given, height, look)
        box = (0, 0, *size)
        if style == "overlay" and image:
            base = seen(image, size, sharp)
    if style == "overlay" and base is None:
        raise InputError(
            "there is no image to lay the map over.", hint="The styles gray and diverging do without."
        )
    if box != (0, 0, m.shape[2], m.shape[1]) or size != (m.shape[2], m.shape[1]):
        planes = np.stack([render.placed(plane / limit, box, size, sharp=sharp) for plane in planes])
    else:
        planes = planes / limit
    name = look.palette or _PALETTES.get(style, "gray")
    colours = palette(name, 255 if style == "diverging" else 256)
    picture = Image.fromarray(_coloured(planes, style, name, colours, base, look.alpha))
    if on_photo and photo is not None and not photo.is_whole:
        picture = framed(picture, box)
    sigma = sigma_of(m, style, look, given)
    return Drawn(picture, limit, sigma, colours, style in ("diverging", "rgb"), on_photo)


def _coloured(
    planes: NDArray[Any], style: str, name: str, colours: Pixels, base: Image.Image | None, alpha: float
) -> Pixels:
    """The pixels of a map from -1 to 1, as `prepared` has it, in the colours of this name."""
    if style == "rgb":
        return render.rgb(planes, limit=1)
    if style == "diverging":
        return render.diverging(planes[0], limit=1, colours=colours)
    if base is not None:
        over = np.asarray(base.convert("RGB"))
        return render.overlay(planes[0], over, alpha=alpha, limit=1, colours=colours)
    if name == "gray":
        return render.gray(planes[0], limit=1)
    return render.coloured(planes[0], colours, limit=1)


def box_on(photo: Photo, size: tuple[int, int]) -> render.Box:
    """The left, top, right and bottom of what the network saw, on the photo at this (width, height)."""
    across, down = size[0] / photo.size[0], size[1] / photo.size[1]
    left, top, right, bottom = photo.box
    left, top = round(left * across), round(top * down)
    return left, top, max(round(right * across), left + 1), max(round(bottom * down), top + 1)


def size_of(given: tuple[int, int], height: int, look: Look) -> tuple[int, int]:
    """The (width, height) of a picture of `given` size at this height.

    A very wide one loses its aspect: a row of 3,000 pixels, enlarged until it is seen, would be as wide as
    140,000.
    """
    widest = max(_WIDEST * MAX_SIDE, look.max_side or 0)
    return min(max(1, round(given[0] * height / given[1])), widest), height


def photo_size(photo: Photo, look: Look, height: int | None = None) -> tuple[int, int]:
    """The (width, height) at which a photo is drawn."""
    width, tall = photo.size
    if height is not None:
        return size_of(photo.size, height, look)
    factor = min(1.0, (look.max_side or MAX_SIDE) / max(photo.size))
    return max(1, round(width * factor)), max(1, round(tall * factor))


def seen(image: Image.Image, size: tuple[int, int], sharp: bool) -> Image.Image:
    """The network's input as a picture, enlarged to `size` = (width, height)."""
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.NEAREST if sharp else Image.Resampling.BICUBIC)


def framed(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A picture with a white frame, and a thin dark line on either side of it, on any ground.

    Lines for which the picture is too narrow are left out, and they are thin where little is framed.
    """
    picture = picture.convert("RGB")
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = box
    line = max(1, round(min(max(picture.size) / 500, min(right - left, bottom - top) / 50)))
    left, top = max(left, line), max(top, line)
    right, bottom = min(right, picture.width - line), min(bottom, picture.height - line)
    for out, colour in ((line, "#303030"), (0, "#ffffff"), (-line, "#303030")):
        edge = (left - out, top - out, right + out - 1, bottom + out - 1)
        if edge[0] <= edge[2] and edge[1] <= edge[3]:
            draw.rectangle(edge, outline=colour, width=line)
    return picture


def reduce(m: NDArray[np.float32], how: Reduction) -> NDArray[np.float32]:
    """Reduce axis -3, the channels; see `Attribution.reduce`.

    It is computed in float64, because squares of small gradients underflow in float32.
    """
    if how not in _REDUCTIONS:
        raise InputError(f"unknown reduction {how!r}.", supported=", ".join(get_args(Reduction)))
    return np.asarray(_REDUCTIONS[how](m.astype(np.float64)), dtype=np.float32)
