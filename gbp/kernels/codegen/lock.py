"""A lock between processes: one makes what a cache will keep while others wait, and then they load it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from zlib import crc32

from .cache import CACHE_DIRECTORY, make_folder

try:
    import fcntl
except ImportError:  # Windows: every process compiles; the cache's files are replaced whole, so that is safe
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_one(name: str, folder: str = CACHE_DIRECTORY) -> Iterator[None]:
    """Hold a lock on `name` in a folder of the cache, which all processes of this machine share.

    All names share one file, and each locks one byte of it.  If two names have the same byte, one waits
    without need.  A process that closes the file loses all of its locks there, also those of other threads:
    then two processes make the same, which costs time and nothing else.  If the file cannot be written or
    locked, there is no lock.
    """
    file = -1
    try:
        with suppress(OSError):
            if fcntl is not None:
                make_folder(folder)
                file = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.lockf(file, fcntl.LOCK_EX, 1, crc32(name.encode()))
        yield
    finally:
        if file >= 0:
            os.close(file)
