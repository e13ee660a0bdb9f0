"""`Device`: whose memory tensors lie in, and so who runs the kernels on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import GbpError, InputError
from ..kernels.codegen.memory import aligned
from ..limits import MAX_BYTES_PER_SAMPLE
from .threads import parallel

if TYPE_CHECKING:
    from ..ops.step import Step
    from ..plan.layout import Instruction

#: An array on a device: NumPy's own, or one that answers to what steps do with those.
Array = Any

Repeater = Callable[[Callable[[], None]], None]

DEVICES = ("cpu", "cuda")


class Entry:
    """Where samples of the host come in: x (N, …), whose axes lie in memory `order`."""

    def __init__(self, x: Array, order: tuple[int, ...]) -> None:
        self.x, self.order = x, order

    def write(self, values: NDArray[np.float32]) -> None:
        """Bring in samples (N, …) in the model's own layout, C-contiguous; they may be gone by `settle`."""
        np.copyto(self.x, values.transpose(0, *self.order))

    def settle(self) -> None:
        """Put what was written where steps read it: part of each run."""


class Exit:
    """Where results leave: x (N, …), whose axes are `axes` in the model's own layout."""

    def __init__(self, x: Array, axes: tuple[int, ...]) -> None:
        self.x, self.axes = x, axes

    def settle(self) -> None:
        """Make ready what `read` returns: part of each run."""

    def read(self) -> tuple[NDArray[np.float32], bool]:
        """All of it as the host's own array in the model's layout; and whether it is finite."""
        values = np.array(self.x.transpose(self.axes), np.float32)
        return values, all_finite(values)


class Device(ABC):
    """Makes arrays, moves them, and runs what is done over and over again on the same ones."""

    name: str
    #: What a batch may take of its memory at a time, in bytes, and how many samples it may have.
    slice_bytes: int
    max_slice: int
    #: As much where the caller says how many samples.
    max_bytes: int

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        """A C-contiguous array, not initialised.  Raises OutOfMemoryError."""

    @abstractmethod
    def write(self, values: NDArray[Any], to: Array) -> None:
        """Put values into an array of their shape."""

    @abstractmethod
    def read(self, x: Array) -> NDArray[Any]:
        """What it holds, in the host's memory; until something is written to x that may be x itself."""

    def read_all(self, *arrays: Array) -> list[NDArray[Any]]:
        """`read` of each."""
        return list(map(self.read, arrays))

    @abstractmethod
    def take(self, instructions: Sequence[Instruction]) -> list[Step]:
        """The steps of these calls with all that they hold in this device's memory.

        Raises UnsupportedError that names the layers for which it has no kernels.
        """

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """What has to be entered to run kernels."""

    @abstractmethod
    def seed(self, x: Array, where: tuple[NDArray[np.int64], ...]) -> None:
        """Write 1 at these indices of x, and 0 elsewhere."""

    def pieces(self, n: int, nbytes: int) -> list[slice]:
        """How n samples of so many bytes are brought in: those of a piece while the last one is computed."""
        return [slice(0, n)]

    def entry(self, x: Array, order: tuple[int, ...], marks: Array | None) -> Entry:
        """For x (N, …) in memory order.

        `marks` (N,), where the device looks at samples: a run makes it 0 for those that are finite.
        """
        return Entry(x, order)

    def exit(self, x: Array, axes: tuple[int, ...]) -> Exit:
        """For x (N, …), to be read with these axes."""
        return Exit(x, axes)

    @property
    def has_tf32(self) -> bool:
        """Whether it can multiply in TF32."""
        return False

    @property
    def looks_at_samples(self) -> bool:
        """Whether its entries mark what is not finite."""
        return False

    @abstractmethod
    def repeater(self) -> Repeater:
        """What runs the run that it is given, which must call the same kernels on the same arrays with the
        same numbers each time.
        """


def all_finite(x: NDArray[np.float32]) -> bool:
    """Whether none is NaN or infinity: those show in the sum, which is found sooner."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(x.sum()) or np.isfinite(x).all())


def _run(run: Callable[[], None]) -> None:
    run()


class _Cpu(Device):
    name = "cpu"
    slice_bytes = 160 * 2**20
    max_slice = 32
    max_bytes = MAX_BYTES_PER_SAMPLE

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return aligned(shape, dtype)

    def write(self, values: NDArray[Any], to: Array) -> None:
        np.copyto(to, values)

    def read(self, x: Array) -> NDArray[Any]:
        return np.asarray(x)

    def take(self, instructions: Sequence[Instruction]) -> list[Step]:
        return [instruction.step for instruction in instructions]

    def running(self) -> AbstractContextManager[None]:
        return parallel()

    def seed(self, x: Array, where: tuple[NDArray[np.int64], ...]) -> None:
        x.fill(0)
        x[where] = 1

    def repeater(self) -> Repeater:
        return _run


CPU = _Cpu()


def device_named(name: str) -> Device:
    """The device "cpu" or "cuda".  Raises InputError for others, and where CUDA does not start."""
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise InputError(f"device is {name!r}.", supported=", ".join(map(repr, DEVICES)))
    try:
        from .cuda import card  # nothing of CUDA is imported before it is asked for

        return card()
    except GbpError:
        raise
    except Exception as error:  # whatever a driver, numba-cuda and NumPy that do not fit each other say
        found = str(error).strip().splitlines() or [""]
        raise InputError(
            f"device is 'cuda', and CUDA does not start: {type(error).__name__}: {found[0]:.300}",
            supported="an NVIDIA card with its driver, and the extra gbp[cuda12] or gbp[cuda13]",
            hint="Install that extra anew, which brings versions that fit; or leave the device out.",
        ) from error
