"""`Plan`: everything that can be decided before the first image, decided once and never changed.

Which step runs on which tensors, where each tensor lies in an arena, in what order gradients are written
and added, and which write completes a rectifier's gradient and so applies its gate.  Sizes are for one
sample; a run on N samples takes N times as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import UnsupportedError
from .fusion import fuse
from .graph import Graph, Shape
from .layout import Call, Physical, lay_out
from .limits import MOST_BYTES_A_SAMPLE, elements
from .ops.conv import force
from .ops.shape import ViewStep
from .passes import simplify

#: Floats that a tensor's place is rounded up to: one cache line.
_LINE = 16


@dataclass(frozen=True)
class Write:
    """One step's contribution to the gradient of `tensor`.

    `accumulate`: an earlier one is there already.  `gated_by`: the call whose rectifier made `tensor`, where
    this contribution is the last and the step can apply that gate itself.
    """

    tensor: str
    accumulate: bool
    gated_by: int | None


@dataclass(frozen=True)
class Reverse:
    """The reverse of call `call`: first its own gate, if no writer could apply it; then the contributions."""

    call: int
    gates_first: bool
    residual: Write | None
    inputs: tuple[Write, ...]


@dataclass(frozen=True)
class Arena:
    """Places for tensors that live at different times: offsets and size in floats, for one sample."""

    offsets: dict[str, int]
    size: int


@dataclass(frozen=True)
class Plan:
    """How to compute and reverse a `Graph`, for any number of samples."""

    calls: tuple[Call, ...]
    reverses: tuple[Reverse, ...]
    tensors: dict[str, Physical]
    input: Physical
    output: Physical
    input_shape: Shape
    output_shape: Shape
    activations: Arena
    gradients: Arena
    #: Which tensor's gradient memory a gradient is a view of.
    gradient_roots: dict[str, str]
    rectifiers: int

    @classmethod
    def build(cls, graph: Graph, algorithm: str = "auto") -> Plan:
        """Plan the graph, its convolutions by one of `conv.ALGORITHMS`.

        Raises UnsupportedError where one sample would not fit into memory.
        """
        graph = force(simplify(graph), algorithm)
        layout = lay_out(graph)
        tensors = layout.tensors
        image, scores = tensors[graph.input], tensors[graph.output]
        calls = fuse(layout.calls, scores.name)
        used = {image.name: image, scores.name: scores}
        for call in calls:
            for name in (*call.reads, call.output):
                used[name] = tensors[name]
        reverses = _reverses(calls, scores.name)
        roots = _gradient_roots(calls, reverses)
        plan = cls(
            calls=tuple(calls),
            reverses=reverses,
            tensors=used,
            input=image,
            output=scores,
            input_shape=graph.shapes[graph.input][1:],
            output_shape=graph.shapes[graph.output][1:],
            activations=_activation_arena(calls, used, image, scores),
            gradients=_gradient_arena(reverses, used, roots, calls, image.name, scores.name),
            gradient_roots=roots,
            rectifiers=sum(call.clip.is_rectifier for call in calls),
        )
        nbytes = plan.forward_bytes + plan.reverse_bytes
        if nbytes > MOST_BYTES_A_SAMPLE:
            raise UnsupportedError(
                f"one image needs {nbytes / 2**30:.1f} GiB of working memory.",
                supported=f"up to {MOST_BYTES_A_SAMPLE // 2**30} GiB",
            )
        return plan

    @property
    def forward_bytes(self) -> int:
        """Working memory of the forward run of one sample, with what it keeps for the reverse."""
        kept = 0
        for call in self.calls:
            y = self.tensors[call.output]
            if call.has_mask:
                kept += elements(y.mask_shape)
            if call.step.switches:
                kept += elements(y.shape) * np.dtype(call.step.switches).itemsize
        return 4 * (self.activations.size + self._scratch) + kept

    @property
    def reverse_bytes(self) -> int:
        """Working memory of the reverse run of one sample and one target, with its map."""
        return 4 * (self.gradients.size + self._scratch + elements(self.input_shape))

    @property
    def _scratch(self) -> int:
        return max((sum(call.step.scratch(1)) for call in self.calls), default=0)


def _readers(calls: list[Call]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for call in calls:
        for name in call.reads:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _reverses(calls: list[Call], output: str) -> tuple[Reverse, ...]:
    """The reverse of each call, last call first."""
    expected = _readers(calls)
    expected[output] = expected.get(output, 0) + 1  # the seed
    written = {output: 1}
    maker = {call.output: i for i, call in enumerate(calls)}
    gated: set[int] = set()

    def write(name: str, can_gate: bool) -> Write:
        before = written.get(name, 0)
        written[name] = before + 1
        owner = maker.get(name)
        completes = written[name] == expected[name] and owner is not None and calls[owner].has_mask
        if completes and can_gate and owner is not None:
            gated.add(owner)
            return Write(name, before > 0, owner)
        return Write(name, before > 0, None)

    result = []
    for i in reversed(range(len(calls))):
        call = calls[i]
        gates_first = call.has_mask and i not in gated
        residual = write(call.residual, can_gate=True) if call.residual is not None else None
        inputs = tuple(write(name, call.step.gates) for name in call.inputs)
        result.append(Reverse(i, gates_first, residual, inputs))
    return tuple(result)


def _gradient_roots(calls: list[Call], reverses: tuple[Reverse, ...]) -> dict[str, str]:
    """A view that is the only reader of its source shares its gradient: nothing is to be done then."""
    counts = _readers(calls)
    roots: dict[str, str] = {}
    for reverse in reversed(reverses):  # in forward order, so that sources come first
        call = calls[reverse.call]
        roots.setdefault(call.inputs[0], call.inputs[0])
        shares = (
            isinstance(call.step, ViewStep)
            and counts[call.inputs[0]] == 1
            and not reverse.inputs[0].accumulate
        )
        roots[call.output] = roots[call.inputs[0]] if shares else call.output
    return roots


def _activation_arena(
    calls: list[Call], tensors: dict[str, Physical], image: Physical, scores: Physical
) -> Arena:
    life = {image.root: [-1, -1]}
    for i, call in enumerate(calls):
        life.setdefault(tensors[call.output].root, [i, i])[1] = i
        for name in call.reads:
            life[tensors[name].root][1] = i
    for name in (scores.name, *(name for call in calls for name in call.saves)):
        life[tensors[name].root][1] = len(calls)
    return _pack({root: (a, b, _floats(tensors[root])) for root, (a, b) in life.items()})


def _gradient_arena(
    reverses: tuple[Reverse, ...],
    tensors: dict[str, Physical],
    roots: dict[str, str],
    calls: list[Call],
    image: str,
    scores: str,
) -> Arena:
    def root(name: str) -> str:
        return roots.get(name, name)

    life: dict[str, list[int]] = {root(scores): [-1, -1]}
    for i, reverse in enumerate(reverses):
        life[root(calls[reverse.call].output)][1] = i
        for write in (*reverse.inputs, *((reverse.residual,) if reverse.residual else ())):
            life.setdefault(root(write.tensor), [i, i])[1] = i
    life.setdefault(root(image), [-1, -1])[1] = len(reverses)
    return _pack({name: (a, b, _floats(tensors[name])) for name, (a, b) in life.items()})


def _floats(tensor: Physical) -> int:
    return -(-elements(tensor.shape) // _LINE) * _LINE


def _pack(lives: dict[str, tuple[int, int, int]]) -> Arena:
    """First fit, largest first: {name: (first use, last use, size)} → offsets."""
    begins, ends, firsts, lasts = np.zeros((4, len(lives)), np.int64)  # in memory; in time
    offsets: dict[str, int] = {}
    for i, (name, (first, last, size)) in enumerate(sorted(lives.items(), key=lambda item: -item[1][2])):
        others = np.flatnonzero((firsts[:i] <= last) & (first <= lasts[:i]))
        others = others[np.argsort(begins[others], kind="stable")]
        gaps = np.concatenate(([0], np.maximum.accumulate(ends[others])))  # where each gap starts
        fitting = np.flatnonzero(begins[others] - gaps[:-1] >= size)
        offsets[name] = int(gaps[fitting[0]] if len(fitting) else gaps[-1])
        begins[i], ends[i], firsts[i], lasts[i] = offsets[name], offsets[name] + size, first, last
    return Arena(offsets, int(ends.max(initial=0)))
