"""`Cut`: instructions of a run that are carried out piece by piece, for some samples after others.

    why                                        which instructions                     memory of a piece
    a batch takes more memory than allowed     those before `Plan.tail`, and back     that of the last piece
    its tensors leave the caches too early     `Plan.piecewise`, `Route.piecewise`    that of the last piece
    a device waits for samples                 all of the forward run                 its own

The other instructions run once, on all samples.  A piece reads and writes its rows of their buffers.
Masks and switches, which are small, are kept for all samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..devices.base import Device, Entry
from ..kernels.parallel.program import perform
from ..limits import elements
from ..plan.arena import Arena
from ..plan.plan import Plan
from ..plan.stretch import Stretch
from .bound import BoundInstruction
from .garbage import collected_later
from .memory import Buffers, scratch_floats


@dataclass(frozen=True)
class Cut:
    """How some instructions of a run are carried out piece by piece.

    Parameters
    ----------
    stretch
        The instructions, and what they share with the others.
    arena
        The memory of a piece.
    parts
        The rows of each piece, and their samples: a backward pass has a row for each target of a sample.
    begin
        The first float of a piece in the memory of all rows.
    is_apart
        Whether each piece has memory of its own, because the next one is brought in meanwhile.
    """

    stretch: Stretch
    arena: Arena
    parts: Sequence[tuple[slice, slice]]
    begin: int = 0
    is_apart: bool = False

    def pieces(self, memory: Buffers) -> Iterator[tuple[slice, Buffers]]:
        """The samples of each piece, and its part of the memory of all rows."""
        for rows, samples in self.parts:
            begin = self.begin + rows.start * self.arena.size * self.is_apart
            is_all = len(self.parts) == 1
            yield samples, memory if is_all else memory.piece(self.arena, rows, begin, self.stretch.shared)


def cut_for_caches(stretch: Stretch | None, arena: Arena, n: int, targets: int, together: int) -> Cut | None:
    """Pieces that take memory which the rows of all samples leave free at the time.

    Parameters
    ----------
    stretch, arena
        The instructions, and their memory.
    n, targets
        How many samples, and how many rows each of them has.
    together
        The rows of a piece.

    Returns
    -------
    None where nothing is to be cut, or where there is no room.
    """
    rows = n * targets
    begin = stretch.room(arena, rows, together) if stretch is not None and rows > together else None
    if stretch is None or begin is None:
        return None
    return Cut(stretch, arena, _parts(n, targets, together), begin)


def cut_for_device(plan: Plan, n: int, device: Device) -> Cut:
    """As many pieces as the device brings in one by one; a single one where activations are kept."""
    nbytes = 4 * elements(plan.input_shape)
    samples = [slice(0, n)] if plan.keeps_activations else device.pieces(n, nbytes)
    stretch = Stretch(0, len(plan.instructions), {})
    return Cut(stretch, plan.activations, [(part, part) for part in samples], is_apart=True)


def cut_at_tail(
    plan: Plan, n: int, samples_per_piece: int, threads: int, device: Device
) -> tuple[Buffers, Cut, Cut]:
    """The memory of a run of more samples than it holds at once, and the cuts of it, forward and backward.

    The tail's buffers, of all samples, are at the beginning.  One piece is behind them.
    """
    tail = plan.tail
    assert tail is not None
    most = -(-n // -(-n // samples_per_piece))  # all pieces are of nearly equal size
    begin = n * tail.arena.size
    floats = device.empty((begin + most * plan.shared_size,))
    memory = Buffers(plan, tail.arena, n, floats, device.empty((scratch_floats(plan, most, threads),)))
    parts = _parts(n, 1, most)
    return (
        memory,
        Cut(tail.forward, plan.activations, parts, begin),
        Cut(tail.backward, plan.backward.arena, parts, begin),
    )


def _parts(n: int, targets: int, together: int) -> list[tuple[slice, slice]]:
    """Cut rows, so many targets for each of n samples, into parts of at most `together`; with their samples.

    A part has all targets of its samples, or some of one sample.
    """
    whole, parts = max(1, together // targets), []
    for first in range(0, n, whole):
        samples = slice(first, min(first + whole, n))
        stop = samples.stop * targets
        for start in range(first * targets, stop, together):
            parts.append((slice(start, min(start + together, stop)), samples))
    return parts


class Piece:
    """Some samples of a forward run, and the instructions that run on them alone."""

    def __init__(
        self, samples: slice, entry: Entry, bound: Sequence[BoundInstruction], device: Device
    ) -> None:
        self.samples, self.entry, self.bound = samples, entry, bound
        self._again = device.repeater()

    def run(self) -> None:
        """Run the instructions on the samples that were written to the entry."""
        self._again(self.perform)

    @collected_later()
    def perform(self) -> None:
        """The same, as a part of a larger work or not."""
        self.entry.settle()
        for run in self.bound:
            perform(run.forward, run.instruction.step.repeats)
