"""Functions of two numbers, and choices among several, of tensors and constants with NumPy's broadcasting.

Sub, Div, Pow      y = f(a, b)        ga = Σ ∂f/∂a · gy, gb = Σ ∂f/∂b · gy    over the broadcast axes
Greater, And, …    y = 1 where true, 0 elsewhere;                             no gradient flows
Max, Min, Where    y = x_i            gx_i = Σ gy where i was chosen          the first of equals

With a constant Sub and Div are scale and shift, Max and Min with one number a Clip.  IsNaN(x) is written as
x ≠ x, and IsInf(x) as |x| = ∞.  Trilu is a Where with a constant condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.binary import SLOPES, choice_kernel, chosen_bwd, slope_kernel, value_kernel
from ..limits import ELEMENT, elements
from .affine import one_row, plus, refuse_unless_it_joins, scale_and_shift, times
from .broadcast import RANK, SameRank, operands, six_axes
from .facts import Fact
from .folded import as_broadcast, as_operands
from .functions import Function
from .node import Node
from .rectifier import Rectifier
from .step import Clipped, Context, Floats, GradientSlot, Step
from .written import Rewriter, Writer

_MAX_OPERANDS = 256  # a switch is one byte
_SQUARE, _ROOT, _INVERSE = 2.0, 0.5, -1.0

Constants = tuple[NDArray[Any] | None, ...]


@dataclass(frozen=True, eq=False)
class _Mixed(SameRank):
    """An op on tensors and constants.

    `constants`: one entry for each operand, None for a tensor.  Constants have the result's rank, and 1 on
    the batch axis.
    """

    name: str
    constants: Constants

    @property
    def parameters(self) -> int:
        return sum(c.size for c in self.constants if c is not None)

    def shape(self, *x: Shape) -> Shape:
        return super().shape(*x, *(c.shape for c in self.constants if c is not None))

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        return super().work(x, y) + 8 * ELEMENT * elements(y) * len(self.constants)


class Binary(_Mixed):
    """y = f(a, b), a row of `kernels.binary`."""

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return (BinaryStep if self.name in SLOPES else CompareStep)(self, order, target)


class Choice(_Mixed):
    """Max or Min of the operands; or Where, which is the second where the first is not 0, else the third."""

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return ChoiceStep(self, order, target)


def _constants(node: Node, shape: Shape, given: list[NDArray[Any] | None]) -> Constants:
    """At the rank of the result, which they may widen."""
    if len(shape) > RANK:
        node.refuse(f"its operands have {len(shape)} axes.", supported=f"up to {RANK}")
    try:
        np.broadcast_shapes(shape, *(c.shape for c in given if c is not None))
    except ValueError:
        node.invalid(f"its constants do not broadcast to {list(shape)}.")
    for c in given:
        if c is not None:
            refuse_unless_it_joins(node, c, shape)
    result = [c if c is None else one_row(c.reshape((1,) * (len(shape) - c.ndim) + c.shape)) for c in given]
    for c in result:
        if c is not None and c.shape[0] != 1:
            node.refuse(f"a constant of shape {list(c.shape)}.", supported="1 on the batch's axis")
    return tuple(result)


def _parse(node: Node) -> Op:
    shape, given = operands(node)
    return Binary(node.op, _constants(node, shape, given))


def parse_neg(node: Node) -> Op:
    return times(node, node.shape(0), np.array(-1.0))


def parse_not(node: Node) -> Op:
    return scale_and_shift(node, node.shape(0), np.array(-1.0), np.array(1.0))


def parse_sub(node: Node) -> Op | tuple[Op, ...]:
    shape, (a, b) = operands(node)
    if a is not None:
        return scale_and_shift(node, shape, np.array(-1.0), a)
    return _parse(node) if b is None else plus(node, shape, -b)


def parse_div(node: Node) -> Op | tuple[Op, ...]:
    shape, (a, b) = operands(node)
    if a is not None:
        return Function("Reciprocal"), times(node, shape, a)
    if b is None:
        return _parse(node)
    if not b.all():
        node.refuse("it divides by a constant that holds 0.")
    return times(node, shape, 1 / b.astype(np.float64))


def parse_pow(node: Node) -> Op | tuple[Op, ...]:
    shape, (a, b) = operands(node)
    if a is not None:
        if not (a > 0).all():
            node.refuse("the constant that it raises is not positive.")
        return times(node, shape, np.log(a.astype(np.float64))), Function("Exp")
    if b is None or b.size != 1:
        return _parse(node)
    refuse_unless_it_joins(node, b, shape)
    exponent = float(b.reshape(()))
    name = {_SQUARE: "Square", _ROOT: "Sqrt", _INVERSE: "Reciprocal"}.get(exponent, "Pow")
    return Function(name, exponent)


def parse_extreme(node: Node) -> Op:
    shape, given = operands(node)
    numbers = [float(c.flat[0]) for c in given if c is not None and _is_number(c, shape)]
    if len(numbers) == len(given) - 1 and numbers:
        clip = Clipped(lo=max(numbers)) if node.op == "Max" else Clipped(hi=min(numbers))
        return Rectifier(Clipped(clip.lo, clip.hi, is_rectifier=clip.lo == 0))
    if len(given) > _MAX_OPERANDS:
        node.refuse(f"it has {len(given)} inputs.", supported=f"up to {_MAX_OPERANDS}")
    return Choice(node.op, _constants(node, shape, given))


def _is_number(c: NDArray[Any], shape: Shape) -> bool:
    """Whether c holds one value only and broadcasts to x's shape."""
    sides = zip(reversed(c.shape), reversed(shape), strict=False)
    fits = c.ndim <= len(shape) and all(n in (1, m) for n, m in sides)
    return bool(c.size and fits and (c == c.flat[0]).all())


