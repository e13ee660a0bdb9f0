"""The nodes that are still to be read, of which some say others: those come in their place.

An If whose condition is known is the branch that it takes; an op with a rewriter is what that writes; what
reads a tensor whose batch is moved is what `moved.py` makes of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import ModelError
from ..ops import REWRITERS
from ..ops.node import Node
from ..ops.written import Writer
from .branches import reads, taken
from .moved import READERS, Moved, scattered
from .proto import label, qualified


class Waiting:
    """Nodes in order of computation.

    Parameters
    ----------
    nodes : iterable of onnx.NodeProto
        Those of the file.
    constants, stored : dict
        The values of constant tensors and the file's tensors, by name, which grow as nodes are replaced.
    read : set of str
        The tensors that anybody reads, which grow likewise.
    taken : set of str
        Names that tensors of the file have.
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
        self.constants, self.stored, self.read, self.taken = constants, stored, read, taken
        self.of_file = frozenset(taken)
        #: Tensors whose batch is moved from the front, which nobody has computed.
        self.moved: dict[str, Moved] = {}

    def unused(self, name: str) -> str:
        """A name for a tensor that the file has none for."""
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name

    def source_of(self, name: str) -> str:
        """The tensor of the file that a moved one is, or else `name`."""
        moved = self.moved.get(name)
        return name if moved is None or moved.name not in self.of_file else moved.name

    def _put(self, nodes: list[onnx.NodeProto]) -> None:
        self.read.update(name for node in nodes for name in reads(node))
        self.nodes.extendleft(reversed(nodes))

    def takes_branch(self, proto: onnx.NodeProto) -> bool:
        """Whether a node is an If with a known condition, whose branch then comes next.

        Raises ModelError or UnsupportedError where that is no plain graph.
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

    def moves_batch(self, node: Node) -> bool:
        """Whether a node moves the batch from the front, or reads a tensor where that is moved.

        What it says then comes next, where it says something.  Raises UnsupportedError where it would compute
        with such a tensor.
        """
        proto, op = node.proto, qualified(node.proto)
        here = [name for name in proto.input if name in self.moved]
        if not here:
            return op == "Transpose" and self._move(node)
        first, writer = self.moved[here[0]], Writer(node, self.unused)
        if op == "ScatterND":
            x, updates = (
                self.moved.get(name, self.constants.get(name)) for name in (proto.input[0], proto.input[2])
            )
            if x is None or updates is None:
                raise first.refused()
            result: Moved | None = scattered(node, writer, x, updates)
        elif op in READERS and here == [proto.input[0]]:
            result = READERS[op](node, writer, first)
        else:
            raise first.refused()
        if result is not None:
            self.moved[proto.output[0]] = result
        self._take(node, writer)
        return True

    def _move(self, node: Node) -> bool:
        if not isinstance(shape := node.operands[0], tuple):
            return False
        perm = node.integers("perm", tuple(reversed(range(len(shape)))))
        if sorted(perm) != list(range(len(shape))) or perm[0] == 0:
            return False
        self.moved[node.proto.output[0]] = Moved(node.proto.input[0], shape, perm, node.name)
        return True

    def rewrite(self, node: Node) -> None:
        """Let what a rewriter writes come next.

        Raises what the rewriter does, and UnsupportedError where an output is read that it does not write.
        """
        writer = Writer(node, self.unused)
        REWRITERS[qualified(node.proto)](node, writer)
        made = {name for written in writer.nodes for name in written.output}
        missing = self.read.intersection(filter(None, node.proto.output)) - made
        if missing:
            node.refuse(f"output {min(missing)!r} is used.", supported="the first output")
        self._take(node, writer)

    def _take(self, node: Node, writer: Writer) -> None:
        node.check_all_attributes_read()
        self.constants.update({name: np.asarray(value) for name, value in writer.constants.items()})
        self._put(writer.nodes)

    def check(self, scores: str) -> None:
        """Raise UnsupportedError where the scores themselves are not computed."""
        if scores in self.moved:
            raise self.moved[scores].refused()
