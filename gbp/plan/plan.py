"""`Plan`: everything that can be decided before the first image.  A plan is immutable.

It fixes which step runs on which tensors, the buffer slice of each tensor, and the order in which gradients
are written, added and gated.  Sizes are for one sample; a run on N samples takes N times as much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from ..devices.base import Device, LoweringTarget
from ..devices.cpu import CPU
from ..errors import InputError, UnsupportedError, calling, readable_bytes
from ..graph.graph import Graph
from ..graph.shapes import Shape
from ..graph.tensors import Tensor, find
from ..limits import elements, max_working_bytes
from ..ops import fact
from ..ops.rectifier import Rectifier
from ..ops.unpool import Indices
from ..passes import folded, named
from ..passes.tap import tap
from .aliasing import BufferSlice, alias_buffers, mask_slices
from .arena import Arena, pack
from .backward import Route, route_between
from .channels import channel_axes, channel_means
from .fusion import fuse, without_copies
from .layout import Instruction, PhysicalTensor, lay_out
from .stretch import Stretch, piecewise_forward
from .tail import Tail, tail_of

#: A rule's rewrite: a graph → the same network, whose layers pass gradients on in another way.
Rewrite: TypeAlias = Callable[[Graph], Graph]


@dataclass(frozen=True, eq=False)
class Plan:
    """How to run a `Graph` forward and backward, for any number of samples."""

    #: The forward pass, in order.
    instructions: tuple[Instruction, ...]
    #: The backward pass from the scores to the input.
    backward: Route
    tensors: dict[str, PhysicalTensor]
    #: The buffer slice of each tensor; that of its gradient is the same.
    slices: dict[str, BufferSlice]
    #: For each tensor that has a mask, its bytes of it.
    masks: dict[str, BufferSlice]
    input: PhysicalTensor
    output: PhysicalTensor
    input_shape: Shape
    output_shape: Shape
    #: How many weights the layers hold.
    weights: int
    activations: Arena
    #: The scores' name in the file.
    scores: str
    #: The file's tensors that can be kept.
    named: tuple[Tensor, ...]
    #: A kept tensor's name in the file → its tap, which has its value, and its gradient before any gate.
    kept: dict[str, PhysicalTensor]
    #: How many instructions the rules treat differently.
    rectifiers: int
    #: Activations for which the papers define no rule: the op's name in the file → how many.
    other_activations: dict[str, int]
    #: How many Clips of the file are no rectifiers and do not begin at 0.
    other_clips: int
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
        keep: Sequence[str] = (),
        rewrite: Rewrite | None = None,
    ) -> Plan:
        """Plan a graph.

        Parameters
        ----------
        graph
            The network, with the sizes of one kind of sample.
        algorithm
            How convolutions are computed: one of `graph.op.ALGORITHMS`.
        clamp
            Whether rules with a gradient gate clamp the gradient of activations that are no rectifiers.
        device
            Where the plan will run.
        tf32
            Whether convolutions multiply in TF32 alone, on a card.
        keep
            Tensors whose values and gradients are read after a run, by names that `tensors.find` knows.
        rewrite
            That of a rule, or None.  Layers are folded before it, and a tensor of `keep` between such layers
            is not kept.

        Raises
        ------
        InputError
            For a name in `keep` that no tensor has, or several; and where `rewrite` returns something else
            than a graph of the same network.
        UnsupportedError
            Where one sample needs more than `limits.max_working_bytes`, or where the device has no kernels
            for a layer.
        """
        # The file's layers, with rectifiers and activations named.
        graph = named(graph)
        of_file, other_clips = _tensors_of_file(graph), _other_clips(graph)
        wanted = {find(of_file, name).name for name in keep if name != graph.input} - {graph.output}
        # The layers that are computed.
        if rewrite is not None:
            graph = _rewritten(folded(graph), rewrite)
        graph, taps = tap(graph, sorted(wanted.intersection(graph.shapes)))
        graph = folded(graph)
        # Their steps, and where each tensor is stored.
        layout = lay_out(graph, LoweringTarget(device, algorithm, tf32), clamp)
        tensors = layout.tensors
        image, scores = tensors[graph.input], tensors[graph.output]
        kept = {name: tensors[made] for name, made in taps.items()}
        remain = {scores.name, *layout.views.values()}
        fused = without_copies(fuse(layout.instructions, remain), tensors, remain)
        instructions, slices = alias_buffers(fused, tensors, layout.views)
        if not device.is_host:
            _refuse_steps_of_the_host(instructions)
        masks, sizes = mask_slices(instructions, tensors, slices), _buffer_sizes(tensors, slices)
        # The order of gradients.
        backward = route_between(instructions, slices, masks, sizes, scores, image)
        assert backward is not None  # everything is made after the image
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
            weights=sum(layer.op.parameters for layer in graph.layers),
            activations=_activation_arena(
                instructions, slices, sizes, image.name, (scores.name, *(t.name for t in kept.values()))
            ),
            scores=graph.output,
            named=of_file,
            kept=kept,
            rectifiers=sum(each.clip.is_rectifier or each.clamped for each in instructions),
            other_clips=other_clips,
            straight_through=sum(layer.op.is_straight_through for layer in graph.layers),
            other_activations=dict(Counter(layer.kind for layer in graph.layers if layer.op.is_activation)),
            kinds={layer.name: layer.kind for layer in graph.layers},
            notes=graph.notes,
        )
        plan._check_memory()
        return plan

    def _check_memory(self) -> None:
        """Raise UnsupportedError where one sample needs more than `limits.max_working_bytes`."""
        limit = max_working_bytes(elements(self.input_shape), self.weights, len(self.instructions))
        nbytes = self.nbytes(1, targets=1)
        if nbytes > limit:
            raise UnsupportedError(
                f"one image needs {readable_bytes(nbytes)} of working memory.",
                supported=f"up to {readable_bytes(limit)} for a network and an image of this size",
                hint=f"{'Keep fewer tensors, or explain' if self.kept else 'Explain'} a smaller image; else "
                "check the pads and sizes in the file.",
            )

    @cached_property
    def keeps_activations(self) -> bool:
        """Whether activations are read after the forward pass.  If not, gradients may overwrite them."""
        return bool(self.kept) or any(instruction.saves for instruction in self.instructions)

    @cached_property
    def tail(self) -> Tail | None:
        """The dense layers at the end, which may run on more samples at once than the rest; or None."""
        if self.keeps_activations:
            return None
        return tail_of(self.instructions, self.slices, self._sizes, self.backward)

    @cached_property
    def piecewise(self) -> Stretch | None:
        """The first layers, which run on a few samples at a time; or None."""
        if self.keeps_activations:
            return None
        return piecewise_forward(self.instructions, self.slices, self._sizes, self.input.name)

    @cached_property
    def first_after_kept(self) -> int:
        """The index of the first instruction that a route to a kept tensor may have."""
        made = {instruction.output: i for i, instruction in enumerate(self.instructions)}
        return min((made[tensor.name] + 1 for tensor in self.kept.values()), default=0)

    @cached_property
    def forward_bytes(self) -> int:
        """Bytes for each sample of a forward run, with all that it keeps for the backward pass."""
        masks = {at.root for at in self.masks.values()}
        kept = sum(elements(self.tensors[root].mask_shape) for root in masks)
        for instruction in self.instructions:
            if instruction.step.switches:
                itemsize = np.dtype(instruction.step.switches).itemsize
                kept += itemsize * elements(self.tensors[instruction.output].shape)
        room = self.activations.size if self.keeps_activations else self.shared_size
        return 4 * (room + self._scratch[1]) + kept

    @property
    def shared_size(self) -> int:
        """Floats for each sample where activations and gradients share one arena."""
        return max(self.activations.size, self.backward.arena.size)

    @cached_property
    def backward_bytes(self) -> int:
        """Bytes for each sample and target of a backward pass, with its map and what it starts from."""
        return self._bytes_of(self.backward)

    def route_bytes(self, route: Route) -> int:
        """Bytes for each sample and seed of a backward pass, with its map and what it starts from."""
        return self.backward_bytes if route is self.backward else self._bytes_of(route)

    def _bytes_of(self, route: Route) -> int:
        ends = elements(route.start.shape) + elements(route.end.shape)
        return 4 * (route.arena.size + self._scratch[1] + ends)

    def shape_of(self, name: str | None) -> Shape:
        """The shape of one sample of a kept tensor, in the file's order of axes; None is the input."""
        if name is None:
            return self.input_shape
        tensor = self.kept[name]
        return tuple(tensor.shape[axis - 1] for axis in tensor.logical_axes[1:])

    def route(self, of: str | None, wrt: str | None) -> Route | None:
        """The backward pass from one tensor to another; None where `of` does not depend on `wrt`.

        Parameters
        ----------
        of
            A kept tensor; None for the scores.
        wrt
            A kept tensor; None for the input.
        """
        if of is None and wrt is None:
            return self.backward
        start = self.output if of is None else self.kept[of]
        end = self.input if wrt is None else self.kept[wrt]
        return route_between(self.instructions, self.slices, self.masks, self._sizes, start, end)

    def only_renames(self, route: Route) -> bool:
        """Whether a route's end is its start under another shape, so that no gradient is computed."""
        return not route.instructions and self.slices[route.start.name] == self.slices[route.end.name]

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Floats of each buffer."""
        return _buffer_sizes(self.tensors, self.slices)

    def nbytes(self, samples: int, targets: int) -> int:
        """Bytes to explain `samples` at once, each for `targets` at once."""
        each, fixed = self.forward_bytes + targets * self.backward_bytes, 4 * self._scratch[0]
        if targets > 1 or self.keeps_activations:
            return samples * each + 2 * fixed
        # The backward pass takes the memory and the scratch of the forward pass over.
        shared = 4 * (self.backward.arena.size + self._scratch[1])
        return samples * (each - shared) + fixed

    def max_samples(self, nbytes: int, targets: int) -> int:
        """How many samples at once fit into `nbytes`, each with `targets` at once; at least 1."""
        none = self.nbytes(0, targets)
        return max(1, (nbytes - none) // max(1, self.nbytes(1, targets) - none))

    def nbytes_in_pieces(self, samples: int, per_piece: int) -> int:
        """Bytes to explain samples for one target each: `per_piece` at once, and all at once in the tail."""
        assert self.tail is not None
        piece = 4 * (self.shared_size + self._scratch[1])
        start, end = (elements(each.shape) for each in (self.backward.start, self.backward.end))
        kept = self.forward_bytes - piece + 4 * (self.tail.arena.size + start + end)
        return min(samples, per_piece) * piece + samples * kept + 4 * self._scratch[0]

    def max_samples_in_pieces(self, nbytes: int, per_piece: int) -> int:
        """How many samples fit into `nbytes` in pieces of `per_piece`, if the tail runs on all of them."""
        piece = self.nbytes_in_pieces(per_piece, per_piece)
        one_more = self.nbytes_in_pieces(per_piece + 1, per_piece) - piece
        return per_piece + max(0, nbytes - piece) // one_more

    def max_targets(self, nbytes: int, samples: int, route: Route | None = None) -> int:
        """How many targets at once fit into `nbytes` beside `samples` at once; at least 1.

        `route`: the backward pass; by default that from the scores to the input.
        """
        forward = samples * self.forward_bytes + 2 * 4 * self._scratch[0]
        return max(1, (nbytes - forward) // max(1, samples * self.route_bytes(route or self.backward)))

    @cached_property
    def _scratch(self) -> tuple[int, int]:
        """The largest scratch of any step, in floats: (fixed, for one thread; more for each sample)."""
        sizes = [instruction.step.scratch(1) for instruction in self.instructions]
        return max((fixed for fixed, _ in sizes), default=0), max((each for _, each in sizes), default=0)


def _rewritten(graph: Graph, rewrite: Rewrite) -> Graph:
    """The graph of a rule's rewrite.  Raises InputError where it is none of the same network."""
    with calling("the rewrite of a rule"):
        found = rewrite(graph)
    if not isinstance(found, Graph):
        raise InputError(f"the rewrite of a rule returned {found!r:.80}.", supported="a Graph")
    ends = [(g.input, g.output, g.shapes.get(g.input), g.shapes.get(g.output)) for g in (graph, found)]
    if ends[0] != ends[1]:
        raise InputError(
            "the rewrite of a rule returned a graph with another input or output.",
            supported="the same network, whose layers have other slopes",
        )
    return found


