"""In what order gradients are written, added and gated, known before the first image.

A gradient is the sum of what its readers contribute.  Of every stretch of memory the plan counts how many
contributions are still to come.  So it knows which one finds nothing there and writes, which ones add, and
which is the last: where that completes the gradient of rectifiers' outputs, it applies their gates as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .aliasing import BufferSlice
from .layout import Instruction


@dataclass(frozen=True)
class GradientWrite:
    """One step's contribution to the gradient of `tensor`.

    `accumulate`: earlier ones are there already.  `gated_by`: where this is the last and can gate, the call
    whose rectifier made `tensor`; or one of those that made it together, by gates that are alike.
    """

    tensor: str
    accumulate: bool
    gated_by: int | None


@dataclass(frozen=True)
class BackwardInstruction:
    """The reverse of call `call`, in this order.

    Zeros where nobody has contributed yet and nobody will write; the call's own gate, if no contribution
    could apply it; the step's contributions to its inputs; that to the residual.
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


def backward_order(
    instructions: Sequence[Instruction],
    slices: Mapping[str, BufferSlice],
    masks: Mapping[str, BufferSlice],
    image: str,
    output: str,
) -> tuple[tuple[BackwardInstruction, ...], dict[str, str]]:
    """The reverse of each call, last call first; and which memories of gradients are handed on.

    Once y = f(x) + r has contributed to x's gradient, nobody needs y's any more, and r's begins as the same.
    Where r's memory is still empty, it is y's from then on, {r's root: y's root}, and no byte moves.
    """
    stretches, spans = _stretches(slices)
    pending = np.zeros(len(stretches), np.int64)
    written, gated = np.zeros((2, len(stretches)), np.bool_)
    # Calls whose gates are alike and whose masks, if any, lie in one memory are one kind, named by the first.
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
        """A call whose mask and gate are those of all of this tensor."""
        span = spans[name]
        first = int(kind[span.start])
        if first < 0 or not (kind[span] == first).all():
            return None
        made = instructions[first]
        in_mask = name in masks and made.has_mask and masks[name].root == masks[made.output].root
        return first if in_mask or not made.has_mask else None

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
    for i in reversed(range(len(instructions))):
        instruction, r = instructions[i], instructions[i].residual
        zeros = []
        clear(spans[instruction.output])
        gates_first = instruction.has_gate and not gated[spans[instruction.output]].all()
        inputs = tuple(write(name, instruction.step.gates) for name in instruction.inputs)
        residual = None if r is None or hand_on(instruction.output, to=r) else write(r, can_gate=True)
        if i == 0:
            clear(spans[image])  # of which nobody read these parts
        result.append(BackwardInstruction(i, tuple(zeros), gates_first, inputs, residual))
    return tuple(result), handed_on


def _stretches(slices: Mapping[str, BufferSlice]) -> tuple[list[BufferSlice], dict[str, slice]]:
    """All memories, cut wherever a tensor begins or ends; and the stretches of each tensor."""
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
