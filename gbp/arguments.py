"""Checks of arguments that many functions have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError


def at_least_one(name: str, value: int | None) -> int | None:
    """Check an argument that counts something.

    Parameters
    ----------
    name
        The argument's name, for the message.
    value
        Its value, or None.

    Returns
    -------
    The value as an int, or None.

    Raises
    ------
    InputError
        Unless the value is None or a whole number of at least 1.
    """
    return None if value is None else count_of(name, value)


def count_of(name: str, value: int) -> int:
    """`at_least_one` of an argument that may not be None."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is {value!r}.", supported="a whole number of at least 1")
    return int(value)


def seed_of(name: str, value: int) -> int:
    """Check the seed of a random generator.

    Parameters
    ----------
    name
        The argument's name, for the message.
    value
        Its value.

    Returns
    -------
    The value as an int.

    Raises
    ------
    InputError
        Unless it is a whole number of at least 0, as NumPy's generators take.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise InputError(f"{name} is {value!r}.", supported="a whole number of at least 0")
    return int(value)


def array_of(value: Any) -> NDArray[Any]:
    """The array that NumPy makes of what a caller gave.

    It makes none of rows that differ in length; this is an empty array of objects then, which every check of
    a dtype refuses.
    """
    try:
        return np.asarray(value)
    except ValueError:
        return np.empty(0, object)


def fits(array: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Whether an array holds numbers that are finite in float32, and broadcasts to a shape."""
    try:
        same = np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        return False
    if not same or array.dtype.kind not in "fiu":
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32)).all())