def parse_where(node: Node) -> Op:
    shape, given = operands(node)
    return Choice("Where", _constants(node, shape, given))


def is_nan(node: Node, w: Writer) -> None:
    x = node.proto.input[0]
    w.write("Not", w.write("Equal", x, x), to=node.proto.output[0])


def is_inf(node: Node, w: Writer) -> None:
    x, below, above = (
        node.proto.input[0],
        node.integer("detect_negative", 1),
        node.integer("detect_positive", 1),
    )
    sought = np.inf if above else -np.inf
    if bool(below) == bool(above):  # if neither is sought, |x| = −∞ is never true
        x = w.write("Abs", x)
    w.write("Equal", x, w.constant(np.float32(sought)), to=node.proto.output[0])


def trilu(node: Node, w: Writer) -> None:
    shape, k = node.shape(0), 0
    if len(shape) < 2:
        node.invalid(f"input 0 has shape {list(shape)}, and a triangle has two axes.")
    if len(shape) == 2 and node.batch_is_open:
        node.refuse("the batch is an axis of its triangle.", supported="axes behind the batch")
    if node.has(1):
        k = max(-sum(shape[-2:]), min(int(node.scalar(1, np.int64)), sum(shape[-2:])))
    is_upper = node.integer("upper", 1)
    lower = np.tri(shape[-2], shape[-1], k - 1 if is_upper else k, dtype=bool)
    kept = w.constant(~lower if is_upper else lower)
    w.write("Where", kept, node.proto.input[0], w.constant(np.float32(0)), to=node.proto.output[0])


_COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Xor")

PARSERS = {
    **dict.fromkeys(_COMPARISONS, _parse),
    "Div": parse_div,
    "Max": parse_extreme,
    "Min": parse_extreme,
    "Neg": parse_neg,
    "Not": parse_not,
    "Pow": parse_pow,
    "Sub": parse_sub,
    "Where": parse_where,
}

REWRITERS: dict[str, Rewriter] = {"IsInf": is_inf, "IsNaN": is_nan, "Trilu": trilu}

FACTS = {
    **dict.fromkeys((*PARSERS, *REWRITERS), Fact("other", folds=as_broadcast)),
    "Trilu": Fact("other", since=14, folds=as_operands),
    **dict.fromkeys(("Max", "Min"), Fact("kept", folds=as_broadcast)),
    **dict.fromkeys(("Sub", "Div"), Fact("kept", is_pixelwise=True, folds=as_broadcast)),
}


class _MixedStep(Step):
    repeats = repeats_back = True

    def __init__(self, op: _Mixed, order: Order, target: Target) -> None:
        self.name, self.algorithm = op.name, f"broadcast {op.name.lower()}"
        self.constants = [
            None if c is None else target.constant(np.array(c.transpose(0, *order), np.float32, order="C"))
            for c in op.constants
        ]
        self.computed = [i for i, c in enumerate(op.constants) if c is None]

    def operands(self, x: tuple[Floats, ...], like: Floats) -> list[Floats]:
        """All operands, tensors and constants, with six axes."""
        given = iter(x)
        return [six_axes(next(given) if c is None else c, like) for c in self.constants]


class BinaryStep(_MixedStep):
    saves_x = True

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        value_kernel(self.name)(*self.operands(x, y), six_axes(y, y), context.threads)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        operands = self.operands(context.x, gy)
        for i, g in zip(self.computed, gx, strict=True):
            g.begin(context.threads)
            slope_kernel(self.name, i)(six_axes(gy, gy), *operands, six_axes(g.array, gy), context.threads)


class CompareStep(BinaryStep):
    saves_x = False

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        for g in gx:
            g.begin(context.threads)


class ChoiceStep(_MixedStep):
    switches = np.uint8

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        condition, *others = operands = self.operands(x, y)
        to = six_axes(y, y), context.switches.reshape(len(y), -1), context.threads
        if self.name == "Where":
            choice_kernel("First")(others[1], condition, 2, *to)
            choice_kernel("Where")(others[0], condition, 1, *to)
            return
        choice_kernel("First")(operands[0], operands[0], 0, *to)
        for i, other in enumerate(others, start=1):
            choice_kernel(self.name)(other, other, i, *to)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        switches = context.switches.reshape(len(context.switches), -1)
        for i, g in zip(self.computed, gx, strict=True):
            g.begin(context.threads)
            chosen_bwd(six_axes(gy, gy), switches, i, six_axes(g.array, gy), context.threads)
