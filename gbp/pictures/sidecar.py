"""The sidecar: a small TOML file beside a model, with the preprocessing and class names that ONNX lacks."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError, reason_of
from ..files import beside, read_text
from .labels import SHIPPED, read_labels
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

        labels = "labels.txt"            # or ["cat", "dog"], or "imagenet"; a path in its folder
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
        text = read_text(path, max_bytes=_MAX_TOML)
    except FileNotFoundError:
        return Sidecar()
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, a NUL in the path
        raise InputError(f"cannot read {str(path)!r}: {reason_of(error)}.") from error
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
    if isinstance(labels, str) and labels not in SHIPPED:
        try:
            labels = beside(path, labels)
        except (OSError, ValueError) as error:  # whoever gave the model does not choose among all files
            raise InputError(
                f"cannot read the labels {labels!r}: {reason_of(error)}.",
                hint="Give them apart: labels=, --labels.",
            ) from error
    return Sidecar(
        Preprocess.parse(table["preprocess"]) if "preprocess" in table else None,
        read_labels(labels),
    )
