"""`Tape`: one forward run of a `Plan`, and what it kept for the reverse.

It keeps one bit a rectifier unit, one byte a max-pool window, and whole activations only where a
vector-Jacobian product needs them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .kernels.memory import aligned
from .kernels.pointwise import pointwise_bwd
from .kernels.rectifier import OPEN, Gate
from .layout import Call
from .ops.op import NO_MASK, NO_TENSOR, NO_WEIGHTS, Floats, Gradient, Saved, pixels
from .ops.shape import ViewStep
from .plan import Arena, Plan, Write
from .rules import Rule
from .threads import parallel

T = TypeVar("T")


class _Memory:
    """Arrays for `n` samples, cut out of one arena."""

    def __init__(self, plan: Plan, arena: Arena, n: int, floats_of_scratch: int) -> None:
        self.n = n
        self.arena = aligned((n * arena.size,))
        self.offsets = arena.offsets
        self.scratch = aligned((floats_of_scratch,))
        self.tensors = plan.tensors

    def array(self, name: str, root: str) -> Floats:
        """The physical array of tensor `name`, which lies where `root` does."""
        tensor = self.tensors[name]
        size = self.n * int(np.prod(tensor.shape))
        start = self.n * self.offsets[root]
        return self.arena[start : start + size].reshape(self.n, *tensor.shape)


class Pool:
    """Memory that nobody uses now, kept for the next call: fresh pages cost as much as a small network."""

    def __init__(self, most: int = 4) -> None:
        self._free: dict[Hashable, list[Any]] = defaultdict(list)
        self._most = most
        self._lock = Lock()

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if self._free[key]:
                memory: T = self._free[key].pop()
                return memory
        return make()

    def give(self, key: Hashable, memory: Any) -> None:
        with self._lock:
            if sum(map(len, self._free.values())) >= self._most:
                self._free.clear()  # sizes have changed
            self._free[key].append(memory)


def _scratch(plan: Plan, n: int, threads: int) -> int:
    most = 0
    for call in plan.calls:
        fixed, each = call.step.scratch(threads)
        most = max(most, fixed + n * each)
    return most


@dataclass(frozen=True)
class _Run:
    """One call with its arrays: inputs, residual (or NO_TENSOR), output, and what it keeps."""

    call: Call
    x: tuple[Floats, ...]
    r: Floats
    y: Floats
    saved: Saved


@dataclass(frozen=True)
class _Forward:
    """Arrays and saved bits of a forward run of n samples."""

    x: Floats
    y: Floats
    runs: list[_Run]

    @classmethod
    def make(cls, plan: Plan, n: int, threads: int) -> _Forward:
        memory = _Memory(plan, plan.activations, n, _scratch(plan, n, threads))

        def array(name: str) -> Floats:
            return memory.array(name, plan.tensors[name].root)

        runs = []
        for call in plan.calls:
            x, y = tuple(map(array, call.inputs)), array(call.output)
            output = plan.tensors[call.output]
            saved = Saved(
                threads,
                memory.scratch,
                mask=np.empty((n, *output.mask_shape), np.uint8) if call.has_mask else NO_MASK,
                switches=np.empty((n, *output.shape), call.step.switches) if call.step.switches else NO_MASK,
                x=x if call.step.saves_x else (),
                y=y if call.step.saves_y else NO_TENSOR,
            )
            runs.append(_Run(call, x, array(call.residual) if call.residual else NO_TENSOR, y, saved))
        return cls(array(plan.input.name), array(plan.output.name), runs)

    def run(self) -> None:
        for run in self.runs:
            run.call.step.forward(run.x, run.r, run.y, run.call.clip, run.saved)


class Tape:
    """A forward run on a batch; `reverse` may be called any number of times, under any rules.

    Use as a context manager: leaving it hands the memory back.
    """

    def __init__(self, plan: Plan, x: NDArray[np.float32], pool: Pool, threads: int) -> None:
        """Run `plan` on x (N, …) float32 in the model's own layout."""
        self._plan, self._pool, self._threads = plan, pool, threads
        self.n = len(x)
        self._forward = pool.take(("forward", self.n), lambda: _Forward.make(plan, self.n, threads))
        np.copyto(self._forward.x, x.transpose(0, *plan.input.order))
        with parallel():
            self._forward.run()
        logical = self._forward.y.transpose(plan.output.logical_axes)
        #: float32 (N, classes): the explained tensor, flattened in the model's own layout.
        self.scores: Floats = np.array(logical, np.float32).reshape(self.n, -1)

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.give(("forward", self.n), self._forward)

    def reverse(self, rule: Rule, targets: NDArray[np.int64]) -> Floats:
        """The maps (N, K, …) in the input's own layout, for targets (N, K), indices into the scores.

        All K targets of a sample go back as one batch over its masks and switches.
        """
        plan, (n, k) = self._plan, targets.shape
        m = n * k
        memory = self._pool.take(
            ("reverse", m), lambda: _Memory(plan, plan.gradients, m, _scratch(plan, m, self._threads))
        )
        gates = {True: Gate(int(rule.forward_gate), int(rule.gradient_gate)), False: Gate(1, 0)}

        def array(name: str) -> Floats:
            return memory.array(name, plan.gradient_roots.get(name, name))

        def gate(call: Call) -> Gate:
            return gates[call.clip.is_rectifier] if call.has_mask else OPEN

        def gradient(write: Write) -> Gradient:
            if write.gated_by is None:
                return Gradient(array(write.tensor), write.accumulate)
            owner = self._forward.runs[write.gated_by]
            return Gradient(array(write.tensor), write.accumulate, owner.saved.mask, gate(owner.call))

        seed = array(plan.output.name)
        seed.fill(0)
        where = np.unravel_index(targets.reshape(-1), plan.output_shape) if plan.output_shape else ()
        seed.transpose(plan.output.logical_axes)[(np.arange(m), *where)] = 1

        with parallel():
            for reverse in plan.reverses:
                run = self._forward.runs[reverse.call]
                call, saved, gy = run.call, run.saved, array(run.call.output)
                if reverse.gates_first:
                    _through_gate(gy, Gradient(gy, False, saved.mask, gate(call)), self._threads)
                if reverse.residual is not None:
                    _through_gate(gy, gradient(reverse.residual), self._threads)
                if isinstance(call.step, ViewStep) and np.may_share_memory(gy, array(call.inputs[0])):
                    continue
                gx = tuple(map(gradient, reverse.inputs))
                call.step.vjp(gy, gx, replace(saved, scratch=memory.scratch))
        gx_image = array(plan.input.name).transpose(plan.input.logical_axes)
        maps = np.array(gx_image, np.float32).reshape(n, k, *plan.input_shape)
        self._pool.give(("reverse", m), memory)
        return maps


def _through_gate(gy: Floats, gx: Gradient, threads: int) -> None:
    """gx (+)= gy, and of the result what passes the gate."""
    pointwise_bwd(pixels(gy), NO_WEIGHTS, gx.mask, gx.gate, pixels(gx.array), int(gx.accumulate), threads)
