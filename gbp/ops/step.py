"""What every op has in common.

An op is one file: its equations on top, then `parse` (ONNX node → meaning), `shape`, and the lowered step
with `forward` and `vjp` side by side.  `Op` is the meaning; `Step` is the same with sizes fixed and weights
packed, made by `Op.lower` once the plan knows the memory order of the tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ..graph.graph import Shape
from ..kernels.codegen.gate import OPEN, Gate
from ..kernels.codegen.jit import Compiled
from ..kernels.pointwise import clear_pixels
from ..limits import ELEMENT, OPERAND, elements

Floats = NDArray[np.float32]

#: The memory order of a tensor's axes after the batch, outermost first: (1, 2, 3) is as in the file,
#: CHANNELS_LAST is N, H, W, C.
Order = tuple[int, ...]
CHANNELS_LAST: Order = (2, 3, 1)

NO_TENSOR: Floats = np.empty((0, 0, 0, 0), np.float32)
NO_MASK: NDArray[np.uint8] = np.empty((0, 0, 0, 0), np.uint8)
NO_WEIGHTS: Floats = np.empty(0, np.float32)


def row_major(rank: int) -> Order:
    return tuple(range(1, rank))


def innermost(axis: int, rank: int) -> Order:
    """The order as in the file, but with `axis` innermost."""
    return (*(a for a in row_major(rank) if a != axis), axis)


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
    #: `forward`, and `vjp`, call the same kernels with the same arguments each time and do nothing else.
    repeats: bool = False
    repeats_back: bool = False
    #: `vjp` of a single row does.
    repeats_back_alone: bool = False
    #: All that it does with arrays a card does as well; where not, a card refuses it.
    on_card: bool = True
    #: Element type of the switches, one for each output, where there are any.
    switches: type[np.generic] | None = None

    def scratch(self, threads: int) -> tuple[int, int]:
        """Floats of scratch that a call needs: (fixed, for each sample)."""
        return 0, 0

    @abstractmethod
    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        """Write y.  r (the residual) is NO_TENSOR unless the step fuses it."""

    @abstractmethod
    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        """Put the gradient of every input, given gy behind the rectifier's gate."""


class Op(ABC):
    """What a layer means.  Frozen; holds its weights."""

    @property
    def parameters(self) -> int:
        return 0

    @property
    def is_activation(self) -> bool:
        """Whether it serves as one and is no rectifier: the papers define no rule for it."""
        return False

    def macs(self, y: Shape) -> int:
        """Multiply-adds a sample, for an output of shape y."""
        return 0

    @property
    def nbytes(self) -> int:
        """Memory that it holds together with its step: weights in float64, and packed in float32."""
        return 12 * self.parameters

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        """What one sample costs forward and back, in multiply-adds: an estimate, to refuse the absurd by."""
        return 2 * self.macs(y) + ELEMENT * (elements(y) + sum(map(elements, x))) + OPERAND * (1 + len(x))

    @abstractmethod
    def shape(self, *x: Shape) -> Shape:
        """The output's shape."""

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        """The memory orders that the step wants of its inputs, and that of its output.

        By default all tensors lie as the first one happens to.
        """
        return tuple(given[0] for _ in given), given[0]

    @abstractmethod
    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order) -> Step | None:
        """The step for inputs of shapes x that lie in memory `order`; None where no byte moves, so that the
        output is a view of the input.
        """
