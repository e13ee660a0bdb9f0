"""Explained samples become figures: which panels they have, and what is said beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from ..errors import InputError
from ..pictures import legend
from ..pictures.drawing import (
    Drawn,
    Panel,
    Style,
    box_on,
    draw_map,
    framed,
    limit_of,
    photo_size,
    seen,
    size_of,
    uses_photo,
)
from ..pictures.figure import Figure, figure
from ..pictures.figure import Panel as FigurePanel
from ..pictures.look import Look
from ..pictures.percent import percent
from ..pictures.photo import SHARP
from ..version import VERSION
from .explained import Explained

#: The height of the panels of a strip; the least longer side of a single one, and the least of any side.
STRIP_HEIGHT, LEAST_HEIGHT, _LEAST_SIDE = 448, 320, 48
#: How many times as wide as high a strip's panel may be before it becomes lower.
_WIDEST = 2


class _Shown(NamedTuple):
    """A drawn map, which shows a sample with one target in a style, and its title."""

    sample: Explained
    style: Panel
    drawn: Drawn
    title: str

    @classmethod
    def of(cls, sample: Explained, style: Panel, drawn: Drawn) -> _Shown:
        """With a title that names the style too."""
        return cls(sample, style, drawn, f"{sample.title}: {legend.SHOWN[style]}")


def draw_panel(sample: Explained, style: str, look: Look, height: int | None = None) -> Drawn:
    """Draw the map of the only target, in any style but "strip", without captions.

    Parameters
    ----------
    sample
        The sample.
    style
        The name of the style.
    look
        How it is drawn.
    height
        The picture's height in pixels; by default its own.
    """
    return draw_map(sample.planes(), style, sample.image, sample.photo, look, height)


def _beside(sample: Explained, style: Panel, look: Look, height: int) -> Drawn:
    """Draw a map for a strip of this height.  A very wide photo is low; the network's view stays readable."""
    if look.max_side is None and sample.photo is not None and not uses_photo(style, look, sample.photo):
        height = max(height, min(_plane_size(sample)[0], LEAST_HEIGHT))
    return draw_panel(sample, style, look, height)


def figure_of(sample: Explained, style: Style | None, look: Look) -> Figure:
    """The figure of one sample.

    Parameters
    ----------
    sample
        The sample, with one target, or several where the style is "strip".
    style
        By default the first of `Explained.panels`.
    look
        How maps are drawn.
    """
    if style == "strip":
        return _strip(sample, look)
    chosen: Panel = style or sample.panels()[0]
    drawn = draw_panel(sample, chosen, look)
    size = drawn.image.size
    if max(size) < LEAST_HEIGHT or min(size) < _LEAST_SIDE:
        drawn = draw_panel(sample, chosen, look, _enlarged(*size))
    return _composed([_Shown.of(sample, chosen, drawn)], [], look, sample.doubts())


def _strip(sample: Explained, look: Look) -> Figure:
    """The photo beside its maps: one target in every style, K targets in one each."""
    height = _strip_height(sample, look)
    where, *others = sample.panels()
    if sample.targets > 1:
        ones = sample.each_target()
        look = _shared(ones, where, look)
        shown = [_Shown(one, where, _beside(one, where, look, height), one.title) for one in ones]
    else:
        shown = [_Shown.of(sample, style, _beside(sample, style, look, height)) for style in (where, *others)]
    return _composed(shown, _input_panel(sample, look, height), look, sample.doubts())


def rules_figure(samples: Sequence[Explained], style: Panel | None, look: Look) -> Figure:
    """Draw one sample under several rules: the photo, then the maps in the order of `samples`.

    Parameters
    ----------
    samples
        The same sample from several attributions, with one target each.
    style
        By default "rgb" where the map has three colours, else "gray".
    look
        How maps are drawn.

    Raises
    ------
    InputError
        Without samples, and as `draw_panel`.
    """
    if not samples:
        raise InputError("there are no attributions to show.")
    first = samples[0]
    chosen: Panel = style or ("rgb" if "rgb" in first.panels() else "gray")
    height = _strip_height(first, look)
    look = _shared(samples, chosen, look)
    shown = [_Shown.of(sample, chosen, _beside(sample, chosen, look, height)) for sample in samples]
    doubts = [doubt for sample in samples for doubt in sample.doubts()]
    return _composed(shown, _input_panel(first, look, height), look, doubts)


def _shared(samples: Sequence[Explained], style: Panel, look: Look) -> Look:
    """The look with one limit for the maps of all samples, unless each map is to have its own."""
    if look.limits == "own" or look.limit is not None:
        return look
    height, width = _plane_size(samples[0])
    return look.but(limit=limit_of([one.planes() for one in samples], style, look, (width, height)))


