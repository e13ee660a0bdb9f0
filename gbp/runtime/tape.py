"""`Tape`: one forward run of a `Plan`, and what it kept for the reverse.

It keeps one bit a rectifier unit, one byte a max-pool window, and whole activations only where a
vector-Jacobian product needs them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from ..devices.base import CPU, Array, Device, Entry, Exit, Repeater
from ..kernels.codegen.gate import Gate
from ..kernels.pointwise import pointwise_bwd
from ..limits import elements
from ..ops.step import NO_MASK, NO_TENSOR, NO_WEIGHTS, Context, Floats, GradientSlot, pixels, view
from ..plan.aliasing import BufferSlice
from ..plan.backward import GradientWrite
from ..plan.layout import Instruction
from ..plan.plan import Arena, Plan
from ..rules import Rule

T = TypeVar("T")


class _Memory:
    """Arrays of all tensors for `n` samples, cut out of one arena, and scratch."""

    def __init__(self, plan: Plan, arena: Arena, n: int, floats: Floats, scratch: Floats) -> None:
        self._plan, self.n, self._begins = plan, n, arena.begins
        self._ends: tuple[Floats, Exit] | None = None
        self.floats, self.scratch = floats, scratch
        self.arrays: dict[str, Floats] = {
            name: view(self.at(part), n, *plan.tensors[name].shape)
            for name, part in plan.slices.items()
            if part.root in arena.begins
        }

    @classmethod
    def new(cls, plan: Plan, arena: Arena, n: int, size: int, threads: int, device: Device) -> _Memory:
        """In memory of its own, `size` floats a sample."""
        scratch = device.empty((_scratch(plan, n, threads),))
        return cls(plan, arena, n, device.empty((n * size,)), scratch)

    def ends(self, device: Device) -> tuple[Floats, Exit]:
        """The gradient that a reverse starts from, in the output's memory order, and where it leaves."""
        if self._ends is None:
            output, image = self._plan.output, self._plan.input
            seed = device.empty((self.n, *output.shape))
            self._ends = seed, device.exit(self.arrays[image.name], image.logical_axes)
        return self._ends

    def at(self, part: BufferSlice) -> Floats:
        """What lies there: (n, rows, elements)."""
        size = self.n * elements(self._plan.tensors[part.root].shape)
        start = self.n * self._begins[part.root]
        return part.of(self.floats[start : start + size].reshape(self.n, -1, part.row))


def _masks(plan: Plan, n: int, device: Device) -> dict[str, Array]:
    """The mask of every tensor that has one, (n, H, W, bytes)."""
    memories = {
        root: device.empty((n, *plan.tensors[root].mask_shape), np.uint8)
        for root in {part.root for part in plan.masks.values()}
    }
    return {
        name: view(part.of(memories[part.root].reshape(n, -1, part.row)), n, *plan.tensors[name].mask_shape)
        for name, part in plan.masks.items()
    }


class Pool:
    """Memory that nobody uses now, kept for the next call: fresh pages cost as much as a small network."""

    def __init__(self, most: int = 4) -> None:
        self._free: dict[tuple[str, int], list[Any]] = defaultdict(list)
        self._most = most
        self._lock = Lock()

    def take(self, kind: str, size: int, make: Callable[[], T]) -> T:
        """Memory of this kind for `size` samples; what there is of other sizes is given up first."""
        with self._lock:
            for other in [key for key in self._free if key[0] == kind and key[1] != size]:
                del self._free[other]
            if self._free[kind, size]:
                memory: T = self._free[kind, size].pop()
                return memory
        return make()

    def clear(self) -> None:
        with self._lock:
            self._free.clear()

    def give(self, kind: str, size: int, memory: Any) -> None:
        with self._lock:
            if len(self._free[kind, size]) < self._most:
                self._free[kind, size].append(memory)


def _scratch(plan: Plan, n: int, threads: int) -> int:
    most = 0
    for instruction in plan.instructions:
        fixed, each = instruction.step.scratch(threads)
        most = max(most, fixed + n * each)
    return most


@dataclass(frozen=True)
class _Run:
    """One call with its arrays: inputs, residual (or NO_TENSOR), output, and what it keeps."""

    instruction: Instruction
    x: tuple[Floats, ...]
    r: Floats
    y: Floats
    context: Context

    def forward(self) -> None:
        self.instruction.step.forward(self.x, self.r, self.y, self.instruction.clip, self.context)


def _runs(plan: Plan, arrays: dict[str, Floats], kept: list[Context]) -> list[_Run]:
    """All calls, on these arrays."""
    runs = []
    for instruction, context in zip(plan.instructions, kept, strict=True):
        x, r = tuple(arrays[name] for name in instruction.inputs), instruction.residual
        runs.append(_Run(instruction, x, arrays[r] if r else NO_TENSOR, arrays[instruction.output], context))
    return runs


