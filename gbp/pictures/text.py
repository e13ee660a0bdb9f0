"""Text in pictures: a typeface for every character, or an escape where no font of the machine has it.

Latin, Greek and Cyrillic are drawn in the Noto Sans that the package ships, so that pictures look alike on
every machine.  Other scripts are drawn in a font of the system.  A character that no font has is written as
its code point, as in Python: a box would hide which class was explained.
"""

from __future__ import annotations

import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from ..errors import shown

#: The shipped typeface; its licence is in the same folder.
SHIPPED = Path(__file__).parent / "fonts" / "NotoSans-Regular.ttf"

#: Beginnings of the names of fonts with scripts that the shipped one lacks, best first.
_PREFERRED = (
    *("NotoSansCJK-Regular", "NotoSansSC", "NotoSansJP", "NotoSansKR", "SourceHanSans", "PingFang"),
    *("Hiragino", "AppleSDGothicNeo", "msyh", "meiryo", "malgun", "YuGoth", "simsun", "wqy-"),
    *("DroidSansFallback", "NotoNaskhArabic-Regular", "NotoSansArabic-Regular", "GeezaPro"),
    *("NotoSansHebrew-Regular", "NotoSansDevanagari-Regular", "NotoSansBengali-Regular"),
    *("NotoSansTamil-Regular", "NotoSansThai-Regular", "Nirmala", "Kohinoor", "Tahoma", "tahoma"),
    *("segoeui", "arial", "Arial", "DejaVuSans.ttf", "FreeSans"),
)
#: Fonts that are tried for a character, and files of a folder that are looked at.
_MOST_FONTS, _MOST_FILES = 400, 20_000
#: Scripts that are drawn from right to left, or whose letters change beside each other.
_COMPLEX = ((0x0590, 0x08FF), (0x0900, 0x0DFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0xFB1D, 0xFEFC))
#: How many times as large text is drawn before it is scaled down.
FINE = 4
_NOTDEF = "\uffff"
#: Spaces at which no line ends, and the character that stands for them meanwhile.
_GLUE, _HARD = re.compile(" (?=[×=%])|(?<=[×=]) |(?<=score) (?=[-0-9])|(?<=gbp) (?=[0-9])"), "\u00a0"

Font = ImageFont.FreeTypeFont


@cache
def font_of(path: Path, size: int) -> Font:
    """The font in this file at this size, in pixels."""
    return ImageFont.truetype(str(path), size)


@cache
def has(path: Path, character: str) -> bool:
    """Whether a font has a glyph of its own for a character.  Fonts draw all that they lack as one glyph."""
    try:
        font = ImageFont.truetype(str(path), 32, layout_engine=ImageFont.Layout.BASIC)
        return _glyph(font, character) != _glyph(font, _NOTDEF)
    except (OSError, ValueError):  # a font of bitmaps, or a damaged one
        return False


def _glyph(font: Font, character: str) -> tuple[float, bytes]:
    return font.getlength(character), bytes(font.getmask(character))


def _folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", str(home))
        return [
            Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"),
            Path(local, "Microsoft", "Windows", "Fonts"),
        ]
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    return [
        home / ".local/share/fonts",
        home / ".fonts",
        Path("/usr/local/share/fonts"),
        Path("/usr/share/fonts"),
    ]


@cache
def system_fonts() -> tuple[Path, ...]:
    """The font files of the machine, those that are known to cover many characters first."""
    found: list[Path] = []
    for folder in _folders():
        for at, _, names in os.walk(folder):
            found += [Path(at, name) for name in names if name.lower().endswith((".ttf", ".otf", ".ttc"))]
            if len(found) > _MOST_FILES:
                break

    def place(path: Path) -> tuple[int, str]:
        known = (i for i, start in enumerate(_PREFERRED) if path.name.startswith(start))
        return next(known, len(_PREFERRED)), path.name

    return tuple(sorted(found, key=place)[:_MOST_FONTS])


@cache
def covering(character: str) -> Path | None:
    """The font to draw a character in; None where no font has it."""
    if has(SHIPPED, character):
        return SHIPPED
    code = ord(character)
    if any(first <= code <= last for first, last in _COMPLEX) and not features.check("raqm"):
        return None  # letters would stand in the wrong order, and unjoined
    return next((path for path in system_fonts() if has(path, character)), None)


