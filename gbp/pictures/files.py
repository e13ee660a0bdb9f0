"""Writes pictures and arrays.  A file appears complete or not at all, and says how it was made."""

from __future__ import annotations

import io
import json
import os
import secrets
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import InputError, reason_of
from .figure import Figure

#: A path, or a binary file object that is open for writing.
File: TypeAlias = str | os.PathLike[str] | IO[bytes]

#: Suffix → Pillow's name of the format, and its options.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_type": zlib.Z_RLE}),  # a fifth of the usual time for 5 % more bytes
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),  # full colour resolution, for details of one pixel
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95, "method": 4}),
    ".pdf": ("PDF", {"quality": 95, "subsampling": 0, "resolution": 150}),
}
VECTORS = ".svg"
ARRAYS = ".npz"
#: The key of the metadata in a PNG; elsewhere it is the field that holds a description.
KEY = "gbp"
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131  # tags of EXIF


def suffix_of(file: File, format: str | None = None) -> str:
    """The suffix of the format in which to write `file`.

    Parameters
    ----------
    file
        A path or a file object.
    format
        A suffix without its dot; by default the path's, and "png" for a file object without a name.

    Raises
    ------
    InputError
        For a format that gbp does not write.
    """
    known = (*FORMATS, VECTORS, ARRAYS)
    if format is not None:
        suffix = "." + str(format).lower().removeprefix(".")
    else:
        name = (
            os.fsdecode(file)
            if isinstance(file, (str, os.PathLike))
            else getattr(file, "name", "unnamed.png")
        )
        suffix = Path(str(name)).suffix.lower()
    if suffix not in known:
        what = repr(format if format is not None else str(file))
        raise InputError(f"cannot tell the format of {what}.", supported=", ".join(known))
    return suffix


def check_path(path: str | os.PathLike[str], format: str | None = None) -> None:
    """Raise `InputError` unless gbp can write the format of `path` and the folder exists."""
    suffix_of(path, format)
    _check_folder(path)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `InputError` unless a file can be written there.  Its folder may still have to be made.

    It is called before what takes long.  A file without a name is written and removed again.
    """
    name = os.fsdecode(path)
    target = Path(name)
    if os.path.isdir(name):
        raise InputError(f"{name!r} is a folder.")
    try:
        with suppress(FileNotFoundError):
            target.lstat()  # refuses what no file can be called, and what is no folder among those above
        folder = next(each for each in target.parents if each.exists())
        handle, probe = tempfile.mkstemp(prefix=".gbp-", suffix=".tmp", dir=folder)
        os.close(handle)
        os.unlink(probe)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = reason_of(error)
        if isinstance(error, NotADirectoryError):
            reason = f"{next(str(each) for each in target.parents if each.exists())!r} is no folder"
        raise InputError(f"cannot write {name!r}: {reason}.") from error


def _check_folder(path: str | os.PathLike[str]) -> None:
    path = os.fsdecode(path)
    target = Path(path)
    if not os.path.isdir(target.parent):
        raise InputError(f"there is no folder {str(target.parent)!r} to write {target.name!r} to.")
    if os.path.isdir(path):
        raise InputError(f"{str(path)!r} is a folder.")


def save_figure(
    figure: Figure, file: File, format: str | None = None, metadata: dict[str, Any] | None = None
) -> None:
    """Write a figure, as pixels or as SVG.

    Parameters
    ----------
    figure
        The figure.
    file, format, metadata
        As for `save_picture`.

    Raises
    ------
    InputError
        As `save_picture`.
    """
    if suffix_of(file, format) != VECTORS:
        save_picture(figure.image(), file, format, metadata)
        return
    text = figure.svg(_json(metadata)).encode()
    write(file, lambda to: to.write(text))


def save_picture(
    image: Image.Image, file: File, format: str | None = None, metadata: dict[str, Any] | None = None
) -> None:
    """Write a picture, complete or not at all.

    Parameters
    ----------
    image
        The picture.
    file
        A path or a binary file object.
    format
        A suffix of `FORMATS` without its dot; by default the path's.
    metadata
        The facts that the file holds about itself, in JSON's types: in a PNG the text "gbp", in JPEG and WebP
        the EXIF tag ImageDescription, in a PDF the subject.

    Raises
    ------
    InputError
        For another format, or where the file cannot be written.
    """
    suffix = suffix_of(file, format)
    if suffix == VECTORS:
        raise InputError("a picture alone is no drawing.", hint="Write it with captions, or as .png.")
    if suffix not in FORMATS:
        raise InputError(f"{str(file)!r} is not the name of a picture.", supported=", ".join(FORMATS))
    name, options = FORMATS[suffix]
    options = options | _metadata(suffix, metadata)
    encoded = io.BytesIO()  # Pillow writes to a file itself, and ignores that a full disk takes only a part
    image.save(encoded, format=name, **options)
    write(file, lambda to: to.write(encoded.getvalue()))


def _json(metadata: dict[str, Any] | None) -> str:
    return json.dumps(metadata, ensure_ascii=True) if metadata else ""


def _metadata(suffix: str, metadata: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of Pillow that put metadata into a file of this format."""
    if not metadata:
        return {}
    text = _json(metadata)
    if suffix == ".png":
        info = PngInfo()
        info.add_text("Software", "gbp")
        info.add_text(KEY, text, zip=len(text) > 1024)
        return {"pnginfo": info}
    if suffix == ".pdf":
        return {"producer": "gbp", "subject": text}
    exif = Image.Exif()
    exif[_DESCRIPTION], exif[_SOFTWARE] = text, "gbp"
    return {"exif": exif.tobytes()}


def write(file: File, fill: Callable[[IO[bytes]], object]) -> None:
    """Call `fill` with a binary file to write to.

    For a path it is a temporary file in the same folder, which is renamed at the end, so that nobody reads an
    incomplete file.  For a file object it is the object itself.
    """
    if not isinstance(file, (str, os.PathLike)):
        fill(file)
        return
    file = os.fsdecode(file)
    _check_folder(file)
    temporary = Path(file).with_name(f".gbp-{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as to:
                fill(to)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {str(file)!r}: {error.strerror or error}.") from error
