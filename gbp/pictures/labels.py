"""Reads the names of classes, in the forms in which they are found."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, reason_of
from ..files import hint_of_address, read_text

#: Names that are shipped; `names/SOURCES.md` says where they are from.  The last has a class "background"
#: in front, as TensorFlow's networks do.
SHIPPED = ("imagenet", "cifar10", "mnist", "imagenet1001")
_FOLDER = Path(__file__).parent / "names"
#: Heads of a table's columns: of the one of names, and of the one of indices.
_NAME_COLUMNS = ("label", "name", "class", "class_name", "display_name")
_INDEX_COLUMNS = ("index", "id", "mid")


def read_labels(value: str | os.PathLike[str] | Sequence[str] | None) -> tuple[str, ...] | None:
    """Read class names.

    Parameters
    ----------
    value
        A sequence of names; one of `SHIPPED`; or a file.  A .json file holds a list, or an object: of class
        indices to names, {"0": "tench"}, or of names to indices, {"tench": 0}; Keras'
        imagenet_class_index.json, {"0": ["n01440764", "tench"]}; or Hugging Face's config.json with its
        "id2label".  A .csv or .tsv file has a name in each row, or a column of indices and one of names.  Any
        other file is UTF-8 text with one name a line.

    Returns
    -------
    The names in the order of the classes; None for None.

    Raises
    ------
    InputError
        For anything else; the message names the file.
    """
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        return _checked(value, "labels")
    value = os.fsdecode(value)
    if value in SHIPPED:
        names = _lines(read_text(_FOLDER / f"{value.removesuffix('1001')}.txt"))
        return ("background", *names) if value.endswith("1001") else tuple(names)
    path, suffix = Path(value), Path(value).suffix.lower()
    try:
        text = read_text(value, "utf-8-sig")  # a Path of nothing is the current folder
        if suffix == ".json":
            return _from_json(json.loads(text), repr(str(path)))
        if suffix in (".csv", ".tsv"):
            return _from_table(text, "\t" if suffix == ".tsv" else ",", repr(str(path)))
        return _checked(_lines(text), repr(str(path)))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"there are no labels {value!r}.",
            supported=f"a file, or one of {', '.join(SHIPPED)}",
            hint=hint_of_address(value),
        ) from None
    # Not UTF-8, not JSON, a NUL in the path.
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"cannot read the labels {str(path)!r}: {reason_of(error)}.") from error


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.rstrip().split("\n")]


def _from_json(found: Any, origin: str) -> tuple[str, ...]:
    """The names in a list, or in an object of indices to names or of names to indices."""
    if isinstance(found, Mapping) and isinstance(found.get("id2label"), Mapping):
        found = found["id2label"]
    if not isinstance(found, Mapping):
        return _checked(found, origin)
    if all(isinstance(number, int) and not isinstance(number, bool) for number in found.values()):
        found = {str(number): name for name, number in found.items()}
    named = {
        key: value[1] if isinstance(value, list) and len(value) == 2 else value
        for key, value in found.items()
    }
    return _by_index(named, origin)


def _by_index(named: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    indices = [str(index) for index in range(len(named))]
    if set(named) != set(indices):
        raise InputError(f"{origin}: the indices of the classes are not 0 to {len(named) - 1}, one each.")
    return _checked([named[index] for index in indices], origin)


def _from_table(text: str, delimiter: str, origin: str) -> tuple[str, ...]:
    """The names in a table, in the order of its indices where it has such a column."""
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(map(str.strip, row))]
    if not rows:
        return _checked([], origin)
    name, index, has_head = _columns(rows[0], origin)
    rows = rows[1:] if has_head else rows
    if any(len(row) <= max(name, index or 0) for row in rows):
        raise InputError(f"{origin}: a row is shorter than the others.")
    if index is None:
        return _checked([row[name].strip() for row in rows], origin)
    named = {row[index].strip(): row[name].strip() for row in rows}
    if len(named) < len(rows):
        raise InputError(f"{origin}: an index is there twice.")
    return _by_index(named, origin)


def _columns(first: Sequence[str], origin: str) -> tuple[int, int | None, bool]:
    """The column of names, that of indices or None, and whether the first row is a head."""
    head = [cell.strip().casefold() for cell in first]
    names = [k for k, cell in enumerate(head) if cell in _NAME_COLUMNS]
    if names:
        indices = [k for k, cell in enumerate(head) if cell in _INDEX_COLUMNS and k != names[0]]
        return names[-1], indices[0] if indices else None, True
    if len(first) == 1:
        return 0, None, False
    numbers = [k for k, cell in enumerate(head) if cell.isdecimal()]
    if len(numbers) != 1:
        raise InputError(f"{origin} has {len(first)} columns.", hint="Name them: index, label.")
    return (1 if numbers[0] == 0 else 0), numbers[0], False


def _checked(names: Any, origin: str) -> tuple[str, ...]:
    good = isinstance(names, Sequence) and not isinstance(names, str)
    if not good or not all(isinstance(name, str) for name in names) or not any(names):
        raise InputError(f"{origin}: wanted a list of class names.")
    return tuple(names)
