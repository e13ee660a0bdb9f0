"""`Plan`: everything that can be decided before the first image.  A plan is immutable.

It fixes which step runs on which tensors, the buffer slice of each tensor, and the order in which gradients
are written, added and gated.  Sizes are for one sample; a run on N samples takes N times as much.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush

import numpy as np

from ..devices.base import Device, LoweringTarget
from ..devices.cpu import CPU
from ..errors import UnsupportedError
from ..graph.graph import Graph
from ..graph.shapes import Shape
from ..limits import MAX_BYTES_PER_SAMPLE, elements
from ..passes import simplify
from .aliasing import BufferSlice, alias_buffers, mask_slices
from .backward import BackwardInstruction, backward_order
from .fusion import fuse
from .layout import Instruction, PhysicalTensor, lay_out

#: Up to so many buffers are packed as tightly as possible; the largest real networks have as many.
_MAX_PACKED = 2**11
#: A tensor's size in an arena is rounded up to a multiple of this many floats: one cache line.
_LINE = 16


@dataclass(frozen=True)
class Arena:
    """One block of memory that holds many buffers.  Buffers that are never alive together share bytes.

    Parameters
    ----------
    begins
        The first float of each buffer, for one sample.
    size
        Floats of the whole arena, for one sample.
    """

    begins: dict[str, int]
    size: int


@dataclass(frozen=True)
class Plan:
    """How to run a `Graph` forward and backward, for any number of samples."""

    #: The forward pass, in order.
    instructions: tuple[Instruction, ...]
    #: The backward pass, in order.
    backward: tuple[BackwardInstruction, ...]
    tensors: dict[str, PhysicalTensor]
    #: The buffer slice of each tensor; that of its gradient is the same.
    slices: dict[str, BufferSlice]
    #: For each tensor that has a mask, its bytes of it.
    masks: dict[str, BufferSlice]
    input: PhysicalTensor
    output: PhysicalTensor
    input_shape: Shape
    output_shape: Shape
    activations: Arena
    gradients: Arena
    #: How many instructions the rules treat differently.
    rectifiers: int
    #: Activations for which the papers define no rule: the op's name in the file → how many.
    other_activations: dict[str, int]
    #: How many layers round while their gradient ignores the rounding.
    straight_through: int
    #: Layer → the name of its op in the file, for messages.
    kinds: dict[str, str]
    #: Remarks about the file, for the reader of the maps.
    notes: tuple[str, ...]

    @classmethod
    def build(
        cls,
        graph: Graph,
        algorithm: str = "auto",
        *,
        clamp: bool = False,
        device: Device = CPU,
        tf32: bool = False,
    ) -> Plan:
        """Plan a graph.

        Parameters
        ----------
        graph
            The network, with the sizes of one kind of sample.
        algorithm
            How convolutions are computed: one of `ops.conv.conv.ALGORITHMS`.
        clamp
            Whether rules with a gradient gate clamp the gradient of activations that are no rectifiers.
        device
            Where the plan will run.
        tf32
            Whether convolutions multiply in TF32 alone, on a card.

        Raises
        ------
        UnsupportedError
            Where one sample needs more than `limits.MAX_BYTES_PER_SAMPLE`, or where the device has no kernels
            for a layer.
        """
        graph = simplify(graph)
        layout = lay_out(graph, LoweringTarget(device, algorithm, tf32), clamp)
        tensors = layout.tensors
        image, scores = tensors[graph.input], tensors[graph.output]
        fused = fuse(layout.instructions, {scores.name, *layout.views.values()})
        instructions, slices = alias_buffers(fused, tensors, layout.views)
        if not device.is_host:
            _refuse_steps_of_the_host(instructions)
        masks = mask_slices(instructions, tensors, slices)
        backward, handed_on = backward_order(instructions, slices, masks, image.name, scores.name)
        sizes = {at.root: elements(tensors[at.root].shape) for at in slices.values()}
        plan = cls(
            instructions=tuple(instructions),
            backward=backward,
            tensors=tensors,
            slices=slices,
            masks=masks,
            input=image,
            output=scores,
            input_shape=graph.shapes[graph.input][1:],
            output_shape=graph.shapes[graph.output][1:],
            activations=_activation_arena(instructions, slices, sizes, image.name, scores.name),
            gradients=_gradient_arena(
                backward, instructions, slices, sizes, handed_on, image.name, scores.name
            ),
            rectifiers=sum(
                instruction.clip.is_rectifier or instruction.rectified for instruction in instructions
            ),
            straight_through=sum(layer.op.is_straight_through for layer in graph.layers),
            other_activations=dict(Counter(layer.kind for layer in graph.layers if layer.op.is_activation)),
            kinds={layer.name: layer.kind for layer in graph.layers},
            notes=graph.notes,
        )
        nbytes = plan.nbytes(1, targets=1)
        if nbytes > MAX_BYTES_PER_SAMPLE:
            raise UnsupportedError(
                f"one image needs {nbytes / 2**30:.1f} GiB of working memory.",
                supported=f"up to {MAX_BYTES_PER_SAMPLE // 2**30} GiB",
            )
        return plan

    @cached_property
    def keeps_activations(self) -> bool:
        """Whether the backward pass reads activations.  If not, gradients may overwrite them."""
        return any(instruction.saves for instruction in self.instructions)

    @cached_property
    def forward_bytes(self) -> int:
        """Bytes for each sample of a forward run, with all that it keeps for the backward pass."""
        masks = {at.root for at in self.masks.values()}
        kept = sum(elements(self.tensors[root].mask_shape) for root in masks)
        for instruction in self.instructions:
            if instruction.step.switches:
                kept += (
                    elements(self.tensors[instruction.output].shape)
                    * np.dtype(instruction.step.switches).itemsize
                )
        room = self.activations.size if self.keeps_activations else self.shared_size
        return 4 * (room + self._scratch[1]) + kept

    @property
    def shared_size(self) -> int:
        """Floats for each sample where activations and gradients share one arena."""
        return max(self.activations.size, self.gradients.size)

    @cached_property
    def backward_bytes(self) -> int:
        """Bytes for each sample and target of a backward pass, with its map and what it starts from."""
        ends = elements(self.input_shape) + elements(self.output_shape)
        return 4 * (self.gradients.size + self._scratch[1] + ends)

    def nbytes(self, samples: int, targets: int) -> int:
        """Bytes to explain `samples` at once, each for `targets` at once."""
        each, fixed = self.forward_bytes + targets * self.backward_bytes, 4 * self._scratch[0]
        if targets > 1 or self.keeps_activations:
            return samples * each + 2 * fixed
        shared = 4 * (self.gradients.size + self._scratch[1])
        return samples * (each - shared) + fixed

    def max_samples(self, nbytes: int, targets: int) -> int:
        """How many samples at once fit into `nbytes`, each with `targets` at once; at least 1."""
        none = self.nbytes(0, targets)
        return max(1, (nbytes - none) // max(1, self.nbytes(1, targets) - none))

    def max_targets(self, nbytes: int, samples: int) -> int:
        """How many targets at once fit into `nbytes` beside `samples` at once; at least 1."""
        two, three = self.nbytes(samples, 2), self.nbytes(samples, 3)
        return max(1, 2 + (nbytes - two) // max(1, three - two))

    @cached_property
    def _scratch(self) -> tuple[int, int]:
        """The largest scratch of any step, in floats: (fixed, for one thread; more for each sample)."""
        sizes = [instruction.step.scratch(1) for instruction in self.instructions]
        return max((fixed for fixed, _ in sizes), default=0), max((each for _, each in sizes), default=0)


def _refuse_steps_of_the_host(instructions: Sequence[Instruction]) -> None:
    layers = [layer for it in instructions if it.step.needs_host for layer in it.layers]
    if layers:
        raise UnsupportedError(
            f"there are no CUDA kernels for {', '.join(layers)}.",
            supported="layers that do not compute through NumPy",
            hint="Leave the device out to compute on the CPU.",
        )


def _activation_arena(
    instructions: Sequence[Instruction],
    slices: Mapping[str, BufferSlice],
    sizes: Mapping[str, int],
    image: str,
    scores: str,
) -> Arena:
    uses = [(image, -1), (scores, len(instructions))]
    for i, instruction in enumerate(instructions):
        uses += [(name, i) for name in (*instruction.reads, instruction.output)]
        uses += [(name, len(instructions)) for name in instruction.saves]
    return _pack(((slices[name].root, when) for name, when in uses), sizes)


def _gradient_arena(
    backward: Sequence[BackwardInstruction],
    instructions: Sequence[Instruction],
    slices: Mapping[str, BufferSlice],
    sizes: Mapping[str, int],
    handed_on: Mapping[str, str],
    image: str,
    scores: str,
) -> Arena:
    uses = [(scores, -1), (image, len(backward))]
    for i, back in enumerate(backward):
        uses += [(name, i) for name in (instructions[back.instruction].output, *back.writes)]
    roots = ((slices[name].root, when) for name, when in uses)
    arena = _pack(((handed_on.get(root, root), when) for root, when in roots), sizes)
    return Arena(arena.begins | {new: arena.begins[old] for new, old in handed_on.items()}, arena.size)


def _pack(uses: Iterable[tuple[str, int]], sizes: Mapping[str, int]) -> Arena:
    """Place buffers in an arena.

    Parameters
    ----------
    uses
        (buffer, time) of each use.  A buffer is alive from its first use to its last.
    sizes
        Floats of each buffer.
    """
    lives: dict[str, tuple[int, int]] = {}
    for name, when in uses:
        first, last = lives.get(name, (when, when))
        lives[name] = min(first, when), max(last, when)
    rounded = {name: -(-sizes[name] // _LINE) * _LINE for name in lives}
    return _first_fit(lives, rounded) if len(lives) <= _MAX_PACKED else _in_time(lives, rounded)


def _first_fit(lives: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> Arena:
    """Place the largest buffer first, each in the first gap that fits.  Tight, but takes quadratic time."""
    begins, ends, firsts, lasts = np.zeros((4, len(lives)), np.int64)  # in memory; in time
    offsets: dict[str, int] = {}
    for i, (name, (first, last)) in enumerate(sorted(lives.items(), key=lambda item: -sizes[item[0]])):
        others = np.flatnonzero((firsts[:i] <= last) & (first <= lasts[:i]))
        others = others[np.argsort(begins[others], kind="stable")]
        gaps = np.concatenate(([0], np.maximum.accumulate(ends[others])))  # where each gap starts
        fitting = np.flatnonzero(begins[others] - gaps[:-1] >= sizes[name])
        offsets[name] = int(gaps[fitting[0]] if len(fitting) else gaps[-1])
        begins[i], ends[i], firsts[i], lasts[i] = offsets[name], offsets[name] + sizes[name], first, last
    return Arena(offsets, int(ends.max(initial=0)))


def _in_time(lives: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> Arena:
    """Place buffers in the order of their first use, each in the smallest free gap that is large enough."""
    offsets: dict[str, int] = {}
    free: list[tuple[int, int]] = []  # (size, where), sorted
    alive: list[tuple[int, int, int]] = []  # (last use, where, size), a heap
    end = 0
    for name, (first, last) in sorted(lives.items(), key=lambda item: item[1]):
        while alive and alive[0][0] < first:
            _, where, size = heappop(alive)
            insort(free, (size, where))
        i = bisect_left(free, (sizes[name], 0))
        size, where = free.pop(i) if i < len(free) else (sizes[name], end)
        end = max(end, where + size)
        offsets[name] = where
        heappush(alive, (last, where, size))
    return Arena(offsets, end)
