"""`Op`: what a layer means.

An op is one file of `gbp/ops`: its equations on top, then `parse` (ONNX node → `Op`), `shape`, and the `Step`
that `lower` makes of it, with `forward` and `vjp` side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from numpy.typing import NDArray

from ..limits import ELEMENT, OPERAND, elements
from .shapes import Order, Shape


class Target(Protocol):
    """What steps are lowered for: a device, and how convolutions are to be computed on it."""

    @property
    def name(self) -> str:
        """The device, "cpu" or "cuda"."""

    @property
    def algorithm(self) -> str:
        """One of `ops.conv.ALGORITHMS`."""

    def constant(self, values: NDArray[Any]) -> Any:
        """The array in the memory of the device; the same array on the CPU."""


class Op(ABC):
    """What a layer means.  Frozen; holds its weights."""

    @property
    def parameters(self) -> int:
        return 0

    @property
    def is_activation(self) -> bool:
        """Whether it serves as one and is no rectifier: the papers define no rule for it."""
        return False

    #: Moves no number through arithmetic: the plan may make its output a view, or part of another tensor.
    moves_only: bool = False
    #: Its gradient passes as though it did not round.
    is_straight_through: bool = False

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
    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> object | None:
        """The `ops.step.Step` for inputs of shapes x in memory `order`.

        None where no byte moves, so that the output is a view of the input.
        """
