"""Sums and products (ONNX Add, Sum, Mean, Mul) of tensors and constants, with NumPy's broadcasting.

y = Σ x_i        gx_i = Σ gy                over the axes along which x_i was broadcast
y = x_0 · x_1    gx_0 = Σ gy · x_1          likewise, and gx_1 with the roles changed
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.broadcast import add_bwd, add_fwd, mul_bwd, mul_fwd
from ..kernels.pointwise import pointwise_bwd, pointwise_fwd
from ..kernels.products import products_bwd, products_fwd, products_sum_bwd
from ..limits import ELEMENT, elements
from .affine import at_rank, plus, refuse_empty, times
from .facts import Fact
from .folded import as_broadcast
from .node import Node
from .shape import or_identity
from .step import (
    NO_MASK,
    NO_WEIGHTS,
    UNCLIPPED,
    Clipped,
    Context,
    Floats,
    GradientSlot,
    Step,
    pixels,
    strided,
)

RANK = 6  # the number of axes that broadcasting kernels take
#: Ops that may have an infinite constant: a mask, a bound or a neutral element.
_OF_INFINITY = {
    *("Add", "Sum", "Sub", "Div", "Max", "Min", "Where"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
}


class SameRank(Op):
    """An op on tensors of one rank that broadcast, all in one memory order."""

    def shape(self, *x: Shape) -> Shape:
        return tuple(int(n) for n in np.broadcast_shapes(*x))

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return super().work(x, y) + (0 if all(shape == y for shape in x) else 4 * ELEMENT * elements(y))


@dataclass(frozen=True)
class Add(SameRank):
    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return AddStep() if all(shape == y for shape in x) else BroadcastAddStep()


@dataclass(frozen=True)
class Mul(SameRank):
    def macs(self, y: Shape) -> int:
        return elements(y[1:])

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        one_a_channel = y[0], *(y[axis] if axis == order[-1] else 1 for axis in range(1, len(y)))
        by_channel = [shape != y and shape == one_a_channel for shape in x]
        fits = all(shape == y or by for shape, by in zip(x, by_channel, strict=True)) and not all(by_channel)
        if target.name == "cpu" and len(x) == 2 and len(y) > 1 and fits:
            return ProductStep((by_channel[0], by_channel[1]))
        return MulStep()


def operands(node: Node) -> tuple[Shape, list[NDArray[Any] | None]]:
    """The shape that the computed operands broadcast to, and of all operands the constants, else None."""
    indices = range(len(node.operands))
    computed = [node.shape(i) for i in indices if not node.is_constant(i)]
    shape = computed[0]
    if any(len(other) != len(shape) for other in computed):
        node.refuse(f"inputs of shapes {', '.join(str(list(s)) for s in computed)}.", supported="one rank")
    try:
        shape = tuple(int(n) for n in np.broadcast_shapes(*computed))
    except ValueError:
        node.invalid(f"inputs of shapes {', '.join(str(list(s)) for s in computed)} do not broadcast.")
    if len({other[0] for other in computed}) > 1:
        node.refuse("inputs differ in their batch axis.")
    if len(shape) > RANK and len(computed) > 1:
        node.refuse(f"inputs have {len(shape)} axes.", supported=f"up to {RANK}")
    return shape, [_constant(node, i, len(shape)) if node.is_constant(i) else None for i in indices]


def _constant(node: Node, index: int, rank: int) -> NDArray[Any]:
    """A constant operand; before opset 7 the second one's axes are the first one's from `axis` on."""
    # Asked of constants alone, so it is there.
    kind = node.operands[index].dtype.kind  # type: ignore[union-attr]
    if kind == "b":
        c = node.constant(index, np.bool_).astype(np.float32)
    elif kind in "iu" and node.op == "Pow" and index == 1:  # the one operand that may have a type of its own
        c = node.constant_integers(index).astype(np.float32)
    else:
        c = node.constant(index, infinite=node.op in _OF_INFINITY)
    refuse_empty(node, c)
    if node.opset >= 7:
        return c
    node.ignore("broadcast")
    axis = node.integer("axis", rank - c.ndim)
    if not 0 <= axis <= rank - c.ndim:
        node.invalid(f"a constant of shape {list(c.shape)} does not fit {rank} axes from axis {axis} on.")
    return c.reshape(c.shape + (1,) * (rank - axis - c.ndim)) if index == 1 else c


def _parse(node: Node, op: Op, multiplies: bool) -> tuple[Op, ...]:
    shape, given = operands(node)
    constants = [at_rank(node, c, shape) for c in given if c is not None]
    ops: list[Op] = [op] if len(constants) < len(given) - 1 else []
    if constants:
        combined = reduce(np.multiply if multiplies else np.add, constants)
        ops.append((times if multiplies else plus)(node, shape, combined))
    return tuple(ops)


def parse_add(node: Node) -> tuple[Op, ...]:
    return _parse(node, Add(), multiplies=False) or or_identity((), node.shape(0))  # a Sum of one


def parse_mul(node: Node) -> tuple[Op, ...]:
    return _parse(node, Mul(), multiplies=True)


def parse_mean(node: Node) -> tuple[Op, ...]:
    shape, given = operands(node)
    return *parse_add(node), times(node, shape, np.array(1 / len(given)))


PARSERS = {"Add": parse_add, "Sum": parse_add, "Mul": parse_mul, "Mean": parse_mean}

FACTS = {
    **dict.fromkeys(("Add", "Sum", "Mul"), Fact("kept", is_pixelwise=True, folds=as_broadcast)),
    "Mean": Fact("kept", folds=as_broadcast),
}


class AddStep(Step):
    """Tensors of one shape."""

    algorithm = "sum"
    is_sum = True
    repeats = repeats_back = True
    gates = True
    fuses_clip = True

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        total = x[0]
        for i, other in enumerate(x[1:], start=2):
            end, mask = (clip, context.mask) if i == len(x) else (UNCLIPPED, NO_MASK)
            pointwise_fwd(
                pixels(total),
                NO_WEIGHTS,
                NO_WEIGHTS,
                pixels(other),
                pixels(y),
                mask,
                end.lo,
                end.hi,
                context.threads,
            )
            total = y

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        for g in gx:
            pointwise_bwd(pixels(gy), NO_WEIGHTS, *g.arguments, context.threads)


def six_axes(x: Floats, like: Floats) -> Floats:
    """x, broadcast with strides of 0 to the shape of `like` except for the batch, with six axes.

    The view is writable.  Adding to it sums over the broadcast axes.
    """
    view = x
    if x.shape[1:] != like.shape[1:]:
        sizes = zip(x.strides[1:], x.shape[1:], like.shape[1:], strict=True)
        strides = (x.strides[0], *(stride if n == m else 0 for stride, n, m in sizes))
        view = strided(x, (len(x), *like.shape[1:]), strides)
    return view[(slice(None), *(None,) * (RANK - view.ndim))]


class BroadcastAddStep(Step):
    algorithm = "broadcast sum"
    repeats = repeats_back = True

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        total = x[0]
        for other in x[1:]:
            add_fwd(six_axes(total, y), six_axes(other, y), six_axes(y, y), context.threads)
            total = y

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        for g in gx:
            g.begin(context.threads)
            add_bwd(six_axes(gy, gy), six_axes(g.array, gy), context.threads)


class ProductStep(Step):
    """Two tensors of one shape, or one and a tensor with one number a channel."""

    algorithm = "product"
    repeats = repeats_back = True
    saves_x = True
    gates = True

    def __init__(self, by_channel: tuple[bool, bool]) -> None:
        """`by_channel`: of each input, whether it has one number a channel."""
        self.by_channel = by_channel

    def _spread(self, x: tuple[Floats, ...], like: Floats) -> list[Floats]:
        """The inputs as (N, H, W, C), with strides of 0 where one is used again and again."""
        return [
            strided(pixels(a), (len(a), *like.shape[1:]), (a.strides[0], 0, 0, a.strides[-1]))
            if by_channel
            else pixels(a)
            for a, by_channel in zip(x, self.by_channel, strict=True)
        ]

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        products_fwd(*self._spread(x, pixels(y)), pixels(y), context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        g = pixels(gy)
        others = reversed(self._spread(context.x, g))
        for slot, other, by_channel in zip(gx, others, self.by_channel, strict=True):
            bwd = products_sum_bwd if by_channel else products_bwd
            bwd(g, other, *slot.arguments, context.threads)


class MulStep(Step):
    algorithm = "product"
    repeats = repeats_back = True
    saves_x = True

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        total = x[0]
        for other in x[1:]:
            mul_fwd(six_axes(total, y), six_axes(other, y), six_axes(y, y), context.threads)
            total = y

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        for g, other in zip(gx, reversed(context.x), strict=True):
            g.begin(context.threads)
            mul_bwd(six_axes(gy, gy), six_axes(other, gy), six_axes(g.array, gy), context.threads)
