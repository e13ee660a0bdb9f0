"""`gbp explain --method`: every method on the demo model, its options, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbp import Explainer, methods
from gbp.cli.main import main
from gbp.methods import METHODS
from gbp.pictures.legend import meaning
from gbp.result.titles import title_of
from gbp.rules import OTHER_RULES, RULES

MODELS = Path(__file__).resolve().parent.parent / "models"
MODEL, SCENE = str(MODELS / "demo.onnx"), str(MODELS / "scenes" / "02_fish.png")

#: Options that make a method quick, or that it needs.
OPTIONS = {
    "smoothgrad": ["--samples", "2"],
    "smoothgrad-squared": ["--samples", "2"],
    "vargrad": ["--samples", "2"],
    "integrated-gradients": ["--steps", "3"],
    "layer-gradient": ["--layer", "relu3"],
}


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def explain(*options: str) -> int:
    return main(["explain", MODEL, SCENE, *options])


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert explain(*options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gbp: error: ")
    assert not list(Path().iterdir())
    return err


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_its_picture(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("--method", method, *OPTIONS.get(method, [])) == 0
    assert Image.open(f"02_fish_{method}.png").height > 96
    out = capsys.readouterr().out
    assert f"explained by {method}" in out
    assert "note: " in out


@pytest.mark.parametrize("method", [None, *(name for name, method in METHODS.items() if method.rule)])
def test_every_method_takes_every_rule(method: str | None) -> None:
    asked = [] if method is None else ["--method", method, *OPTIONS.get(method, [])]
    for rule in (*RULES, *OTHER_RULES):
        assert explain(*asked, "--rule", rule, "--style", "gray", "-q", "-o", f"{rule}.png") == 0
        assert np.ptp(np.asarray(Image.open(f"{rule}.png"))) > 0


def test_options_are_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--samples", "3", "--noise", "0.2", "--seed", "5", "--rule", "guided", "--target", "heart"]
    assert explain("--method", "smoothgrad", *options, "--json", "-o", "a.npz") == 0
    (report,) = json.loads(capsys.readouterr().out)["images"]
    assert report["method"] == "smoothgrad"
    assert report["rules"] == ["guided"]
    assert {key: report["details"][key] for key in ("samples", "noise", "seed")} == {
        "samples": 3, "noise": 0.2, "seed": 5,
    }  # fmt: skip
    want = methods.smoothgrad(
        Explainer(MODEL), SCENE, samples=3, noise=0.2, seed=5, rule="guided", target="heart"
    )
    with np.load("a.npz") as arrays:
        assert arrays["map"].tobytes() == want.map.tobytes()


def test_baselines_are_names_numbers_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("half.npy", np.full((3, 96, 96), 0.5, np.float32))
    maps = []
    for text in ("0.5", "half.npy", "mean"):
        options = ("--steps", "3", "--baseline", text, "-o", "a.npz")
        assert explain("--method", "integrated-gradients", *options) == 0
        with np.load("a.npz") as arrays:
            maps.append(arrays["map"].tobytes())
    assert maps[0] == maps[1] != maps[2]
    assert "up to the score's difference of" in " ".join(capsys.readouterr().out.split())


def test_the_layer_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("--method", "grad-cam") == 0
    assert "explained by grad-cam at relu4: fish (2)" in capsys.readouterr().out
    assert explain("--method", "grad-cam", "--layer", "relu3", "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)["images"]
    assert report["details"] == {"layer": "relu3", "layer_shape": [64, 24, 24]}


def test_methods_of_hidden_units_and_contrasts(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--at", "relu3", "--channel", "7", "--json")
    assert explain("--method", "smoothgrad", "--samples", "2", *options) == 0
    (report,) = json.loads(capsys.readouterr().out)["images"]
    assert report["details"]["question"].startswith("relu3 7:")
    assert explain("--method", "grad-cam", "--target", "fish", "--against", "heart", "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)["images"]
    assert report["details"]["question"] == "fish - heart"


def test_the_value_of_a_hidden_unit_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("--at", "relu3", "--channel", "7") == 0
    assert re.search(r"explained by guided: relu3 7:\d+:\d+ = \d", capsys.readouterr().out)


def test_who_asks_for_a_rule_is_told_the_methods_that_take_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("--method", "grad-cam", "--rule", "guided") == 2
    error = capsys.readouterr().err
    assert "a rule of its own" in error
    assert "smoothgrad" in error
    assert "layer-gradient" in error


def test_titles_tell_rules_apart() -> None:
    layer = {"layer": "relu3"}
    assert title_of("", "guided", {}) == "guided"
    assert title_of("smoothgrad", "guided", {}) == "smoothgrad, guided"
    assert title_of("layer-gradient", "guided", layer) == "layer-gradient at relu3, guided"
    assert title_of("guided-grad-cam", "guided", layer) == "guided-grad-cam at relu3"


@pytest.mark.parametrize("method", ["", "smoothgrad", "smoothgrad-squared", "vargrad", "layer-gradient"])
@pytest.mark.parametrize("rule", [name for name, rule in OTHER_RULES.items() if rule.finish])
def test_a_product_is_not_called_a_slope(method: str, rule: str) -> None:
    for style in ("overlay", "gray", "rgb", "diverging"):
        said = meaning(style, rule, method)  # type: ignore[arg-type]
        assert not re.search("small change|raises|moves|gradient changes", said)
        if style in ("overlay", "gray"):
            assert re.search("for or against it|whatever its sign|changes more", said), "they have no sign"
        elif method not in ("smoothgrad-squared", "vargrad"):
            assert re.search("for the score.* against it", said)


def test_guided_grad_cam_is_not_called_guided() -> None:
    for style in ("overlay", "gray", "rgb", "diverging"):
        assert meaning(style, "guided", "guided-grad-cam").endswith("weighted with Grad-CAM")  # type: ignore[arg-type]


def test_a_method_over_all_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("--method", "vargrad", "--samples", "2", "--rule", "all") == 0
    assert "vargrad, vanilla; vargrad, deconvnet; vargrad, guided: fish" in capsys.readouterr().out
    assert Path("02_fish_vargrad_all.png").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--samples", "3"], "--samples belongs to another method. Supported: with --method smoothgrad, "),
        (["--method", "saliency", "--steps", "3"], "with --method integrated-gradients."),
        (["--method", "smoothgrad", "--layer", "relu3"], "with --method grad-cam, guided-grad-cam, "),
        (["--method", "grad-cam", "--rule", "guided"], "--method grad-cam has a rule of its own."),
        (["--method", "saliency", "--rule", "all"], "--method saliency has a rule of its own."),
        (["--method", "layer-gradient"], "--method layer-gradient needs --layer."),
        (["--method", "smoothgrad", "--samples", "0"], "--samples is 0."),
        (["--method", "smoothgrad", "--noise", "-1"], "--noise is -1.0."),
        (["--method", "smoothgrad", "--seed", "-1"], "--seed is -1."),
        (["--method", "integrated-gradients", "--steps", "0"], "--steps is 0."),
        (["--method", "integrated-gradients", "--baseline", "black"], "--baseline is 'black'."),
        (["--method", "integrated-gradients", "--baseline", "no.npy"], "cannot read the array 'no.npy'"),
        (["--method", "grad-cam", "--layer", "relu9"], "is called 'relu9'. Did you mean 'relu"),
        (["--method", "grad-cam", "--layer", "fc1"], "--layer 'fc1' has no plane, its shape is [64]."),
        (["--method", "grad-cam", "--layer", "fc1"], "The last one with a plane is --layer relu4."),
        (["--method", "layer-gradient", "--layer", "logits"], "--layer 'logits' holds the scores."),
        (["--at", "relu3", "--channel", "-1"], "--channel is -1."),
        (["--top", "0"], "--top is 0."),
    ],
)
def test_what_is_refused(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, *options)


def test_an_unknown_method_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        explain("--method", "lime")
    assert "smoothgrad" in capsys.readouterr().err
