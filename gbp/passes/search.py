"""Find where a graph maps one tensor to one tensor element by element.

Graphs repeat layers.  So a verdict is kept under a key that holds all that it depends on: the ops, their
constants and their wiring, but no names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..graph.graph import Graph, Layer
from ..graph.op import Op
from ..graph.shapes import Shape
from ..ops.functions import Function
from ..ops.rectifier import Rectifier
from ..ops.step import Clipped
from .elementwise import STRAIGHT, Elementwise, Numbers, Subgraph, of_numbers

#: The most layers of a subgraph.  Softplus with a guard against overflow has seven and GELU by Tanh nine;
#: casts may be added.  The limit keeps the search short for any file.
_MAX_LAYERS = 16
#: The most Clips of it: a rectifier, its upper bound and a guard.
_MAX_CLIPS = 3
#: The most of them whose constants differ by place.  A PRelu in parts has one, and a scale before it another.
_MAX_BY_PLACE = 4
#: The most scales, shifts and sums that follow each other at its end.
_MAX_STRAIGHT = 6
_MAX_BYTES = 64  # of a constant, beyond which its digest stands for it


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def signature(value: object) -> Hashable:
    """A key that is equal for ops of the same type with the same constants, bit by bit, and for no others."""
    if isinstance(value, float):
        return value.hex()  # −0 is another number than 0, as 1/x shows
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.ndarray):
        data = value.tobytes()
        return (
            value.shape,
            value.dtype.str,
            data if len(data) <= _MAX_BYTES else hashlib.sha256(data).digest(),
        )
    if isinstance(value, tuple):
        return tuple(map(signature, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(signature(getattr(value, name)) for name in _names(type(value)))
    assert isinstance(value, Hashable)
    return value


class Growth(NamedTuple):
    """The subgraphs that end at one tensor.  Each is the first few of `layers`.

    Parameters
    ----------
    shape
        The shapes of all tensors.
    layers
        The layers, the last one first.
    ops
        By the name of their output; others as well.
    ends
        {how many layers: the one tensor that they read}, the fewest first, without straight lines.
    alike
        How many layers, from the last one on, have no constants that differ by place.
    key
        The same for layers that compute the same in the same way.
    """

    shape: Shape
    layers: list[Layer]
    ops: Mapping[str, Elementwise]
    ends: dict[int, str]
    alike: int
    key: Hashable

    def subgraph(self, size: int) -> Subgraph:
        """The subgraph of so many layers."""
        return Subgraph(self.ends[size], self.shape, self.layers[:size][::-1], self.ops)


class _Part(NamedTuple):
    """A layer that works element by element, with what the search asks of it again and again."""

    layer: Layer
    #: The same for equal ops.
    number: int
    is_straight: bool
    #: Whether it is an activation, or a Clip around 0.
    acts_alone: bool
    #: The range of a Clip or rectifier; None for what else it is.
    clip: Clipped | None
    is_by_place: bool


class Search:
    """Finds all such subgraphs of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._makers = {layer.output: layer for layer in graph.layers}
        self._age = {layer.output: i for i, layer in enumerate(graph.layers)} | {graph.input: -1}
        self._uses = {name: len(readers) for name, readers in graph.consumers().items()}
        self._uses[graph.output] += 1
        self._shapes = graph.shapes
        self._parts: dict[str, _Part | None] = {graph.input: None}
        self._ops: dict[str, Elementwise] = {}
        self._numbers: dict[Hashable, int] = {}

    def _part(self, name: str) -> _Part | None:
        """The layer that makes a tensor, if it works element by element."""
        if name not in self._parts:
            self._parts[name] = self._found(self._makers[name])
        return self._parts[name]

    def _found(self, layer: Layer) -> _Part | None:
        """The layer as a part; None if it does not work element by element."""
        shape, op = self._shapes[layer.output], layer.op
        if any(self._shapes[name] != shape for name in layer.inputs):
            return None
        numbers = of_numbers(op, len(shape))
        if numbers is None:
            return None
        self._ops[layer.output] = numbers
        return _Part(
            layer,
            self._numbers.setdefault((signature(op), len(layer.inputs)), len(self._numbers)),
            isinstance(op, STRAIGHT),
            acts_alone(op),
            op.clip if isinstance(op, Rectifier) else None,
            any(np.ndim(c) for c in numbers.constants),
        )

    def before(self, y: str, max_layers: int = _MAX_LAYERS) -> Growth:
        """The subgraphs of at most `max_layers` layers that end at y."""
        parts = list[_Part]()
        ends: dict[int, str] = {}
        # Tensor → the number that stands for it in the key, and how often the layers so far read it.
        numbers, uses = {y: 0}, {y: self._uses[y]}
        key = list[int]()
        # Tensors that the layers so far read and do not make.
        edge = {y}
        is_straight = True  # all layers so far
        passed, alike = _Passed(), max_layers
        while len(parts) < max_layers:
            last = max(edge, key=self._age.__getitem__) if len(edge) > 1 else next(iter(edge))
            part = self._part(last)
            if part is None or uses[last] < self._uses[last] or passed.by_place == _MAX_BY_PLACE:
                break
            if is_straight and part.is_straight and len(parts) == _MAX_STRAIGHT:
                break
            if len(edge) == 1 and passed.ends_before(part):
                break
            passed.add(part)
            if part.is_by_place:
                alike = min(alike, len(parts))
            parts.append(part)
            key += part.number, numbers[last]
            is_straight = is_straight and part.is_straight
            edge.remove(last)
            for name in part.layer.inputs:
                key.append(numbers.setdefault(name, len(numbers)))
                uses[name] = uses.get(name, 0) + 1
                edge.add(name)
            if not is_straight and len(edge) == 1:
                ends[len(parts)] = next(iter(edge))
        shape = self._shapes[y]
        layers = [part.layer for part in parts]
        return Growth(shape, layers, self._ops, ends, min(alike, len(parts)), (shape, *key))

    def values(self, growths: Sequence[Growth], x: Numbers) -> list[Numbers]:
        """For each growth, the values of its last tensor for numbers x (P,): a row for each of its ends.

        All are found in one pass over the layers.  Where constants differ by place, they are those of the
        first place.
        """
        layers = {layer.output: layer for growth in growths for layer in growth.layers}
        # All tensors that a tensor is a function of, the last one first, and a row of values for each.
        of: dict[str, tuple[list[str], Numbers]] = {}
        with np.errstate(all="ignore"):
            for name in sorted(layers, key=self._age.__getitem__):
                of[name] = _values(self._ops[name], layers[name].inputs, of, x)
        found = []
        for growth in growths:
            names, rows = of[growth.layers[0].output] if growth.layers else ([], x[None])
            at = {name: i for i, name in enumerate(names)}
            found.append(rows[[at[name] for name in growth.ends.values()]])
        return found


