"""What is in a file, as a digest.

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..kernels.codegen.cache import make_folder, replacing

#: An open file.
Opened = AbstractContextManager[BufferedReader]

#: Bytes that are hashed at a time, each by any thread, and read at a time.
_PIECE, _AT_ONCE = 2**25, 2**20
#: A file that changed less than so many nanoseconds ago may change again and keep its times.
_SETTLED = 3 * 10**9


def digest_of_bytes(data: bytes, threads: int) -> str:
    """The digest of bytes."""
    view = memoryview(data)
    return _digest(len(view), lambda i: hashlib.sha256(view[i : i + _PIECE]).digest(), threads)


def digest_of_file(path: Path, opened: Callable[[], Opened], folder: str, threads: int) -> str:
    """The digest of a file.

    Parameters
    ----------
    path
        The file.
    opened
        Opens it, and raises OSError if it is not the one that was read before.
    folder
        Where digests are remembered.
    threads
        How many threads to use.

    Raises
    ------
    OSError
        Where the file is gone or has changed.
    """
    with opened() as file:
        before = _stamp(file)
    where = Path(folder, f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.seen")
    if before is not None:
        try:
            known = json.loads(where.read_text())
            if known[:-1] == before:
                return str(known[-1])
        except (OSError, ValueError, TypeError):  # it was never seen, or this is damaged
            pass

    def piece(start: int) -> bytes:
        digest, left = hashlib.sha256(), _PIECE
        with opened() as file:
            file.seek(start)
            while left > 0 and (part := file.read(min(left, _AT_ONCE))):
                digest.update(part)
                left -= len(part)
        return digest.digest()

    with opened() as file:
        found = _digest(os.fstat(file.fileno()).st_size, piece, threads)
        after = _stamp(file)
    if before is not None and before == after and max(after[-2:]) < time.time_ns() - _SETTLED:
        try:
            make_folder(folder)
            with replacing(where) as to:
                to.write(json.dumps([*after, found]).encode())
        except OSError:  # then it is read again next time
            pass
    return found


def _digest(size: int, piece: Callable[[int], bytes], threads: int) -> str:
    """The digest of the digests of all pieces, which threads compute; `piece` is given where one starts."""
    starts = range(0, size, _PIECE)
    if threads == 1 or len(starts) == 1:
        parts = list(map(piece, starts))
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(piece, starts))
    return hashlib.sha256(b"%d" % size + b"".join(parts)).hexdigest()


def _stamp(file: BufferedReader) -> list[Any] | None:
    """What changes when a file does; None where the system does not say."""
    if os.name != "posix":  # elsewhere st_ctime is when the file was made
        return None
    status = os.fstat(file.fileno())
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
