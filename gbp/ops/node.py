"""`Node`: one ONNX node as parsers read it: its operands are shapes of tensors, or constants."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NoReturn, overload

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import ModelError, UnsupportedError
from ..graph.shapes import Shape
from ..limits import is_finite

Constant = NDArray[Any]


@dataclass(frozen=True)
class Positions:
    """A computed tensor of positions in planes, such as MaxPool's Indices.  It has no gradient."""

    shape: Shape
    plane: Shape


_TYPES = {
    onnx.AttributeProto.INT: "an integer",
    onnx.AttributeProto.FLOAT: "a number",
    onnx.AttributeProto.STRING: "text",
    onnx.AttributeProto.INTS: "a list of integers",
    onnx.AttributeProto.FLOATS: "a list of numbers",
}


@dataclass
class Node:
    """A node whose inputs are each the shape of a computed tensor, a constant, or None where left out.

    `read`: the tensors of the model that anybody reads.  `batch_is_open`: axis 0 holds a batch of any size,
    also where its size here is 1.  `samples`: the size of a batch that the file leaves open, else 1.
    """

    proto: onnx.NodeProto
    opset: int
    operands: list[Shape | Positions | Constant | None]
    read: Set[str] = frozenset()
    batch_is_open: bool = False
    samples: int = 1
    #: Before opset 6 many ops listed what memory they reuse.
    _read: set[str] = field(default_factory=lambda: {"consumed_inputs"})
    _computed: set[int] = field(default_factory=set)

    @property
    def op(self) -> str:
        return str(self.proto.op_type)

    @property
    def name(self) -> str:
        return str(self.proto.name or next(filter(None, self.proto.output), "") or self.proto.op_type)

    def refuse(self, found: str, *, supported: str | None = None, hint: str | None = None) -> NoReturn:
        """Raise UnsupportedError: the node is valid, but gbp does not support it."""
        raise UnsupportedError(found, node=self.name, op=self.op, supported=supported, hint=hint)

    def invalid(self, found: str) -> NoReturn:
        """Raise ModelError: the node contradicts the ONNX specification or the shapes of its operands."""
        raise ModelError(found, node=self.name, op=self.op)

    # Attributes.  Each is read through one of these, so that one which nobody reads is refused by name.

    def _attribute(self, name: str, kind: str) -> Any:
        self._read.add(name)
        for attribute in self.proto.attribute:
            if attribute.name == name:
                if _TYPES.get(attribute.type) != kind:
                    found = _TYPES.get(attribute.type, "another type")
                    self.invalid(f"attribute {name!r} is {found}, expected {kind}.")
                return onnx.helper.get_attribute_value(attribute)
        return None

    def integer(self, name: str, default: int) -> int:
        value = self._attribute(name, "an integer")
        return default if value is None else int(value)

    def number(self, name: str, default: float, infinite: bool = False) -> float:
        """A number; only `infinite` where infinity has a meaning, as of a bound."""
        value = self._attribute(name, "a number")
        if value is not None and not (np.isfinite(value) or (infinite and np.isinf(value))):
            self.invalid(f"attribute {name!r} is {value}.")
        return default if value is None else float(value)

    def text(self, name: str, default: str) -> str:
        value = self._attribute(name, "text")
        return default if value is None else value.decode(errors="replace")

    @overload
    def integers(self, name: str, default: Sequence[int]) -> tuple[int, ...]: ...
    @overload
    def integers(self, name: str) -> tuple[int, ...] | None: ...
    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...] | None:
        value = self._attribute(name, "a list of integers")
        value = default if value is None else value
        return None if value is None else tuple(int(v) for v in value)

    def numbers(self, name: str, default: Sequence[float]) -> tuple[float, ...]:
        value = self._attribute(name, "a list of numbers")
        value = tuple(default if value is None else value)
        if not np.isfinite(value).all():
            self.invalid(f"attribute {name!r} is {value}.")
        return tuple(float(v) for v in value)

    def ignore(self, *names: str) -> None:
        """Accept attributes that have no meaning in inference."""
        self._read.update(names)

    def check_all_attributes_read(self) -> None:
        for attribute in self.proto.attribute:
            if attribute.name not in self._read:
                self.refuse(f"attribute {attribute.name!r} is not known at opset {self.opset}.")

    # Operands.

    def has(self, index: int) -> bool:
        return index < len(self.operands) and self.operands[index] is not None

    def is_read(self, index: int) -> bool:
        """Whether another node reads output `index`."""
        return index < len(self.proto.output) and self.proto.output[index] in self.read

    def is_constant(self, index: int) -> bool:
        return self.has(index) and isinstance(self.operands[index], np.ndarray)

    def shape(self, index: int = 0, rank: int | None = None) -> Shape:
        """The shape of operand `index`, which must be a tensor, with `rank` axes where that is given."""
        operand = self.operands[index] if self.has(index) else None
        if operand is None:
            self.invalid(f"input {index} is missing.")
        if isinstance(operand, np.ndarray):
            self.refuse(f"input {index} is a constant.", supported="a computed tensor there")
        if isinstance(operand, Positions):
            self.refuse(f"input {index} is the Indices of a MaxPool.", supported="MaxUnpool as their reader")
        if rank is not None and len(operand) != rank:
            self.refuse(f"input {index} has shape {list(operand)}.", supported=f"{rank} axes")
        self._computed.add(index)
        return operand

    def positions(self, index: int) -> Positions | None:
        """Operand `index` if it is the Indices of a MaxPool, else None."""
        operand = self.operands[index] if self.has(index) else None
        if not isinstance(operand, Positions):
            return None
        self._computed.add(index)
        return operand

    def computed(self) -> tuple[int, ...]:
        """Which operands were read as computed tensors; to be asked once all are read."""
        for index, operand in enumerate(self.operands):
            if isinstance(operand, (tuple, Positions)) and index not in self._computed:
                self.refuse(f"input {index} is computed from the image.", supported="a constant there")
        return tuple(sorted(self._computed))

    def constant(
        self, index: int, dtype: type[np.generic] = np.float32, infinite: bool = False
    ) -> NDArray[Any]:
        """Constant operand `index` as an array of `dtype`, whatever the width of its numbers in the file.

        `infinite`: infinity has a meaning there, as of a bound or in a mask.
        """
        operand = self.operands[index] if self.has(index) else None
        if operand is None:
            self.invalid(f"input {index} is missing.")
        if not isinstance(operand, np.ndarray):
            self.refuse(f"input {index} is computed from the image.", supported="a constant there")
        found, expected = operand.dtype, np.dtype(dtype)
        if found.kind != expected.kind:
            self.invalid(f"input {index} ({self.proto.input[index]!r}) holds {found}, expected {expected}.")
        values = np.asarray(operand, dtype=dtype, order="C")
        if expected.kind == "f" and not is_finite(values):
            if not np.array_equal(np.isinf(values), np.isinf(operand)):
                self.refuse(f"input {index} ({self.proto.input[index]!r}) overflows {expected}.")
            if not infinite:
                self.refuse(
                    f"input {index} ({self.proto.input[index]!r}) holds infinity.",
                    supported="finite numbers there",
                )
        return values

    def constant_integers(self, index: int) -> NDArray[Any]:
        """Constant operand `index`, which must hold integers, in its own dtype."""
        operand = self.operands[index]
        if not isinstance(operand, np.ndarray) or operand.dtype.kind not in "iu":
            self.refuse(f"input {index} ({self.proto.input[index]!r}) is no constant of integers.")
        return operand

    def constant_ints(self, index: int) -> tuple[int, ...]:
        """Constant operand `index` as integers."""
        values = self.constant(index, np.int64)
        if values.ndim > 1:
            self.invalid(f"input {index} has shape {list(values.shape)}, expected a list of integers.")
        return tuple(int(v) for v in values.reshape(-1))

    def scalar(self, index: int, dtype: type[np.generic] = np.float32, infinite: bool = False) -> Any:
        """Constant operand `index`, which holds one number; see `constant`."""
        values = self.constant(index, dtype, infinite)
        if values.size != 1:
            self.invalid(f"input {index} has shape {list(values.shape)}, expected a scalar.")
        return values.reshape(()).item()

    def axis(self, axis: int, rank: int) -> int:
        """`axis` counted from the front."""
        if not -rank <= axis < rank:
            self.invalid(f"axis {axis} is outside a tensor of {rank} axes.")
        return axis % rank

    def axes(self, axes: Sequence[int], rank: int) -> tuple[int, ...]:
        """`axes` counted from the front, all of them different."""
        counted = tuple(self.axis(axis, rank) for axis in axes)
        if len(set(counted)) != len(counted):
            self.invalid(f"axes {list(axes)} repeat.")
        return counted

    def axis_within(self, axis: int, rank: int) -> int:
        """`axis` counted from the front, which is not the batch."""
        axis = self.axis(axis, rank)
        if axis == 0:
            self.refuse("axis is 0, the batch.", supported="any other axis")
        return axis