def _other_clips(graph: Graph) -> int:
    """How many Clips of the file are no rectifiers and do not begin at 0."""
    clips = [layer.op.clip for layer in graph.layers if isinstance(layer.op, Rectifier)]
    return sum(not clip.is_rectifier and clip.lo != 0 for clip in clips)


def _tensors_of_file(graph: Graph) -> tuple[Tensor, ...]:
    """The file's tensors that layers make."""
    axes, found = channel_axes(graph), []
    means = channel_means(graph, axes)
    inside = dict[str, str]()  # of a node such as FusedConv, or of integers: what made or read planes there
    for layer in graph.layers:
        y, is_activation = layer.output, layer.op.is_activation  # as SiLU, which ONNX does not name
        known = fact(layer.kind)
        planes: str = "kept" if is_activation else known.planes
        passes_on = known.keeps_values and graph.shapes[y] == graph.shapes[layer.inputs[0]]  # as Cast
        if planes == "kept" or passes_on:
            planes = next((inside[x] for x in layer.inputs if x in inside), planes)
        if y not in graph.of_file and planes in ("made", "read"):
            inside[y] = planes
        elif y in graph.of_file and not isinstance(layer.op, Indices):
            shape = graph.shapes[y][1:]
            found.append(Tensor(y, layer.name, layer.kind, shape, axes.get(y), means.get(y), planes))
    return tuple(found)


def _buffer_sizes(tensors: Mapping[str, PhysicalTensor], slices: Mapping[str, BufferSlice]) -> dict[str, int]:
    return {at.root: elements(tensors[at.root].shape) for at in slices.values()}


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
    read: Sequence[str],
) -> Arena:
    """Pack the activations.  The vjps, and a caller, read some of them after the last instruction."""
    uses = [(image, -1), *((name, len(instructions)) for name in read)]
    for i, instruction in enumerate(instructions):
        uses += [(name, i) for name in (*instruction.reads, instruction.output)]
        uses += [(name, len(instructions)) for name in instruction.saves]
    return pack(((slices[name].root, when) for name, when in uses), sizes)
