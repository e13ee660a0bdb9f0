"""`Index`: one row for each image.  A journal takes them during the run, a Parquet file at its end.

A Parquet file cannot be appended to.  The journal can: a line is a row in JSON.  A line that was cut short,
because the process was killed, is dropped.  A row is written after all of its files are.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .folder import Folder

Row = dict[str, Any]

COLUMNS = (
    *("path", "hash", "bytes", "width", "height", "top", "target", "rule", "method", "file", "arrays", "row"),
    "error",
)

#: Rows that become Parquet at a time.
_ROWS = 2**14


class Index:
    """The index in a folder, or the part of it that one of several runs writes.

    Parameters
    ----------
    folder
        The folder, which is open.
    """

    def __init__(self, folder: Folder) -> None:
        self._arrow, self._parquet = _pyarrow()
        self._folder = folder
        self._journal = folder.path / f"journal{folder.part}.jsonl"
        self.path = folder.path / f"index{folder.part}.parquet"

    def done(self) -> dict[str, bool]:
        """The names of the images that have a row, in any part, and whether they were explained."""
        _cut_to_lines(self._journal)
        names: dict[str, bool] = {}
        for path in sorted(self._folder.path.glob("index*.parquet")):
            table = self._read(path, ["path", "error"])
            for name, error in zip(table["path"].to_pylist(), table["error"].to_pylist(), strict=True):
                names[name] = names.get(name, False) or error is None
        for path in sorted(self._folder.path.glob("journal*.jsonl")):
            for row in map(json.loads, _lines(path)):
                names[row["path"]] = names.get(row["path"], False) or row["error"] is None
        return names

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows, whose files are written."""
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            with open(self._journal, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {str(self._journal)!r}: {error.strerror or error}.") from error

    def finish(self, settings: Row) -> None:
        """Bring all rows into the Parquet file, sorted by path, and remove the journal.

        A run that does all of the work takes in the parts that others have written.
        """
        root = self._folder.path
        if self._folder.part:
            tables, journals = [path for path in [self.path] if path.exists()], [self._journal]
        else:
            tables, journals = sorted(root.glob("index*.parquet")), sorted(root.glob("journal*.jsonl"))
        journals = [path for path in journals if path.exists()]
        if not journals and tables == [self.path]:
            return
        pa = self._arrow
        last: dict[str, tuple[Path, int]] = {}  # of two rows for a path the later one counts
        for path in journals:
            for number, line in enumerate(_lines(path)):
                last[json.loads(line)["path"]] = path, number
        parts = []
        for path in tables:
            table = self._read(path, None)
            old = [name not in last for name in table["path"].to_pylist()]
            last.update((name, (path, 0)) for name in table["path"].to_pylist() if name not in last)
            parts.append(table.filter(pa.array(old, pa.bool_())).cast(_schema(pa)))
        for path in journals:
            numbered = enumerate(_lines(path))
            rows = (row for i, line in numbered if last[(row := json.loads(line))["path"]] == (path, i))
            parts += [pa.Table.from_pylist(some, _schema(pa)) for some in _pieces(rows)]
        table = pa.concat_tables(parts) if parts else _schema(pa).empty_table()
        table = table.sort_by("path").replace_schema_metadata({"gbp": json.dumps(settings)})
        buffer = io.BytesIO()
        self._parquet.write_table(table.combine_chunks(), buffer, compression="zstd", row_group_size=2**16)
        self._folder.put(self.path.name, buffer.getvalue())
        for path in (*journals, *tables):
            if path != self.path:
                path.unlink()

    def _read(self, path: Path, columns: list[str] | None) -> Any:
        try:
            return self._parquet.read_table(path, columns=columns)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"cannot read the index {str(path)!r}: {error}.", hint="Name another folder."
            ) from error


def _schema(pa: Any) -> Any:
    text, number = pa.string(), pa.float32()
    classes = {"class": pa.int64(), "position": text, "label": text, "score": number, "probability": number}
    several = pa.list_(pa.struct(list(classes.items())))
    kinds = {"bytes": pa.int64(), "width": pa.int32(), "height": pa.int32(), "row": pa.int64()}
    kinds |= {"top": several, "target": several}
    return pa.schema([(name, kinds.get(name, text)) for name in COLUMNS])


def _lines(path: Path) -> Iterator[bytes]:
    """The complete lines of a journal, which another run may be writing."""
    with open(path, "rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def _cut_to_lines(path: Path) -> None:
    """Drop an incomplete line at the end."""
    try:
        with open(path, "r+b") as file:
            end = at = file.seek(0, os.SEEK_END)
            while at > 0:
                at = max(0, at - 2**16)
                file.seek(at)
                newline = file.read(min(2**16, end - at)).rfind(b"\n")
                if newline >= 0:
                    at += newline + 1
                    break
            if at != end:
                file.truncate(at)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error


def _pieces(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """The rows in lists of `_ROWS`, the last of which may be shorter."""
    piece: list[Row] = []
    for row in rows:
        piece.append(row)
        if len(piece) == _ROWS:
            yield piece
            piece = []
    if piece:
        yield piece


def _pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`.  Raises InputError where pyarrow is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            "pyarrow is not installed.", hint="Install gbp-explain[batch], which has what a batch needs."
        ) from None
    return pyarrow, pyarrow.parquet
