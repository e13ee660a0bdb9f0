"""The command line: arguments, what it asks of the engine, what it prints.  The engine is a stand-in here."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from gbp import PROBABILITY, Top, __version__
from gbp.cli import main as cli
from gbp.cli import options
from gbp.cli.explain import CHUNK
from gbp.cli.help import EXAMPLES
from gbp.cli.inspect import _count
from gbp.cli.methods import cautions_of
from gbp.errors import InputError, UnsupportedError
from gbp.pictures.drawing import Style
from gbp.pictures.preprocess import PRESETS, Preprocess
from gbp.questions.head import Head
from gbp.result.attribution import Attribution
from gbp.rules import RULES

LABELS = ("tench", "goldfish", "great white shark", "hen", "ostrich", "brambling")
SCORES = (0.1, 5.0, 3.0, 2.0, 1.0, 0.0)


class FakeExplainer:
    made: dict[str, object]  # what the last one was made with
    calls: list[tuple[list[str], str, object]]
    classes = 6
    notes: tuple[str, ...] = ("SiLU takes its true derivative.",)

    def __init__(self, model, **options):
        if not Path(model).exists():
            raise InputError(f"there is no model {model!r}.")
        FakeExplainer.made, FakeExplainer.instructions = options, []
        self.labels = options["labels"] or LABELS
        self.input_shape = (None, 3, 8, 8)

    def explain(self, images, *, rule="guided", target=None, batch_size=None):
        self.instructions.append((list(images), rule, target))
        if target == "unicorn":
            raise InputError("there is no label 'unicorn'.\nThe labels\nare these.")
        n = len(images)
        scores = np.tile(np.float32(SCORES[: self.classes]), (n, 1))
        if isinstance(target, Top):
            targets = np.argsort(-scores, axis=1)[:, :5]
            shape = (n, 5, 3, 8, 8)
        else:
            targets = np.full(n, target if isinstance(target, int) else scores[0].argmax())
            shape = (n, 3, 8, 8)
        m = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        seen = tuple(Image.new("RGB", (8, 8), "navy") for _ in images)
        head = Head("Softmax", (self.classes,), (0,)) if self.classes > 1 else None
        return Attribution(m, scores, targets, rule, self.notes, labels=self.labels, images=seen, head=head)


@dataclass(frozen=True)
class Row:
    name: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    plan: str


@dataclass(frozen=True)
class FakeInspection:
    layers: tuple[Row, ...]
    unsupported: tuple[str, ...] = ()
    input: str = "data (N, 3, 224, 224)"
    output: str = "fc (N, 1000)"
    hints: tuple[str, ...] = ("Do without.",)
    notes: tuple[str, ...] = ("It has no batch axis.",)


def fake_inspect(model, size=None, algorithm="auto", **ends):
    if model == "damaged.onnx":
        raise UnsupportedError("opset 99 is newer than onnx 1.17.", op="Conv", node="conv1")
    unsupported = ("LSTM 'rnn' is not supported. " * 6,) if model == "odd.onnx" else ()
    long = "/features/features.0/a_block_with_a_rather_long_name/conv1/Conv"
    return FakeInspection(
        (
            Row(
                long, "Conv", (1, 64, 112, 112), 9408, 118_013_952, "direct, fused with the Relu that follows"
            ),
            Row("relu", "Relu", (1, 64, 112, 112), 0, 0, "in conv1"),
        ),
        unsupported,
    )


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Work in an empty folder with a model and two images, on the stand-in engine."""
    engine, inspection = types.ModuleType("gbp.explainer"), types.ModuleType("gbp.diagnostics.inspection")
    engine.Explainer, inspection.inspect = FakeExplainer, fake_inspect
    compiling = types.ModuleType("gbp.cli.compiling")
    compiling.compile_on_new_machine = lambda *_: None
    monkeypatch.setitem(sys.modules, "gbp.explainer", engine)
    monkeypatch.setattr("gbp.Explainer", FakeExplainer)  # where it was used before, gbp holds it
    monkeypatch.setitem(sys.modules, "gbp.cli.compiling", compiling)
    monkeypatch.setitem(sys.modules, "gbp.diagnostics.inspection", inspection)
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(b"")
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (9, 9)).save(name)
    Path("sub").mkdir()
    Image.new("RGB", (9, 9)).save("sub/cat.png")
    return tmp_path


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """Run what must be refused; returns the one line on stderr."""
    before = sorted(Path().rglob("*"))
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gbp: error: ")
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return err


