"""`Step`: an op with fixed sizes and packed weights; the `Context` and `GradientSlot`s that runs pass to it.

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
from ..limits import elements

Floats = NDArray[np.float32]

#: Empty arrays mean "none", because kernels have typed arguments.
NO_TENSOR: Floats = np.empty((0, 0, 0, 0), np.float32)
NO_MASK: NDArray[np.uint8] = np.empty((0, 0, 0, 0), np.uint8)
NO_WEIGHTS: Floats = np.empty(0, np.float32)


def view(x: NDArray[Any], *shape: int) -> NDArray[Any]:
    """x under another shape in the same memory.

    Raises ValueError where that needs a copy: what a kernel writes into a copy would be lost.
    """
    return x.reshape(shape, copy=False)


def strided(x: NDArray[Any], shape: Shape, strides: tuple[int, ...]) -> NDArray[Any]:
    """A view of x with any strides, in bytes."""
    # Arrays of other devices have a method for this.
    return as_strided(x, shape, strides) if isinstance(x, np.ndarray) else x.strided(shape, strides)


def pixels(x: NDArray[Any]) -> NDArray[Any]:
    """A physical tensor as kernels take it: (N, H, W, C), the last axis innermost in memory."""
    return x if x.ndim == 4 else view(x, len(x), 1, -1, x.shape[-1])


def clear(x: NDArray[Any], threads: int) -> None:
    """Write zeros to a physical tensor or to rows of one.

    A kernel does it, so that a program can repeat it together with other kernels.
    """
    if isinstance(x, np.ndarray):
        clear_pixels(pixels(x if x.ndim > 1 else x[:, None]), threads)
    else:
        x.fill(0)


@dataclass(frozen=True)
class Clipped:
    """The bounds of an epilogue: y = min(max(·, lo), hi).

    Parameters
    ----------
    lo, hi
        The bounds.
    is_rectifier
        Whether the rule acts here.  A Clip that is no rectifier has its true derivative under every rule.
    """

    lo: float = -np.inf
    hi: float = np.inf
    is_rectifier: bool = False


UNCLIPPED = Clipped()


@dataclass
class Context:
    """The state of one step in a run, besides its inputs and outputs.  The forward run fills it for the vjp.

    Parameters
    ----------
    threads
        How many threads a kernel may use.
    scratch
        float32: memory for intermediate results, undefined before each step.
    mask
        uint8 (N, H, W, bytes): one bit for each unit of y, 1 where it is strictly between the clip's bounds.
    switches
        The choices of a maximum, one for each element of y; of the dtype `Step.switches`.
    x, y
        The inputs and the output, where the step saves them.
    parts
        How many rows of the batch belong to one sample: planes of a volume, or frames.
    """

    threads: int
    scratch: Floats
    mask: NDArray[np.uint8] = field(default_factory=lambda: NO_MASK)
    switches: NDArray[Any] = field(default_factory=lambda: NO_MASK)
    x: tuple[Floats, ...] = ()
    y: Floats = field(default_factory=lambda: NO_TENSOR)
    parts: int = 1

    def with_scratch(self, scratch: Floats) -> Context:
        """The same context with other scratch."""
        return Context(self.threads, scratch, self.mask, self.switches, self.x, self.y, self.parts)


@dataclass
class GradientSlot:
    """Where a vjp puts the gradient of one input.

    Parameters
    ----------
    array
        float32: the gradient's memory.
    accumulate
        Whether the vjp adds to the array.  Otherwise it overwrites it.
    mask, gate
        Where this contribution completes the gradient of a rectifier's output: the mask of that output and
        the gate to apply to the sum.  Otherwise NO_MASK and OPEN.
    """

    array: Floats
    accumulate: bool
    mask: NDArray[np.uint8] = field(default_factory=lambda: NO_MASK)
    gate: Gate = OPEN

    @property
    def arguments(self) -> tuple[NDArray[np.uint8], Gate, Floats, int]:
        """The slot, as `*_bwd` kernels take it: mask, gate, gx (N, H, W, C), accumulate."""
        return self.mask, self.gate, pixels(self.array), int(self.accumulate)

    @property
    def targets(self) -> int:
        """How many rows share one sample's mask: the targets of a sample, or all rows if there is no mask."""
        return len(self.array) // max(1, len(self.mask))

    def rows(self, start: int, stop: int) -> GradientSlot:
        """The slot of these rows alone.  With several targets for each sample, they must be of one sample."""
        k = self.targets
        mask = self.mask[start:stop] if k == 1 else self.mask[start // k : start // k + 1]
        return GradientSlot(self.array[start:stop], self.accumulate, mask, self.gate)

    def begin(self, threads: int) -> None:
        """Clear the array unless it holds contributions.  Steps whose kernels only add call this first."""
        if not self.accumulate:
            clear(self.array, threads)

    def put(self, g: NDArray[Any]) -> None:
        """Write or add g through NumPy.  It applies no gate."""
        if self.accumulate:
            np.add(self.array, g, out=self.array)
        else:
            np.copyto(self.array, g)

    def put_product(self, g: Floats, factor: Floats, scratch: Floats) -> None:
        """Write or add g · factor through NumPy.  It applies no gate.

        Parameters
        ----------
        g
            float32, of the array's shape.
        factor
            float32; it broadcasts to g and has one row.
        scratch
            float32: at least as many floats as one row of g has.
        """
        if not self.accumulate:
            np.multiply(g, factor, out=self.array)
            return
        product = view(scratch[: elements(g.shape[1:])], 1, *g.shape[1:])
        for n in range(len(g)):
            row = self.array[n : n + 1]
            np.multiply(g[n : n + 1], factor, out=product)
            np.add(row, product, out=row)


class Step(ABC):
    """One op, lowered.  Arrays are physical: batch first, then the axes in memory order.

    An array may be a slice of a larger buffer: a run of elements in every row.  Its innermost axis is dense,
    and all other axes merge into one without a copy (`pixels`).

    The attributes declare to the plan what the step needs and can do.
    """

    #: How it is computed, for `gbp inspect`.
    algorithm: str = ""
    #: Kernels that a run may or may not call, depending on values.  `warmup` compiles them.
    kernels: tuple[Compiled, ...] = ()
    #: Whether it computes through NumPy on the host's arrays.  Other devices refuse such steps.
    needs_host: bool = False
    #: Whether `forward`, or `vjp`, calls the same kernels with the same arguments in each run and does
    #: nothing else.  Then a program repeats the calls without Python.
    repeats: bool = False
    repeats_back: bool = False

    # Kept by a run for its vjp.

    #: Whether `vjp` reads the inputs again, or the output.
    saves_x: bool = False
    saves_y: bool = False
    #: The dtype of the switches, one for each element of y; None without switches.
    switches: type[np.generic] | None = None
    #: Whether y holds positions of maxima.  gbp counts them within a plane, ONNX through the whole tensor.
    yields_positions: bool = False

    # Fused with it, where that is possible.

    #: Whether `forward` adds the residual r in the same pass; and whether it clips and writes the mask.
    fuses_residual: bool = False
    fuses_clip: bool = False
    #: The clip of its epilogue when nothing is fused.
    clip: Clipped = UNCLIPPED
    #: Whether `vjp` applies `GradientSlot.gate` itself.  If not, the plan applies the gate separately.
    gates: bool = False
    #: Whether `vjp_through` adds up the gradients of several samples where gx has fewer rows than gy.
    adds_up: bool = False
    #: Whether it is a plain sum of its inputs, so that another step can add one of them as its residual.
    is_sum: bool = False

    # Which arrays may share memory.

    #: Whether all arrays must be C-contiguous, so that none may be a slice of a larger buffer.
    wants_whole: bool = False
    #: The first element, if y is a run of elements in every row of x; else None.
    slice_start: int | None = None
    #: The first element of each input, if the inputs are runs of elements in every row of y; else None.
    part_starts: tuple[int, ...] | None = None

    def scratch(self, threads: int) -> tuple[int, int]:
        """Floats of scratch that one call needs: (a fixed number, more for each sample)."""
        return 0, 0

    def only(self, which: Sequence[int]) -> Step:
        """The step for these inputs alone; the other inputs are slices of y and need no copy."""
        raise TypeError(f"{type(self).__name__} has no parts")

    def takes_in(self, reader: Step) -> bool:
        """Whether `vjp_through` is faster than the vjp of `reader`, which alone reads y, and then `vjp`."""
        return False

    def vjp_through(
        self,
        reader: Step,
        gy: Floats,
        read: Context,
        between: GradientSlot,
        gx: tuple[GradientSlot, ...],
        context: Context,
    ) -> None:
        """Compute the vjp of `reader`, and then this step's, without the gradient between them in memory.

        Parameters
        ----------
        reader, gy, read
            The step that reads y; the gradient of its output; what its forward run saved.
        between
            The mask and the gate of y.  Its array is NO_TENSOR.
        gx, context
            As for `vjp`.  If the step `adds_up`, gy may have several times as many rows as gx: then row r of
            gx is the sum over rows r, r + len(gx), … of gy.
        """
        raise TypeError(f"{type(self).__name__} takes in no step")

    @abstractmethod
    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        """Compute the output.

        Parameters
        ----------
        x
            The inputs, float32.
        r
            The residual to add; NO_TENSOR without one.
        y
            The output, float32, to write.
        clip
            The bounds of the epilogue.
        context
            The mask and the switches to write, and scratch.
        """

    @abstractmethod
    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        """Compute the gradient of every input (the vector-Jacobian product).

        Parameters
        ----------
        gy
            The gradient of the output, float32 (N·K, …), after the gate of the output's own rectifier.
        gx
            One slot for each input.
        context
            The values that the forward run saved, and scratch.
        """


class NumpyStep(Step):
    """A step that computes through NumPy on the host: a first version, which has no kernel yet.

    Parameters
    ----------
    temporaries
        The shapes of the float32 arrays that one call needs for intermediate results.  They are cut out of
        the scratch, so the plan counts them.
    """

    needs_host = True

    def __init__(self, *temporaries: Shape) -> None:
        self._temporaries = temporaries

    def scratch(self, threads: int) -> tuple[int, int]:
        return sum(map(elements, self._temporaries)), 0

    def temporaries(self, context: Context) -> tuple[Floats, ...]:
        """The arrays for intermediate results, in the order of their shapes.  They hold anything."""
        arrays, start = [], 0
        for shape in self._temporaries:
            size = elements(shape)
            arrays.append(view(context.scratch[start : start + size], *shape))
            start += size
        return tuple(arrays)


def lower(op: Op, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step | None:
    """`op.lower` with a checked type.  The folder graph/, where `Op` is, does not know `Step`."""
    step = op.lower(x, y, order, target)
    if step is not None and not isinstance(step, Step):
        raise TypeError(f"{type(op).__name__}.lower returned a {type(step).__name__}")
    return step
