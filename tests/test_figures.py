"""Figures: where maps lie on photos, what is said beside them in which letters, what files say of them."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from gbp import Explainer, InputError, Top
from gbp.pictures import figure as layout
from gbp.pictures import render, text
from gbp.pictures.drawing import Panel, framed
from gbp.pictures.figure import Figure, Picture, Rectangle, Text
from gbp.pictures.look import Look
from gbp.pictures.percent import percent, whole_percent, with_percent
from gbp.pictures.photo import Photo
from gbp.pictures.preprocess import PRESETS, Preprocess
from gbp.questions.head import Head
from gbp.result.attribution import Attribution
from gbp.result.figures import figure_of, metadata_of, rules_figure
from gbp.result.sample import Sample

MODELS = Path(__file__).resolve().parent.parent / "models"
PANELS: tuple[Panel, ...] = ("overlay", "gray", "diverging", "rgb")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide photo whose middle is one of the demo's scenes."""
    path = tmp_path_factory.mktemp("photo") / "wide.png"
    wide = Image.new("RGB", (300, 192), (200, 180, 160))
    wide.paste(Image.open(MODELS / "demo.png").resize((192, 192)), (54, 0))
    wide.save(path)
    return path


@pytest.fixture(scope="module")
def explained(photo: Path) -> Sample:
    return Explainer(MODELS / "demo.onnx").explain(photo)[0]


def texts(figure: Figure) -> str:
    return " ".join(item.text for item in figure.items if isinstance(item, Text))


# --------------------------------------------------------------------------------- maps on photos


def test_an_overlay_is_as_large_as_the_photo(explained: Sample) -> None:
    assert explained.overlay().size == (300, 192)
    assert explained.overlay(max_side=150).size == (150, 96)
    assert explained.overlay(canvas="network").size == explained.gray().size == (96, 96)
    assert explained.gray(canvas="photo").size == (300, 192)


def test_maps_beside_a_very_wide_photo_are_not_smaller_than_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (2400, 120)).save(tmp_path / "wide.png")
    sample = Explainer(MODELS / "demo.onnx").explain(tmp_path / "wide.png")[0]
    for figure in (figure_of(sample, "strip", Look()), rules_figure([sample, sample], None, Look())):
        heights = {item.size[1] for item in figure.items if isinstance(item, Picture) and item.size[1] > 16}
        assert heights == {45, 96}  # the photo's, and that of what the network saw


def test_the_map_lies_where_the_network_looked(explained: Sample) -> None:
    """Beyond the frame the photo is dimmed and nothing else; the strongest place is where the map has it."""
    assert explained.photo is not None
    assert explained.photo.box == (54, 0, 246, 192)
    assert not explained.photo.is_whole
    drawn = np.asarray(explained.overlay(percentile=100), int)
    bare = np.asarray(explained.overlay(alpha=0), int)
    assert (drawn[:, :50] == bare[:, :50]).all()
    assert (drawn[:, 250:] == bare[:, 250:]).all()
    change = np.abs(drawn - bare).sum(axis=2)[3:-3]
    y, x = np.unravel_index(change.argmax(), change.shape)
    m = np.asarray(explained.gray(smooth=1.1, percentile=100), int)
    strongest = np.unravel_index(m.argmax(), m.shape)
    assert abs((y + 3) / 2 - strongest[0]) <= 3
    assert abs((x - 54) / 2 - strongest[1]) <= 3


