"""`Forward`: the memory of a forward run, and the instructions on it, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..devices.base import Array, Device, Entry, Repeater, Samples
from ..kernels.codegen.gate import Gate
from ..kernels.parallel.program import perform
from ..kernels.pointwise import pointwise_bwd
from ..limits import elements
from ..ops.step import NO_MASK, NO_TENSOR, NO_WEIGHTS, Context, Floats, GradientSlot, clear, pixels
from ..plan.backward import BackwardInstruction, GradientWrite, Route
from ..plan.layout import Instruction
from ..plan.plan import Plan
from .garbage import collected_later
from .memory import Buffers, masks_of

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
    arrays, runs, masks
        All tensors, instructions and masks, of all samples.
    backward
        Memory for a backward pass with one target for each sample, on top of the activations; None where
        backward passes read activations.
    """

    plan: Plan
    threads: int
    device: Device
    pieces: list[Piece]
    marks: Array
    arrays: dict[str, Floats]
    runs: list[_Run]
    masks: dict[str, NDArray[np.uint8]]
    backward: Buffers | None

    def __post_init__(self) -> None:
        #: Repeaters of the backward pass, by memory and gate, for as long as the pool keeps the memory.
        self._again_backward: WeakKeyDictionary[Buffers, dict[Gate, Repeater]] = WeakKeyDictionary()

    @classmethod
    @collected_later()
    def make(cls, plan: Plan, n: int, threads: int, device: Device, first: int = 0) -> Forward:
        """Allocate the memory of a run of n samples.

        Instructions before number `first` write no masks, so no backward pass may go through them.
        """
        size = plan.activations.size if plan.keeps_activations else plan.shared_size
        memory = Buffers.new(plan, plan.activations, n, size, threads, device)
        masks = masks_of(plan, n, device)
        contexts = [
            _context(instruction, memory, masks if i >= first else {}, threads, device)
            for i, instruction in enumerate(plan.instructions)
        ]
        runs = _runs(plan, memory.arrays, contexts)
        marks = device.empty((n,))
        backward, samples = None, [slice(0, n)]
        if not plan.keeps_activations:
            backward = Buffers(plan, plan.backward.arena, n, memory.floats, memory.scratch)
            samples = device.pieces(n, 4 * elements(plan.input_shape))
        pieces = []
        for part in samples:
            arrays, part_runs = memory.arrays, runs
            if len(samples) > 1:
                floats, count = memory.floats[part.start * size : part.stop * size], part.stop - part.start
                arrays = Buffers(plan, plan.activations, count, floats, memory.scratch).arrays
                part_runs = _runs(plan, arrays, [_of_samples(context, part) for context in contexts])
            entry = device.entry(arrays[plan.input.name], plan.input.logical_axes, marks[part], threads)
            pieces.append(Piece(part, entry, arrays[plan.output.name], part_runs, device))
        return cls(plan, threads, device, pieces, marks, memory.arrays, runs, masks, backward)

    def feed(self, x: Samples) -> None:
        """Run on samples x (N, …) in the model's own layout."""
        for piece in self.pieces:
            piece.entry.write(x[piece.samples])
            piece.run()

    def run_backward(self, memory: Buffers, route: Route, gate: Gate) -> None:
        """Run a backward pass.

        Parameters
        ----------
        memory
            Its memory, cut by the route's arena.
        route
            From which tensor to which.
        gate
            The gate of the rule.
        """
        again = self._again_backward.setdefault(memory, {})
        if gate not in again:
            again[gate] = self.device.repeater()
        again[gate](lambda: self._run_backward(memory, route, gate))

    @collected_later()
    def _run_backward(self, memory: Buffers, route: Route, gate: Gate) -> None:
        plan, arrays = self.plan, memory.arrays
        threads = 1 if memory.n * (route.arena.size + route.macs) < _SHORT else self.threads
        seed, leaving = memory.ends(route, self.device, self.threads)
        root = arrays[plan.slices[route.start.name].root]
        _start_backward(root, arrays[route.start.name], seed, threads)

        def gate_at(instruction: Instruction) -> Gate:
            """The gate at the output of a rectifier, or of another op that has one."""
            if not instruction.has_mask:  # an activation, whose gradient is clamped
                return Gate(0, gate.gradient)
            return gate if instruction.clip.is_rectifier else Gate(1, 0)

        def slot_of(write: GradientWrite) -> GradientSlot:
            array = arrays.get(write.tensor, NO_TENSOR)  # not in memory, where a kernel goes on at once
            if write.gated_by is None:
                return GradientSlot(array, write.accumulate)
            instruction = plan.instructions[write.gated_by]
            mask = self.masks[write.tensor] if instruction.has_mask else NO_MASK
            return GradientSlot(array, write.accumulate, mask, gate_at(instruction))

        def vjp_of(backward: BackwardInstruction) -> tuple[Callable[[], None], bool]:
            """The function that computes it, and whether a program can repeat that."""
            run = self.runs[backward.instruction]
            step, gy = run.instruction.step, arrays[run.instruction.output]
            gx = tuple(map(slot_of, backward.inputs))
            context = replace(run.context, threads=threads, scratch=memory.scratch)
            if backward.maker is None:
                return partial(step.vjp, gy, gx, context), step.repeats_back
            made = self.runs[backward.maker.instruction]
            maker, ends = made.instruction.step, tuple(map(slot_of, backward.maker.inputs))
            own = replace(made.context, threads=threads, scratch=memory.scratch)
            vjp = partial(maker.vjp_through, step, gy, context, gx[0], ends, own)
            return vjp, step.repeats_back and maker.repeats_back

        for backward in route.instructions:
            run = self.runs[backward.instruction]
            instruction, gy = run.instruction, arrays[run.instruction.output]
            for part in backward.zeros:
                clear(memory.at(part), threads)
            if backward.gates_first:
                _through_gate(gy, GradientSlot(gy, False, run.context.mask, gate_at(instruction)), threads)
            perform(*vjp_of(backward))
            if backward.residual is not None:
                _through_gate(gy, slot_of(backward.residual), threads)
        for part in route.zeros:
            clear(memory.at(part), threads)
        leaving.settle()


