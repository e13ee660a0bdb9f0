"""`Figure`: pictures with their titles, colour bars and remarks, as pixels or as SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from . import text
from .palettes import Pixels

INK, FAINT, FRAME, PAPER = "#1f1f1f", "#5c5c5c", "#d0d0d0", "#ffffff"
WARNING_INK, WARNING_PAPER = "#7a2e00", "#fdeccc"
#: Most pixels of a row of panels; the others go into further rows.
MAX_WIDTH = 2400
_BAR_ENTRIES, _LEAST = 256, 288


@dataclass(frozen=True)
class Key:
    """The colour bar under a panel.

    Parameters
    ----------
    colours
        uint8 (n, 3), left to right.
    ticks
        Texts at the left, the middle and the right.
    meaning
        How to read the colours, a sentence.
    """

    colours: Pixels
    ticks: tuple[str, str, str]
    meaning: str


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Parameters
    ----------
    image
        The picture, as large as it is shown.
    title
        A line above it.
    caption
        Lines between title and picture: the class.
    key
        The colour bar, or None.
    warns
        Whether the caption is printed as a warning.
    """

    image: Image.Image
    title: str
    caption: str = ""
    key: Key | None = None
    warns: bool = False


@dataclass(frozen=True)
class Text:
    """A line of text at its upper left corner."""

    at: tuple[float, float]
    text: str
    size: int
    fill: str


@dataclass(frozen=True)
class Picture:
    """A picture at its upper left corner."""

    at: tuple[int, int]
    image: Image.Image
    size: tuple[int, int]


@dataclass(frozen=True)
class Rectangle:
    """A rectangle, filled or an outline of one pixel."""

    at: tuple[int, int]
    size: tuple[int, int]
    fill: str | None
    outline: str | None = None


Item: TypeAlias = Text | Picture | Rectangle


@dataclass
class Figure:
    """Items on white paper of `width` × `height` pixels."""

    width: int
    height: int
    items: list[Item] = field(default_factory=list)

    def image(self) -> Image.Image:
        """The figure as an RGB image."""
        canvas = Image.new("RGB", (self.width, self.height), PAPER)
        draw = ImageDraw.Draw(canvas)
        for item in self.items:
            if isinstance(item, Text):
                text.write(canvas, item.at, item.text, item.size, item.fill)
            elif isinstance(item, Picture):
                canvas.paste(_resized(item.image, item.size), item.at)
            else:
                right, bottom = item.at[0] + item.size[0] - 1, item.at[1] + item.size[1] - 1
                draw.rectangle((*item.at, right, bottom), fill=item.fill, outline=item.outline)
        return canvas

    def svg(self, description: str = "") -> str:
        """The figure as SVG: pictures as PNG within it, and text as text.

        Parameters
        ----------
        description
            Its metadata, as text.
        """
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" '
            f"font-family=\"'Noto Sans', 'DejaVu Sans', Arial, sans-serif\">",
            f"<metadata>{escape(description)}</metadata>",
            f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>',
        ]
        lines += [_svg(item) for item in self.items]
        return "\n".join([*lines, "</svg>\n"])


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.NEAREST)


def _svg(item: Item) -> str:
    if isinstance(item, Text):
        left, top = item.at
        # The viewer may have another typeface: the line keeps its length.
        length = text.width_of(item.text, item.size)
        return (
            f'<text x="{left:.1f}" y="{top + item.size * 1.07:.1f}" font-size="{item.size}" '
            f'fill="{item.fill}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs" '
            f'xml:space="preserve">{escape(item.text)}</text>'
        )
    place = f'x="{item.at[0]}" y="{item.at[1]}" width="{item.size[0]}" height="{item.size[1]}"'
    if isinstance(item, Picture):
        encoded = io.BytesIO()
        item.image.save(encoded, "PNG", optimize=True)
        data = base64.b64encode(encoded.getvalue()).decode()
        return f'<image {place} preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
    return f'<rect {place} fill="{item.fill or "none"}" stroke="{item.outline or "none"}"/>'