# --------------------------------------------------------------------------------------------- explain


def test_explain_prints_what_it_saw_and_wrote(capsys):
    assert run("explain", "net.onnx", "cat.jpg") == 0
    out = capsys.readouterr().out
    assert "cat.jpg" in out
    assert out.index("goldfish") < out.index("great white shark") < out.index("tench")
    assert "82.1 %" in out
    assert ["class", "probability", "score", "label"] in [line.split() for line in out.splitlines()]
    assert "explained by guided: goldfish (1)" in out
    assert "wrote cat_guided.png" in out
    assert "note: SiLU takes its true derivative." in out
    assert Image.open("cat_guided.png").width > 4 * 288
    assert FakeExplainer.made == {
        "preprocess": None, "labels": None, "output": None, "input": None, "given": {},
        "threads": None, "device": "cpu", "memory": None,
        "algorithm": "auto", "activations": "gradient", "tf32": False, "cache": True,
    }  # fmt: skip
    ((images, rule, target),) = FakeExplainer.instructions
    assert ([image.size for image in images], rule, target) == ([(9, 9)], "guided", None)


MANY = "top" + "9" * 5000  # which int would not take


@pytest.mark.parametrize(("text", "target"), [("3", 3), ("hen", "hen"), ("top5", Top(5)), (MANY, MANY)])
def test_targets(text, target):
    assert run("explain", "net.onnx", "cat.jpg", "--target", text) == 0
    assert FakeExplainer.instructions[0][2] == target


def test_json(capsys):
    assert run("explain", "net.onnx", "cat.jpg", "dog.jpg", "--json", "--rule", "all", "--target", "3") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "net.onnx"
    assert report["notes"] == ["SiLU takes its true derivative."]
    assert report["cautions"] == {name: rule.caution for name, rule in RULES.items()}
    cat, dog = report["images"]
    assert (cat["image"], cat["file"]) == ("cat.jpg", "cat_all.png")
    assert cat["rules"] == ["vanilla", "deconvnet", "guided"]
    assert [(row["class"], row["label"]) for row in cat["explained"]] == [(3, "hen")]
    assert [row["class"] for row in dog["top"]] == [1, 2, 3, 4, 0]
    assert dog["top"][0]["probability"] == pytest.approx(0.82127, abs=1e-5)
    assert dog["top"][0]["score"] == 5
    assert Path("dog_all.png").exists()


def test_single_score(capsys, monkeypatch):
    monkeypatch.setattr(FakeExplainer, "classes", 1)
    assert run("explain", "net.onnx", "cat.jpg") == 0
    assert "%" not in capsys.readouterr().out
    assert run("explain", "net.onnx", "cat.jpg", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["top"][0]["probability"] is None


@pytest.mark.parametrize("style", get_args(Style))
@pytest.mark.parametrize("rule", [*RULES, "all"])
def test_styles_and_rules(style, rule):
    command = ("explain", "net.onnx", "cat.jpg", "--style", style, "--rule", rule, "-o", "out.jpg")
    assert run(*command) == 0
    assert min(Image.open("out.jpg").size) > 300
    single = rule != "all" and style != "strip"
    assert (run(*command, "--bare") == 0) == single
    assert (Image.open("out.jpg").size == (8, 8)) == single


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--smooth", "-1"], "--smooth is -1.0"),
        (["--alpha", "2"], "--alpha is 2.0"),
        (["--percentile", "0"], "--percentile is 0.0"),
        (["--max-side", "1"], "--max-side is 1"),
        (["--palette", "no such one"], "--palette is 'no such one'"),
        (["--canvas", "photo"], "there is no photo"),
    ],
)
def test_drawing_options(capsys, options, says):
    assert run("explain", "net.onnx", "cat.jpg", *options) == 2
    assert says in capsys.readouterr().err


def test_drawing_options_reach_the_picture():
    pixels = {}
    for given in ((), ("--smooth", "3"), ("--alpha", "0.2"), ("--percentile", "50"), ("--palette", "gray")):
        assert (
            run("explain", "net.onnx", "cat.jpg", "--style", "overlay", "--bare", *given, "-o", "out.png")
            == 0
        )
        with Image.open("out.png") as image:
            pixels[given] = image.convert("RGB").tobytes()
    assert len(set(pixels.values())) == len(pixels)


