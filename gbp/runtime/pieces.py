"""`InPieces`: a forward run whose pieces share memory, because only the plan's tail runs on all samples.

The planes of a batch of VGG's take more memory than is allowed.  Its dense layers take little memory, and
long to read their weights.  So pieces of the batch take the same memory one after another, up to the tail
(`plan.tail`), which then runs once.  Masks and switches, which are small, are kept for all samples.  The
backward pass begins with the tail, and then the pieces go back one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..devices.base import Device, Exit
from ..kernels.codegen.gate import Gate
from ..ops.step import clear
from ..plan.backward import Route
from ..plan.plan import Plan
from .bound import bind, contexts_of, go_back, of_samples, start_backward
from .forward import Forward, Piece
from .garbage import collected_later
from .memory import Buffers, masks_of
from .total import Total


class _Gathered(Exit):
    """The maps of all pieces, each taken when its piece is done."""

    def __init__(self) -> None:
        self.found: list[tuple[NDArray[np.float32], bool]] = []

    def read(self) -> tuple[NDArray[np.float32], bool]:
        maps, finite = zip(*self.found, strict=True)
        self.found = []
        return np.concatenate(maps), all(finite)

    def view(self) -> NDArray[np.float32]:
        return self.read()[0]


@dataclass
class InPieces(Forward):
    """A forward run of more samples than memory holds at once.

    `arrays` and `bound` hold tensors of two sizes: the tail's, of all samples, and the others, of the piece
    that was computed last.  `backward` is the tail's memory.

    Parameters
    ----------
    gradients
        For each piece, its memory for a backward pass, and where its maps leave.
    gathered
        Where the maps of all pieces leave.
    """

    gradients: list[tuple[Buffers, Exit]]
    gathered: _Gathered

    @classmethod
    @collected_later()
    def cut(cls, plan: Plan, n: int, threads: int, device: Device, samples_per_piece: int) -> InPieces:
        """Allocate the memory of a run of n samples.

        Parameters
        ----------
        plan
            A plan with a tail.
        n
            Samples of the run.
        threads, device
            As for `Forward`.
        samples_per_piece
            The largest piece.  All are of nearly equal size.
        """
        tail, size, image = plan.tail, plan.shared_size, plan.input
        assert tail is not None
        count = -(-n // samples_per_piece)
        edges = [n * k // count for k in range(count + 1)]
        memory = Buffers.new(plan, plan.activations, -(-n // count), size, threads, device)
        gathered, seed = _Gathered(), device.empty((n, *plan.output.shape))
        floats = device.empty((n * tail.arena.size,))
        of_tail = Buffers(plan, tail.arena, n, floats, memory.scratch, (seed, gathered))
        masks = masks_of(plan, n, device)
        contexts = contexts_of(plan, n, memory, masks, threads, device)
        arrays = memory.arrays | of_tail.arrays
        bound = bind(plan, arrays, contexts)
        marks = device.empty((n,))
        pieces, gradients = [], []
        for begin, end in pairwise(edges):
            part = slice(begin, end)
            own = memory.floats[: (end - begin) * size]
            handed_over = {name: array[part] for name, array in of_tail.arrays.items()}
            forward = Buffers(plan, plan.activations, end - begin, own, memory.scratch)
            back = Buffers(plan, plan.backward.arena, end - begin, own, memory.scratch)
            for buffers in (forward, back):
                buffers.arrays |= handed_over
            part_bound = bind(plan, forward.arrays, [of_samples(context, part) for context in contexts])
            entry = device.entry(forward.arrays[image.name], image.logical_axes, marks[part], threads)
            pieces.append(Piece(part, entry, part_bound[: tail.first], device))
            leaving = device.exit(back.arrays[image.name], image.logical_axes, threads)
            gradients.append((back, leaving))
        return cls(
            plan,
            threads,
            device,
            pieces,
            marks,
            arrays,
            bound,
            masks,
            bound[tail.first :],
            [arrays[plan.output.name]],
            of_tail,
            n,
            gradients,
            gathered,
        )

    def run_backward(self, memory: Buffers, route: Route, gate: Gate, total: Total | None = None) -> None:
        is_in_pieces = memory is self.backward
        if not is_in_pieces:  # memory of all samples, as for several targets each
            super().run_backward(memory, route, gate, total)
            return
        assert total is None  # asked of runs that the memory holds whole
        self.repeater(memory, gate)(lambda: self._go_back_to_pieces(memory, route, gate))
        self.gathered.found = []
        for k, (back, leaving) in enumerate(self.gradients):
            leaving.prepare()
            self.repeater(back, gate)(partial(self._go_back_from_tail, k, route, gate))
            self.gathered.found.append(leaving.read())

    @collected_later()
    def _go_back_to_pieces(self, memory: Buffers, route: Route, gate: Gate) -> None:
        assert self.plan.tail is not None
        instructions, threads = route.instructions[: self.plan.tail.back], self.threads_for(memory, route)
        seed, _ = memory.ends(route, self.device, self.threads)
        start_backward(self.plan, memory, route, seed, threads)
        go_back(self.plan, instructions, memory, self.bound, self.masks, gate, threads)

    @collected_later()
    def _go_back_from_tail(self, k: int, route: Route, gate: Gate) -> None:
        assert self.plan.tail is not None
        piece, (back, leaving) = self.pieces[k], self.gradients[k]
        masks = {name: mask[piece.samples] for name, mask in self.masks.items()}
        instructions, threads = route.instructions[self.plan.tail.back :], self.threads_for(back, route)
        go_back(self.plan, instructions, back, piece.bound, masks, gate, threads)
        for part in route.zeros:
            clear(back.at(part), threads)
        leaving.settle()