def figure(panels: Sequence[Panel], remarks: str = "", warnings: Sequence[str] = ()) -> Figure:
    """Put panels in rows, each with its title above it and its colour bar below.

    Parameters
    ----------
    panels
        At least one.  Their pictures keep their size.
    remarks
        A paragraph below all panels.
    warnings
        Paragraphs above all panels, on a ground of their own.

    Raises
    ------
    InputError
        Without panels.
    """
    if not panels:
        raise InputError("there is nothing to show.")
    tallest = max(panel.image.height for panel in panels)
    size = min(30, max(15, round(tallest / 30)))
    gap = size
    least = (22 if len(panels) == 1 else 12) * size - 2 * gap  # of the words about a narrow panel
    columns = _columns([max(panel.image.width, least) for panel in panels], gap)
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    width = max(sum(max(panel.image.width, least) + gap for panel in row) for row in rows) + gap
    result = Figure(max(width, 22 * size), 0)
    top = gap
    for warning in warnings:
        top = _paragraph(result, f"Warning: {warning}", gap, top, size, WARNING_INK, WARNING_PAPER) + gap // 2
    for row in rows:
        top = _row(result, row, gap, top, size, least) + gap
    small = max(13, round(size * 0.85))
    if remarks:
        top = _paragraph(result, remarks, gap, top - gap // 2, small, FAINT) + gap // 2
    unseen = any("\\u" in item.text for item in result.items if isinstance(item, Text))
    if unseen:
        note = "\\u…: the code point of a character that no font on this machine has."
        top = _paragraph(result, note, gap, top, small, FAINT) + gap // 2
    result.height = top + gap // 2
    return result


def _columns(widths: Sequence[int], gap: int) -> int:
    """How many panels a row holds, so that rows fit and are about as long as each other."""
    fitting = max(1, (MAX_WIDTH - gap) // (max(widths) + gap))
    if sum(widths) + gap * (len(widths) + 1) <= MAX_WIDTH:
        fitting = len(widths)
    rows = -(-len(widths) // fitting)
    return -(-len(widths) // rows)


def _paragraph(
    result: Figure, words: str, left: int, top: int, size: int, ink: str, paper: str | None = None
) -> int:
    """Add a paragraph as wide as the figure.  Returns where it ends."""
    inset = size // 2 if paper else 0
    lines = text.wrapped(words, size, result.width - 2 * left - 2 * inset, max_lines=12)
    height = len(lines) * text.line_height(size) + 2 * inset
    if paper:
        result.items.append(Rectangle((left, top), (result.width - 2 * left, height), paper))
    for number, line in enumerate(lines):
        at = left + inset, top + inset + number * text.line_height(size)
        result.items.append(Text(at, line, size, ink))
    return top + height


def _row(result: Figure, row: Sequence[Panel], left: int, top: int, size: int, least: int) -> int:
    """Add a row of panels, whose words have a width of at least `least`.  Returns where it ends."""
    gap, small = left, max(13, round(size * 0.85))
    heads = [_head(panel, size, max(panel.image.width, least)) for panel in row]
    above = max(len(head) for head in heads) * text.line_height(size)
    below = 0
    for panel, head in zip(row, heads, strict=True):
        start = top + above - len(head) * text.line_height(size)
        for number, (line, ink) in enumerate(head):
            result.items.append(Text((left, start + number * text.line_height(size)), line, size, ink))
        picture = panel.image.convert("RGB")
        at = left, top + above + size // 3
        outline = (at[0] - 1, at[1] - 1), (picture.width + 2, picture.height + 2)
        result.items.append(Rectangle(*outline, None, FRAME))  # a white panel shows on white paper
        result.items.append(Picture(at, picture, picture.size))
        if panel.key:
            under = at[1] + picture.height
            below = max(below, _key(result, panel.key, left, under, picture.width, small, least))
        left += max(picture.width, least) + gap
    return max(below, top + above + size // 3 + max(panel.image.height for panel in row))


def _head(panel: Panel, size: int, width: int) -> list[tuple[str, str]]:
    """The lines above a panel with their colours."""
    title = [(line, INK) for line in text.wrapped(panel.title, size, width, max_lines=3) if panel.title]
    ink = WARNING_INK if panel.warns else FAINT
    caption = text.wrapped(panel.caption, size, width) if panel.caption else []
    return [*title, *((line, ink) for line in caption)]


def _key(result: Figure, key: Key, left: int, top: int, width: int, size: int, least: int) -> int:
    """Add a colour bar and, in lines of at least `least`, how to read it.  Returns where it ends."""
    bar = np.asarray(key.colours)[None]
    top += size // 2
    height = max(6, size // 2)
    at = np.rint(np.linspace(0, bar.shape[1] - 1, min(_BAR_ENTRIES, width))).astype(np.intp)
    result.items.append(Picture((left, top), Image.fromarray(bar[:, at]), (width, height)))
    top += height + 2
    line = text.line_height(size)
    ticks = [text.legible(tick) for tick in key.ticks]
    lengths = [text.width_of(tick, size) for tick in ticks]
    if sum(lengths) > width - size:  # too narrow for a tick in the middle, and for what a number means
        ticks = [ticks[0], "", ticks[2].partition(" ")[0]]
        lengths = [text.width_of(tick, size) for tick in ticks]
    span = max(width, math.ceil(sum(lengths)) + size)  # two ticks are wider than a bar of a few pixels
    for place, (tick, length) in enumerate(zip(ticks, lengths, strict=True)):
        if tick:
            result.items.append(Text((left + place / 2 * (span - length), top), tick, size, FAINT))
    top += line
    lines = text.wrapped(key.meaning, size, max(width, least), max_lines=8)
    for number, words in enumerate(lines):
        result.items.append(Text((left, top + number * line), words, size, FAINT))
    return top + line * len(lines)


def enlarged(image: Image.Image) -> Image.Image:
    """A small image enlarged by a whole factor to at least 288 pixels, each pixel to a square."""
    factor = max(1, -(-_LEAST // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Put pictures one below the other, on white, at the left.

    Parameters
    ----------
    rows
        RGB images, at least one.
    """
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas
