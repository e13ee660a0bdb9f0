"""Attributions: reductions, names, pictures, files."""

from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gbp import Explainer
from gbp.errors import InputError
from gbp.pictures.figure import Picture, Text
from gbp.pictures.files import check_path, save_picture
from gbp.pictures.look import Look
from gbp.pictures.preprocess import Preprocess
from gbp.questions.head import Head
from gbp.result.attribution import Attribution
from gbp.result.doubts import doubted
from gbp.result.figures import figure_of, rules_figure
from gbp.result.strips import save_rules

DEMO = Path(__file__).parents[1] / "models" / "demo.onnx"
STYLES = ("overlay", "diverging", "gray", "rgb", "strip")


def make(n=2, c=3, *, h=6, w=5, k=None, layout="NCHW", images=True, **fields):
    """Make an attribution of random numbers; K targets when `k` is given."""
    rng = np.random.default_rng(n * 100 + h)
    shape = (n, *(() if k is None else (k,)), c, h, w)
    m = rng.normal(size=shape).astype(np.float32)
    scores = rng.normal(size=(n, 7)).astype(np.float32)
    target = scores.argmax(1) if k is None else np.argsort(-scores, axis=1)[:, :k]
    seen = tuple(Image.new("RGB", (w, h), (i, 90, 200)) for i in range(n)) if images else None
    m = np.moveaxis(m, -3, -1) if layout == "NHWC" else m
    return Attribution(m, scores, target, "guided", layout=layout, images=seen, **fields)


# ---------------------------------------------------------------------------------------------- reduce

LAWS = {
    "abs-max": lambda pixel: max(abs(v) for v in pixel),
    "abs-mean": lambda pixel: sum(abs(v) for v in pixel) / len(pixel),
    "positive": lambda pixel: sum(v for v in pixel if v > 0),
    "negative": lambda pixel: sum(-v for v in pixel if v < 0),
    "norm": lambda pixel: sum(v * v for v in pixel) ** 0.5,
    "sum": sum,
}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(LAWS)),
    st.tuples(*[st.integers(1, 4)] * 4),
    st.sampled_from([None, 1, 3]),
    st.sampled_from(["NCHW", "NHWC"]),
)
def test_reduce_by_definition(how, sizes, k, layout):
    n, c, h, w = sizes
    a = make(n, c, h=h, w=w, k=k, layout=layout)
    reduced = a.reduce(how)
    assert reduced.shape == ((n, h, w) if k is None else (n, k, h, w))
    assert reduced.dtype == np.float32
    last = a.map if layout == "NHWC" else np.moveaxis(a.map, -3, -1)
    want = np.apply_along_axis(lambda pixel: float(LAWS[how](pixel.tolist())), -1, last)
    np.testing.assert_allclose(reduced, want, rtol=1e-5, atol=1e-6)


def test_norm_survives_tiny_gradients():
    tiny = Attribution(
        np.full((1, 4, 1, 1), 1e-30, np.float32), np.zeros((1, 2)), np.zeros(1, np.int64), "vanilla"
    )
    np.testing.assert_allclose(tiny.reduce("norm"), 2e-30, rtol=1e-5)


def test_reduce_refuses():
    with pytest.raises(InputError, match=r"'max'.*abs-max"):
        make().reduce("max")
    m, scores = np.ones((1, 3, 4, 5, 6)), np.ones((1, 2))
    volume = Attribution(m, scores, np.zeros(1, np.int64), "guided", layout="ND")
    for call in (volume.reduce, volume.gray, volume.strip, volume[0].rgb):
        with pytest.raises(InputError, match="not an image"):
            call()


@pytest.mark.parametrize(("layout", "shape", "plane"), [("NC", (9,), (1, 9)), ("NCL", (4, 9), (4, 9))])
def test_rows_and_series_are_planes(layout, shape, plane):
    m = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    images = (Image.new("L", plane[::-1]),) * 2
    a = Attribution(m, np.ones((2, 2)), np.zeros(2, np.int64), "guided", layout=layout, images=images)
    np.testing.assert_array_equal(a.reduce(), np.abs(m).reshape(2, *plane))
    assert a[1].gray().size == a[0].diverging().size == a[0].overlay().size == plane[::-1]
    assert min(a[0].strip().size) > 100  # a row of one pixel is enlarged
    several = Attribution(m[:, None], np.ones((2, 2)), np.zeros((2, 1), np.int64), "guided", layout=layout)
    np.testing.assert_array_equal(several.reduce("sum"), m.reshape(2, 1, *plane))


# ---------------------------------------------------------------------------------------------- scores


