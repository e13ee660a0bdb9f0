"""`Forward`: the memory of a forward run, and the instructions on it, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..devices.base import Array, Device, Entry, Repeater, Samples
from ..kernels.codegen.gate import Gate
from ..kernels.parallel.program import perform
from ..limits import elements
from ..ops.step import Context, Floats, clear
from ..plan.backward import BackwardInstruction, Route
from ..plan.head import Stretch
from ..plan.plan import Plan
from .bound import BoundInstruction, bind, contexts_of, go_back, of_samples, start_backward
from .garbage import collected_later
from .memory import Buffers, masks_of
from .total import Total, TotalOfRuns

#: Floats and multiply-adds of a backward pass that one thread computes before a helper has woken up.
_SHORT = 2**18


@dataclass
class Forward:
    """A forward run of n samples and the memory that it needs; it can run again on other samples.

    Parameters
    ----------
    plan, threads, device
        The plan that runs, and the device.
    pieces
        The samples, in the order in which they are computed.
    marks
        (n,), not 0 for samples that hold NaN or infinity.
    arrays, bound, masks
        All tensors, bound instructions and masks, of all samples.
    rest
        The instructions that run on all samples after the pieces.
    scores
        The scores of each piece, or of all.
    backward
        Memory for a backward pass with one target for each sample, on top of the activations; None where
        backward passes read activations.
    together
        On how many samples layers with large tensors run together.
    """

    plan: Plan
    threads: int
    device: Device
    pieces: list[Piece]
    marks: Array
    arrays: dict[str, Floats]
    bound: list[BoundInstruction]
    masks: dict[str, NDArray[np.uint8]]
    rest: Sequence[BoundInstruction]
    scores: list[Floats]
    backward: Buffers | None
    together: int

    def __post_init__(self) -> None:
        self._again_rest = self.device.repeater()
        #: Repeaters of the backward pass, by memory, gate and whether maps are added up, for as long as the
        #: pool keeps the memory.
        self._again_backward: WeakKeyDictionary[Buffers, dict[tuple[Gate, bool], Repeater]] = (
            WeakKeyDictionary()
        )

    @classmethod
    @collected_later()
    def make(
        cls,
        plan: Plan,
        n: int,
        threads: int,
        device: Device,
        first_masked: int = 0,
        together: int | None = None,
    ) -> Forward:
        """Allocate the memory of a run of n samples.

        Parameters
        ----------
        plan, threads, device
            As for `Forward`.
        n
            Samples of the run.
        first_masked
            Instructions before this number write no masks, so no backward pass may go through them.
        together
            On how many samples layers with large tensors run together; None for all.
        """
        size = plan.activations.size if plan.keeps_activations else plan.shared_size
        memory = Buffers.new(plan, plan.activations, n, size, threads, device)
        masks = masks_of(plan, n, device)
        contexts = contexts_of(plan, n, memory, masks, threads, device, first_masked)
        bound = bind(plan, memory.arrays, contexts)
        marks = device.empty((n,))
        backward, samples = None, [slice(0, n)]
        if not plan.keeps_activations:
            backward = Buffers(plan, plan.backward.arena, n, memory.floats, memory.scratch)
            samples = device.pieces(n, 4 * elements(plan.input_shape))
        together = together or n
        head = plan.head if n > together else None
        room = None if head is None else head.room(plan.activations, n, together)
        if head is not None and room is not None:
            pieces = _piecewise(plan, head, room, together, memory, contexts, marks, threads, device)
            rest, scores = bound[head.stop :], [memory.arrays[plan.output.name]]
            samples = []
        else:
            pieces, rest, scores = [], [], []
        for part in samples:
            arrays, part_bound = memory.arrays, bound
            if len(samples) > 1:
                floats, count = memory.floats[part.start * size : part.stop * size], part.stop - part.start
                arrays = Buffers(plan, plan.activations, count, floats, memory.scratch).arrays
                part_bound = bind(plan, arrays, [of_samples(context, part) for context in contexts])
            entry = device.entry(arrays[plan.input.name], plan.input.logical_axes, marks[part], threads)
            pieces.append(Piece(part, entry, part_bound, device))
            scores.append(arrays[plan.output.name])
        return cls(
            plan,
            threads,
            device,
            pieces,
            marks,
            memory.arrays,
            bound,
            masks,
            rest,
            scores,
            backward,
            together,
        )

    def feed(self, x: Samples) -> None:
        """Run on samples x (N, …) in the model's own layout."""
        for piece in self.pieces:
            piece.entry.write(x[piece.samples])
            piece.run()
        if self.rest:
            self._again_rest(self._run_rest)

    @collected_later()
    def _run_rest(self) -> None:
        for run in self.rest:
            perform(run.forward, run.instruction.step.repeats)

    def run_backward(self, memory: Buffers, route: Route, gate: Gate, total: Total | None = None) -> None:
        """Run a backward pass.

        Parameters
        ----------
        memory
            Its memory, cut by the route's arena.
        route
            From which tensor to which.
        gate
            The gate of the rule.
        total
            How the gradients of all samples are added up; None where they are not.
        """
        if isinstance(total, TotalOfRuns):  # another one in each call
            self._run_backward(memory, route, gate, total)
            return
        again = self.repeater(memory, gate, total is not None)
        again(lambda: self._run_backward(memory, route, gate, total))

    def repeater(self, memory: Buffers, gate: Gate, adds_up: bool = False) -> Repeater:
        """The repeater of a backward pass on this memory."""
        again = self._again_backward.setdefault(memory, {})
        if (gate, adds_up) not in again:
            again[gate, adds_up] = self.device.repeater()
        return again[gate, adds_up]

    @collected_later()
    def _run_backward(self, memory: Buffers, route: Route, gate: Gate, total: Total | None) -> None:
        threads = self.threads_for(memory, route)
        seed, leaving = memory.ends(route, self.device, self.threads)
        start_backward(self.plan, memory, route, seed, threads)
        order = route.instructions
        foot = route.foot if memory.n > self.together and not self.plan.keeps_activations else None
        room = None if foot is None else foot.room(route.arena, memory.n, self.together)
        if foot is not None and room is not None:
            first, then, order = order[: foot.first], order[foot.first : foot.stop], order[foot.stop :]
            go_back(self.plan, first, memory, self.bound, self.masks, gate, threads)
            self._go_back_piecewise(then, foot, room, memory, gate, threads)
        go_back(self.plan, order, memory, self.bound, self.masks, gate, threads, total)
        for part in route.zeros:
            clear(memory.at(part), threads)
        leaving.settle()

    def _go_back_piecewise(
        self,
        instructions: Sequence[BackwardInstruction],
        foot: Stretch,
        room: int,
        memory: Buffers,
        gate: Gate,
        threads: int,
    ) -> None:
        """Run the foot for some gradients after others, all in the same memory."""
        plan, size = self.plan, memory.arena.size
        for part, samples in _rows_of(len(self.marks), memory.n // len(self.marks), self.together):
            count = part.stop - part.start
            own = Buffers(
                plan, memory.arena, count, memory.floats[room : room + count * size], memory.scratch
            )
            own.arrays |= _shared(plan, memory, foot, part)
            bound = [replace(run, context=of_samples(run.context, samples)) for run in self.bound]
            masks = {name: mask[samples] for name, mask in self.masks.items()}
            go_back(plan, instructions, own, bound, masks, gate, threads)

    def threads_for(self, memory: Buffers, route: Route) -> int:
        """How many threads a backward pass may use."""
        return 1 if memory.n * (route.arena.size + route.macs) < _SHORT else self.threads


class Piece:
    """Some samples of a forward run, which are computed while others are on their way to the device.

    A piece has activations of its own, because those of one tensor may take the memory of another's before.
    """

    def __init__(
        self, samples: slice, entry: Entry, bound: Sequence[BoundInstruction], device: Device
    ) -> None:
        self.samples, self.entry, self.bound = samples, entry, bound
        self._again = device.repeater()

    def run(self) -> None:
        """Run the instructions on the samples that were written to the entry."""
        self._again(self._run)

    @collected_later()
    def _run(self) -> None:
        self.entry.settle()
        for run in self.bound:
            perform(run.forward, run.instruction.step.repeats)


def _piecewise(
    plan: Plan,
    head: Stretch,
    room: int,
    together: int,
    memory: Buffers,
    contexts: Sequence[Context],
    marks: Array,
    threads: int,
    device: Device,
) -> list[Piece]:
    """The head for some samples after others, all in the same memory; results go where all are."""
    pieces, size = [], plan.activations.size
    for part, _ in _rows_of(memory.n, 1, together):
        count = part.stop - part.start
        floats = memory.floats[room : room + count * size]
        arrays = Buffers(plan, plan.activations, count, floats, memory.scratch).arrays
        arrays |= _shared(plan, memory, head, part)
        bound = bind(plan, arrays, [of_samples(context, part) for context in contexts])
        entry = device.entry(arrays[plan.input.name], plan.input.logical_axes, marks[part], threads)
        pieces.append(Piece(part, entry, bound[: head.stop], device))
    return pieces


def _rows_of(n: int, targets: int, together: int) -> Iterator[tuple[slice, slice]]:
    """Cut rows, so many targets for each of n samples, into parts of at most `together`; with their samples.

    A part has all targets of its samples, or some of one sample.
    """
    whole = max(1, together // targets)
    for first in range(0, n, whole):
        samples = slice(first, min(first + whole, n))
        stop = samples.stop * targets
        for start in range(first * targets, stop, together):
            yield slice(start, min(start + together, stop)), samples


def _shared(plan: Plan, memory: Buffers, stretch: Stretch, part: slice) -> dict[str, Floats]:
    """The arrays of some samples in the buffers that a stretch shares with other instructions."""
    return {name: x[part] for name, x in memory.arrays.items() if plan.slices[name].root in stretch.shared}
