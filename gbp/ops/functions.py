"""Functions of one number, element by element (ONNX Sigmoid, Elu, Gelu, Exp, …, and PRelu).

    y  = f(x)
    gx = f'(x) · gy

`kernels/formulas.py` has the table of f and f'.  The papers define no rule for functions that serve as
activations.  They take their true gradient.  With `activations="clamp"`, gy is first clamped to its positive
part under rules with a gradient gate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape, innermost, row_major
from ..kernels.formulas import NUMBERS
from ..kernels.functions import function_kernels
from ..limits import ELEMENT, elements
from .affine import PointwiseStep, at_rank, refuse_unless_it_joins
from .facts import Fact
from .folded import as_broadcast, slow
from .node import Node
from .step import Clipped, Context, Floats, GradientSlot, Step, pixels, strided

#: Names in the table of `kernels.formulas`; PRelu is one more.
ACTIVATIONS = frozenset((
    "LeakyRelu", "ThresholdedRelu", "Elu", "Celu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Swish",
    "Mish", "Gelu", "GeluTanh", "Softplus", "Softsign", "Shrink",
))  # fmt: skip


@dataclass(frozen=True)
class Function(Op):
    """y = f(x): the row `name` of `kernels.formulas` with its parameters.

    `is_part`: it belongs to an activation written in parts and is none by itself.
    """

    name: str
    p: float = 0.0
    q: float = 0.0
    is_part: bool = False

    @property
    def is_activation(self) -> bool:
        return self.name in ACTIVATIONS and not self.is_part

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return super().work(x, y) + (8 * ELEMENT * elements(y) if self.name in NUMBERS else 0)

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return FunctionStep(self.name, self.p, self.q)


@dataclass(frozen=True, eq=False)
class PRelu(Op):
    """y = x where x > 0, slopes · x elsewhere.

    `slopes`: one for each index of `axis`; or, with axis None, an array (1, …) of the shape of one sample.
    """

    slopes: NDArray[np.float32]
    axis: int | None

    @property
    def is_activation(self) -> bool:
        return True

    @property
    def parameters(self) -> int:
        return self.slopes.size

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        order = row_major(len(x[0])) if self.axis is None else given[0]
        if self.axis is not None and self.axis != order[-1]:
            order = innermost(self.axis, len(x[0]))
        return (order,), order

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        if self.axis is None:
            return FunctionStep("PRelu", target.constant(pixels(np.array(self.slopes, order="C"))))
        *outer, channels = (y[axis] for axis in order)
        rows = outer if len(outer) == 2 else (1, int(np.prod(outer)))
        slopes = target.constant(np.array(self.slopes))
        return FunctionStep("PRelu", strided(slopes, (1, *rows, channels), (0, 0, 0, slopes.itemsize)))


@dataclass(frozen=True)
class End(Op):
    """y = x, where an activation ends that stays written in parts."""

    @property
    def is_activation(self) -> bool:
        return True

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return EndStep()


#: Attributes of the ONNX op, in the order of p and q, and their defaults.
_ATTRIBUTES: dict[str, tuple[tuple[str, float], ...]] = {
    "LeakyRelu": (("alpha", 0.01),),
    "ThresholdedRelu": (("alpha", 1.0),),
    "Celu": (("alpha", 1.0),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "Swish": (("alpha", 1.0),),
    "Shrink": (("bias", 0.0), ("lambd", 0.5)),
}  # fmt: skip


def _parse(node: Node) -> Op:
    node.shape(0)
    p, q = [*(node.number(*attribute) for attribute in _ATTRIBUTES.get(node.op, ())), 0.0, 0.0][:2]
    return Function(node.op, p, q)


def parse_elu(node: Node) -> Op:
    node.shape(0)
    return Function("Elu", node.number("alpha", 1.0), 1.0)


def parse_selu(node: Node) -> Op:
    node.shape(0)
    alpha, gamma = (1.6732, 1.0507) if node.opset < 6 else (1.6732631921768188, 1.0507010221481323)
    return Function("Elu", node.number("alpha", alpha), node.number("gamma", gamma))


def parse_celu(node: Node) -> Op:
    if node.number("alpha", 1.0) == 0:
        node.refuse("alpha is 0.", supported="any other")
    return _parse(node)


def parse_gelu(node: Node) -> Op:
    node.shape(0)
    approximate = node.text("approximate", "none")
    if approximate not in ("none", "tanh"):
        node.invalid(f"approximate is {approximate!r}.")
    return Function("Gelu" if approximate == "none" else "GeluTanh")


def parse_prelu(node: Node) -> Op:
    shape = node.shape(0)
    slopes = node.constant(1)
    refuse_unless_it_joins(node, slopes, shape)
    if slopes.size == 1:
        return Function("LeakyRelu", float(slopes.reshape(())))
    if node.opset < 7:  # one a channel
        slopes = slopes.reshape(-1, *(1,) * (len(shape) - 2))
    slopes = at_rank(node, slopes, shape)
    axes = [axis for axis, n in enumerate(slopes.shape) if n > 1]
    if len(axes) == 1:
        return PRelu(slopes.reshape(-1), axes[0])
    return PRelu(np.broadcast_to(slopes, (1, *shape[1:])), None)


_WITHOUT_ATTRIBUTES = (
    "Sigmoid", "Tanh", "HardSwish", "Mish", "Softplus", "Softsign",
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor",
    "Log", "Reciprocal", "Round", "Sign", "Sin", "Sinh", "Sqrt", "Tan",
)  # fmt: skip

PARSERS = {
    **dict.fromkeys((*_WITHOUT_ATTRIBUTES, *_ATTRIBUTES), _parse),
    "Celu": parse_celu,
    "Elu": parse_elu,
    "Gelu": parse_gelu,
    "PRelu": parse_prelu,
    "Selu": parse_selu,
}

FACTS = {
    **dict.fromkeys(PARSERS, Fact("other", folds=as_broadcast)),
    **dict.fromkeys(PARSERS.keys() & {*ACTIVATIONS, "PRelu", "Selu"}, Fact("kept", folds=as_broadcast)),
    "Erf": Fact("other", folds=slow(as_broadcast)),
    "Gelu": Fact("kept", folds=slow(as_broadcast)),
    "ThresholdedRelu": Fact("kept", operands=(1, 1), folds=as_broadcast),  # experimental before opset 10
    "Sigmoid": Fact("kept", is_head=True, folds=as_broadcast),
}


class FunctionStep(Step):
    repeats = repeats_back = True
    gates = True
    saves_x = True

    def __init__(self, name: str, p: float | Floats, q: float = 0.0) -> None:
        """`p`: of PRelu float32 (1, H, W, C), else a number."""
        self.algorithm = "by number" if name in NUMBERS else "by vector"
        self.name, self.p, self.q = name, p, q

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        fwd, _ = function_kernels(self.name)
        fwd(pixels(x[0]), self.p, self.q, pixels(y), context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        _, bwd = function_kernels(self.name)
        bwd(pixels(gy), pixels(context.x[0]), self.p, self.q, *gx[0].arguments, context.threads)


class EndStep(PointwiseStep):
    """Its gradient may be gated here, so neither a sum nor a rectifier moves into it."""

    algorithm = "end of parts"
    fuses_residual = False
    fuses_clip = False
