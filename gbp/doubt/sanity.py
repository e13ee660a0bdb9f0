"""`sanity`: whether a map depends on the weights and on the class.

    cascading     The weights of the layers are drawn anew, from the last layer to the first; after each the
                  image is explained again.  Where no gradient reaches the image, because the last unit of
                  the class is dead, the last layer is drawn again.
    independent   The weights of one layer at a time are drawn anew; all others are the model's own.

Each map is compared with that of the model itself.  A map that stays the same shows the image, and not what
the network has learned.  Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt & Kim 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import RULES, Attribution, Explainer, InputError, ModelError
from ..arguments import whole_number
from ..importer.proto import Model
from ..importer.subgraph import Choice
from ..inputs import Picture
from ..methods import method_named
from ..pictures.chart import Chart, draw_charts
from ..pictures.figure import Panel, enlarged, figure, stacked
from ..questions.targets import Target
from ..result.similarity import rank_correlation, ssim
from .classes import class_sensitivity
from .randomise import Randomised

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
#: How often weights are drawn at most, until there is a map.
_DRAWS = 8
#: Rows of maps in the picture have so many randomised models at most.
_SHOWN = 5
#: Pixels of each chart in a picture without maps.
_WIDTH = 288


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
            parts = [f"with all {_said(last)}."]
            if (n := self.randomised[near]) < count:
                parts.insert(0, f"with the last {n} of {count} layers random {_said(half)},")
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
        """The likeness layer by layer as charts, and under them the maps of the cascade, in part."""
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
        return stacked([draw_charts(charts, columns=len(MEASURES), width=width), *rows])


def sanity(
    model: Model,
    image: Picture | NDArray[Any],
    *,
    rules: Sequence[str] | None = None,
    method: str | None = None,
    method_options: Mapping[str, Any] | None = None,
    target: Target = None,
    layers: int = 24,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Sanity:
    """Randomise a model's weights and compare the maps of one image with the model's own.

    Parameters
    ----------
    model
        A path, the bytes of a file, or a ModelProto.
    image
        One picture, or an array of one sample, as for `Explainer.explain`.
    rules
        The rules to compare; by default the first three, or the method's own.  Those that have no meaning
        for the network are left out.
    method, method_options
        The name of a method of `gbp.methods`, which makes the maps, and its arguments.
    target
        The class, as for `Explainer.explain`, one; by default what the model takes the image for.  It stays
        the same for all randomised models.
    layers
        How many stages there are at most.  In a network of more layers the stages are spread evenly, and a
        stage of the cascade randomises all layers from there on.  The last stage randomises all layers; of
        two stages the first randomises half of them.
    seed
        The seed of the draws.
    report
        Called with a few words before each stage, for progress.
    **options
        Arguments of `Explainer`.

    Returns
    -------
    A `Sanity`.

    Raises
    ------
    GbpError
        Where gbp cannot explain the model or the image, or finds no weights.
    """
    whole_number("layers", layers)
    seed = whole_number("seed", seed, 0)
    makers = _makers(rules, method, method_options or {})
    explainer = Explainer(model, **options)
    x = explainer.prepare(image)
    if len(x) != 1:
        raise InputError(f"there are {len(x)} images.", supported="one at a time")
    own = _own_maps(explainer, x, makers, target)
    makers = {name: makers[name] for name in own}
    first = next(iter(own.values()))
    if first.target.ndim > 1:
        raise InputError(f"target names {first.target.size} classes.", supported="one")
    asked = int(first.target[0])
    choice = Choice(options.get("output"), options.get("input"), options.get("given") or {})
    weights = Randomised(model, choice, seed)
    count = len(weights.layers)
    randomised = _randomised_of(count, layers)
    stages = [count - n for n in randomised]
    options |= {"preprocess": explainer.preprocess, "labels": explainer.labels}
    likeness: dict[Mode, dict[str, tuple[Likeness | None, ...]]] = {}
    pictures = {
        name: [("the model's own", one[0].gray(smooth=0))] for name, one in own.items() if _is_drawn(first)
    }
    drawn = {stages[k] for k in _spread(0, len(stages) - 1, _SHOWN)}
    for mode in MODES:
        values: dict[str, list[Likeness | None]] = {name: [] for name in own}
        for stage in _randomised(weights, mode, stages):
            layer = weights.layers[stage].name
            report(f"{mode}: {layer}")
            maps = _random_maps(weights, options, makers, x, asked)
            for draw in range(1, _DRAWS):
                if None not in maps.values():
                    break
                weights.randomise(count - 1 if mode == "cascading" else stage, draw)
                maps = _random_maps(weights, options, makers, x, asked)
            for name, found in maps.items():
                values[name].append(None if found is None else _likeness(own[name], found))
                if mode == "cascading" and stage in drawn and name in pictures and found is not None:
                    pictures[name].append((f"random down to {layer}", found[0].gray(smooth=0)))
        likeness[mode] = {name: tuple(found) for name, found in values.items()}
    report("other classes")
    return Sanity(
        asked,
        seed,
        tuple((weights.layers[k].name, weights.layers[k].op) for k in stages),
        randomised,
        likeness,
        _class_cosines(explainer, makers, x, first.scores, seed),
        {
            name: tuple((f"{name}: {caption}", picture) for caption, picture in row)
            for name, row in pictures.items()
        },
    )


#: Makes the map of a model, an image and a target.
Maker: TypeAlias = Callable[..., Attribution]


def _makers(rules: Sequence[str] | None, method: str | None, options: Mapping[str, Any]) -> dict[str, Maker]:
    """The functions that make the maps, by name: rules, or a method over rules."""
    if method is None:
        if options:
            raise InputError("method_options are given, and no method.")
        chosen = tuple(RULES) if rules is None else rules
        return {rule: partial(Explainer.explain, rule=rule) for rule in chosen}
    known = method_named(method)
    known.check(options, has_rule=rules is not None)
    if known.rule is None:
        return {method: partial(known.call, **options)}
    return {
        f"{method}, {rule}": partial(known.call, rule=rule, **options)
        for rule in (rules if rules is not None else (known.rule,))
    }


def _randomised_of(count: int, most: int) -> tuple[int, ...]:
    """How many of `count` layers each of up to `most` stages randomises: in the end all of them."""
    if most == 1:
        return (count,)
    return tuple(_spread(count // 2 if most == 2 and count > 1 else 1, count, most))


def _spread(first: int, last: int, most: int) -> list[int]:
    """Up to `most` whole numbers, spread evenly from the first to the last."""
    numbers: list[int] = (
        np.linspace(first, last, min(most, abs(last - first) + 1)).round().astype(int).tolist()
    )
    return numbers


def _own_maps(
    explainer: Explainer, x: NDArray[np.float32], makers: Mapping[str, Maker], target: Target
) -> dict[str, Attribution]:
    """The model's own map by each maker that has a meaning for the network."""
    found: dict[str, Attribution] = {}
    refused: InputError | None = None
    for name, make in makers.items():
        try:
            found[name] = make(explainer, x, target=target)
        except InputError as error:
            refused = error
    if not found:
        raise refused or InputError("there are no rules.", supported=", ".join(RULES))
    return found


