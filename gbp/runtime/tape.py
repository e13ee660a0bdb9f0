"""`Tape`: one forward run of a `Plan`, with all that its backward passes need.

It keeps one bit for each unit of a rectifier and one byte for each max-pool window.  It keeps whole
activations only where a vector-Jacobian product needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from ..devices.base import Array, Device, Entry, Repeater
from ..devices.cpu import CPU
from ..kernels.codegen.gate import Gate
from ..kernels.parallel.program import perform
from ..kernels.pointwise import pointwise_bwd
from ..limits import elements
from ..ops.step import NO_MASK, NO_TENSOR, NO_WEIGHTS, Context, Floats, GradientSlot, clear, pixels
from ..plan.backward import GradientWrite, Route
from ..plan.layout import Instruction, PhysicalTensor
from ..plan.plan import Plan
from ..rules import Rule
from .memory import Buffers, MemoryPool, masks_of

T = TypeVar("T")

_NONE: NDArray[np.int64] = np.empty(0, np.int64)


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


class _Piece:
    """Some samples of a forward run, which are computed while others are on their way to the device.

    A piece has activations of its own, because those of one tensor may take the memory of another's before.
    """

    def __init__(self, samples: slice, entry: Entry, y: Floats, runs: list[_Run], device: Device) -> None:
        self.samples, self.entry, self.y, self.runs = samples, entry, y, runs
        self._again = device.repeater()

    def run(self) -> None:
        self._again(self._run)

    def _run(self) -> None:
        self.entry.settle()
        for run in self.runs:
            perform(run.forward, run.instruction.step.repeats)


@dataclass
class _Forward:
    """The memory of a forward run of n samples.

    `backward`: memory for a backward pass with one target for each sample, on top of the activations; None
    where the backward pass reads activations.
    """

    plan: Plan
    threads: int
    device: Device
    pieces: list[_Piece]
    #: (n,), not 0 for samples that hold NaN or infinity; None where the device does not look for them.
    marks: Array | None
    arrays: dict[str, Floats]
    runs: list[_Run]
    masks: dict[str, NDArray[np.uint8]]
    backward: Buffers | None

    def __post_init__(self) -> None:
        #: A weak reference to the memory of the last backward pass; and what repeats the pass there, by gate.
        self._backward_memory: Callable[[], Buffers | None] = lambda: None
        self._again_backward: dict[Gate, Repeater] = {}

    @classmethod
    def make(cls, plan: Plan, n: int, threads: int, device: Device) -> _Forward:
        size, backward = plan.activations.size if plan.keeps_activations else plan.shared_size, None
        memory = Buffers.new(plan, plan.activations, n, size, threads, device)
        masks = masks_of(plan, n, device)
        if not plan.keeps_activations:
            backward = Buffers(plan, plan.backward.arena, n, memory.floats, memory.scratch)
        arrays = memory.arrays
        contexts = []
        for instruction in plan.instructions:
            x, y = tuple(arrays[name] for name in instruction.inputs), arrays[instruction.output]
            context = Context(
                threads,
                memory.scratch,
                mask=masks[instruction.output] if instruction.has_mask else NO_MASK,
                switches=device.empty(y.shape, instruction.step.switches)
                if instruction.step.switches
                else NO_MASK,
                x=x if instruction.step.saves_x else (),
                y=y if instruction.step.saves_y else NO_TENSOR,
            )
            contexts.append(context)
        runs = _runs(plan, arrays, contexts)
        marks = device.empty((n,)) if device.looks_at_samples else None
        samples, pieces = [slice(0, n)], []
        if not plan.keeps_activations:
            samples = device.pieces(n, 4 * elements(plan.input_shape))
        for part in samples:
            own, own_runs = arrays, runs
            if len(samples) > 1:
                floats = memory.floats[part.start * size : part.stop * size]
                count = part.stop - part.start
                own = Buffers(plan, plan.activations, count, floats, memory.scratch).arrays
                own_contexts = [
                    replace(context, mask=context.mask[part], switches=context.switches[part])
                    for context in contexts
                ]
                own_runs = _runs(plan, own, own_contexts)
            own_marks = None if marks is None else marks[part]
            entry = device.entry(own[plan.input.name], plan.input.order, own_marks)
            pieces.append(_Piece(part, entry, own[plan.output.name], own_runs, device))
        return cls(plan, threads, device, pieces, marks, arrays, runs, masks, backward)

    def feed(self, x: NDArray[np.float32]) -> None:
        """Run on samples x (N, …) in the model's own layout."""
        for piece in self.pieces:
            piece.entry.write(x[piece.samples])
            piece.run()

    def run(self) -> None:
        """Run again on the samples that were fed last, where the device still has them."""
        for piece in self.pieces:
            piece.run()

    @property
    def backward_memory(self) -> Buffers | None:
        return self._backward_memory()

    def forget_backward(self) -> None:
        """Drop all references to the memory of the last backward pass."""
        self._backward_memory, self._again_backward = (lambda: None), {}

    def run_backward(self, memory: Buffers, route: Route, rectifiers: Gate) -> None:
        """Run a backward pass in `memory`, which has the route's arena.

        `rectifiers`: the gate of the rule.
        """
        if self.backward_memory is not memory:
            self.forget_backward()
            self._backward_memory = ref(memory)
        if rectifiers not in self._again_backward:
            self._again_backward[rectifiers] = self.device.repeater()
        self._again_backward[rectifiers](lambda: self._run_backward(memory, route, rectifiers))

    def _run_backward(self, memory: Buffers, route: Route, rectifiers: Gate) -> None:
        plan, arrays = self.plan, memory.arrays
        seed, leaving = memory.ends(route, self.device)
        root = arrays[plan.slices[route.start.name].root]
        _start_backward(root, arrays[route.start.name], seed, self.threads)

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

        for backward in route.instructions:
            run = self.runs[backward.instruction]
            instruction, context, gy = run.instruction, run.context, arrays[run.instruction.output]
            for part in backward.zeros:
                clear(memory.at(part), self.threads)
            if backward.gates_first:
                _through_gate(gy, GradientSlot(gy, False, context.mask, gate_of(instruction)), self.threads)
            gx = tuple(map(gradient, backward.inputs))
            vjp = partial(instruction.step.vjp, gy, gx, context.with_scratch(memory.scratch))
            perform(vjp, instruction.step.repeats_back)
            if backward.residual is not None:
                _through_gate(gy, gradient(backward.residual), self.threads)
        for part in route.zeros:
            clear(memory.at(part), self.threads)
        leaving.settle()