class _Piece:
    """Some of the samples of a forward run, which may be computed while others are on their way.

    Each has activations of its own: those of one tensor may lie where another's lay before.
    """

    def __init__(self, samples: slice, entry: Entry, y: Floats, runs: list[_Run], device: Device) -> None:
        self.samples, self.entry, self.y, self.runs = samples, entry, y, runs
        self._again = device.repeater()

    def run(self) -> None:
        self._again(self._run)

    def _run(self) -> None:
        self.entry.settle()
        for run in self.runs:
            run.forward()


@dataclass
class _Forward:
    """Arrays and saved bits of a forward run of n samples; and memory for their reverse, one target each,
    where that may lie on the activations.
    """

    plan: Plan
    threads: int
    device: Device
    pieces: list[_Piece]
    #: (n,), not 0 for samples that hold NaN or infinity, where the device looks for them.
    marks: Floats | None
    arrays: dict[str, Floats]
    runs: list[_Run]
    masks: dict[str, NDArray[np.uint8]]
    backward: _Memory | None

    def __post_init__(self) -> None:
        #: Of the memory that the last reverse ran in, and what runs it there again, by gate.
        self._backward_memory: Callable[[], _Memory | None] = lambda: None
        self._again_backward: dict[Gate, Repeater] = {}

    @classmethod
    def make(cls, plan: Plan, n: int, threads: int, device: Device) -> _Forward:
        size, backward = plan.activations.size if plan.keeps_activations else plan.shared_size, None
        memory = _Memory.new(plan, plan.activations, n, size, threads, device)
        masks = _masks(plan, n, device)
        if not plan.keeps_activations:
            backward = _Memory(plan, plan.gradients, n, memory.floats, memory.scratch)
        arrays = memory.arrays
        kept = [
            Context(
                threads,
                memory.scratch,
                mask=masks[instruction.output] if instruction.has_mask else NO_MASK,
                switches=(
                    device.empty(arrays[instruction.output].shape, instruction.step.switches)
                    if instruction.step.switches
                    else NO_MASK
                ),
                x=tuple(arrays[name] for name in instruction.inputs) if instruction.step.saves_x else (),
                y=arrays[instruction.output] if instruction.step.saves_y else NO_TENSOR,
            )
            for instruction in plan.instructions
        ]
        marks = device.empty((n,)) if device.looks_at_samples else None
        samples, pieces = [slice(0, n)], []
        if not plan.keeps_activations:
            samples = device.pieces(n, 4 * elements(plan.input_shape))
        for part in samples:
            own, own_kept = arrays, kept
            if len(samples) > 1:
                floats = memory.floats[part.start * size : part.stop * size]
                own = _Memory(plan, plan.activations, part.stop - part.start, floats, memory.scratch).arrays
                own_kept = [replace(k, mask=k.mask[part], switches=k.switches[part]) for k in kept]
            entry = device.entry(
                own[plan.input.name], plan.input.order, None if marks is None else marks[part]
            )
            runs = _runs(plan, own, own_kept)
            pieces.append(_Piece(part, entry, own[plan.output.name], runs, device))
        return cls(plan, threads, device, pieces, marks, arrays, _runs(plan, arrays, kept), masks, backward)

    def feed(self, x: NDArray[np.float32]) -> None:
        """Run on samples x (N, …) in the model's own layout."""
        for piece in self.pieces:
            piece.entry.write(x[piece.samples])
            piece.run()

    def run(self) -> None:
        """Run on the samples that were fed last, where the device keeps them."""
        for piece in self.pieces:
            piece.run()

    @property
    def backward_memory(self) -> _Memory | None:
        return self._backward_memory()

    def forget_backward(self) -> None:
        """Hold nothing of where the last reverse ran."""
        self._backward_memory, self._again_backward = (lambda: None), {}

    def run_backward(self, memory: _Memory, rectifiers: Gate) -> None:
        """From the gradient of the output in `memory` to that of the input, through these gates."""
        if self.backward_memory is not memory:
            self.forget_backward()
            self._backward_memory = ref(memory)
        if rectifiers not in self._again_backward:
            self._again_backward[rectifiers] = self.device.repeater()
        self._again_backward[rectifiers](lambda: self._run_backward(memory, rectifiers))

    def _run_backward(self, memory: _Memory, rectifiers: Gate) -> None:
        plan, arrays = self.plan, memory.arrays
        seed, leaving = memory.ends(self.device)
        # All of it: there may be no call to do the rest.
        arrays[plan.slices[plan.output.name].root].fill(0)
        np.copyto(arrays[plan.output.name], seed)

        def gate_of(instruction: Instruction) -> Gate:
            if not instruction.has_mask:
                return Gate(0, rectifiers.gradient)
            return rectifiers if instruction.clip.is_rectifier else Gate(1, 0)

        def gradient(write: GradientWrite) -> GradientSlot:
            if write.gated_by is None:
                return GradientSlot(arrays[write.tensor], write.accumulate)
            instruction = plan.instructions[write.gated_by]
            mask = self.masks[write.tensor] if instruction.has_mask else NO_MASK
            return GradientSlot(arrays[write.tensor], write.accumulate, mask, gate_of(instruction))

        for backward in plan.backward:
            run = self.runs[backward.instruction]
            instruction, context, gy = run.instruction, run.context, arrays[run.instruction.output]
            for part in backward.zeros:
                memory.at(part).fill(0)
            if backward.gates_first:
                _through_gate(gy, GradientSlot(gy, False, context.mask, gate_of(instruction)), self.threads)
            gx = tuple(map(gradient, backward.inputs))
            instruction.step.vjp(gy, gx, context.with_scratch(memory.scratch))
            if backward.residual is not None:
                _through_gate(gy, gradient(backward.residual), self.threads)
        leaving.settle()


