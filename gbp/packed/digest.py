"""The digest of a file, which says what is in it.

The digest of half a gigabyte takes as long to compute as an explanation.  So the digest of a file is
remembered, together with its inode, its size, and the times when its content (mtime) and anything about it
(ctime) changed last.  While these are the same, so is the content: nobody but the system sets a ctime.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..kernels.codegen.cache import make_folder, replacing

#: An open file.
Opened = AbstractContextManager[BufferedReader]

#: A file that changed less than so many nanoseconds ago may change again and keep its times.
_SETTLED = 3 * 10**9


def digest_of_file(path: Path, opened: Callable[[], Opened], folder: str) -> str:
    """The SHA-256 of a file, hexadecimal.

    Parameters
    ----------
    path
        The file.
    opened
        Opens it, and raises OSError if it is not the one that was read before.
    folder
        Where digests are remembered.

    Raises
    ------
    OSError
        Where the file is gone or has changed.
    """
    where = Path(folder, f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.seen")
    with opened() as file:
        before = _stamp(file)
        digest = None if before is None else _remembered(where, before)
        if digest is not None:
            return digest
        found = hashlib.file_digest(file, "sha256").hexdigest()
        after = _stamp(file)
    if after is not None and before == after and max(after[-2:]) < time.time_ns() - _SETTLED:
        with suppress(OSError):  # where it cannot be written, the file is read again next time
            make_folder(folder)
            line = json.dumps([*after, found])
            with replacing(where) as to:
                to.write(f"{_digest(line)} {line}".encode())
    return found


def _remembered(where: Path, stamp: list[Any]) -> str | None:
    """The digest that is remembered in the file `where` for this stamp; None where there is none."""
    try:
        check, _, line = where.read_text().partition(" ")
        if check != _digest(line):
            return None
        *known, digest = json.loads(line)
    except (OSError, ValueError):  # the file was never seen, or what is remembered is damaged
        return None
    return str(digest) if known == stamp else None


def _digest(line: str) -> str:
    """Shows whether a line is damaged: the digest in it is shown to people."""
    return hashlib.sha256(line.encode()).hexdigest()


def _stamp(file: BufferedReader) -> list[Any] | None:
    """A value that changes when the file does; None where the system does not say."""
    if os.name != "posix":  # elsewhere st_ctime is when the file was made
        return None
    status = os.fstat(file.fileno())
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
