"""Scale and shift by channel (ONNX BatchNormalization in inference; Mul and Add with a constant).

BatchNormalization   y = scale · (x − mean) / √(var + ε) + bias  =  a·x + b
y = a·x + b          gx = a·gy
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph import Shape
from ..kernels.pointwise import pointwise_bwd, pointwise_fwd
from .node import Node
from .op import NO_WEIGHTS, Clipped, Floats, Gradient, Op, Order, Saved, Step, innermost, pixels


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """y = a·x + b along `axis`; a and b (size of that axis,), float64 so that folding loses nothing."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    axis: int

    @property
    def parameters(self) -> int:
        return self.a.size + self.b.size

    def macs(self, y: Shape) -> int:
        return int(np.prod(y[1:]))

    def shape(self, *x: Shape) -> Shape:
        return x[0]

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        order = given[0] if given[0][-1] == self.axis else innermost(self.axis, len(x[0]))
        return (order,), order

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order) -> Step:
        return PointwiseStep(self.a.astype(np.float32), self.b.astype(np.float32))


def parse_batchnorm(node: Node) -> Op:
    shape = node.shape(0)
    if len(shape) < 2:
        node.refuse(f"the input has shape {list(shape)}.", supported="(N, C, …)")
    if node.integer("training_mode", 0):
        node.refuse("training_mode is 1.", supported="inference", hint="Export the model in evaluation mode.")
    if node.opset < 9 and node.integer("spatial", 1) != 1:
        node.refuse("spatial is 0.", supported="statistics by channel")
    if node.opset < 7 and not node.integer("is_test", 0):
        node.refuse("is_test is 0.", supported="inference", hint="Export the model in evaluation mode.")
    node.ignore("momentum", "consumed_inputs")
    scale, bias, mean, var = (node.constant(i).astype(np.float64) for i in (1, 2, 3, 4))
    for name, value in (("scale", scale), ("B", bias), ("mean", mean), ("var", var)):
        if value.shape != (shape[1],):
            node.invalid(f"{name} has shape {list(value.shape)}, expected ({shape[1]},).")
    deviation = var + node.number("epsilon", 1e-5)
    if np.any(deviation <= 0):
        node.invalid("var + epsilon is not positive.")
    a = scale / np.sqrt(deviation)
    return Affine(a, bias - a * mean, axis=1)


PARSERS = {"BatchNormalization": parse_batchnorm}


class PointwiseStep(Step):
    """y = clip(a·x + b + r); with empty a and b the identity, which leaves residual and rectifier."""

    how = "pointwise"
    gates = True
    fuses_residual = True
    fuses_clip = True

    def __init__(self, a: Floats = NO_WEIGHTS, b: Floats = NO_WEIGHTS) -> None:
        self.a, self.b = a, b

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, saved: Saved) -> None:
        residual = pixels(r) if r.size else r
        pointwise_fwd(
            pixels(x[0]), self.a, self.b, residual, pixels(y), saved.mask, clip.lo, clip.hi, saved.threads
        )

    def vjp(self, gy: Floats, gx: tuple[Gradient, ...], saved: Saved) -> None:
        g = gx[0]
        pointwise_bwd(pixels(gy), self.a, *g.end, saved.threads)
