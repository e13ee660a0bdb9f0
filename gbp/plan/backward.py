"""The order in which gradients are written, added and gated, fixed before the first image.

A tensor's gradient is the sum of the contributions of its readers.  For every stretch of memory the plan
counts the contributions that are still to come.  The first contribution writes, and the later ones add.  The
last one completes the gradient; where the tensor is a rectifier's output, it applies the gate as well.

After y = f(x) + r has contributed to x's gradient, y's gradient is not needed any more, and r's gradient
begins as an equal copy of it.  If r's gradient has no contribution yet, it takes over y's memory and nothing
is copied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .aliasing import BufferSlice
from .arena import Arena, pack
from .layout import Instruction, PhysicalTensor
from .stretch import Stretch, piecewise_backward


@dataclass(frozen=True)
class GradientWrite:
    """One step's contribution to the gradient of a tensor.

    Parameters
    ----------
    tensor
        Its name.
    accumulate
        Whether earlier contributions are in memory already, so that this one adds.
    gated_by
        The index of the instruction whose gate this contribution applies, because it is the last one and its
        kernel can gate; else None.  Where several instructions with equal gates made the tensor, one of them.
    """

    tensor: str
    accumulate: bool
    gated_by: int | None


@dataclass(frozen=True)
class BackwardInstruction:
    """The backward pass of one instruction.  The fields are carried out in this order.

    Parameters
    ----------
    instruction
        The index of the forward instruction.
    zeros
        Slices of gradients to clear, because no contribution has written them.
    gates_first
        Whether the gradient of the output must pass the instruction's own gate first, because no contribution
        could apply it.
    inputs
        The step's contributions to its inputs.
    residual
        The contribution to the residual, if there is one and it needs a copy.
    maker
        Where one kernel computes this vjp and that of the instruction before it, which makes the only input:
        the backward pass of that one.  `inputs` then says how the gradient between them is gated, which is
        not in memory.
    """

    instruction: int
    zeros: tuple[BufferSlice, ...]
    gates_first: bool
    inputs: tuple[GradientWrite, ...]
    residual: GradientWrite | None
    maker: BackwardInstruction | None = None

    @property
    def writes(self) -> tuple[str, ...]:
        """The tensors whose gradients it contributes to."""
        if self.maker is not None:
            return self.maker.writes
        return tuple(write.tensor for write in (*self.inputs, self.residual) if write)


@dataclass(frozen=True)
class Route:
    """A backward pass from one tensor to another.

    Parameters
    ----------
    instructions
        In the order in which they are carried out.
    zeros
        Slices of the end's gradient to clear after them, because no contribution has written them.
    start
        The tensor whose gradient is given.
    end
        The tensor whose gradient is wanted: the sum of its readers' contributions.
    arena
        The memory of the gradients.
    macs
        Multiply-adds of one sample and seed.
    adds_up
        Whether the last instruction can give the sum of several samples' gradients in one go
        (`Step.adds_up`).  So it is where the first layer is a convolution whose vjp goes together with that
        of the max-pool behind it.  Switches and mask make what the pool passes on differ between samples.
        The convolution's vjp is the same linear function for all, so the sum may be taken before it.
    piecewise
        The last instructions but one, which run on a few samples at a time where no activations are kept;
        None where that is not worth it.  Where a layer adds a tensor, gradients take over each other's
        memory, so a plan with such a layer has none.
    """

    instructions: tuple[BackwardInstruction, ...]
    zeros: tuple[BufferSlice, ...]
    start: PhysicalTensor
    end: PhysicalTensor
    arena: Arena
    macs: int
    adds_up: bool
    piecewise: Stretch | None


def route_between(
    instructions: Sequence[Instruction],
    slices: Mapping[str, BufferSlice],
    masks: Mapping[str, BufferSlice],
    sizes: Mapping[str, int],
    start: PhysicalTensor,
    end: PhysicalTensor,
) -> Route | None:
    """The backward pass between two tensors of a plan; None where `start` is made before `end`.

    Only what is computed after `end` and up to `start` is part of it.

    Parameters
    ----------
    instructions, slices, masks
        Those of the plan.
    sizes
        Floats of each buffer.
    start, end
        See `Route`.
    """
    made = {instruction.output: i for i, instruction in enumerate(instructions)}
    first, last = made.get(end.name, -1) + 1, made.get(start.name, len(instructions) - 1) + 1
    if first > last:
        return None
    gradients = _Gradients(instructions[:last], slices, masks)
    gradients.start_at(start.name)
    gradients.end_at(end.name)
    order = _with_makers([gradients.go_back(i) for i in reversed(range(first, last))], instructions)
    zeros, handed_on = gradients.unwritten(end.name), gradients.handed_on
    uses = [(start.name, -1), (end.name, len(order))]
    for i, back in enumerate(order):
        uses += [(name, i) for name in (instructions[back.instruction].output, *back.writes)]
    adds_up = bool(order) and _adds_up(order[-1], end.name, instructions)
    piecewise = None
    if adds_up and not any(each.residual for each in instructions):
        piecewise = piecewise_backward(
            [_facts(back, instructions) for back in order], slices, sizes, start.name, end.name
        )
    if piecewise is not None:  # what it shares with the others is alive in its first run and in its last
        uses += [(root, when) for root in piecewise.shared for when in (piecewise.first, piecewise.stop)]
    roots = ((slices[name].root, when) for name, when in uses)
    arena = pack(((handed_on.get(root, root), when) for root, when in roots), sizes)
    begins = arena.begins | {new: arena.begins[old] for new, old in handed_on.items()}
    macs = sum(instruction.macs for instruction in instructions[first:last])
    return Route(order, zeros, start, end, Arena(begins, arena.size), macs, adds_up, piecewise)


def _facts(
    back: BackwardInstruction, instructions: Sequence[Instruction]
) -> tuple[Instruction, tuple[str, ...], set[str]]:
    """An instruction as `piecewise_backward` takes it."""
    instruction = instructions[back.instruction]
    return instruction, (instruction.output, *back.writes), {part.root for part in back.zeros}


def _adds_up(last: BackwardInstruction, end: str, instructions: Sequence[Instruction]) -> bool:
    """Whether the last instruction can write the sum of all samples' gradients of `end`."""
    maker = last.maker
    if maker is None or maker.inputs != (GradientWrite(end, False, None),):
        return False
    return instructions[maker.instruction].step.adds_up


