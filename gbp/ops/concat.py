"""Concatenating and splitting along an axis (ONNX Concat, Split).

y = [x_0 | x_1 | …]     gx_i = the part of gy at x_i's place
y = x[start:stop]       gx   = gy at [start:stop], 0 elsewhere

Along the innermost axis of memory the plan makes parts slices of the whole (`plan/aliasing.py`), and no byte
moves.  The steps here are for the other cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.pointwise import pointwise_bwd, pointwise_fwd
from .facts import Fact
from .folded import as_operands
from .node import Node
from .shape import Reshape
from .step import NO_MASK, NO_TENSOR, NO_WEIGHTS, Clipped, Context, Floats, GradientSlot, Step, pixels


def _at(order: Order, axis: int, start: int, stop: int) -> tuple[slice, ...]:
    """[start:stop] along `axis` of a tensor in memory `order`."""
    return (*(slice(None) for _ in range(1 + order.index(axis))), slice(start, stop))


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Joins tensors along `axis`.

    `constants`: the parts that are constant, and so the same for all samples: position among all parts →
    array.
    """

    axis: int
    constants: Mapping[int, Floats] = field(default_factory=dict)

    moves_only = True

    @property
    def parameters(self) -> int:
        return sum(c.size for c in self.constants.values())

    def shape(self, *x: Shape) -> Shape:
        total = sum(part[self.axis] for part in self._parts(x))
        return *x[0][: self.axis], total, *x[0][self.axis + 1 :]

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        ends = [0, *accumulate(part[self.axis] for part in self._parts(x))]
        slices = [_at(order, self.axis, a, b) for a, b in pairwise(ends)]
        fixed = [(slices[i], target.constant(c.transpose(0, *order))) for i, c in self.constants.items()]
        parts = tuple(part for i, part in enumerate(slices) if i not in self.constants)
        along_rows = order[-1] == self.axis
        return ConcatWithConstantsStep(parts, along_rows, fixed) if fixed else ConcatStep(parts, along_rows)

    def _parts(self, x: tuple[Shape, ...]) -> list[Shape]:
        """The shapes of all parts."""
        computed = iter(x)
        count = len(x) + len(self.constants)
        return [self.constants[i].shape if i in self.constants else next(computed) for i in range(count)]


@dataclass(frozen=True)
class AxisSlice(Op):
    """One output of Split: x[start:stop] along `axis`."""

    axis: int
    start: int
    stop: int

    moves_only = True

    def shape(self, *x: Shape) -> Shape:
        return *x[0][: self.axis], self.stop - self.start, *x[0][self.axis + 1 :]

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return AxisSliceStep(_at(order, self.axis, self.start, self.stop), order[-1] == self.axis)


def parse_concat(node: Node) -> Op:
    indices = range(len(node.operands))
    computed = [node.shape(i) for i in indices if not node.is_constant(i)]
    constants = {i: node.constant(i, infinite=True) for i in indices if node.is_constant(i)}
    x = computed[0]
    if len(node.operands) == 1:  # along any axis, the batch's too
        node.axis(node.integer("axis", 1), len(x))
        return Reshape(x)
    axis = node.axis_within(node.integer("axis", 1), len(x))
    # A constant is the same for all samples.
    if any(c.ndim != len(x) or c.shape[0] not in (1, x[0]) for c in constants.values()):
        node.invalid(f"a constant does not join {list(x)}.")
    if any((c != c[:1]).any() for c in constants.values()):
        node.refuse("a constant differs by sample.", supported="the same for all samples")
    shapes = computed + [(x[0], *c.shape[1:]) for c in constants.values()]
    if any(len(s) != len(x) or s[:axis] + s[axis + 1 :] != x[:axis] + x[axis + 1 :] for s in shapes):
        node.invalid(
            f"inputs of shapes {', '.join(str(list(s)) for s in shapes)} do not join along axis {axis}."
        )
    return Concat(axis, {i: c[:1] for i, c in constants.items()})


def parse_split(node: Node) -> list[Op]:
    """One `AxisSlice` for each output."""
    axis = node.axis_within(node.integer("axis", 0), len(node.shape(0)))
    return [AxisSlice(axis, a, b) for a, b in parts(node, node.shape(0)[axis])]


def parts(node: Node, size: int) -> list[tuple[int, int]]:
    """Where the outputs of a Split of `size` elements begin and end.

    Sizes are an attribute before opset 13, an input since, or equal.
    """
    count = len(node.proto.output)
    sizes = node.constant_ints(1) if node.has(1) else node.integers("split")
    if node.integer("num_outputs", count) != count:
        node.invalid(f"num_outputs is not the number of outputs, {count}.")
    if sizes is None:
        share = -(-size // count)
        sizes = tuple(max(0, min(share, size - i * share)) for i in range(count))
    if len(sizes) != count or min(sizes) < 0 or sum(sizes) != size:
        node.invalid(f"sizes {list(sizes)} do not part {size} elements into {count} outputs.")
    if 0 in sizes:
        found = f"output {node.proto.output[sizes.index(0)]!r} is empty: the sizes are {list(sizes)}."
        node.refuse(found, supported="sizes of at least 1")
    return list(pairwise([0, *accumulate(sizes)]))


PARSERS = {"Concat": parse_concat, "Split": parse_split}

FACTS = {"Concat": Fact("kept", folds=as_operands), "Split": Fact("other", folds=as_operands)}


class ConcatStep(Step):
    """Copies each part.

    Along rows, the innermost axis of memory, kernels copy, and apply the gate in the backward pass.
    """

    algorithm = "copy"

    def __init__(self, parts: tuple[tuple[slice, ...], ...], along_rows: bool) -> None:
        self.parts = parts
        self.along_rows = self.gates = self.repeats = self.repeats_back = along_rows
        self.part_starts = tuple(part[-1].start for part in parts) if along_rows else None

    def only(self, which: Sequence[int]) -> ConcatStep:
        """The step that copies these parts alone; the other parts are slices of y already."""
        return ConcatStep(tuple(self.parts[i] for i in which), self.along_rows)

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        identity = NO_WEIGHTS, NO_WEIGHTS, NO_TENSOR
        for part, source in zip(self.parts, x, strict=True):
            if self.along_rows:
                to = pixels(y[part])
                pointwise_fwd(pixels(source), *identity, to, NO_MASK, clip.lo, clip.hi, context.threads)
            else:
                np.copyto(y[part], source)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        for part, g in zip(self.parts, gx, strict=True):
            if self.along_rows:
                pointwise_bwd(pixels(gy[part]), NO_WEIGHTS, *g.arguments, context.threads)
            else:
                g.put(gy[part])


class ConcatWithConstantsStep(ConcatStep):
    """Writes the constants in each run again, because other tensors may have used the memory."""

    def __init__(
        self,
        parts: tuple[tuple[slice, ...], ...],
        along_rows: bool,
        fixed: Sequence[tuple[tuple[slice, ...], Floats]],
    ) -> None:
        super().__init__(parts, along_rows)
        self.part_starts, self.repeats = None, False
        self.fixed = fixed

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        super().forward(x, r, y, clip, context)
        for part, values in self.fixed:
            y[part] = values


class AxisSliceStep(Step):
    algorithm = "copy"

    def __init__(self, part: tuple[slice, ...], along_rows: bool) -> None:
        self.part = part
        self.slice_start = int(part[-1].start) if along_rows else None

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        np.copyto(y, x[0][self.part])

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (g,) = gx
        g.begin(context.threads)
        g.array[self.part] += gy
