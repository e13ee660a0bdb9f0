"""`Provenance`: which model made a map, and how; it goes into every file that is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..files import open_regular, stamp_of
from ..pictures.preprocess import Preprocess
from ..version import VERSION

_CHUNK = 2**20
#: Arguments of an Explainer that are recorded in other words, or that change no bit of a map.
_RECORDED_APART = ("model", "preprocess", "labels", "threads", "memory", "cache")
#: The defaults of the arguments.
_DEFAULTS = ("cpu", "gradient", "auto")


@dataclass(frozen=True)
class Provenance:
    """Which model made a map, and how.

    Parameters
    ----------
    model
        The name of the model's file; "" for a model in memory.
    gbp
        The version of gbp.
    preprocess
        The preprocessing in JSON's types; None where samples came preprocessed.
    options
        Arguments of the Explainer other than by default, in JSON's types.
    path
        Where the model's file is; "" for a model in memory.
    digest
        The SHA-256 of the model's bytes, where it is known.  That of a file is else computed when it is
        asked for.
    """

    model: str
    gbp: str
    preprocess: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    digest: str = ""

    @classmethod
    def of(
        cls, model: Any, preprocess: Preprocess | None, arguments: Mapping[str, Any], digest: str = ""
    ) -> Provenance:
        """The provenance of a model as `Explainer` takes it, with the Explainer's arguments.

        Parameters
        ----------
        model, preprocess, arguments
            Arguments that make an Explainer.
        digest
            The SHA-256 of the model's bytes, where it is known.
        """
        options = {
            name: _in_json(value)
            for name, value in arguments.items()
            if name not in _RECORDED_APART and not _is_default(value)
        }
        gbp, preprocessing = VERSION, preprocess.to_dict() if preprocess else None
        if isinstance(model, (str, os.PathLike)):
            path = os.path.abspath(os.fspath(model))
            return cls(os.path.basename(path), gbp, preprocessing, options, path, digest)
        digest = digest or (hashlib.sha256(model).hexdigest() if isinstance(model, bytes) else "")
        return cls("", gbp, preprocessing, options, digest=digest)

    @property
    def sha256(self) -> str:
        """The digest of the model's bytes, hexadecimal; "" where they are unknown or gone."""
        return self.digest or (_digest_of(self.path, stamp_of(self.path)) if self.path else "")

    def to_dict(self) -> dict[str, Any]:
        """Its keys: "gbp", "model", "sha256", "preprocess" and "options", in JSON's types."""
        return {
            "gbp": self.gbp,
            "model": self.model,
            "sha256": self.sha256,
            "preprocess": dict(self.preprocess) if self.preprocess is not None else None,
            "options": dict(self.options),
        }


def _is_default(value: Any) -> bool:
    return value is None or value is False or value == {} or (isinstance(value, str) and value in _DEFAULTS)


def _in_json(value: Any) -> Any:
    """A value in JSON's types."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _in_json(each) for key, each in value.items()}
    return f"{value!r:.200}"


@cache
def _digest_of(path: str, stamp: tuple[int, int] | None) -> str:
    """The SHA-256 of the file that had this stamp; "" where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()
