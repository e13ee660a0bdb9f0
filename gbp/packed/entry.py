"""One file of the cache: an object, pickled, whose large arrays are read in place.

    the arrays, each at a multiple of 64 bytes
    the head, pickled: where the arrays are, their checksum, the pickled object
    the tail, of 56 bytes: the head's digest and its length, and _MAGIC

A digest detects a damaged head before it is unpickled, since a pickle can run code; a checksum detects
damaged arrays.  Neither protects against somebody who may write to the folder: such a folder is not used.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import pickle
import struct
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..kernels.checksum import checksum
from ..kernels.codegen.cache import is_own, replacing
from ..kernels.codegen.memory import ALIGNMENT

_MAGIC = b"gbp\0kept1"
_TAIL = struct.Struct(f"<32sq{len(_MAGIC)}s")
#: Arrays of fewer bytes are not worth a place of their own.
_SMALL = 2**12


class DamagedError(Exception):
    """The file does not hold what was written into it."""


class _Head(NamedTuple):
    """The end of an entry, which says how to read the rest.

    Parameters
    ----------
    spans
        The place of each array: its first byte, and how many bytes it has.
    size, checksum
        How many bytes all arrays have, padded, and their checksum.
    pickled
        The pickled object.
    """

    spans: list[tuple[int, int]]
    size: int
    checksum: bytes
    pickled: bytes


class Pickled:
    """An object, pickled, but for its large arrays.

    Those are float32 with one axis, as kernels take weights, which they do not write.
    """

    def __init__(self, value: Any) -> None:
        self._arrays: list[memoryview] = []
        self._pickled = pickle.dumps(value, protocol=5, buffer_callback=self._goes_with_object)
        #: About the size of a file with it.
        self.nbytes = len(self._pickled) + sum(array.nbytes for array in self._arrays)

    def _goes_with_object(self, buffer: pickle.PickleBuffer) -> bool:
        """Decide for an array: True where it is pickled with the object; else it is added to the arrays."""
        array = memoryview(buffer)
        if array.format == "f" and array.ndim == 1 and array.nbytes >= _SMALL:
            self._arrays.append(buffer.raw())
            return False
        return True

    def save(self, path: Path, threads: int) -> None:
        """Write it into a file.  Raises OSError."""
        with replacing(path) as file:
            spans = []
            for array in self._arrays:
                spans.append((file.tell(), array.nbytes))
                file.write(array)
                file.write(bytes(-file.tell() % ALIGNMENT))
            size = file.tell()
            file.flush()
            head = pickle.dumps(_Head(spans, size, _checksum(file, size, threads), self._pickled), protocol=5)
            file.write(head)
            file.write(_TAIL.pack(_digest(path, head), len(head), _MAGIC))


def _checksum(file: IO[bytes], size: int, threads: int) -> bytes:
    """The checksum of the first `size` bytes of a file."""
    if not size:
        return b""
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
        return checksum(data, threads)


def load(path: Path, threads: int) -> Any:
    """The object in a file; its large arrays are read-only and share memory with all who load it.

    Raises OSError where the file is missing or another user's, and DamagedError.
    """
    with path.open("rb") as file:
        if not is_own(file):
            raise PermissionError("it belongs to another user")
        head = _read_head(path, file)
        data = mmap.mmap(file.fileno(), head.size, access=mmap.ACCESS_READ) if head.size else b""
    if head.size and checksum(data, threads) != head.checksum:
        raise DamagedError
    view = memoryview(data)
    if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        # The checksum has read all pages.  They are dropped: a run reads those that it needs from the file.
        data.madvise(mmap.MADV_DONTNEED)
    return pickle.loads(head.pickled, buffers=[view[start : start + n] for start, n in head.spans])


def _read_head(path: Path, file: IO[bytes]) -> _Head:
    """The head, once its digest is checked.  Raises DamagedError."""
    total = os.fstat(file.fileno()).st_size
    if total < _TAIL.size:
        raise DamagedError
    file.seek(total - _TAIL.size)
    digest, length, magic = _TAIL.unpack(file.read(_TAIL.size))
    start = total - _TAIL.size - length
    if magic != _MAGIC or length < 0 or start < 0:
        raise DamagedError
    file.seek(start)
    data = file.read(length)
    if digest != _digest(path, data):
        raise DamagedError
    head: _Head = pickle.loads(data)
    if head.size != start:
        raise DamagedError
    return head


def _digest(path: Path, head: bytes) -> bytes:
    """The digest of a head and of the file's name, which identifies its content."""
    return hashlib.sha256(path.name.encode() + head).digest()
