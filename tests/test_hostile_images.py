"""Image files that somebody made to hurt: no program is run, no file waited for, memory and time are bounded.

Random damage to files of all formats, each with its memory and time:  python tests/hostile_images.py --help
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hostile_images import EPS, bmp, chunk, ico, iptc, jpeg, png, saved, scans, segment, table, tiff
from PIL import Image, ImageOps

from gbp.errors import InputError
from gbp.pictures import decode
from gbp.pictures.image import NamedBytes, read_array, read_image, read_sample
from gbp.pictures.labels import read_labels
from gbp.pictures.preprocess import Preprocess
from gbp.pictures.sidecar import read_sidecar

MEMORY, SECONDS = 400, 5  # MiB beyond what the imports took; CPU time


#: What refuses or decodes, and how: None where either is well.
FILES: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "eps": (lambda: EPS, "not an image, or of a format"),
    "iptc that holds eps": (lambda: iptc(EPS), "not an image, or of a format"),
    "iptc that holds png": (lambda: iptc(png(64, 64, whole=True)), "not an image, or of a format"),
    "ico that holds png": (lambda: ico(png(9000, 9000, 6)), "not an image, or of a format"),
    "icns": (lambda: b"icns" + struct.pack(">I", 16) + b"ic10" + bytes(4), "not an image, or of a format"),
    "png, as large as can be": (lambda: png(5792, 5792, 6, whole=True), None),
    "png, 16 bits": (lambda: png(5792, 5792, 0, 16, whole=True), None),
    "png, a palette with alpha": (lambda: png(5792, 5792, 3, whole=True), None),
    "png, one row": (lambda: png(2**25, 1, 0, whole=True), "too narrow"),
    "png, larger": (lambda: png(5800, 5800), "33.6 million|up to 33 million"),
    "png, far larger": (lambda: png(2**31 - 1, 2**31 - 1), "million pixels"),
    "png, chunks without number": (lambda: png(4, 4, before=chunk(b"teXt", b"") * 10**6), "small parts"),
    "png, text that unfolds": (
        lambda: png(4, 4, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9))),
        "damaged",
    ),
    "png, exif": (
        lambda: png(4, 4, before=chunk(b"eXIf", table(60_000, 10**6, 2 * 10**6)), whole=True),
        None,
    ),
    "webp, larger": (lambda: saved("WEBP", size=(4200, 4200), lossless=True), "up to 16 million of WEBP"),
    "webp, as large as can be": (lambda: saved("WEBP", "RGBA", (4096, 4096), lossless=True), None),
    "jpeg 2000, larger": (lambda: saved("JPEG2000", "L", (3000, 3000)), "up to 8 million of JPEG2000"),
    "jpeg 2000, as large as can be": (lambda: saved("JPEG2000", "RGB", (2896, 2896)), None),
    "jpeg, large": (lambda: saved("JPEG", "RGB", (9400, 9400)), None),
    "jpeg, larger": (lambda: saved("JPEG", "L", (9600, 9600)), "more than 89 million pixels"),
    "jpeg, progressive": (lambda: saved("JPEG", "RGB", (6600, 6600), progressive=True, subsampling=0), None),
    "jpeg, larger, progressive": (
        lambda: saved("JPEG", "RGB", (7000, 7000), progressive=True),
        "up to 43 million of JPEG",
    ),
    "jpeg, scans without end": (lambda: scans(3000), "scans"),
    "jpeg, exif": (lambda: jpeg(segment(0xE1, b"Exif\0\0" + table(2700, 32_000, 65_000))), None),
    "jpeg, exif without end": (
        lambda: jpeg(*[segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 100),
        "several EXIF segments",
    ),
    "jpeg, resources without end": (
        lambda: jpeg(*[segment(0xED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5000)] * 900),
        "header is too long",
    ),
    "jpeg, comments": (lambda: jpeg(*[segment(0xFE, bytes(65_000))] * 100), None),
    "gif, comments without end": (
        lambda: saved("GIF", "L")[:-1] + b"!\xfe" + (b"\xff" + bytes(255)) * 100_000 + b"\0;",
        None,
    ),
    "gif, comments before the image": (
        lambda: b"GIF89a\4\0\4\0\0\0\0!\xfe" + (b"\xff" + bytes(255)) * 100_000 + b"\0;",
        "",
    ),
    "tiff, a table of itself": (lambda: table(60_000, 10**6, 2 * 10**6), "the same bytes|of a format"),
    "tiff, tiles that are larger": (lambda: tiff(t322=60_000, t323=30_000, t324=90, t325=1020), "its tiles"),
    "ppm in text": (lambda: b"P3 3000 3000 255\n" + b"0 " * 10**6, "as text"),
    "ppm, comments in text": (lambda: b"P1 300 300\n" + b"#\n" * 10**6, "as text"),
    "ppm, another white": (lambda: b"P6 4000 4000 100\n" + bytes(3 * 4000**2), "small parts"),
    "bmp, runs without end": (lambda: bmp(5000, 5000, 1, b"\1\0" * 10**7), "small parts"),
    "bmp, ends without end": (lambda: bmp(5000, 5000, 1, b"\0\0" * 10**7), "small parts"),
    "bmp, one run": (lambda: bmp(5000, 5000, 1, b"\0\1"), ""),
    "xbm": (lambda: b"#define a_width 9\n#define a_height 9\nstatic char a[] = {\n0x00};", "of a format"),
    "nothing": (lambda: b"", "not an image"),
}

#: Reads the image that each line of its input names, in a fork of its own, so that Python and gbp start once.
#: The line also names the file for the fork's standard error.  The answer is the fork's, and its exit status.
READER = """
import json, os, signal, sys, time
from gbp import InputError
from gbp.pictures.image import read_image
from gbp.pictures.preprocess import Preprocess

PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
preprocess = Preprocess.parse("imagenet")

def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) // 1024

def report(path):
    ran = []
    sys.addaudithook(lambda name, given: ran.append(name) if name in PROGRAMS else None)
    before, start = peak(), time.process_time()
    try:
        preprocess.apply(read_image(path), channels=3, size=(224, 224))
        said = ""
    except InputError as error:
        said = str(error)
    print(json.dumps([said, peak() - before, time.process_time() - start, ran]), end=" ", flush=True)

while line := sys.stdin.readline():
    path, errors = json.loads(line)
    process = os.fork()
    if not process:
        signal.alarm(120)  # by then it hangs
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        report(path)
        break
    print(os.waitpid(process, 0)[1], flush=True)
"""


class Reader(NamedTuple):
    """The process of `READER`, where programs that Pillow may start are found, and where these tell of it."""

    process: subprocess.Popen[str]
    ran: Path


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    programs = tmp_path_factory.mktemp("programs")
    for program in ("gs", "djpeg"):
        (programs / program).write_text(f"#!/bin/sh\necho run >> {programs}/ran\n")
        (programs / program).chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", READER],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Reader(process, programs / "ran")
        assert process.communicate() == ("", None)
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
@pytest.mark.parametrize("name", FILES)
def test_what_a_file_takes(tmp_path: Path, reader: Reader, name: str) -> None:
    make, says = FILES[name]
    reader.ran.unlink(missing_ok=True)
    path, errors = tmp_path / "image", tmp_path / "errors"
    path.write_bytes(make())
    assert reader.process.stdin
    assert reader.process.stdout
    print(json.dumps([str(path), str(errors)]), file=reader.process.stdin, flush=True)
    answer, _, status = reader.process.stdout.readline().rpartition(" ")
    stderr = errors.read_text()
    assert status == "0\n", stderr[-2000:]
    said, mebibytes, seconds, ran = json.loads(answer)
    assert stderr.count("\n") <= 2  # Pillow's own, of a bomb
    assert not ran
    assert not reader.ran.exists()
    assert mebibytes < MEMORY
    assert seconds < SECONDS
    if says:
        assert any(text in said for text in says.split("|")), said
    elif says is None:
        assert said == ""


def test_all_that_pillow_opens_by_name_is_on_a_list() -> None:
    Image.init()
    for kind in ("EPS", "IPTC", "ICO", "ICNS", "WMF", "FITS", "BLP", "PSD", "DCX", "FPX", "MIC"):
        assert kind not in decode.FORMATS
    assert decode.FORMATS.keys() - {"HEIF"} <= Image.OPEN.keys()  # pillow-heif may be absent


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO"])
def test_an_open_image_of_another_format_is_refused_and_its_copy_is_not(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "image", kind)
    if kind != "EPS":
        image = Image.open(tmp_path / "image")
        assert read_image(image.copy()).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(InputError, match=f"opened from {kind}"):
        read_image(Image.open(tmp_path / "image"))


# ------------------------------------------------------------------------------------ what is no regular file


def test_nobody_waits_for_a_pipe_or_reads_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    for path in (tmp_path / "pipe.npy", Path("/dev/zero"), Path("/dev/urandom")):
        with pytest.raises(InputError, match="no regular file"):
            read_image(path)
        with pytest.raises(InputError, match="no regular file"):
            read_labels(path)
    with pytest.raises(InputError, match="no regular file"):
        read_array(tmp_path / "pipe.npy")
    os.mkfifo(tmp_path / "model.toml")
    with pytest.raises(InputError, match="no regular file"):
        read_sidecar(tmp_path / "model.onnx")


def test_a_file_that_is_mostly_a_hole(tmp_path: Path) -> None:
    for name in ("a.bmp", "a.npy", "a.txt"):
        with open(tmp_path / name, "wb") as file:
            file.write(bmp(9000, 9000, 0, b""))
            file.truncate(3 * 10**9)
    for read, name in ((read_image, "a.bmp"), (read_array, "a.npy"), (read_labels, "a.txt")):
        with pytest.raises(InputError, match="It is larger than"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "(" * 500 + "), }",
        "{'descr': '" + "9" * 300 + "', 'fortran_order': False, 'shape': (1,), }",
        "{",
        "",
    ],
)
def test_arrays_that_lie(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(
        b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + bytes(64)
    )
    with pytest.raises(InputError, match="cannot read the array"):
        read_array(path)
    np.savez(tmp_path / "b.npz", a=np.zeros(3))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    with pytest.raises(InputError, match="cannot read the array"):
        read_array(tmp_path / "b.npy")


def test_only_names_are_quoted() -> None:
    saved = io.BytesIO()
    np.save(saved, np.zeros((2, 3), np.float32))
    reads: list[tuple[str, Callable[[], object]]] = [
        ("^the given array holds 2 samples", lambda: read_sample(saved.getvalue(), 2)),
        ("^cannot read the given array: ", lambda: read_sample(b"", 2)),
        ("^what was given is not an image", lambda: read_image(io.BytesIO(b"no image"))),
        ("^'a.npy' holds 2 samples", lambda: read_sample(saved.getvalue(), 2, "a.npy")),
        ("^cannot read the array 'a.npy': ", lambda: read_sample(b"", 2, "a.npy")),
        ("^'a.png' is not an image", lambda: read_image(NamedBytes(b"no image", "a.png"))),
    ]
    for says, read in reads:
        with pytest.raises(InputError, match=says):
            read()


# ------------------------------------------------------------------------- the same pixels as without limits


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_turned_as_pillow_turns(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a", kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "a")).convert("RGB")
    assert read_image(tmp_path / "a").tobytes() == expected.tobytes()
    assert read_image(Image.open(tmp_path / "a")).size == expected.size


def test_turned_as_xmp_says(tmp_path: Path) -> None:
    text = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.new("RGB", (4, 2)).save(tmp_path / "a.webp", xmp=text)
    assert read_image(tmp_path / "a.webp").size == (2, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_make_the_whole(monkeypatch: pytest.MonkeyPatch, mode: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    if mode.startswith("I"):
        image = Image.fromarray(
            rng.integers(0, 2**16, (23, 17)).astype(np.uint16 if ";" in mode else np.int32)
        )
    else:
        image = Image.fromarray(rng.integers(0, 256, (23, 17, 4), dtype=np.uint8))
        image = image.convert("RGB" if mode in ("YCbCr", "CMYK") else "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    whole = read_image(image, channels=channels)
    monkeypatch.setattr(decode, "_STRIP", 40)
    assert read_image(image, channels=channels).tobytes() == whole.tobytes()


def test_a_large_jpeg_is_decoded_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    Image.fromarray(np.tile(ramp, (40, 1))).save(tmp_path / "a.jpg", quality=95)
    sizes = []
    for pixels in (64 * 40, 64 * 40 // 4, 64 * 40 // 16, 64 * 40 // 64):
        monkeypatch.setitem(decode.FORMATS, "JPEG", decode.Limit(pixel=decode.MAX_DECODED // pixels))
        sizes.append(read_image(tmp_path / "a.jpg", channels=1).size)
    assert sizes == [(64, 40), (32, 20), (16, 10), (8, 5)]
    seen = Preprocess.parse("raw").apply(read_image(tmp_path / "a.jpg"), channels=1, size=(5, 8))
    assert np.all(np.diff(seen[0], axis=1) > 0)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_damaged_files_of_every_format() -> None:
    """Decoded or refused, whatever they are; no program is started."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "hostile_images.py"), "0", "400"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1] if lines else ''}\n{done.stderr[-3000:]}"
    *files, outcomes, peak = lines
    assert len(files) == 400
    assert outcomes.endswith("programs started: []")
    assert sum(" decoded" in line for line in files) > 50
    assert int(peak.split()[1]) < MEMORY
    assert float(peak.split()[5]) < SECONDS