def test_output_folder_and_arrays():
    Path("maps").mkdir()
    assert run("explain", "net.onnx", "cat.jpg", "dog.jpg", "-o", "maps") == 0
    assert sorted(path.name for path in Path("maps").iterdir()) == ["cat_guided.png", "dog_guided.png"]
    assert run("explain", "net.onnx", "cat.jpg", "--target", "top5", "-o", "maps/cat.npz") == 0
    with np.load("maps/cat.npz") as arrays:
        assert arrays["map"].shape == (1, 5, 3, 8, 8)


def test_many_images_are_explained_in_chunks():
    names = [f"{i}.png" for i in range(CHUNK + 1)]
    for name in names:
        Image.new("RGB", (9, 9)).save(name)
    assert run("explain", "net.onnx", *names) == 0
    assert [len(images) for images, _, _ in FakeExplainer.instructions] == [CHUNK, 1]
    assert all(Path(f"{i}_guided.png").exists() for i in range(CHUNK + 1))


@pytest.mark.parametrize("name", ["photos", "photos/*", "@list.txt"])
def test_folders_patterns_and_lists(name):
    Path("photos").mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9)).save(f"photos/{i}.png")
    Path("list.txt").write_text("photos/0.png\nphotos/1.png\nphotos/2.png\n")
    assert run("explain", "net.onnx", name, "-o", "sub") == 0
    assert FakeExplainer.instructions[0][0] == [str(Path("photos", f"{i}.png")) for i in range(3)]
    assert all(Path(f"sub/{i}_guided.png").exists() for i in range(3))


@pytest.mark.parametrize("others", [[], ["dog.jpg"]])
def test_a_picture_from_stdin(monkeypatch, capsys, others):
    with open("cat.jpg", "rb") as file:
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=file))
        assert run("explain", "net.onnx", "-", *others) == 0
    assert FakeExplainer.instructions[0][0][0].size == (9, 9)
    assert "wrote stdin_guided.png" in capsys.readouterr().out
    assert Path("stdin_guided.png").exists()
    with open("net.onnx", "rb") as file:
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=file))
        assert "is not an image" in refused(capsys, "explain", "net.onnx", "-", *others)


def test_quiet_prints_nothing_but_errors(capsys):
    assert run("explain", "net.onnx", "cat.jpg", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert Path("cat_guided.png").exists()
    assert run("explain", "net.onnx", "cat.jpg", "-q", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"]
    refused(capsys, "explain", "net.onnx", "nowhere.jpg", "-q")


def test_progress_in_a_log(capsys, monkeypatch):
    monkeypatch.setattr("gbp.cli.progress._SELDOM", 0.0)
    assert run("explain", "net.onnx", "cat.jpg", "dog.jpg", "--progress") == 0
    assert capsys.readouterr().err.startswith("gbp: 2 of 2 images")


def test_a_broken_image_is_refused_before_any_picture_is_written(capsys):
    Path("broken.png").write_bytes(b"no image")
    refused(capsys, "explain", "net.onnx", "cat.jpg", "broken.png")


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ([], None),
        (["--preprocess", "caffe"], PRESETS["caffe"]),
        (
            ["--preprocess", "unit", "--bgr", "--size", "64"],
            Preprocess(1 / 255, channels="BGR", size=(64, 64)),
        ),
        (
            ["--scale", "1/255", "--mean", "0.5", "--std=0.1,0.2,0.3"],
            Preprocess(1 / 255, (0.5,), (0.1, 0.2, 0.3)),
        ),
        (["--scale", "2", "--size", "32x48"], Preprocess(2, size=(32, 48))),
        (["--preprocess", "unit", "--crop", "auto"], Preprocess(1 / 255, crop="auto")),
        (["--preprocess", "unit", "--crop", "7/8"], Preprocess(1 / 255, crop=0.875)),
        (["--preprocess", "unit", "--resize", "fit"], Preprocess(1 / 255, resize="fit")),
    ],
)
def test_preprocessing_options(options, want):
    assert run("explain", "net.onnx", "cat.jpg", *options) == 0
    assert FakeExplainer.made["preprocess"] == want