def test_a_frame_shows_what_the_network_saw(explained: Sample, tmp_path: Path) -> None:
    """A white frame between two dark lines, in each style; and none where the network saw the whole photo."""
    white, dark = (255, 255, 255), (48, 48, 48)
    for drawn in (explained.overlay(), explained.overlay(alpha=0), explained.gray(canvas="photo")):
        pixels = np.asarray(drawn.convert("RGB"))
        middle, down = pixels[pixels.shape[0] // 2], pixels[:, pixels.shape[1] // 2]
        left, right = 54, 246
        assert [tuple(middle[x]) for x in (left - 1, left, left + 1)] == [dark, white, dark]
        assert [tuple(middle[x]) for x in (right - 2, right - 1, right)] == [dark, white, dark]
        assert [tuple(down[y]) for y in (0, 1, 2)] == [dark, white, dark]
        assert [tuple(down[y]) for y in (-3, -2, -1)] == [dark, white, dark]
    panorama = np.asarray(framed(Image.new("RGB", (3000, 60)), (1474, 4, 1526, 56)))
    assert (panorama[10, 1474:1478, 0] == (255, 48, 0, 0)).all()  # thin, the map stays
    path = tmp_path / "square.png"
    Image.new("RGB", (200, 200), (200, 0, 0)).save(path)
    whole = Explainer(MODELS / "demo.onnx").explain(path)[0]
    assert whole.photo is not None
    assert whole.photo.is_whole
    pixels = np.asarray(whole.overlay(alpha=0).convert("RGB"))
    assert (pixels == pixels[0, 0]).all()  # dimmed, with no line


def test_any_source_of_a_photo_draws_alike(photo: Path) -> None:
    explainer = Explainer(MODELS / "demo.onnx")
    content = photo.read_bytes()
    sources = [photo, content, io.BytesIO(content), Image.open(photo), np.asarray(Image.open(photo))]
    pictures = {explainer.explain(source).overlay().tobytes() for source in sources}
    assert len(pictures) == 1


def test_pixels_may_be_used_again(photo: Path) -> None:
    pixels = np.array(Image.open(photo))
    found = Explainer(MODELS / "demo.onnx").explain(pixels)
    before = found.overlay(max_side=299).tobytes()
    pixels[:] = 0
    text_cache = found.overlay(max_side=298), found.overlay(max_side=297)  # more than are remembered
    assert text_cache[0].size != text_cache[1].size
    assert found.overlay(max_side=299).tobytes() == before


def test_a_photo_that_was_changed_is_not_drawn_under_the_map(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (200, 100), "red").save(path)
    found = Explainer(MODELS / "demo.onnx").explain(path)
    Image.new("RGB", (300, 100), "blue").save(path)
    with pytest.raises(InputError, match=r"changed since.*canvas='network'"):
        found.overlay(canvas="photo")
    assert found.overlay().size == (96, 96)
    path.unlink()
    assert found.draw("strip").width > 400


def test_arrays_have_no_photo() -> None:
    explainer = Explainer(MODELS / "demo.onnx")
    found = explainer.explain(explainer.prepare(MODELS / "demo.png"))
    assert found.overlay().size == (96, 96)
    with pytest.raises(InputError, match="no photo"):
        found.overlay(canvas="photo")


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from(["crop", "stretch", "fit"]),
    st.sampled_from([1.0, 0.875, "auto"]),
)
def test_boxes(photo: tuple[int, int], size: tuple[int, int], resize: str, crop: float | str) -> None:
    """The box has the input's aspect in pixels of the resized photo, is centred, covers what it should."""
    preprocess = replace(Preprocess(), resize=resize, crop=crop)
    try:
        window = preprocess.window(photo, size[::-1])
    except InputError:
        return
    left, top, right, bottom = window.box(photo)
    across, down = photo[0] / window.resized[0], photo[1] / window.resized[1]
    assert right - left == pytest.approx(size[0] * across)
    assert bottom - top == pytest.approx(size[1] * down)
    assert abs((left + right) / 2 - photo[0] / 2) <= across
    assert abs((top + bottom) / 2 - photo[1] / 2) <= down
    inside = left >= -across and top >= -down and right <= photo[0] + across and bottom <= photo[1] + down
    assert inside or resize == "fit"
    if resize != "crop":
        assert left <= 0 <= photo[0] <= right + 1e-6
        assert top <= 0 <= photo[1] <= bottom + 1e-6


def test_auto_crops_neither_what_fits_nor_small_inputs() -> None:
    preset = PRESETS["imagenet"]
    assert preset.window((224, 224), (224, 224)).resized == (224, 224)
    assert preset.window((32, 32), (32, 32)).resized == (32, 32)
    assert preset.window((500, 400), (32, 32)).resized == (40, 32)
    assert preset.window((500, 400), (64, 64)).resized[1] == 73
    assert preset.window((225, 224), (224, 224)).resized == (257, 256)
    assert replace(preset, crop=0.875).window((224, 224), (224, 224)).resized == (256, 256)


