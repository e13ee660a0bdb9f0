"""Features: receptive fields, the strongest units, and runs that were stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from gbp import Explainer, InputError
from gbp.cli import main as cli
from gbp.features import project, scan
from gbp.features.features import features
from gbp.features.field import field_of
from gbp.features.strongest import Strongest
from gbp.importer.batch_axis import settled
from gbp.importer.load import open_model

MODELS = Path(__file__).parent.parent / "models"
DEMO = MODELS / "demo.onnx"


# --------------------------------------------------------------------------------------- receptive fields


def seen(model: onnx.ModelProto, tensor: str, unit: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    return field_of(settled(open_model(model), (1, *shape))[1], tensor, unit)


def support(model: onnx.ModelProto, unit: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Where the gradient of a unit of the output is not 0, as a range for each axis; () where it is."""
    explainer = Explainer(model)
    x = np.random.default_rng(0).uniform(1, 2, (1, *shape)).astype(np.float32)
    with explainer.run(x) as run:
        seed = np.zeros((1, *run.score_shape), np.float32)
        seed[(0, *unit)] = 1
        gradient = run.vjp(seed.reshape(1, -1))[0]
    return tuple((int(a.min()), int(a.max()) + 1) for a in np.nonzero(gradient) if a.size)


def positive(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights above 0, in which no path cancels another."""
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 2:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.abs(values) + np.float32(0.1), tensor.name))
    return model


LAYERS: dict[str, Callable[[Builder, str], str]] = {
    "conv": lambda b, x: b.conv(x, 3, pads=[1] * 4),
    "wide": lambda b, x: b.conv(x, 3, (1, 5), pads=[0, 2, 0, 2]),
    "strided": lambda b, x: b.conv(x, 3, strides=[2, 2], pads=[0, 1, 1, 0]),
    "dilated": lambda b, x: b.conv(x, 3, dilations=[2, 1], pads=[2, 1, 2, 1]),
    "pool": lambda b, x: b.node("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "relu": lambda b, x: b.relu(x),
    "skip": lambda b, x: b.add(x, b.conv(x, b.shapes[x][1], pads=[1] * 4)),
    "concat": lambda b, x: b.concat(b.conv(x, 2, 1), b.conv(x, 2, pads=[1] * 4)),
    "rows": lambda b, x: b.concat(b.conv(x, 2, 1), b.conv(x, 2, pads=[1] * 4), axis=2),
    "pad": lambda b, x: b.pad(x, [0, 0, 1, 0, 0, 0, 0, 2]),
    "upsampled": lambda b, x: b.conv_transpose(x, 3, strides=[2, 2], pads=[1] * 4),
    "batch norm": lambda b, x: b.node(
        "Mul", x, b.constant(np.full((1, b.shapes[x][1], 1, 1), 2, np.float32))
    ),
    "turned": lambda b, x: b.transpose(b.conv(b.transpose(x, 0, 1, 3, 2), 3, (3, 1)), 0, 1, 3, 2),
}


@settings(max_examples=40)
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_field_is_where_the_gradient_can_reach(names: list[str], random: Any) -> None:
    b = Builder()
    x = b.input(1, 2, 13, 14)
    for name in names:
        if min(b.shapes[x][2:]) < 4:
            break
        x = LAYERS[name](b, x)
    model = positive(b.model(x))
    unit = tuple(random.randrange(n) for n in b.shapes[x][1:])
    found = seen(model, x, unit, (2, 13, 14))
    clipped = tuple((max(0, a), min(n, z)) for (a, z), n in zip(found, (2, 13, 14), strict=True))
    reach = support(model, unit, (2, 13, 14)) or clipped
    assert all(a <= c and d <= z for (a, z), (c, d) in zip(clipped, reach, strict=True))
    # Exactly so, but where a unit sees pixels with gaps, padding alone, or through one channel more.
    if {*names} <= {"conv", "wide", "strided", "pool", "relu", "skip", "batch norm", "turned"}:
        assert clipped[1:] == reach[1:]


def test_units_at_a_border_see_as_much_as_others() -> None:
    b = Builder()
    x = b.conv(b.conv(b.input(1, 1, 20, 20), 2, pads=[1] * 4), 2, pads=[1] * 4)
    model = b.model(x)
    assert seen(model, x, (0, 0, 19), (1, 20, 20)) == ((0, 1), (-2, 3), (17, 22))
    assert seen(model, x, (1, 10, 10), (1, 20, 20)) == ((0, 1), (8, 13), (8, 13))


def test_what_mixes_all_axes_sees_everything() -> None:
    b = Builder()
    x = b.head(b.relu(b.conv(b.input(1, 1, 8, 9), 2)), 3)
    assert seen(b.model(x), x, (2,), (1, 8, 9)) == ((0, 1), (0, 8), (0, 9))


def test_a_dense_layer_and_channels_that_are_last() -> None:
    b = Builder()
    y = b.transpose(b.conv(b.transpose(b.input(1, 9, 9, 3), 0, 3, 1, 2), 4), 0, 2, 3, 1)
    assert seen(b.model(y), y, (2, 3, 1), (9, 9, 3)) == ((2, 5), (3, 6), (0, 3))


# ------------------------------------------------------------------------------------------ strongest units


def test_the_strongest_units_are_those_of_a_sort() -> None:
    rng = np.random.default_rng(0)
    planes = rng.integers(-3, 9, (40, 5, 3, 4)).astype(np.float32)
    names = [f"i{k}" for k in range(40)]
    for size in (1, 7, 40):
        strongest = Strongest((3, 1), top=6)
        for k in range(0, 40, size):
            strongest.add(planes[k : k + size], names[k : k + size])
        for channel in (3, 1):
            values = planes[:, channel].reshape(40, -1).max(1)
            order = np.argsort(-values, kind="stable")[:6]
            assert [hit.image for hit in strongest.hits[channel]] == [names[k] for k in order]
            for hit, k in zip(strongest.hits[channel], order, strict=True):
                assert hit.value == planes[(k, channel, *hit.at)] == values[k]
        assert Strongest.from_dict(json.loads(json.dumps(strongest.to_dict())), 6).hits == strongest.hits


def test_a_dead_channel_has_no_hits() -> None:
    strongest = Strongest((0, 1), top=3)
    strongest.add(np.float32([[[0, -1], [2, 0]]]), ["a"])
    assert strongest.hits[0] == []
    assert strongest.hits[1][0].at == (0,)


# ----------------------------------------------------------------------------------------------- the command


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve scenes of the demo model."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for scene in sorted((MODELS / "scenes").glob("*.png")):
        if "mask" not in scene.stem:
            shutil.copy(scene, folder)
    return folder


def run(photos: Path, out: Path, *options: str) -> int:
    model = photos.parent / "demo.onnx"
    if not model.exists():
        shutil.copy(DEMO, model)
        shutil.copy(DEMO.with_suffix(".toml"), photos.parent)
    chosen = ["--layer", "relu3", "--channels", "2,5-6", "--top", "4", *options]
    return cli.main(["features", str(model), str(photos), *chosen, "-o", str(out)])


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


def test_pictures_an_index_and_numbers(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "relu3: 12 images" in printed
    assert "a unit sees 18×18 pixels" in printed
    told = json.loads((tmp_path / "out/features.json").read_text())
    explainer = Explainer(DEMO)
    with explainer.run(sorted(photos.iterdir()), keep=["relu3"]) as whole:
        planes = whole.value("relu3")
    for channel in (2, 5, 6):
        values = planes[:, channel].reshape(12, -1).max(1)
        hits = told["channels"][str(channel)]
        order = [k for k in np.argsort(-values, kind="stable")[:4] if values[k] > 0]
        assert [Path(hit["image"]).name for hit in hits] == [sorted(photos.iterdir())[k].name for k in order]
        assert [hit["value"] for hit in hits] == [float(values[k]) for k in order]
        assert (tmp_path / f"out/channel-{channel}.png").exists() is bool(hits)
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<figure") == page.count('<a href="#channel-') == 3
    assert "http" not in page
    for channel, hits in told["channels"].items():  # the place of what is not loaded yet is kept
        if hits:
            with Image.open(tmp_path / f"out/channel-{channel}.png") as picture:
                assert f'width="{picture.width}" height="{picture.height}"' in page


def test_a_projection_is_the_reverse_pass_of_one_unit_cut_to_its_field(photos: Path, tmp_path: Path) -> None:
    found = features(DEMO, photos, tmp_path / "out", layer="relu3", channels=[6], top=1, part="field")
    (hit,) = found.hits[6]
    explainer = Explainer(DEMO)
    with explainer.run([hit.image], keep=["relu3"]) as one:
        seed = np.zeros_like(one.value("relu3"))
        seed[(0, 6, *hit.at)] = hit.value
        m = one.vjp(seed, rule="deconvnet", of="relu3")[0]
    graph = settled(open_model(DEMO), (1, 3, 96, 96))[1]
    _, (top, bottom), (left, right) = field_of(graph, "relu3", (6, *hit.at))
    inside = m[:, max(0, top) : bottom, max(0, left) : right]
    assert np.abs(inside).sum() == pytest.approx(np.abs(m).sum())
    assert (bottom - top, right - left) == found.field


def test_a_run_that_was_stopped_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(photos, tmp_path / "whole") == 0
    monkeypatch.setattr(scan, "CHUNK", 4)
    monkeypatch.setattr(scan, "_OFTEN", -1.0)

    def stop(done: int, total: int) -> None:
        looked.append(done)
        if done == 8 and len(looked) < 4:
            raise KeyboardInterrupt

    looked: list[int] = []
    model = photos.parent / "demo.onnx"
    arguments: dict[str, Any] = {"layer": "relu3", "channels": [2, 5, 6], "top": 4, "progress": stop}
    with pytest.raises(KeyboardInterrupt):
        features(model, photos, tmp_path / "out", **arguments)
    found = features(model, photos, tmp_path / "out", **arguments)
    assert looked == [0, 4, 8, 8, 12]
    assert found.before == 8
    parts, whole = content(tmp_path / "out"), content(tmp_path / "whole")
    assert {k: v for k, v in parts.items() if k != "batch.json"} == {
        k: v for k, v in whole.items() if k != "batch.json"
    }
    assert features(model, photos, tmp_path / "out", **arguments).before == 12
    with pytest.raises(InputError, match="top is 5 and was 4"):
        features(model, photos, tmp_path / "out", **arguments | {"top": 5})
    (photos / "later.png").write_bytes((MODELS / "demo.png").read_bytes())
    more = features(model, photos, tmp_path / "out", **arguments)
    assert (more.before, more.images) == (12, 13)
    (photos / "0.png").write_bytes((MODELS / "demo.png").read_bytes())
    with pytest.raises(InputError, match="begun for other images"):
        features(model, photos, tmp_path / "out", **arguments)


def test_names_that_are_no_text(photos: Path, tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(next(photos.glob("*.png")), image)
    features(DEMO, image, tmp_path / "out", layer="relu3", channels=[6], top=1)
    assert "caf\\xe9.png" in (tmp_path / "out" / "index.html").read_text()


def test_a_broken_image_is_left_out_and_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "0.png").write_bytes(b"no picture")
    assert run(photos, tmp_path / "out", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    (name,) = told["failed"]
    assert name.endswith("0.png")
    assert len(told["hits"]["6"]) == 4


def test_a_dense_layer_has_channels_too(photos: Path, tmp_path: Path) -> None:
    found = features(DEMO, photos, tmp_path / "out", layer="relu_fc", channels=[0, 1], top=2)
    assert found.field == (96, 96)
    hits = found.hits[0] or found.hits[1]
    assert hits[0].at == ()


def test_fields_larger_than_the_image_are_drawn_alike(tmp_path: Path) -> None:
    b = Builder()
    x = b.input(1, 3, 12, 12)
    for _ in range(2):
        x = b.relu(b.conv(x, 4, 9, pads=[4] * 4))
    onnx.save(b.model(b.head(x)), tmp_path / "wide.onnx")
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / f"{k}.png")
    for part in ("effective", "field"):
        found = features(
            tmp_path / "wide.onnx", tmp_path, tmp_path / part, layer=x, top=6, part=part, preprocess="unit"
        )
        assert found.field == (17, 17)
        assert len({hit.at for hits in found.hits.values() for hit in hits}) > 3
        assert list((tmp_path / part).glob("channel-*.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "nothing"}, "no tensor"),
        ({"channels": [64]}, "64 is no channel.*0 to 63"),
        ({"channels": []}, "no channels"),
        ({"top": 0}, "top is 0"),
        ({"rule": "inverse"}, "no rule"),
        ({"part": "round"}, "part is 'round'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    photos: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        features(DEMO, photos, tmp_path / "out", **{"layer": "relu3"} | options)
    assert not (tmp_path / "out").exists()


def test_rows_of_numbers_have_no_pictures(tmp_path: Path) -> None:
    b = Builder()
    onnx.save(b.model(b.gemm(b.relu(b.gemm(b.input(1, 9), 20)), 3)), tmp_path / "rows.onnx")
    np.save(tmp_path / "x.npy", np.zeros((9,), np.float32))
    with pytest.raises(InputError, match="takes no images"):
        features(tmp_path / "rows.onnx", tmp_path / "x.npy", tmp_path / "out", layer="relu1")


def test_arrays_are_drawn_without_patches(tmp_path: Path) -> None:
    for k in range(2):
        np.save(tmp_path / f"{k}.npy", np.random.default_rng(k).normal(size=(3, 96, 96)).astype(np.float32))
    found = features(DEMO, [tmp_path / "0.npy", tmp_path / "1.npy"], tmp_path / "out", layer="relu2", top=2)
    channel = next(channel for channel, hits in found.hits.items() if hits)
    with Image.open(tmp_path / f"out/channel-{channel}.png") as picture:
        assert picture.width > 600


def array(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def test_the_effective_part_is_the_smallest_square_in_the_middle() -> None:
    m = array(1, 9, 9)
    m[0, 4, 4], m[0, 4, 6] = 8, 2
    assert project._share(m) == pytest.approx(5 / 9, abs=0.12)
    m[0, 4, 6] = 0.5
    assert project._share(m) <= 1 / 9
    assert project._share(array(1, 3, 3)) == 1
    assert project._middle(m, (3, 5)).shape == (1, 3, 5)
    assert project._middle(m, (3, 5))[0, 1, 2] == 8
