"""Strips of one sample under several rules or methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from ..pictures.drawing import Panel
from ..pictures.files import File, save_figure
from ..pictures.look import Look, LookOptions
from .figures import metadata_of, rules_figure
from .sample import Sample


def save_rules(
    samples: Sequence[Sample],
    file: File,
    style: Panel | None = None,
    *,
    format: str | None = None,
    **look: Unpack[LookOptions],
) -> None:
    """Write one sample under several rules as a figure: the photo, then the maps in the order of `samples`.

    Parameters
    ----------
    samples
        The same sample from several attributions, with one target each.
    file, format
        As for `Sample.save`.
    style
        By default "rgb" where the map has three colours, else "gray".
    look
        As for `Sample.gray`.

    Raises
    ------
    InputError
        Without samples, and as `Sample.save`.
    """
    chosen = Look(**look)
    save_figure(rules_figure(samples, style, chosen), file, format, metadata_of(samples, chosen))
