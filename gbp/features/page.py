"""The picture of a channel, and the page that shows all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image, ImageDraw

from ..bulk.job import name_of
from ..pictures import text
from ..pictures.figure import FRAME, INK, PAPER
from .strongest import Hit

#: Pixels of a cell, between cells, and of the title's letters.
_CELL, _BETWEEN, _MARGIN, _FONT = 176, 4, 12, 16


def draw_channel(
    title: str, maps: Sequence[Image.Image], patches: Sequence[Image.Image | None]
) -> Image.Image:
    """Reconstructions in a square, beside the patches of the images in another.

    Parameters
    ----------
    title
        The line on top.
    maps
        The reconstructions, the strongest first.
    patches
        The patches of their images, in the same order; None where an image is unknown.
    """
    columns = max(1, math.ceil(math.sqrt(max(len(maps), len(patches)))))
    rows = max(1, math.ceil(len(maps) / columns))
    side = columns * (_CELL + _BETWEEN)
    lines = text.wrapped(title, _FONT, 2 * side + _MARGIN, max_lines=2)
    top = _MARGIN + round((1.4 * len(lines) + 0.6) * _FONT)
    size = (2 * side + 3 * _MARGIN, top + rows * (_CELL + _BETWEEN) + _MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for k, line in enumerate(lines):
        text.write(canvas, (_MARGIN, _MARGIN + round(1.4 * k * _FONT)), line, _FONT, INK)
    for block, pictures in enumerate((maps, patches)):
        for k, picture in enumerate(pictures):
            x = _MARGIN + block * (side + _MARGIN) + k % columns * (_CELL + _BETWEEN)
            y = top + k // columns * (_CELL + _BETWEEN)
            draw.rectangle((x - 1, y - 1, x + _CELL, y + _CELL), outline=FRAME)
            if picture is not None:
                cell = _fitted(picture)
                canvas.paste(cell, (x + (_CELL - cell.width) // 2, y + (_CELL - cell.height) // 2))
    return canvas


def _fitted(picture: Image.Image) -> Image.Image:
    """As large as a cell.  Enlarged pixels become sharp squares, because smoothing would add detail."""
    scale = _CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize(size, method)


def index_page(
    title: str, about: Sequence[str], channels: Mapping[int, tuple[str, tuple[int, int], Sequence[Hit]]]
) -> str:
    """The page of all channels, as HTML.

    Parameters
    ----------
    title
        Its title.
    about
        Paragraphs on what is shown.
    channels
        Channel → the name of its picture's file, the picture's width and height, and its hits.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        '<style>body{font:15px/1.45 "Noto Sans",system-ui,sans-serif;margin:2em auto;max-width:1116px;'
        "padding:0 1em;overflow-wrap:anywhere}h1{font-size:1.5rem}img{max-width:100%;height:auto;"
        "border-radius:6px}td,th{padding:0 1em 0 0;text-align:left}figure{margin:1em 0;"
        "scroll-margin-top:5.5em}summary{cursor:pointer}h2{font-size:1rem;margin:0 0 .3em}"
        "nav{position:sticky;top:0;max-height:5em;overflow-y:auto;background:Canvas}"
        "nav a{display:inline-block;padding:.2em .4em}</style>",
        f"<main><h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in about),
        '<nav aria-label="Channels">Channel',
        *(f'<a href="#channel-{channel}">{channel}</a>' for channel in channels),
        "</nav>",
    ]
    for channel, (file, (width, height), hits) in channels.items():
        parts.append(f'<figure id="channel-{channel}"><figcaption><h2>Channel {channel}</h2></figcaption>')
        if not hits:
            parts.append("<p>No image activates it.</p></figure>")
            continue
        rows = "".join(
            f"<tr><td>{hit.value:.4g}<td>{', '.join(map(str, hit.at)) or '–'}<td>{escape(name_of(hit.image))}"
            for hit in hits
        )
        parts.append(
            f'<img src="{escape(file)}" width="{width}" height="{height}" loading="lazy" '
            f'alt="Channel {channel}: what its units respond to, beside the images there">'
            f"<details><summary>Images of channel {channel}</summary>"
            f"<table><tr><th>activation<th>place<th>image{rows}</table></details></figure>"
        )
    return "\n".join([*parts, "</main>"]) + "\n"
