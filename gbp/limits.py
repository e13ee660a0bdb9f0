"""What a model may cost.  A file of a hundred bytes can ask for a petabyte or a year; each of these is far
beyond any CNN that fits the purpose, and far below what would hurt the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

#: Tensors that the nodes of one file make, and names of all kinds.
MAX_NODES = 2**14
MAX_NAMES = 2**17
#: Elements of one tensor of one sample (512 MiB of float32), and of one tensor stored in the file.
MAX_ELEMENTS = 2**27
MAX_STORED_ELEMENTS = 2**29
MAX_AXES = 8
#: Working memory of one sample, and of one slice of a batch whatever batch_size says.
MAX_BYTES_PER_SAMPLE = 2 * 2**30
#: Of one sample forward and back, in multiply-adds: half a minute on two good cores.
MAX_WORK = 2**41
#: What handling one element, or one operand, takes, in multiply-adds of a convolution.
ELEMENT = 2**9
OPERAND = 2**20


def elements(shape: Sequence[int]) -> int:
    """The elements of a tensor, exactly: NumPy's product wraps around at 2⁶³."""
    return math.prod(int(n) for n in shape)


def is_finite(values: NDArray[Any]) -> bool:
    """Whether no number is NaN or infinite; a piece at a time, because answers take memory as well."""
    flat, piece = values.reshape(-1), 2**20
    for i in range(0, flat.size, piece):
        part = flat[i : i + piece]
        with np.errstate(all="ignore"):
            total = part.sum()  # which takes half the time, and NaN and infinity along
        if not (np.isfinite(total) or np.isfinite(part).all()):
            return False
    return True


def at_least_one(name: str, value: int | None) -> int | None:
    """The value of an argument that counts something, or None.  Raises InputError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is {value!r}.", supported="a whole number of at least 1")
    return int(value)


def readable_bytes(bytes_: float) -> str:
    """1.5 GiB, 12 MiB."""
    gib = bytes_ / 2**30
    return f"{gib:.3g} GiB" if gib >= 1 else f"{bytes_ / 2**20:.3g} MiB"


class computing(np.errstate):  # called like a function, as what it extends
    """Arithmetic whose overflow is looked for in its results, within the memory that there is.

    Raises InputError where the machine has less than the limits above assume.
    """

    def __init__(self) -> None:
        super().__init__(all="ignore")

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        super().__exit__(kind, *rest)
        if kind is not None and issubclass(kind, MemoryError):
            raise InputError(
                "the machine has no memory left for this.", hint="Explain fewer at a time."
            ) from None


def max_bytes_made_of(stored: int) -> int:
    """Bytes that may be made of so many stored ones: tensors that share them, constants that are folded."""
    return 2**28 + 4 * stored


@dataclass
class Budget:
    """What building one model may still use up; more where the file itself holds much."""

    #: Bytes of constants that folding makes.
    folded: float
    #: Elements that folding reads, writes or adds up.
    steps: float
    #: Bytes of weights, packed for the kernels.
    weights: float
    #: Multiply-adds of one sample.
    work: float

    @property
    def is_spent(self) -> bool:
        return min(self.folded, self.steps, self.weights, self.work) < 0

    @classmethod
    def of(cls, stored: int) -> Budget:
        """For a file whose tensors take `stored` bytes."""
        return cls(max_bytes_made_of(stored), 2**31 + 2 * stored, 2**30 + 12 * stored, MAX_WORK)
