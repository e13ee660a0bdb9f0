"""Nodes that touch axis 0, the batch's, where they may: they are read with an axis of samples in front.

A file for a batch of one may do as it likes with that axis: squeeze it, flatten it away, stack heads along
it.  Nothing mixes, because one sample is all there is.  So a tensor (a, b, …) of the file is (N, a, b, …) for
N samples, of which each is computed by itself.  A node's axes and sizes are read one axis further on.

Where the batch of a file is open, or k, its axis 0 may hold m rows a sample, as (N·T, …) does of frames.
Such a tensor is (k, m, …), and a node may do what it likes with all axes but that one: it is `bound`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..graph.op import Op
from ..graph.shapes import Shape
from ..ops import PARSERS
from ..ops.node import Node

#: A shape, positions, a constant, or None: as in `Node`.
Operand = Any
#: What a parser makes of a node: ops one after another; a list where it has several outputs.
Ops = Op | tuple[Op, ...]
Parsed = Ops | list[Ops]


@dataclass(frozen=True)
class Lifted:
    """A node that was read with samples in front.

    `node.operands` are the shapes under which it takes its inputs.  `is_scalar`: it makes one number a
    sample, which lies in an axis of its own.
    """

    node: Node
    parsed: Parsed
    is_scalar: bool = False


@dataclass(frozen=True)
class SampleAxis:
    """How many samples there are; and whether axis 0 of a file's tensors is `bound` to hold them."""

    samples: int
    bound: bool

    def lifted(self, shape: Shape, rank: int = 1) -> Shape:
        """A shape of the file with samples in front, and at least `rank` axes behind."""
        shape = (1,) * (rank - len(shape)) + shape if self.samples == 1 else shape
        return (self.samples, shape[0] // self.samples, *shape[1:])

    def meant(self, shape: Shape) -> Shape:
        """What the file means by a tensor that is `shape` with samples in front."""
        return (shape[0] * shape[1], *shape[2:]) if len(shape) > 1 else ()


class Reader:
    """One node of the file, whose operands have the file's shapes, as handlers see it."""

    def __init__(self, node: Node, place: SampleAxis) -> None:
        self.node, self.place = node, place
        self.shapes = [o for o in node.operands if isinstance(o, tuple)]
        self.rank = max(map(len, self.shapes))

    def axis(self, axis: int) -> int:
        """`axis` of the file with samples in front; refuses that of the batch where it is bound."""
        if axis in (0, -self.rank):
            self.touch(f"it works along axis {axis}")
        # One more than the largest is no number of an attribute; both are refused as outside.
        return min(axis + 1, 2**63 - 1) if axis >= 0 else axis

    def is_by_row(self, size: int) -> bool:
        """Whether a constant of that size along axis 0 leaves all samples alike, and as many rows."""
        return size == 1 or (self.place.samples == 1 and size == max(shape[0] for shape in self.shapes))

    def touch(self, found: str) -> None:
        """Refuse what goes along the axis of the batch, or changes it, where that may not be."""
        if self.place.bound:
            batch = f"which holds the batch of {self.place.samples}, or one left open"
            self.node.refuse(f"{found}, {batch}.", supported="what keeps the samples apart")

    def again(self, operands: Sequence[Operand] | None = None, **attributes: Any) -> Lifted:
        """The node with samples in front: other attributes, None to drop one; and other operands."""
        proto = onnx.NodeProto()
        proto.CopyFrom(self.node.proto)
        kept = [a for a in self.node.proto.attribute if a.name not in attributes]
        del proto.attribute[:]
        proto.attribute.extend(kept)
        for name, value in attributes.items():
            try:
                proto.attribute.extend([] if value is None else [onnx.helper.make_attribute(name, value)])
            except ValueError:  # an empty list, or one more than the largest number of an attribute
                self.node.invalid(f"attribute {name!r} is empty, or names an axis that no tensor has.")
        operands = list(self.operands() if operands is None else operands)
        while len(proto.input) < len(operands):
            proto.input.append(f"operand {len(proto.input)}")
        node = Node(proto, self.node.opset, operands, self.node.read)
        constants = (o for o in self.node.operands if isinstance(o, np.ndarray))
        is_scalar = self.rank == 0 and all(c.ndim == 0 for c in constants)
        return Lifted(node, PARSERS[self.node.op](node), is_scalar)

    def operands(self, rank: int = 1) -> list[Operand]:
        """All operands, the computed ones with samples in front and at least so many axes behind."""
        return [self.place.lifted(o, rank) if isinstance(o, tuple) else o for o in self.node.operands]

    def integers(self, index: int, name: str) -> tuple[int, ...] | None:
        """A list that is operand `index` in young opsets and an attribute in old ones, or None."""
        return self.node.constant_ints(index) if self.node.has(index) else self.node.integers(name)


def one_after_another(ops: Ops) -> tuple[Op, ...]:
    return ops if isinstance(ops, tuple) else (ops,)
