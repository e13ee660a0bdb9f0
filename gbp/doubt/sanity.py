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
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import RULES, Attribution, Explainer, InputError, Model, ModelError, Picture, Target
from ..arguments import whole_number
from ..importer.subgraph import Choice
from ..methods import method_named
from .classes import class_sensitivity
from .randomise import Randomised
from .result import MODES, Likeness, Mode, Sanity, is_drawable

#: Makes the map of a model, an image and a target.
Maker: TypeAlias = Callable[..., Attribution]
#: For each maker, captions and pictures.
Pictures: TypeAlias = dict[str, list[tuple[str, Image.Image]]]

#: How often weights are drawn at most, until there is a map.
_DRAWS = 8
#: Rows of maps in the picture have so many randomised models at most.
_SHOWN = 5


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
        Called with a few words before each stage, for progress.  An error that it raises stops the run and
        reaches the caller as it is.
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
    options |= {"preprocess": explainer.preprocess, "labels": explainer.labels}
    weights = Randomised(model, choice, seed)
    randomised = _randomised_of(len(weights.layers), layers)
    stages = [len(weights.layers) - n for n in randomised]
    copies = _Copies(weights, options, makers, x, asked)
    likeness, pictures = _compared(copies, own, stages, report)
    report("other classes")
    return Sanity(
        asked,
        seed,
        tuple((weights.layers[k].name, weights.layers[k].op) for k in stages),
        randomised,
        likeness,
        _class_cosines(explainer, makers, x, first.scores, seed),
        {name: tuple(row) for name, row in pictures.items()},
    )


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


def _randomised_of(count: int, max_stages: int) -> tuple[int, ...]:
    """How many of `count` layers each of up to `max_stages` stages randomises: in the end all of them."""
    if max_stages == 1:
        return (count,)
    return tuple(_spread(count // 2 if max_stages == 2 and count > 1 else 1, count, max_stages))


def _spread(first: int, last: int, max_count: int) -> list[int]:
    """Up to `max_count` whole numbers, spread evenly from the first to the last."""
    numbers: list[int] = (
        np.linspace(first, last, min(max_count, abs(last - first) + 1)).round().astype(int).tolist()
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


@dataclass(frozen=True)
class _Copies:
    """Copies of a model with random weights, of which one image is explained for one class.

    Parameters
    ----------
    weights
        The model, whose layers are randomised and restored.
    options
        Arguments of `Explainer`.
    makers
        The functions that make the maps, by name.
    x
        The prepared image, a batch of one.
    target
        The class.
    """

    weights: Randomised
    options: Mapping[str, Any]
    makers: Mapping[str, Maker]
    x: NDArray[np.float32]
    target: int

    def stages(self, mode: Mode, stages: Sequence[int]) -> Iterator[int]:
        """Randomise the layers of each stage, and restore all in the end.  Yields each stage once it is done.

        In a cascade these are all layers from number `stage` on, else this layer alone.
        """
        weights = self.weights
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

    def maps(self, again: int) -> dict[str, Attribution | None]:
        """The maps of the copy as it is now; None where it has none.

        While one is missing, layer `again` is drawn anew, up to `_DRAWS` draws in all.
        """
        maps = self._maps()
        for draw in range(1, _DRAWS):
            if None not in maps.values():
                break
            self.weights.randomise(again, draw)
            maps = self._maps()
        return maps

    def _maps(self) -> dict[str, Attribution | None]:
        """The maps of this draw.  There is none where values overflow, or where the map is 0 everywhere."""
        maps: dict[str, Attribution | None] = dict.fromkeys(self.makers)
        with Explainer(self.weights.model, **self.options) as random:
            for name, make in self.makers.items():
                try:
                    made = make(random, self.x, target=self.target)
                except ModelError:  # values overflow
                    continue
                maps[name] = made if made.map.any() else None
        return maps


def _compared(
    copies: _Copies,
    own: Mapping[str, Attribution],
    stages: Sequence[int],
    report: Callable[[str], None],
) -> tuple[dict[Mode, dict[str, tuple[Likeness | None, ...]]], Pictures]:
    """For each mode and maker the likeness at each stage; and pictures of the cascade, in part."""
    layers = copies.weights.layers
    drawn = {stages[k] for k in _spread(0, len(stages) - 1, _SHOWN)}
    likeness: dict[Mode, dict[str, tuple[Likeness | None, ...]]] = {}
    pictures: Pictures = {}
    _draw(pictures, own, "the model's own")
    for mode in MODES:
        found: dict[str, list[Likeness | None]] = {name: [] for name in own}
        for stage in copies.stages(mode, stages):
            report(f"{mode}: {layers[stage].name}")
            maps = copies.maps(again=len(layers) - 1 if mode == "cascading" else stage)
            for name, made in maps.items():
                found[name].append(None if made is None else Likeness.of(own[name], made))
            if mode == "cascading" and stage in drawn:
                _draw(pictures, maps, f"random down to {layers[stage].name}")
        likeness[mode] = {name: tuple(values) for name, values in found.items()}
    return likeness, pictures


def _draw(pictures: Pictures, maps: Mapping[str, Attribution | None], caption: str) -> None:
    """Add the maps to the rows of pictures, each to that of its maker; none of what cannot be drawn."""
    for name, found in maps.items():
        if found is not None and is_drawable(found):
            pictures.setdefault(name, []).append((f"{name}: {caption}", found[0].gray(smooth=0)))


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
