"""Name the activations that exporters write in parts.

    SiLU       x · Sigmoid(x)                      HardSigmoid    Clip(x + 3, 0, 6) / 6
    HardSwish  x · Clip(x + 3, 0, 6) / 6           GELU           x · (Erf(x / √2) + 1) / 2
    Mish       x · Tanh(Softplus(x))               and so on, in any order and grouping

What is recognised is the function, not how it is written: layers that take one tensor to one tensor, number
by number, compute a function of one number, and its values tell which it is.  A Clip among them is part of
the activation and no rectifier, so under rules with gates the map is that of the activation as one op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from ..graph.graph import Graph, Layer
from ..graph.op import Op
from ..ops.affine import Affine
from ..ops.binary import Binary
from ..ops.broadcast import Add, Mul
from ..ops.functions import Function
from ..ops.rectifier import Rectifier

Numbers = NDArray[np.float64]

#: Where functions are compared: close together around 0, and far out.
_GRID = np.concatenate([np.linspace(-9, 9, 55), [-100, -50, -20, 20, 50, 100]])
_TOLERANCE = 1e-6
#: GELU by way of tanh has nine; with a limit no file takes long.
_MAX_LAYERS = 12


def _sigmoid(x: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-x))


def _erf(x: Numbers) -> Numbers:
    return np.array([math.erf(v) for v in x])


def _hard_sigmoid(x: Numbers, slope: float = 1 / 6, shift: float = 1 / 2) -> Numbers:
    return np.clip(slope * x + shift, 0, 1)


def _cubic(x: Numbers) -> Numbers:
    return x + 0.044715 * x**3


#: What activations are made of.
_PARTS: dict[str, Callable[[Numbers, float, float], Numbers]] = {
    "Erf": lambda x, p, q: _erf(x),
    "Exp": lambda x, p, q: np.exp(x),
    "HardSigmoid": _hard_sigmoid,
    "Log": lambda x, p, q: np.log(x),
    "Pow": lambda x, p, q: x**p,
    "Reciprocal": lambda x, p, q: 1 / x,
    "Sigmoid": lambda x, p, q: _sigmoid(x),
    "Softplus": lambda x, p, q: np.logaddexp(0, x),
    "Square": lambda x, p, q: x * x,
    "Tanh": lambda x, p, q: np.tanh(x),
}

#: What is looked for: what people call it, the op, and its definition.
_KNOWN: tuple[tuple[str, Function, Callable[[Numbers], Numbers]], ...] = (
    ("SiLU", Function("Swish", 1.0), lambda x: x * _sigmoid(x)),
    ("HardSwish", Function("HardSwish"), lambda x: x * _hard_sigmoid(x)),
    ("HardSigmoid", Function("HardSigmoid", 1 / 6, 1 / 2), _hard_sigmoid),
    ("Gelu", Function("Gelu"), lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2),
    ("Gelu", Function("GeluTanh"), lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * _cubic(x))) / 2),
    ("Mish", Function("Mish"), lambda x: x * np.tanh(np.logaddexp(0, x))),
)
_VALUES = np.stack([definition(_GRID) for _, _, definition in _KNOWN])


def _of_numbers(op: Op) -> Callable[..., Numbers] | None:
    """The op as a function of numbers, or None where it is not one."""
    match op:
        case Function(name, p, q) if name in _PARTS:
            return lambda x: _PARTS[name](x, p, q)
        case Affine(a, b) if np.ptp(a) == 0 and np.ptp(b) == 0:
            return lambda x: a[0] * x + b[0]
        case Rectifier(clip):
            return lambda x: np.clip(x, clip.lo, clip.hi)
        case Mul():
            return lambda *xs: reduce(np.multiply, xs)
        case Add():
            return lambda *xs: reduce(np.add, xs)
        case Binary("Sub", (None, None)):
            return np.subtract
        case Binary("Div", (None, None)):
            return np.divide
    return None


class _Search:
    def __init__(self, graph: Graph) -> None:
        self.makers = {layer.output: layer for layer in graph.layers}
        self.age = {layer.output: i for i, layer in enumerate(graph.layers)} | {graph.input: -1}
        self.readers = graph.consumers()
        self.output = graph.output

    def parts(self, y: str) -> Iterator[tuple[str, Sequence[Layer]]]:
        """Tensors x and the layers that take x alone to y and of whose results nobody else reads any."""
        inside: list[Layer] = []
        edge = {y}
        while len(inside) < _MAX_LAYERS:
            last = max(edge, key=self.age.__getitem__)
            layer = self.makers.get(last)
            if layer is None or _of_numbers(layer.op) is None:
                return
            escapes = last == self.output or any(reader not in inside for reader in self.readers[last])
            if last != y and escapes:
                return
            inside.append(layer)
            edge = edge - {last} | set(layer.inputs)
            if len(edge) == 1 and len(inside) > 1:
                yield min(edge), tuple(reversed(inside))

    def named(self, y: str) -> tuple[Layer, set[str]] | None:
        """The largest activation that ends at y as one layer, and the tensors that it replaces."""
        for x, layers in reversed(list(self.parts(y))):
            values = {x: _GRID}
            with np.errstate(all="ignore"):
                for layer in layers:
                    function = _of_numbers(layer.op)
                    assert function is not None
                    values[layer.output] = function(*(values[name] for name in layer.inputs))
                far = np.abs(values[y] - _VALUES) / np.maximum(1, np.abs(_VALUES))
            for (kind, op, _), distances in zip(_KNOWN, far, strict=True):
                if np.all(distances <= _TOLERANCE):
                    return Layer(layers[-1].name, op, (x,), y, kind), {layer.output for layer in layers}
        return None


def name_activations(graph: Graph) -> Graph:
    """The same graph with every activation in parts as one layer."""
    search = _Search(graph)
    replaced: set[str] = set()
    layers: list[Layer] = []
    for layer in reversed(graph.layers):
        if layer.output in replaced:
            continue
        found = search.named(layer.output)
        if found is not None:
            layer = found[0]  # noqa: PLW2901  # it stands for the loop's
            replaced |= found[1]
        layers.append(layer)
    return graph.with_layers(reversed(layers))
