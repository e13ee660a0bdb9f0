"""Layers that map one tensor to one tensor element by element, as functions of numbers.

If layers map x alone to y, and no other layer reads the tensors between, then y is a function of one number;
or of one number and its place, if constants differ by place.  It is evaluated in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.graph import Layer
from ..graph.op import Op
from ..graph.shapes import Shape
from ..ops.affine import Affine, Scale
from ..ops.binary import Binary, Choice
from ..ops.broadcast import Add, Mul
from ..ops.functions import Function, PRelu
from ..ops.rectifier import Rectifier, Threshold
from ..ops.shape import Reshape

Numbers = NDArray[np.float64]


def sigmoid(x: Numbers) -> Numbers:
    result: Numbers = 1 / (1 + np.exp(-x))
    return result


def _erf(x: Numbers) -> Numbers:
    return np.array([math.erf(v) for v in x.reshape(-1)]).reshape(x.shape)


def _elu(x: Numbers, p: float, q: float) -> Numbers:
    below: Numbers = np.expm1(np.minimum(x, 0))
    y: Numbers = np.where(x > 0, q * x, q * p * below)
    return y


def _gelu_tanh(x: Numbers) -> Numbers:
    inner: Numbers = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x * (1 + inner) / 2


def _shrink(x: Numbers, bias: float, least: float) -> Numbers:
    return np.where(x < -least, x + bias, np.where(x > least, x - bias, 0))


#: The functions of x and the parameters p and q that are parts of activations, by the name of the `Function`.
_FUNCTIONS: dict[str, Callable[[Numbers, float, float], Numbers]] = {
    "Abs": lambda x, p, q: np.abs(x),
    "Celu": lambda x, p, q: _elu(x / p, 1, p),
    "Elu": _elu,
    "Erf": lambda x, p, q: _erf(x),
    "Exp": lambda x, p, q: np.exp(x),
    "Gelu": lambda x, p, q: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "GeluTanh": lambda x, p, q: _gelu_tanh(x),
    "HardSigmoid": lambda x, p, q: np.clip(p * x + q, 0, 1),
    "HardSwish": lambda x, p, q: x * np.clip(x / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda x, p, q: np.where(x < 0, p * x, x),
    "Log": lambda x, p, q: np.log(x),
    "Mish": lambda x, p, q: x * np.tanh(np.logaddexp(0, x)),
    "Pow": lambda x, p, q: np.power(x, p),
    "Reciprocal": lambda x, p, q: 1 / x,
    "Shrink": _shrink,
    "Sigmoid": lambda x, p, q: sigmoid(x),
    "Sign": lambda x, p, q: np.sign(x),
    "Softplus": lambda x, p, q: np.logaddexp(0, x),
    "Softsign": lambda x, p, q: x / (1 + np.abs(x)),
    "Sqrt": lambda x, p, q: np.sqrt(x),
    "Square": lambda x, p, q: x * x,
    "Swish": lambda x, p, q: x * sigmoid(p * x),
    "Tanh": lambda x, p, q: np.tanh(x),
    "ThresholdedRelu": lambda x, p, q: np.where(x > p, x, 0),
}

_BINARY: dict[str, Callable[..., Any]] = {
    "Sub": np.subtract,
    "Div": np.divide,
    "Pow": np.power,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Equal": np.equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}


@dataclass(frozen=True)
class Elementwise:
    """An op as a function of numbers.  Its arguments are the computed operands, then the constants.

    Each constant is a scalar or has the tensor's rank, with 1 on the batch axis.
    """

    function: Callable[..., Any]
    constants: tuple[Numbers, ...] = ()


#: Numbers of a constant up to which its bytes are compared: comparing the numbers of so few takes longer.
_SMALL = 64


def _constant(c: NDArray[Any]) -> Numbers:
    """The constant; as a scalar if all its values are equal."""
    first = c.flat[:1].tobytes()
    # Few bytes are compared faster than numbers.  0 and −0 differ in bytes alone.
    same = c.size == 1 or (1 < c.size <= _SMALL and c.tobytes() == c.size * first)
    same = same or (c.size > 1 and bool((c == c.flat[0]).all()))
    return np.array(c.flat[0], np.float64) if same else c  # in its own type, as it may be large


def _along(c: NDArray[Any], axis: int, rank: int) -> Numbers:
    return _constant(np.reshape(c, [-1 if i == axis else 1 for i in range(rank)]))


def _mixed(function: Callable[..., Any], constants: Sequence[NDArray[Any] | None]) -> Elementwise:
    """The function of operands, some of which are constants, in the op's own order."""
    computed = [i for i, c in enumerate(constants) if c is None]
    given = [i for i, c in enumerate(constants) if c is not None]
    places = np.argsort([*computed, *given])
    return Elementwise(
        lambda *xs: function(*(xs[i] for i in places)),
        tuple(_constant(c) for c in constants if c is not None),
    )


