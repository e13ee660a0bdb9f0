"""`Plan`: everything that can be decided before the first image, decided once and never changed.

Which step runs on which tensors, where each tensor lies, and in what order gradients are written, added and
gated.  Sizes are for one sample; a run on N samples takes N times as much.
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

#: Memories that are packed as tightly as can be; the largest real networks have as many.
_MAX_PACKED = 2**11
#: Floats that a tensor's place is rounded up to: one cache line.
_LINE = 16


@dataclass(frozen=True)
class Arena:
    """Room for memories that live at different times: where each begins, in floats, for one sample."""

    begins: dict[str, int]
    size: int


@dataclass(frozen=True)
class Plan:
    """How to compute and reverse a `Graph`, for any number of samples."""

    instructions: tuple[Instruction, ...]
    backward: tuple[BackwardInstruction, ...]
    tensors: dict[str, PhysicalTensor]
    #: Where each tensor lies in the memory of its root, its gradient likewise, and its bits in a mask.
    slices: dict[str, BufferSlice]
    masks: dict[str, BufferSlice]
    input: PhysicalTensor
    output: PhysicalTensor
    input_shape: Shape
    output_shape: Shape
    activations: Arena
    gradients: Arena
    #: Calls at which the rules differ.
    rectifiers: int
    #: How many activations there are for which the papers define no rule, by what the file calls them.
    other_activations: dict[str, int]
    #: How many layers round whose gradient passes as though they did not.
    straight_through: int
    #: What the file calls the op of each layer, for people.
    kinds: dict[str, str]
    #: What a reader of the maps should know of the file.
    notes: tuple[str, ...]

    @classmethod
    def build(
        cls, graph: Graph, algorithm: str = "auto", *, clamp: bool = False, device: Device = CPU
    ) -> Plan:
        """Plan the graph, its convolutions by one of `conv.ALGORITHMS`.

        `clamp`: rules with a gradient gate clamp the gradient of activations that are no rectifiers too.

        Raises UnsupportedError where one sample would not fit into memory, or where the device has no kernels
        for a layer.
        """
        graph = simplify(graph)
        layout = lay_out(graph, LoweringTarget(device, algorithm), clamp)
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
        """Whether the reverse reads activations; else it may take the memory that they lay in."""
        return any(instruction.saves for instruction in self.instructions)

    @cached_property
    def forward_bytes(self) -> int:
        """Working memory of the forward run of each sample, with what it keeps for the reverse."""
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
        """Floats of each sample's memory where the reverse takes that of the activations."""
        return max(self.activations.size, self.gradients.size)

    @cached_property
    def backward_bytes(self) -> int:
        """Working memory of the reverse run of each sample and target, with its map."""
        return 4 * (self.gradients.size + self._scratch[1] + elements(self.input_shape))

    def nbytes(self, samples: int, targets: int) -> int:
        """Working memory of so many samples at once, explained for so many targets at once."""
        each, fixed = self.forward_bytes + targets * self.backward_bytes, 4 * self._scratch[0]
        if targets > 1 or self.keeps_activations:
            return samples * each + 2 * fixed
        shared = 4 * (self.gradients.size + self._scratch[1])
        return samples * (each - shared) + fixed

    def max_samples(self, nbytes: int, targets: int) -> int:
        """How many samples at once fit into so many bytes; at least one."""
        none = self.nbytes(0, targets)
        return max(1, (nbytes - none) // max(1, self.nbytes(1, targets) - none))

    def max_targets(self, nbytes: int, samples: int) -> int:
        """How many targets at once fit into so many bytes beside so many samples; at least one."""
        two, three = self.nbytes(samples, 2), self.nbytes(samples, 3)
        return max(1, 2 + (nbytes - two) // max(1, three - two))

    @cached_property
    def _scratch(self) -> tuple[int, int]:
        """Floats of scratch: fixed, for one thread; and for each sample."""
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
    """Places for memories that live from their first use to their last: (name, when)."""
    lives: dict[str, tuple[int, int]] = {}
    for name, when in uses:
        first, last = lives.get(name, (when, when))
        lives[name] = min(first, when), max(last, when)
    rounded = {name: -(-sizes[name] // _LINE) * _LINE for name in lives}
    return _first_fit(lives, rounded) if len(lives) <= _MAX_PACKED else _in_time(lives, rounded)


def _first_fit(lives: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> Arena:
    """The largest first, each where it fits first: tight, in time that is quadratic."""
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
    """In the order of time, each in the smallest room that is large enough of those that others have left."""
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
