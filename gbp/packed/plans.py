"""Which plans are kept, under which names, and for how long."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from ..errors import readable_bytes
from ..kernels.codegen.amx import is_usable
from ..kernels.codegen.cache import CACHE_DIRECTORY, PART, ROOT, log, make_folder, refused
from ..kernels.codegen.lock import only_one
from . import entry
from .digest import Opened, digest_of_file

T = TypeVar("T")

#: Where plans are kept on this machine.
FOLDER = os.path.join(ROOT, "packed")
#: The most bytes of all plans together.  Those that were used last stay.
MAX_KEPT = 4 * 2**30
#: The most digests of files that are remembered.
_MAX_SEEN = 2**12
#: Bytes of the smallest model whose plan is kept.  A smaller one is built as fast as it is found.
_MIN_MODEL = 2**20
#: Seconds after which the writer of an incomplete file is taken for dead.
_MAX_WRITING = 3600


class File(Protocol):
    """A file of a model, or bytes that were given in its place."""

    @property
    def file(self) -> Path | bytes: ...
    @property
    def size(self) -> int: ...
    def opened(self) -> Opened: ...


class Plans:
    """The plans of one model.

    Parameters
    ----------
    files
        The content that the model was read from; no plan is kept if that is nothing or small.
    facts
        All that the plans depend on besides the files and the sources of gbp: text, numbers, None, arrays,
        and tuples and dicts of these.
    threads
        How many threads to use.
    """

    def __init__(self, files: Sequence[File], facts: Sequence[Any], threads: int) -> None:
        self._threads, self._facts, self._digests = threads, "", list[str]()
        if not _MIN_MODEL <= sum(file.size for file in files) <= MAX_KEPT:
            return
        if refused() or refused(FOLDER, "packed weights"):
            return
        with suppress(OSError):  # a file is gone or has changed: who reads its weights will say so
            if any(map(_has_holes, files)):  # it takes little room, and long to read
                return
            self._digests = list(map(_digest, files))
            self._facts = "\n".join(map(_word, facts))

    @property
    def digest(self) -> str:
        """The SHA-256 of the model's own file, hexadecimal; "" where no plan is kept."""
        return self._digests[0] if self._digests else ""

    def of(self, facts: Sequence[Any], build: Callable[[], T]) -> T:
        """The plan that `build` makes.

        Parameters
        ----------
        facts
            More that this plan depends on.
        build
            Makes the plan, where none is kept.
        """
        if not self._digests:
            return build()
        words = "\n".join((_sources(), *self._digests, self._facts, *map(_word, facts)))
        path = Path(FOLDER, hashlib.sha256(words.encode()).hexdigest()[:32])
        found: T | None = self._load(path)
        if found is not None:
            return found
        with only_one(path.name, FOLDER):
            found = self._load(path)  # another process may have built it meanwhile
            if found is not None:
                return found
            made = build()
            if not self._save(path, made):
                return made
        # Its weights are then in memory that other processes share.
        found = self._load(path)
        return made if found is None else found

    def _load(self, path: Path) -> Any:
        """The plan in a file; None where there is none, or where it is damaged, which is logged."""
        try:
            found = entry.load(path, self._threads)
        except FileNotFoundError:
            return None
        except entry.DamagedError:
            log.warning("the kept plan %r is damaged and is built anew", str(path))
            with suppress(OSError):
                path.unlink()
            return None
        except OSError as error:
            log.warning("the kept plan %r cannot be read: %s", str(path), error.strerror or error)
            return None
        with suppress(OSError):  # of a cache that may not be written to
            os.utime(path)
        return found

    def _save(self, path: Path, plan: Any) -> bool:
        """Keep a plan.  Returns whether it is kept."""
        try:
            make_folder(FOLDER)
            pickled = entry.Pickled(plan)
            if not _make_room(path.parent, pickled.nbytes):
                log.info("a plan of %s is not kept: there is no room", readable_bytes(pickled.nbytes))
                return False
            pickled.save(path, self._threads)
        except OSError as error:
            log.info("packed weights are not kept in %r: %s", FOLDER, error.strerror or error)
            return False
        return True


def _has_holes(file: File) -> bool:
    """Whether a file is longer than what it takes on disk."""
    if isinstance(file.file, bytes):
        return False
    status = file.file.stat()
    blocks = getattr(status, "st_blocks", None)  # of 512 bytes; some systems do not say
    return blocks is not None and 512 * blocks < status.st_size - _MIN_MODEL


def _digest(file: File) -> str:
    if isinstance(file.file, bytes):
        return hashlib.sha256(file.file).hexdigest()
    return digest_of_file(file.file, file.opened, FOLDER)


def _make_room(folder: Path, size: int) -> bool:
    """Remove what was used least lately, so that `size` bytes more are not too many.  Raises OSError."""
    if size > MAX_KEPT or 2 * size > shutil.disk_usage(folder).free:
        return False
    now, plans, seen = time.time(), [], []
    for path in folder.iterdir():
        with suppress(OSError):  # another process may remove it
            status = path.stat()
            if path.suffix == PART:
                if now - status.st_mtime > _MAX_WRITING:
                    path.unlink()
            elif path.suffix == ".seen":
                seen.append((status.st_mtime, 1, path))
            elif path.name != "lock":
                plans.append((status.st_mtime, status.st_size, path))
    _remove_oldest(plans, MAX_KEPT - size)
    _remove_oldest(seen, _MAX_SEEN)
    return True


def _remove_oldest(files: list[tuple[float, int, Path]], limit: int) -> None:
    """Remove files (time, size, path) until the sizes add up to no more than `limit`."""
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        with suppress(OSError):
            path.unlink()
            total -= size


@cache
def _sources() -> str:
    """A digest of gbp's own sources and of what they run on: other ones may pack otherwise."""
    package = Path(__file__).parents[1]
    # The last part of the name alone: a cache that was copied to another place is as good there.
    kernels = os.path.basename(CACHE_DIRECTORY)
    # A plan that uses AMX is no good where it may not be used; to ask is also to ask for it.
    digest = hashlib.sha256(f"{kernels} {sys.version} {np.__version__} {is_usable()}".encode())
    for source in sorted(package.rglob("*.py")):
        digest.update(str(source.relative_to(package)).encode() + source.read_bytes())
    return digest.hexdigest()


def _word(fact: Any) -> str:
    """A text that is the same for equal facts, and another one for others."""
    if isinstance(fact, np.ndarray):
        return f"{fact.dtype} {fact.shape} {hashlib.sha256(fact.tobytes()).hexdigest()}"
    if isinstance(fact, dict):
        return f"{{{', '.join(f'{key!r}: {_word(fact[key])}' for key in sorted(fact))}}}"
    return repr(fact)