def test_options_go_over_the_sidecar():
    Path("net.toml").write_text('preprocess = "caffe"')
    assert run("explain", "net.onnx", "cat.jpg", "--size", "64") == 0
    assert FakeExplainer.made["preprocess"] == Preprocess.parse({"preset": "caffe", "size": 64})


def test_engine_options():
    Path("names.txt").write_text("a\nb\nc\nd\ne\nf\n")
    options = ("--labels", "names.txt", "--output", "probability", "--threads", "2", "--device", "cuda")
    options += ("--memory", "512M", "--algorithm", "direct", "--activations", "clamp", "--tf32")
    assert run("explain", "net.onnx", "cat.jpg", *options) == 0
    assert FakeExplainer.made == {
        "preprocess": None, "labels": tuple("abcdef"), "output": PROBABILITY, "input": None, "given": {},
        "threads": 2, "device": "cuda", "memory": 2**29, "algorithm": "direct", "activations": "clamp",
        "tf32": True, "cache": True,
    }  # fmt: skip


def test_arrays_instead_of_pictures(capsys):
    for name in ("a", "b"):
        np.save(f"{name}.npy", np.zeros((3, 8, 8), np.float32))
    assert run("explain", "net.onnx", "a.npy", "b.npy") == 0
    ((images, _, _),) = FakeExplainer.instructions
    assert images == ["a.npy", "b.npy"]
    assert Path("a_guided.png").exists()
    assert Path("b_guided.png").exists()
    capsys.readouterr()
    Path("c.npy").write_bytes(b"no array")
    assert "cannot read the array 'c.npy'" in refused(capsys, "explain", "net.onnx", "a.npy", "c.npy")
    assert "no file or folder 'd.npy'" in refused(capsys, "explain", "net.onnx", "a.npy", "d.npy")


def test_other_inputs_are_given():
    np.save("mask.npy", np.eye(3, dtype=np.float32))
    given = ("--given", "m=mask.npy", "--given", "scale=0.5", "--given", "sizes=3,-4")
    assert run("explain", "net.onnx", "cat.jpg", "--input", "image", *given) == 0
    assert FakeExplainer.made["input"] == "image"
    inputs = FakeExplainer.made["given"]
    assert list(inputs) == ["m", "scale", "sizes"]
    assert (inputs["m"] == np.eye(3)).all()
    assert inputs["scale"] == 0.5
    assert inputs["scale"].shape == ()
    assert inputs["sizes"].tolist() == [3, -4]
    assert inputs["sizes"].dtype.kind == "i"


@pytest.mark.parametrize("text", ["m", "m=", "m=x", "m=nowhere.npy", "m=net.onnx.npy"])
def test_what_is_given_is_numbers(text, capsys):
    Path("net.onnx.npy").write_bytes(b"no array")
    assert run("explain", "net.onnx", "cat.jpg", "--given", text) == 2
    error = capsys.readouterr().err
    assert "--given" in error or "cannot read the array" in error


@pytest.mark.parametrize(("text", "size"), [("1000", 1000), ("3k", 3072), ("2G", 2**31)])
def test_memory_has_units(text, size):
    assert options.memory(text) == size


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["gone.onnx", "cat.jpg"], "no model"),
        (["cat.jpg", "net.onnx"], "'net.onnx' is among the images. Name one model, and name it first"),
        (["net.onnx", "cat.jpg", "--target", "unicorn"], "no label 'unicorn'. The labels are these."),
        (["net.onnx", "cat.jpg", "-o", "out.gif"], "format"),
        (["net.onnx", "cat.jpg", "dog.jpg", "-o", "out.png"], "Several images need"),
        (["net.onnx", "cat.jpg", "-o", "cat.jpg"], "would be overwritten"),
        (
            ["net.onnx", "cat.jpg", "sub/cat.png"],
            "'cat.jpg' and 'sub/cat.png' would both be written to 'cat_guided.png'. Explain them one after "
            "the other, each with its own -o; or by gbp batch, whose index says which file",
        ),
        (["net.onnx", "cat.jpg", "--rule", "all", "--target", "top5"], "one target"),
        (["net.onnx", "cat.jpg", "--rule", "guided,vanilla", "--bare", "--style", "rgb"], "--bare"),
        (["net.onnx", "cat.jpg", "-o", "net.onnx/x.png"], "net.onnx"),
        (["net.onnx", "cat.jpg", "--rule", "all", "-o", "out.npz"], "one target"),
        (["net.onnx", "cat.jpg", "--target", "top5", "--style", "rgb"], "strip"),
        (["net.onnx", "cat.jpg", "--labels", "gone.txt"], "gone.txt"),
        (["net.onnx", "cat.jpg", "--preprocess", "imagnet"], "imagnet"),
        (["net.onnx", "cat.jpg", "--size", "64"], "neither a preset nor a scale"),
        (["net.onnx", "cat.jpg", "--preprocess", "unit", "--std", "0"], "std"),
    ],
)
def test_explain_refuses_on_one_line(capsys, options, says):
    assert says in refused(capsys, "explain", *options)


