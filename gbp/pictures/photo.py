"""`Photo`: the whole picture of which the network saw a part, at its own resolution."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from PIL import Image

from ..errors import InputError
from ..files import stamp_of
from .image import read_image
from .percent import whole_percent
from .preprocess import Preprocess, Window

#: Most pixels of a photo's longer side, unless `Look` says another number.
MAX_SIDE = 1600
#: Pictures and maps of fewer pixels a side are enlarged with each pixel as a square.
SHARP = 96


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture that is decoded again when it is drawn, because many of them at once would fill the memory.

    Parameters
    ----------
    source
        A path, the bytes of a file, or a PIL image.
    size
        (width, height) in pixels, upright.
    window
        The part of it that is the network's input.
    resize
        How it became the input: "crop", "stretch" or "fit".
    stamp
        Shows that the file is the same as when it was explained; None where there is no file.
    """

    source: str | bytes | Image.Image
    size: tuple[int, int]
    window: Window
    resize: str
    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, picture: Any, image: Image.Image, preprocess: Preprocess, size: tuple[int, int]) -> Photo:
        """The photo of a picture.

        Parameters
        ----------
        picture
            A path, the bytes of a file, or a PIL image.
        image
            The picture, decoded.
        preprocess
            How it is cropped and scaled.
        size
            (H, W) of the network's input.
        """
        source = os.fsdecode(picture) if isinstance(picture, os.PathLike) else picture
        stamp = stamp_of(source) if isinstance(source, str) else None
        window = preprocess.window(image.size, size)
        return cls(source, image.size, window, preprocess.resize, stamp)

    def from_file(self, path: str) -> Photo:
        """The same photo, which is read from this file when it is drawn."""
        return replace(self, source=path, stamp=stamp_of(path))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The left, top, right and bottom of what the network saw, in pixels of the photo."""
        return self.window.box(self.size)

    @property
    def is_whole(self) -> bool:
        """Whether the network saw all of the photo."""
        left, top, right, bottom = self.box
        return left <= 0.5 and top <= 0.5 and right >= self.size[0] - 0.5 and bottom >= self.size[1] - 0.5

    def description(self, framed: bool = True) -> str:
        """The network's part of the photo, in words; `framed`: whether a frame shows it."""
        width, height = self.window.size
        size = f"{width} × {height}"
        if self.resize == "fit" and (self.window.left < 0 or self.window.top < 0):
            return f"the network saw the whole photo, padded to {size}"
        if self.resize == "stretch":
            return f"the network saw the whole photo, resized to {size}"
        if self.is_whole:
            return f"the network saw the whole photo at {size}"
        if framed:
            return f"the network saw the centre crop in the frame, at {size}"
        left, top, right, bottom = self.box
        share = (right - left) * (bottom - top) / (self.size[0] * self.size[1])
        return f"the network saw the centre crop, {whole_percent(share)} of the photo, at {size}"

    def is_there(self) -> bool:
        """Whether the photo can still be read, and its file is the same as when it was explained."""
        return not isinstance(self.source, str) or stamp_of(self.source) == self.stamp

    def open(self, size: tuple[int, int]) -> Image.Image:
        """The photo at this (width, height), RGB.

        Raises
        ------
        InputError
            Where its file is gone or was changed.
        """
        return _opened(self, size)


@lru_cache(maxsize=2)  # the panels of a strip show the same photo
def _opened(photo: Photo, size: tuple[int, int]) -> Image.Image:
    """The photo at a size.  The last two are kept."""
    if not photo.is_there():
        raise InputError(
            f"the photo {photo.source!r} is gone or was changed since it was explained.",
            hint="Draw what the network saw: canvas='network'.",
        )
    source = photo.source
    image = read_image(io.BytesIO(source) if isinstance(source, bytes) else source)
    if image.size == size:
        return image
    small = max(photo.size) < SHARP and size[0] >= image.width
    return image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
