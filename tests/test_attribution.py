"""attribution.py: reductions, names, pictures, files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gbp.attribution import Attribution, check_path, save_picture, strip_rules
from gbp.errors import InputError

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
    for call in (volume.reduce, volume.gray, volume.strip):
        with pytest.raises(InputError, match="not an image"):
            call()


@pytest.mark.parametrize(("layout", "shape", "plane"), [("NC", (9,), (1, 9)), ("NCL", (4, 9), (4, 9))])
def test_rows_and_series_are_planes(layout, shape, plane):
    m = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    images = (Image.new("L", plane[::-1]),) * 2
    a = Attribution(m, np.ones((2, 2)), np.zeros(2, np.int64), "guided", layout=layout, images=images)
    np.testing.assert_array_equal(a.reduce(), np.abs(m).reshape(2, *plane))
    assert a.gray(1).size == a.diverging().size == a.overlay().size == plane[::-1]
    assert min(a.strip().size) > 100  # a row of one pixel is enlarged
    several = Attribution(m[:, None], np.ones((2, 2)), np.zeros((2, 1), np.int64), "guided", layout=layout)
    np.testing.assert_array_equal(several.reduce("sum"), m.reshape(2, 1, *plane))


# ---------------------------------------------------------------------------------------------- scores


def test_labels_and_top():
    a = make(k=2, labels=tuple("abcdefg"))
    order = np.argsort(-a.scores[1])
    assert a.label(1, 1) == "abcdefg"[order[1]]
    assert a.top(3, index=1) == [(int(i), "abcdefg"[i], float(a.scores[1, i])) for i in order[:3]]
    assert len(a.top(50)) == 7
    assert make().label(0) == f"class {make().target[0]}"
    assert make(labels=()).label(0).startswith("class ")


def test_top_breaks_ties_by_class():
    a = Attribution(np.zeros((1, 1, 1, 1)), np.float32([[1, 3, 3, 0]]), np.array([1]), "guided")
    assert [number for number, _, _ in a.top(4)] == [1, 2, 0, 3]


def test_probabilities():
    a = make()
    weight = np.exp(a.scores.astype(np.float64))
    np.testing.assert_allclose(a.probabilities, weight / weight.sum(1, keepdims=True), rtol=1e-6)
    again = Attribution(a.map, a.probabilities, a.target, "guided")
    assert again.probabilities is again.scores
    huge = Attribution(a.map, np.float32([[3e38, -3e38]] * 2), a.target, "guided")
    assert huge.probabilities.tolist() == [[1, 0]] * 2
    with pytest.raises(InputError, match="single score"):
        _ = Attribution(a.map, np.float32([[3], [4]]), np.zeros(2, np.int64), "guided").probabilities


# -------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("k", [None, 3])
def test_pictures_have_the_maps_size(k, layout):
    a = make(k=k, layout=layout)
    last = 0 if k is None else k - 1
    for style, mode in [("overlay", "RGB"), ("diverging", "RGB"), ("gray", "L"), ("rgb", "RGB")]:
        image = getattr(a, style)(1, last)
        assert (image.size, image.mode) == ((5, 6), mode)
        assert image.tobytes() == a.draw(style, 1, last).tobytes()
    assert a.strip(1).tobytes() == a.draw("strip", 1).tobytes()


def test_layouts_draw_alike():
    for style in STYLES:
        assert make().draw(style).tobytes() == make(layout="NHWC").draw(style).tobytes()


def test_bgr_maps_are_drawn_red_first():
    a = make()
    turned = Attribution(a.map[:, ::-1], a.scores, a.target, "guided", channels="BGR")
    assert turned.rgb().tobytes() == a.rgb().tobytes()


def test_strip_panels():
    def panels(a):
        return round(a.strip().width / (288 + 12))

    assert panels(make(h=96, w=96)) == 4  # input, where, in colour, by sign
    assert panels(make(h=96, w=96, images=False)) == 3
    assert panels(make(c=1, h=96, w=96)) == 3
    assert panels(make(h=96, w=96, k=5)) == 6
    rules = [make(h=96, w=96), make(h=96, w=96)]
    assert round(strip_rules(rules).width / 300) == 3
    for style in STYLES[:-1]:
        assert strip_rules(rules, 1, style=style).size == strip_rules(rules).size
    assert strip_rules([make(c=1)]).size == strip_rules([make()]).size
    with pytest.raises(InputError, match="no attributions"):
        strip_rules([])


@pytest.mark.filterwarnings("error")
def test_all_zero_map_draws():
    a = make()
    zero = Attribution(a.map * 0, a.scores, a.target, "guided", images=a.images)
    for style in STYLES:
        zero.draw(style)


def test_single_score_draws():
    a = make()
    Attribution(a.map, a.scores[:, :1], np.zeros(2, np.int64), "guided", images=a.images).strip()


def test_grey_images_are_laid_under():
    a = make()
    grey = tuple(image.convert("L") for image in a.images)
    assert Attribution(a.map, a.scores, a.target, "guided", images=grey).overlay().mode == "RGB"


def test_pictures_refuse():
    for index, target in [(2, 0), (-1, 0), (0, 1), (0, -1)]:
        for style in STYLES[:-1]:
            with pytest.raises(InputError, match="there is no"):
                make().draw(style, index, target)
    with pytest.raises(InputError, match="there is no sample"):
        make().strip(2)
    with pytest.raises(InputError, match="no image to lay"):
        make(images=False).overlay()
    with pytest.raises(InputError, match="no colours"):
        make(c=4).rgb()
    with pytest.raises(InputError, match="unknown style"):
        make().draw("heat")


def test_shared_limit():
    a = make()
    assert a.gray(limit=1e9).getextrema() == (0, 0)
    assert a.gray(limit=1e-9).getextrema()[1] == 255


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.jpeg"])
def test_save_pictures(tmp_path, name, style):
    a = make()
    a.save(tmp_path / name, style, index=1)
    with Image.open(tmp_path / name) as image:
        assert image.size == a.draw(style, 1).size
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


def test_save_refuses_and_leaves_nothing(tmp_path, monkeypatch):
    a = make()
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
    monkeypatch.setattr(
        Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    (tmp_path / "old.png").write_bytes(b"kept")
    with pytest.raises(InputError, match=r"old.png.*No space left"):
        a.save(tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "old.png"]


def test_an_unwritable_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        make().save(tmp_path / ("x" * 300 + ".png"))
    assert list(tmp_path.iterdir()) == []


def test_check_path_takes_bare_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    check_path("a.png")
    make().save("a.png")
    assert (tmp_path / "a.png").exists()
