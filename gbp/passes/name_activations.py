"""Name the rectifiers and activations that exporters write in parts, or as other ops.

    ReLU           Where(x > 0, x, 0), x · (x > 0), LeakyRelu of slope 0
    ReLU6          Min(Relu(x), 6), Max(Min(x, 6), 0)
    SiLU           x · Sigmoid(x)                      HardSigmoid    Clip(x + 3, 0, 6) / 6
    HardSwish      x · Clip(x + 3, 0, 6) / 6           GELU           x · (Erf(x / √2) + 1) / 2
    Mish           x · Tanh(Softplus(x))               PReLU          Relu(x) − a · Relu(−x)
                   and so on, in any order and grouping

The function is recognised, not the way in which it is written.  Layers that map one tensor to one tensor,
element by element, compute a function of one number, and its values identify it.  So under every rule the map
is that of the function as one op: a rectifier obeys the rule, and a Clip inside an activation does not.
Transposes may stand between its layers.

Constants in float16 are rounded, so such an activation differs from the function.  It is computed as it is
written, and an `End` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ..errors import UnsupportedError
from ..graph.graph import Graph, Layer, unused
from ..graph.shapes import Shape
from ..ops.functions import End, Function, PRelu
from ..ops.rectifier import Rectifier, Threshold
from ..ops.shape import Transpose
from .drop_dead import drop_dead
from .elementwise import STRAIGHT, Subgraph
from .known import Known, is_plain, known, likely, likely_alone
from .search import Growth, Search, acts_alone
from .signs import nonnegative
from .turned import inverse, turned

#: Layers whose subgraphs are sifted at once.
_AT_ONCE = 512
#: Most subgraphs of one network that are compared with known functions.
_MAX_JUDGED = 2**12


def name_activations(graph: Graph) -> Graph:
    """The same graph with every rectifier and activation as one layer, or as layers that end in `End`."""
    search, verdicts = Search(graph), _Verdicts(nonnegative(graph))
    renamed = _rename(graph, search, verdicts)
    graph = _joined(renamed, None if renamed is not graph else (search, verdicts))
    return _across_transposes(graph)


def _joined(graph: Graph, given: tuple[Search, _Verdicts] | None = None) -> Graph:
    """The graph with one layer for the layers of each activation.  `given`: what is known of it."""
    found = _recognised(graph, *(given or (Search(graph), _Verdicts(nonnegative(graph)))))
    replaced = {part.output for parts, _ in found.values() for part in parts.layers}
    taken = set(graph.shapes)
    layers: list[Layer] = []
    for layer in graph.layers:
        if layer.output in found:
            parts, is_ = found[layer.output]
            layers += [_one(parts, is_)] if is_.equal else _kept(parts, is_.kind, taken)
        elif layer.output not in replaced:
            layers.append(layer)
    shapes = dict(graph.shapes)
    for layer in layers:
        if isinstance(layer.op, End):
            shapes[layer.inputs[0]] = shapes[layer.output]
    return replace(graph, shapes=shapes).with_layers(layers)


def _recognised(graph: Graph, search: Search, verdicts: _Verdicts) -> dict[str, tuple[Subgraph, Known]]:
    """The groups of layers that are activations, by the tensor that they make.  No two share a layer."""
    found: dict[str, tuple[Subgraph, Known]] = {}
    replaced: set[str] = set()
    for some in _in_turn(graph.layers[::-1]):
        left = (layer.output for layer in some if layer.output not in replaced)
        growths = {name: search.before(name) for name in left}
        several = [growth for growth in growths.values() if len(growth.layers) > 1 and growth.ends]
        verdicts.sift(several, partial(likely, search))
        for layer in some:
            if layer.output in replaced or len(growths[layer.output].layers) == 1:
                continue  # `_rename` has judged each layer alone
            verdict = verdicts.largest(growths[layer.output])
            if verdict is not None:
                parts = growths[layer.output].subgraph(verdict.size)
                found[layer.output] = parts, verdict.known
                replaced |= {part.output for part in parts.layers}
    return found


def _one(parts: Subgraph, is_: Known) -> Layer:
    """One layer for all of these."""
    return Layer(parts.layers[-1].name, is_.op, (parts.x,), parts.y, is_.kind)


def _across_transposes(graph: Graph) -> Graph:
    """The graph with one layer for each activation that has Transposes among its parts."""
    other, views = turned(graph)
    if not views:
        return graph
    found = _recognised(other, Search(other), _Verdicts(nonnegative(other)))
    origin = {view.name: name for name, view in views.items()}
    shapes, taken = dict(graph.shapes), set(graph.shapes)
    replaced: set[str] = set()
    instead: dict[str, list[Layer]] = {}

    def new(name: str, shape: Shape) -> str:
        taken.add(name := unused(name, taken))
        shapes[name] = shape
        return name

    for parts, is_ in found.values():
        if not is_.equal:
            continue  # its layers would stay, and be read by name
        layer, y = _one(parts, is_), origin.get(parts.y, parts.y)
        layers = [layer]
        if parts.x in origin:
            x = origin[parts.x]
            layer = replace(layer, inputs=(new(f"{x}/turned", other.shapes[parts.x]),))
            back = Transpose(inverse(views[x].perm))
            layers = [Layer(layer.name, back, (x,), layer.inputs[0]), layer]
        if y != parts.y:
            layers[-1] = replace(layer, output=new(parts.y, other.shapes[parts.y]))
            layers.append(Layer(layer.name, Transpose(views[y].perm), (layers[-1].output,), y))
        instead[y] = layers
        replaced |= {origin.get(part.output, part.output) for part in parts.layers}
    if not instead:
        return graph
    kept = [
        each
        for layer in graph.layers
        for each in instead.get(layer.output, () if layer.output in replaced else (layer,))
    ]
    return drop_dead(replace(graph, shapes=shapes).with_layers(kept))


def _rename(graph: Graph, search: Search, verdicts: _Verdicts) -> Graph:
    """Replace every layer that is a rectifier under another name, such as LeakyRelu of slope 0."""
    renamed: dict[str, Layer] = {}
    unknown = [layer for layer in graph.layers if not (isinstance(layer.op, STRAIGHT) or is_plain(layer.op))]
    for some in _in_turn(unknown):
        growths = [search.before(layer.output, max_layers=1) for layer in some]
        verdicts.sift((growth for growth in growths if growth.ends), partial(likely_alone, search))
        for layer, growth in zip(some, growths, strict=True):
            found = verdicts.largest(growth)
            if found is not None:
                renamed[layer.output] = replace(layer, op=found.known.op)
    return graph.with_layers(renamed.get(it.output, it) for it in graph.layers) if renamed else graph


def _in_turn(layers: Sequence[Layer]) -> Iterator[Sequence[Layer]]:
    """So many layers at once as are sifted at once, which bounds the memory that this takes."""
    return (layers[i : i + _AT_ONCE] for i in range(0, len(layers), _AT_ONCE))


class _Verdict(NamedTuple):
    """The number of layers that are recognised, and what they are."""

    size: int
    known: Known


class _Verdicts:
    """Judges subgraphs.  Equal ones are judged once.

    `positive`: tensors that hold no negative number.
    """

    def __init__(self, positive: set[str]) -> None:
        self._positive = positive
        self._found: dict[Hashable, _Verdict | None] = {}
        self._likely: dict[Hashable, set[int]] = {}  # by the key of a growth
        self._known: dict[tuple[str, str], Known | None] = {}  # by x and y

    def sift(
        self, growths: Iterable[Growth], likely: Callable[[Sequence[Growth]], Sequence[set[int]]]
    ) -> None:
        """Find the sizes that are worth judging.  `largest` asks only about growths that were sifted."""
        new = {growth.key: growth for growth in growths if growth.key not in self._likely}
        if new:
            self._likely |= zip(new, likely(list(new.values())), strict=True)

    def largest(self, growth: Growth) -> _Verdict | None:
        """The largest of these subgraphs that is recognised."""
        if not growth.ends:
            return None
        key = growth.key, tuple(x in self._positive for x in growth.ends.values())
        if key not in self._found:
            self._found[key] = self._judge(growth)
        return self._found[key]

    def _judge(self, growth: Growth) -> _Verdict | None:
        """The largest subgraph that is an activation; None where there is none."""
        may_be = self._likely[growth.key]
        for size in reversed(growth.ends):
            if size not in may_be or size == 1 < len(growth.layers):  # which `_rename` has judged alone
                continue
            parts = growth.subgraph(size)
            found = self._known_as(parts, parts.y)
            if found is None or not self._is_news(parts, found):
                continue
            if _bends(found) and any(self._is_activation(growth, end) for end in growth.ends if end < size):
                continue
            return _Verdict(size, found)
        return None

    def _is_activation(self, growth: Growth, size: int) -> bool:
        """Whether the last `size` layers alone are an activation, as Shrink is in Shrink(Relu(x))."""
        parts = growth.subgraph(size)
        found = self._known_as(parts, parts.y)
        return found is not None and not isinstance(found.op, Rectifier) and self._is_news(parts, found)

    def _known_as(self, parts: Subgraph, y: str) -> Known | None:
        """The kind of the layers up to tensor y."""
        if (parts.x, y) not in self._known:
            if len(self._known) == _MAX_JUDGED:
                raise UnsupportedError(
                    "it has too many different activations that are written in parts.",
                    node=parts.layers[-1].name,
                    op=parts.layers[-1].kind,
                    supported=f"up to {_MAX_JUDGED} groups of layers that could be activations",
                )
            self._known[parts.x, y] = known(parts if y == parts.y else parts.until(y))
        return self._known[parts.x, y]

    def _is_news(self, parts: Subgraph, found: Known) -> bool:
        """Whether naming the layers changes anything, and is right."""
        is_rectifier, several = isinstance(found.op, Rectifier), len(parts.layers) > 1
        if isinstance(found.op, Rectifier) and self._is_guard(parts, found.op):
            return False
        if several and _bends(found) and _has_another(parts):
            return False
        inner = {layer.output: self._known_as(parts, layer.output) for layer in parts.layers[:-1]}
        activations = {
            y: other.kind
            for y, other in inner.items()
            if other is not None and not isinstance(other.op, Rectifier)
        }
        if activations and _bends(found):
            return False
        # Layers behind an activation are something else, such as a guard against 0.  If they also read x,
        # they are part of it, such as a guard against overflow.
        if any(kind == found.kind and parts.goes_through(y) for y, kind in activations.items()):
            return False
        return several or (is_rectifier and parts.layers[0].op != found.op)

    def _is_guard(self, parts: Subgraph, op: Rectifier) -> bool:
        """Whether the rectifier only keeps a norm, a variance or a probability away from 0."""
        rectifies = any(isinstance(part.op, Rectifier) and part.op.clip.is_rectifier for part in parts.layers)
        keeps_above = op.clip.lo > 0 and not isinstance(op, Threshold)
        return keeps_above and parts.x in self._positive and not rectifies


def _bends(found: Known) -> bool:
    """Whether the function is piecewise linear.  Then other functions of activations can have its values."""
    return isinstance(found.op, (Rectifier, PRelu)) or found.kind in ("LeakyRelu", "Shrink")


def _has_another(parts: Subgraph) -> bool:
    """Whether one of the layers is an activation, or a Clip around 0.

    Relu(LeakyRelu(x)) has the values of Relu(x), but each of the two nodes has its own gate or slope.
    """
    return any(acts_alone(layer.op) for layer in parts.layers)


def _kept(parts: Subgraph, kind: str, taken: set[str]) -> list[Layer]:
    """The layers as they are, with no rectifier or activation among them, followed by an `End`."""
    y = unused(f"{parts.y}/in parts", taken)
    taken.add(y)
    layers = []
    for layer in parts.layers:
        op = layer.op
        if isinstance(op, Rectifier):
            op = replace(op, clip=replace(op.clip, is_rectifier=False))
        if isinstance(op, Function):
            op = replace(op, is_part=True)
        layers.append(replace(layer, op=op, output=y if layer.output == parts.y else layer.output))
    return [*layers, Layer(parts.layers[-1].name, End(), (y,), parts.y, kind)]
