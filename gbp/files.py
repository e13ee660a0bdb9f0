"""Opens files that a user or a model names.  Only regular files: reading a pipe or a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from .limits import readable_bytes

#: Most bytes of a text file: labels, or the sidecar of a model.
MAX_TEXT = 2**26


def open_regular(path: str | os.PathLike[str], most: int | None = None) -> BufferedReader:
    """Open a regular file of limited size for reading.

    Raises OSError, also if it is no regular file or is larger, and ValueError for a NUL in the path.
    """
    _check(os.stat(path), most)  # because to open a device may do something
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check(os.fstat(file.fileno()), most)
    except OSError:
        file.close()
        raise
    return file


def _check(status: os.stat_result, most: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "It is no regular file")
    if most is not None and status.st_size > most:
        raise OSError(errno.EFBIG, f"It is larger than {readable_bytes(most)}")


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8", most: int = MAX_TEXT) -> str:
    """Read a text file.  Raises OSError, and ValueError if the bytes are no such text."""
    with open_regular(path, most) as file:
        return file.read().decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def beside(path: Path, location: str) -> Path:
    """The path of the file `location`, which the file `path` names, relative to its own folder.

    Raises PermissionError if the file is outside that folder, also if a link leads there.
    """
    found = (path.parent / location).resolve()
    # Both may be links, as in a cache of models, to files in one other folder.
    folders = path.parent.resolve(), path.resolve().parent
    if os.path.isabs(location) or not any(map(found.is_relative_to, folders)):
        raise PermissionError(f"it lies outside the folder of {path.name!r}")
    return found
