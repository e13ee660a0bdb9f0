"""Real pretrained models and photos, where `GBP_ZOO` says that they are at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from agreement import BOUND, assert_close
from numpy.typing import NDArray

from gbp import PROBABILITY, RULES, Explainer

if "GBP_ZOO" not in os.environ:
    pytest.skip("GBP_ZOO does not name a folder of real models", allow_module_level=True)

ZOO = Path(os.environ["GBP_ZOO"])
MODELS: dict[str, dict[str, Any]] = json.loads((ZOO / "zoo.json").read_text())["models"]

#: Models of ImageNet whose independent top-1 the zoo knows: preset, and scores before the first class.
IMAGENET = {
    "squeezenet1.1_fp32_opset7": ("imagenet", 0),
    "squeezenet1.0_tf_nhwc_opset9": ("tf", 1),  # a background class
    "mobilenet_v1_0.25_opset17": ("tf", 0),
    "shufflenet_v2_dequant_opset12": ("imagenet", 0),
    "shufflenet-v2-12-int8_opset12": ("imagenet", 0),
}
#: Files whose numbers float64 rounds to other integers, so that its maps are others.
ROUNDED = {"shufflenet-v2-12-int8_opset12"}
READ = sorted(set(MODELS) - ROUNDED)


def path_of(name: str) -> Path:
    return ZOO / MODELS[name]["file"]


@pytest.mark.parametrize("name", IMAGENET)
def test_top1_of_every_photo(name: str) -> None:
    preset, background = IMAGENET[name]
    top1 = MODELS[name]["top1"]
    # The zoo's classes are those of a crop in any case, also of photos that have the network's size.
    preprocess = {"preset": preset, "crop": 0.875}
    scores = Explainer(path_of(name), preprocess=preprocess).predict(
        [ZOO / "photos" / photo for photo in top1]
    )
    found = dict(zip(top1, (int(i) - background for i in scores.argmax(axis=1)), strict=True))
    assert found == top1


@pytest.mark.parametrize("name", ["squeezenet1.1_fp32_opset7", "squeezenet1.0_tf_nhwc_opset9"])
def test_published_pairs(name: str) -> None:
    is_softmax = MODELS[name]["head"] == "softmax"
    explainer = Explainer(path_of(name), output=PROBABILITY if is_softmax else None)
    with np.load(ZOO / "ref_io" / f"{name}.npz") as pairs:
        for i in range(3):
            found, published = explainer.predict(pairs[f"input_{i}"]), pairs[f"output_{i}"]
            assert np.linalg.norm(found - published) <= 1e-4 * np.linalg.norm(published)


#: The same networks in newer words.
MODERN = {
    "customvision_food3_opset1": "customvision_food3_opset11",
    "mnist_cntk_opset1": "mnist_cntk_opset8",
}
#: What float32 kernels may err by, relative to a tensor's RMS, and what of it a whole map may.
DISTURBANCE, ALLOWED = 5e-7, 4


#: Photos with flat areas, in which max-pools meet ties, and models whose max-pools meet them.
PHOTOS = [
    ("squeezenet1.1_fp32_opset7", "banana_0.jpg"),
    ("squeezenet1.1_fp32_opset7", "car.jpg"),
    ("squeezenet1.1_fp32_opset7", "kitten_224.png"),
    ("squeezenet1.0_tf_nhwc_opset9", "banana_0.jpg"),
]


@pytest.mark.parametrize("name", READ)
def test_maps_are_those_of_float64(name: str) -> None:
    explainer = Explainer(path_of(name))
    shape = tuple(n or 1 for n in explainer.input_shape)
    compare(name, explainer, np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


@pytest.mark.parametrize(("name", "photo"), PHOTOS)
def test_maps_of_photos_are_those_of_float64(name: str, photo: str) -> None:
    explainer = Explainer(path_of(name), preprocess=IMAGENET[name][0])
    compare(name, explainer, explainer.prepare(ZOO / "photos" / photo))


@lru_cache(maxsize=1)  # files of one network follow each other
def truth_of(name: str, x: bytes, shape: tuple[int, ...]) -> tuple[oracle.Run, Callable[[int], oracle.Run]]:
    """The network's run on x, and runs with disturbances by their seeds."""
    model, image = onnx.load(path_of(name)), np.frombuffer(x, np.float32).reshape(shape)
    return oracle.Run(model, image), cache(
        lambda seed: oracle.Run(model, image, noise=DISTURBANCE, seed=seed)
    )


def compare(name: str, explainer: Explainer, x: NDArray[np.float32]) -> None:
    """Within 1e-5; or, where a gate lies within rounding of 0, as near as other arithmetic that rounds."""
    truth, other = truth_of(MODERN.get(name, name), x.tobytes(), x.shape)
    output = explainer._engine.source.scores
    for rule in RULES:
        found = explainer.explain(x, rule=rule)
        scores, exact = truth.explain(rule, output=output)
        assert_close(found.scores, scores, f"{rule} scores")
        norm = np.linalg.norm(exact)
        error = np.linalg.norm(found.map - exact) / norm
        if error > BOUND:
            maps = (other(seed).explain(rule, scores.argmax(axis=1), output)[1] for seed in range(3))
            assert any(error <= ALLOWED * np.linalg.norm(m - exact) / norm for m in maps)


@pytest.mark.parametrize("name", READ)
def test_every_rule(name: str) -> None:
    """Any image at all: finite scores, a map that is not blank, and rules that differ."""
    explainer = Explainer(path_of(name))
    shape = tuple(n or 1 for n in explainer.input_shape)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    maps = [explainer.explain(x, rule=rule).map for rule in RULES]
    assert all(m.shape == shape and np.abs(m).max() > 0 for m in maps)
    assert not any(np.array_equal(a, b) for a, b in pairwise(maps))


@pytest.mark.parametrize("digit", sorted((ZOO / "mnist").glob("*.png")), ids=lambda p: p.stem)
def test_digits(digit: Path) -> None:
    explainer = Explainer(path_of("mnist_cntk_opset8"), preprocess="raw")
    assert explainer.predict(digit).argmax() == int(digit.stem[-1])


def test_cifar_pictures() -> None:
    names = (ZOO / "labels" / "cifar10.txt").read_text().split()
    pictures = sorted((ZOO / "cifar10").glob("*.png"))
    explainer = Explainer(path_of("resnet8_mlperftiny_cifar10_opset18"), preprocess="raw", labels=names)
    found = explainer.predict(list(pictures)).argmax(axis=1)
    right = sum(names[i] == p.stem.split("_")[1] for i, p in zip(found, pictures, strict=True))
    assert right >= 0.8 * len(pictures)
