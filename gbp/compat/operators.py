"""Xplique's operators: functions g(f, x, y) whose gradient by f(x) is the seed of the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import InputError
from ..arguments import numbers_of
from ..errors import calling
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
        Where the operator fails or returns something else, or there are too many outputs for differences.
    """

    def called(at: NDArray[Any]) -> Any:
        def f(asked: Any) -> NDArray[Any]:
            if asked is not x and not np.array_equal(asked, x):
                raise InputError("the operator asks for the model's output at another point than its x.")
            return at

        with calling("the operator"):
            return operator(f, x, targets)

    def scores_of(result: Any) -> NDArray[np.float64]:
        return numbers_of("the operator returned", result, (n,)).astype(np.float64)

    n, exact = len(outputs), outputs.astype(np.float64)
    result = called(exact)
    if isinstance(result, tuple) and len(result) == 2:
        return numbers_of("the operator's gradient is", result[1], outputs.shape).astype(np.float64)
    scores_of(result)
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
        scores = [scores_of(called(v.reshape(outputs.shape))) for v in (up, down)]
        gradient[:, k] = (scores[0] - scores[1]) / (up[:, k] - down[:, k])
    return gradient.reshape(outputs.shape)
