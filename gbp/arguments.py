"""Checks of arguments that many functions have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, reason_of


def whole_number(name: str, value: int, least: int = 1) -> int:
    """Check an argument that counts something, or is the seed of a random generator.

    Parameters
    ----------
    name
        The argument's name, for the message.
    value
        Its value.
    least
        The smallest number that it may be: 0 for a seed or an index.

    Returns
    -------
    The value as an int.

    Raises
    ------
    InputError
        Unless it is a whole number of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} is {value!r}.", supported=f"a whole number of at least {least}")
    return int(value)


def at_least_one(name: str, value: int | None) -> int | None:
    """`whole_number` of an argument that may be None."""
    return None if value is None else whole_number(name, value)


def array_of(value: Any) -> NDArray[Any]:
    """The array that NumPy makes of what a caller gave.

    It makes none of rows that differ in length; this is an empty array of objects then, which every check of
    a dtype refuses.  Raises InputError for an array that is masked somewhere, and where another library
    refuses, as torch does for a tensor that requires a gradient.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InputError("an array is masked.", hint="Say what is there: array.filled(0).")
    try:
        return np.asarray(value)
    except ValueError:
        return np.empty(0, object)
    except Exception as error:
        raise InputError(f"NumPy makes no array of a {type(value).__name__}: {reason_of(error)}.") from error


def numbers_of(what: str, value: Any, shape: Sequence[int | None], more: bool = False) -> NDArray[Any]:
    """The array that a user's own function returned.

    Parameters
    ----------
    what
        The beginning of the message, such as "reduce returned".
    value
        The returned object.
    shape
        The sizes that are expected; None stands for any.
    more
        Whether other axes may follow.

    Raises
    ------
    InputError
        Where it is no array of numbers of this shape.
    """
    found = array_of(value)
    sizes = found.shape[: len(shape)] if more else found.shape
    if found.dtype.kind not in "fiub" or not sizes_fit(sizes, shape):
        supported = ", ".join(["any" if size is None else str(size) for size in shape] + ["…"] * more)
        raise InputError(
            f"{what} {found.dtype} of shape {list(found.shape)}.", supported=f"numbers of shape [{supported}]"
        )
    return found


def sizes_fit(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Whether sizes are those that are expected; None stands for any."""
    if shape == expected:  # mostly, and each explanation asks
        return True
    return len(shape) == len(expected) and all(n in (None, m) for n, m in zip(expected, shape, strict=True))


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
