"""`visualize`: a grid of images and maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ... import InputError
from ...pictures import render
from ...pictures.figure import Panel, enlarged, figure, stacked
from ...pictures.files import File, save_picture
from ..core import refuse


def visualize(
    images: Sequence[NDArray[Any] | None] | NDArray[Any],
    titles: Sequence[str] | None = None,
    overlays: Sequence[NDArray[Any] | None] | None = None,
    overlay_alpha: float = 0.75,
    rows: int | None = None,
    cols: int | None = None,
    figsize: Any = None,
    cmap: str | None = None,
    overlay_cmap: str | None = None,
    to_file: File | None = None,
    to_buffer: Any = None,
    subplots_ws: float = 0.0,
    subplots_hs: float = 0.0,
) -> Image.Image:
    """Draw images and maps in a grid.

    Parameters
    ----------
    images
        Images: uint8 or float 0..1 (H, W, 3).  Maps: (H, W) or (H, W, 1), drawn as heat from their least to
        their largest value; of (H, W, K) each plane is drawn.  None leaves a gap.
    titles
        One for each picture, or fewer.
    overlays
        Maps that are laid over the images.
    overlay_alpha
        The opacity of the strongest heat, 0 to 1.
    rows, cols
        Rows and columns of the grid; by default rows of 8.
    figsize, cmap, overlay_cmap, subplots_ws, subplots_hs
        Must have their defaults: gbp has one map of colours, and its grid has no size in inches.
    to_file, to_buffer
        Where to write a PNG or JPEG, besides.

    Returns
    -------
    The picture.

    Raises
    ------
    InputError
        For what cannot be drawn.
    """
    refuse(
        figsize=(figsize, None),
        cmap=(cmap, None),
        overlay_cmap=(overlay_cmap, None),
        subplots_ws=(subplots_ws, 0.0),
        subplots_hs=(subplots_hs, 0.0),
    )
    given = images
    if isinstance(images, np.ndarray) and images.ndim <= 3 and images.shape[-1:] in ((1,), (3,)):
        given = [images]
    panels: list[Image.Image | None] = []
    for k, image in enumerate(given):
        over = overlays[k] if overlays is not None and k < len(overlays) else None
        panels += [None] if image is None else _panels(np.asarray(image), over, overlay_alpha)
    if not any(panel is not None for panel in panels):
        raise InputError("there are no images to draw.")
    across = cols or (-(-len(panels) // rows) if rows else min(8, len(panels)))
    size = next(panel.size for panel in panels if panel is not None)
    blank = Image.new("RGB", size, "white")
    named = [*(titles or ()), *[""] * len(panels)][: len(panels)]
    drawn = [panel or blank for panel in panels]
    shown = [Panel(enlarged(image), name) for image, name in zip(drawn, named, strict=True)]
    grid = stacked([figure(shown[k : k + across]).image() for k in range(0, len(shown), across)])
    for file in (to_file, to_buffer):
        if file is not None:
            save_picture(grid, file)
    return grid


def _panels(image: NDArray[Any], over: NDArray[Any] | None, alpha: float) -> list[Image.Image | None]:
    """An image, or the planes of maps, as pictures."""
    if image.ndim == 3 and image.shape[-1] == 3:
        pixels = image if image.dtype == np.uint8 else np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
        if over is not None:
            plane = np.asarray(over, np.float32).reshape(over.shape[:2])
            pixels = render.overlay(plane, pixels, alpha=alpha)
        return [Image.fromarray(pixels)]
    if image.ndim not in (2, 3):
        raise InputError(
            f"an image has shape {list(image.shape)}.", supported="(H, W, 3), (H, W) or (H, W, K)"
        )
    planes = [image] if image.ndim == 2 else list(np.moveaxis(image, -1, 0))
    return [Image.fromarray(render.heat(plane)) for plane in planes]
