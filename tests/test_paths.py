"""Names become image files: folders, patterns, lists, and what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from gbp.errors import InputError
from gbp.pictures.decode import FORMATS
from gbp.pictures.paths import SUFFIXES, find_images

FILES = ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.npy", "sub/deep/d.webp", ".cache/e.png")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    return tmp_path


IMAGES = ["photos/a.JPG", "photos/b.png", "photos/sub/c.npy", "photos/sub/deep/d.webp"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["photos"], IMAGES),
        (["photos/"], IMAGES),
        (["photos/notes.txt", "photos/b.png"], ["photos/notes.txt", "photos/b.png"]),  # named: taken as it is
        (["photos/*.png"], ["photos/b.png"]),
        (["photos/**"], IMAGES),
        (["photos/s*"], IMAGES[2:]),
        (["photos/[ab].*"], IMAGES[:2]),
        (
            ["photos/sub/c.npy", "photos"],
            [IMAGES[2], *IMAGES[:2], IMAGES[3]],
        ),  # each once, where it came first
        (["./photos/b.png", "photos//b.png", "photos/b.png"], ["./photos/b.png"]),
        (["-", "photos/b.png"], ["-", "photos/b.png"]),
        ([Path("photos/b.png")], ["photos/b.png"]),
    ],
)
def test_names(names: list[str], found: list[str]) -> None:
    assert find_images(names) == found


def test_a_file_whose_name_is_a_pattern() -> None:
    Path("cat[1].png").write_bytes(b"")
    assert find_images(["cat[1].png"]) == ["cat[1].png"]


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="links need a right on Windows")
def test_links_to_folders_are_not_followed_and_links_to_files_are() -> None:
    os.symlink("..", "photos/loop")
    os.symlink("b.png", "photos/z.png")
    os.symlink("nowhere", "photos/gone.png")
    assert find_images(["photos"]) == [*IMAGES[:2], "photos/gone.png", "photos/z.png", *IMAGES[2:]]
    assert find_images(["photos/gone.png"]) == ["photos/gone.png"]  # it is there, and cannot be opened


@pytest.mark.parametrize(
    "content",
    [
        b"b.png\n\nnowhere/x y.jpg\n",
        b"b.png\r\nnowhere/x y.jpg",
        b"b.png\0nowhere/x y.jpg\0",
        b"\xef\xbb\xbfb.png\nnowhere/x y.jpg\nb.png\n",
    ],
)
def test_lists(content: bytes) -> None:
    Path("list.txt").write_bytes(content)
    assert find_images(["@list.txt"]) == ["b.png", "nowhere/x y.jpg"]
    assert find_images(["-"], io.BytesIO(content)) == ["b.png", "nowhere/x y.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_that_is_no_text() -> None:
    name = os.fsdecode(b"photos/\xff\xfe.png")
    try:
        Path(name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes text alone")
    assert name in find_images(["photos"])
    assert find_images(["-"], io.BytesIO(b"photos/\xff\xfe.png\n")) == [name]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.png", "there is no file or folder 'nowhere.png'"),
        ("empty", "the folder 'empty' holds no images"),
        ("photos/*.txt", "the pattern 'photos/*.txt' holds no images"),
        ("nowhere/*", "holds no images"),
        ("@nowhere.txt", "write ./@nowhere.txt"),
        ("@photos", "cannot read the list of images 'photos'"),
        ("@photos/b.png", "lists no images"),
        ("a\0b", "there is no file or folder 'a\\x00b'"),
        ("a\0b/*", "cannot open 'a\\x00b/*': "),
        ("", "there is no file or folder ''"),
    ],
)
def test_refused(name: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        find_images(["photos/b.png", name])
    assert says in str(error.value)


def test_the_suffixes_are_those_of_the_formats() -> None:
    try:
        import pillow_heif
    except ImportError:
        known = {".heic", ".heics", ".heif", ".heifs", ".hif"}
    else:
        known = set()
        pillow_heif.register_heif_opener(thumbnails=False)
    known |= {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert known - {".pfm"} | {".npy"} == SUFFIXES  # .pfm holds 32-bit numbers, which are refused
