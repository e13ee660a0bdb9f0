"""Scale and shift by constants (ONNX BatchNormalization in inference; Mul, Add and the like).

BatchNormalization   y = scale · (x − mean) / √(var + ε) + bias  =  a·x + b
y = a·x + b          gx = a·gy
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape, innermost, row_major
from ..kernels.pointwise import pointwise_bwd, pointwise_fwd
from ..limits import elements
from .facts import Fact
from .folded import as_operands
from .node import Node
from .step import NO_WEIGHTS, UNCLIPPED, Clipped, Context, Floats, GradientSlot, Step, pixels

_MAX_CHANNELS = 2**23  # a constant is kept for each


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """y = a·x + b along `axis`.

    `a`, `b`: one number for each index of the axis, in float64 so that folding loses nothing.
    """

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    axis: int

    @property
    def parameters(self) -> int:
        return self.a.size + self.b.size

    def macs(self, y: Shape) -> int:
        return elements(y[1:])

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        order = given[0] if given[0][-1] == self.axis else innermost(self.axis, len(x[0]))
        return (order,), order

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        a, b = self.a.astype(np.float32), self.b.astype(np.float32)
        return PointwiseStep(target.constant(a), target.constant(b))


@dataclass(frozen=True, eq=False)
class Scale(Op):
    """y = a·x + b with constants that broadcast to x.  They have x's rank, and 1 on the batch axis."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]

    @property
    def parameters(self) -> int:
        return self.a.size + self.b.size

    def macs(self, y: Shape) -> int:
        return elements(y[1:])

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        return (row_major(len(x[0])),), row_major(len(x[0]))

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        a, b = self.a.astype(np.float32), self.b.astype(np.float32)
        return ScaleStep(target.constant(a), target.constant(b), elements(x[0][1:]))


def one_row(c: NDArray[Any]) -> NDArray[Any]:
    """Constant c without its rows but the first, where all are the same."""
    return c[:1] if c.ndim and len(c) > 1 and (c == c[:1]).all() else c


def refuse_empty(node: Node, c: NDArray[Any]) -> None:
    """Refuse a constant without numbers."""
    if not c.size:
        node.refuse(f"a constant of shape {list(c.shape)} holds no number.")


def refuse_unless_it_joins(node: Node, c: NDArray[Any], shape: Shape) -> None:
    """Refuse a constant without numbers, or of more axes than x of this shape.

    The result would have these axes in front of the batch.
    """
    refuse_empty(node, c)
    if c.ndim > len(shape):
        node.refuse(
            f"a constant of shape {list(c.shape)} puts axes in front of the batch of x, whose shape is "
            f"{list(shape)}.",
            supported=f"up to {len(shape)} axes",
        )


