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
from .image import Preprocess


@dataclass(frozen=True)
class Sidecar:
    """The contents of `<model stem>.toml` beside a model; None for each entry that is missing."""

    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None


def read_sidecar(model_path: str | os.PathLike[str]) -> Sidecar:
    """Read the TOML file beside a model; an empty `Sidecar` where there is none.

        labels = "labels.txt"            # or ["cat", "dog"]; a path is relative to the sidecar's folder
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
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Sidecar()
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, a NUL in the path
        raise InputError(f"cannot read {str(path)!r}: {error}.") from error
    try:
        return _sidecar(tomllib.loads(text), path.parent)
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from error
    except (ValueError, RecursionError) as error:  # more than TOMLDecodeError: a number of 5000 digits
        raise InputError(f"{str(path)!r} is not valid TOML: {error}.") from error


def _sidecar(table: Mapping[str, Any], folder: Path) -> Sidecar:
    known = [field.name for field in fields(Sidecar)]
    unknown = sorted(table.keys() - set(known))
    if unknown:
        raise InputError(f"unknown key {', '.join(map(repr, unknown))}.", supported=", ".join(known))
    labels = table.get("labels")
    return Sidecar(
        Preprocess.parse(table["preprocess"]) if "preprocess" in table else None,
        read_labels(folder / labels if isinstance(labels, str) else labels),
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
        text = path.read_text(encoding="utf-8-sig")
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
