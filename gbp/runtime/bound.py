"""Instructions bound to their arrays: forward, one by one, and back along a route."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..devices.base import Array, Device
from ..kernels.codegen.gate import Gate
from ..kernels.parallel.program import perform
from ..kernels.pointwise import pointwise_bwd
from ..ops.step import NO_MASK, NO_TENSOR, NO_WEIGHTS, Context, Floats, GradientSlot, clear, pixels
from ..plan.backward import BackwardInstruction, GradientWrite, Route
from ..plan.layout import Instruction
from ..plan.plan import Plan
from .memory import Buffers
from .total import Total


@dataclass(frozen=True)
class BoundInstruction:
    """One instruction with its arrays: inputs x, residual r (or NO_TENSOR), output y, and its context."""

    instruction: Instruction
    x: tuple[Floats, ...]
    r: Floats
    y: Floats
    context: Context

    def forward(self) -> None:
        self.instruction.step.forward(self.x, self.r, self.y, self.instruction.clip, self.context)


def bind(plan: Plan, arrays: Mapping[str, Floats], contexts: Sequence[Context]) -> list[BoundInstruction]:
    """All instructions of a plan, bound to these arrays and contexts."""
    bound = []
    for instruction, context in zip(plan.instructions, contexts, strict=True):
        x = tuple(arrays[name] for name in instruction.inputs)
        r = arrays[instruction.residual] if instruction.residual else NO_TENSOR
        bound.append(BoundInstruction(instruction, x, r, arrays[instruction.output], context))
    return bound


def contexts_of(
    plan: Plan,
    n: int,
    memory: Buffers,
    masks: Mapping[str, Array],
    threads: int,
    device: Device,
    first_masked: int = 0,
) -> list[Context]:
    """The arrays that each instruction keeps of a run for its vjp.

    Parameters
    ----------
    plan, n
        The plan, and how many samples are run.
    memory
        That of the activations.
    masks
        Those of the rectifiers' outputs, by tensor.
    threads
        How many threads a kernel may use.
    device
        Where switches are made.
    first_masked
        Instructions before this number write no masks.
    """
    none: Mapping[str, Array] = {}
    return [
        _context(instruction, plan, n, memory, masks if i >= first_masked else none, threads, device)
        for i, instruction in enumerate(plan.instructions)
    ]


def _context(
    instruction: Instruction,
    plan: Plan,
    n: int,
    memory: Buffers,
    masks: Mapping[str, Array],
    threads: int,
    device: Device,
) -> Context:
    """The arrays that one instruction keeps of a run for its vjp; without its mask where `masks` has none."""
    step, arrays, shape = instruction.step, memory.arrays, plan.tensors[instruction.output].shape
    return Context(
        threads,
        memory.scratch,
        mask=masks.get(instruction.output, NO_MASK) if instruction.has_mask else NO_MASK,
        switches=device.empty((n, *shape), step.switches) if step.switches else NO_MASK,
        x=tuple(arrays[name] for name in instruction.inputs) if step.saves_x else (),
        y=arrays[instruction.output] if step.saves_y else NO_TENSOR,
    )


def of_samples(context: Context, part: slice) -> Context:
    """The context of some samples, where activations are not kept."""
    return replace(context, mask=context.mask[part], switches=context.switches[part])


def go_back(
    plan: Plan,
    instructions: Sequence[BackwardInstruction],
    memory: Buffers,
    bound: Sequence[BoundInstruction],
    masks: Mapping[str, Array],
    gate: Gate,
    threads: int,
    total: Total | None = None,
) -> None:
    """Run instructions of a backward pass.

    Parameters
    ----------
    plan, instructions
        The plan, and what is carried out, in order.
    memory
        That of the gradients.
    bound, masks
        The bound instructions and the masks of the forward run of the same samples.
    gate
        The gate of the rule.
    threads
        How many threads a kernel may use.
    total
        How the last instruction adds up the gradients of all samples; None where it does not.
    """
    arrays = memory.arrays

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
        mask = masks[write.tensor] if instruction.has_mask else NO_MASK
        return GradientSlot(array, write.accumulate, mask, gate_at(instruction))

    def vjp_of(backward: BackwardInstruction) -> tuple[Callable[[], None], bool]:
        """The function that computes it, and whether a program can repeat that."""
        run = bound[backward.instruction]
        step, gy = run.instruction.step, arrays[run.instruction.output]
        gx = tuple(map(slot_of, backward.inputs))
        context = replace(run.context, threads=threads, scratch=memory.scratch)
        if backward.maker is None:
            return partial(step.vjp, gy, gx, context), step.repeats_back
        made = bound[backward.maker.instruction]
        maker, ends = made.instruction.step, tuple(map(slot_of, backward.maker.inputs))
        own = replace(made.context, threads=threads, scratch=memory.scratch)
        if total is not None and backward is instructions[-1]:
            return total.through(maker, step, gy, context, gx[0], ends, own)
        vjp = partial(maker.vjp_through, step, gy, context, gx[0], ends, own)
        return vjp, step.repeats_back and maker.repeats_back

    for backward in instructions:
        run = bound[backward.instruction]
        instruction, gy = run.instruction, arrays[run.instruction.output]
        for part in backward.zeros:
            clear(memory.at(part), threads)
        if backward.gates_first:
            _through_gate(gy, GradientSlot(gy, False, run.context.mask, gate_at(instruction)), threads)
        perform(*vjp_of(backward))
        if backward.residual is not None:
            _through_gate(gy, slot_of(backward.residual), threads)


def start_backward(plan: Plan, memory: Buffers, route: Route, seed: Floats, threads: int) -> None:
    """Write the start's gradient, and 0 to the rest of its buffer.

    A network without instructions would never clear the rest.

    Parameters
    ----------
    plan, route
        The plan, and the backward pass that starts.
    memory
        That of the gradients.
    seed
        The gradient of the route's start, in memory order.
    threads
        How many threads a kernel may use.
    """
    gy, root = memory.arrays[route.start.name], memory.arrays[plan.slices[route.start.name].root]
    if root.size > gy.size:
        clear(root, threads)
    gy, seed = (x if x.ndim > 1 else x[:, None] for x in (gy, seed))
    _through_gate(seed, GradientSlot(gy, False), threads)


def _through_gate(gy: Floats, gx: GradientSlot, threads: int) -> None:
    """gx (+)= gy; then the gate is applied to the result."""
    pointwise_bwd(pixels(gy), NO_WEIGHTS, *gx.arguments, threads)
