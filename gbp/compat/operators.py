"""Xplique's operators: functions g(f, x, y) whose gradient by f(x) is the seed of the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import InputError
from .core import Floats

#: g(f, x, y) → one number for each sample; or those and their gradient by f(x).
Operator: TypeAlias = Callable[[Callable[[Any], Any], Any, Any], Any]

#: Up to so many outputs the gradient of an operator is found by differences.
_MAX_DIFFERENCES = 2**14
_STEP = 1e-4


def gradient_of(operator: Operator, outputs: Floats, x: Floats, targets: Floats) -> NDArray[np.float64]:
    """The gradient of an operator by the model's outputs.

    Parameters
    ----------
    operator
        g(f, x, y) → scores (n,), or (scores, gradient).  The score of a sample may depend on that sample's
        outputs alone, and f may be asked for f(x) alone.
    outputs
        f(x), (n, …).
    x, targets
        The operator's arguments.

    Returns
    -------
    float64, of the shape of `outputs`.

    Raises
    ------
    InputError
        Where the operator returns something else, or there are too many outputs for differences.
    """

    def called(at: NDArray[Any]) -> Any:
        def f(asked: Any) -> NDArray[Any]:
            if asked is not x and not np.array_equal(asked, x):
                raise InputError("the operator asks for the model's output at another point than its x.")
            return at

        try:
            return operator(f, x, targets)
        except InputError:
            raise
        except Exception as error:  # whatever the caller's function raises
            raise InputError(f"the operator failed: {type(error).__name__}: {error}.") from error

    n, exact = len(outputs), outputs.astype(np.float64)
    result = called(exact)
    if isinstance(result, tuple) and len(result) == 2:
        gradient = np.asarray(result[1], np.float64)
        if gradient.shape != outputs.shape:
            raise InputError(
                f"the operator's gradient has shape {list(gradient.shape)}.",
                supported=f"{list(outputs.shape)}",
            )
        return gradient
    if np.shape(result) != (n,):
        raise InputError(
            f"the operator returns shape {list(np.shape(result))} for {n} samples.", supported=f"[{n}]"
        )
    count = exact[0].size
    if count > _MAX_DIFFERENCES:
        raise InputError(
            f"the operator's gradient by {count} outputs is not known.",
            hint="Let the operator return (scores, gradient by the outputs).",
        )
    flat = exact.reshape(n, count)
    gradient = np.empty_like(flat)
    for k in range(count):
        step = _STEP * np.maximum(1, np.abs(flat[:, k]))
        up, down = flat.copy(), flat.copy()
        up[:, k] += step
        down[:, k] -= step
        scores = [np.asarray(called(v.reshape(outputs.shape)), np.float64) for v in (up, down)]
        gradient[:, k] = (scores[0] - scores[1]) / (up[:, k] - down[:, k])
    return gradient.reshape(outputs.shape)
