"""What the oracle's operators are made of.

An operator is a function of a `Node` and of its operands, in ONNX's order. It returns its output (Split: a
list) and its vjp, which takes the output's gradient to those of the operands, in order; constants behind the
last computed operand may be left out. A rectifier returns a `Rectifier` instead: its reverse is the rule's;
an operator that decides by comparing wraps its vjp into `Kinked`, an activation that is no rectifier wraps
its own into `Activation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from naive import Array

Vjp = Callable[..., Sequence[Array]]
Operand = Any  # an array, or None where an optional input is left out


class Node:
    """An ONNX node: its attributes, and the opset that says what they mean."""

    def __init__(self, proto: onnx.NodeProto, opset: int) -> None:
        self.op, self.opset = proto.op_type, opset
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def moved(self, name: str, since: int, operand: Operand, default: Any = None) -> Any:
        """A parameter that was attribute `name` and is an input since some opset."""
        value = operand if self.opset >= since else self.get(name)
        return default if value is None else value


class Rectifier(NamedTuple):
    """y = clip(x, lo, hi) of one operand. Its vjp is the rule's where it `obeys`; else the true one."""

    x: Array
    lo: float
    hi: float
    obeys: bool = True
    operand: int = 0


class Kinked(NamedTuple):
    """A vjp that comparisons chose, and the `margin` by which the closest of them fell as it did."""

    vjp: Vjp
    margin: Callable[[], float]


class Activation(NamedTuple):
    """The true vjp of an activation for which the papers define no rule."""

    vjp: Vjp | Kinked


Reverse = Vjp | Rectifier | Kinked | Activation
Operator = Callable[..., tuple[Any, Reverse]]


def margin(distances: Array, x: Array) -> float:
    """The smallest distance other than 0 from a tie or a bound, relative to the largest |x|."""
    scale = np.abs(x).max()
    return float(np.min(distances[distances > 0], initial=math.inf) / scale) if scale else math.inf
