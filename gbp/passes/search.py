"""Find where a graph maps one tensor to one tensor element by element.

Graphs repeat layers.  So a verdict is kept under a key that holds all that it depends on: the ops, their
constants and their wiring, but no names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from ..graph.graph import Graph, Layer
from ..graph.op import Op
from ..graph.shapes import Shape
from ..ops.functions import Function
from ..ops.rectifier import Rectifier
from .elementwise import STRAIGHT, Elementwise, Numbers, Subgraph, of_numbers

#: The most layers of a subgraph.  Softplus with a guard against overflow has seven and GELU by Tanh nine;
#: casts may be added.  The limit keeps the search short for any file.
_MAX_LAYERS = 16
#: The most Clips of it: a rectifier, its upper bound and a guard.
_MAX_CLIPS = 3
_MAX_BYTES = 64  # of a constant, beyond which its digest stands for it


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def signature(value: object) -> Hashable:
    """A key that is equal for ops of the same type with the same constants, bit by bit, and for no others."""
    if isinstance(value, float):
        return value.hex()  # −0 is another number than 0, as 1/x tells
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


#: The signatures of ops, by the id of the op, which stays the op's own as long as it is held here.
Signatures: TypeAlias = dict[int, tuple[Op, Hashable]]


@dataclass(frozen=True)
class Growth:
    """The subgraphs that end at one tensor.  Each is the first few of `layers`.

    Parameters
    ----------
    shape
        The shapes of all tensors.
    layers
        The layers, the last one first.
    ops
        By the name of their output.
    ends
        {how many layers: the one tensor that they read}, the fewest first, without straight lines.
    key
        The same for layers that compute the same in the same way.
    """

    shape: Shape
    layers: list[Layer]
    ops: dict[str, Elementwise]
    ends: dict[int, str]
    key: Hashable

    def subgraph(self, size: int) -> Subgraph:
        """The subgraph of so many layers."""
        return Subgraph(self.ends[size], self.shape, self.layers[:size][::-1], self.ops)

    def values(self, x: Numbers) -> dict[int, Numbers]:
        """{how many layers: the values of their output for numbers x (P,)}, all sizes in one pass.

        Where constants differ by place, they are those of the first place.
        """
        found = dict[str, Numbers]()
        with np.errstate(all="ignore"):
            for size in range(max(self.ends, default=0), 0, -1):
                if size in self.ends:  # All layers that follow read this tensor alone, or each other.
                    name = self.ends[size]
                    found[name] = np.vstack([found[name], x]) if name in found else x[None]
                layer = self.layers[size - 1]
                op = self.ops[layer.output]
                constants = (np.float64(c.flat[0]) if np.ndim(c) else c for c in op.constants)
                y = op.function(*(found[name] for name in layer.inputs), *constants)
                found[layer.output] = np.asarray(y, np.float64)
        return dict(zip(reversed(self.ends), found[self.layers[0].output], strict=True)) if self.ends else {}

    @property
    def alike(self) -> int:
        """How many layers, from the last one on, have no constants that differ by place."""
        by_place = (any(np.ndim(c) for c in self.ops[layer.output].constants) for layer in self.layers)
        return next((i for i, found in enumerate(by_place) if found), len(self.layers))


class Search:
    """Finds all such subgraphs of a graph."""

    def __init__(self, graph: Graph, signatures: Signatures | None = None) -> None:
        """`signatures`: those that an earlier search has computed."""
        self._signatures = {} if signatures is None else signatures
        self._makers = {layer.output: layer for layer in graph.layers}
        self._age = {layer.output: i for i, layer in enumerate(graph.layers)} | {graph.input: -1}
        self._uses = {name: len(readers) for name, readers in graph.consumers().items()}
        self._uses[graph.output] += 1
        self._shapes = graph.shapes
        self._ops: dict[str, tuple[int, Elementwise] | None] = {}
        self._numbers: dict[Hashable, int] = {}

    def _op(self, layer: Layer) -> tuple[int, Elementwise] | None:
        """The number of the layer's op, the same for equal ops, and the op as a function of numbers."""
        if layer.output not in self._ops:
            shape = self._shapes[layer.output]
            same = all(self._shapes[name] == shape for name in layer.inputs)
            op = of_numbers(layer.op, len(shape)) if same else None
            if op is None:
                self._ops[layer.output] = None
            else:
                if id(layer.op) not in self._signatures:
                    self._signatures[id(layer.op)] = layer.op, signature(layer.op)
                key = self._signatures[id(layer.op)][1], len(layer.inputs)
                self._ops[layer.output] = self._numbers.setdefault(key, len(self._numbers)), op
        return self._ops[layer.output]

    def before(self, y: str, most: int = _MAX_LAYERS) -> Growth:
        """The subgraphs of at most so many layers that end at y."""
        layers: list[Layer] = []
        ops: dict[str, Elementwise] = {}
        ends: dict[int, str] = {}
        numbers, uses = (
            {y: 0},
            {y: self._uses[y]},
        )  # of tensors: a name for the key, and how often they are read inside
        edge, key, is_straight = {y}, list[int](), True
        while len(layers) < most:
            last = max(edge, key=self._age.__getitem__) if len(edge) > 1 else next(iter(edge))
            layer = self._makers.get(last)
            found = None if layer is None else self._op(layer)
            if layer is None or found is None or uses[last] < self._uses[last]:
                break
            if len(edge) == 1 and _is_apart(layer, layers):
                break
            number, ops[last] = found
            layers.append(layer)
            key += number, numbers[last]
            is_straight = is_straight and isinstance(layer.op, STRAIGHT)
            edge.remove(last)
            for name in layer.inputs:
                key.append(numbers.setdefault(name, len(numbers)))
                uses[name] = uses.get(name, 0) + 1
                edge.add(name)
            if len(edge) == 1 and not is_straight:
                ends[len(layers)] = next(iter(edge))
        shape = self._shapes[y]
        return Growth(shape, layers, ops, ends, (shape, *key))


def _is_apart(layer: Layer, behind: Sequence[Layer]) -> bool:
    """Whether no subgraph that ends with the layers `behind` is recognised if it has this layer as well.

    The layers `behind` read nothing but the layer's output, or each other.

    An activation is none of the parts of an activation behind it, unless it keeps every value.
    Behind a Clip, wider Clips do nothing, and an activation has few of them.
    Long chains of nodes with constants of their own would otherwise be judged in every length.
    """
    if acts_alone(layer.op):
        if isinstance(layer.op, Function) and layer.op.name == "LeakyRelu" and layer.op.p == 1:
            return False
        return any(acts_alone(other.op) for other in behind)
    if type(layer.op) is not Rectifier:
        return False
    if sum(isinstance(other.op, Rectifier) for other in behind) >= _MAX_CLIPS:
        return True
    lo, hi = layer.op.clip.lo, layer.op.clip.hi
    return bool(behind) and all(
        type(other.op) is Rectifier and other.op.clip.lo <= lo <= hi <= other.op.clip.hi for other in behind
    )


def acts_alone(op: Op) -> bool:
    """Whether it is an activation, or a Clip around 0."""
    if op.is_activation:
        return True
    return isinstance(op, Rectifier) and -np.inf < op.clip.lo < 0 and op.clip.hi < np.inf
