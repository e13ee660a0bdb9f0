"""Names of a map in pictures and files: its rule, or the method that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def title_of(method: str, rule: str, details: Mapping[str, Any]) -> str:
    """The name of a map in captions: its rule; or its method, its layer, and a rule that is not the method's.

    Parameters
    ----------
    method, rule, details
        As in `Attribution`.
    """
    if not method:
        return rule
    at = f" at {details['layer']}" if "layer" in details else ""
    has_own_rule = bool(at) and not method.startswith("layer-gradient")  # as Grad-CAM has
    return f"{method}{at}" if has_own_rule else f"{method}{at}, {rule}"


def plain(value: Any) -> Any:
    """A detail in JSON's types.

    Parameters
    ----------
    value
        An array, a NumPy scalar, or what JSON has.
    """
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
