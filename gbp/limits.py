"""Limits on what a model may cost in memory and time, and on its numbers, which must be finite.

A file of a hundred bytes can demand a petabyte or a year.  Each limit is far above any useful CNN, and far
below what would harm the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

#: Most tensors that the nodes of one file make, and most names of any kind.
MAX_NODES = 2**14
MAX_NAMES = 2**17
#: Most elements of one tensor for one sample (512 MiB of float32), and of one tensor that the file stores.
MAX_ELEMENTS = 2**27
MAX_STORED_ELEMENTS = 2**29
MAX_AXES = 8
#: Most bytes of working memory for one sample; also for one slice of a batch, whatever batch_size is.
MAX_BYTES_PER_SAMPLE = 2 * 2**30
#: Most multiply-adds of one sample, forward and backward: half a minute on two good cores.
MAX_WORK = 2**41
#: The time to handle one element, or one operand, in multiply-adds of a convolution.
ELEMENT = 2**9
OPERAND = 2**20
#: Numbers that are looked at together: the answers for each fit a core's cache.
_PIECE = 2**16


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor has.  Python's integers are exact; NumPy's product wraps around at 2⁶³."""
    return math.prod(map(int, shape))


def is_finite(values: NDArray[Any]) -> bool:
    """Whether no number is NaN or infinite.

    It is done a piece at a time, because `np.isfinite` allocates as many booleans.
    """
    flat = values.ravel(order="K")
    if flat.size <= _PIECE:
        return bool(np.logical_and.reduce(np.isfinite(flat)))
    pieces = (flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE))
    return all(np.logical_and.reduce(np.isfinite(piece)) for piece in pieces)


def refuse_not_finite(sample: int, file: str = "") -> NoReturn:
    """Raise InputError for the sample of this index, or its file, which holds NaN or infinity."""
    if file:
        raise InputError(f"the array {file!r} holds NaN or infinity.")
    hint = "A picture does where its preprocessing overflows: see its scale and std."
    raise InputError(f"sample {sample} holds NaN or infinity.", hint=hint)


class computing(np.errstate):  # lower case, like the context manager that it extends
    """A context manager for arithmetic: NumPy does not warn of overflow, because callers check the results.

    Raises InputError where the machine runs out of memory.  The error of a device passes, because who catches
    it computes fewer samples at a time.
    """

    def __init__(self) -> None:
        super().__init__(all="ignore")

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        super().__exit__(kind, *rest)
        if kind is not None and issubclass(kind, MemoryError) and not issubclass(kind, InputError):
            raise InputError(
                "the machine has no memory left for this.", hint="Explain fewer at a time."
            ) from None


def max_working_bytes(numbers: int, weights: int, layers: int) -> int:
    """Most bytes of working memory for one sample, by its numbers and by a network's weights and layers.

    A few bytes in a file, such as pads of a million, must not make gigabytes of a small picture.  A layer may
    have many channels at each number of the input, and the gradient may need the values of all layers, so
    each of them adds to the limit.
    """
    return min(MAX_BYTES_PER_SAMPLE, 2**28 + 2**4 * weights + 2**11 * numbers * layers)


def max_bytes_made_of(stored: int) -> int:
    """Most bytes of constants and shared tensors that a file with `stored` bytes of tensors may produce."""
    return 2**28 + 4 * stored


@dataclass
class Budget:
    """How much more building one model may use.  Larger files get larger budgets."""

    #: Bytes of constants that folding computes.
    folded: float
    #: Elements that folding reads, writes or adds.
    steps: float
    #: Bytes of weights, packed for the kernels.
    weights: float
    #: Multiply-adds of one sample.
    work: float
    #: Layers, some of which count as several: see `Op.planning`.
    layers: float

    @property
    def is_spent(self) -> bool:
        return min(self.folded, self.steps, self.weights, self.work, self.layers) < 0

    @classmethod
    def of(cls, stored: int) -> Budget:
        """For a file whose tensors take `stored` bytes."""
        return cls(max_bytes_made_of(stored), 2**31 + 2 * stored, 2**30 + 12 * stored, MAX_WORK, MAX_NODES)
