"""`Reader`: reads a model again, after its weights were freed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .load import open_model
from .proto import Model
from .subgraph import Choice, Source
from .weights import Store


@dataclass(frozen=True)
class Reader:
    """Reads a model again, as `open_model` did.  Raises InputError where a file of it has changed since."""

    model: Model
    choice: Choice
    files: tuple[Store, ...]

    @classmethod
    def of(cls, model: Model, choice: Choice, source: Source) -> Reader:
        """`source`: what was read of the model."""
        files = tuple(store for store in source.weights.files if isinstance(store.file, Path))
        return cls(model, choice, files)

    def __call__(self) -> Source:
        for store in self.files:
            try:
                with store.opened():
                    pass
            except OSError:
                raise InputError(
                    f"{str(store.file)!r} has changed since it was loaded.", hint="Make another Explainer."
                ) from None
        return open_model(self.model, self.choice)
