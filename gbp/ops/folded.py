"""The cost of folding a node: upper bounds, found before the node is computed.

A node whose inputs are all constant is computed once, when the model is read (`importer/folding.py`).
`Fact.folds` of an op is the function here, or in the op's file, that bounds this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper


@dataclass(frozen=True)
class Constants:
    """A node and its constant inputs.

    Parameters
    ----------
    node
        The node.
    values
        Its inputs, without those that are left out.
    opset
        The version of ONNX's operators.
    """

    node: onnx.NodeProto
    values: Sequence[NDArray[Any]]
    opset: int

    @cached_property
    def attributes(self) -> dict[str, onnx.AttributeProto]:
        return {attribute.name: attribute for attribute in self.node.attribute}

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [value.shape for value in self.values]

    @property
    def read(self) -> float:
        """The elements of all inputs."""
        return float(sum(value.size for value in self.values))


class Cost(NamedTuple):
    """Upper bounds of what it costs to fold a node.

    Parameters
    ----------
    elements
        Elements of all outputs.
    steps
        Elements that are read and written.
    width
        Bytes of an output's element.
    """

    elements: float
    steps: float
    width: int = 8


#: Bounds the cost of a node.  It may raise anything if the inputs do not fit the op.
Folds = Callable[[Constants], Cost]

#: onnx's reference implementation computes some ops one element at a time, in Python.
_SLOW = 500
#: The cost of a number that is gathered, in elements: so the numbers of a node take a few hundred MB at most.
_GATHERED = 64


def slow(folds: Folds) -> Folds:
    """The cost where the reference implementation loops over elements in Python."""

    def bound(given: Constants) -> Cost:
        cost = folds(given)
        return cost._replace(steps=_SLOW * cost.steps)

    return bound


def product(shape: Any) -> float:
    """The number of elements of a shape, where an axis of 0 counts as 1.

    NumPy multiplies sizes axis by axis.  It can overflow before it reaches the 0.
    """
    sizes = np.abs(np.asarray(shape, np.float64))
    return float(np.prod(np.maximum(sizes, 1))) if sizes.size else 1.0


def broadcast(*shapes: Any) -> float:
    """An upper bound on the elements of what these shapes broadcast to."""
    return product([max(sides) for sides in zip_longest(*(reversed(tuple(s)) for s in shapes), fillvalue=1)])


def makes(given: Constants, elements: float, steps: float = 0.0) -> Cost:
    """The cost of a result with so many elements, which takes `steps` besides reading and writing."""
    return Cost(elements, given.read + elements + steps)


def as_broadcast(given: Constants) -> Cost:
    """The result has the size that the operands broadcast to."""
    return makes(given, broadcast(*given.shapes))


def as_operands(given: Constants) -> Cost:
    """The result is no larger than the operands."""
    return makes(given, given.read)


def as_inferred(given: Constants) -> Cost:
    """The result has the size that onnx infers, and each element may take a look at all operands."""
    elements = inferred(given)
    return Cost(elements, given.read * (1 + elements) + elements)


def as_convolution(given: Constants) -> Cost:
    """The window of each element is gathered in float64."""
    elements = inferred(given)
    return makes(given, elements, _GATHERED * elements * product(given.shapes[1][1:]))


def as_pool(given: Constants) -> Cost:
    """`as_convolution` without weights."""
    elements = inferred(given)
    return makes(given, elements, _GATHERED * elements * product(given.attributes["kernel_shape"].ints))


def as_product(given: Constants) -> Cost:
    """Products of matrices."""
    shapes, attributes = given.shapes, given.attributes
    *batch, rows, inner = (1, *shapes[0]) if len(shapes[0]) < 2 else shapes[0]
    *other, _, columns = (*shapes[1], 1) if len(shapes[1]) < 2 else shapes[1]
    if "transA" in attributes and attributes["transA"].i:
        rows, inner = inner, rows
    if "transB" in attributes and attributes["transB"].i:
        columns = shapes[1][-2]
    elements = broadcast(batch, other) * rows * columns
    return makes(given, elements, elements * inner / 16)


def as_resized(given: Constants) -> Cost:
    """The result has the sizes, or the scales, that an operand or an attribute gives."""
    node, attributes, shape = given.node, given.attributes, given.values[0].shape
    operands = dict(zip((i for i, name in enumerate(node.input) if name), given.values, strict=True))
    axes = list(attributes["axes"].ints) if "axes" in attributes else range(len(shape))
    at = 2 if node.op_type == "Resize" and given.opset >= 11 else 1
    scales = np.asarray(operands.get(at, attributes["scales"].floats if "scales" in attributes else ()))
    if not scales.size:
        scales = operands[3] / np.array([shape[axis] for axis in axes], np.float64)
    taps = 4 * max(1, 1 / float(scales.min()))
    return makes(given, given.values[0].size * max(1, float(scales.max())) ** len(axes) * taps)


def inferred(given: Constants) -> float:
    """The elements of all outputs by onnx's shape inference.  Raises if it infers none."""
    node, opset = given.node, given.opset
    known = dict(zip((name for name in node.input if name), given.values, strict=True))
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in known.items()}
    made = onnx.shape_inference.infer_node_outputs(
        onnx.defs.get_schema(node.op_type, opset, ""),
        node,
        {name: helper.make_tensor_type_proto(kinds[name], value.shape) for name, value in known.items()},
        {name: onnx.numpy_helper.from_array(value, name) for name, value in known.items() if value.size < 64},
        opset_imports=[helper.make_opsetid("", opset)],
    )
    total = 0.0
    for name in filter(None, node.output):
        shape = made[name].tensor_type.shape.dim
        if not made[name].tensor_type.HasField("shape") or not all(d.HasField("dim_value") for d in shape):
            raise ValueError("onnx infers no size")
        total += product([d.dim_value for d in shape])
    return total
