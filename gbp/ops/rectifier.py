"""Rectifiers and other clips (ONNX Relu, Clip).

    y  = min(max(x, lo), hi)
    gx = gy where (lo < x < hi or the rule has no forward gate) and (gy > 0 or no gradient gate), else 0

Relu and Clip(0, b) are rectifiers and obey the rule.  A Clip between other bounds has its true derivative,
gy where lo < x < hi, under every rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graph.graph import Shape
from .affine import PointwiseStep
from .node import Node
from .step import Clipped, Op, Order, Step


@dataclass(frozen=True)
class Rectifier(Op):
    clip: Clipped

    def shape(self, *x: Shape) -> Shape:
        return x[0]

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order) -> Step:
        return PointwiseStep()


def parse_relu(node: Node) -> Op:
    node.shape(0)
    return Rectifier(Clipped(0.0, np.inf, is_rectifier=True))


def _bound(node: Node, name: str, index: int, default: float) -> float:
    """A bound of Clip: an attribute before opset 11, an input since."""
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