def _start_backward(root: Floats, gy: Floats, seed: Floats, threads: int) -> None:
    """Write the output's gradient, and 0 to the rest of its buffer.

    A network without instructions would never clear the rest.
    """
    if root.size > gy.size:
        clear(root, threads)
    gy, seed = (x if x.ndim > 1 else x[:, None] for x in (gy, seed))
    _through_gate(seed, GradientSlot(gy, False), threads)


def steps(
    plan: Plan, x: NDArray[np.float32], threads: int
) -> Iterator[tuple[Instruction, Mapping[str, Floats]]]:
    """Run `plan` on x, instruction by instruction.

    Parameters
    ----------
    plan
        A plan for the CPU.
    x
        float32 (N, …) in the model's own layout.
    threads
        How many threads a kernel may use.

    Yields
    ------
    Each instruction after it ran, and the arrays of all tensors in memory order.  The caller may read an
    array, or overwrite it: later instructions read the new values.  The array of a tensor that no later
    instruction reads may hold another tensor by now.
    """
    forward = _Forward.make(plan, len(x), threads, CPU)
    for piece in forward.pieces:
        piece.entry.write(x[piece.samples])
    for run in forward.runs:
        with CPU.running():
            run.forward()
        yield run.instruction, forward.arrays


class Tape:
    """One forward run on a batch.

    `backward` may be called any number of times, under any rules, by one thread at a time.  A tape is a
    context manager: leaving it gives the memory back to the pool.
    """

    def __init__(
        self, plan: Plan, x: NDArray[np.float32], pool: MemoryPool, threads: int, device: Device = CPU
    ) -> None:
        """Run the plan forward.

        Parameters
        ----------
        plan
            How the network is computed.
        x
            float32 (N, …) in the model's own layout.
        pool
            Where the memory comes from.
        threads
            How many threads a kernel may use.
        device
            Where the plan runs; the device that it was built for.
        """
        self._plan, self._pool, self._threads, self._device = plan, pool, threads, device
        self.n = len(x)
        self._nbytes = self.n * plan.forward_bytes
        with device.running():
            self._forward = pool.acquire(
                "forward", self.n, self._nbytes, lambda: _Forward.make(plan, self.n, threads, device)
            )
            self._forward.feed(x)
            pieces, marks = self._forward.pieces, self._forward.marks
            marked = [] if marks is None else [marks]
            found = device.read_all(*[piece.y for piece in pieces], *marked)
        #: The samples that hold NaN or infinity, where the device looks for them.
        self.not_finite = np.flatnonzero(found.pop()) if marked else _NONE
        #: Whether all maps so far are finite.
        self.is_finite = True
        scores = np.concatenate(found) if len(found) > 1 else found[0]
        logical = scores.transpose(plan.output.logical_axes)
        #: float32 (N, classes): the scores, in the model's own layout, flattened.
        self.scores: Floats = np.array(logical, np.float32).reshape(self.n, -1)

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.release("forward", self.n, self._nbytes, self._forward)

    def backward(self, rule: Rule, targets: NDArray[np.int64]) -> Floats:
        """Run a backward pass for every target.

        All K targets of a sample are computed as one batch over the sample's masks and switches.

        Parameters
        ----------
        rule
            The rule; its two booleans make the gate.
        targets
            int64 (N, K): indices into the scores.

        Returns
        -------
        The maps, float32 (N, K, …), in the model's own input layout.
        """
        plan, (n, k) = self._plan, targets.shape
        where: tuple[NDArray[np.int64], ...] = (targets.reshape(-1),)  # along a single axis, or along none
        if len(plan.output_shape) != 1:
            where = np.unravel_index(where[0], plan.output_shape) if plan.output_shape else ()

        def write(seed: Floats) -> None:
            self._device.seed(seed.transpose(plan.output.logical_axes), (np.arange(n * k), *where))

        return self._backward(rule, plan.backward, k, write)

    def vjp(self, rule: Rule, route: Route, seeds: Floats) -> Floats:
        """Run a backward pass for every seed, all K of a sample as one batch.

        Parameters
        ----------
        rule
            The rule.
        route
            Between which tensors of the plan.
        seeds
            float32 (N, K, …): gradients of the route's start, in the file's order of axes.

        Returns
        -------
        The gradients of its end, float32 (N, K, …), in the file's order of axes.
        """
        k, order = seeds.shape[1], (0, *route.start.order)

        def write(seed: Floats) -> None:
            self._device.write(seeds.reshape(-1, *seeds.shape[2:]).transpose(order), seed)

        return self._backward(rule, route, k, write)

    def _backward(self, rule: Rule, route: Route, k: int, write: Callable[[Floats], None]) -> Floats:
        """One backward pass for k seeds a sample, which `write` writes in memory order."""
        plan, m = self._plan, self.n * k
        own = k == 1 and route is plan.backward
        memory = self._forward.backward if own else None
        size, nbytes = (m, route.start.name, route.end.name), 0
        if memory is None:
            nbytes = m * plan.route_bytes(route)
            last = self._forward.backward_memory
            if last is not None and (last.n != m or last.arena is not route.arena):
                self._forward.forget_backward()  # the pool gives it up
            del last
            floats = route.arena.size
            memory = self._pool.acquire(
                "reverse",
                size,
                nbytes,
                lambda: Buffers.new(plan, route.arena, m, floats, self._threads, self._device),
            )
        with self._device.running():
            seed, leaving = memory.ends(route, self._device)
            write(seed)
            self._forward.run_backward(memory, route, Gate(int(rule.forward_gate), int(rule.gradient_gate)))
            maps, finite = leaving.read()
        self.is_finite &= finite
        maps = maps.reshape(self.n, k, *maps.shape[1:])
        if memory is not self._forward.backward:
            self._pool.release("reverse", size, nbytes, memory)
        return maps

    def value(self, tensor: PhysicalTensor) -> Floats:
        """The values of a kept tensor, float32 (N, …), in the file's order of axes."""
        with self._device.running():
            found = self._device.read(self._forward.arrays[tensor.name])
        return np.array(found.transpose(tensor.logical_axes), np.float32)


def _through_gate(gy: Floats, gx: GradientSlot, threads: int) -> None:
    """gx (+)= gy; then the gate is applied to the result."""
    pointwise_bwd(pixels(gy), NO_WEIGHTS, *gx.end, threads)
