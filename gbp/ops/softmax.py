"""Softmax and its logarithm (ONNX Softmax, LogSoftmax).

    Softmax       y_i = exp(x_i) / Σ_j exp(x_j)         gx_i = y_i · (gy_i − Σ_j gy_j · y_j)
    LogSoftmax    y_i = x_i − log Σ_j exp(x_j)          gx_i = gy_i − exp(y_i) · Σ_j gy_j

Before opset 13 the sums run over all axes from `axis` on; since then over `axis` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape, innermost, row_major
from ..kernels.softmax import logsoftmax_bwd, logsoftmax_fwd, softmax_bwd, softmax_fwd
from ..limits import ELEMENT, elements
from .facts import Fact
from .folded import as_operands
from .node import Node
from .step import Clipped, Context, Floats, GradientSlot, Step, view


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax, or its logarithm, over the axes [axis, end)."""

    axis: int
    end: int
    logarithm: bool

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        rows = elements(y) // elements(y[self.axis : self.end])
        return super().work(x, y) + 16 * ELEMENT * rows

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        rank = len(x[0])
        order = row_major(rank) if self.end - self.axis > 1 else innermost(self.axis, rank)
        return (order,), order

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        # A mask has whole bytes for each row of the innermost axis, so longer rows have no mask to gate by.
        one_axis = self.end - self.axis == 1
        return SoftmaxStep(int(np.prod(y[self.axis : self.end])), self.logarithm, gates=one_axis)


def _parse(node: Node, logarithm: bool) -> Op:
    rank = len(node.shape(0))
    axis = node.axis(node.integer("axis", -1 if node.opset >= 13 else 1), rank)
    if axis == 0:
        node.refuse("the sum runs over the batch.", supported="any other axis")
    return Softmax(axis, axis + 1 if node.opset >= 13 else rank, logarithm)


PARSERS = {"Softmax": lambda node: _parse(node, False), "LogSoftmax": lambda node: _parse(node, True)}

FACTS = dict.fromkeys(PARSERS, Fact("other", is_head=True, folds=as_operands))


class SoftmaxStep(Step):
    algorithm = "stable"
    repeats = repeats_back = True
    saves_y = True

    def __init__(self, size: int, logarithm: bool, *, gates: bool) -> None:
        self.size, self.gates, self.wants_whole = size, gates, not gates
        self.fwd = logsoftmax_fwd if logarithm else softmax_fwd
        self.bwd = logsoftmax_bwd if logarithm else softmax_bwd

    def _rows(self, x: Floats) -> Floats:
        return view(x, len(x), 1, -1, self.size)

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        self.fwd(self._rows(x[0]), self._rows(y), context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        g = gx[0]
        self.bwd(
            self._rows(gy),
            self._rows(context.y),
            g.mask,
            g.gate,
            self._rows(g.array),
            int(g.accumulate),
            context.threads,
        )
