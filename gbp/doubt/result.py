"""`Sanity`: the result of `sanity`, with its verdicts, numbers and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from .. import Attribution
from ..pictures import text
from ..pictures.chart import Chart, draw_charts
from ..pictures.figure import INK, PAPER, Panel, enlarged, figure, stacked
from ..result.similarity import rank_correlation, ssim

Mode = Literal["cascading", "independent"]
MODES: tuple[Mode, ...] = ("cascading", "independent")
#: Measure → its title.
MEASURES = {
    "ssim": "SSIM of |map|",
    "rank_magnitude": "rank correlation of |map|",
    "rank": "rank correlation, signed",
}
#: A map that keeps this structural similarity is said to depend little on the random weights.
_SAME = 0.5
#: Pixels of each chart in a picture without maps.
_WIDTH = 288
#: How to read the charts.
_READING = (
    "1.0: the map is still that of the trained network. Cascading: from left to right more layers are "
    "random, and a map that depends on what they learned gets less alike. Independent: one layer at a time."
)
#: A letter's share of the picture's width, which is near that of the charts' letters.
_TEXT = 0.01


@dataclass(frozen=True)
class Likeness:
    """How alike a map is to the model's own.

    Parameters
    ----------
    ssim
        The structural similarity of the magnitudes.
    rank_magnitude, rank
        Spearman's rank correlation of the magnitudes, and of the signed sums over the channels.
    """

    ssim: float
    rank_magnitude: float
    rank: float

    @classmethod
    def of(cls, own: Attribution, other: Attribution) -> Likeness:
        """Compare the maps of the first samples."""
        if is_drawable(own):
            (a, b), (sa, sb) = ([m.reduce(how)[0] for m in (own, other)] for how in ("abs-max", "sum"))
        else:
            sa, sb = (m.map[0].reshape(len(m.map[0]), -1) for m in (own, other))
            a, b = np.abs(sa), np.abs(sb)
        return cls(ssim(a, b), rank_correlation(a, b), rank_correlation(sa, sb))


@dataclass(frozen=True)
class Sanity:
    """The result of `sanity`.

    Parameters
    ----------
    target
        The class that was explained.
    seed
        The seed of the draws.
    layers
        (name, op) of the layers that were randomised, the last one of the network first.
    randomised
        How many layers the cascade has randomised at each of them.  At the last one these are all layers with
        weights.
    likeness
        Mode → rule, or method and rule → one `Likeness` for each layer; None where the randomised network has
        no map: it overflows, or the map is 0 everywhere.
    class_cosine
        The same → the mean cosine of the map with the maps of other classes; empty for a model of one score.
    pictures
        The same → captions and pictures: the map, and those of the cascade, in part.
    """

    target: int
    seed: int
    layers: tuple[tuple[str, str], ...]
    randomised: tuple[int, ...]
    likeness: dict[Mode, dict[str, tuple[Likeness | None, ...]]]
    class_cosine: dict[str, float]
    pictures: dict[str, tuple[tuple[str, Image.Image], ...]]

    @property
    def verdicts(self) -> dict[str, str]:
        """For each rule a sentence on the cascade: about half of the layers, and all of them."""
        count = self.randomised[-1]
        near = min(range(len(self.randomised)), key=lambda k: abs(self.randomised[k] - count / 2))
        said = {}
        for rule, values in self.likeness["cascading"].items():
            half, last = values[near], values[-1]
            parts = [f"with all, {_said(last)}."]
            if (n := self.randomised[near]) < count:
                parts.insert(0, f"with the last {n} of {count} layers random, {_said(half)};")
                if half is not None and half.ssim >= _SAME:
                    parts.append("The map hardly depends on what these layers have learned.")
            if last is not None and last.ssim >= _SAME:
                parts.append("The map hardly depends on any weights.")
            said[rule] = " ".join(parts)
        return said

    @property
    def every_layer(self) -> bool:
        """Whether each layer has a stage; else those between two stages were randomised with the later."""
        return len(self.layers) == self.randomised[-1]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, in JSON's types.  `gbp sanity --json` prints them."""

        def column(values: Sequence[Likeness | None], name: str) -> list[float | None]:
            return [None if value is None else getattr(value, name) for value in values]

        return {
            "target": self.target,
            "seed": self.seed,
            "layers": [{"name": name, "op": op} for name, op in self.layers],
            "randomised": list(self.randomised),
            "every_layer": self.every_layer,
            **{
                mode: {
                    rule: {name: column(values, name) for name in MEASURES} for rule, values in rules.items()
                }
                for mode, rules in self.likeness.items()
            },
            "class_cosine": self.class_cosine,
            "verdicts": self.verdicts,
        }

    def picture(self) -> Image.Image:
        """The verdicts, the likeness layer by layer as charts, and the maps of the cascade, in part."""
        names = [name for name, _ in self.layers]
        charts = [
            Chart(
                f"{mode}: {title}",
                names,
                {
                    rule: [None if v is None else getattr(v, name) for v in values]
                    for rule, values in self.likeness[mode].items()
                },
            )
            for mode in MODES
            for name, title in MEASURES.items()
        ]
        rows = [
            figure([Panel(enlarged(image), title) for title, image in row]).image()
            for row in self.pictures.values()
        ]
        width = max((row.width for row in rows), default=_WIDTH * len(MEASURES))
        said = _written([_READING, *(f"{way}: {said}" for way, said in self.verdicts.items())], width)
        return stacked([said, draw_charts(charts, columns=len(MEASURES), width=width), *rows])


def _written(paragraphs: Sequence[str], width: int) -> Image.Image:
    """Text on white, a paragraph below the other."""
    size = margin = round(_TEXT * width)
    lines = [line for words in paragraphs for line in text.wrapped(words, size, width - 2 * margin)]
    height = text.line_height(size)
    canvas = Image.new("RGB", (width, 2 * margin + height * len(lines)), PAPER)
    for k, line in enumerate(lines):
        text.write(canvas, (margin, margin + k * height), line, size, INK)
    return canvas


def _said(value: Likeness | None) -> str:
    if value is None:
        return "there is no map"
    return f"SSIM is {value.ssim:.2f} and rank correlation {value.rank_magnitude:.2f}"


def is_drawable(found: Attribution) -> bool:
    """Whether its maps can be drawn."""
    return found.layout != "ND"
