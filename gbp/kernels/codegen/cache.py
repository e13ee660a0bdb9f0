"""The cache of compiled kernels: one file for each, in a folder that no other user can write to.

    ROOT/                   GBP_CACHE_DIR, or ~/.cache/gbp
        0123456789abcdef/   the kernels of one version of gbp, for one processor
        packed/             the plans of `gbp.packed`, of all versions

The files are run as code.  So a folder that other users may write to or replace is not used, and a file is
used only if its digest matches its contents.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import llvmlite
import llvmlite.binding as llvm
import numba

from .numba_private import CacheLocator, DataFile

log = logging.getLogger("gbp")


#: Numba's settings that change machine code.  NUMBA_… in the environment sets all but the last, which says
#: whether code calls Intel's library of vector functions: that is not there in every process.
_SETTINGS = ("OPT", "BOUNDSCHECK", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT", "USING_SVML")


def _root() -> str:
    given = os.environ.get("GBP_CACHE_DIR")
    if given:
        path = os.path.expanduser(given)
        try:
            return os.path.abspath(path)
        except OSError:  # the current folder is gone
            return path
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):  # which the XDG specification asks to ignore
        caches = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(caches, "gbp")


def _cache_directory() -> str:
    """The folder for the kernels of these sources, this Numba with its settings, and this processor.

    Numba looks at the file of a kernel alone, and would run stale code after an edit of another file that the
    kernel inlines.  A folder that is named by a hash of all files holds no stale code.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(str(source.relative_to(Path(__file__).parents[1])).encode() + source.read_bytes())
    # Each kind of processor has a folder of its own.
    features = numba.config.CPU_FEATURES
    if features is None:
        features = llvm.get_host_cpu_features().flatten()
    target = numba.config.CPU_NAME or llvm.get_host_cpu_name(), features
    versions = numba.__version__, llvmlite.__version__, sys.version
    settings = [getattr(numba.config, name) for name in _SETTINGS]
    digest.update(f"{versions} {target} {settings}".encode())
    return os.path.join(ROOT, digest.hexdigest()[:16])


#: The words of a warning that say what helps.
HINT = "GBP_CACHE_DIR may name a folder that its user alone may write to."

ROOT = _root()
#: Where this version's kernels are kept on this machine.
CACHE_DIRECTORY = _cache_directory()


@cache
def refused(folder: str = CACHE_DIRECTORY, what: str = "kernels") -> str | None:
    """The reason why nothing is kept in a folder, logged once; None if it may be used."""
    found = untrusted(folder)
    if found is not None:
        warn(folder, what, found)
    return found


@cache
def warn(folder: str, what: str, reason: str) -> None:
    """Log, once for each reason, that nothing is kept in a folder, and what would change that."""
    log.warning("%s are not kept in %r: %s. %s", what, folder, reason, HINT)


def is_own(file: BinaryIO) -> bool:
    """Whether an open file belongs to this user or root."""
    return not hasattr(os, "geteuid") or os.fstat(file.fileno()).st_uid in (0, os.geteuid())


def untrusted(folder: str) -> str | None:
    """The reason why another user could have written into `folder`; None if only root or this user could.

    The folder, if it exists, and all folders above it must belong to root or this user, and nobody else may
    write to them.  Exception: a sticky folder above it, such as /tmp, where others cannot replace it.
    """
    if not os.path.isabs(folder):
        return "this user has no home folder" if folder.startswith("~") else "the current folder is gone"
    if not hasattr(os, "geteuid"):  # Windows: folders of a user's profile are that user's own
        return None
    place = os.path.realpath(folder)
    for path in (place, *map(str, Path(place).parents)):
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return error.strerror or str(error)
        if status.st_uid not in (0, os.geteuid()):
            return f"{path!r} belongs to another user"
        is_sticky = path != place and status.st_mode & stat.S_ISVTX
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_sticky:
            return f"others may write to {path!r} (chmod go-w would end that)"
    return None


def make_folder(path: str = CACHE_DIRECTORY) -> None:
    """Make a folder, this user's alone.  Raises OSError where it cannot be made, or is not trusted."""
    if found := untrusted(path):
        raise OSError(found)
    for folder in (*reversed(Path(path).parents), Path(path)):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    if found := untrusted(path):  # somebody made it just now
        raise OSError(found)


#: How the names of files end that are not complete.
PART = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file, for this user alone, which takes its place when it is complete.  Raises OSError."""
    handle, name = tempfile.mkstemp(suffix=PART, dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


class MachineCode(NamedTuple):
    """An object file in memory, and the symbol in it to call."""

    symbol: str
    objects: bytes


class CodeFile:
    """The file of one kernel's machine code: a digest, then the code.

    A file is never changed, only replaced as a whole.  If two processes compile the same kernel at once, both
    write the same file, and the last one stays.

    Parameters
    ----------
    module, name
        The module and the name of the kernel.
    signature
        Its signature, and what else distinguishes it from other kernels.
    """

    def __init__(self, module: str, name: str, signature: str) -> None:
        digest = hashlib.sha256(f"{module} {signature}".encode()).hexdigest()[:16]
        self.name = f"{module.rpartition('.')[2]}_{name}.{digest}"
        self.path = Path(CACHE_DIRECTORY, f"{self.name}.nbc")

    def save(self, code: MachineCode) -> None:
        """Write the file.  Raises OSError."""
        make_folder()
        content = code.symbol.encode() + b"\0" + code.objects
        with replacing(self.path) as file:
            file.write(_digest(str(self.path), content) + content)

    def load(self) -> MachineCode | None:
        """The stored code; None if it is missing, damaged or another user's."""
        if refused():
            return None
        try:
            with self.path.open("rb") as file:
                data = file.read() if is_own(file) else b""
        except OSError:
            return None
        digest, content = data[:32], data[32:]
        if digest != _digest(str(self.path), content):
            return None
        symbol, _, objects = content.partition(b"\0")
        return MachineCode(symbol.decode(), objects)


# For the kernels of cards, which Numba loads and keeps itself.


class Locator(CacheLocator):
    """Says that every kernel is in one folder.

    That folder may be read-only.  Numba's own locators would then choose another folder.
    """

    def get_cache_path(self) -> str:
        return CACHE_DIRECTORY

    def ensure_cache_path(self) -> None:
        make_folder()


class KernelFile(DataFile):
    """One file for each kernel and signature: a digest, then the code.

    It replaces Numba's index and data files.  A file is never changed, only replaced as a whole.  If two
    processes compile the same kernel at once, both write the same file, and the last one stays.
    """

    def _path(self, key: Any) -> str:
        return self.path_of(hashlib.sha256(repr((self.source_stamp, key)).encode()).hexdigest()[:16])

    def save(self, key: Any, data: Any) -> None:
        path, content = self._path(key), self.dump(data)
        with self.open_for_write(path) as file:
            file.write(_digest(path, content) + content)

    def load(self, key: Any) -> Any:
        """The stored kernel; None if it is missing, incomplete or another user's.  Raises OSError."""
        if refused():
            return None
        path = self._path(key)
        with open(path, "rb") as file:
            if not is_own(file):
                return None
            data = file.read()
        digest, content = data[:32], data[32:]
        return pickle.loads(content) if digest == _digest(path, content) else None


def _digest(path: str, content: bytes) -> bytes:
    """The digest of a file's contents and of its name, which identifies kernel, types and machine."""
    return hashlib.sha256(os.path.basename(path).encode() + content).digest()
