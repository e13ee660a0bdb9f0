"""The tail of a plan: dense layers at its end, whose weights take longer to read than to multiply.

A batch that does not fit into memory is cut into slices, and each slice reads all weights.  In a network like
VGG, the planes at the beginning take the memory, and the dense layers at the end have the weights.  So a
larger slice may run in pieces: the planes of a piece take the memory of those of the piece before, and the
tail runs once, on all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ops.gemm import DenseStep
from .aliasing import BufferSlice
from .arena import Arena, pack
from .backward import Route
from .layout import Instruction
from .stretch import Stretch

#: Fewest weights of a tail: so many leave the caches between two slices.
_LEAST = 2**23


@dataclass(frozen=True)
class Tail:
    """The last instructions of a plan, which run on more samples at once than the others.

    Parameters
    ----------
    forward
        The instructions before them, which run piece by piece.
    backward
        Those of the backward pass from the scores to the input that run piece by piece.
    arena
        The memory, in both directions, of what the tail reads and writes, and of the maps.  The buffer that
        the tail reads and does not write is the one that it shares with the pieces.
    """

    forward: Stretch
    backward: Stretch
    arena: Arena


def tail_of(
    instructions: Sequence[Instruction],
    slices: Mapping[str, BufferSlice],
    sizes: Mapping[str, int],
    backward: Route,
) -> Tail | None:
    """The tail of a plan that keeps no activations; None where it has none that is worth it.

    Parameters
    ----------
    instructions, slices
        Those of the plan.
    sizes
        Floats of each buffer.
    backward
        The backward pass from the scores to the input.
    """
    first = len(instructions)
    while first > 0 and _is_dense(instructions[first - 1]):
        first -= 1
    tail = instructions[first:]
    if not 0 < first < len(instructions) or sum(each.macs for each in tail) < _LEAST:
        return None
    made = [slices[each.output].root for each in tail]
    roots = [slices[tail[0].inputs[0]].root, *made]
    is_chain = all(slices[each.inputs[0]].root == root for each, root in zip(tail, roots[:-1], strict=True))
    back = sum(each.instruction >= first for each in backward.instructions)
    image = slices[backward.end.name].root
    if not is_chain or _reaches(roots, image, instructions[:first], slices, backward, back):
        return None
    times = [(root, 0) for root in (*roots, image)]  # small beside the planes: all are alive together
    joint, maps = ({root: sizes[root]} for root in (roots[0], image))
    return Tail(
        Stretch(0, first, joint),
        Stretch(back, len(backward.instructions), joint | maps),
        pack(times, sizes),
    )


def _is_dense(instruction: Instruction) -> bool:
    is_plain = len(instruction.inputs) == 1 and instruction.residual is None
    return isinstance(instruction.step, DenseStep) and is_plain


def _reaches(
    roots: Sequence[str],
    image: str,
    others: Sequence[Instruction],
    slices: Mapping[str, BufferSlice],
    backward: Route,
    count: int,
) -> bool:
    """Whether the other instructions share more with the tail than its first buffer, which they write.

    A gradient that takes over the buffer of a sum, or that is cleared in part, would be in two memories.  So
    would the maps where a layer adds the image.
    """
    joint, inner = roots[0], set(roots[1:])
    used = {slices[name].root for each in others for name in (*each.reads, each.output)}
    sums = {slices[name].root for each in others if each.residual for name in (each.residual, each.output)}
    cleared = {part.root for each in backward.instructions[count:] for part in each.zeros}
    cleared |= {part.root for part in backward.zeros}
    in_one_kernel = any(each.maker is not None for each in backward.instructions[:count])
    return (
        bool(inner & used)
        or joint in sums | cleared
        or image in sums
        or in_one_kernel
        or len(inner) < len(roots) - 1
    )