def test_several_rules():
    assert run("explain", "net.onnx", "cat.jpg", "--rule", "vanilla,guided") == 0
    assert [rule for _, rule, _ in FakeExplainer.instructions] == ["vanilla", "guided"]
    assert Path("cat_vanilla_guided.png").exists()


def test_folders_are_made(capsys):
    assert run("explain", "net.onnx", "cat.jpg", "dog.jpg", "-o", "new/maps") == 0
    assert sorted(path.name for path in Path("new/maps").iterdir()) == ["cat_guided.png", "dog_guided.png"]
    assert run("explain", "net.onnx", "cat.jpg", "-o", "other/one.webp") == 0
    assert Path("other/one.webp").exists()
    assert run("explain", "net.onnx", "cat.jpg", "-o", "third.d/") == 0
    assert Path("third.d/cat_guided.png").exists()
    capsys.readouterr()
    refused(capsys, "explain", "gone.onnx", "cat.jpg", "-o", "never")


def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_read(capsys):
    Path("file.d").write_text("no folder")
    FakeExplainer.made = {}
    for out in ("file.d/a.png", "file.d/new/", "x" * 300 + ".png"):
        assert "cannot write" in refused(capsys, "explain", "net.onnx", "cat.jpg", "-o", out)
    assert "cannot write" in refused(capsys, "sanity", "net.onnx", "cat.jpg", "-o", "x" * 300 + ".png")
    for command in (["report"], ["features", "--layer", "relu"], ["batch"]):
        for out in ("file.d/a.html", "file.d/new/a.html"):
            assert "'file.d' is no folder" in refused(capsys, *command, "net.onnx", "cat.jpg", "-o", out)
    assert not FakeExplainer.made


def test_in_a_folder_that_is_gone(capsys, folder):
    model, image = folder / "net.onnx", folder / "cat.jpg"
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    (folder / "gone").rmdir()
    assert run("explain", model, image, "-o", folder / "a.png") == 0
    capsys.readouterr()
    for command in (["explain"], ["report"], ["sanity"], ["batch", "-o", "out"]):
        assert run(command[0], model, image, *command[1:]) == 2
        assert re.match("gbp: error: .*(folder is gone|No such file|no folder)", capsys.readouterr().err)