def _random_maps(
    weights: Randomised,
    options: Mapping[str, Any],
    makers: Mapping[str, Maker],
    x: NDArray[np.float32],
    target: int,
) -> dict[str, Attribution | None]:
    """The maps of the model as it is randomised now; None where there is none."""
    maps: dict[str, Attribution | None] = dict.fromkeys(makers)
    with Explainer(weights.model, **options) as random:
        for name, make in makers.items():
            try:
                made = make(random, x, target=target)
            except ModelError:  # values overflow
                continue
            maps[name] = made if made.map.any() else None
    return maps


def _class_cosines(
    explainer: Explainer,
    makers: Mapping[str, Maker],
    x: NDArray[np.float32],
    scores: NDArray[np.float32],
    seed: int,
) -> dict[str, float]:
    """The mean cosine of each map with those of other classes; empty for a model of one score."""
    if scores.shape[1] < 2:
        return {}

    def cosine_of(make: Maker) -> float:
        found = class_sensitivity(lambda target: make(explainer, x, target=target).map, scores, seed=seed)
        return float(found.mean())

    return {name: cosine_of(make) for name, make in makers.items()}


def _randomised(weights: Randomised, mode: Mode, stages: Sequence[int]) -> Iterator[int]:
    """Randomise what a mode says, and restore it in the end.  Yields each stage."""
    done = len(weights.layers)
    for stage in stages:
        if mode == "cascading":
            for k in range(stage, done):
                weights.randomise(k)
            done = stage
        else:
            weights.randomise(stage)
        yield stage
        if mode == "independent":
            weights.restore(stage)
    for k in range(done, len(weights.layers)):
        weights.restore(k)


def _said(value: Likeness | None) -> str:
    if value is None:
        return "there is no map"
    return f"SSIM is {value.ssim:.2f} and rank correlation {value.rank_magnitude:.2f}"


def _is_drawn(found: Attribution) -> bool:
    return found.layout != "ND"


def _likeness(own: Attribution, other: Attribution) -> Likeness:
    if _is_drawn(own):
        (a, b), (sa, sb) = ([m.reduce(how)[0] for m in (own, other)] for how in ("abs-max", "sum"))
    else:
        sa, sb = (m.map[0].reshape(len(m.map[0]), -1) for m in (own, other))
        a, b = np.abs(sa), np.abs(sb)
    return Likeness(ssim(a, b), rank_correlation(a, b), rank_correlation(sa, sb))
