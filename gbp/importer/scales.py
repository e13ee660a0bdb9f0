"""Follow the integers and scales of DynamicQuantizeLinear to where they meet again.

    q, s, z = DynamicQuantizeLinear(x)        q ≈ x / s + z

The integers q stand for (q − z) · s.  gbp computes these numbers in place of q, with 1 in place of s and 0 in
place of z.  So a product of them has a factor s already, by which the file multiplies later, and the file's
numbers once it has done so.  That is followed here, as one follows units: a node that reads such a tensor
must be one whose result is then known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..ops.dtypes import FLOATS
from .branches import reads
from .proto import label, qualified

#: Ops that compute with integers less their zero points: the places of both, and of the scales.
_OF_INTEGERS: Mapping[str, tuple[tuple[tuple[int, int], ...], tuple[int, ...]]] = {
    "MatMulInteger": (((0, 2), (1, 3)), ()),
    "ConvInteger": (((0, 2), (1, 3)), ()),
    "com.microsoft.MatMulIntegerToFloat": (((0, 4), (1, 5)), (2, 3)),
    "com.microsoft.QAttention": (((0, 6), (1, 7)), (3, 4)),
    "DequantizeLinear": (((0, 2),), (1,)),
}
#: Ops that leave numbers as they are.
_MOVES = frozenset(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"))
_DYNAMIC = "DynamicQuantizeLinear"


class Scales:
    """Tensors behind DynamicQuantizeLinear nodes, and what the numbers in them lack.

    Attributes
    ----------
    held
        Scales and zero points, by name, and the 1 and the 0 that gbp has for them.
    own
        Tensors in which gbp computes other numbers than the file.
    misread
        Integers of a node whose scale cannot be 1 → what reads them, or the scale, in an unknown way.
    """

    def __init__(self, nodes: Iterable[onnx.NodeProto]) -> None:
        self.held: dict[str, NDArray[Any]] = {}
        self.misread: dict[str, str] = {}
        #: A tensor → how often the scale of which integers is left out of its numbers.
        self._powers: dict[str, Counter[str]] = {}
        #: Integers → their zero point.
        self._around: dict[str, str] = {}
        self._zeros: dict[str, str] = {}  # a zero point → the integers
        for node in nodes:
            self._read(node)
        self.own = {*self._powers, *self._zeros}

    def _read(self, node: onnx.NodeProto) -> None:
        read = [name for name in reads(node) if name in self._powers or name in self._zeros]
        op = qualified(node)
        if read and op not in ("Shape", "Size"):
            powers = self._made(node, op, read)
            if powers is None:
                whose = {of for name in read for of in self._powers.get(name, ())}
                whose.update(self._zeros[name] for name in read if name in self._zeros)
                self.misread = dict.fromkeys(whose, f"{node.op_type} {label(node)!r}") | self.misread
            elif any(powers.values()):
                self._powers[node.output[0]] = powers
                if op in _MOVES and read[0] in self._around:
                    self._around[node.output[0]] = self._around[read[0]]
        if op == _DYNAMIC and len(node.output) == 3:
            q, scale, zero = node.output
            held = (scale, np.array(1, np.float32)), (zero, np.array(0, np.uint8))
            self.held.update((name, value) for name, value in held if name)
            self._powers[q], self._powers[scale] = Counter({q: -1}), Counter({q: 1})
            self._around[q], self._zeros[zero] = zero or q, q  # without a name nothing can take it off

    def _made(self, node: onnx.NodeProto, op: str, read: list[str]) -> Counter[str] | None:
        """The powers of the result; None where they are not known."""
        if op in _OF_INTEGERS:
            pairs, scales = _OF_INTEGERS[op]
            inputs = [*node.input, *[""] * 9]
            factors = [inputs[i] for i, _ in pairs]
            if not all(self._fits(inputs[i], inputs[j]) for i, j in pairs):
                return None
            if set(read) - {*factors, *(inputs[j] for _, j in pairs), *(inputs[i] for i in scales)}:
                return None
            powers = self._sum([*factors, *(inputs[i] for i in scales)])
            return None if scales and any(powers.values()) else powers
        if not self._zeros.keys().isdisjoint(read):
            return None
        if op == "Mul" and self._around.keys().isdisjoint(read):
            return self._sum(node.input)
        is_moved = op in _MOVES or (_is_to_float(node) and self._around.keys().isdisjoint(read))
        return self._sum(read) if is_moved and read == list(node.input[:1]) else None

    def _fits(self, name: str, zero: str) -> bool:
        """Whether the zero point that a node takes off integers is theirs, or the file's own of its own."""
        if name in self._powers:  # products have none
            return zero == self._around.get(name, "")
        return not zero or zero not in self._zeros

    def _sum(self, names: Iterable[str]) -> Counter[str]:
        total: Counter[str] = Counter()
        for name in names:
            total.update(self._powers.get(name, {}))
        return total


def _is_to_float(node: onnx.NodeProto) -> bool:
    """Whether a node is a Cast that leaves numbers as they are, but for rounding."""
    return node.op_type == "Cast" and any(a.name == "to" and a.i in FLOATS for a in node.attribute)


def dynamic(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The DynamicQuantizeLinear nodes among these."""
    return (node for node in nodes if node.op_type == _DYNAMIC)
