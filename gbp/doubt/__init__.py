"""Doubt: measures of whether a map says what it seems to say.

Maps, images and an `Explainer` come in; numbers, a `Curve` or a `Sanity` come out.  It may import what
gbp exports, the errors, what makes results and pictures, the methods, and the importer, whose weights it
randomises.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

#: Name → its module.  They are imported on first use, so that `gbp --help` needs no Numba.
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


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gbp.doubt' has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
