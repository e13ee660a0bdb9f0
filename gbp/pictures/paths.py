"""Names that a user gives become the paths of image files: files, folders, patterns and lists."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from ..errors import InputError
from ..files import hint_of_address

#: Names of files in the formats of `decode.FORMATS`, and arrays.  A folder is searched for these.
SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".tif", ".tiff", ".webp"}
    | {".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".ppm", ".pgm", ".pbm", ".pnm", ".npy"}
    | {".heic", ".heics", ".heif", ".heifs", ".hif"}
)
STDIN = "-"
_SUPPORTED = "PNG, JPEG, GIF, BMP, TIFF, WebP, JPEG 2000, PPM, HEIC and .npy files, known by their suffix"


def find_images(names: Iterable[str | os.PathLike[str]], stdin: IO[bytes] | None = None) -> list[str]:
    """Find the image files that names stand for.

    Parameters
    ----------
    names
        The path of a file, whatever its suffix.  Or a folder, which is searched with the folders in it, for
        files with one of `SUFFIXES`; hidden files and links to folders are left out.  Or a pattern such as
        "photos/**/*.jpg" that no file has as its name, for the same files.  Or "@list.txt": the paths in that
        file, one a line, or parted by NUL, relative to the current folder; they are taken as they are.
    stdin
        The file that "-" stands for, with paths like those of a list.  Without it "-" stays as it is.

    Returns
    -------
    The paths in the order of the names; those of a folder or a pattern are sorted.  A path that occurs twice
    counts once.

    Raises
    ------
    InputError
        For a name of which there is no file, a folder, pattern or list without any image, and a list or a
        folder that cannot be read.
    """
    found: dict[str, str] = {}
    for name in names:
        for path in _found(os.fsdecode(name), stdin):
            found.setdefault(path if ".." in path else os.path.normpath(path), path)
    return list(found.values())


def is_image_name(path: str) -> bool:
    """Whether the name of a file has one of `SUFFIXES` and is not hidden."""
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _found(name: str, stdin: IO[bytes] | None) -> list[str]:
    if name == STDIN:
        return [name] if stdin is None else _listed(stdin.read(), "the standard input")
    if name.startswith("@"):
        return _listed(_content(name[1:]), repr(name[1:]))
    try:
        if os.path.isdir(name):
            return _some(list(_in_folder(name)), f"the folder {name!r}")
        if os.path.lexists(name):
            return [name]
        if not glob.has_magic(name):
            raise InputError(f"there is no file or folder {name!r}.", hint=hint_of_address(name))
        return _some(_matches(name), f"the pattern {name!r}")
    except InputError:  # a ValueError too
        raise
    except ValueError as error:
        raise InputError(f"cannot open {name!r}: {error}.") from error  # a NUL in the path
    except OSError as error:
        raise InputError(f"cannot read the folder {error.filename!r}: {error.strerror}.") from error


def _matches(pattern: str) -> list[str]:
    """The images that a pattern matches, and those in the folders that it matches."""
    found: set[str] = set()
    for path in glob.iglob(pattern, recursive=True):
        if os.path.isdir(path):
            found.update(_in_folder(path))
        elif is_image_name(path):
            found.add(path)
    return sorted(found)


def _in_folder(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(files) if is_image_name(name))


def _content(path: str) -> bytes:
    """The bytes of a list of paths.  It may be a pipe, as of `@<(find photos)`."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"cannot read the list of images {path!r}: {reason}.",
            hint=hint_of_address(path) or f"For a file whose name begins with @, write ./@{path}.",
        ) from error


def _listed(content: bytes, origin: str) -> list[str]:
    lines = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    paths = [os.fsdecode(line) for line in lines if line.strip()]
    if not paths:
        raise InputError(f"{origin} lists no images.", supported="one path a line")
    return paths


def _some(paths: list[str], origin: str) -> list[str]:
    if not paths:
        raise InputError(f"{origin} holds no images.", supported=_SUPPORTED)
    return paths
