"""gbp: explain a trained CNN from its ONNX file, without a deep-learning framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import GbpError, InputError, ModelError, OutOfMemoryError, UnsupportedError
from .rules import RULES, Rule

if TYPE_CHECKING:
    from .attribution import Attribution
    from .explainer import Explainer, explain
    from .head import PROBABILITY
    from .pictures.image import Preprocess
    from .sample import Sample
    from .targets import Top

__version__ = "0.2.0"  # the only place: the package's metadata is read from here

__all__ = [
    "PROBABILITY",
    "RULES",
    "Attribution",
    "Explainer",
    "GbpError",
    "InputError",
    "ModelError",
    "OutOfMemoryError",
    "Preprocess",
    "Rule",
    "Sample",
    "Top",
    "UnsupportedError",
    "__version__",
    "explain",
]

#: Public name → its module.  They are imported on first use, so that `gbp --help` needs no Numba and no onnx.
_LAZY = {
    "PROBABILITY": "head",
    "Attribution": "attribution",
    "Explainer": "explainer",
    "Preprocess": "pictures.image",
    "Sample": "sample",
    "Top": "targets",
    "explain": "explainer",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gbp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
