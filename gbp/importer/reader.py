"""`Reader`: reads a model again, after its weights were freed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import InputError
from .load import open_model
from .proto import Model
from .subgraph import Choice, Source


@dataclass(frozen=True)
class Reader:
    """Reads a model again, as `open_model` did.  Raises InputError where its file has changed since."""

    model: Model
    choice: Choice
    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, model: Model, choice: Choice) -> Reader:
        return cls(model, choice, _stamp(model))

    def __call__(self) -> Source:
        if _stamp(self.model) != self.stamp:
            changed = "the model's file has changed since it was loaded."
            raise InputError(changed, hint="Make another Explainer.")
        return open_model(self.model, self.choice)


def _stamp(model: Model) -> tuple[int, int] | None:
    """The size of a model's file and the time of its last change; None where it is in memory or gone."""
    if not isinstance(model, (str, os.PathLike)):
        return None
    try:
        found = os.stat(model)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
