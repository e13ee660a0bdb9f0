"""The queue of nodes that are still to be read.  Some nodes are replaced by others before they are read.

- An If with a known condition is replaced by the branch that it takes.
- An op with a rewriter is replaced by the nodes that the rewriter writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import ModelError, UnsupportedError
from ..graph.graph import unused
from ..limits import MAX_NODES
from ..ops import REWRITERS
from ..ops.node import Node
from ..ops.written import Writer
from .branches import reads, taken
from .proto import label, qualified
from .scales import Scales, dynamic


class NodeQueue:
    """Nodes in order of computation.

    Parameters
    ----------
    nodes
        The nodes of the file.
    constants, stored
        Constant tensors and the file's initializers, by name.  Both grow as nodes are replaced.
    read
        Tensors that some node reads.  It grows likewise.
    taken
        Names that are in use.
    """

    def __init__(
        self,
        nodes: Iterable[onnx.NodeProto],
        constants: dict[str, NDArray[Any]],
        stored: dict[str, onnx.TensorProto],
        read: set[str],
        taken: set[str],
    ) -> None:
        self.nodes = deque(nodes)
        self._count = len(self.nodes)
        self.constants, self.stored, self.read, self.taken = constants, stored, read, taken
        self.of_file = frozenset(taken)
        #: Integers whose scale this network does not multiply by → what reads them or the scale.
        self.misread: dict[str, str] = {}
        #: Tensors in which gbp computes other numbers than the file.
        self.own: set[str] = set()
        self._hold_scales(self.nodes)

    def _hold_scales(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Have 1 for the scale and 0 for the zero point of each DynamicQuantizeLinear (`scales.py`)."""
        if next(dynamic(nodes), None) is None:
            return
        scales = Scales(self.nodes)
        self.constants |= scales.held
        self.misread |= scales.misread
        self.own |= scales.own

    def check_scale(self, node: onnx.NodeProto) -> None:
        """Raise UnsupportedError for integers that are read in a way that `scales.py` does not know."""
        reader = self.misread.get(node.output[0]) if node.output else None
        if reader is not None:
            raise UnsupportedError(
                f"its integers, its scale or its zero point are read by {reader}.",
                node=label(node),
                op=node.op_type,
                supported="MatMulInteger, ConvInteger and DequantizeLinear, and a Mul by the scale",
                hint="Quantize statically, or export in float32.",
            )

    def unused(self, name: str) -> str:
        """A name that no tensor has."""
        name = unused(name, self.taken)
        self.taken.add(name)
        return name

    def _put(self, nodes: list[onnx.NodeProto]) -> None:
        """Put nodes at the front of the queue.  Raises UnsupportedError where they become too many."""
        self._count += len(nodes)
        if self._count > MAX_NODES:
            raise UnsupportedError(
                f"the network has {self._count} nodes, with those that others stand for.",
                supported=f"up to {MAX_NODES}",
            )
        self.read.update(name for node in nodes for name in reads(node))
        self.nodes.extendleft(reversed(nodes))
        self._hold_scales(nodes)

    def takes_branch(self, proto: onnx.NodeProto) -> bool:
        """Replace an If whose condition is known by its branch.  Returns whether it did.

        Raises ModelError or UnsupportedError if the branch is no plain graph.
        """
        if qualified(proto) != "If" or proto.input[0] not in self.constants:
            return False
        condition = self.constants[proto.input[0]]
        if condition.size != 1:
            raise ModelError(
                f"its condition has shape {list(condition.shape)}.", node=label(proto), op=proto.op_type
            )
        nodes, tensors = taken(proto, bool(condition.reshape(())), self.unused)
        self.stored.update({tensor.name: tensor for tensor in tensors})
        self._put(nodes)
        return True

    def rewritten(self, node: Node) -> Writer:
        """The nodes that a node's rewriter writes in its place, to be put into the queue.

        Raises what the rewriter raises, and UnsupportedError if an output is read that it does not write.
        """
        writer = Writer(node, self.unused)
        REWRITERS[qualified(node.proto)](node, writer)
        made = {name for written in writer.nodes for name in written.output}
        missing = self.read.intersection(filter(None, node.proto.output)) - made
        if missing:
            node.refuse(f"output {min(missing)!r} is used.", supported="the first output")
        node.check_all_attributes_read()
        return writer

    def put(self, writer: Writer) -> None:
        """Put what was written in place of a node at the front of the queue."""
        self.constants.update({name: np.asarray(value) for name, value in writer.constants.items()})
        self._put(writer.nodes)

    def check(self, scores: str) -> None:
        """Raise UnsupportedError if gbp computes other numbers in the scores than the file."""
        if scores in self.own:
            raise UnsupportedError(
                f"{scores!r} holds integers of a DynamicQuantizeLinear, or their scale.",
                supported="what a Mul by the scale makes of the integers",
            )
