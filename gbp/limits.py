"""What a model may cost.  A file of a hundred bytes can ask for a petabyte or a year; each of these is far
beyond any CNN that fits the purpose, and far below what would hurt the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Nodes, and names of their inputs and outputs, of one file.
MOST_NODES = 2**15
MOST_NAMES = 2**18
#: Elements of one tensor of one sample (512 MiB of float32), and of one tensor stored in the file.
MOST_ELEMENTS = 2**27
MOST_STORED_ELEMENTS = 2**29
MOST_AXES = 8
#: Working memory of one sample, and of one slice of a batch whatever batch_size says.
MOST_BYTES_A_SAMPLE = 2 * 2**30
#: Of one sample forward and back, in multiply-adds: half a minute on two good cores.
MOST_WORK = 2**42
#: What handling one element takes, in multiply-adds of a convolution, which runs some hundred times as fast.
ELEMENT = 256


def elements(shape: Sequence[int]) -> int:
    """The elements of a tensor, exactly: NumPy's product wraps around at 2⁶³."""
    return math.prod(int(n) for n in shape)


def brief(bytes_: float) -> str:
    """1.5 GiB, 12 MiB."""
    gib = bytes_ / 2**30
    return f"{gib:.3g} GiB" if gib >= 1 else f"{bytes_ / 2**20:.3g} MiB"


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

    @classmethod
    def of(cls, stored: int) -> Budget:
        """For a file whose tensors take `stored` bytes."""
        return cls(2**28 + 4 * stored, 2**31 + 2 * stored, 2**30 + 6 * stored, MOST_WORK)
