"""`Step`: an op with sizes fixed and weights packed, and what a run gives it.

`Op.lower` makes the step once the plan knows the memory order of the tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.codegen.gate import OPEN, Gate
from ..kernels.codegen.jit import Compiled
from ..kernels.pointwise import clear_pixels

Floats = NDArray[np.float32]

NO_TENSOR: Floats = np.empty((0, 0, 0, 0), np.float32)
NO_MASK: NDArray[np.uint8] = np.empty((0, 0, 0, 0), np.uint8)
NO_WEIGHTS: Floats = np.empty(0, np.float32)


def view(x: NDArray[Any], *shape: int) -> NDArray[Any]:
    """x under another shape in the same memory; ValueError where it takes a copy, whose writes were lost."""
    return x.reshape(shape, copy=False)


def strided(x: NDArray[Any], shape: Shape, strides: tuple[int, ...]) -> NDArray[Any]:
    """A view of x with any strides, in bytes."""
    # An array of another device makes views of its own kind.
    return as_strided(x, shape, strides) if isinstance(x, np.ndarray) else x.strided(shape, strides)


def pixels(x: NDArray[Any]) -> NDArray[Any]:
    """A physical tensor as kernels take it: (N, H, W, C), the last axis the innermost in memory."""
    return x if x.ndim == 4 else view(x, len(x), 1, -1, x.shape[-1])


def clear(x: NDArray[Any], threads: int) -> None:
    """Write zeros to a physical tensor, or rows of one, by a kernel: so it can be prepared with others."""
    if isinstance(x, np.ndarray):
        clear_pixels(pixels(x if x.ndim > 1 else x[:, None]), threads)
    else:
        x.fill(0)


@dataclass(frozen=True)
class Clipped:
    """How a fused step ends: y = min(max(·, lo), hi).

    A rectifier obeys the rule; a Clip between other bounds has its true derivative under every rule.
    """

    lo: float = -np.inf
    hi: float = np.inf
    is_rectifier: bool = False


UNCLIPPED = Clipped()


@dataclass
class Context:
    """What the tape keeps of one step from the forward run for its vjp, and the scratch of this run."""

    threads: int
    scratch: Floats
    mask: NDArray[np.uint8] = field(default_factory=lambda: NO_MASK)
    switches: NDArray[Any] = field(default_factory=lambda: NO_MASK)
    x: tuple[Floats, ...] = ()
    y: Floats = field(default_factory=lambda: NO_TENSOR)

    def with_scratch(self, scratch: Floats) -> Context:
        return Context(self.threads, scratch, self.mask, self.switches, self.x, self.y)


@dataclass
class GradientSlot:
    """Where a vjp puts the gradient of one input: written, or added with `accumulate`; then, where that
    completes the gradient of a rectifier's output, kept only as far as the gate lets it pass.
    """

    array: Floats
    accumulate: bool
    mask: NDArray[np.uint8] = field(default_factory=lambda: NO_MASK)
    gate: Gate = OPEN

    @property
    def end(self) -> tuple[NDArray[np.uint8], Gate, Floats, int]:
        """How every `*_bwd` kernel is told all this: mask, gate, gx (N, H, W, C), accumulate."""
        return self.mask, self.gate, pixels(self.array), int(self.accumulate)

    @property
    def targets(self) -> int:
        """How many rows share each sample's mask: targets a sample, or all rows where there is no mask."""
        return len(self.array) // max(1, len(self.mask))

    def rows(self, start: int, stop: int) -> GradientSlot:
        """These rows alone; of several targets a sample, those of one sample."""
        k = self.targets
        mask = self.mask[start:stop] if k == 1 else self.mask[start // k : start // k + 1]
        return GradientSlot(self.array[start:stop], self.accumulate, mask, self.gate)

    def begin(self, threads: int) -> None:
        """For steps that only ever add: zeros, where nobody has contributed yet."""
        if not self.accumulate:
            clear(self.array, threads)

    def put(self, g: NDArray[Any]) -> None:
        """For steps that move bytes only."""
        if self.accumulate:
            np.add(self.array, g, out=self.array)
        else:
            np.copyto(self.array, g)


class Step(ABC):
    """One op, lowered.  Arrays are physical: batch first, then the axes in memory order.

    An array may be part of a larger one: runs of its rows, all equally far apart.  So the innermost axis is
    dense, and all others merge into one without a copy (`pixels`).
    """

    #: How it is computed, for `gbp inspect`.
    algorithm: str = ""
    #: `vjp` obeys `GradientSlot.gate` itself; for others the plan gates in a pass of its own.
    gates: bool = False
    #: `forward` adds the residual r and clips, writing the mask, in the same pass.
    fuses_residual: bool = False
    fuses_clip: bool = False
    #: Takes no such parts, but C-contiguous arrays only.
    wants_whole: bool = False
    #: Kernels that a run calls or not, by what values it meets; the others it calls always.
    kernels: tuple[Compiled, ...] = ()
    #: What `vjp` reads again.
    saves_x: bool = False
    saves_y: bool = False
    #: It computes through NumPy on the host's arrays, so other devices refuse it.
    needs_host: bool = False
    #: A sum of its inputs that another step can compute as its residual.
    is_sum: bool = False
    #: The clip that it ends with when nothing is fused.
    clip: Clipped = UNCLIPPED
    #: y is a run of every row of x, from this element on; None where it is not.
    slice_start: int | None = None
    #: The inputs are runs of every row of y, from these elements on; None where they are not.
    part_starts: tuple[int, ...] | None = None
    #: y holds positions, which count as gbp counts them.
    yields_positions: bool = False
    #: `forward`, and `vjp`, call the same kernels with the same arguments each time and do nothing else.
    repeats: bool = False
    repeats_back: bool = False
    #: Element type of the switches, one for each output, where there are any.
    switches: type[np.generic] | None = None

    def scratch(self, threads: int) -> tuple[int, int]:
        """Floats of scratch that a call needs: (fixed, for each sample)."""
        return 0, 0

    def only(self, which: Sequence[int]) -> Step:
        """The step for these inputs alone; the others are in their place in y already."""
        raise TypeError(f"{type(self).__name__} has no parts")

    @abstractmethod
    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        """Write y.  r (the residual) is NO_TENSOR unless the step fuses it."""

    @abstractmethod
    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        """Put the gradient of every input, given gy behind the rectifier's gate."""


def lower(op: Op, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step | None:
    """`op.lower`, typed: the graph, which holds ops, knows no steps."""
    step = op.lower(x, y, order, target)
    if step is not None and not isinstance(step, Step):
        raise TypeError(f"{type(op).__name__}.lower returned a {type(step).__name__}")
    return step
