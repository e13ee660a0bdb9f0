"""Rewriters: a node that stands for several ONNX nodes is replaced by them.

A rewriter gets the node with the shapes and constants of its operands, and appends nodes to a `Writer`.
These are read in its place, as if they were in the file.  So the operands of one op can be inputs of
different nodes.
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
        The node that is replaced.  The names of the new nodes begin with its name, so that messages name it.
    unused : callable
        Makes a name that no tensor has from a given one.
    """

    def __init__(self, node: Node, unused: Callable[[str], str]) -> None:
        self.node, self.opset = node, node.opset
        self._unused = unused
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def name(self, what: str = "") -> str:
        """A new name for a tensor.  `what` tells those of one node apart."""
        return self._unused(f"{self.node.name}/{len(self.nodes) + len(self.constants)}{what}")

    def constant(self, values: Any) -> str:
        """Add a constant tensor and return its name."""
        name = self.name()
        self.constants[name] = np.asarray(values)
        return name

    def write(self, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the output's name: `to`, or a new one."""
        name = self.node.name if to else f"{self.node.name}/{len(self.nodes)}"
        to = to or self.name()
        self.nodes.append(helper.make_node(op, inputs, [to], name=name, **attributes))
        return to

    def reshaped(self, x: str, shape: Sequence[int], to: str = "") -> str:
        """Reshape x; returns the name of the result."""
        if self.opset < 5:
            return self.write("Reshape", x, to=to, shape=list(map(int, shape)))
        return self.write("Reshape", x, self.constant(np.array(shape, np.int64)), to=to)

    def summed(self, x: str, axes: Sequence[int]) -> str:
        """Sum x over axes and remove them; returns the name of the result."""
        if self.opset < 13:
            return self.write("ReduceSum", x, axes=list(axes), keepdims=0)
        return self.write("ReduceSum", x, self.constant(np.array(axes, np.int64)), keepdims=0)


Rewriter = Callable[[Node, Writer], None]
