"""Measures the maps of each rule and method: where their relevance is, and whether they depend on the class.

    python benchmarks/maps.py                               the demo model on its scenes
    python benchmarks/maps.py --photos lion.jpg cat.jpg --networks squeezenet.onnx mobilenet.onnx

On the demo model's scenes, whose objects have masks: the mean share of the positive relevance that lies in
the mask, and how often the strongest pixel lies within 3 pixels of it, beside maps of random numbers.  On
networks and photos: the cosine between the map of the best class and the maps of random others.  Each network
needs a `.toml` file beside it, or `--preprocess`.  The table is Markdown, as in docs/methods.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gbp import RULES, Attribution, Explainer, methods
from gbp.doubt.classes import class_sensitivity
from gbp.doubt.localise import pointing_game, relevance_mass
from gbp.methods import METHODS
from gbp.result.similarity import cosine
from gbp.rules import OTHER_RULES

MODELS = Path(__file__).resolve().parents[1] / "models"
TOLERANCE, OTHERS = 3, 4
#: Random maps that stand for chance.
RANDOM = 200

Explain: TypeAlias = Callable[..., Attribution]


def explained() -> dict[str, Explain]:
    """Every rule and every method, by name: (explainer, images, target) → `Attribution`."""

    def of_rule(rule: str) -> Explain:
        return lambda explainer, images, target=None: explainer.explain(images, rule=rule, target=target)

    def of_method(name: str, **options: Any) -> Explain:
        call = getattr(methods, METHODS[name].function)
        return lambda explainer, images, target=None: call(explainer, images, target=target, **options)

    found = {f"`{rule}`": of_rule(rule) for rule in (*RULES, *OTHER_RULES)}
    for name, method in METHODS.items():
        if name.startswith("layer-"):
            continue  # their maps are of another size
        found[name] = of_method(name)
        if name == "smoothgrad":
            found[f"{name}, `guided`"] = of_method(name, rule="guided")
        assert method.source
    return found


def located(explain: Explain, explainer: Explainer, scenes: Sequence[Path]) -> tuple[float, float]:
    """The mean relevance mass in the mask, and the share of pointing-game hits."""
    found = explain(explainer, list(scenes))
    masks = masks_of(scenes)
    hits = pointing_game(found.reduce("abs-max"), masks, tolerance=TOLERANCE)
    return float(relevance_mass(found.reduce("positive"), masks).mean()), float(hits.mean())


def masks_of(scenes: Sequence[Path]) -> NDArray[np.bool_]:
    """Where the objects of scenes are."""
    files = [scene.with_name(f"{scene.stem}_mask.png") for scene in scenes]
    return np.stack([np.asarray(Image.open(file).convert("L")) > 127 for file in files])


def by_chance(scenes: Sequence[Path], has_sign: bool) -> tuple[float, float, float]:
    """The same of maps of random numbers, or of their magnitudes; and the mean cosine between two of them."""
    masks, rng = masks_of(scenes), np.random.default_rng(0)
    maps = [rng.standard_normal(masks.shape) for _ in range(RANDOM)]
    maps = maps if has_sign else [np.abs(m) for m in maps]
    masses = [relevance_mass(np.maximum(m, 0), masks).mean() for m in maps]
    hits = [pointing_game(np.abs(m), masks, tolerance=TOLERANCE).mean() for m in maps]
    cosines = [cosine(a, b) for a, b in pairwise(maps)]
    return float(np.mean(masses)), float(np.mean(hits)), float(np.mean(cosines))


def sensitivity(explain: Explain, explainer: Explainer, photos: Sequence[str]) -> float:
    """The mean cosine between the map of the best class and those of random others."""
    x = explainer.prepare(list(photos))
    cosines = class_sensitivity(
        lambda targets: explain(explainer, x, targets).map, explainer.predict(x), others=OTHERS
    )
    return float(cosines.mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[])
    parser.add_argument("--photos", nargs="*", default=[])
    parser.add_argument("--preprocess", action="append", default=[], help="of each network in turn")
    parser.add_argument("--only", nargs="*", help="names of rows")
    arguments = parser.parse_args()
    scenes = sorted(p for p in (MODELS / "scenes").glob("*.png") if not p.stem.endswith("_mask"))
    demo = Explainer(MODELS / "demo.onnx")
    presets = [*arguments.preprocess, *[None] * len(arguments.networks)]
    networks = [
        Explainer(file, preprocess=preset) for file, preset in zip(arguments.networks, presets, strict=False)
    ]
    names = "".join(f" {Path(file).stem} |" for file in arguments.networks)
    print(f"| map | mass in the mask | strongest pixel on it |{names}")
    print("|---|--:|--:|" + "--:|" * len(networks))
    for name, has_sign in (("random numbers", True), ("their magnitudes", False)):
        mass, hits, alike = by_chance(scenes, has_sign)
        print(
            f"| {name} | {100 * mass:.1f} % | {100 * hits:.0f} % |"
            + f" {round(alike, 2) + 0:.2f} |" * len(networks),
            flush=True,
        )
    for name, explain in explained().items():
        if arguments.only and name.strip("`") not in arguments.only:
            continue
        mass, hits = located(explain, demo, scenes)
        cells = [f"{100 * mass:.1f} %", f"{100 * hits:.0f} %"]
        for network in networks:
            try:
                cells.append(f"{sensitivity(explain, network, arguments.photos):.2f}")
            except ValueError as error:  # a rule that has no meaning for the network, say
                cells.append(f"refused: {error}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
