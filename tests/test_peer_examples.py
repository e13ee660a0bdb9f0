"""Examples from Xplique's and keras-explainable's documents run as written, but for import and model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gbp import Explainer
from gbp.compat import keras_explainable as ke
from gbp.compat.keras_explainable import filters, methods
from gbp.compat.xplique import DeconvNet, GuidedBackprop

MODELS = Path(__file__).parent.parent / "models"


def demo() -> tuple[Explainer, list[Path], str]:
    scenes = sorted((MODELS / "scenes").glob("*.png"))
    return Explainer(MODELS / "demo.onnx"), [s for s in scenes if "mask" not in s.stem][:2], "relu4"


def squeezenet() -> tuple[Explainer, list[Path], str]:
    if "GBP_ZOO" not in os.environ:
        pytest.skip("GBP_ZOO does not name a folder of real models")
    zoo = Path(os.environ["GBP_ZOO"])
    model = zoo / "models" / "squeezenet1.1_fp32_opset7.onnx"
    labels = zoo / "labels" / "imagenet1000.txt"
    photos = [zoo / "photos" / name for name in ("lion.png", "goldfish.jpg")]
    return Explainer(model, preprocess="imagenet", labels=labels), photos, "squeezenet0_relu25_fwd"


@pytest.fixture(params=[demo, squeezenet], ids=["demo", "squeezenet"])
def model(request: pytest.FixtureRequest) -> tuple[Explainer, NDArray[np.float32], list[Path], str]:
    explainer, files, layer = request.param()
    images = np.moveaxis(explainer.prepare(files), 1, -1)  # channels last, as Keras has them
    return explainer, images, files, layer


@pytest.mark.parametrize("method_class", [GuidedBackprop, DeconvNet])
def test_xplique(model: Any, method_class: Any) -> None:
    model, images, _, _ = model
    scores = model.predict(np.moveaxis(images, -1, 1))
    labels = np.eye(scores.shape[1])[scores.argmax(1)]

    method = method_class(model)
    explanations = method.explain(images, labels)

    assert explanations.shape == (*images.shape[:3], 1)
    assert np.array_equal(method(images, labels), explanations)
    rule = {GuidedBackprop: "guided", DeconvNet: "deconvnet"}[method_class]
    maps = model.explain(np.moveaxis(images, -1, 1), rule=rule).map
    np.testing.assert_allclose(explanations[..., 0], maps.mean(1), atol=1e-6 * np.abs(maps).max())


def test_keras_explainable(model: Any) -> None:
    model, inputs, _, _ = model
    logits = model.predict(np.moveaxis(inputs, -1, 1))

    explaining_units = np.argsort(logits, axis=-1)[:, ::-1][:, :1]
    logits, maps = ke.gradients(model, inputs, explaining_units)

    assert logits.shape == (2, 1)
    assert maps.shape == (*inputs.shape[:3], 1)
    assert maps.min() == 0
    assert maps.max() == 1
    again = ke.explain(
        methods.gradient.gradients, model, inputs, explaining_units, postprocessing=filters.absolute_normalize
    )
    assert np.array_equal(again[1], maps)
    images = (inputs - inputs.min()) / np.ptp(inputs)
    grid = ke.utils.visualize([*images, *maps])
    assert grid.width > 4 * 224


def test_keras_explainable_explains_every_unit_of_the_demo() -> None:
    explainer, files, _ = demo()
    inputs = np.moveaxis(explainer.prepare(files), 1, -1)
    logits, maps = ke.gradients(explainer, inputs)
    assert logits.shape == (2, 12)
    assert maps.shape == (2, 96, 96, 12)


def test_a_single_neuron_is_projected_to_the_image(model: Any) -> None:
    """Zeiler & Fergus: all other units of a feature map are set to zero."""
    model, images, _, layer = model
    with model.run(np.moveaxis(images[:1], -1, 1), keep=[layer]) as run:
        features = run.value(layer)
        strongest = features.argmax()
        single = np.zeros_like(features)
        single.flat[strongest] = features.flat[strongest]
        reconstruction = run.vjp(single, rule="deconvnet", of=layer)
    assert reconstruction.shape == (1, 3, *images.shape[1:3])
    assert reconstruction.any()


def test_the_walk_through(model: Any, tmp_path: Path) -> None:
    """A photo is classified, its label decoded, and the guided gradient of the best class drawn."""
    model, images, files, _ = model
    result = model.explain(files[0], rule="guided")
    assert result.map.shape == (1, 3, *images.shape[1:3])
    (_, label, score), *_ = result.top(5)
    assert label == result.label()
    assert score == result.scores.max()
    assert files[0].stem.split("_")[-1].lower() in label.lower()
    result.save(tmp_path / "map.png", style="rgb")
    with Image.open(tmp_path / "map.png") as picture:
        assert min(picture.size) >= min(images.shape[1:3])