def test_labels_and_top():
    a = make(k=2, labels=tuple("abcdefg"))
    order = np.argsort(-a.scores[1])
    assert a[1].only(int(order[1])).label() == "abcdefg"[order[1]]
    with pytest.raises(InputError, match="2 classes were explained"):
        a[1].label()
    with pytest.raises(InputError, match=f"class {order[5]} was not explained"):
        a[1].only(int(order[5]))
    assert a[1].top(3) == [(int(i), "abcdefg"[i], float(a.scores[1, i])) for i in order[:3]]
    assert len(a[0].top(50)) == 7
    assert make()[0].label() == f"class {make().target[0]}"
    assert make(labels=())[0].label().startswith("class ")


def test_it_is_a_sequence_of_samples():
    a = make(3, k=2, labels=tuple("abcdefg"))
    assert len(a) == len(list(a)) == 3
    for i, sample in enumerate(a):
        np.testing.assert_array_equal(sample.map, a.map[i])
        np.testing.assert_array_equal(sample.scores, a.scores[i])
        np.testing.assert_array_equal(sample.target, a.target[i])
        assert sample.image is a.images[i]
        assert [one.target for one in sample.each_target()] == a.target[i].tolist()
    np.testing.assert_array_equal(a[-1].map, a.map[2])
    assert [sample.top(1) for sample in a[1:]] == [a[1].top(1), a[2].top(1)]
    with pytest.raises(IndexError):
        a[3]
    with pytest.raises(InputError, match=r"3 samples.*result\[0\]"):
        a.overlay()
    assert make(1).overlay().tobytes() == make(1)[0].overlay().tobytes()
    assert "3 samples, 2 targets" in repr(a)
    assert len(repr(a[0])) < 80


def test_what_a_notebook_shows():
    one, several = make(1), make(3)
    assert one._repr_png_().startswith(b"\x89PNG")
    assert one._repr_html_() is None
    assert several._repr_png_() is None
    shown = several._repr_html_()
    assert shown.count(' alt="&lt;Sample: ') == shown.count("<img") == 3


def test_to_dict():
    a = make(1, labels=tuple("abcdefg"), head=Head("Softmax", (7,), (0,)))
    told = json.loads(json.dumps(a.to_dict()))
    assert told["rule"] == "guided"
    assert [row["class"] for row in told["top"]] == [c for c, _, _ in a.top(5)]
    assert told["explained"][0] == told["top"][0]
    assert told["top"][0]["probability"] == pytest.approx(float(a.probabilities.max()))
    assert make(1).to_dict()["top"][0]["probability"] is None


def test_top_breaks_ties_by_class():
    a = Attribution(np.zeros((1, 1, 1, 1)), np.float32([[1, 3, 3, 0]]), np.array([1]), "guided")
    assert [number for number, _, _ in a.top(4)] == [1, 2, 0, 3]


def test_probabilities():
    head = Head("Softmax", (7,), (0,))
    a = make(head=head)
    weight = np.exp(a.scores.astype(np.float64))
    np.testing.assert_allclose(a.probabilities, weight / weight.sum(1, keepdims=True), rtol=1e-6)
    again = Attribution(a.map, a.probabilities, a.target, "guided", head=Head("", (7,)))
    assert again.probabilities is again.scores
    huge = np.float32([[3e38, -3e38]] * 2)
    assert Head("Softmax", (2,), (0,)).probabilities(huge).tolist() == [[1, 0]] * 2
    grid = make(head=Head("Softmax", (7, 1), (1,)))
    assert (grid.probabilities == 1).all()
    with pytest.raises(InputError, match="no head"):
        _ = make().probabilities


# -------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("k", [None, 3])
def test_pictures_have_the_maps_size(k, layout):
    a = make(k=k, layout=layout)
    sample = a[1] if k is None else a[1].each_target()[-1]
    for style, mode in [("overlay", "RGB"), ("diverging", "RGB"), ("gray", "L"), ("rgb", "RGB")]:
        image = getattr(sample, style)()
        assert (image.size, image.mode) == ((5, 6), mode)
        assert min(sample.draw(style).size) > 100, "with captions, and enlarged"
    assert a[1].strip().tobytes() == a[1].draw("strip").tobytes()


def test_layouts_draw_alike():
    for style in STYLES:
        assert make()[0].draw(style).tobytes() == make(layout="NHWC")[0].draw(style).tobytes()


def test_bgr_maps_are_drawn_red_first():
    a = make()
    turned = Attribution(a.map[:, ::-1], a.scores, a.target, "guided", channels="BGR")
    assert turned[0].rgb().tobytes() == a[0].rgb().tobytes()


