"""Doubt: measures of whether a map says what it seems to say.

Maps, images and an `Explainer` come in; numbers, a `Curve` or a `Sanity` come out.  It may import what
gbp exports, errors, arguments and first_use, what makes results and pictures, the methods, and the importer,
whose weights it randomises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..first_use import imported_on_first_use

if TYPE_CHECKING:
    from .classes import class_sensitivity
    from .faithful import Curve, deletion, infidelity, insertion, max_sensitivity
    from .localise import pointing_game, relevance_mass
    from .result import Sanity

__all__ = [
    "Curve",
    "Sanity",
    "class_sensitivity",
    "deletion",
    "infidelity",
    "insertion",
    "max_sensitivity",
    "pointing_game",
    "relevance_mass",
]

#: Name → its module, which is imported on first use.
_LAZY = {
    "Curve": "faithful",
    "Sanity": "result",
    "class_sensitivity": "classes",
    "deletion": "faithful",
    "infidelity": "faithful",
    "insertion": "faithful",
    "max_sensitivity": "faithful",
    "pointing_game": "localise",
    "relevance_mass": "localise",
}

if not TYPE_CHECKING:  # for a type checker, any name would be there
    __getattr__ = imported_on_first_use(__name__, _LAZY)


def __dir__() -> list[str]:
    return __all__
