"""Local response normalisation across channels (ONNX LRN; Krizhevsky et al. 2012, section 3.3).

s_c  = bias + alpha / size · Σ_{d near c} x_d²          d from c − ⌊(size−1)/2⌋ to c + ⌈(size−1)/2⌉
y_c  = x_c · s_c^−beta
gx_c = gy_c · s_c^−beta − 2·alpha·beta / size · x_c · Σ_{d whose window holds c} gy_d · x_d · s_d^−(beta+1)
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.op import ChannelsLast, Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.lrn import lrn_bwd, lrn_fwd, lrn_scratch_floats
from ..limits import elements
from .facts import Fact
from .folded import as_operands
from .node import Node
from .step import Clipped, Context, Floats, GradientSlot, Step, pixels

_MAX_SIZE = 2**12


@dataclass(frozen=True)
class LRN(ChannelsLast):
    size: int
    alpha: float
    beta: float
    bias: float

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return super().work(x, y) + (8 * self.size + 2**13) * elements(y)  # beta ≠ 0.75 takes a power

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return LRNStep(self, x[0][1])


def parse(node: Node) -> Op:
    if len(node.shape(0)) < 3:
        node.refuse(f"the input has shape {list(node.shape(0))}.", supported="(N, C, …)")
    size = node.integer("size", 0)
    if size < 1:
        node.invalid(f"size is {size}, expected at least 1.")
    if size > _MAX_SIZE:
        node.refuse(f"size is {size}.", supported=f"up to {_MAX_SIZE} channels")
    alpha, beta, bias = node.number("alpha", 1e-4), node.number("beta", 0.75), node.number("bias", 1.0)
    if bias <= 0 or alpha < 0:
        node.refuse(
            f"bias {bias}, alpha {alpha}.", supported="bias > 0 and alpha ≥ 0, so that no root is of 0"
        )
    return LRN(size, alpha, beta, bias)


PARSERS = {"LRN": parse}

FACTS = {"LRN": Fact("kept", reads_planes=True, folds=as_operands)}


class LRNStep(Step):
    algorithm = "across channels"
    repeats = repeats_back = True
    gates = True
    saves_x = True

    def __init__(self, op: LRN, channels: int) -> None:
        self.constants = op.size, op.alpha, op.beta, op.bias
        self.channels = channels

    def scratch(self, threads: int) -> tuple[int, int]:
        return threads * lrn_scratch_floats(self.channels, self.constants[0]), 0

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        lrn_fwd(pixels(x[0]), pixels(y), context.scratch, *self.constants, context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        g = gx[0]
        lrn_bwd(
            pixels(gy), pixels(context.x[0]), *g.arguments, context.scratch, *self.constants, context.threads
        )
