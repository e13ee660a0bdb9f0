"""Sums and extremes over axes (ONNX ReduceSum, ReduceMean, ReduceMax and the like).

    y = f(all x along the axes)        gx = gy · ∂f/∂x;  kernels/reduce.py has ∂f/∂x for each f

ReduceMean over the plane becomes GlobalAveragePool.  ReduceMax and ReduceMin keep a switch: the first
extremum in row-major order gets the gradient.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels import reduce as kernels
from ..kernels.reduce import REDUCE_SUMS, extremum_bwd, extremum_fwd, reduce_bwd, reduce_fwd
from ..limits import ELEMENT, elements
from .facts import Fact
from .folded import as_operands
from .node import Node
from .pool import AveragePool, over_everything
from .shape import Reshape, or_identity
from .step import Clipped, Context, Floats, GradientSlot, Step, view

#: Sizes of the four groups of axes behind the batch that kernels know: kept, reduced, kept, reduced.
Runs = tuple[int, int, int, int]

_NO_X = np.empty((0, 0, 0, 0, 0), np.float32)


def _groups(order: Order, axes: tuple[int, ...]) -> re.Match[str] | None:
    """The four groups of `Runs` as groups of a match, each of which may be empty; None in another order."""
    return re.fullmatch("(k*)(r*)(k*)(r*)", "".join("r" if axis in axes else "k" for axis in order))


def order_in_runs(given: Order, axes: tuple[int, ...], *, row_major: bool = False) -> Order:
    """A memory order whose reduced axes form one run, or two of which the second is innermost.

    Parameters
    ----------
    given
        The present order; it is returned if it is such an order.
    axes
        The reduced axes.
    row_major
        Whether the reduced axes must also follow each other as in the file.
    """
    ascending = [axis for axis in given if axis in axes] == sorted(axes)
    if _groups(given, axes) and (ascending or not row_major):
        return given
    return (*(axis for axis in given if axis not in axes), *sorted(axes))


def runs_of(x: Shape, order: Order, axes: tuple[int, ...]) -> Runs:
    """The sizes (A, R, B, S) of the groups, for a tensor of shape x in an order of `order_in_runs`."""
    groups = _groups(order, axes)
    if groups is None:
        raise AssertionError(f"axes {axes} of {order} are not in two runs")
    A, R, B, S = (elements([x[axis] for axis in order[slice(*groups.span(i))]]) for i in range(1, 5))
    return (A, R, B, S) if groups[3] else (A, 1, 1, R)  # a single run is innermost


def in_runs(x: Floats, runs: Runs) -> Floats:
    """x as (N, A, R, B, S)."""
    return view(x, len(x), *runs)


def without_runs(y: NDArray[Any], runs: Runs) -> NDArray[Any]:
    """y, which has size 1 along the reduced axes, as (N, A, B)."""
    return view(y, len(y), runs[0], runs[2])


def sums_of(scratch: Floats, count: int) -> NDArray[np.float64]:
    """The first `count` doubles of the scratch."""
    return scratch[: 2 * count].view(np.float64)


@dataclass(frozen=True)
class Reduce(Op):
    """Reduces `axes` to size 1.  `kind` is a constant of `kernels.reduce`."""

    axes: tuple[int, ...]
    kind: int

    @property
    def is_linear(self) -> bool:
        return self.kind in (kernels.SUM, kernels.MEAN)

    @property
    def is_never_negative(self) -> bool:
        return self.kind in (kernels.L1, kernels.L2, kernels.SUM_SQUARE)

    @property
    def keeps_nonnegative(self) -> bool:
        """Whether y is never negative where x is not."""
        return self.is_linear or self.is_never_negative or self.kind == kernels.PROD

    def shape(self, *x: Shape) -> Shape:
        return tuple(1 if axis in self.axes else n for axis, n in enumerate(x[0]))

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return super().work(x, y) + 8 * ELEMENT * elements(x[0])  # some kinds take an exponential

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        order = order_in_runs(given[0], self.axes)
        return (order,), order

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        step: type[ReduceStep] = ReduceStep if self.is_linear else CurvedReduceStep
        return step(self.kind, runs_of(x[0], order, self.axes))


@dataclass(frozen=True)
class Extremum(Op):
    """The maximum, or the minimum, over `axes`, which become of size 1."""

    axes: tuple[int, ...]
    highest: bool

    def shape(self, *x: Shape) -> Shape:
        return tuple(1 if axis in self.axes else n for axis, n in enumerate(x[0]))

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        order = order_in_runs(given[0], self.axes, row_major=True)
        return (order,), order

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return ExtremumStep(self.highest, runs_of(x[0], order, self.axes))


def reduced_axes(node: Node, axes: tuple[int, ...]) -> tuple[int, ...]:
    """`axes` counted from the front.  The batch is refused."""
    counted = tuple(sorted(node.axes(axes, len(node.shape(0)))))
    if 0 in counted:
        node.refuse(f"axes {list(counted)} hold the batch.", supported="axes from 1 on")
    return counted


def _axes(node: Node) -> tuple[int, ...]:
    """The axes: an attribute before opset 18 (ReduceSum: 13), an input since.

    Without axes all are reduced, or with noop_with_empty_axes none.
    """
    axes = (node.constant_ints(1) if node.has(1) else node.integers("axes")) or ()
    may_do_nothing = node.integer("noop_with_empty_axes", 0)
    if axes or may_do_nothing:
        return reduced_axes(node, axes)
    node.refuse("it has no axes, so it reduces the batch as well.", supported="axes from 1 on")


def _with_keepdims(node: Node, ops: tuple[Op, ...], axes: tuple[int, ...]) -> tuple[Op, ...]:
    """The ops, and where keepdims is 0 one that drops the reduced axes."""
    shape = node.shape(0)
    if node.integer("keepdims", 1):
        return ops
    return *ops, Reshape(tuple(n for axis, n in enumerate(shape) if axis not in axes))


def _parse(node: Node, kind: int) -> tuple[Op, ...]:
    axes, shape = _axes(node), node.shape(0)
    if not axes and kind in (kernels.SUM, kernels.MEAN, kernels.PROD):
        node.ignore("keepdims")
        return or_identity((), shape)
    if kind == kernels.MEAN and axes == tuple(range(2, len(shape))) and len(shape) == 4:
        return _with_keepdims(node, over_everything(node, AveragePool), axes)
    return _with_keepdims(node, (Reduce(axes, kind),), axes)


def _parse_extremum(node: Node, highest: bool) -> tuple[Op, ...]:
    axes = _axes(node)
    return _with_keepdims(node, (Extremum(axes, highest),), axes)


PARSERS = {
    "ReduceSum": lambda node: _parse(node, kernels.SUM),
    "ReduceMean": lambda node: _parse(node, kernels.MEAN),
    "ReduceL1": lambda node: _parse(node, kernels.L1),
    "ReduceL2": lambda node: _parse(node, kernels.L2),
    "ReduceSumSquare": lambda node: _parse(node, kernels.SUM_SQUARE),
    "ReduceLogSum": lambda node: _parse(node, kernels.LOG_SUM),
    "ReduceLogSumExp": lambda node: _parse(node, kernels.LOG_SUM_EXP),
    "ReduceProd": lambda node: _parse(node, kernels.PROD),
    "ReduceMax": lambda node: _parse_extremum(node, highest=True),
    "ReduceMin": lambda node: _parse_extremum(node, highest=False),
}

FACTS = {
    **dict.fromkeys(PARSERS, Fact("other", folds=as_operands)),
    "ReduceMean": Fact("read", averages=True, folds=as_operands),
}


class ReduceStep(Step):
    """A sum or a mean."""

    wants_whole = True

    def __init__(self, kind: int, runs: Runs) -> None:
        self.kind, self.runs = kind, runs
        self.algorithm = f"of {runs[1] * runs[3]}"

    def scratch(self, threads: int) -> tuple[int, int]:
        return 2 * threads * REDUCE_SUMS, 0

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        sums = sums_of(context.scratch, context.threads * REDUCE_SUMS)
        reduce_fwd(in_runs(x[0], self.runs), without_runs(y, self.runs), sums, self.kind, context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (g,) = gx
        x = in_runs(context.x[0], self.runs) if context.x else _NO_X
        sums = sums_of(context.scratch, context.threads * REDUCE_SUMS)
        to = in_runs(g.array, self.runs)
        reduce_bwd(without_runs(gy, self.runs), x, to, int(g.accumulate), sums, self.kind, context.threads)


class CurvedReduceStep(ReduceStep):
    """A function that is not linear: its vjp reads x."""

    saves_x = True


class ExtremumStep(Step):
    """A maximum or a minimum.  The switches hold which of the reduced elements it is."""

    wants_whole = True
    switches = np.uint32

    def __init__(self, highest: bool, runs: Runs) -> None:
        self.highest, self.runs = highest, runs
        self.algorithm = f"switches of {runs[1] * runs[3]}"

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        to, switches = (without_runs(a, self.runs) for a in (y, context.switches))
        extremum_fwd(in_runs(x[0], self.runs), to, switches, int(self.highest), context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (g,) = gx
        given, switches = (without_runs(a, self.runs) for a in (gy, context.switches))
        extremum_bwd(given, switches, in_runs(g.array, self.runs), int(g.accumulate), context.threads)
