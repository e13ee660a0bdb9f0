"""Normalisation by a sample's own statistics (ONNX InstanceNormalization and similar ops).

    y  = (x − mean) · i,   i = 1 / √(var + ε)         gx = i · (gy − mean gy − y · mean(gy · y))

Mean and var are over some axes of each sample.  They depend on x, so the gradient contains their derivatives.
RMSNormalization has no mean, and LpNormalization divides by a norm; kernels/normalize.py has the equations.
Scale and bias become a separate `Affine` or `Scale`, which passes can fold.

    InstanceNormalization          over all axes behind the channels
    GroupNormalization             over these and the channels of a group
    LayerNormalization, RMS…       over `axis` and all behind it
    MeanVarianceNormalization      over `axes`; ε = 10⁻⁹ is added to the root, 10⁻¹⁸ to the variance here
    LpNormalization                over `axis`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.normalize import NORMALIZE_SUMS, normalize_bwd, normalize_fwd
from ..limits import ELEMENT, elements
from .affine import Affine, scale_and_shift
from .facts import Fact
from .folded import as_operands
from .node import Node
from .reduce import Runs, in_runs, order_in_runs, reduced_axes, runs_of, sums_of
from .shape import Reshape
from .step import Clipped, Context, Floats, GradientSlot, Step


@dataclass(frozen=True)
class Normalize(Op):
    """Normalises over some axes.

    Parameters
    ----------
    axes
        The axes of the statistics.
    epsilon
        Is added to the variance.
    centred
        Whether the mean is subtracted.
    norm
        Whether x is divided by a norm; otherwise by the root of the mean of squares.
    power
        1 or 2: which norm.
    """

    axes: tuple[int, ...]
    epsilon: float
    centred: bool = True
    norm: bool = False
    power: int = 2

    @property
    def planning(self) -> int:
        return 2

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return super().work(x, y) + 8 * ELEMENT * elements(y)

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        order = order_in_runs(given[0], self.axes)
        return (order,), order

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return NormalizeStep(self, runs_of(x[0], order, self.axes))


def _epsilon(node: Node) -> float:
    epsilon = node.number("epsilon", 1e-5)
    if epsilon < 0:
        node.invalid(f"epsilon is {epsilon}.")
    return epsilon


def _per_channel(node: Node, shape: Shape, scale: NDArray[Any], bias: NDArray[Any]) -> Op:
    for name, value in (("scale", scale), ("bias", bias)):
        if value.shape != (shape[1],):
            node.invalid(f"{name} has shape {list(value.shape)}, expected ({shape[1]},).")
    return Affine(scale.astype(np.float64), bias.astype(np.float64), axis=1)


def _spatial_shape(node: Node) -> Shape:
    shape = node.shape(0)
    if len(shape) < 3:
        node.refuse(
            f"the input has shape {list(shape)}.", supported="(N, C, …) with an axis behind the channels"
        )
    return shape


def parse_instance(node: Node) -> tuple[Op, ...]:
    shape = _spatial_shape(node)
    affine = _per_channel(node, shape, node.constant(1), node.constant(2))
    return Normalize(tuple(range(2, len(shape))), _epsilon(node)), affine


def parse_group(node: Node) -> tuple[Op, ...]:
    """Scale and bias have one value for each group at opset 18, and for each channel since opset 21."""
    node.ignore("stash_type")
    shape = _spatial_shape(node)
    (N, C, *plane), groups = shape, node.integer("num_groups", 0)
    if groups < 1 or C % groups:
        node.invalid(f"{C} channels do not part into {groups} groups.")
    scale, bias = node.constant(1), node.constant(2)
    if node.opset < 21:
        scale, bias = (np.repeat(v, C // groups) if v.shape == (groups,) else v for v in (scale, bias))
    return (
        Reshape((N, groups, C // groups, *plane)),
        Normalize(tuple(range(2, len(shape) + 1)), _epsilon(node)),
        Reshape(shape),
        _per_channel(node, shape, scale, bias),
    )


def _parse_last_axes(node: Node, centred: bool) -> tuple[Op, ...]:
    node.ignore("stash_type")
    shape = node.shape(0)
    axis = node.axis(node.integer("axis", -1), len(shape))
    axes = reduced_axes(node, tuple(range(axis, len(shape))))
    scale = node.constant(1)
    bias = node.constant(2) if node.has(2) else np.zeros((), np.float32)
    return Normalize(axes, _epsilon(node), centred), scale_and_shift(node, shape, scale, bias)


def parse_mean_variance(node: Node) -> Op:
    return Normalize(reduced_axes(node, node.integers("axes", (0, 2, 3))), 1e-18)


def parse_lp(node: Node) -> Op:
    axes = reduced_axes(node, (node.integer("axis", -1),))
    p = node.integer("p", 2)
    if p not in (1, 2):
        node.refuse(f"p is {p}.", supported="1 or 2")
    return Normalize(axes, 0.0, centred=False, norm=True, power=p)


PARSERS = {
    "GroupNormalization": parse_group,
    "InstanceNormalization": parse_instance,
    "LayerNormalization": lambda node: _parse_last_axes(node, centred=True),
    "LpNormalization": parse_lp,
    "MeanVarianceNormalization": parse_mean_variance,
    "RMSNormalization": lambda node: _parse_last_axes(node, centred=False),
}

FACTS = {
    "LayerNormalization": Fact("other", since=17, folds=as_operands),
    "LpNormalization": Fact("other", folds=as_operands),
    "MeanVarianceNormalization": Fact("other", averages=True, folds=as_operands),
    "RMSNormalization": Fact("other", since=23, averages=True, folds=as_operands),
    **dict.fromkeys(
        ("GroupNormalization", "InstanceNormalization"),
        Fact("kept", reads_planes=True, averages=True, folds=as_operands),
    ),
}


class NormalizeStep(Step):
    repeats = repeats_back = True
    wants_whole = True
    saves_x = True

    def __init__(self, op: Normalize, runs: Runs) -> None:
        self.runs = runs
        count = runs[1] * runs[3]
        self.numbers = int(op.centred), op.power, 1 if op.norm else count, op.epsilon
        self.algorithm = f"over {count}"

    def scratch(self, threads: int) -> tuple[int, int]:
        return 2 * threads * NORMALIZE_SUMS, 0

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        sums = sums_of(context.scratch, context.threads * NORMALIZE_SUMS)
        normalize_fwd(in_runs(x[0], self.runs), in_runs(y, self.runs), sums, *self.numbers, context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (g,) = gx
        sums = sums_of(context.scratch, context.threads * NORMALIZE_SUMS)
        x, given, to = (in_runs(a, self.runs) for a in (context.x[0], gy, g.array))
        normalize_bwd(given, x, to, int(g.accumulate), sums, *self.numbers, context.threads)
