"""`Stretch`: instructions that run piece by piece, on some samples after others.

They are the layers whose tensors are larger than their weights: the first ones, as a rule.

The first tensors of a network are its largest.  Those of a batch leave a processor's caches before the next
layer reads them.  So such layers run on one sample for each thread at a time, in the same memory, and the
other layers on all samples: these have more weights, which are better read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .aliasing import BufferSlice
from .arena import Arena, rounded
from .layout import Instruction

#: As many numbers of tensors, read and written for a sample, are worth one weight that is read again.
_WORTH = 4
#: Fewest numbers of layers that are worth a call of their own for each sample.
_LEAST = 2**18


@dataclass(frozen=True)
class Stretch:
    """Instructions, forward or backward, that follow each other.

    Parameters
    ----------
    first, stop
        Their indices: [first, stop).
    shared
        The buffers that others use before them or after them, and floats of each for one sample.
    """

    first: int
    stop: int
    shared: dict[str, int]

    def room(self, arena: Arena, n: int, some: int) -> int | None:
        """Where some samples fit beside what all samples have in the shared buffers.

        Parameters
        ----------
        arena
            That of the instructions.
        n, some
            All samples, and those that run together.

        Returns
        -------
        The first float of the arena of some samples in that of all; None where there is no room.
        """
        taken = [
            (n * arena.begins[root], rounded(n * (arena.begins[root] + size)))
            for root, size in self.shared.items()
        ]
        for begin in (0, *(end for _, end in taken)):
            end = begin + some * arena.size
            if end <= n * arena.size and all(end <= first or begin >= stop for first, stop in taken):
                return begin
        return None


def piecewise_forward(
    instructions: Sequence[Instruction],
    slices: Mapping[str, BufferSlice],
    sizes: Mapping[str, int],
    image: str,
) -> Stretch | None:
    """The first instructions of a plan that keeps no activations; None where no such are worth it.

    Parameters
    ----------
    instructions, slices
        Those of the plan.
    sizes
        Floats of each buffer.
    image
        The input.
    """
    used = [{slices[name].root for name in (*each.reads, each.output)} for each in instructions]
    last_use = {root: i for i, roots in enumerate(used) for root in roots}
    found, gain, most, alive = None, 0, _LEAST - 1, {slices[image].root}
    for i, instruction in enumerate(instructions[:-1]):
        gain += _gain(instruction, (*instruction.reads, instruction.output), slices, sizes)
        alive = {root for root in alive | used[i] if last_use.get(root, -1) > i}
        if gain > most and alive == {slices[instruction.output].root}:
            found, most = Stretch(0, i + 1, {root: sizes[root] for root in alive}), gain
    return found


def piecewise_backward(
    order: Sequence[tuple[Instruction, Sequence[str], set[str]]],
    slices: Mapping[str, BufferSlice],
    sizes: Mapping[str, int],
    start: str,
    end: str,
) -> Stretch | None:
    """The last instructions but one of a backward pass; None where no such are worth it.

    The last one may add up all samples.

    Parameters
    ----------
    order
        The backward pass: for each step its forward instruction, the tensors whose gradients it reads and
        writes, and the buffers that are cleared for it.
    slices
        Those of the plan.
    sizes
        Floats of each buffer.
    start, end
        The tensors between which it goes.
    """
    stop = len(order) - 1
    used = [{slices[name].root for name in names} for _, names, _ in order]

    def shared_at(at: int) -> set[str]:
        """The buffers that are used before and after this point."""
        return {slices[start].root}.union(*used[:at]) & {slices[end].root}.union(*used[at:])

    found, gain, most = None, 0, _LEAST - 1
    cleared = set[str]()
    for first in reversed(range(1, stop)):
        instruction, names, zeros = order[first]
        gain += _gain(instruction, names, slices, sizes)
        cleared |= zeros
        shared = shared_at(first) | shared_at(stop)
        if gain > most and len(shared) == 2 and not cleared & shared:
            found, most = Stretch(first, stop, {root: sizes[root] for root in shared}), gain
    return found


def _gain(
    instruction: Instruction,
    names: Sequence[str],
    slices: Mapping[str, BufferSlice],
    sizes: Mapping[str, int],
) -> int:
    """The numbers of these tensors, less what the weights are worth."""
    at = slices[instruction.output]
    moved = sum(sizes[s.root] // s.row * (s.stop - s.start) for s in (slices[name] for name in names))
    return moved - _WORTH * instruction.macs // max(1, sizes[at.root] // at.row)
