"""Fusion: a sum and a rectifier become the epilogue of the step that makes their input.

    conv → Add(·, r) → Relu        becomes        conv with residual r, clipped, in one pass over y

A tensor stays where it has another reader or a view, or where it holds the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..ops.step import UNCLIPPED
from ..ops.tap import TapStep
from .layout import Instruction, PhysicalTensor


def fuse(instructions: list[Instruction], remain: set[str]) -> list[Instruction]:
    """Fuse sums and rectifiers.  `remain`: tensors that something besides the instructions needs."""
    return _fuse_clips(_fuse_residuals(instructions, remain), remain)


def _read_once(instructions: list[Instruction], remain: set[str]) -> set[str]:
    """Tensors that one instruction reads, once, and nothing else."""
    counts = dict.fromkeys(remain, 2)
    for instruction in instructions:
        for name in instruction.reads:
            counts[name] = counts.get(name, 0) + 1
    return {name for name, count in counts.items() if count == 1}


def _fuse_residuals(instructions: list[Instruction], remain: set[str]) -> list[Instruction]:
    """Have the step that makes one operand of a sum add the other one, where nothing else reads the first."""
    once = _read_once(instructions, remain)
    makers = {instruction.output: i for i, instruction in enumerate(instructions)}
    replaced: set[int] = set()
    result: dict[int, Instruction] = dict(enumerate(instructions))
    for i, instruction in enumerate(instructions):
        if not instruction.step.is_sum or len(instruction.inputs) != 2:
            continue
        # Prefer the input that is made later: then fewer tensors are alive in between.
        for name in sorted(instruction.inputs, key=lambda x: -makers.get(x, -1)):
            maker = result.get(makers.get(name, -1))
            if maker is None or name not in once or not maker.step.fuses_residual:
                continue
            if maker.residual is not None or maker.clip != UNCLIPPED:
                continue
            (other,) = (x for x in instruction.inputs if x != name)
            replaced.add(makers[name])
            result[i] = replace(
                maker, layers=maker.layers + instruction.layers, output=instruction.output, residual=other
            )
            break
    return [result[i] for i in range(len(instructions)) if i not in replaced]


def _fuse_clips(instructions: list[Instruction], remain: set[str]) -> list[Instruction]:
    """Have steps clip what they make, where a Clip or rectifier alone reads it."""
    once = _read_once(instructions, remain)
    makers = {instruction.output: i for i, instruction in enumerate(instructions)}
    result = list(instructions)
    replaced: set[int] = set()
    for i, instruction in enumerate(instructions):
        source = instruction.inputs[0]
        if not (instruction.has_mask and instruction.step.fuses_clip) or instruction.residual is not None:
            continue
        if source not in once or source not in makers:
            continue
        maker = result[makers[source]]
        if maker.step.fuses_clip and maker.clip == UNCLIPPED:
            replaced.add(i)
            merged = replace(
                maker,
                layers=maker.layers + instruction.layers,
                output=instruction.output,
                clip=instruction.clip,
            )
            result[makers[source]] = merged
            makers[instruction.output] = makers[source]
    return [instruction for i, instruction in enumerate(result) if i not in replaced]


def without_copies(
    instructions: list[Instruction], tensors: Mapping[str, PhysicalTensor], remain: set[str]
) -> list[Instruction]:
    """Without taps that copy what another instruction makes: it writes the kept tensor itself.

    The tap has kept other steps from that tensor until now.  It stays where something else reads the tensor,
    under the name of a layer that changes nothing, or where the tensor is another tap's.  `remain`: as in
    `fuse`.
    """
    once = _read_once(instructions, remain)
    taps = {it.inputs[0]: it for it in instructions if isinstance(it.step, TapStep)}
    # Concat and Split may need no instruction of their own, and then nothing would say when x is made.
    made = {
        it.output
        for it in instructions
        if it.step.part_starts is None and it.step.slice_start is None and not isinstance(it.step, TapStep)
    }
    merged = {
        name: tap
        for name, tap in taps.items()
        if name in made & once and tensors[name].order == tensors[tap.output].order
    }
    dropped = {id(tap) for tap in merged.values()}
    return [
        replace(it, output=merged[it.output].output) if it.output in merged else it
        for it in instructions
        if id(it) not in dropped
    ]
