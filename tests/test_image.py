"""Images: decoding, the crop, the numbers, sidecars and labels."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gbp.errors import InputError
from gbp.pictures import decode
from gbp.pictures.image import read_image
from gbp.pictures.labels import read_labels
from gbp.pictures.preprocess import KEYS, PRESETS, Preprocess
from gbp.pictures.sidecar import Sidecar, read_sidecar


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])


def pixel(image: Image.Image) -> object:
    return image.getpixel((0, 0))


# ---------------------------------------------------------------------------------------------- decode


def transparent_palette() -> Image.Image:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "colour"),
    [
        (Image.new("RGB", (4, 3), (10, 20, 30)), "png", (10, 20, 30)),
        (Image.new("RGBA", (4, 3), (255, 0, 0, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (4, 3), (255, 0, 0, 51)), "png", (255, 204, 204)),
        (Image.new("LA", (4, 3), (0, 51)), "png", (204, 204, 204)),
        (Image.new("L", (4, 3), 77), "png", (77, 77, 77)),
        (Image.new("1", (4, 3), 1), "png", (255, 255, 255)),
        (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "tiff", (255, 0, 0)),
        (Image.fromarray(np.full((3, 4), 257 * 100, np.uint16)), "png", (100, 100, 100)),
        (Image.fromarray(np.full((3, 4), 257 * 100, np.int32)), "tiff", (100, 100, 100)),
        (transparent_palette(), "png", (255, 255, 255)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_becomes_rgb(tmp_path, image, suffix, colour):
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    for source in (path, str(path), Image.open(path)):
        decoded = read_image(source)
        assert (decoded.mode, decoded.size) == ("RGB", (4, 3))
        assert pixel(decoded) == colour


def test_one_channel_becomes_grey(tmp_path):
    Image.new("RGBA", (4, 3), (255, 0, 0, 0)).save(tmp_path / "a.png")
    decoded = read_image(tmp_path / "a.png", channels=1)
    assert (decoded.mode, pixel(decoded)) == ("L", 255)
    assert pixel(read_image(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), channels=1)) == 0


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° to see it upright
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    image.save(tmp_path / "turned.png", exif=exif)
    decoded = read_image(tmp_path / "turned.png")
    assert decoded.size == (20, 40)
    assert (decoded.getpixel((10, 5)), decoded.getpixel((10, 35))) == ((255, 255, 255), (0, 0, 0))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(read_image(tmp_path / "a.gif")) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot open"), (b"", "not an image"), (b"plain text", "not an image"), ("cut", "damaged")],
)
def test_bad_files_are_named(tmp_path, content, says):
    path = tmp_path / "bad.jpg"
    if content == "cut":
        noise(50, 50).save(path)
        content = path.read_bytes()[:1500]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        read_image(path)
    assert "bad.jpg" in str(error.value)


def test_directory_nul_and_empty_names(tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        read_image(tmp_path)
    for name in ("a\0b", ""):
        with pytest.raises(InputError, match="cannot open"):
            read_image(name)


@pytest.mark.parametrize("limit", [10, 70])  # Pillow raises above twice the limit and warns above it
def test_decompression_bombs(tmp_path, monkeypatch, limit):
    noise(10, 10).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=r"bomb.png.*million pixels"):
        read_image(tmp_path / "bomb.png")


def test_a_drawing_is_refused_before_another_program_runs(tmp_path):
    path = tmp_path / "drawing.eps"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match="of a format that is not opened"):
        read_image(path)


@pytest.mark.parametrize("image", [Image.new("F", (2, 2), 0.5), Image.new("I", (2, 2), 70000)])
def test_undefined_brightness_is_refused(image):
    with pytest.raises(InputError, match="no defined white"):
        read_image(image)


def test_no_pixels():
    with pytest.raises(InputError, match="no pixels"):
        read_image(Image.new("RGB", (0, 5)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]), st.integers(0, 400), st.binary(max_size=8)
)
def test_damage_never_escapes_as_another_error(tmp_path_factory, kind, at, garbage):
    buffer = io.BytesIO()
    noise(9, 7).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    at = min(at, len(data))
    data[at : at + len(garbage)] = garbage
    path = tmp_path_factory.mktemp("fuzz") / "f"
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        assert read_image(path).mode == "RGB"


# ------------------------------------------------------------------------------------------ preprocess


def torchvision_crop(image: Image.Image, resize: int, crop: int) -> Image.Image:
    """Spell out Resize(resize) and CenterCrop(crop), as torchvision does them to PIL images."""
    w, h = image.size
    short, long = min(w, h), max(w, h)
    new = (resize, int(resize * long / short)) if w <= h else (int(resize * long / short), resize)
    image = image.resize(new, Image.Resampling.BILINEAR)
    left, top = round((new[0] - crop) / 2.0), round((new[1] - crop) / 2.0)
    return image.crop((left, top, left + crop, top + crop))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400))
def test_crop_is_torchvisions_to_the_pixel(height, width):
    image = noise(height, width)
    if max(height, width) > 50 * min(height, width):
        return
    seen = PRESETS["imagenet"].seen(image, (224, 224))
    assert seen.tobytes() == torchvision_crop(image, 256, 224).tobytes()


def test_imagenet_numbers():
    image = noise(300, 260)
    pixels = np.asarray(torchvision_crop(image, 256, 224), np.float32) / 255
    want = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    got = PRESETS["imagenet"].apply(image, channels=3, size=(224, 224))
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, want.transpose(2, 0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "want"),
    [
        ("imagenet", [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225]),
        ("caffe", [-103.939, 51 - 116.779, 255 - 123.68]),
        ("tf", [1, -0.6, -1]),
        ("unit", [1, 0.2, 0]),
        ("raw", [255, 51, 0]),
    ],
)
def test_presets_on_orange(preset, want):
    got = Preprocess.parse(preset).apply(Image.new("RGB", (9, 9), (255, 51, 0)), channels=3, size=(4, 6))
    assert got.shape == (3, 4, 6)
    np.testing.assert_allclose(got[:, 2, 3], want, rtol=1e-5, atol=1e-6)


def test_one_channel_network():
    grey = PRESETS["unit"].apply(Image.new("RGB", (9, 9), (0, 255, 0)), channels=1, size=(4, 4))
    assert grey.shape == (1, 4, 4)
    np.testing.assert_allclose(grey, 150 / 255, rtol=1e-6)
    stated = Preprocess(1 / 255, (0.5,), (0.5,), channels="L")
    assert stated.apply(Image.new("L", (4, 4), 255), channels=1, size=(4, 4)).max() == 1
    with pytest.raises(InputError, match=r"^the network takes 1 channel, preprocess makes BGR\. For grey"):
        PRESETS["caffe"].apply(Image.new("RGB", (4, 4)), channels=1, size=(4, 4))
    for wrong, channels in [("imagenet", 1), ("caffe", 1), (stated, 3), ("raw", 4)]:
        with pytest.raises(InputError, match="channel"):
            Preprocess.parse(wrong).apply(noise(9, 9), channels=channels, size=(4, 4))


def test_stretch_keeps_the_whole_image():
    image = noise(30, 90)
    seen = Preprocess(resize="stretch", crop=0.5).seen(image, (8, 12))
    assert seen.tobytes() == image.resize((12, 8), Image.Resampling.BILINEAR).tobytes()


def test_size_from_either_side():
    own = Preprocess(size=(6, 4))
    assert own.apply(noise(9, 9), channels=3).shape == (3, 6, 4)
    assert own.apply(noise(9, 9), channels=3, size=(6, 4)).shape == (3, 6, 4)
    with pytest.raises(InputError, match=r"\(6, 4\).*\(8, 8\)"):
        own.apply(noise(9, 9), channels=3, size=(8, 8))
    with pytest.raises(InputError, match="no input size"):
        PRESETS["raw"].seen(noise(9, 9))


def test_a_hair_is_too_narrow():
    with pytest.raises(InputError, match="too narrow"):
        PRESETS["imagenet"].seen(Image.new("RGB", (1, 60000)), (224, 224))


presets = st.sampled_from(sorted(PRESETS))


@settings(max_examples=60, deadline=None)
@given(presets, st.tuples(*[st.integers(1, 40)] * 4), st.sampled_from([1, 3]), st.integers(0, 99))
def test_picture_undoes_apply(preset, sizes, channels, seed):
    h, w, out_h, out_w = sizes
    preprocess = PRESETS[preset]
    if channels == 1 and preset in ("imagenet", "caffe"):
        preprocess = Preprocess(1 / 255, (0.45,), (0.22,))
    image = read_image(noise(h, w, channels, seed), channels=channels)
    y = preprocess.apply(image, channels=channels, size=(out_h, out_w))
    assert y.shape == (channels, out_h, out_w)
    back = np.asarray(preprocess.picture(y), np.int64)
    seen = np.asarray(preprocess.seen(image, (out_h, out_w)), np.int64)
    assert back.shape == seen.shape
    assert np.abs(back - seen).max() <= 1


def test_picture_clips_and_refuses():
    assert pixel(PRESETS["unit"].picture(np.full((3, 2, 2), 7.0))) == (255, 255, 255)
    for array in (np.zeros((2, 4, 4)), np.zeros((4, 4)), np.full((3, 2, 2), np.nan)):
        with pytest.raises(InputError):
            PRESETS["unit"].picture(array)


def test_parse():
    assert Preprocess.parse(None) is None
    assert Preprocess.parse(PRESETS["tf"]) is PRESETS["tf"]
    assert Preprocess.parse("caffe") == PRESETS["caffe"]
    assert Preprocess.parse({"preset": "imagenet", "size": 299, "crop": 1}) == Preprocess(
        1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size=(299, 299)
    )
    assert Preprocess.parse({"scale": 1 / 255, "mean": 0.5, "std": [0.5], "size": [5, 6]}) == Preprocess(
        1 / 255, (0.5,), (0.5,), size=(5, 6)
    )
    assert Preprocess.parse({"preset": "unit", "bgr": True}).channels == "BGR"
    assert Preprocess.parse({"mean": [1, 2, 3]}, base=PRESETS["caffe"]).channels == "BGR"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("imagnet", "imagnet.*imagenet, caffe"),
        (7, "7"),
        ({}, "neither a preset nor a scale"),
        ({"mean": [0.4, 0.4, 0.4]}, "neither a preset nor a scale"),
        ({"preset": 3}, "unknown preprocess preset 3"),
        ({"preset": "unit", "mena": 0, "sdt": 1}, "'mena', 'sdt'.*mean"),
        ({"scale": 0}, "scale"),
        ({"scale": "1"}, "scale"),
        ({"scale": True}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"preset": "unit", "std": [1, 0, 1]}, "std"),
        ({"preset": "unit", "std": -1}, "std"),
        ({"preset": "unit", "std": float("inf")}, "std"),
        ({"preset": "unit", "mean": [1, 2]}, "mean"),
        ({"preset": "unit", "mean": "black"}, "mean"),
        ({"preset": "unit", "size": 0}, "size"),
        ({"preset": "unit", "size": 1.5}, "size"),
        ({"preset": "unit", "size": [1, 2, 3]}, "size"),
        ({"preset": "unit", "size": True}, "size"),
        ({"preset": "unit", "crop": 1.5}, "crop"),
        ({"preset": "unit", "crop": 5e-324}, "crop"),
        ({"preset": "unit", "channels": "RBG"}, "channels"),
        ({"preset": "unit", "channels": []}, "channels"),
        ({"preset": "unit", "bgr": 1}, "bgr"),
        ({"preset": "unit", "bgr": True, "channels": "BGR"}, "bgr"),
        ({"preset": "unit", "resize": "pad"}, "resize"),
        ({"preset": "unit", "resize": "stretch", "crop": 0.5}, "crop"),
    ],
)
def test_parse_refuses(value, says):
    with pytest.raises(InputError, match=says):
        Preprocess.parse(value)


# --------------------------------------------------------------------------------- sidecars and labels


def test_no_sidecar(tmp_path):
    assert read_sidecar(tmp_path / "net.onnx") == Sidecar(None, None)


def test_sidecar(tmp_path):
    (tmp_path / "names.txt").write_text("ring\ndisc\n", encoding="utf-8")
    (tmp_path / "net.v1.toml").write_text(
        'labels = "names.txt"\n[preprocess]\npreset = "unit"\nsize = 96\n', encoding="utf-8"
    )
    sidecar = read_sidecar(str(tmp_path / "net.v1.onnx"))
    assert sidecar == Sidecar(Preprocess(1 / 255, size=(96, 96)), ("ring", "disc"))
    (tmp_path / "net.toml").write_text('labels = ["a", "b"]\npreprocess = "tf"')
    assert read_sidecar(tmp_path / "net.onnx") == Sidecar(PRESETS["tf"], ("a", "b"))
    (tmp_path / "net.toml").write_text("")
    assert read_sidecar(tmp_path / "net.onnx") == Sidecar()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("labels = ", "not valid TOML"),
        ("lables = []", "lables.*preprocess, labels"),
        ("labels = 3", "list of class names"),
        ("labels = []", "list of class names"),
        ('labels = ["a", 2]', "list of class names"),
        ('labels = "nowhere.txt"', "nowhere.txt"),
        ("preprocess = 3", "preprocess is 3"),
        ("[preprocess]\nstd = 0\nscale = 1", "std"),
        ("[preprocess]\nsiez = 3", "siez"),
        ("labels = ['\xff']", "cannot read"),
    ],
)
def test_bad_sidecars_are_named(tmp_path, text, says):
    (tmp_path / "net.toml").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=says) as error:
        read_sidecar(tmp_path / "net.onnx")
    assert "net.toml" in str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "chat gris\n çiçek \n\nlast"),
        ("a.txt", "\ufeffchat gris\r\nçiçek\r\n\r\nlast\r\n\r\n"),
        ("a.json", json.dumps(["chat gris", "çiçek", "", "last"])),
        ("a.JSON", json.dumps({"1": "çiçek", "0": "chat gris", "3": "last", "2": ""})),
    ],
)
def test_label_files(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    assert read_labels(tmp_path / name) == ("chat gris", "çiçek", "", "last")


def test_labels_as_given():
    assert read_labels(None) is None
    assert read_labels(["a", "b"]) == ("a", "b")
    with pytest.raises(InputError):
        read_labels([1, 2])
    with pytest.raises(InputError, match="there are no labels ''"):
        read_labels("")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b""),
        ("a.txt", b"\xff\xfe"),
        ("a.json", b"[1, 2]"),
        ("a.json", b'"abc"'),
        ("a.json", b'{"1": "a"}'),
        ("a.json", b"[oops"),
        ("a.txt", None),
    ],
)
def test_bad_label_files_are_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_labels(tmp_path / name)
    assert name in str(error.value)


def test_keys_are_documented_names():
    assert set(KEYS) == {"preset", "scale", "mean", "std", "channels", "bgr", "size", "crop", "resize"}


@pytest.mark.parametrize("suffix", ["png", "tiff", None])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("white", [255, 1023, 4095])
def test_pixels_of_fewer_bits_than_their_type_are_refused(
    tmp_path: Path, white: int, dtype: type[np.generic], suffix: str | None
) -> None:
    """They would come out nearly black."""
    pixels = np.linspace(0, white, 12).astype(dtype).reshape(3, 4)
    if suffix == "png" and dtype == np.int32:
        pixels = pixels.astype(np.uint16)
    source: Path | Image.Image = Image.fromarray(pixels)
    if suffix is not None:
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
        source = tmp_path / f"a.{suffix}"
    with pytest.raises(InputError, match=f"brightest pixel is {white}, nearly black"):
        read_image(source)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_pixels_of_16_bits_are_scaled(dtype: type[np.generic]) -> None:
    for white in (0, 4096, 65535):
        pixels = np.linspace(0, white, 12).astype(dtype).reshape(3, 4)
        grey = np.asarray(read_image(Image.fromarray(pixels), channels=1))
        assert np.abs(grey - pixels / 257).max() <= 0.5


# ------------------------------------------------------------------------------------------------- HEIC


def test_photos_of_phones(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed; the extra heif has it")
    heif.register_heif_opener()
    image = Image.new("RGB", (64, 48), (200, 60, 30))
    image.paste((10, 20, 200), (0, 0, 32, 48))
    image.save(tmp_path / "a.heic", quality=95)
    read = read_image(tmp_path / "a.heic")
    assert (read.size, read.mode) == ((64, 48), "RGB")
    assert np.abs(np.asarray(read, int) - np.asarray(image, int)).mean() < 8
    content = (tmp_path / "a.heic").read_bytes()
    for damaged in (content[:200], content[:40] + b"\0" * 400):
        (tmp_path / "b.heic").write_bytes(damaged)
        with pytest.raises(InputError, match=r"b\.heic"):
            read_image(tmp_path / "b.heic")
    with pytest.raises(InputError, match="pixels"):
        read_image(tmp_path / "a.heic", max_pixels=100)


def test_without_pillow_heif_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(decode, "_opens_heif", lambda: False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(InputError, match=r"gbp-explain\[heif\]"):
        read_image(tmp_path / "a.heic")
