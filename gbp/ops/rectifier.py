"""Rectifiers and other clips (ONNX Relu, Clip, ThresholdedRelu).

    y  = min(max(x, lo), hi)                   a threshold:  y = min(x, hi) where x > lo, else 0
    gx = gy where (lo < x < hi or the rule has no forward gate) and (gy > 0 or no gradient gate), else 0

Relu, Clip(0, b) and thresholds are rectifiers and obey the rule; so are Clips from 0.001 or less, as of Relu
and a guard before a power or logarithm, where their input may be negative.  A Clip between other bounds has
its true derivative, gy where lo < x < hi, under every rule.  `passes.name_activations` finds rectifiers that
are written otherwise, by their values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.functions import function_kernels
from .affine import PointwiseStep
from .facts import Fact
from .folded import as_broadcast
from .node import Node
from .step import Clipped, Context, Floats, Step, pixels

#: The largest lower bound above 0 of a rectifier, as float16 rounds it.
MAX_FLOOR = 1.001e-3


@dataclass(frozen=True)
class Rectifier(Op):
    clip: Clipped

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return PointwiseStep(clip=self.clip)


class Threshold(Rectifier):
    """y = min(x, hi) where x > lo, else 0."""

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return ThresholdStep(self.clip)


def parse_relu(node: Node) -> Op:
    node.shape(0)
    return Rectifier(Clipped(0.0, np.inf, is_rectifier=True))


def _bound(node: Node, name: str, index: int, default: float) -> float:
    """A bound of Clip, which is an attribute before opset 11 and an input since."""
    if node.opset < 11:
        return node.number(name, default, infinite=True)
    if not node.has(index):
        return default
    return float(node.scalar(index, infinite=True))


def parse_clip(node: Node) -> Op:
    node.shape(0)
    lo, hi = _bound(node, "min", 1, -np.inf), _bound(node, "max", 2, np.inf)
    if not lo < hi:
        node.refuse(f"min {lo} is not below max {hi}.", hint="The output would be constant.")
    return Rectifier(Clipped(lo, hi, is_rectifier=lo == 0))


PARSERS = {"Relu": parse_relu, "Clip": parse_clip}

FACTS = dict.fromkeys(("Relu", "Clip"), Fact("kept", is_pixelwise=True, folds=as_broadcast))


class ThresholdStep(PointwiseStep):
    """Nothing before it can end as it does, so it is fused into nothing."""

    algorithm = "threshold"
    fuses_residual = False
    fuses_clip = False

    def __init__(self, clip: Clipped) -> None:
        super().__init__(clip=clip)
        self.threshold = clip.lo

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        super().forward(x, r, y, clip, context)  # clipped from the threshold on, and the mask
        cut, _ = function_kernels("ThresholdedRelu")
        cut(pixels(y), self.threshold, 0.0, pixels(y), context.threads)
