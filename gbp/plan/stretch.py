"""`Stretch`: instructions that run piece by piece, on some samples after others (`runtime/pieces.py`).

Here such stretches are chosen for the caches.  The first tensors of a network are its largest.  Those of a
batch leave a processor's caches before the next layer reads them.  So the layers whose tensors are larger
than their weights run on one sample for each thread at a time, in the same memory.  The other layers run on
all samples, because their weights are better read once.  `tail.py` chooses stretches for the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .aliasing import BufferSlice
from .arena import Arena, rounded
from .layout import Instruction

#: The cost of a weight that each piece reads again, in numbers of tensors that stay in a cache instead.
_COST = 4
#: The least gain of a stretch, in such numbers for each sample: below it, the calls of kernels cost more.
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
        """Where the memory of a piece fits into that of all samples, beside the shared buffers.

        Parameters
        ----------
        arena
            The memory of the instructions, for one sample.
        n, some
            All samples, and those of a piece.

        Returns
        -------
        The first float of the piece in the memory of all samples; None where there is no room.
        """
        taken = [
            (n * arena.begins[root], rounded(n * (arena.begins[root] + size)))
            for root, size in self.shared.items()
        ]
        for begin in (0, *(behind for _, behind in taken)):
            end = begin + some * arena.size
            is_free = all(end <= low or begin >= high for low, high in taken)
            if is_free and end <= n * arena.size:
                return begin
        return None


def piecewise_forward(
    instructions: Sequence[Instruction],
    slices: Mapping[str, BufferSlice],
    sizes: Mapping[str, int],
    image: str,
) -> Stretch | None:
    """The first instructions of a plan that keeps no activations; None where no such are worth it.

    The stretch may end where one buffer alone is read later: its last output.  The end with the largest gain
    is chosen.

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
    alive = {slices[image].root}  # buffers that are read later
    found, gain, most = None, 0, _LEAST - 1
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

    The last one may add up all samples, so it runs on all.  The stretch may begin where it has two buffers in
    common with others, what it reads first and what it writes last, and where neither is cleared in it.  The
    beginning with the largest gain is chosen.

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
    """The gain of a cache where an instruction runs on few samples, less the cost of reading weights again.

    `names`: the tensors that it reads and writes, all of whose numbers are then in the cache.
    """
    parts, output = [slices[name] for name in names], slices[instruction.output]
    numbers = sum(sizes[part.root] // part.row * (part.stop - part.start) for part in parts)
    pixels = sizes[output.root] // output.row
    # A weight is multiplied once for each pixel, so there are macs / pixels of them.
    return numbers - _COST * instruction.macs // max(1, pixels)