def legible(text: str) -> str:
    """The text on one line, in characters that can be drawn; each other one as its code point."""
    text = unicodedata.normalize("NFC", shown(text))
    return "".join(c if covering(c) else f"\\u{ord(c):04x}" for c in text)


def runs(text: str) -> Iterator[tuple[Path, str]]:
    """Parts of a legible text, each with its font."""
    part, at = "", SHIPPED
    for character in text:
        # Spaces and marks go with what stands before them, so that words are shaped as a whole.
        stays = bool(part) and not character.isalnum() and has(at, character)
        font = at if stays else covering(character) or SHIPPED
        if font != at and part:
            head, part = _without_tail(part)
            yield at, head
            if part and font != SHIPPED:
                yield SHIPPED, part
                part = ""
        part, at = part + character, font
    for font, last in zip((at, SHIPPED), _without_tail(part), strict=True):
        if last:
            yield font, last


def _without_tail(part: str) -> tuple[str, str]:
    """A part, and the signs behind its last letter if that is of a script from right to left.

    These stand to the right of it, because captions go from left to right.  Signs that the shipped typeface
    lacks stay.
    """
    if not any(unicodedata.bidirectional(c) in ("R", "AL") for c in part):
        return part, ""
    end = max(
        i for i, c in enumerate(part) if unicodedata.bidirectional(c) in ("R", "AL") or not has(SHIPPED, c)
    )
    return part[: end + 1], part[end + 1 :]


def width_of(text: str, size: int) -> float:
    """The width of a legible text in pixels."""
    return sum(font_of(path, FINE * size).getlength(part) for path, part in runs(text)) / FINE


def wrapped(text: str, size: int, width: float, max_lines: int = 6) -> list[str]:
    """A text in lines.

    Lines end at spaces, but at those of "224 × 224", "σ = 2.5", "57 %" and "score 9.1" only where these are
    wider than a line; and within a word that is wider than a line.

    Parameters
    ----------
    text
        The text.
    size
        The size of the letters in pixels.
    width
        The most pixels of a line.
    max_lines
        The most lines.  The last of them ends in "…" where more would follow.
    """
    lines: list[str] = []
    for words in (_GLUE.sub(_HARD, legible(line)).split(" ") for line in text.split("\n")):
        line = ""
        for word in _fitting(words, size, width):
            longer = f"{line} {word}" if line else word
            if width_of(longer, size) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            *full, line = _broken(word, size, width)
            lines += full
        lines.append(line)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], _cut(lines[max_lines - 1], size, width)]
    return [line.replace(_HARD, " ") for line in lines]


def _fitting(words: Sequence[str], size: int, width: float) -> Iterator[str]:
    """The words; those that are wider than a line without the spaces that hold them together."""
    for word in words:
        yield from word.split(_HARD) if width_of(word, size) > width else (word,)


def _broken(word: str, size: int, width: float) -> list[str]:
    parts = [""]
    for character in word:
        if parts[-1] and width_of(parts[-1] + character, size) > width:
            parts.append("")
        parts[-1] += character
    return parts


def _cut(text: str, size: int, width: float) -> str:
    while text and width_of(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def line_height(size: int) -> int:
    """The distance of two lines, in pixels."""
    return round(size * 1.36)


def write(canvas: Image.Image, at: Sequence[float], text: str, size: int, fill: str) -> None:
    """Draw one legible line onto an image.

    It is drawn larger and scaled down: a small font would put its letters at whole pixels, unevenly.

    Parameters
    ----------
    canvas
        The image, of mode RGB.
    at
        (left, top) of the line.
    text, size, fill
        The text, the size of its letters in pixels, and their colour.
    """
    height, big = line_height(size), size * FINE
    length = sum(font_of(path, big).getlength(part) for path, part in runs(text))
    mask = Image.new("L", (math.ceil(length) + 2 * big, height * FINE))
    draw, left = ImageDraw.Draw(mask), float(big)
    for path, part in runs(text):
        font = font_of(path, big)
        draw.text((left, big * 1.07), part, fill=255, font=font, anchor="ls")
        left += font.getlength(part)
    mask = mask.resize((-(-mask.width // FINE), height), Image.Resampling.BOX)
    canvas.paste(fill, (round(at[0]) - size, round(at[1])), mask)