def at_rank(node: Node, c: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Reshape constant c to x's rank.  It must broadcast to x's `shape`, with 1 on the batch axis."""
    aligned = zip(reversed(c.shape), reversed(shape), strict=False)
    if any(n not in (1, m) for n, m in aligned):
        node.refuse(f"a constant of shape {list(c.shape)} does not broadcast to x of shape {list(shape)}.")
    refuse_unless_it_joins(node, c, shape)
    c = one_row(c.reshape((1,) * (len(shape) - c.ndim) + c.shape))
    if c.shape[0] != 1:
        node.refuse(
            f"a constant of shape {list(c.shape)} differs by sample.", supported="1 on the batch axis"
        )
    return c


def scale_and_shift(node: Node, shape: Shape, a: NDArray[Any], b: NDArray[Any]) -> Op:
    """The op a·x + b: an `Affine` if a and b vary along at most one common axis, else a `Scale`."""
    a, b = (at_rank(node, c.astype(np.float64), shape) for c in (a, b))
    axes = [axis for axis, sizes in enumerate(zip(a.shape, b.shape, strict=True)) if max(sizes) > 1]
    if len(axes) > 1:
        return Scale(*np.broadcast_arrays(a, b))
    axis = axes[0] if axes else min(1, len(shape) - 1)
    if axis == 0:
        node.refuse(f"x has shape {list(shape)}.", supported="at least one axis besides the batch")
    if shape[axis] > _MAX_CHANNELS:
        node.refuse(f"axis {axis} of x has {shape[axis]} channels.", supported=f"up to {_MAX_CHANNELS}")
    a, b = (np.full(shape[axis], c.reshape(-1)) for c in (a, b))
    return Affine(a, b, axis)


def times(node: Node, shape: Shape, c: NDArray[Any]) -> Op:
    """The op c·x."""
    return scale_and_shift(node, shape, c, np.zeros(()))


def plus(node: Node, shape: Shape, c: NDArray[Any]) -> Op:
    """The op x + c."""
    return scale_and_shift(node, shape, np.ones(()), c)


def parse_batchnorm(node: Node) -> Op:
    """BatchNormalization in inference; training is refused.

    Which it is, an attribute says before opset 7 and since opset 14.  In between the outputs say it: one in
    inference, and the new statistics besides in training.
    """
    shape = node.shape(0)
    if len(shape) < 2:
        node.refuse(f"the input has shape {list(shape)}.", supported="(N, C, …)")
    if node.integer("training_mode", 0):
        node.refuse("training_mode is 1.", supported="inference", hint="Export the model in evaluation mode.")
    by_pixel = node.opset < 9 and not node.integer("spatial", 1)
    if node.opset < 7 and not node.integer("is_test", 0):
        node.refuse("is_test is 0.", supported="inference", hint="Export the model in evaluation mode.")
    outputs = sum(map(bool, node.proto.output))
    if 7 <= node.opset < 14 and outputs > 1:
        node.refuse(
            f"it has {outputs} outputs, as in training.",
            supported="inference, with one output",
            hint="Export the model in evaluation mode.",
        )
    node.ignore("momentum")
    scale, bias, mean, var = (node.constant(i).astype(np.float64) for i in (1, 2, 3, 4))
    # MXNet says spatial=0 and gives statistics by channel all the same.
    expected = shape[1:] if by_pixel and scale.shape != shape[1:2] else shape[1:2]
    for name, value in (("scale", scale), ("B", bias), ("mean", mean), ("var", var)):
        if value.shape != expected:
            node.invalid(f"{name} has shape {list(value.shape)}, expected {list(expected)}.")
    variance = var + node.number("epsilon", 1e-5)
    if np.any(variance <= 0):
        node.invalid("var + epsilon is not positive.")
    a = scale / np.sqrt(variance)
    b = bias - a * mean
    return Affine(a, b, axis=1) if a.ndim == 1 else Scale(a[None], b[None])


PARSERS = {"BatchNormalization": parse_batchnorm}

FACTS = {"BatchNormalization": Fact("kept", reads_planes=True, folds=as_operands)}


class PointwiseStep(Step):
    """y = clip(a·x + b + r).  Without a and b it is a rectifier, or the sum of x and r."""

    algorithm = "pointwise"
    repeats = repeats_back = True
    gates = True
    fuses_residual = True
    fuses_clip = True

    def __init__(self, a: Floats = NO_WEIGHTS, b: Floats = NO_WEIGHTS, clip: Clipped = UNCLIPPED) -> None:
        self.a, self.b, self.clip = a, b, clip

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        residual = pixels(r) if r.size else r
        pointwise_fwd(
            pixels(x[0]), self.a, self.b, residual, pixels(y), context.mask, clip.lo, clip.hi, context.threads
        )

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        g = gx[0]
        pointwise_bwd(pixels(gy), self.a, *g.arguments, context.threads)


class ScaleStep(Step):
    """y = a·x + b through NumPy; a and b broadcast."""

    algorithm = "scale"

    def __init__(self, a: Floats, b: Floats, size: int) -> None:
        self.a, self.b, self.size = a, b, size

    def scratch(self, threads: int) -> tuple[int, int]:
        return self.size, 0

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        np.multiply(x[0], self.a, out=y)
        np.add(y, self.b, out=y)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        gx[0].put_product(gy, self.a, context.scratch)
