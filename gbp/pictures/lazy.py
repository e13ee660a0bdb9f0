"""`Pictures`: pictures of samples, each of which is made on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import overload

from PIL import Image


class Pictures(Sequence[Image.Image]):
    """A sequence of pictures, each made on first use and kept.  Slices of it share them.

    Parameters
    ----------
    each
        For each picture, the picture or a function that makes it.  Functions that can be pickled make a
        sequence that can be.
    """

    def __init__(self, each: Iterable[Image.Image | Callable[[], Image.Image]]) -> None:
        self._each = [one if isinstance(one, _Lazy) else _Lazy(one) for one in each]

    @classmethod
    def joined(cls, parts: Iterable[Sequence[Image.Image]]) -> Pictures:
        """Several sequences as one; nothing is made."""
        parts = list(parts)
        if len(parts) == 1 and isinstance(parts[0], Pictures):
            return parts[0]
        return cls(each for part in parts for each in (part._each if isinstance(part, Pictures) else part))

    def __len__(self) -> int:
        return len(self._each)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Pictures:
        return Pictures(self._each[index]) if isinstance(index, slice) else self._each[index]()


class _Lazy:
    """A picture, or the function that makes it on first use."""

    def __init__(self, picture: Image.Image | Callable[[], Image.Image]) -> None:
        self._picture = picture

    def __call__(self) -> Image.Image:
        # Two threads may both make it: the pictures are equal.
        if not isinstance(self._picture, Image.Image):
            self._picture = self._picture()
        return self._picture
