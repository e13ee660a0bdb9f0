"""gbp: explain a trained CNN from its ONNX file, without a deep-learning framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import GbpError, InputError, ModelError, UnsupportedError
from .rules import RULES, Rule

if TYPE_CHECKING:
    from .attribution import Attribution
    from .explainer import Explainer, explain

__version__ = "0.2.0"  # the one place: the package's metadata is read from here

__all__ = [
    "RULES",
    "Attribution",
    "Explainer",
    "GbpError",
    "InputError",
    "ModelError",
    "Rule",
    "UnsupportedError",
    "__version__",
    "explain",
]


def __getattr__(name: str) -> Any:
    """Import Numba and onnx only when they are needed: `gbp --help` answers at once."""
    if name in ("Explainer", "explain"):
        from . import explainer

        return getattr(explainer, name)
    if name == "Attribution":
        from .attribution import Attribution

        return Attribution
    raise AttributeError(f"module 'gbp' has no attribute {name!r}")
