"""`gbp init`, and what a file suggests of how it wants its images."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from PIL import Image

from gbp import Explainer, InputError, ModelError
from gbp.cli import main as cli
from gbp.diagnostics.verify import verify
from gbp.pictures.sidecar import read_sidecar

MODELS = Path(__file__).resolve().parent.parent / "models"


def model(*nodes: tuple[str, Any], **metadata: str) -> onnx.ModelProto:
    """A network whose first nodes are these, each with a constant, and that has this metadata."""
    b = Builder(opset=13)
    x = b.input(1, 3, 8, 8)
    for op, value in nodes:
        x = b.node(op, x, b.constant(np.float32(value)))
    made = b.model(b.gemm(b.flatten(b.relu(b.conv(x, 4))), 3))
    for key, value in metadata.items():
        made.metadata_props.add(key=key.replace("__", "."), value=value)
    return made


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (model(), ""),
        (model(("Sub", 123.7)), "subtracts 123.7.*'raw'"),
        (model(("Sub", [[[0.485]], [[0.456]], [[0.406]]])), "subtracts 0.449.*'unit'"),
        (model(("Div", 255.0)), "divides by 255.*'raw'"),
        (model(("Mul", 1 / 255)), "multiplies by 0.003922.*'raw'"),
        (model(("Mul", 2.0)), ""),
        (model(Image__NominalPixelRange="Normalized_0_1"), "metadata suggest preprocess='unit'"),
        (
            model(Image__NominalPixelRange="NominalRange_0_255", Image__BitmapPixelFormat="Bgr8"),
            r"'raw' with blue first \(bgr\)",
        ),
        (model(stride="32", names="{}", imgsz="[640, 640]"), "YOLO.*'unit'.*'fit'"),
    ],
)
def test_what_a_file_suggests(made: onnx.ModelProto, says: str) -> None:
    explainer = Explainer(made)
    if not says:
        assert explainer.suggestion == ""
        return
    with pytest.raises(InputError, match=says):  # offered, and not taken
        explainer.explain(Image.new("RGB", (8, 8)))
    assert Explainer(made, preprocess="unit").explain(Image.new("RGB", (8, 8))).scores.shape == (1, 3)


def test_a_normalisation_stored_in_another_file_is_read_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a file of that name in the current folder, which a stranger's model must not open."""
    path, elsewhere = tmp_path / "net.onnx", tmp_path / "elsewhere"
    onnx.save(model(("Sub", 123.7)), path, save_as_external_data=True, location="w", size_threshold=0)
    elsewhere.mkdir()
    (elsewhere / "w").write_bytes(bytes(2**12))
    monkeypatch.chdir(elsewhere)
    assert "subtracts 123.7" in Explainer(path).suggestion
    assert verify(path, np.ones((1, 3, 8, 8), np.float32)).verified


def test_a_damaged_normalisation_is_refused() -> None:
    made = model(("Sub", 123.7))
    made.graph.initializer[0].raw_data = b"abc"
    with pytest.raises(ModelError, match=r"tensor .c"):
        Explainer(made)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(MODELS / "demo.onnx", "net.onnx")
    shutil.copy(MODELS / "demo.png", "a.png")
    return tmp_path


def test_every_preset_is_tried_and_the_choice_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("names.txt").write_text("\n".join(f"thing {i}" for i in range(12)))
    options = ["--labels", "names.txt", "--preprocess", "unit", "--resize", "fit"]
    assert cli.main(["init", "net.onnx", "a.png", *options]) == 0
    out = capsys.readouterr().out
    for preset in ("imagenet", "caffe", "tf", "unit", "raw"):
        assert re.search(rf"^{preset} \(.+\):$", out, re.MULTILINE)
    assert out.count("thing") == 5 * 5
    assert "--labels" not in out
    sidecar = read_sidecar("net.onnx")
    assert sidecar.preprocess is not None
    assert sidecar.preprocess.resize == "fit"
    assert sidecar.preprocess.scale == 1 / 255
    assert sidecar.labels is not None
    assert sidecar.labels[3] == "thing 3"
    assert cli.main(["explain", "net.onnx", "a.png"]) == 0
    before = Path("net.toml").read_text()
    assert cli.main(["init", "net.onnx", "a.png", "--preprocess", "tf"]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("net.toml").read_text() == before
    assert cli.main(["init", "net.onnx", "a.png", "--preprocess", "tf", "--force"]) == 0
    assert 'preset = "tf"' in Path("net.toml").read_text()


def test_nothing_is_chosen_in_silence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "net.onnx", "a.png"]) == 2
    said = capsys.readouterr()
    assert "nothing was chosen" in said.err
    assert "--labels names the classes: a file with one a line, or imagenet" in said.out
    assert not Path("net.toml").exists()
    assert cli.main(["init", "net.onnx", "a.png", "--preprocess", "best"]) == 2
    Path("elsewhere").mkdir()
    shutil.move("net.onnx", "elsewhere")
    Path("names.txt").write_text("a\nb")
    assert (
        cli.main(["init", "elsewhere/net.onnx", "a.png", "--labels", "names.txt", "--preprocess", "tf"]) == 2
    )
    assert "outside" in capsys.readouterr().err


def test_presets_of_colours_are_left_out_for_grey_pictures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = Builder(opset=13)
    made = b.model(b.gemm(b.flatten(b.relu(b.conv(b.input(1, 1, 8, 8), 4))), 1))
    onnx.save(made, "grey.onnx")
    assert cli.main(["init", "grey.onnx", "a.png", "--preprocess", "unit"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+): left out", out, re.MULTILINE) == ["imagenet", "caffe"]
    assert re.findall(r"^(\w+) \(.+\):$", out, re.MULTILINE) == ["tf", "unit", "raw"]
    assert read_sidecar("grey.onnx").preprocess is not None
    assert cli.main(["explain", "grey.onnx", "a.png"]) == 0
    assert "explained by guided: class 0\n" in capsys.readouterr().out


def test_labels_whose_name_toml_cannot_hold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"names\xe9.txt")
    Path(name).write_text("\n".join(f"thing {i}" for i in range(12)))
    assert cli.main(["init", "net.onnx", "a.png", "--labels", name, "--preprocess", "tf"]) == 2
    assert "no UTF-8" in capsys.readouterr().err
    assert not Path("net.toml").exists()
