"""Line charts, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from . import text
from .figure import FRAME, INK

#: Line colours in order; they differ in lightness too.
COLOURS = ("#113a85", "#dd4a5d", "#f2a12e", "#4f8f5b", "#7b4fa3", "#555555")
#: Everything is drawn this much larger and reduced, which smooths the lines.
_OVER = 2
#: Pixels of the whole picture's width, for which all sizes below are; it is scaled to the width asked for.
_WIDTH = 1400
#: Pixels of a chart's height, and of the longest label under it.
_HEIGHT, _LABELS = 190, 160
#: Pixels that a chart leaves for the numbers on its left and for the title above it; between things; of text.
_LEFT, _TOP, _GAP, _FONT = 44, 30, 20, 13
#: Labels along the axis of a chart are at most so many; of more, every second or third is written.
_MAX_LABELS = 26


Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Chart:
    """One chart: values from -1 to 1 over named places.

    Parameters
    ----------
    title
        Its title.
    places
        The names along the horizontal axis.
    lines
        The name of each line → its values, one for each place; None leaves a gap.
    """

    title: str
    places: Sequence[str]
    lines: Mapping[str, Sequence[float | None]]


def draw_charts(charts: Sequence[Chart], columns: int, width: int) -> Image.Image:
    """Draw charts in rows, with one legend on top.  All have the same lines.

    Parameters
    ----------
    charts
        At least one.
    columns
        How many stand side by side.
    width
        Pixels of the whole picture.
    """
    rows = -(-len(charts) // columns)
    font = text.font_of(text.SHIPPED, _OVER * _FONT)
    labels = max(
        font.getlength(_shortened(text.legible(name), font)) for chart in charts for name in chart.places
    )
    across = (_WIDTH - _GAP) // columns
    down = _TOP + _HEIGHT + int(labels / _OVER) + 2 * _GAP
    size = _OVER * (columns * across + _GAP), _OVER * (rows * down + 2 * _GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    least = min((v for c in charts for line in c.lines.values() for v in line if v is not None), default=0.0)
    low = -1.0 if least < -0.5 else -0.5 if least < -0.25 else -0.25  # where the axes begin
    x = _OVER * (_GAP + _LEFT)
    for colour, name in zip(_colours(charts[0]), charts[0].lines, strict=True):
        draw.line((x, _OVER * _GAP, x + _OVER * 24, _OVER * _GAP), fill=colour, width=3 * _OVER)
        draw.text((x + _OVER * 30, _OVER * _GAP), name, fill=INK, font=font, anchor="lm")
        x += int(_OVER * 50 + font.getlength(name))
    for k, chart in enumerate(charts):
        left = _GAP + _LEFT + k % columns * across
        top = 2 * _GAP + _TOP + k // columns * down
        _draw(canvas, draw, chart, (_OVER * left, _OVER * top, _OVER * (across - _LEFT - _GAP)), low, font)
    return canvas.resize((width, canvas.height * width // canvas.width), Image.Resampling.LANCZOS)


def _colours(chart: Chart) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(len(chart.lines))]


def _draw(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    chart: Chart,
    where: tuple[int, int, int],
    low: float,
    font: Font,
) -> None:
    """Draw one chart.  `where`: left, top and width of its area; `low`: the value at the axis' bottom."""
    (left, top, width), height = where, _OVER * _HEIGHT

    def at(value: float) -> float:
        """The height of a value on the canvas."""
        return top + height * (1.0 - value) / (1.0 - low)

    draw.text((left, top - _OVER * 8), chart.title, fill=INK, font=font, anchor="ls")
    for value in (-1.0, -0.5, 0.0, 0.5, 1.0):
        if value >= low:
            colour = "#888888" if value == 0 else FRAME
            draw.line((left, at(value), left + width, at(value)), fill=colour, width=_OVER)
            draw.text((left - _OVER * 8, at(value)), f"{value:.1f}", fill=INK, font=font, anchor="rm")
    step = width / max(1, len(chart.places))
    xs = [left + step * (k + 0.5) for k in range(len(chart.places))]
    every = -(-len(chart.places) // _MAX_LABELS)
    for k, (x, name) in enumerate(zip(xs, chart.places, strict=True)):
        if k % every == 0:
            _vertical(canvas, _shortened(text.legible(name), font), int(x), top + height + _OVER * 6, font)
    for colour, line in zip(_colours(chart), chart.lines.values(), strict=True):
        points = [None if v is None else (x, at(max(low, v))) for x, v in zip(xs, line, strict=True)]
        for a, b in pairwise(points):
            if a is not None and b is not None:
                draw.line((*a, *b), fill=colour, width=2 * _OVER)
        for point in points:
            if point is not None:
                x, y = point
                draw.ellipse((x - 3 * _OVER, y - 3 * _OVER, x + 3 * _OVER, y + 3 * _OVER), fill=colour)


def _shortened(name: str, font: Font) -> str:
    """The end of a name that is too long: names of layers differ there."""
    room = _OVER * _LABELS
    if font.getlength(name) <= room:
        return name
    while name and font.getlength("…" + name) > room:
        name = name[1:]
    return "…" + name


def _vertical(canvas: Image.Image, name: str, x: int, top: int, font: Font) -> None:
    """Write text from top to bottom, reading upwards, centred at x."""
    size = int(font.getlength(name)) + 2, _OVER * (_FONT + 5)
    line = Image.new("RGB", size, "white")
    ImageDraw.Draw(line).text((size[0] - 1, size[1] // 2), name, fill=INK, font=font, anchor="rm")
    canvas.paste(line.rotate(90, expand=True), (x - size[1] // 2, top))
