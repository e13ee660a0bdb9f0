"""Maps (C, H, W) become pictures in a named style."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from . import render

Reduction = Literal["abs-max", "abs-mean", "positive", "negative", "norm", "sum"]
Panel = Literal["overlay", "diverging", "gray", "rgb"]
Style = Literal["overlay", "diverging", "gray", "rgb", "strip"]


def draw_map(
    m: NDArray[np.float32],
    style: str,
    image: Image.Image | None = None,
    *,
    limit: float | None = None,
    alpha: float = 0.95,
) -> Image.Image:
    """Draw one map.

    Parameters
    ----------
    m
        float32 (C, H, W), colours red first.
    style
        One of `Panel`.
    image
        The image that "overlay" draws the map over.
    limit
        The magnitude that is drawn at full strength; by default `render.robust_limit`.
    alpha
        The opacity of the strongest heat of "overlay", 0 to 1.

    Raises
    ------
    InputError
        For another style, for "overlay" without an image, and as the functions of `render`.
    """
    if style == "gray":
        return Image.fromarray(render.gray(reduce(m, "abs-max"), limit=limit))
    if style == "diverging":
        return Image.fromarray(render.diverging(reduce(m, "sum"), limit=limit))
    if style == "rgb":
        return Image.fromarray(render.rgb(m, limit=limit))
    if style != "overlay":
        raise InputError(f"unknown style {style!r}.", supported=", ".join(get_args(Style)))
    if image is None:
        raise InputError(
            "there is no image to lay the map over.", hint="The styles gray and diverging do without."
        )
    magnitude, base = reduce(m, "abs-max"), image.convert("RGB")
    if magnitude.size < base.width * base.height:  # of an inner layer: its pixels become squares
        magnitude = np.asarray(Image.fromarray(magnitude).resize(base.size, Image.Resampling.NEAREST))
    base = base.resize(magnitude.shape[::-1], Image.Resampling.BILINEAR)
    return Image.fromarray(render.overlay(magnitude, np.asarray(base), alpha=alpha, limit=limit))


def reduce(m: NDArray[np.float32], how: Reduction) -> NDArray[np.float32]:
    """Reduce axis -3, the channels; see `Attribution.reduce`.

    It is computed in float64, because squares of small gradients underflow in float32.
    """
    x = m.astype(np.float64)
    if how == "abs-max":
        reduced = np.abs(x).max(axis=-3)
    elif how == "abs-mean":
        reduced = np.abs(x).mean(axis=-3)
    elif how == "positive":
        reduced = np.maximum(x, 0).sum(axis=-3)
    elif how == "negative":
        reduced = np.maximum(-x, 0).sum(axis=-3)
    elif how == "norm":
        reduced = np.sqrt((x * x).sum(axis=-3))
    elif how == "sum":
        reduced = x.sum(axis=-3)
    else:
        raise InputError(f"unknown reduction {how!r}.", supported=", ".join(get_args(Reduction)))
    return np.asarray(reduced, dtype=np.float32)
