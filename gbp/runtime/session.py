"""`Session`: one plan and the memory that it runs in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..devices.base import Device, Samples
from ..errors import InputError, ModelError, OutOfMemoryError, readable_bytes
from ..kernels.codegen.gate import Gate
from ..limits import MAX_BYTES_PER_SAMPLE, computing, elements, is_finite, refuse_not_finite
from ..plan.backward import Route
from ..plan.plan import Plan
from .memory import MemoryPool, scratch_floats
from .tape import Reduce, Tape, renamed, steps
from .total import Total

T = TypeVar("T")

#: Bytes of a work from which a thread of its own pays, which takes a tenth of a millisecond to begin.
_LEAST_AT_ONCE = 4 * 2**20
#: Ops that are not defined for all numbers.
_UNDEFINED = ("Div", "Reciprocal", "Log", "Sqrt", "Pow", "Acos", "Acosh", "Asin", "Atanh", "LpNormalization")


@dataclass
class Session:
    """A plan and the memory that its runs share.  Threads may share a session.

    Parameters
    ----------
    plan
        How the network is computed.
    device
        Where it is computed.
    threads
        How many threads a kernel may use.
    memory
        Bytes that a slice of a batch may take; None for the device's default.
    """

    plan: Plan
    device: Device
    threads: int
    memory: int | None
    pool: MemoryPool = field(init=False)
    #: The backward passes between other tensors than scores and input, made on first use.
    routes: dict[tuple[str | None, str | None], Route | None] = field(default_factory=dict)
    #: The largest slice that fitted, after a larger one ran out of memory; None before that.
    max_fitting: int | None = None

    def __post_init__(self) -> None:
        #: How many samples run at once before the plan's tail; None for all.
        self.samples_per_piece: int | None = None
        if self.device.is_host and self.plan.tail is not None:
            self.samples_per_piece = self.plan.max_samples(self.memory or self.device.slice_bytes, targets=1)
        self.pool = MemoryPool(self.memory or self.device.slice_bytes, max(4, self.threads))

    def run(self, x: Samples, offset: int = 0, to_input: bool = True) -> Tape:
        """Run samples forward.  The caller must be within `limits.computing`.

        Parameters
        ----------
        x
            float32 (N, …) in the model's own layout.
        offset
            The index of x[0] among all samples of the call, for messages.
        to_input
            As for `Tape`.

        Raises
        ------
        InputError
            Where a sample holds NaN or infinity.
        ModelError
            Where a score is NaN or infinity.
        """
        tape = Tape(self.plan, x, self.pool, self.threads, self.device, to_input, self.samples_per_piece)
        if any(tape.marks):
            refuse_not_finite(offset + next(i for i, mark in enumerate(tape.marks) if mark))
        if not is_finite(tape.scores):
            raise self._not_finite(x, tape.scores)
        return tape

    def _not_finite(self, x: Samples, scores: NDArray[np.float32]) -> ModelError:
        """The error that names the first node whose result is NaN or infinite as the scores are."""
        sample = int(np.argmin(np.isfinite(scores).all(axis=1)))
        is_odd, what = (np.isnan, "NaN") if np.isnan(scores[sample]).any() else (np.isinf, "infinity")
        overflow = "The network's values overflow float32."
        run = steps(self.plan, x[sample : sample + 1], self.threads) if self.device.is_host else ()
        with computing():
            for instruction, arrays in run:
                if is_odd(arrays[instruction.output]).any():
                    name = instruction.layers[0]
                    op = self.plan.kinds.get(name)
                    is_defined = op not in _UNDEFINED or any(
                        np.isinf(arrays[y]).any() for y in instruction.inputs
                    )
                    return ModelError(
                        f"its result holds {what}, and so the scores hold NaN or infinity.",
                        node=name,
                        op=op,
                        hint=overflow if is_defined else "It is not defined for its operands: 0 / 0, say.",
                    )
        return ModelError("the scores hold NaN or infinity.", hint=overflow)

    def backward(self, tape: Tape, gate: Gate, targets: NDArray[np.int64]) -> NDArray[np.float32]:
        """The maps of a forward run, as many targets at a time as the memory holds.

        Parameters
        ----------
        tape
            The forward run of n samples.
        gate
            The gate of the rule.
        targets
            int64 (n, K): indices into the scores.

        Returns
        -------
        float32 (n, K, …), each map in the shape of one input.

        Raises
        ------
        InputError
            Where the maps of one sample exceed `limits.MAX_BYTES_PER_SAMPLE`.
        """
        count = targets.shape[1]
        if count == 1:
            return tape.backward(gate, targets)
        nbytes = 4 * count * elements(self.plan.input_shape)
        if nbytes > MAX_BYTES_PER_SAMPLE:
            raise InputError(
                f"the maps of one sample would take {readable_bytes(nbytes)}.",
                supported=readable_bytes(MAX_BYTES_PER_SAMPLE),
                hint="Explain fewer targets at a time.",
            )
        return self._in_parts(
            tape.n, count, self.plan.backward, lambda part: tape.backward(gate, targets[:, part])
        )

    def route(self, of: str | None, wrt: str | None) -> Route | None:
        """The backward pass from one tensor to another, made on first use: see `Plan.route`."""
        if (of, wrt) not in self.routes:
            self.routes[of, wrt] = self.plan.route(of, wrt)
        return self.routes[of, wrt]

    def vjp(
        self,
        tape: Tape,
        gate: Gate,
        seeds: NDArray[np.float32],
        of: str | None,
        wrt: str | None,
        reduce: Reduce | None = None,
        total: Total | None = None,
    ) -> NDArray[np.float32]:
        """Gradients of Σ seed · tensor, as many seeds at a time as the memory holds.

        Parameters
        ----------
        tape
            The forward run of n samples.
        gate
            The gate of the rule.
        seeds
            float32 (n, K, …): K seeds for each sample.
        of, wrt
            As for `Plan.route`.
        reduce
            As for `Tape.vjp`.
        total
            As for `Tape.vjp`; only for a route that adds up, and as many seeds as the memory holds.

        Returns
        -------
        float32 (n, K, …), each in the shape of `wrt`; or what `reduce` returns.
        """
        route, (n, count) = self.route(of, wrt), seeds.shape[:2]
        if of == wrt is not None:
            gradient = seeds
        elif route is None:
            gradient = np.zeros((n, count, *self.plan.shape_of(wrt)), np.float32)
        elif self.plan.only_renames(route):
            gradient = renamed(seeds, route)
        elif total is not None:
            return tape.vjp(gate, route, seeds, reduce, total)
        else:
            return self._in_parts(n, count, route, lambda part: tape.vjp(gate, route, seeds[:, part], reduce))
        return gradient if reduce is None else reduce(gradient)

    def _in_parts(
        self, n: int, count: int, route: Route, compute: Callable[[slice], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """The backward passes of `count` targets for each of n samples, as many at a time as fit."""
        if count == 1:
            return compute(slice(0, 1))
        step = self.plan.max_targets(self.memory or self.device.slice_bytes, n, route)
        parts = [compute(slice(k, k + step)) for k in range(0, count, step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def at_once(self, samples: int, targets: int) -> int:
        """How many slices of a batch are best computed at the same time, each by one thread.

        More than 1 where layers are small, so that threads which share a layer mostly wait for each other.
        Each slice reads all weights, which is no loss where its own memory is larger than they are.

        Parameters
        ----------
        samples, targets
            The size of a slice.
        """
        nbytes, room = self.plan.nbytes(samples, targets), self.memory or self.device.slice_bytes
        if not self.device.is_host or nbytes < max(_LEAST_AT_ONCE, 4 * self.plan.weights):
            return 1
        return max(1, min(self.threads, room // (nbytes + self.scratch_bytes)))

    def adds_up(self, samples: int, targets: int, of: str | None) -> bool:
        """Whether so many samples are best explained by one run that adds up their maps (`Route.adds_up`).

        Whatever the memory and the threads are, because it changes last bits.  A run of tiny samples had
        better have more of them.

        Parameters
        ----------
        samples, targets
            The size of the run.
        of
            The tensor of the seeds, or None for the scores.
        """
        route = self.route(of, None)
        is_worth_a_run = self.plan.nbytes(samples, targets) >= _LEAST_AT_ONCE
        return samples > 1 and route is not None and route.adds_up and is_worth_a_run

    @cached_property
    def scratch_bytes(self) -> int:
        """Bytes of scratch of one memory, besides what grows with the samples: it serves all threads."""
        return 4 * scratch_floats(self.plan, 0, self.threads)

    def slices(
        self, count: int, targets: int, batch_size: int | None, single_pass: bool = False
    ) -> Iterator[slice]:
        """Cut a batch of `count` samples into slices that fit into memory.

        Parameters
        ----------
        count
            Samples in the batch.
        targets
            Targets for each sample.
        batch_size
            The largest slice; None for the device's default.
        single_pass
            Whether a slice runs once forward and at most once back.  Then it may be as large as fits where
            only the plan's tail runs on all of its samples (`runtime.pieces`).  Several backward passes of a
            run take the memory of all samples.
        """
        if count == 1:
            yield slice(0, 1)
            return
        device = self.device
        budget = self.memory or (device.slice_bytes if batch_size is None else device.max_bytes)
        fitting = self.plan.max_samples(budget, targets)
        if single_pass and targets == 1 and self.samples_per_piece is not None:
            fitting = self.plan.max_samples_in_pieces(budget, self.samples_per_piece)
        size = min(batch_size or device.max_slice, fitting, self.max_fitting or fitting)
        slices = self._count_of_slices(count, size, targets)
        least, larger = divmod(count, slices)  # of nearly equal size, because weights are read once a slice
        start = 0
        for k in range(slices):  # sizes change once, because another size may take other memory
            stop = start + least + (k < larger)
            yield slice(start, stop)
            start = stop

    def _count_of_slices(self, count: int, size: int, targets: int) -> int:
        """Into how many slices of at most `size` samples a batch is cut.

        Two sizes whose memory the pool does not keep side by side are made anew in each call.  So a few more
        slices are better, if all are of one size then, or of two whose memory it keeps.
        """
        fewest, sample = -(-count // size), self.plan.forward_bytes
        if targets > 1:
            sample = max(sample, targets * self.plan.backward_bytes)
        for slices in range(fewest, 2 * fewest + 1):
            if count % slices == 0 or (2 * (count // slices) + 1) * sample <= self.pool.max_bytes:
                return slices
        return fewest

    def fitting(self, part: slice, compute: Callable[[slice], T]) -> Iterator[T]:
        """The result of `compute` for these samples; where memory runs out, the results for its halves."""
        try:
            result = compute(part)
        except OutOfMemoryError:
            if part.stop - part.start == 1:
                raise
        else:
            yield result
            return
        # Outside the handler: the error holds references to the memory.
        self.pool.clear()
        half = (part.stop - part.start) // 2
        self.max_fitting = half
        yield from self.fitting(slice(part.start, part.start + half), compute)
        yield from self.fitting(slice(part.start + half, part.stop), compute)