def test_fit_pads_with_the_mean() -> None:
    preprocess = Preprocess.parse({"preset": "imagenet", "resize": "fit"})
    x = preprocess.apply(Image.new("RGB", (100, 50), "white"), channels=3, size=(40, 40))
    assert np.abs(x[:, :9]).max() < 0.01
    assert np.abs(x[:, -9:]).max() < 0.01
    assert x[:, 10:30].min() > 1


def test_photos_say_what_was_seen() -> None:
    def how(photo: tuple[int, int], **settings: object) -> str:
        preprocess = replace(PRESETS["imagenet"], **settings)
        image = Image.new("RGB", photo)
        return Photo.of(image, image, preprocess, (224, 224)).description()

    assert "centre crop" in how((500, 400))
    assert "whole photo at 224 × 224" in how((224, 224))
    assert "resized" in how((500, 400), resize="stretch")
    assert "padded" in how((500, 400), resize="fit", crop=1.0)


# ------------------------------------------------------------------------------- smoothing, placing


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.sampled_from([0.0, 0.3, 1.0, 2.5]))
def test_smoothing_by_definition(shape: tuple[int, int], sigma: float) -> None:
    m = np.random.default_rng(shape[0]).normal(size=shape)
    y, x = np.mgrid[: shape[0], : shape[1]]
    want = np.empty(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            if sigma == 0:
                want[i, j] = m[i, j]
                continue
            near = (abs(y - i) <= np.ceil(4 * sigma)) & (abs(x - j) <= np.ceil(4 * sigma))
            weights = near * np.exp(-((y - i) ** 2 + (x - j) ** 2) / (2 * sigma**2))
            want[i, j] = (weights * m).sum() / weights.sum()
    np.testing.assert_allclose(render.smoothed(m, sigma), want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(render.smoothed(np.full(shape, 3.0), sigma), 3, rtol=1e-12)


@pytest.mark.parametrize("box", [(0, 0, 6, 4), (2, 1, 8, 5), (-3, -2, 3, 2), (5, 3, 17, 11), (-2, 0, 10, 8)])
def test_placing(box: tuple[int, int, int, int]) -> None:
    m = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    placed = render.placed(m, box, (9, 7), sharp=True)
    left, top, right, bottom = box
    for y in range(7):
        for x in range(9):
            if left <= x < right and top <= y < bottom:
                row = int((y - top + 0.5) * 2 / (bottom - top))
                column = int((x - left + 0.5) * 3 / (right - left))
                assert placed[y, x] == m[row, column]
            else:
                assert placed[y, x] == 0


def test_maps_that_share_a_limit_compare(explained: Sample) -> None:
    twice = replace(explained, map=explained.map * 2)

    def limits(limits: str) -> list[str]:
        figure = rules_figure([explained, twice], "gray", Look(limits=limits))
        return [item.text for item in figure.items if isinstance(item, Text) and "are below" in item.text]

    own, shared = limits("own"), rules_figure([explained, twice], "gray", Look(limits="shared"))
    assert own[0] != own[1]
    ticks = [item.text for item in shared.items if isinstance(item, Text) and "and above" in item.text]
    assert len(ticks) == 2
    assert ticks[0] == ticks[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"smooth": -1}, {"smooth": "a"}, {"alpha": 1.1}, {"percentile": 0}, {"percentile": 101}, {"limit": 0},
        {"limit": float("inf")}, {"limits": "all"}, {"canvas": "paper"}, {"max_side": 3}, {"max_side": 2.5},
    ],
)  # fmt: skip
def test_looks_that_make_no_sense(explained: Sample, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        explained.overlay(**wrong)


def test_palettes_of_matplotlib(explained: Sample) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = {explained.gray(palette=name).tobytes() for name in ("gray", "heat", "viridis", "magma")}
    assert len(drawn) == 4
    assert explained.diverging(palette="coolwarm").tobytes() != explained.diverging().tobytes()
    with pytest.raises(InputError, match="'no such'"):
        explained.gray(palette="no such")


def test_plot_draws_into_axes(explained: Sample) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().subplots()
    assert explained.plot(axes, style="overlay") is axes
    assert explained.label() in axes.get_title()
    assert axes.images[0].get_array().shape == (192, 300, 3)


# ------------------------------------------------------------------------------------------ letters

SCRIPTS = {
    "Latin": "Kätzchen ñandú Žluťoučký kůň",
    "Greek": "γάτα σκύλος Ελληνικά",
    "Cyrillic": "кошка собака їжак",
    "Chinese, Japanese, Korean": "猫 ねこ 고양이",
    "Arabic": "قطة كبيرة",
    "Devanagari": "बिल्ली",
}


def test_the_shipped_font_has_three_scripts() -> None:
    """By the font's own table of characters, where fontTools can read it; and as it is drawn."""
    for first, last in ((0x21, 0x7E), (0xA1, 0x17F), (0x391, 0x3A1), (0x3B1, 0x3C9), (0x410, 0x44F)):
        assert all(text.has(text.SHIPPED, chr(code)) for code in range(first, last + 1) if code != 0xAD)
    assert not any(text.has(text.SHIPPED, character) for character in "猫قब\U0001f431")
    font = pytest.importorskip("fontTools.ttLib", reason="fontTools is not installed").TTFont(text.SHIPPED)
    known = font.getBestCmap()
    for code in (*range(0x21, 0x250), *range(0x370, 0x530), *range(0x900, 0x980), *range(0x4E00, 0x4E80)):
        drawn = chr(code) not in "\u00ad\u034f" and text.has(text.SHIPPED, chr(code))
        assert drawn == (code in known) or chr(code).isspace() or not chr(code).isprintable(), hex(code)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_drawn_or_escaped(script: str) -> None:
    """Every character has ink of its own, in a font that has it, or is written as its code point."""
    words = SCRIPTS[script]
    line = text.legible(words)
    for character in words:
        font = text.covering(character)
        if font is None:
            assert f"\\u{ord(character):04x}" in line
        else:
            assert text.has(font, character)
    if script in ("Latin", "Greek", "Cyrillic"):
        assert line == words
    paper = Image.new("L", (700, 60), 255)
    text.write(paper, (20, 10), line, 30, "#000000")
    ink = np.asarray(paper)
    assert ink.min() < 60
    (columns,) = np.nonzero(ink.min(axis=0) < 128)
    assert columns[0] >= 18
    assert columns[-1] == pytest.approx(20 + text.width_of(line, 30), abs=8)


def test_a_score_stands_to_the_right_of_a_word_from_right_to_left() -> None:
    for words in (SCRIPTS["Arabic"], "אריה"):
        line = text.legible(f"{words}: score 1 ({words})")
        parts = list(text.runs(line))
        assert "".join(part for _, part in parts) == line
        if text.covering(words[0]) is not None:
            assert [part for _, part in parts] == [words, ": score 1 (", words, ")"]
            assert {font for font, part in parts if part != words} == {text.SHIPPED}


def test_words_about_a_narrow_panel_are_not_broken() -> None:
    narrow = layout.Panel(Image.new("RGB", (60, 400)), "guided: where", "otterhound: score 17.80")
    wide = layout.Panel(Image.new("RGB", (400, 400)), "guided: by sign")
    for panels in ([narrow], [narrow, wide]):
        drawn = layout.figure(panels)
        lines = [item.text for item in drawn.items if isinstance(item, Text)]
        assert "guided: where" in lines
        assert any(line.startswith("otterhound:") for line in lines)
        pictures = [item for item in drawn.items if isinstance(item, Picture)]
        assert all(item.at[0] + item.size[0] < drawn.width for item in pictures)


def test_without_fonts_of_the_system_characters_become_code_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "system_fonts", lambda: ())
    text.covering.cache_clear()
    try:
        assert text.legible("cat 猫") == "cat \\u732b"
        note = layout.figure([layout.Panel(Image.new("L", (300, 300)), "猫")])
        assert "code point" in texts(note)
    finally:
        text.covering.cache_clear()


