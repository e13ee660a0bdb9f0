"""Opens files that a user or a model names.  Only regular files: reading a pipe or a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from .errors import InputError, readable_bytes

#: Most bytes of a text file: labels, or the sidecar of a model.
MAX_TEXT = 2**26


def open_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> BufferedReader:
    """Open a regular file of at most `max_bytes` bytes for reading; None for any size.

    Raises OSError if it cannot be opened, is no regular file or is larger.  Raises ValueError if the path
    holds a NUL.
    """
    _check(os.stat(path), max_bytes)  # before it is opened, because opening a device may have effects
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check(os.fstat(file.fileno()), max_bytes)  # again, because the path may lead elsewhere by now
    except OSError:
        file.close()
        raise
    return file


def stamp_of(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """A value that changes when the file does, its time and its size; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL byte in the path
        return None
    return status.st_mtime_ns, status.st_size


def _check(status: os.stat_result, max_bytes: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "It is no regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"It is larger than {readable_bytes(max_bytes)}")


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8", max_bytes: int = MAX_TEXT) -> str:
    """Read a text file.  Raises OSError, and ValueError if the bytes are no text in this encoding."""
    with open_regular(path, max_bytes) as file:
        return file.read().decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def beside(path: Path, location: str) -> Path:
    """The path of a file that another file names by a path relative to its own folder.

    `path` is the file that names, `location` the path that it gives.  Raises PermissionError if `location`
    leads out of the folder, be it by a link.
    """
    found = (path.parent / location).resolve()
    # A cache of downloaded models may hold links to files that are all in one other folder.  So the folder
    # that `path` itself links into is allowed as well.
    folders = path.parent.resolve(), path.resolve().parent
    if os.path.isabs(location) or not any(map(found.is_relative_to, folders)):
        raise PermissionError(f"it is outside the folder of {path.name!r}")
    return found


def absolute(path: str | os.PathLike[str]) -> str:
    """The path from the root on.  Raises InputError where the current folder is gone and it begins there."""
    try:
        return os.path.abspath(os.fsdecode(path))
    except OSError as error:
        raise InputError(f"{os.fsdecode(path)!r} is relative, and the current folder is gone.") from error


def is_address(name: str | os.PathLike[str]) -> bool:
    """Whether a name is an address of the network.  A `Path` of one has lost a slash."""
    return os.fsdecode(name).lower().startswith(("http:/", "https:/", "ftp:/", "s3:/", "gs:/"))


def hint_of_address(name: str) -> str | None:
    """A hint where an address is given for a file that is read; else None."""
    if name.lower().startswith("file:/"):
        return "Give its path, without file://."
    return "gbp reads nothing from the network: download it." if is_address(name) else None
