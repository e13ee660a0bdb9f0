"""`Op`: what a layer means.

Each op (or family of ops) is one file of `gbp/ops`.  The file states the equations on top.  Then come `parse`
(ONNX node → `Op`), `shape`, and the `Step` that `lower` makes, with `forward` and `vjp` side by side.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from numpy.typing import NDArray

from ..errors import InputError
from ..limits import ELEMENT, OPERAND, elements
from .shapes import Order, Shape, innermost

#: How convolutions are computed.  "auto": forward directly, so that equal windows give equal outputs at every
#: position; backward by the cheapest algorithm.  "fast": the cheapest in both directions.  The others are
#: used wherever they apply.  "direct": tiles, and columns for the backward pass of strides.  "winograd": 3×3
#: windows of stride 1.  "lists": the backward pass over lists of the gradient's nonzero values.
ALGORITHMS = ("auto", "fast", "direct", "winograd", "lists")


def check_algorithm(algorithm: str) -> None:
    """Raise InputError unless it is one of ALGORITHMS."""
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm is {algorithm!r}.", supported=", ".join(map(repr, ALGORITHMS)))


class Target(Protocol):
    """The target of lowering: a device, and how it computes convolutions."""

    @property
    def name(self) -> str:
        """The name of the device, "cpu" or "cuda"."""

    @property
    def algorithm(self) -> str:
        """One of `ALGORITHMS`."""

    @property
    def tf32(self) -> bool:
        """Whether convolutions multiply in TF32 alone, on a card."""

    def constant(self, values: NDArray[Any]) -> Any:
        """A copy of the array in the device's memory; on the CPU the array itself."""


class Op:
    """The meaning of a layer, with its weights.  Immutable.

    It is no `ABC`: passes ask for the type of each op often, and of an `ABC` that takes ten times as long.
    So `abstractmethod` is for type checkers alone.
    """

    @property
    def parameters(self) -> int:
        """How many weights it holds."""
        return 0

    @property
    def is_activation(self) -> bool:
        """Whether it is an activation but no rectifier: then the papers define no rule for it."""
        return False

    @property
    def planning(self) -> int:
        """As how many layers it counts where these are limited.

        It takes about as many times as long to plan as a rectifier.
        """
        return 1

    #: The op copies numbers and computes none, so its output may be a view or a part of another tensor.
    moves_only: bool = False
    #: The op rounds, and its gradient ignores the rounding.
    is_straight_through: bool = False

    def macs(self, y: Shape) -> int:
        """Multiply-adds for one sample, given the output's shape y."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes that the op and its step hold: weights in float64, and again packed in float32."""
        return 12 * self.parameters

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        """Estimated multiply-adds of one sample, forward and backward.  Models of absurd cost are refused."""
        return 2 * self.macs(y) + ELEMENT * (elements(y) + sum(map(elements, x))) + OPERAND * (1 + len(x))

    def shape(self, *x: Shape) -> Shape:
        """The output's shape, given the inputs' shapes; batch first.  By default that of the first input."""
        return x[0]

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        """The memory orders that the step needs.

        Parameters
        ----------
        x
            The inputs' shapes.
        given
            The orders in which the inputs are stored now.

        Returns
        -------
        The order that each input must have, and the order of the output.  By default all take the first
        input's order.
        """
        return tuple(given[0] for _ in given), given[0]

    @abstractmethod
    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> object | None:
        """Make the `ops.step.Step` that computes this op.

        Parameters
        ----------
        x, y
            Shapes of the inputs and of the output.
        order
            The memory order of the inputs.
        target
            The device, and the algorithm for convolutions.

        Returns
        -------
        The step; None where the output is a view of the input and nothing has to be computed.
        """


class ChannelsLast(Op):
    """An op whose step needs the channels innermost in memory, as kernels read pixels."""

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        order = innermost(1, len(x[0]))
        return (order,) * len(x), order
