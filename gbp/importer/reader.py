"""`Reader`: reads a model a second time.

Weights are freed once they are packed for a plan.  A plan for another size of image needs them again.
"""

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
    """A function without arguments that reads a model again, as `open_model` did.

    Parameters
    ----------
    model, choice
        As they were given to `open_model`.
    files
        The files that the model's weights are in, as they were then.

    Raises
    ------
    InputError
        When it is called, if one of these files has changed since.
    """

    model: Model
    choice: Choice
    files: tuple[Store, ...]

    @classmethod
    def of(cls, model: Model, choice: Choice, source: Source) -> Reader:
        """The reader of a model that `open_model` has read as `source`."""
        files = tuple(store for store in source.weights.files if isinstance(store.file, Path))
        return cls(model, choice, files)

    def __call__(self) -> Source:
        for store in self.files:
            try:
                with store.opened():  # raises if it is another file now
                    pass
            except OSError:
                raise InputError(
                    f"{str(store.file)!r} has changed since it was loaded.", hint="Make another Explainer."
                ) from None
        return open_model(self.model, self.choice)