def _values(
    op: Elementwise, inputs: Iterable[str], of: Mapping[str, tuple[list[str], Numbers]], x: Numbers
) -> tuple[list[str], Numbers]:
    """The op's output as a function of each tensor that all its inputs are a function of."""
    sources: dict[str, tuple[list[str], Numbers]] = {}
    none = np.empty((0, len(x)))
    for name in inputs:
        if name not in sources:
            # A subgraph has no more tensors, so those that came earlier are no end of one.
            names, rows = of.get(name, ([], none))
            names = [name, *names[: _MAX_LAYERS - 1]]
            sources[name] = names, np.concatenate([x[None], rows[: _MAX_LAYERS - 1]])
    names, *others = (names for names, _ in sources.values())
    if others:
        names = [name for name in names if all(name in other for other in others)]
        sources = {name: (names, rows[list(map(at.index, names))]) for name, (at, rows) in sources.items()}
    given = (sources[name][1] for name in inputs)
    constants = (np.float64(c.flat[0]) if np.ndim(c) else c for c in op.constants)
    return names, np.asarray(op.function(*given, *constants), np.float64)


class _Passed:
    """The layers that a search has passed on its way back, and whether it may end before the next one."""

    def __init__(self) -> None:
        self._has_activation, self.by_place = False, 0
        self._clips, self._others = 0, 0
        self._low, self._high = -np.inf, np.inf

    def add(self, part: _Part) -> None:
        """Pass a layer."""
        self._has_activation |= part.acts_alone
        self.by_place += part.is_by_place
        if part.clip is not None:
            self._clips += 1
            self._low, self._high = max(self._low, part.clip.lo), min(self._high, part.clip.hi)
        if type(part.layer.op) is not Rectifier:
            self._others += 1

    def ends_before(self, part: _Part) -> bool:
        """Whether this layer is no part of an activation whose other parts were passed, nor is any before it.

        The layers that were passed read nothing but its output, or each other.  Without this check, long
        chains of nodes with constants of their own would be judged in every length.

        An activation is no part of another one behind it, unless it keeps every value.  A Clip is none where
        a narrower Clip alone is behind it, so that it changes nothing, or where there are `_MAX_CLIPS`.
        """
        op = part.layer.op
        if part.acts_alone:
            if isinstance(op, Function) and op.name == "LeakyRelu" and op.p == 1:
                return False
            return self._has_activation
        if type(op) is not Rectifier:
            return False
        if self._clips >= _MAX_CLIPS:
            return True
        return self._clips > 0 and not self._others and self._low <= op.clip.lo <= op.clip.hi <= self._high


def acts_alone(op: Op) -> bool:
    """Whether it is an activation, or a Clip around 0."""
    if op.is_activation:
        return True
    return isinstance(op, Rectifier) and -np.inf < op.clip.lo < 0 and op.clip.hi < np.inf
