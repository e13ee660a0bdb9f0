"""Nodes that say what several nodes of ONNX say: what to write instead of them.

A rewriter sees the node with the shapes and constants that reach it, and appends nodes to a `Writer`; these
are then read in its place, as if the file had them.  So one op can have operands that go different ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from .node import Node


class Writer:
    """Collects the nodes and the constants that take the place of one node.

    Parameters
    ----------
    node : Node
        What is replaced; its name begins those of the new nodes, so that messages name it.
    unused : callable
        Makes of a name one that no tensor has yet.
    """

    def __init__(self, node: Node, unused: Callable[[str], str]) -> None:
        self.node, self.opset = node, node.opset
        self._unused = unused
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def name(self) -> str:
        """A name for a tensor that the file has none for."""
        return self._unused(f"{self.node.name}/{len(self.nodes) + len(self.constants)}")

    def constant(self, values: Any) -> str:
        """A constant tensor: its name."""
        name = self.name()
        self.constants[name] = np.asarray(values)
        return name

    def write(self, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """A node of one output, called `to` or by a new name, which is returned."""
        name = self.node.name if to else f"{self.node.name}/{len(self.nodes)}"
        to = to or self.name()
        self.nodes.append(helper.make_node(op, inputs, [to], name=name, **attributes))
        return to

    def reshaped(self, x: str, shape: Sequence[int], to: str = "") -> str:
        """x under another shape."""
        if self.opset < 5:
            return self.write("Reshape", x, to=to, shape=list(map(int, shape)))
        return self.write("Reshape", x, self.constant(np.array(shape, np.int64)), to=to)

    def summed(self, x: str, axes: Sequence[int]) -> str:
        """x summed over axes that go."""
        if self.opset < 13:
            return self.write("ReduceSum", x, axes=list(axes), keepdims=0)
        return self.write("ReduceSum", x, self.constant(np.array(axes, np.int64)), keepdims=0)


Rewriter = Callable[[Node, Writer], None]
