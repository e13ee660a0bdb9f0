"""The sidecar: a small TOML file beside a model, with the preprocessing and class names that ONNX lacks."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import beside, read_text
from .preprocess import Preprocess

#: Bytes of TOML: Python's parser takes time that is quadratic in the parts of a key.
_MAX_TOML = 2**16


@dataclass(frozen=True)
class Sidecar:
    """The contents of `<model stem>.toml` beside a model; None for each entry that is missing."""

    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None


def read_sidecar(model_path: str | os.PathLike[str]) -> Sidecar:
    """Read the TOML file beside a model; an empty `Sidecar` where there is none.

        labels = "labels.txt"            # or ["cat", "dog"]; a path within the sidecar's folder
        [preprocess]                     # or preprocess = "imagenet"
        preset = "imagenet"
        size = 224

    Raises
    ------
    InputError
        For broken TOML, unknown keys and wrong values; the message names the file.
    """
    path = Path(model_path).with_suffix(".toml")
    try:
        text = read_text(path, most=_MAX_TOML)
    except FileNotFoundError:
        return Sidecar()
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, a NUL in the path
        raise InputError(f"cannot read {str(path)!r}: {error}.") from error
    try:
        return _sidecar(tomllib.loads(text), path)
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from error
    except (ValueError, RecursionError) as error:  # more than TOMLDecodeError: a number of 5000 digits
        raise InputError(f"{str(path)!r} is not valid TOML: {error}.") from error


def _sidecar(table: Mapping[str, Any], path: Path) -> Sidecar:
    known = [field.name for field in fields(Sidecar)]
    unknown = sorted(table.keys() - set(known))
    if unknown:
        raise InputError(f"unknown key {', '.join(map(repr, unknown))}.", supported=", ".join(known))
    labels = table.get("labels")
    if isinstance(labels, str):
        try:
            labels = beside(path, labels)
        except (OSError, ValueError) as error:  # whoever gave the model does not choose among all files
            raise InputError(
                f"cannot read the labels {labels!r}: {error}.", hint="Give them apart: labels=, --labels."
            ) from error
    return Sidecar(
        Preprocess.parse(table["preprocess"]) if "preprocess" in table else None,
        read_labels(labels),
    )


def read_labels(value: str | os.PathLike[str] | Sequence[str] | None) -> tuple[str, ...] | None:
    """Read class names.

    Parameters
    ----------
    value
        A sequence of names, or a file.  A .json file holds a list, or an object whose keys are the class
        indices 0, 1, ….  Any other file is UTF-8 text with one name a line.

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
        return _labels(value, "labels")
    path = Path(value)
    try:
        text = read_text(path, "utf-8-sig")
        if path.suffix.lower() != ".json":
            return _labels([line.strip() for line in text.rstrip().split("\n")], repr(str(path)))
        return _labels(json.loads(text), repr(str(path)))
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, a NUL in the path
        raise InputError(f"cannot read the labels {str(path)!r}: {error}.") from error


def _labels(names: Any, origin: str) -> tuple[str, ...]:
    if isinstance(names, Mapping):
        indices = [str(index) for index in range(len(names))]
        if set(names) != set(indices):
            raise InputError(f"{origin}: the keys are not the class indices 0 to {len(names) - 1}.")
        names = [names[index] for index in indices]
    good = isinstance(names, Sequence) and not isinstance(names, str)
    if not good or not all(isinstance(name, str) for name in names) or not any(names):
        raise InputError(f"{origin}: wanted a list of class names.")
    return tuple(names)