class Piece:
    """Some samples of a forward run, which are computed while others are on their way to the device.

    A piece has activations of its own, because those of one tensor may take the memory of another's before.
    """

    def __init__(self, samples: slice, entry: Entry, y: Floats, runs: list[_Run], device: Device) -> None:
        self.samples, self.entry, self.y, self.runs = samples, entry, y, runs
        self._again = device.repeater()

    def run(self) -> None:
        """Run the instructions on the samples that were written to the entry."""
        self._again(self._run)

    @collected_later()
    def _run(self) -> None:
        self.entry.settle()
        for run in self.runs:
            perform(run.forward, run.instruction.step.repeats)


@dataclass(frozen=True)
class _Run:
    """One instruction with its arrays: inputs x, residual r (or NO_TENSOR), output y, and its context."""

    instruction: Instruction
    x: tuple[Floats, ...]
    r: Floats
    y: Floats
    context: Context

    def forward(self) -> None:
        self.instruction.step.forward(self.x, self.r, self.y, self.instruction.clip, self.context)


def _runs(plan: Plan, arrays: dict[str, Floats], contexts: list[Context]) -> list[_Run]:
    """All instructions, on these arrays."""
    runs = []
    for instruction, context in zip(plan.instructions, contexts, strict=True):
        x, r = tuple(arrays[name] for name in instruction.inputs), instruction.residual
        runs.append(_Run(instruction, x, arrays[r] if r else NO_TENSOR, arrays[instruction.output], context))
    return runs


def _context(
    instruction: Instruction,
    memory: Buffers,
    masks: dict[str, NDArray[np.uint8]],
    threads: int,
    device: Device,
) -> Context:
    """The arrays that one instruction keeps of a run for its vjp; without its mask where `masks` has none."""
    step, arrays = instruction.step, memory.arrays
    y = arrays[instruction.output]
    return Context(
        threads,
        memory.scratch,
        mask=masks.get(instruction.output, NO_MASK) if instruction.has_mask else NO_MASK,
        switches=device.empty(y.shape, step.switches) if step.switches else NO_MASK,
        x=tuple(arrays[name] for name in instruction.inputs) if step.saves_x else (),
        y=y if step.saves_y else NO_TENSOR,
    )


def _of_samples(context: Context, part: slice) -> Context:
    """The context of some samples, where activations are not kept."""
    return replace(context, mask=context.mask[part], switches=context.switches[part])


def _start_backward(root: Floats, gy: Floats, seed: Floats, threads: int) -> None:
    """Write the output's gradient, and 0 to the rest of its buffer.

    A network without instructions would never clear the rest.
    """
    if root.size > gy.size:
        clear(root, threads)
    gy, seed = (x if x.ndim > 1 else x[:, None] for x in (gy, seed))
    _through_gate(seed, GradientSlot(gy, False), threads)


def _through_gate(gy: Floats, gx: GradientSlot, threads: int) -> None:
    """gx (+)= gy; then the gate is applied to the result."""
    pointwise_bwd(pixels(gy), NO_WEIGHTS, *gx.arguments, threads)
