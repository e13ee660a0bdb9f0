"""Weights stay where they are stored, in the ONNX file or in files beside it, until a layer needs them.

protobuf copies everything that it parses, and copies it again for every reader.  Nearly all of a model is
weights. So `split` cuts them out first, and protobuf parses the rest.  A message is a sequence of fields.
Each field is a tag (number and kind) and a payload; a payload that may be a message begins with its length.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ..files import beside, open_regular
from ..kernels.codegen.memory import aligned
from ..limits import elements

Buffer = bytes | mmap.mmap
#: The position of a tensor's data in the file, and its length.
Span = tuple[int, int]

#: Field numbers in onnx.proto on the way to a tensor's data.
_GRAPH, _INITIALIZER, _DATA_TYPE, _RAW_DATA = 7, 5, 2, 9
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
#: Tensors of fewer bytes are left in the message.
_SMALL = 4096


@dataclass(frozen=True)
class Store:
    """A file that holds tensors, or its bytes."""

    file: Path | bytes
    #: Identifies the file, so that another one of the same name is noticed.
    identity: tuple[int, ...] = ()
    size: int = 0
    #: Bytes on disk.  A file with holes is longer than that.
    held: int = 0

    def read(self, start: int, memory: NDArray[np.uint8]) -> None:
        """Fill `memory` with bytes from `start` on.  Raises OSError if the file is gone or has changed."""
        if isinstance(self.file, bytes):
            memory[:] = np.frombuffer(self.file, np.uint8, memory.size, start)
            return
        with self.opened() as file:
            file.seek(start)
            if file.readinto(memory.data) != memory.size:
                raise OSError("the file has changed")

    @contextmanager
    def opened(self) -> Iterator[BufferedReader]:
        """The file, which must not be bytes.  Raises OSError where it is gone or has changed."""
        assert not isinstance(self.file, bytes)
        with open_regular(self.file) as file:
            if _identity(file) != self.identity:
                raise OSError("the file has changed")
            yield file


@dataclass(frozen=True)
class Piece:
    """The place of a tensor's data: key of the store, first byte, number of bytes, little-endian type."""

    store: str
    start: int
    length: int
    dtype: np.dtype[Any]