def test_letters_that_join_need_raqm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _: False)
    text.covering.cache_clear()
    try:
        assert text.covering("ق") is None
        assert text.covering("ä") is not None
    finally:
        text.covering.cache_clear()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.integers(60, 400))
def test_lines_are_within_the_width(words: str, width: int) -> None:
    lines = text.wrapped(words, 16, width)
    assert 1 <= len(lines) <= 6
    for line in lines:
        assert line.isprintable()
        assert text.width_of(line, 16) <= width or len(line) == 1 or line.startswith("\\u")


# ------------------------------------------------------------------------------------------- layout


def labelled(chance_logit: float = 0.0, name: str = "cat", head: bool = True) -> Sample:
    rng = np.random.default_rng(0)
    scores = np.float32([[5, chance_logit, 0, 0]])
    return Attribution(
        rng.normal(size=(1, 3, 100, 120)).astype(np.float32),
        scores,
        np.array([1]),
        "guided",
        labels=("dog", name, "c", "d"),
        images=(Image.new("RGB", (120, 100), "navy"),),
        head=Head("Softmax", (4,), (0,)) if head else None,
    )[0]


@pytest.mark.parametrize("style", [*PANELS, "strip"])
@pytest.mark.parametrize("name", ["cat", "a very long name of a class " * 12, "x" * 300])
def test_nothing_is_outside_or_on_top_of_each_other(style: Panel, name: str) -> None:
    check_apart(figure_of(labelled(name=name), style, Look()))