def of_numbers(op: Op, rank: int) -> Elementwise | None:
    """The op on tensors of `rank` axes as a function of numbers; None if it is no such function."""
    match op:
        case Function(name, p, q) if name in _FUNCTIONS:
            return Elementwise(lambda x: _FUNCTIONS[name](x, p, q))
        case PRelu(slopes, axis):
            slopes_ = _constant(slopes) if axis is None else _along(slopes, axis, rank)
            return Elementwise(lambda x, s: np.where(x < 0, s * x, x), (slopes_,))
        case Affine(a, b, axis):
            return Elementwise(lambda x, a, b: a * x + b, (_along(a, axis, rank), _along(b, axis, rank)))
        case Scale(a, b):
            return Elementwise(lambda x, a, b: a * x + b, (_constant(a), _constant(b)))
        case Threshold(clip):
            return Elementwise(lambda x: np.where(x > clip.lo, np.minimum(x, clip.hi), 0))
        case Rectifier(clip):
            return Elementwise(lambda x: np.clip(x, clip.lo, clip.hi))
        case Mul():
            return Elementwise(lambda *xs: reduce(np.multiply, xs))
        case Add():
            return Elementwise(lambda *xs: reduce(np.add, xs))
        case Reshape(to) if len(to) == rank:
            return Elementwise(lambda x: x)
        case Choice("Where", constants):
            return _mixed(lambda c, a, b: np.where(c != 0, a, b), constants)
        case Choice(name, constants):
            extreme = np.maximum if name == "Max" else np.minimum
            return _mixed(lambda *xs: reduce(extreme, xs), constants)
        case Binary(name, constants):
            return _mixed(_BINARY[name], constants)
    return None


#: A function of such layers alone is a straight line.
STRAIGHT = (Affine, Scale, Add, Reshape)


class Subgraph:
    """Layers, in order of computation, that map tensor `x` alone to `y`, element by element.

    `spread`: the shape over which its constants vary; () if they are the same everywhere.
    """

    def __init__(self, x: str, shape: Shape, layers: Sequence[Layer], ops: Mapping[str, Elementwise]) -> None:
        self.x, self.y, self.shape, self.layers = x, layers[-1].output, shape, tuple(layers)
        self._ops = [ops[layer.output] for layer in layers]
        constants = [c for op in self._ops for c in op.constants if np.ndim(c)]
        self.spread: Shape = np.broadcast_shapes(*(np.shape(c) for c in constants))

    @property
    def is_straight(self) -> bool:
        """Whether it is a straight line, so no rectifier and no activation."""
        return all(isinstance(layer.op, STRAIGHT) for layer in self.layers)

    def until(self, name: str) -> Subgraph:
        """The part of the subgraph that ends at one of its tensors."""
        wanted, layers = {name}, []
        for layer in reversed(self.layers):
            if layer.output in wanted:
                wanted.update(layer.inputs)
                layers.append(layer)
        ops = {layer.output: op for layer, op in zip(self.layers, self._ops, strict=True)}
        return Subgraph(self.x, self.shape, layers[::-1], ops)

    def goes_through(self, name: str) -> bool:
        """Whether all layers that an inner tensor does not depend on read only it, or each other."""
        needed = {layer.output for layer in self.until(name).layers}
        behind = [layer for layer in self.layers if layer.output not in needed]
        made = {layer.output for layer in behind}
        return all(x == name or x in made for layer in behind for x in layer.inputs)

    @cached_property
    def _constants(self) -> list[list[Numbers]]:
        """The constants of each layer, flattened over `spread` if they vary."""
        return [
            [np.broadcast_to(c, self.spread).reshape(-1) if np.ndim(c) else c for c in op.constants]
            for op in self._ops
        ]

    def values(self, x: Numbers, places: slice = slice(None)) -> dict[str, Numbers]:
        """The values of all its tensors for numbers x (P,): each (P, 1), or (P, places) over `spread`."""
        found: dict[str, Numbers] = {self.x: x[:, None]}
        with np.errstate(all="ignore"):
            for layer, op, constants in zip(self.layers, self._ops, self._constants, strict=True):
                given = (c[places] if np.ndim(c) else c for c in constants)
                y = op.function(*(found[name] for name in layer.inputs), *given)
                found[layer.output] = np.asarray(y, np.float64)
        return found

    def __call__(self, x: Numbers, places: slice = slice(None)) -> Numbers:
        """The values of y for numbers x (P,): (P, 1) or (P, places)."""
        return self.values(x, places)[self.y]