#: 1 in bfloat16, which is read as an unsigned integer.
_BFLOAT16_ONE = 0x3F80


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and the files that hold them by the model's names for these files.

    `files`: all files that the model was read from, also where no tensor is left in them.
    """

    stores: Mapping[str, Store] = field(default_factory=dict)
    pieces: Mapping[str, Piece] = field(default_factory=dict)
    files: tuple[Store, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors.  A file that several tensors share counts once."""
        taken = dict.fromkeys(self.stores, 0)
        for piece in self.pieces.values():
            taken[piece.store] += piece.length
        return sum(min(length, self.stores[name].held) for name, length in taken.items())

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The tensor, in aligned memory of its own.

        Raises ValueError if its size is not that of `shape`, OSError if the file is gone or has changed.
        """
        piece = self.pieces[name]
        if piece.length != piece.dtype.itemsize * elements(shape):
            raise ValueError(f"{piece.length} bytes do not make {piece.dtype} of shape {shape}")
        values = aligned(shape, piece.dtype)
        self.stores[piece.store].read(piece.start, values.reshape(-1).view(np.uint8))
        return values.astype(piece.dtype.newbyteorder("="), copy=False)

    def kept(self) -> Weights:
        """The same tensors in memory.  Raises OSError if a file is gone or has changed."""
        stores, pieces = {}, {}
        for name, piece in self.pieces.items():
            data = np.empty(piece.length, np.uint8)
            self.stores[piece.store].read(piece.start, data)
            stores[name] = Store(data.tobytes(), size=piece.length, held=self.stores[piece.store].held)
            pieces[name] = replace(piece, store=name, start=0)
        return Weights(stores, pieces, self.files)


class StandIns(Weights):
    """Tensors of the same shapes that take no memory: all their numbers are 1.

    A graph that is built of them shows what nodes do with shapes.  Small tensors are read, and so are
    integers of more than two bytes, which may be indices.
    """

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = self.pieces[name].dtype
        if self.pieces[name].length < _SMALL or (dtype.kind != "f" and dtype.itemsize > 2):
            return super().read(name, shape)
        one = _BFLOAT16_ONE if dtype.itemsize == 2 and dtype.kind == "u" else 1
        return np.broadcast_to(np.array(one, dtype.newbyteorder("=")), shape)


def _identity(file: BufferedReader) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _store(path: Path, file: BufferedReader) -> Store:
    size, blocks = os.fstat(file.fileno()).st_size, getattr(os.fstat(file.fileno()), "st_blocks", None)
    return Store(path, _identity(file), size, size if blocks is None else min(size, 512 * blocks))


def open_split(file: Path | bytes) -> tuple[bytes, list[Span | None], Store]:
    """Apply `split` to a file or to bytes.  Returns also the store.  Raises OSError."""
    if isinstance(file, bytes):
        return *split(file), Store(file, size=len(file), held=len(file))
    with open_regular(file) as opened:
        store = _store(file, opened)
        if not store.size:  # An empty file cannot be mapped.
            return b"", [], store
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return *split(data), store


def open_beside(model: Path, location: str) -> Store:
    """Open the file `location`, a relative path, beside or below a model.

    Raises OSError if it cannot be read, and PermissionError if it is outside the model's folder, with or
    without links.
    """
    path = beside(model, location)
    if not path.is_file():  # Opening a pipe would block.
        raise FileNotFoundError(f"there is no file {location!r} beside the model")
    with open_regular(path) as opened:
        return _store(path, opened)


def split(data: Buffer) -> tuple[bytes, list[Span | None]]:
    """Cut the weights out of a ModelProto's bytes.

    Returns the remaining bytes, and for each initializer the span of its data, or None if it was left in.
    Bytes that are no well-formed message are returned whole, without spans; protobuf judges them.
    """
    spans: list[Span | None] = []
    try:
        return _without_weights(data, 0, len(data), (_GRAPH, _INITIALIZER), spans), spans
    except (ValueError, IndexError):
        return data[:], []


def _without_weights(
    data: Buffer, start: int, stop: int, path: tuple[int, ...], spans: list[Span | None]
) -> bytes:
    """The message in data[start:stop] without weights.  `path`: the fields that lead down to the tensors."""
    if not path:
        return _without_data(data, start, stop, spans)
    parts = []
    for number, kind, begin, payload, end in _fields(data, start, stop):
        if (number, kind) == (path[0], _LENGTH):
            inner = _without_weights(data, payload, end, path[1:], spans)
            parts += [_varint(number << 3 | _LENGTH), _varint(len(inner)), inner]
        else:
            parts.append(data[begin:end])
    return b"".join(parts)


def _without_data(data: Buffer, start: int, stop: int, spans: list[Span | None]) -> bytes:
    """The TensorProto in data[start:stop] without its raw data, if these are many float32 numbers."""
    if stop - start < _SMALL:
        spans.append(None)
        return data[start:stop]
    kept, span, data_type = [], None, 0
    for number, kind, begin, payload, end in _fields(data, start, stop):
        if (number, kind) == (_DATA_TYPE, _VARINT):
            data_type, _ = _read_varint(data, payload)
        if (number, kind) == (_RAW_DATA, _LENGTH):
            span = payload, end - payload
        else:
            kept.append(data[begin:end])
    cut = span is not None and span[1] >= _SMALL and data_type == TensorProto.FLOAT
    spans.append(span if cut else None)
    return b"".join(kept) if cut else data[start:stop]


def _fields(data: Buffer, at: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(number, kind, begin, payload, end) of each field.  Raises ValueError, IndexError."""
    while at < stop:
        begin = at
        tag, payload = _read_varint(data, begin)
        kind = tag & 7
        if kind == _VARINT:
            at = _read_varint(data, payload)[1]
        elif kind == _LENGTH:
            length, payload = _read_varint(data, payload)
            at = payload + length
        elif kind in (_FIXED64, _FIXED32):
            at = payload + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"field kind {kind}")
        if at > stop:
            raise ValueError("the field runs over its message")
        yield tag >> 3, kind, begin, payload, at


def _read_varint(data: Buffer, at: int) -> tuple[int, int]:
    """The number at `at`, of seven bits a byte, least significant first; and the position behind it."""
    value = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))