def test_broken_images_are_skipped_on_demand(capsys):
    Path("broken.png").write_bytes(b"no image")
    assert run("explain", "net.onnx", "cat.jpg", "broken.png", "dog.jpg", "--skip-broken") == 1
    out, err = capsys.readouterr()
    assert "cat_guided.png" in out
    assert "dog_guided.png" in out
    assert "skipped" in err
    assert "'broken.png'" in err
    assert "1 of 3 images were skipped" in err
    assert Path("dog_guided.png").exists()
    assert not Path("broken_guided.png").exists()
    assert run("explain", "net.onnx", "broken.png", "cat.jpg", "--skip-broken", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert list(told["skipped"]) == ["broken.png"]
    assert [image["image"] for image in told["images"]] == ["cat.jpg"]
    assert run("explain", "net.onnx", "cat.jpg", "--skip-broken") == 0


def test_the_explained_class_has_its_own_row(capsys):
    assert run("explain", "net.onnx", "cat.jpg", "--target", "5") == 0
    out = capsys.readouterr().out
    assert ["5", "0.6", "%", "0.0000", "brambling"] in [line.split() for line in out.splitlines()]
    assert "explained by guided: brambling (5)" in out


# ------------------------------------------------------------------------------------------------ help


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def test_every_command_has_examples_that_parse():
    assert set(EXAMPLES) == set(commands())
    for name, lines in EXAMPLES.items():
        assert len(lines) >= 2
        for line in lines:
            program, *arguments = shlex.split(line)
            assert program == "gbp"
            assert arguments[0] == name
            cli._parser().parse_args(arguments)
            assert line in commands()[name].format_help()


def test_no_option_that_is_given_twice_loses_its_first_value(capsys):
    lists = {("explain", "rule"), ("report", "rule"), ("report", "method"), ("features", "channels")}
    for name, command in commands().items():
        needed = [a for a in command._actions if a.required and a.option_strings]
        for action in (a for a in command._actions if a.option_strings and a.nargs != 0 and not a.const):
            of = {"given": "a=1", "shard": "1/2", "rule": "guided", "method": "grad-cam"}
            value = str([*(action.choices or ()), of.get(action.dest, "1")][0])
            line = [name, "net.onnx", *([] if name in ("inspect", "warmup", "serve") else ["cat.jpg"])]
            line += [part for a in needed if a is not action for part in (a.option_strings[0], "x")]
            line += [f"{action.option_strings[-1]}={value}"]
            if type(action).__name__ == "_AppendAction" or (name, action.dest) in lists:
                arguments = cli._parser().parse_args([*line, line[-1]])
                assert len(getattr(arguments, action.dest)) == (1 if type(action).__name__ == "Each" else 2)
                continue
            cli._parser().parse_args(line)
            with pytest.raises(SystemExit, match="2"):
                cli._parser().parse_args([*line, line[-1]])
            assert (
                f"argument {'/'.join(action.option_strings)}: it is given twice." in capsys.readouterr().err
            )


def test_lists_that_are_given_twice_are_joined():
    line = ["report", "net.onnx", "cat.jpg", "--method", "grad-cam", "--method", "smoothgrad,grad-cam"]
    arguments = cli._parser().parse_args([*line, "--rule", "vanilla"])
    assert arguments.method == ("grad-cam", "smoothgrad")
    assert arguments.rule == ("vanilla",)  # in place of the default


def test_every_option_says_what_it_is():
    for name, command in commands().items():
        for action in command._actions:
            assert action.help or action.dest in ("model", "models", "image"), (name, action)


def test_help_promises_no_more_than_is_true(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "rests on" not in text
    assert "hardly depend on the class" in text


def test_completion(capsys):
    pytest.importorskip("shtab", reason="shtab is not installed; the extra completion has it")
    for shell in ("bash", "zsh", "fish"):
        with pytest.raises(SystemExit) as error:
            run("--print-completion", shell)
        assert error.value.code == 0
        assert "skip-broken" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        run("--print-completion", "dos")
    assert error.value.code == 2
    assert "choose of bash, zsh, tcsh, fish" in capsys.readouterr().err


def test_bash_completes_options_and_files(tmp_path):
    pytest.importorskip("shtab", reason="shtab is not installed; the extra completion has it")
    bash = shutil.which("bash") or pytest.skip("there is no bash")
    script = """eval "$("$1" -m gbp --print-completion bash)"
    COMP_WORDS=(gbp explain --skip); COMP_CWORD=2; _shtab_gbp; echo "${COMPREPLY[@]}"
    COMP_WORDS=(gbp wa); COMP_CWORD=1; _shtab_gbp; echo "${COMPREPLY[@]}"
    COMP_WORDS=(gbp explain --style g); COMP_CWORD=3; _shtab_gbp; echo "${COMPREPLY[@]}"
    COMP_WORDS=(gbp explain netw); COMP_CWORD=2; _shtab_gbp; echo "${COMPREPLY[@]}"
    """
    (tmp_path / "network.onnx").touch()
    done = subprocess.run(
        [bash, "-c", script, "bash", sys.executable],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])},
        cwd=tmp_path,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["--skip-broken", "warmup", "gray", "network.onnx"], "")


