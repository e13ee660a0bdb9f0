"""Tensors whose batch is not the first axis, between nodes that move it away and back.

PyTorch's newer exporter writes an index of inner axes in this way: x[:, perm] becomes Transpose, GatherND,
Transpose, and x[:, 1:3] = v becomes two Transposes, ScatterND, Transpose.  Attention takes queries, keys and
values apart along an axis that it puts first, and networks for video do so with frames, which they stack
again.  Where such a node keeps the samples apart (`batch_place_nodes.py`), it is read as in a file for one
sample (`sample_axis.py`): a tensor (a, N, b) of the file is computed as (N, a, 1, b).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from ..graph.shapes import Shape
from ..ops import REWRITERS
from ..ops.node import Node
from ..ops.shape import TARGETS
from .batch_place import Followed, Place
from .batch_place_nodes import through
from .layers import Layers
from .node_queue import NodeQueue
from .proto import qualified
from .sample_axis import SampleAxis
from .sample_axis_nodes import in_front

#: Ops that may read a tensor whose batch is moved.
_READERS = (
    "Concat", "Gather", "GatherND", "Identity", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "ScatterND",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip


@dataclass(frozen=True)
class Moved:
    """A tensor whose batch is not in front.

    Parameters
    ----------
    place
        Where the file has the batch.
    mover
        The node that moved it from the front.
    """

    place: Place
    mover: Node

    def refused(self) -> UnsupportedError:
        """The error for a node that would compute with the tensor."""
        node = self.mover
        found = f"perm {list(_perm(node))} moves" if node.op == "Transpose" else "it moves"
        return UnsupportedError(
            f"{found} the batch axis.",
            node=node.name,
            op=node.op,
            supported="the batch in front; or that it comes back there. If it is fixed at several samples, "
            f"nothing may stand between but {', '.join(_READERS)}",
        )


class MovedBatch:
    """Reads the nodes that move the batch, and those that read what they make.

    Parameters
    ----------
    layers
        Where their layers are added.
    waiting
        Where the nodes are put that a rewriter writes in place of one of them.
    samples
        The size of the batch.
    """

    def __init__(self, layers: Layers, waiting: NodeQueue, samples: int) -> None:
        self._layers, self._waiting = layers, waiting
        self._batch = SampleAxis(samples, bound=False)
        #: Tensors whose batch is not in front.
        self.tensors: dict[str, Moved] = {}
        #: Tensors of nodes that rewriters have written for one sample.
        self._written: set[str] = set()

    def takes(self, node: Node) -> bool:
        """Read a node, if it moves the batch or reads such a tensor.  Returns whether it does.

        Raises UnsupportedError if it may mix samples.
        """
        outputs = [name for name in node.proto.output if name]
        operands = list(map(self._for_one, node.proto.input, node.operands))
        if self._written.isdisjoint(outputs):
            moved = [self.tensors.get(name) for name in node.proto.input]
            if not any(moved):
                if not _moves_batch(node):
                    return False
                moved[0] = Moved(Place(0), node)
            self.tensors.update(dict.fromkeys(outputs, self._followed(node, operands, moved)))
        self._read(Node(node.proto, node.opset, operands, node.read), outputs)
        return True

    def origin(self, name: str) -> str:
        """For a moved tensor the tensor that was moved; otherwise `name`."""
        return str(self.tensors[name].mover.proto.input[0]) if name in self.tensors else name

    def _for_one(self, name: str, operand: Any) -> Any:
        """An operand with the shape that it has for one sample."""
        if name in self.tensors:
            return self._layers.shapes[name][1:]
        if name in self._written or not isinstance(operand, tuple):
            return operand
        return (*(n // self._batch.samples for n in operand[:1]), *operand[1:])

    def _followed(self, node: Node, operands: list[Any], moved: list[Moved | None]) -> Moved:
        """Where the outputs of a node hold the batch.  Raises UnsupportedError if it may mix samples.

        `operands` are those of one sample, except constant updates, which become so.  `moved` says where each
        holds the batch, and is None for a constant.
        """
        first = next(filter(None, moved))
        beside = any(isinstance(o, tuple) and m is None for o, m in zip(operands, moved, strict=True))
        if qualified(node.proto) not in _READERS or beside:
            raise first.refused()
        places = [each.place if each else None for each in moved]
        if node.op == "ScatterND" and moved[0] and isinstance(operands[2], np.ndarray):
            from_end = moved[0].place.axis - len(operands[0])
            operands[2], places[2] = _of_one(operands[2], from_end, self._batch.samples)
        one = Node(node.proto, node.opset, [*operands], node.read)
        result = TARGETS[node.op](one) if node.op in TARGETS else ()
        return replace(first, place=through(Followed(one, places, [None] * len(places), result)))

    def _read(self, node: Node, outputs: list[str]) -> None:
        """Read a node as in a file for one sample; or put what its rewriter writes into the queue."""
        if qualified(node.proto) in REWRITERS:
            writer = self._waiting.rewritten(node)
            self._written.update(name for each in writer.nodes for name in each.output)
            self._waiting.put(writer)
            return
        read = in_front(node, self._batch)
        if read is None:
            node.refuse("it cannot be read where the batch is moved.")
        made = self.tensors.get(outputs[0])

        def file_shape(shape: Shape) -> Shape:
            one = () if read.is_scalar else shape[1:]
            return made.place.of(one, self._batch.samples) if made else one

        self._layers.add(read.node, read.parsed, file_shape)
        if made is not None:
            self._written.difference_update(outputs)
            if made.place.axis == 0:
                for name in outputs:
                    del self.tensors[name]


def _moves_batch(node: Node) -> bool:
    """Whether a node whose input has the batch in front puts another axis there."""
    if node.op not in ("Transpose", "Unsqueeze") or not isinstance(node.operands[0], tuple):
        return False
    if node.op == "Transpose":
        return _perm(node)[:1] != (0,)
    axes = node.constant_ints(1) if node.has(1) else node.integers("axes", ())
    return 0 in node.axes(axes, len(node.shape()) + len(axes))


def _perm(node: Node) -> tuple[int, ...]:
    return node.integers("perm", tuple(reversed(range(len(node.shape())))))


def _of_one(constant: NDArray[Any], from_end: int, samples: int) -> tuple[NDArray[Any], Place | None]:
    """A constant that has samples along an axis, for one of them, and that axis.

    None if they are not the same for each sample.
    """
    axis = constant.ndim + from_end
    if axis < 0 or constant.shape[axis] != samples:
        return constant, None
    one = constant.take([0], axis)
    return (one, Place(axis)) if (constant == one).all() else (constant, None)
