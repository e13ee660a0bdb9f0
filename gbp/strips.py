"""Strips of one sample under several rules or methods."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .errors import InputError
from .pictures import render
from .pictures.drawing import Panel
from .sample import Sample


def strip_rules(samples: Sequence[Sample], style: Panel | None = None) -> Image.Image:
    """Draw one sample under several rules: the input, then the maps in the order of `samples`.

    Parameters
    ----------
    samples
        The same sample from several attributions, with one target each.
    style
        By default "rgb" where the map has three colours, else "gray".  Each map has its own limit, because
        the rules' magnitudes differ by orders.

    Raises
    ------
    InputError
        Without samples, and as `Sample.draw`.
    """
    if not samples:
        raise InputError("there are no attributions to show.")
    chosen: Panel = style or ("rgb" if "rgb" in samples[0].panels() else "gray")
    images, captions = samples[0].input_panel()
    for sample in samples:
        images.append(sample.draw(chosen))
        captions.append(f"{sample.title}\n{sample.caption()}")
    return render.strip(images, captions, [doubt for sample in samples for doubt in sample.doubts()])
