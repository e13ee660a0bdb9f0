"""RectGrad: the gradient passes a rectifier where it matters most.

    y  = max(x, 0)
    gx = gy where y · gy > τ, else 0;        τ: a percentile of y · gy over the layer's units, for each sample

Source: Kim et al. 2019, "Why are Saliency Maps Noisy?", arXiv:1902.04893, equation 3; the percentile is the
nearest value, as in its authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..graph.graph import Graph
from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..limits import elements
from ..ops.rectifier import Rectifier
from ..ops.step import Clipped, Context, Floats, GradientSlot, NumpyStep, Step


@dataclass(frozen=True)
class Rectified:
    """A rewrite: every rectifier passes on the gradient of the units above a percentile.

    Parameters
    ----------
    percentile
        0 to 100.
    """

    percentile: float = 98

    def __post_init__(self) -> None:
        """Raises InputError for what is no percentile."""
        is_number = isinstance(self.percentile, (int, float, np.integer, np.floating))
        if not is_number or not 0 <= self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile!r:.80}.", supported="0 to 100")

    def __call__(self, graph: Graph) -> Graph:
        layers = [
            replace(layer, op=RectGrad(layer.op.clip, self.percentile))
            if type(layer.op) is Rectifier and layer.op.clip.is_rectifier
            else layer
            for layer in graph.layers
        ]
        if not any(isinstance(layer.op, RectGrad) for layer in layers):
            raise InputError(
                "the network has no rectifier, and RectGrad acts at rectifiers only.",
                supported="'input-x-gradient' for this network",
            )
        return graph.with_layers(layers)


@dataclass(frozen=True)
class RectGrad(Op):
    """A rectifier that goes backward as RectGrad does."""

    clip: Clipped
    percentile: float

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return RectGradStep(self, elements(y[1:]))


class RectGradStep(NumpyStep):
    """τ is looked for in the products y · gy of one gradient at a time."""

    algorithm = "rectgrad"
    saves_y = True

    def __init__(self, op: RectGrad, units: int) -> None:
        super().__init__((units,))
        self.clip, self.place = op.clip, round(op.percentile / 100 * (units - 1))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        np.clip(x[0], self.clip.lo, self.clip.hi, out=y)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (products,) = self.temporaries(context)
        targets = len(gy) // len(context.y)
        for n, g in enumerate(gy):
            np.multiply(g, context.y[n // targets], out=products.reshape(g.shape))
            threshold = np.partition(products, self.place)[self.place]
            passed = np.where(products.reshape(g.shape) > threshold, g, np.float32(0))
            if gx[0].accumulate:
                gx[0].array[n] += passed
            else:
                gx[0].array[n] = passed