@pytest.mark.parametrize("size", [(1200, 200), (200, 900), (3000, 1), (1, 3000), (1, 1)])
def test_photos_of_any_aspect(size: tuple[int, int], tmp_path: Path) -> None:
    found = Explainer(MODELS / "demo.onnx").explain(Image.new("RGB", size, "gray"))[0]
    for style in ("strip", "overlay"):
        figure = figure_of(found, style, Look())
        check_apart(figure)
        assert max(figure.width, figure.height) < 30_000
    for style in PANELS:
        for canvas in ("photo", "network"):
            found.save(tmp_path / "a.jpg", style, bare=True, canvas=canvas)


def test_a_long_row_of_numbers_makes_no_endless_picture() -> None:
    x = np.zeros((1, 30_000), np.float32)
    x[0, 5] = 1
    found = Attribution(x, np.zeros((1, 2), np.float32), np.array([0]), "vanilla", layout="NC")[0]
    assert figure_of(found, None, Look()).width < 10_000


def check_apart(figure: Figure) -> None:
    """All pictures and texts are on the paper, and none is on another."""
    boxes: list[tuple[float, float, float, float]] = []
    for item in figure.items:
        if isinstance(item, Rectangle):
            continue
        left, top = item.at
        width = text.width_of(item.text, item.size) if isinstance(item, Text) else item.size[0]
        height = item.size if isinstance(item, Text) else item.size[1]
        box = (left, top, left + width, top + height)
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= figure.width
        assert box[3] <= figure.height
        for other in boxes:
            apart = box[0] >= other[2] or other[0] >= box[2] or box[1] >= other[3] or other[1] >= box[3]
            assert apart, (box, other)
        boxes.append(box)


def test_many_targets_go_into_rows() -> None:
    found = Explainer(MODELS / "demo.onnx").explain(MODELS / "demo.png", target=Top(12))
    figure = figure_of(found[0], "strip", Look())
    assert figure.width <= layout.MAX_WIDTH
    pictures = [item for item in figure.items if isinstance(item, Picture) and item.size[1] > 40]
    assert len(pictures) == 13
    assert len({item.at[1] for item in pictures}) > 1


@pytest.mark.parametrize("style", [*PANELS, "strip"])
def test_every_style_says_how_to_read_it(explained: Sample, style: Panel) -> None:
    words = texts(figure_of(explained, style, Look()))
    assert explained.label() in words
    assert "demo.onnx" in words
    assert "centre crop" in words
    assert "guided" in words
    assert "%" in words
    assert "raises the score" in words or "moves the score" in words
    assert "0" in words
    assert "σ = " in words or style == "rgb"


def test_lines_do_not_end_within_a_size() -> None:
    words = "at 224 × 224 · σ = 2.5 pixels · 57 % of the photo · gbp 0.2.0 · score -9.1"
    for width in range(90, 400, 5):
        lines = text.wrapped(words, 15, width)
        assert " ".join(lines) == words
        assert not any(
            line.endswith(("×", "=", "σ", "gbp", "score")) or line.startswith(("×", "=", "%"))
            for line in lines
        )
    widest = max(text.width_of(word, 15) for word in words.split())
    for width in range(math.ceil(widest), 90, 3):  # some of what stays together is wider than a line
        assert " ".join(text.wrapped(words, 15, width, max_lines=40)) == words


