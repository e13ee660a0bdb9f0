"""The p-norm of a window (ONNX LpPool, GlobalLpPool).

    y = (Σ |x|^p)^(1/p) over the window     gx[each pixel] += gy · sign(x) · (|x| / y)^(p−1),  0 where y = 0

Padding is 0.  The norm of a volume is the norm, along the depth, of the norms of its planes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.geometry import Window
from ..graph.op import ChannelsLast, Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.lp_pool import lp_pool_bwd, lp_pool_fwd
from ..limits import elements
from .facts import Fact
from .folded import as_operands, as_pool
from .node import Node
from .planes import by_planes
from .pool import over_everything, read_pool_axes, separable
from .step import Clipped, Context, Floats, GradientSlot, Step
from .window import planes_of, reverse_work, spatial_outputs, taps_of

_MAX_P = 2**10
#: The cost of a power, in multiply-adds.
_POWER = 2**8


@dataclass(frozen=True)
class LpPool(ChannelsLast):
    window: Window
    p: int

    def shape(self, *x: Shape) -> Shape:
        return *x[0][:2], *spatial_outputs(x[0], self.window)

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        reverse = planes_of(y) * reverse_work(self.window, _POWER * y[1])
        return super().work(x, y) + _POWER * self.window.taps * elements(y) + reverse

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return by_planes(LpPoolStep(self), x[0])


def read_p(node: Node) -> int:
    """The attribute p of LpPool and GlobalLpPool."""
    p = node.number("p", 2.0) if node.opset < 2 else node.integer("p", 2)
    if p != int(p):
        node.refuse(f"p is {p}.", supported="whole numbers")
    if p < 1:
        node.invalid(f"p is {p}, expected at least 1.")
    if p > _MAX_P:
        node.refuse(f"p is {p}.", supported=f"up to {_MAX_P}", hint="MaxPool is the limit of large p.")
    return int(p)


def parse_lp_pool(node: Node) -> tuple[Op, ...]:
    p = read_p(node)
    return separable(node, read_pool_axes(node), lambda window: LpPool(window, p))


def parse_global_lp_pool(node: Node) -> tuple[Op, ...]:
    p = read_p(node)
    return over_everything(node, lambda window: LpPool(window, p))


PARSERS = {"LpPool": parse_lp_pool, "GlobalLpPool": parse_global_lp_pool}

FACTS = {
    "LpPool": Fact("other", reads_planes=True, slides=True, folds=as_pool),
    "GlobalLpPool": Fact("other", reads_planes=True, folds=as_operands),
}


class LpPoolStep(Step):
    saves_x = True
    saves_y = True

    def __init__(self, op: LpPool) -> None:
        self.taps, self.p = taps_of(op.window), op.p
        self.algorithm = f"{op.p}-norm " + "×".join(map(str, op.window.kernel))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        lp_pool_fwd(x[0], y, self.taps, self.p, context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (g,) = gx
        end = self.taps, self.p, context.threads
        lp_pool_bwd(gy, context.x[0], context.y, g.array, int(g.accumulate), *end)