def pictures_of(figure):
    """The panels of a figure, without their colour bars."""
    return [item for item in figure.items if isinstance(item, Picture) and item.size[1] > 40]


def test_strip_panels():
    def panels(a):
        return len(pictures_of(figure_of(a[0], "strip", Look())))

    assert panels(make(h=96, w=96)) == 4  # input, where, in colour, by sign
    assert panels(make(h=96, w=96, images=False)) == 3
    assert panels(make(c=1, h=96, w=96)) == 3
    assert panels(make(h=96, w=96, k=5)) == 6
    unsigned = make(h=96, w=96)
    assert panels(replace(unsigned, map=np.abs(unsigned.map))) == 3  # input, where, gray: it has no signs
    rules = [make(h=96, w=96)[1], make(h=96, w=96)[1]]
    for style in (None, *STYLES[:-1]):
        assert len(pictures_of(rules_figure(rules, style, Look()))) == 3
    with pytest.raises(InputError, match="no attributions"):
        rules_figure([], None, Look())


def test_several_rules_are_saved(tmp_path):
    save_rules([make()[1], make()[1]], tmp_path / "a.png", "gray")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == rules_figure([make()[1]] * 2, "gray", Look()).image().size
        assert len(json.loads(image.text["gbp"])["maps"]) == 2


@pytest.mark.filterwarnings("error")
def test_all_zero_map_draws():
    a = make()
    zero = Attribution(a.map * 0, a.scores, a.target, "guided", images=a.images)
    for style in STYLES:
        zero[0].draw(style)


def test_single_score_draws():
    a = make()
    Attribution(a.map, a.scores[:, :1], np.zeros(2, np.int64), "guided", images=a.images)[0].strip()


def test_grey_images_are_laid_under():
    a = make()
    grey = tuple(image.convert("L") for image in a.images)
    assert Attribution(a.map, a.scores, a.target, "guided", images=grey)[0].overlay().mode == "RGB"


def test_pictures_refuse():
    for style in STYLES[:-1]:
        with pytest.raises(InputError, match="2 classes were explained"):
            make(k=2)[0].draw(style)
    with pytest.raises(InputError, match="no image to lay"):
        make(images=False)[0].overlay()
    with pytest.raises(InputError, match="no colours"):
        make(c=4)[0].rgb()
    with pytest.raises(InputError, match="unknown style"):
        make()[0].draw("heat")


def test_shared_limit():
    a = make()[0]
    assert a.gray(limit=1e9).getextrema() == (0, 0)
    assert a.gray(limit=1e-9).getextrema()[1] == 255


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.jpeg"])
def test_save_pictures(tmp_path, name, style):
    a = make()
    a[1].save(tmp_path / name, style)
    with Image.open(tmp_path / name) as image:
        assert image.size == a[1].draw(style).size
        assert image.format == ("PNG" if name == "a.png" else "JPEG")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_save_arrays(tmp_path):
    a = make(k=3, notes=("SiLU: its gradient", "ünï"))
    a.save(str(tmp_path / "a.npz"))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        for name in ("map", "scores", "target"):
            np.testing.assert_array_equal(arrays[name], getattr(a, name))
        assert (arrays["rule"].item(), arrays["layout"].item()) == ("guided", "NCHW")
        assert tuple(arrays["notes"].tolist()) == a.notes
    make().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["notes"].shape == (0,)


def test_a_method_is_named_and_its_details_are_kept(tmp_path):
    a = make(method="smoothgrad", details={"samples": 25, "kept": np.array([0.5, 1.0])})
    assert a[1].title == "smoothgrad, guided"
    assert "smoothgrad, guided" in repr(a)
    assert a[1].to_dict()["method"] == "smoothgrad"
    assert a[1].to_dict()["details"] == {"samples": 25, "kept": 1.0}
    assert json.loads(json.dumps(a[1].to_dict())) == a[1].to_dict()
    a.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["method"].item() == "smoothgrad"
        assert json.loads(arrays["details"].item()) == {"samples": 25, "kept": [0.5, 1.0]}
    assert make(method="grad-cam", details={"layer": "relu4"})[0].title == "grad-cam at relu4"
    assert make()[0].title == "guided"
    assert "method" not in make()[0].to_dict()


def test_a_map_of_an_inner_layer_is_drawn_in_squares_over_the_whole_image():
    a = make(1, 4, h=2, w=3)
    a = replace(a, images=(Image.new("RGB", (30, 20), (90, 90, 200)),))
    heat = np.asarray(a.overlay())
    assert heat.shape == (20, 30, 3)
    squares = heat.reshape(2, 10, 3, 10, 3)
    assert (squares == squares[:, :1, :, :1]).all()
    assert len({tuple(colour) for colour in squares[:, 0, :, 0].reshape(6, 3)}) > 3


