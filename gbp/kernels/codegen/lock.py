"""One process compiles a kernel while others that need it wait, then load what it kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

from .cache import CACHE_DIRECTORY, make_folder

try:
    import fcntl
except ImportError:  # Windows: every process compiles; the cache's files are replaced whole, so that is safe
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Hold the lock on `name` that processes of this machine share.

    All names share one file, of which each locks a byte.  Where two names have the same byte, one waits for
    nothing.  A process holds one lock at a time, because closing the file releases all of its locks.  Where
    no file can be written or locked, there is no lock.
    """
    file = -1
    try:
        if fcntl is not None:
            make_folder()
            file = os.open(os.path.join(CACHE_DIRECTORY, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.lockf(file, fcntl.LOCK_EX, 1, crc32(name.encode()))
    except OSError:
        pass
    try:
        yield
    finally:
        if file >= 0:
            os.close(file)