def test_an_improbable_class_is_told() -> None:
    for style in ("overlay", "strip"):
        assert "does not see “cat”" in texts(figure_of(labelled(0.0), style, Look()))
        assert "Warning" not in texts(figure_of(labelled(4.0), style, Look()))
    without_head = Attribution(
        np.ones((1, 3, 9, 9), np.float32), np.arange(200, dtype=np.float32)[None], np.array([100]), "vanilla"
    )[0]
    assert "99 of 200 classes score higher" in texts(figure_of(without_head, "gray", Look()))
    assert "Warning" not in texts(figure_of(replace(without_head, target=198), "gray", Look()))


@pytest.mark.parametrize(
    ("chance", "says"),
    [(0, "<0.1 %"), (0.0004, "<0.1 %"), (0.001, "0.1 %"), (0.5, "50.0 %"), (0.999, "99.9 %"), (1, ">99.9 %")],
)
def test_percent(chance: float, says: str) -> None:
    assert percent(chance) == says


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (0, "0 %"),
        (0.004, "<1 %"),
        (0.01, "1 %"),
        (0.574, "57 %"),
        (0.99, "99 %"),
        (0.996, ">99 %"),
        (1, "100 %"),
    ],
)
def test_whole_percent(share: float, says: str) -> None:
    assert whole_percent(share) == says


def test_pages_write_percents_as_pictures_do() -> None:
    node = shutil.which("node") or pytest.skip("there is no Node.js")
    script = with_percent("/* percent */ process.stdout.write(JSON.stringify(CHANCES.map(percent)))")
    # Multiples of 1/16 of a thousandth: 0.0625 and others are exactly between two texts.
    chances = [*np.linspace(0, 1, 16001).tolist(), *np.random.default_rng(0).random(1000).tolist()]
    done = subprocess.run(
        [node, "-"],
        input=f"const CHANCES = {json.dumps(chances)}; {script}",
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [percent(chance) for chance in chances]


# -------------------------------------------------------------------------------------------- files


def told_by(path: Path) -> str:
    """What the file of a picture says about itself."""
    if path.suffix == ".svg":
        root = ElementTree.fromstring(path.read_text())
        return root.findtext("{http://www.w3.org/2000/svg}metadata") or ""
    if path.suffix == ".pdf":
        content = path.read_bytes()
        return content.decode("latin-1") + content.decode("utf-16-be", errors="ignore")
    with Image.open(path) as image:
        return image.text["gbp"] if path.suffix == ".png" else str(image.getexif()[0x010E])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".svg"])
def test_files_say_how_they_were_made(explained: Sample, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    explained.save(path, "overlay", smooth=1.5)
    told = json.loads(told_by(path))
    assert told == json.loads(json.dumps(metadata_of([explained], Look(smooth=1.5))))
    assert len(told["provenance"]["sha256"]) == 64
    assert told["provenance"]["model"] == "demo.onnx"
    assert told["provenance"]["preprocess"]["size"] == [96, 96]
    assert told["look"] == {"smooth": 1.5}
    assert told["photo"]["seen"] == [54, 0, 246, 192]
    assert told["explained"][0]["label"] == explained.label()
    assert str(tmp_path) not in json.dumps(told), "no path of this machine"


def test_pdf_and_arrays_say_it_too(explained: Sample, tmp_path: Path) -> None:
    explained.save(tmp_path / "a.pdf", "strip")
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    digest = explained.provenance.sha256
    assert digest.encode() in content or digest.encode("utf-16-be") in content
    assert explained.to_dict()["provenance"]["sha256"] == digest
    Explainer(MODELS / "demo.onnx").explain(MODELS / "demo.png").save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert json.loads(arrays["provenance"].item())["sha256"] == digest


def test_svg_holds_its_text_and_asks_for_nothing(explained: Sample, tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    explained.save(path, "strip")
    root = ElementTree.fromstring(path.read_text())
    space = "{http://www.w3.org/2000/svg}"
    words = " ".join(node.text or "" for node in root.iter(f"{space}text"))
    assert explained.label() in words
    links = [node.get("href", "") for node in root.iter(f"{space}image")]
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    with pytest.raises(InputError, match="drawing"):
        explained.save(path, "overlay", bare=True)


def test_bare_pictures_are_alone(explained: Sample, tmp_path: Path) -> None:
    explained.save(tmp_path / "a.png", "overlay", bare=True)
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == explained.overlay().tobytes()
    with pytest.raises(InputError, match="captions"):
        explained.save(tmp_path / "a.png", "strip", bare=True)