def test_save_to_a_file_object():
    for format, begins in (("png", b"\x89PNG"), ("jpg", b"\xff\xd8"), ("npz", b"PK")):
        buffer = io.BytesIO()
        make(1).save(buffer, format=format)
        assert buffer.getvalue().startswith(begins)
    with pytest.raises(InputError, match="format"):
        make(1).save(io.BytesIO(), format="gif")


def test_save_refuses_and_leaves_nothing(tmp_path, monkeypatch):
    a = make(1)
    (tmp_path / "folder.png").mkdir()
    for path, says in [
        ("a.gif", "format"),
        ("a", "format"),
        ("nowhere/a.png", "no folder"),
        ("folder.png", "is a folder"),
    ]:
        with pytest.raises(InputError, match=says):
            a.save(tmp_path / path)
    with pytest.raises(InputError, match="not the name of a picture"):
        save_picture(Image.new("L", (2, 2)), tmp_path / "a.npz")
    monkeypatch.setattr(os, "replace", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    (tmp_path / "old.png").write_bytes(b"kept")
    with pytest.raises(InputError, match=r"old.png.*No space left"):
        a.save(tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "old.png"]


def test_an_unwritable_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        make(1).save(tmp_path / ("x" * 300 + ".png"))
    assert list(tmp_path.iterdir()) == []


def test_check_path_takes_bare_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    check_path("a.png")
    make(1).save("a.png")
    assert (tmp_path / "a.png").exists()


def test_pictures_of_arrays_are_made_when_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the samples as they were, though the caller uses the array again."""
    made: list[Any] = []
    original = Preprocess.picture

    def picture(self: Preprocess, array: Any) -> Image.Image:
        made.append(array)
        return original(self, array)

    monkeypatch.setattr(Preprocess, "picture", picture)
    explainer = Explainer(DEMO, preprocess="imagenet")
    x = np.random.default_rng(0).standard_normal((3, 3, 96, 96), np.float32)
    expected = original(explainer.preprocess, x[1])
    result = explainer.explain(x)
    x[:] = 0
    assert len(result.images) == 3
    copied = pickle.loads(pickle.dumps(result))
    assert not made
    for images in (result.images, copied.images[1:2], copied.alone(1).images):
        assert images[1 % len(images)] == expected
    assert result.images[1] is result.images[1:2][0]
    assert len(made) == 2


def test_maps_of_0_are_noted_and_have_no_colour_bar() -> None:
    for k, said in ((None, "1 of 2 maps are 0"), (2, "2 of 4 maps are 0")):
        a = make(k=k)
        a.map[0] = 0
        assert [note for note in doubted(a).notes if "0 everywhere: no gradient gets through" in note]
        assert doubted(a).notes[0].startswith(said)
        assert doubted(make(k=k)).notes == ()
    zero = make(1)
    zero.map[:] = 0
    assert doubted(zero).notes[0].startswith("The map is 0 everywhere: ")
    texts = [item.text for item in figure_of(zero[0], "strip", Look()).items if isinstance(item, Text)]
    assert any("the map is 0 everywhere" in text for text in texts)
    assert not any("brighter" in text or "red" in text for text in texts)


@pytest.mark.parametrize(
    ("method", "rule", "reason"),
    [
        ("", "guided", ": no gradient gets through"),
        ("smoothgrad-squared", "deconvnet", ": no gradient gets through"),
        ("layer-gradient", "vanilla", ": no gradient gets through"),
        ("", "lrp-epsilon", "."),
        ("smoothgrad", "input-x-gradient", "."),
        ("", "own", "."),
        ("integrated-gradients", "vanilla", "."),
        ("layer-gradient-x-activation", "vanilla", "."),
        ("guided-grad-cam", "guided", "."),
        ("grad-cam", "vanilla", ": nothing in the layer speaks for the class."),
        ("layer-grad-cam", "vanilla", ": nothing in the layer speaks for the class."),
        ("vargrad", "lrp-epsilon", ": the maps of the copies are the same."),
    ],
)
def test_a_map_of_0_has_a_reason_where_it_is_known(method: str, rule: str, reason: str) -> None:
    """A product may be 0 because a factor is, and the gradient at the start of another question too."""
    zero = replace(make(1), method=method, rule=rule)
    zero.map[:] = 0
    (note,) = doubted(zero).notes
    assert note.startswith(f"The map is 0 everywhere{reason}")
    (note,) = doubted(replace(zero, details={"question": np.array(["dog - cat"])})).notes
    assert "no gradient" not in note
