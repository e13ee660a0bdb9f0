"""`Forward`: the memory of a forward run, and the instructions on it, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..devices.base import Array, Device, Repeater, Samples
from ..kernels.codegen.gate import Gate
from ..kernels.parallel.program import perform
from ..ops.step import Floats, clear
from ..plan.backward import Route
from ..plan.plan import Plan
from .bound import BoundInstruction, bind, contexts_of, go_back, of_samples, start_backward
from .garbage import collected_later
from .memory import Buffers, masks_of
from .pieces import Cut, Piece, cut_at_tail, cut_for_caches, cut_for_device
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
        All tensors, bound instructions and masks, of all samples.  Tensors that only pieces have are those of
        one piece.
    rest
        The instructions that run on all samples after the pieces.
    scores
        The scores of each piece, or of all.
    backward
        Memory for a backward pass with one target for each sample, on top of the activations; None where
        backward passes read activations.
    tail_cut
        How a backward pass in that memory is cut, where the plan's tail says it.
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
    tail_cut: Cut | None
    together: int

    def __post_init__(self) -> None:
        self._again, self._again_rest = self.device.repeater(), self.device.repeater()
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
        samples_per_piece: int | None = None,
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
        samples_per_piece
            How many samples run at once before the plan's tail; None for all.
        """
        together, tail_cut, backward = together or n, None, None
        if samples_per_piece is not None and n > samples_per_piece:
            memory, cut, tail_cut = cut_at_tail(plan, n, samples_per_piece, threads, device)
            backward, together = memory, n
        else:
            size = plan.activations.size if plan.keeps_activations else plan.shared_size
            memory = Buffers.new(plan, plan.activations, n, size, threads, device)
            cut = cut_for_caches(plan.piecewise, plan.activations, n, 1, together) or cut_for_device(
                plan, n, device
            )
            if not plan.keeps_activations:
                backward = Buffers(plan, plan.backward.arena, n, memory.floats, memory.scratch)
        masks = masks_of(plan, n, device)
        contexts = contexts_of(plan, n, memory, masks, threads, device, first_masked)
        image, marks, stop = plan.input, device.empty((n,)), cut.stretch.stop
        pieces, scores = [], []
        for samples, own in cut.pieces(memory):
            bound = bind(plan, own.arrays, [of_samples(context, samples) for context in contexts])
            entry = device.entry(own.arrays[image.name], image.logical_axes, marks[samples], threads)
            pieces.append(Piece(samples, entry, bound[:stop], device))
            scores.append(own.arrays[plan.output.name])
        arrays = own.arrays | memory.arrays
        bound = bind(plan, arrays, contexts)
        if stop < len(bound):
            scores = [arrays[plan.output.name]]
        return cls(
            plan,
            threads,
            device,
            pieces,
            marks,
            arrays,
            bound,
            masks,
            bound[stop:],
            scores,
            backward,
            tail_cut,
            together,
        )

    def feed(self, x: Samples) -> None:
        """Run on samples x (N, …) in the model's own layout."""
        if len(self.pieces) == 1:
            self.pieces[0].entry.write(x)
            self._again(self._run)
            return
        parts = [(piece, x[piece.samples]) for piece in self.pieces]
        if all(piece.entry.finds(part) for piece, part in parts):
            for piece, part in parts:
                piece.entry.write(part)
            self._again(self._run)
            return
        for piece, part in parts:
            piece.entry.write(part)
            piece.run()
        if self.rest:
            self._again_rest(self._run_rest)

    @collected_later()
    def _run(self) -> None:
        for piece in self.pieces:
            piece.perform()
        self._run_rest()

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
        plan, order, threads = self.plan, route.instructions, self.threads_for(memory, route)
        seed, leaving = memory.ends(route, self.device, self.threads)
        start_backward(plan, memory, route, seed, threads)
        cut = self._cut(memory, route, total)
        if cut is not None:
            first, stop = cut.stretch.first, cut.stretch.stop
            go_back(plan, order[:first], memory, self.bound, self.masks, gate, threads)
            for samples, own in cut.pieces(memory):
                bound = [replace(run, context=of_samples(run.context, samples)) for run in self.bound]
                masks = {name: mask[samples] for name, mask in self.masks.items()}
                go_back(plan, order[first:stop], own, bound, masks, gate, threads)
            order = order[stop:]
        go_back(plan, order, memory, self.bound, self.masks, gate, threads, total)
        for part in route.zeros:
            clear(memory.at(part), threads)
        leaving.settle()

    def _cut(self, memory: Buffers, route: Route, total: Total | None) -> Cut | None:
        """Which instructions of a backward pass run piece by piece in this memory."""
        if self.tail_cut is not None and memory is self.backward:
            assert total is None  # asked of runs that the memory holds whole
            return self.tail_cut
        if self.plan.keeps_activations:
            return None
        n = len(self.marks)
        return cut_for_caches(route.piecewise, route.arena, n, memory.n // n, self.together)

    def threads_for(self, memory: Buffers, route: Route) -> int:
        """How many threads a backward pass may use."""
        return 1 if memory.n * (route.arena.size + route.macs) < _SHORT else self.threads
