"""Read nodes that use axis 0, which is the batch elsewhere, with an axis of samples in front.

A file for a batch of one may squeeze axis 0, flatten it, or stack heads along it.  No samples mix, because
there is one.  So a tensor (a, b, …) of the file is computed as (N, a, b, …) for N samples.  All axes and
sizes of the node move by one place.

In a file whose batch is open, or a fixed k, axis 0 may hold m rows for each sample, as (N·T, …) holds
frames.  It is computed as (N, m, …).  The node may do anything along all axes but the first, which
is `bound`.
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

#: A shape, positions, a constant, or None, as in `Node`.
Operand = Any
#: The result of a parser: ops that follow each other, or a list of those for several outputs.
Ops = Op | tuple[Op, ...]
Parsed = Ops | list[Ops]


@dataclass(frozen=True)
class Lifted:
    """A node that was read with samples in front.

    Parameters
    ----------
    node
        The node.  Its operands are the shapes in which it reads its inputs.
    is_scalar
        Whether it makes one number for each sample.  That number has an axis of its own.
    """

    node: Node
    parsed: Parsed
    is_scalar: bool = False


@dataclass(frozen=True)
class SampleAxis:
    """The number of samples, and whether axis 0 of the file's tensors holds them (`bound`)."""

    samples: int
    bound: bool

    @property
    def held(self) -> int:
        """How many samples axis 0 of the file's tensors holds."""
        return self.samples if self.bound else 1

    def lifted(self, shape: Shape, rank: int = 1) -> Shape:
        """A shape of the file with samples in front, and at least `rank` axes behind them."""
        shape = (1,) * (rank - len(shape)) + shape if self.held == 1 else shape
        return (self.samples, shape[0] // self.held, *shape[1:])

    def file_shape(self, shape: Shape) -> Shape:
        """The file's shape of a tensor that is computed in `shape`, with samples in front."""
        return (shape[0] * shape[1], *shape[2:]) if len(shape) > 1 else ()


class Lifting:
    """A node while a handler of `sample_axis_nodes.py` reads it.  Its operands have the file's shapes."""

    def __init__(self, node: Node, batch: SampleAxis) -> None:
        self.node, self.batch = node, batch
        self.shapes = [o for o in node.operands if isinstance(o, tuple)]
        self.rank = max(map(len, self.shapes))

    def axis(self, axis: int) -> int:
        """The axis of the computed tensor that is `axis` in the file.  It may not be a bound batch axis."""
        if axis in (0, -self.rank):
            self.refuse_if_bound(f"it works along axis {axis}")
        # The largest number has no successor that an attribute can hold.  Both are refused as outside.
        return min(axis + 1, 2**63 - 1) if axis >= 0 else axis

    def is_by_row(self, size: int) -> bool:
        """Whether all samples read the same rows of a constant that has this size along axis 0.

        It has one row; or the file is for one sample, and the constant has as many rows as the operands.
        """
        return size == 1 or (self.batch.held == 1 and size == max(shape[0] for shape in self.shapes))

    def refuse_if_bound(self, found: str) -> None:
        """Refuse a node that works along the batch axis, or changes it, where it is bound."""
        if self.batch.bound:
            batch = f"which holds the batch of {self.batch.samples}, or one left open"
            self.node.refuse(f"{found}, {batch}.", supported="what keeps the samples apart")

    def parse(self, operands: Sequence[Operand] | None = None, **attributes: Any) -> Lifted:
        """Parse the node with samples in front.

        Parameters
        ----------
        operands
            Replace the node's; by default `self.operands()`.
        attributes
            Replace the node's attributes of these names; None removes one.
        """
        proto = onnx.NodeProto()
        proto.CopyFrom(self.node.proto)
        kept = [a for a in self.node.proto.attribute if a.name not in attributes]
        del proto.attribute[:]
        proto.attribute.extend(kept)
        for name, value in attributes.items():
            try:
                proto.attribute.extend([] if value is None else [onnx.helper.make_attribute(name, value)])
            except ValueError:  # The list may be empty, or hold one more than an attribute can.
                self.node.invalid(f"attribute {name!r} is empty, or names an axis that no tensor has.")
        operands = list(self.operands() if operands is None else operands)
        while len(proto.input) < len(operands):
            proto.input.append(f"operand {len(proto.input)}")
        node = Node(proto, self.node.opset, operands, self.node.read)
        constants = (o for o in self.node.operands if isinstance(o, np.ndarray))
        is_scalar = self.rank == 0 and all(c.ndim == 0 for c in constants)
        return Lifted(node, PARSERS[self.node.op](node), is_scalar)

    def operands(self, rank: int = 1) -> list[Operand]:
        """All operands.  Computed ones have samples in front and at least `rank` axes behind them."""
        return [self.batch.lifted(o, rank) if isinstance(o, tuple) else o for o in self.node.operands]

    def integers(self, index: int, name: str) -> tuple[int, ...] | None:
        """A list that is input `index` in newer opsets and an attribute in older ones.

        None if the node has neither.
        """
        return self.node.constant_ints(index) if self.node.has(index) else self.node.integers(name)


def one_after_another(ops: Ops) -> tuple[Op, ...]:
    """The ops of one output, of which there may be one alone."""
    return ops if isinstance(ops, tuple) else (ops,)