def steps(
    plan: Plan, x: NDArray[np.float32], threads: int
) -> Iterator[tuple[Instruction, Mapping[str, Floats]]]:
    """Run `plan` on x (N, …) call by call; each comes when it is done, with all arrays as they lie in memory.

    Until the next call an array may be read, or written for that to read.  One that no call reads any more
    may hold another tensor.
    """
    forward = _Forward.make(plan, len(x), threads, CPU)
    for piece in forward.pieces:
        piece.entry.write(x[piece.samples])
    for run in forward.runs:
        with CPU.running():
            run.forward()
        yield run.instruction, forward.arrays


class Tape:
    """A forward run on a batch; `reverse` may be called any number of times, under any rules, one at a time.

    Use as a context manager: leaving it hands the memory back.
    """

    def __init__(
        self, plan: Plan, x: NDArray[np.float32], pool: Pool, threads: int, device: Device = CPU
    ) -> None:
        """Run `plan` on x (N, …) float32 in the model's own layout."""
        self._plan, self._pool, self._threads, self._device = plan, pool, threads, device
        self.n = len(x)
        with device.running():
            self._forward = pool.take("forward", self.n, lambda: _Forward.make(plan, self.n, threads, device))
            self._forward.feed(x)
            marks = [] if self._forward.marks is None else [self._forward.marks]
            found = device.read_all(*(piece.y for piece in self._forward.pieces), *marks)
        count = len(self._forward.pieces)
        #: The samples that hold NaN or infinity, where the device looks for them.
        self.not_finite = np.flatnonzero(found[count] if marks else ())
        #: Whether all maps so far are finite.
        self.is_finite = True
        scores = np.concatenate(found[:count]) if count > 1 else found[0]
        logical = scores.transpose(plan.output.logical_axes)
        #: float32 (N, classes): the explained tensor, flattened in the model's own layout.
        self.scores: Floats = np.array(logical, np.float32).reshape(self.n, -1)

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.give("forward", self.n, self._forward)

    def backward(self, rule: Rule, targets: NDArray[np.int64]) -> Floats:
        """The maps (N, K, …) in the input's own layout, for targets (N, K), indices into the scores.

        All K targets of a sample go back as one batch over its masks and switches.
        """
        plan, (n, k) = self._plan, targets.shape
        m = n * k
        memory = self._forward.backward if k == 1 else None
        if memory is None:
            size, last = plan.gradients.size, self._forward.backward_memory
            if last is not None and last.n != m:
                self._forward.forget_backward()  # the pool gives it up
            del last
            memory = self._pool.take(
                "reverse",
                m,
                lambda: _Memory.new(plan, plan.gradients, m, size, self._threads, self._device),
            )
        where = np.unravel_index(targets.reshape(-1), plan.output_shape) if plan.output_shape else ()
        with self._device.running():
            seed, leaving = memory.ends(self._device)
            self._device.seed(seed.transpose(plan.output.logical_axes), (np.arange(m), *where))
            self._forward.run_backward(memory, Gate(int(rule.forward_gate), int(rule.gradient_gate)))
            maps, finite = leaving.read()
        self.is_finite &= finite
        maps = maps.reshape(n, k, *plan.input_shape)
        if memory is not self._forward.backward:
            self._pool.give("reverse", m, memory)
        return maps


def _through_gate(gy: Floats, gx: GradientSlot, threads: int) -> None:
    """gx (+)= gy, and of the result what passes the gate."""
    pointwise_bwd(pixels(gy), NO_WEIGHTS, *gx.end, threads)
