"""The shipped classifier on its shipped scenes, whose masks are known: explanations that can be checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from gbp import RULES, Attribution, Explainer, Top, methods
from gbp.methods import METHODS
from gbp.rules import OTHER_RULES

MODELS = Path(__file__).resolve().parent.parent / "models"
SCENES = sorted(p for p in (MODELS / "scenes").glob("*.png") if not p.stem.endswith("_mask"))

#: The least mean share of positive relevance inside the object, and of pointing-game hits.  A map spread
#: evenly would have 0.06 and 0.1.
LEAST = {
    "vanilla": (0.3, 0.9),
    "deconvnet": (0.45, 0.9),
    "guided": (0.5, 0.9),
    "input-x-gradient": (0.5, 0.9),
    "lrp-epsilon": (0.5, 0.9),
    "lrp-epsilon-plus": (0.65, 0.9),
    "rectgrad": (0.6, 0.9),
    "saliency": (0.3, 0.9),
    "smoothgrad": (0.45, 0.9),
    "smoothgrad-squared": (0.6, 0.8),
    "vargrad": (0.6, 0.8),
    "integrated-gradients": (0.55, 0.9),
    "grad-cam": (0.25, 0.8),
    "guided-grad-cam": (0.7, 0.9),
}
#: The pointing game's tolerance in pixels: maps trace outlines, and an outline has two sides.
TOLERANCE = 3


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(MODELS / "demo.onnx")


def mask_of(scene: Path) -> Image.Image:
    return Image.open(scene.with_name(f"{scene.stem}_mask.png")).convert("L")


def inside(scene: Path, tolerance: int = 0) -> NDArray[np.bool_]:
    mask = mask_of(scene)
    return np.asarray(mask.filter(ImageFilter.MaxFilter(2 * tolerance + 1)) if tolerance else mask) > 127


def test_there_are_a_dozen_scenes_of_a_dozen_classes(explainer: Explainer) -> None:
    assert explainer.labels is not None
    assert sorted(scene.stem.split("_")[1] for scene in SCENES) == sorted(explainer.labels)


def test_every_scene_is_classified(explainer: Explainer) -> None:
    found = explainer.explain(SCENES)
    assert [sample.label() for sample in found] == [scene.stem.split("_")[1] for scene in SCENES]
    assert found.probabilities.max(axis=1).min() > 0.9


def check_location(found: Attribution, least: tuple[float, float], report: Callable[[str], None]) -> None:
    """The positive relevance lies inside the object, and the strongest pixel on it."""
    positive, magnitude = found.reduce("positive"), found.reduce("abs-max")
    shares = [m[inside(scene)].sum() / m.sum() for m, scene in zip(positive, SCENES, strict=True)]
    hits = [inside(scene, TOLERANCE).flat[m.argmax()] for m, scene in zip(magnitude, SCENES, strict=True)]
    share, hit = (np.mean([inside(scene, around).mean() for scene in SCENES]) for around in (0, TOLERANCE))
    report(
        f"{found[0].title:29s} positive relevance inside the object {np.mean(shares):.2f} (by chance "
        f"{share:.2f}), pointing game {sum(map(int, hits))} of {len(hits)} (by chance {hit * len(hits):.1f})"
    )
    assert np.mean(shares) >= least[0]
    assert np.mean(hits) >= least[1]


@pytest.mark.parametrize("rule", [*RULES, *OTHER_RULES])
def test_relevance_lies_on_the_object(explainer: Explainer, rule: str, report: Callable[[str], None]) -> None:
    check_location(explainer.explain(SCENES, rule=rule), LEAST[rule], report)


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("layer-")])
def test_methods_lie_on_the_object_too(
    explainer: Explainer, method: str, report: Callable[[str], None]
) -> None:
    found = getattr(methods, METHODS[method].function)(explainer, SCENES)
    check_location(found, LEAST[method], report)


def test_another_class_is_explained_elsewhere(explainer: Explainer) -> None:
    """A map depends on its target: the runner-up's is not the winner's."""
    found = explainer.explain(SCENES[:3], target=Top(5))
    for maps in found.map:
        first, second = maps[0].ravel(), maps[1].ravel()
        assert first @ second < 0.99 * np.linalg.norm(first) * np.linalg.norm(second)


def test_batch_normalisation_is_left_in_the_file_and_folded_in_the_plan() -> None:
    model = onnx.load(MODELS / "demo.onnx")
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) >= 4
    assert (MODELS / "demo.onnx").stat().st_size <= 2_000_000