def _with_makers(
    order: Sequence[BackwardInstruction], instructions: Sequence[Instruction]
) -> tuple[BackwardInstruction, ...]:
    """The same order, where steps that one kernel computes are one instruction."""
    found: list[BackwardInstruction] = []
    for back in order:
        if found and _takes_in(instructions[back.instruction], instructions, found[-1]):
            found[-1] = replace(found[-1], maker=back)
        else:
            found.append(back)
    return tuple(found)


def _takes_in(
    maker: Instruction,
    instructions: Sequence[Instruction],
    later: BackwardInstruction,
) -> bool:
    """Whether `later` alone gives the gradient of what `maker` makes, and one kernel computes both.

    The backward pass of `maker` comes right after `later`.  If `later` writes the whole gradient, nothing is
    left to clear or to gate before `maker`, and `later` has taken in no other step.
    """
    whole = GradientWrite(maker.output, False, later.inputs[0].gated_by if later.inputs else None)
    return (
        later.inputs == (whole,)
        and later.residual is None
        and maker.residual is None
        and maker.step.takes_in(instructions[later.instruction].step)
    )


class _Gradients:
    """How far each gradient is, while a backward pass is put in order.

    Every buffer is cut wherever a tensor begins or ends.  All elements of such a stretch get the same
    contributions.  A tensor is a run of stretches.

    Parameters
    ----------
    instructions
        All up to the one that makes the tensor where the pass starts.
    slices, masks
        Those of the plan.
    """

    def __init__(
        self,
        instructions: Sequence[Instruction],
        slices: Mapping[str, BufferSlice],
        masks: Mapping[str, BufferSlice],
    ) -> None:
        self._instructions, self._slices, self._masks = instructions, slices, masks
        self._stretches, self._spans = _stretches(slices)
        count = len(self._stretches)
        #: For each stretch: the contributions that are still to come, whether one was written, and whether
        #: the last one applied a gate.
        self._pending = np.zeros(count, np.int64)
        self._written, self._gated = bytearray(count), bytearray(count)
        #: For each stretch the gate at which its gradient ends, or -1: the index of the instruction that has
        #: it.  Instructions with equal gates, whose masks are in one buffer, count as the first of them.
        self._gate = np.full(count, -1, np.int64)
        #: The same numbers, read and written one by one: several times as fast where a tensor is one stretch,
        #: as most are.
        self._pending_one, self._gate_one = self._pending.data, self._gate.data
        #: Slices that were cleared for the present instruction.
        self._zeros: list[BufferSlice] = []
        #: The gradient buffers that are taken over, {root of r: root of y}.
        self.handed_on: dict[str, str] = {}
        equal: dict[tuple[str | None, bool], int] = {}
        for i, instruction in enumerate(instructions):
            for name in instruction.reads:
                self._wait(self._spans[name], 1)
            if instruction.has_gate:
                root = masks[instruction.output].root if instruction.has_mask else None
                first = equal.setdefault((root, instruction.clip.is_rectifier), i)
                self._gate[self._spans[instruction.output]] = first

    def _wait(self, span: slice, change: int) -> bool:
        """Count contributions that are still to come.  Returns whether there are any."""
        if span.stop - span.start == 1:
            self._pending_one[span.start] += change
            return bool(self._pending_one[span.start])
        self._pending[span] += change
        return bool(self._pending[span].any())

    def start_at(self, name: str) -> None:
        """The gradient of this tensor is given."""
        _mark(self._written, self._spans[name])

    def end_at(self, name: str) -> None:
        """The gradient of this tensor is wanted as it is before the tensor's own gate."""
        self._gate[self._spans[name]] = -1

    def go_back(self, index: int) -> BackwardInstruction:
        """The backward pass of one instruction, after those of all later ones."""
        instruction = self._instructions[index]
        self._zeros = []
        self._clear(instruction.output)
        gates_first = instruction.has_gate and 0 in self._gated[self._spans[instruction.output]]
        inputs = tuple(self._write(name, instruction.step.gates) for name in instruction.inputs)
        r, residual = instruction.residual, None
        if r is not None and not self._hand_on(instruction.output, to=r):
            residual = self._write(r, can_gate=True)
        return BackwardInstruction(index, tuple(self._zeros), gates_first, inputs, residual)

    def unwritten(self, name: str) -> tuple[BufferSlice, ...]:
        """The parts of a tensor's gradient to which nothing contributed."""
        self._zeros = []
        self._clear(name)
        return tuple(self._zeros)

    def _clear(self, name: str) -> None:
        """Clear what no contribution has written."""
        span = self._spans[name]
        at = self._written.find(0, span.start, span.stop)
        while at >= 0:
            self._zeros.append(self._stretches[at])
            at = self._written.find(0, at + 1, span.stop)
        _mark(self._written, span)

    def _write(self, name: str, can_gate: bool) -> GradientWrite:
        """Contribute to the gradient of `name` by a kernel.  `can_gate`: whether the kernel can gate."""
        span = self._spans[name]
        accumulate = 1 in self._written[span]
        if accumulate:
            self._clear(name)
        _mark(self._written, span)
        gate = self._gate_of(name) if not self._wait(span, -1) and can_gate else None
        if gate is not None:
            _mark(self._gated, span)
        return GradientWrite(name, accumulate, gate)

    def _gate_of(self, name: str) -> int | None:
        """An instruction whose mask and gate are valid for the whole tensor; None where there is none."""
        span = self._spans[name]
        first = int(self._gate_one[span.start])
        if first < 0 or (span.stop - span.start > 1 and not (self._gate[span] == first).all()):
            return None
        maker = self._instructions[first]
        if not maker.has_mask:
            return first
        in_mask = name in self._masks and self._masks[name].root == self._masks[maker.output].root
        return first if in_mask else None

    def _hand_on(self, name: str, to: str) -> bool:
        """Have the gradient of a residual take over the memory of the sum's gradient, if it can."""
        y, r = self._slices[name], self._slices[to]
        if not (y.is_whole and r.is_whole) or 1 in self._written[self._spans[to]]:
            return False
        _mark(self._written, self._spans[to])
        self._wait(self._spans[to], -1)
        self.handed_on[r.root] = self.handed_on.get(y.root, y.root)
        return True


def _mark(marks: bytearray, span: slice) -> None:
    marks[span] = b"\1" * (span.stop - span.start)


def _stretches(slices: Mapping[str, BufferSlice]) -> tuple[list[BufferSlice], dict[str, slice]]:
    """All buffers, cut wherever a tensor begins or ends; and each tensor's range of these stretches."""
    edges: dict[tuple[str, int], set[int]] = defaultdict(set)
    for at in slices.values():
        edges[at.root, at.row] |= {at.start, at.stop}
    stretches: list[BufferSlice] = []
    index: dict[tuple[str, int], int] = {}
    for (root, row), found in edges.items():
        ordered = sorted(found)
        index |= {(root, edge): len(stretches) + k for k, edge in enumerate(ordered)}
        stretches += [BufferSlice(root, row, *ends) for ends in pairwise(ordered)]
    return stretches, {
        name: slice(index[at.root, at.start], index[at.root, at.stop]) for name, at in slices.items()
    }