# ---------------------------------------------------------------------------------- files that files name


@pytest.mark.parametrize(
    "labels", ["../secret.txt", "/etc/passwd", "link.txt", "sub/../../secret.txt", "a\\u0000"]
)
def test_labels_of_a_sidecar_lie_beside_it(tmp_path: Path, labels: str) -> None:
    """Who hands in a model does not choose among all files of the machine."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("a\nb\n")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "net.toml").write_text(f'labels = "{labels}"\n')
    with pytest.raises(InputError, match="cannot read the labels"):
        read_sidecar(folder / "net.onnx")
    for good in ("names.txt", "sub/names.txt", "sub/../names.txt"):
        (folder / good).resolve().write_text("a\nb\n")
        (folder / "net.toml").write_text(f'labels = "{good}"\n')
        assert read_sidecar(folder / "net.onnx").labels == ("a", "b")


def test_a_model_and_its_labels_that_are_links_to_one_store(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "model"
    store.mkdir()
    folder.mkdir()
    (store / "1").write_text('labels = "names.txt"\n')
    (store / "2").write_text("a\nb\n")
    (folder / "net.toml").symlink_to(store / "1")
    (folder / "names.txt").symlink_to(store / "2")
    assert read_sidecar(folder / "net.onnx").labels == ("a", "b")


@pytest.mark.parametrize("text", ["a." * 2**15, "a=" + "{a=" * 2**14, "#" * 2**16 + "\n"])
def test_settings_that_take_long_to_parse(tmp_path: Path, text: str) -> None:
    (tmp_path / "net.toml").write_text(text)
    start = time.process_time()
    with pytest.raises(InputError):
        read_sidecar(tmp_path / "net.onnx")
    assert time.process_time() - start < SECONDS
