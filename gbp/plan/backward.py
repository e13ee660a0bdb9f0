"""The order in which gradients are written, added and gated, fixed before the first image.

A tensor's gradient is the sum of the contributions of its readers.  For every stretch of memory the plan
counts the contributions that are still to come.  The first contribution writes, and the later ones add.  The
last one completes the gradient; where the tensor is a rectifier's output, it applies the gate as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .aliasing import BufferSlice
from .arena import Arena, pack
from .layout import Instruction, PhysicalTensor


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
    """

    instruction: int
    zeros: tuple[BufferSlice, ...]
    gates_first: bool
    inputs: tuple[GradientWrite, ...]
    residual: GradientWrite | None

    @property
    def writes(self) -> tuple[str, ...]:
        """The tensors whose gradients it contributes to."""
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
    """

    instructions: tuple[BackwardInstruction, ...]
    zeros: tuple[BufferSlice, ...]
    start: PhysicalTensor
    end: PhysicalTensor
    arena: Arena


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
    order, zeros, handed_on = _order(instructions[:last], first, slices, masks, start.name, end.name)
    uses = [(start.name, -1), (end.name, len(order))]
    for i, back in enumerate(order):
        uses += [(name, i) for name in (instructions[back.instruction].output, *back.writes)]
    roots = ((slices[name].root, when) for name, when in uses)
    arena = pack(((handed_on.get(root, root), when) for root, when in roots), sizes)
    begins = arena.begins | {new: arena.begins[old] for new, old in handed_on.items()}
    return Route(order, zeros, start, end, Arena(begins, arena.size))


def _order(
    instructions: Sequence[Instruction],
    first: int,
    slices: Mapping[str, BufferSlice],
    masks: Mapping[str, BufferSlice],
    output: str,
    image: str,
) -> tuple[tuple[BackwardInstruction, ...], tuple[BufferSlice, ...], dict[str, str]]:
    """Order the backward pass of the instructions from number `first` on, from `output` to `image`.

    After y = f(x) + r has contributed to x's gradient, y's gradient is not needed any more, and r's gradient
    begins as an equal copy of it.  If r's gradient has no contribution yet, it takes over y's memory and
    nothing is copied.

    Returns
    -------
    The backward pass of each instruction, the last instruction first; what to clear after it; and the
    gradient buffers that are taken over, {root of r: root of y}.
    """
    stretches, spans = _stretches(slices)
    pending = np.zeros(len(stretches), np.int64)
    written, gated = np.zeros((2, len(stretches)), np.bool_)
    # Instructions with equal gates, whose masks are in one buffer, are one kind: the index of the first.
    kinds: dict[tuple[str | None, bool], int] = {}
    kind = np.full(len(stretches), -1)
    for i, instruction in enumerate(instructions):
        for name in instruction.reads:
            pending[spans[name]] += 1
        if instruction.has_gate:
            like = (
                masks[instruction.output].root if instruction.has_mask else None,
                instruction.clip.is_rectifier,
            )
            kind[spans[instruction.output]] = kinds.setdefault(like, i)
    zeros: list[BufferSlice] = []
    handed_on: dict[str, str] = {}

    def clear(span: slice) -> None:
        zeros.extend(stretches[k] for k in span.start + np.flatnonzero(~written[span]))
        written[span] = True

    def gate_of(name: str) -> int | None:
        """An instruction whose mask and gate are valid for the whole tensor; None where there is none."""
        span = spans[name]
        first = int(kind[span.start])
        if first < 0 or not (kind[span] == first).all():
            return None
        maker = instructions[first]
        in_mask = name in masks and maker.has_mask and masks[name].root == masks[maker.output].root
        return first if in_mask or not maker.has_mask else None

    def write(name: str, can_gate: bool) -> GradientWrite:
        span = spans[name]
        accumulate = bool(written[span].any())
        if accumulate:
            clear(span)
        written[span] = True
        pending[span] -= 1
        gate = gate_of(name) if can_gate and not pending[span].any() else None
        gated[span] |= gate is not None
        return GradientWrite(name, accumulate, gate)

    def hand_on(name: str, to: str) -> bool:
        y, r = slices[name], slices[to]
        if not (y.is_whole and r.is_whole) or written[spans[to]].any():
            return False
        written[spans[to]] = True
        pending[spans[to]] -= 1
        handed_on[r.root] = handed_on.get(y.root, y.root)
        return True

    written[spans[output]] = True  # by the seed
    result = []
    for i in reversed(range(first, len(instructions))):
        instruction, r = instructions[i], instructions[i].residual
        zeros = []
        clear(spans[instruction.output])
        gates_first = instruction.has_gate and not gated[spans[instruction.output]].all()
        inputs = tuple(write(name, instruction.step.gates) for name in instruction.inputs)
        residual = None if r is None or hand_on(instruction.output, to=r) else write(r, can_gate=True)
        result.append(BackwardInstruction(i, tuple(zeros), gates_first, inputs, residual))
    zeros = []
    clear(spans[image])  # parts that no layer reads
    return tuple(result), tuple(zeros), handed_on


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
