"""`Explained`: the map and the scores of one sample, and what its classes are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..pictures.drawing import Panel
from ..pictures.layout import Layout, channels_first
from ..pictures.percent import percent
from ..pictures.photo import Photo
from ..pictures.preprocess import ChannelOrder
from ..questions.head import Head
from ..questions.targets import Classes
from .provenance import Provenance
from .similarity import empty_maps, remark
from .titles import plain, title_of


@dataclass(frozen=True, eq=False)
class Explained:
    """The values behind a `Sample`; see there."""

    map: NDArray[np.float32]
    scores: NDArray[np.float32]
    target: Any
    rule: str
    layout: Layout = "NCHW"
    labels: tuple[str, ...] | None = None
    image: Image.Image | None = None
    channels: ChannelOrder = "RGB"
    head: Head | None = None
    score_shape: tuple[int, ...] = ()
    method: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    depends_on_image: bool = True
    photo: Photo | None = None
    provenance: Provenance | None = None
    notes: tuple[str, ...] = ()

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

    def each_target(self) -> list[Self]:
        """One sample for each target, in their order."""
        if np.ndim(self.target) == 0:
            return [self]
        asked = {key: self.details[key] for key in ("question", "value") if key in self.details}
        return [
            replace(
                self,
                map=m,
                target=int(c),
                details={**self.details, **{key: rows[k] for key, rows in asked.items()}},
            )
            for k, (m, c) in enumerate(zip(self.map, self.target, strict=True))
        ]

    @property
    def question(self) -> str | None:
        """The target, if it is more than a class.  Raises `InputError` where several were explained."""
        if "question" not in self.details:
            return None
        self.the_target()
        return str(np.ravel(self.details["question"])[0])

    def explained_rows(self) -> list[dict[str, Any]]:
        """The explained target, in JSON's types: `row` of each class, or label and value of each question."""
        if "question" not in self.details:
            return [self.row(int(number)) for number in np.atleast_1d(self.target)]
        pairs = zip(np.ravel(self.details["question"]), np.ravel(self.details["value"]), strict=True)
        return [{"class": None, "label": str(q), "score": float(v), "probability": None} for q, v in pairs]

    @property
    def is_empty(self) -> bool:
        """Whether the map of the only target is 0 everywhere."""
        return empty_maps(self.planes()[None]) == 1

    def doubts(self) -> list[str]:
        """Warnings that a picture of this map must show, one short sentence each."""
        maps = self.map if np.ndim(self.target) else self.map[None]
        empty, same = empty_maps(maps), None if self.depends_on_image else "the same map for any image."
        found = [remark(maps), "the map is 0 everywhere." if empty else None, same]
        if empty and len(maps) > 1:
            found[1] = f"{empty} of {len(maps)} maps are 0 everywhere."
        return [f"{self.title}: {doubt}" for doubt in found if doubt]

    @property
    def _classes(self) -> Classes:
        """The shape and the labels of the scores."""
        return Classes(self.score_shape or self.scores.shape, self.labels)

    def the_target(self) -> int:
        """The explained class.  Raises `InputError` where several were explained."""
        if self.targets != 1:
            raise InputError(f"{self.targets} classes were explained.", hint="Choose one: only(class).")
        return int(np.ravel(self.target)[0])

    def planes(self) -> NDArray[np.float32]:
        """The map of the only target as (C, H, W), colours red first."""
        self.the_target()
        m = self.map if np.ndim(self.target) == 0 else self.map[0]
        return channels_first(m, self.layout, self.channels, 0)

    def name_of(self, number: int) -> str:
        """The label of a class, or "class 7"; with its position where the scores have several axes.

        Parameters
        ----------
        number
            The class: an index into the scores.
        """
        return self._classes.name(number)

    def row(self, number: int) -> dict[str, Any]:
        """Class, label, score and probability of one class, in JSON's types.

        Also "position", as "5763:1", where the scores have several axes.

        Parameters
        ----------
        number
            The class: an index into the scores.
        """
        classes = self._classes
        several = len(classes.axes) > 1
        return {
            "class": number,
            **({"position": classes.position(number)} if several else {}),
            "label": self.name_of(number),
            "score": float(self.scores[number]),
            "probability": None if self.head is None else float(self.probabilities[number]),
        }

    def panels(self) -> list[Panel]:
        """The styles that show most of this map, the most useful first.

        A map without negative values has no signs to show.
        """
        where: Panel = "overlay" if self.image else "gray"
        planes = self.each_target()[0].planes()
        if planes.min() >= 0 < planes.max():
            return ["overlay", "gray"] if self.image else ["gray"]
        coloured: list[Panel] = ["rgb"] if planes.shape[0] == 3 else []
        return [where, *coloured, "diverging"]

    def best(self) -> int:
        """The class with the highest score."""
        return int(np.argmax(self.scores))

    def chance(self, number: int) -> float | None:
        """The probability of a class; None where the model has no head.

        Parameters
        ----------
        number
            The class: an index into the scores.
        """
        return None if self.head is None else float(self.probabilities[number])

    def caption(self, number: int | None = None) -> str:
        """The label of a class, and its probability or score.

        Parameters
        ----------
        number
            The class: an index into the scores; by default the one that was explained.

        Raises
        ------
        InputError
            Where several were explained, and none is named.
        """
        if number is None and self.question is not None:
            return f"{self.question}: {float(np.ravel(self.details['value'])[0]):.3g}"
        number = self.the_target() if number is None else number
        chance = self.chance(number)
        value = f"score {self.scores[number]:.2f}" if chance is None else percent(chance)
        return f"{self.name_of(number)}: {value}"