def _composed(
    shown: Sequence[_Shown],
    panels: list[FigurePanel],
    look: Look,
    doubts: Sequence[str],
) -> Figure:
    """The figure of drawn maps behind other panels."""
    has_photo = any(panel.title == "photo" for panel in panels)
    unlikely: dict[str, str] = {}
    for sample, style, drawn, title in shown:
        doubt = _doubt(sample)
        if doubt:
            unlikely[sample.name_of(sample.the_target())] = doubt
        # A map of 0 has no colours to read.
        key = None if sample.is_empty else legend.key_of(drawn, style, sample.rule, look, sample.method)
        panels.append(FigurePanel(drawn.image, title, sample.caption(), key, bool(doubt)))
    sample, all_drawn = shown[0].sample, [each.drawn for each in shown]
    is_framed = has_photo or any(drawn.on_photo for drawn in all_drawn)
    parts = [sample.provenance.model if sample.provenance else ""]
    if sample.photo is not None:
        parts.append(sample.photo.description(framed=is_framed))
    parts += [legend.smoothing_of(all_drawn), f"gbp {VERSION}"]
    return figure(panels, " · ".join(filter(None, parts)), [*legend.warning_of(unlikely), *doubts])


def _doubt(sample: Explained) -> str:
    """Why the explained class is hardly there: its probability, or how many classes score higher; or ""."""
    if sample.question is not None:
        return ""
    number = sample.the_target()
    chance, higher = sample.chance(number), int((sample.scores > sample.scores[number]).sum())
    if chance is not None:
        return percent(chance) if chance < legend.UNLIKELY else ""
    is_low = len(sample._classes.axes) == 1 and higher >= max(5, len(sample.scores) // 20)
    return f"{higher} of {len(sample.scores)} classes score higher" if is_low else ""


def _input_panel(sample: Explained, look: Look, height: int) -> list[FigurePanel]:
    """The first panel of a strip, with the best class as caption; none where the image is unknown."""
    caption = sample.caption(sample.best())
    if sample.photo is not None and sample.photo.is_there() and look.canvas != "network":
        photo, size = sample.photo, photo_size(sample.photo, look, height)
        image = photo.open(size)
        if not photo.is_whole:
            image = framed(image, box_on(photo, size))
        return [FigurePanel(image, "photo", caption)]
    if sample.image is None:
        return []
    size = size_of(sample.image.size, height, look)
    image = seen(sample.image, size, max(sample.image.size) < SHARP)
    return [FigurePanel(image, "input", caption)]


def _strip_height(sample: Explained, look: Look) -> int:
    """The height of a strip's panels."""
    height, width = _plane_size(sample)
    if sample.photo is not None and sample.photo.is_there() and look.canvas != "network":
        across, down = sample.photo.size
        tall = STRIP_HEIGHT if look.max_side is None else round(look.max_side * down / max(across, down))
        if max(height, width) < SHARP and look.max_side is None:
            tall = _enlarged(width, height)
        return max(16, min(tall, round(tall * _WIDEST * down / across)))
    if look.max_side is not None:
        return max(16, round(look.max_side * height / max(width, height)))
    return _enlarged(width, height)


def _plane_size(sample: Explained) -> tuple[int, int]:
    """The (height, width) of what the network saw, or of the map where that is unknown."""
    if sample.image is not None:
        return sample.image.height, sample.image.width
    height, width = sample.each_target()[0].planes().shape[1:]
    return int(height), int(width)


def _enlarged(width: int, height: int) -> int:
    """The height of a small picture enlarged by a whole factor; a single row must be visible."""
    factor = max(1, -(-LEAST_HEIGHT // max(width, height)))
    return max(factor, -(-_LEAST_SIDE // height)) * height


def metadata_of(samples: Sequence[Explained], look: Look) -> dict[str, Any]:
    """The facts that a picture's file holds about itself, in JSON's types.

    Parameters
    ----------
    samples
        The sample, under one rule or several.
    look
        How maps are drawn; what is as by default is left out.
    """
    first, usual = samples[0], asdict(Look())
    photo = first.photo
    seen_of = {"size": list(photo.size), "seen": [round(edge, 2) for edge in photo.box]} if photo else None
    return {
        "provenance": first.provenance.to_dict() if first.provenance else {"gbp": VERSION},
        "maps": [{"rule": sample.rule} | sample.made_by() for sample in samples],
        "explained": first.explained_rows(),
        "photo": seen_of,
        "look": {key: value for key, value in asdict(look).items() if value != usual[key]},
        "notes": list(first.notes),
    }
