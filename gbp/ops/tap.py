"""A tap: a copy of a tensor that somebody reads after a run.

y = x        gx = gy

All readers of x read y instead.  So y's gradient is that of x as the file has it: the sum over x's readers,
before the gate of the rectifier that made x.  Nothing is fused into a tap, and nothing overwrites it.  In the
end the plan has the step that makes x write y itself, where it can (`plan.fusion.without_copies`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from .affine import PointwiseStep
from .step import Step


@dataclass(frozen=True)
class Tap(Op):
    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return TapStep()


class TapStep(PointwiseStep):
    algorithm = "tap"
    fuses_residual = False
    fuses_clip = False
