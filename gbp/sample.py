"""`Sample`: the explanation of one sample, with its class names and pictures."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .head import Head
from .pictures import render
from .pictures.drawing import Panel, Reduction, Style, draw_map, reduce
from .pictures.files import File, save_picture, suffix_of
from .pictures.image import Channels
from .pictures.layout import Layout, channels_first
from .similarity import remark
from .targets import At, Classes
from .titles import plain, title_of


class Drawable(ABC):
    """The methods that a sample shares with an attribution of one sample."""

    @abstractmethod
    def _sample(self) -> Sample:
        """The sample.  Raises `InputError` where there are several."""

    def label(self) -> str:
        """The name of the explained class; "class 7" where there are no labels.

        Raises `InputError` where several targets were explained; `only` chooses one.
        """
        sample = self._sample()
        return sample.name_of(sample.the_target())

    def top(self, k: int = 5) -> list[tuple[int, str, float]]:
        """The highest scores, best first, as (class, label, score).  Equal scores are ordered by class.

        Parameters
        ----------
        k
            How many.
        """
        sample = self._sample()
        best = np.argsort(-sample.scores, kind="stable")[:k]
        return [(int(c), sample.name_of(int(c)), float(sample.scores[c])) for c in best]

    def gray(self, *, limit: float | None = None) -> Image.Image:
        """Draw the largest magnitude among the channels, white on black (mode "L").

        Parameters
        ----------
        limit
            The magnitude that is drawn at full strength; by default `pictures.render.robust_limit`.

        Raises
        ------
        InputError
            Where the input is not an image, and where there are several samples or targets.
        """
        return self._sample().panel("gray", limit=limit)

    def diverging(self, *, limit: float | None = None) -> Image.Image:
        """Draw the sum of the channels: positive red, negative blue, 0 white.

        Parameters
        ----------
        limit
            As for `gray`.

        Raises
        ------
        InputError
            As `gray`.
        """
        return self._sample().panel("diverging", limit=limit)

    def overlay(self, *, limit: float | None = None, alpha: float = 0.95) -> Image.Image:
        """Draw the largest magnitude among the channels as heat over the image.

        Parameters
        ----------
        limit
            As for `gray`.
        alpha
            The opacity of the strongest heat, 0 to 1.

        Raises
        ------
        InputError
            As `gray`, and where the image is unknown.
        """
        return self._sample().panel("overlay", limit=limit, alpha=alpha)

    def rgb(self, *, limit: float | None = None) -> Image.Image:
        """Draw the map in its own colours around mid-grey, as in Springenberg et al. 2014.

        Parameters
        ----------
        limit
            As for `gray`.

        Raises
        ------
        InputError
            As `gray`, and unless the input has 1 or 3 channels.
        """
        return self._sample().panel("rgb", limit=limit)

    def strip(self) -> Image.Image:
        """Draw the input beside its maps, with captions: one target in every style, K targets in one each."""
        sample = self._sample()
        images, captions = sample.input_panel()
        where, *others = sample.panels()
        title = sample.title
        if sample.targets > 1:
            for one in sample.each_target():
                images.append(one.draw(where))
                captions.append(f"{title}\n{one.caption()}")
            return render.strip(images, captions, sample.doubts())
        shown = {"overlay": "where", "gray": "where", "rgb": "in colour", "diverging": "by sign"}
        for style in (where, *others):
            images.append(self.draw(style))
            captions.append(f"{title}: {shown[style]}\n{sample.caption()}")
        return render.strip(images, captions, sample.doubts())

    def draw(self, style: Style = "overlay") -> Image.Image:
        """Draw in the style of this name.

        Parameters
        ----------
        style
            "overlay", "gray", "diverging", "rgb" or "strip".

        Raises
        ------
        InputError
            As the method of that name.
        """
        return self.strip() if style == "strip" else self._sample().panel(style)

    def save(self, file: File, style: Style | None = None, *, format: str | None = None) -> None:
        """Write one picture, or everything as arrays.

        Parameters
        ----------
        file
            A path (.png, .jpg, .jpeg, .npz) or a binary file object.  An existing file is replaced.  A path
            gets the complete file or stays as it was.
        style
            By default "overlay" where the image is known, else "gray".
        format
            "png", "jpg", "jpeg" or "npz"; by default the path's suffix.

        Raises
        ------
        InputError
            For an unknown format, or a file that cannot be written.
        """
        suffix_of(file, format)
        sample = self._sample()
        save_picture(self.draw(style or sample.panels()[0]), file, format)

    def to_dict(self) -> dict[str, Any]:
        """The explained classes and the highest scores, in JSON's types.  `gbp explain --json` prints them.

        Keys: "rule"; "method" and "details", where a method made the map; "explained", with class, label,
        score and probability of each target; "top", with the same for the five highest scores.  A probability
        is None where the model has no head.
        """
        sample = self._sample()
        return {
            "rule": sample.rule,
            **sample.made_by(),
            "explained": [sample.row(int(c)) for c in np.atleast_1d(sample.target)],
            "top": [sample.row(c) for c, _, _ in self.top(5)],
        }

    def _repr_png_(self) -> bytes | None:
        """The strip as PNG, for notebooks; None where the sample cannot be drawn."""
        try:
            buffer = io.BytesIO()
            save_picture(self.strip(), buffer, "png")
        except InputError:
            return None
        return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class Sample(Drawable):
    """One sample of an `Attribution`.

    Parameters
    ----------
    map
        float32, shaped like one input; (K, …) where K targets were explained.
    scores
        float32 (classes,).
    target
        The class that was explained, int; or int64 (K,).
    rule, layout, labels, channels, head, score_shape, method, depends_on_image
        As in `Attribution`.
    image
        The sample as a picture, mode RGB or L, as large as the map; None where it cannot be drawn.
    details
        What the method says of this sample.
    """

    map: NDArray[np.float32]
    scores: NDArray[np.float32]
    target: Any
    rule: str
    layout: Layout = "NCHW"
    labels: tuple[str, ...] | None = None
    image: Image.Image | None = None
    channels: Channels = "RGB"
    head: Head | None = None
    score_shape: tuple[int, ...] = ()
    method: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    depends_on_image: bool = True

    def __repr__(self) -> str:
        names = ", ".join(self.name_of(int(c)) for c in np.atleast_1d(self.target))
        return f"<Sample: {names}, {self.title}>"

    def _sample(self) -> Sample:
        return self

    @property
    def title(self) -> str:
        """The rule or the method, as captions call it."""
        return title_of(self.method, self.rule, self.details)

    def made_by(self) -> dict[str, Any]:
        """The method and its details, in JSON's types; empty where the rule alone made the map."""
        details = {key: plain(value) for key, value in self.details.items()}
        return {"method": self.method, "details": details} if self.method else {}

    @property
    def targets(self) -> int:
        """How many targets were explained."""
        return int(np.size(self.target))

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """The probabilities of all classes, float32 (classes,).  Raises `InputError` without a head."""
        if self.head is None:
            raise InputError("the model has no head that makes probabilities of these scores.")
        (chances,) = self.head.probabilities(self.scores[None])
        return np.asarray(chances)

    def each_target(self) -> list[Sample]:
        """One sample for each target, in their order."""
        if np.ndim(self.target) == 0:
            return [self]
        return [replace(self, map=m, target=int(c)) for m, c in zip(self.map, self.target, strict=True)]

    def doubts(self) -> list[str]:
        """What a picture of this map must not hide, one short sentence each."""
        alike = remark(self.map if np.ndim(self.target) else self.map[None])
        same = None if self.depends_on_image else "the same map for any image."
        return [f"{self.title}: {doubt}" for doubt in (same, alike) if doubt]

    @property
    def classes(self) -> Classes:
        """The shape and the labels of the scores."""
        return Classes(self.score_shape or self.scores.shape, self.labels)

    def only(self, target: int | At) -> Sample:
        """The same sample with the map of one class alone.

        Parameters
        ----------
        target
            One of the explained classes.

        Raises
        ------
        InputError
            For another class.
        """
        number = self.classes.number(target) if isinstance(target, At) else target
        for one in self.each_target():
            if one.target == number:
                return one
        known = ", ".join(map(str, np.atleast_1d(self.target)))
        raise InputError(f"class {target} was not explained.", supported=known)

    def the_target(self) -> int:
        """The explained class.  Raises `InputError` where several were explained."""
        if self.targets != 1:
            raise InputError(f"{self.targets} classes were explained.", hint="Choose one: only(class).")
        return int(np.ravel(self.target)[0])

    def reduce(self, how: Reduction = "abs-max") -> NDArray[np.float32]:
        """Reduce the channels of each pixel to one number, float32 (H, W), for the only target.

        Parameters
        ----------
        how
            As for `Attribution.reduce`.

        Raises
        ------
        InputError
            As `Attribution.reduce`, and where several targets were explained.
        """
        return reduce(self.planes(), how)

    def planes(self) -> NDArray[np.float32]:
        """The map of the only target as (C, H, W), colours red first."""
        self.the_target()
        m = self.map if np.ndim(self.target) == 0 else self.map[0]
        return channels_first(m, self.layout, self.channels)

    def panel(self, style: str, *, limit: float | None = None, alpha: float = 0.95) -> Image.Image:
        """Draw the map of the only target, in any style but "strip".

        Parameters
        ----------
        style
            The name of the style.
        limit, alpha
            As for `overlay`.

        Raises
        ------
        InputError
            As the method of that name.
        """
        return draw_map(self.planes(), style, self.image, limit=limit, alpha=alpha)

    def name_of(self, number: int) -> str:
        """The label of a class, or "class 7"; with its position where the scores have several axes.

        Parameters
        ----------
        number
            The class: an index into the scores.
        """
        return self.classes.name(number)

    def row(self, number: int) -> dict[str, Any]:
        """Class, label, score and probability of one class, in JSON's types.

        Also "position", as "8763:1", where the scores have several axes.

        Parameters
        ----------
        number
            The class: an index into the scores.
        """
        classes = self.classes
        several = len(classes.axes) > 1
        return {
            "class": number,
            **({"position": classes.position(number)} if several else {}),
            "label": self.name_of(number),
            "score": float(self.scores[number]),
            "probability": None if self.head is None else float(self.probabilities[number]),
        }

    def caption(self, number: int | None = None) -> str:
        """The score or probability and the label of a class.  The number comes first: long captions are cut.

        Parameters
        ----------
        number
            The class: an index into the scores; by default the one that was explained.

        Raises
        ------
        InputError
            Where several were explained, and none is named.
        """
        number = self.the_target() if number is None else number
        if self.head is None:
            return f"{self.scores[number]:.4g} {self.name_of(number)}"
        return f"{self.probabilities[number]:.1%} {self.name_of(number)}"

    def panels(self) -> list[Panel]:
        """The styles that this map can be drawn in, the most useful first."""
        where: Panel = "overlay" if self.image else "gray"
        coloured: list[Panel] = ["rgb"] if self.each_target()[0].planes().shape[0] == 3 else []
        return [where, *coloured, "diverging"]

    def input_panel(self) -> tuple[list[Image.Image], list[str]]:
        """The first image of a strip, with its best class as caption; none where the image is unknown."""
        if self.image is None:
            return [], []
        return [self.image], [f"input\n{self.caption(self.top(1)[0][0])}"]