def test_fish_completes_options_and_files(tmp_path, capsys):
    pytest.importorskip("shtab", reason="shtab is not installed; the extra completion has it")
    fish = shutil.which("fish") or pytest.skip("there is no fish")
    with pytest.raises(SystemExit):
        run("--print-completion", "fish")
    (tmp_path / "gbp.fish").write_text(capsys.readouterr().out)
    (tmp_path / "network.onnx").touch()
    lines = ("gbp explain --skip", "gbp wa", "gbp explain --style g", "gbp explain netw")
    script = "source gbp.fish;" + "".join(f"complete -C {line!r};" for line in lines)
    done = subprocess.run([fish, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    found = [line.split()[0] for line in done.stdout.splitlines()]
    assert (found, done.stderr) == (["--skip-broken", "warmup", "gray", "network.onnx"], "")


def test_an_unknown_option_is_refused_by_its_command(capsys):
    with pytest.raises(SystemExit) as error:
        run("explain", "demo.onnx", "demo.png", "--smoth", "3")
    assert error.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("usage: gbp explain ")
    assert said.endswith("gbp explain: error: unrecognized arguments: --smoth 3. Did you mean --smooth?")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["explian"], "argument COMMAND: 'explian' is not known. Did you mean explain?"),
        (["explain", "n", "i", "--rule", "guided,lrp"], "Did you mean lrp-epsilon or lrp-epsilon-plus?"),
        (["explain", "n", "i", "--rule", "guided-backprop"], "Did you mean guided?"),
        (["explain", "n", "i", "--rule", "GradCAM"], "Did you mean --method grad-cam?"),
        (["net.onnx", "cat.png"], "'net.onnx' is a model. Name a command before it, such as gbp explain."),
        (["explain", "n", "i", "--method", "GradCAM"], "Did you mean grad-cam or "),
        (["sanity", "n", "i", "--layers", "last"], "argument --layers: 'last' is not a whole number."),
        (["explain", "n", "i", "--style", "best"], "'best' is not known. Supported: overlay, diverging,"),
    ],
)
def test_an_unknown_name_is_refused_with_those_like_it(capsys, arguments, hint):
    """In few lines: the usage holds only what must be given."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert hint in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    "command",
    [
        ["explain", "n", "i"],
        ["batch", "n", "i"],
        ["features", "n", "i", "--layer", "l"],
        ["report", "n", "i"],
        ["sanity", "n", "i"],
    ],
    ids=lambda command: command[0],
)
def test_what_is_written_has_a_name(capsys, command):
    """-o "$OUT" of an unset variable does not mean the current folder."""
    with pytest.raises(SystemExit) as error:
        run(*command, "-o", "")
    assert error.value.code == 2
    assert "argument -o/--out: the name is empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*command, "-o", "-")
    assert "-o/--out: nothing is written to the standard output: name a file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*command, "-o", "s3://bucket/name")
    assert "-o/--out: nothing is written to the network: name a file" in capsys.readouterr().err


def test_without_arguments_the_help_is_printed(capsys):
    with pytest.raises(SystemExit) as error:
        run()
    assert error.value.code == 2
    assert "Begin with gbp init MODEL.onnx PHOTO" in " ".join(capsys.readouterr().err.split())


def test_the_caution_of_a_rule_is_printed_once(capsys):
    assert run("explain", "net.onnx", "cat.jpg", "dog.jpg") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(f"note on guided: {RULES['guided'].caution}") == 1


def test_a_method_under_a_rule_has_the_caution_of_the_rule():
    command = ["explain", "net.onnx", "cat.jpg", "--method", "smoothgrad"]
    assert cautions_of(cli._parser().parse_args(command)) == {}
    guided = cli._parser().parse_args([*command, "--rule", "guided"])
    assert cautions_of(guided) == {"guided": RULES["guided"].caution}


def test_all_options_are_explained():
    """Every command has a description and two examples, and every argument a help text."""
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        assert command.description, name
        assert len(command.epilog.splitlines()) >= 3, name
        for action in command._actions:
            assert action.help, (name, action.dest)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explain"],
        ["explain", "net.onnx"],
        ["explain", "net.onnx", "cat.jpg", "--rule", "best"],
        ["explain", "net.onnx", "cat.jpg", "--rule", "guided,best"],
        ["explain", "net.onnx", "cat.jpg", "--resize", "squeeze"],
        ["explain", "net.onnx", "cat.jpg", "--crop", "much"],
        ["explain", "net.onnx", "cat.jpg", "--scale", "1/0"],
        ["explain", "net.onnx", "cat.jpg", "--mean", "a,b"],
        ["explain", "net.onnx", "cat.jpg", "--size", "4x"],
        ["explain", "net.onnx", "cat.jpg", "--memory", "M"],
        ["explain", "net.onnx", "cat.jpg", "--memory", "1.5T"],
        ["warmup"],
        ["unknown"],
    ],
)
def test_usage_errors(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    assert "usage: gbp" in capsys.readouterr().err


def test_interrupt(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeExplainer, "explain", interrupted)
    assert run("explain", "net.onnx", "cat.jpg") == 130


# --------------------------------------------------------------------------------------------- inspect


def test_inspect_fits_80_columns(capsys):
    assert run("inspect", "net.onnx") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["layer", "op,", "plan", "output", "params", "MACs"]
    for part in ("…", "Conv", "1×64×112×112", "9.41k", "118M"):
        assert part in lines[1]
    assert "2 layers, 9.41k parameters, 118M MACs" in lines
    assert "input data (N, 3, 224, 224), output fc (N, 1000)" in lines


def test_inspect_lists_what_is_unsupported(capsys):
    assert run("inspect", "odd.onnx") == 2
    out = capsys.readouterr().out
    assert "unsupported: LSTM 'rnn'" in out
    assert "note: It has no batch axis." in out
    assert "what to do: Do without." in out
    assert max(map(len, out.splitlines())) <= 80


def test_inspect_json(capsys):
    assert run("inspect", "net.onnx", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layers"][0]["shape"] == [1, 64, 112, 112]
    assert report["unsupported"] == []


def test_inspect_refuses(capsys):
    assert "Conv 'conv1'" in refused(capsys, "inspect", "damaged.onnx")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (999_999, "1M"), (1234, "1.23k")],
)
def test_counts(number, text):
    assert _count(number) == text


# ---------------------------------------------------------------------------------------- the program


def test_choices_are_those_of_the_library():
    assert get_args(Style) == options.STYLES


def test_version(capsys):
    with pytest.raises(SystemExit) as error:
        run("--version")
    assert error.value.code == 0
    assert capsys.readouterr().out == f"gbp {__version__}\n"


def test_importing_the_command_line_is_light():
    code = "import sys, gbp.cli.main; print([m for m in ('numba', 'onnx') if m in sys.modules])"
    root = Path(cli.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("size", [1, 10**6])
def test_output_that_cannot_be_written_is_an_error(size):
    """The print itself fails for long outputs, and the flush in the end for short ones."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    code = (
        "import sys, types; from gbp.cli import main as cli; name = 'gbp.diagnostics.inspection';"
        "engine = types.ModuleType(name); sys.modules[name] = engine;"
        f"engine.inspect = lambda *_, **__: print('x' * {size});"
        "sys.exit(cli.main(['inspect', 'net.onnx']))"
    )
    root = Path(cli.__file__).parents[2]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=root,
            text=True,
            check=False,
        )
    said = "gbp: error: cannot write the output: No space left on device.\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of Unix")
def test_closed_streams_are_empty_files(tmp_path):
    """A daemon, or a shell with `>&-`, starts programs without one of the three."""
    root, picture = Path(cli.__file__).parents[2], tmp_path / "o.png"
    gbp = [sys.executable, "-m", "gbp", "explain", "models/demo.onnx"]
    for stream, image, code in ((">&-", "models/demo.png", 0), ("2>&-", "no.png", 2), ("<&-", "-", 2)):
        arguments = [*gbp, image, "-q", "-o", str(picture)]
        done = subprocess.run(["sh", "-c", f'"$@" {stream}', "sh", *arguments], cwd=root, check=False)
        assert done.returncode == code
    assert picture.exists()


def test_a_closed_pipe_is_no_error():
    code = (
        "import sys, types; from gbp.cli import main as cli; name = 'gbp.diagnostics.inspection';"
        "engine = types.ModuleType(name); sys.modules[name] = engine;"
        "engine.inspect = lambda *_, **__: print('x' * 10**6);"
        "sys.exit(cli.main(['inspect', 'net.onnx']))"
    )
    root = Path(cli.__file__).parents[2]
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    )
    program.stdout.close()
    assert (program.wait(timeout=300), program.stderr.read()) == (141, b"")
    program.stderr.close()
