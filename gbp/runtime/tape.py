"""`Tape`: one forward run of a `Plan`, with all that its backward passes need.

It keeps one bit for each unit of a rectifier and one byte for each max-pool window.  It keeps whole
activations only where a vector-Jacobian product needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..devices.base import Device, Samples
from ..devices.cpu import CPU
from ..kernels.codegen.gate import Gate
from ..kernels.parallel.threads import is_alone
from ..limits import is_finite
from ..ops.step import Floats
from ..plan.backward import Route
from ..plan.layout import Instruction, PhysicalTensor
from ..plan.plan import Plan
from .forward import Forward
from .memory import Buffers, MemoryPool
from .total import Total

#: A function of an array of the run, which may not keep it: it is overwritten later.
Reduce: TypeAlias = Callable[[Floats], Floats]


class Tape:
    """One forward run on a batch.

    `backward` and `vjp` may be called any number of times, under any gates, by one thread at a time.  A tape
    is a context manager: leaving it gives the memory back to the pool.
    """

    def __init__(
        self,
        plan: Plan,
        x: Samples,
        pool: MemoryPool,
        threads: int,
        device: Device = CPU,
        to_input: bool = True,
        samples_per_piece: int | None = None,
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
        to_input
            Whether backward passes may go on before the kept tensors.
        samples_per_piece
            How many samples run at once before the plan's tail; None for all.
        """
        first_masked = 0 if to_input else plan.first_after_kept
        self._plan, self._pool, self._threads, self._device = plan, pool, threads, device
        self.n = len(x)
        self._nbytes = self.n * plan.forward_bytes
        self._kind = "forward" if first_masked == 0 else "forward, inner"
        together = self.n
        if device.is_host:  # one sample for the cache of each processor that computes
            together = 1 if threads == 1 or is_alone() else threads
        self._size = self.n, together
        if samples_per_piece is not None and self.n > samples_per_piece:
            self._nbytes = plan.nbytes_in_pieces(self.n, samples_per_piece)
        make = partial(Forward.make, plan, self.n, threads, device, first_masked, together, samples_per_piece)
        with device.running(threads):
            self._forward = pool.acquire(self._kind, self._size, self._nbytes, make)
            self._forward.feed(x)
            marks, *found = device.read_all(self._forward.marks, *self._forward.scores)
        #: For each sample a number, not 0 if it holds NaN or infinity.
        self.marks: list[float] = marks.tolist()
        #: Whether all maps so far are finite.
        self.is_finite = True
        scores = np.concatenate(found) if len(found) > 1 else found[0]
        #: float32 (N, classes): the scores, in the model's own layout, flattened.
        self.scores: Floats = np.array(scores.transpose(plan.output.logical_axes), np.float32)
        if scores.ndim != 2:
            self.scores = self.scores.reshape(self.n, -1)

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.release(self._kind, self._size, self._nbytes, self._forward)

    def backward(self, gate: Gate, targets: NDArray[np.int64]) -> Floats:
        """Run a backward pass for every target.

        All K targets of a sample are computed as one batch over the sample's masks and switches.

        Parameters
        ----------
        gate
            The gate of the rule.
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

        return self._backward(gate, plan.backward, k, write)

    def vjp(
        self,
        gate: Gate,
        route: Route,
        seeds: Floats,
        reduce: Reduce | None = None,
        total: Total | None = None,
    ) -> Floats:
        """Run a backward pass for every seed, all K of a sample as one batch.

        Parameters
        ----------
        gate
            The gate of the rule.
        route
            Between which tensors of the plan.
        seeds
            float32 (N, K, …): gradients of the route's start, in the file's order of axes.
        reduce
            A function of what would be returned, while it is in the run's memory.
        total
            How the gradients of all samples are added up; None where they are not.

        Returns
        -------
        The gradients of its end, float32 (N, K, …), in the file's order of axes, or (1, K, …) with `total`;
        or what `reduce` returns.
        """
        k, order = seeds.shape[1], (0, *route.start.order)

        def write(seed: Floats) -> None:
            self._device.write(seeds.reshape(-1, *seeds.shape[2:]).transpose(order), seed)

        return self._backward(gate, route, k, write, total, reduce)

    def _backward(
        self,
        gate: Gate,
        route: Route,
        k: int,
        write: Callable[[Floats], None],
        total: Total | None = None,
        reduce: Reduce | None = None,
    ) -> Floats:
        """One backward pass for k seeds a sample, which `write` writes in memory order."""
        forward, m = self._forward, self.n * k
        # With one seed a sample, the gradients may take the memory of the activations, which are done with.
        memory = forward.backward if k == 1 and route is self._plan.backward else None
        size, nbytes = (m, route.start.name, route.end.name), 0
        if memory is None:
            nbytes = m * self._plan.route_bytes(route)
            memory = self._pool.acquire("backward", size, nbytes, lambda: self._buffers(route, m))
        with self._device.running(self._threads):
            seed, leaving = memory.ends(route, self._device, self._threads)
            write(seed)
            if reduce is None and total is None:
                leaving.prepare()
            forward.run_backward(memory, route, gate, total)
            if reduce is None and total is None:
                maps, finite = leaving.read()
                maps = maps[:, None] if k == 1 else maps.reshape(self.n, k, *maps.shape[1:])
            else:
                found = leaving.view()
                found = found.reshape(self.n, k, *found.shape[1:])[: self.n if total is None else 1]
                maps = np.array(found if reduce is None else reduce(found))
                finite = not maps.size or is_finite(maps)  # empty where `reduce` took what it needs
        self.is_finite &= finite
        if memory is not forward.backward:
            self._pool.release("backward", size, nbytes, memory)
        return maps

    def _buffers(self, route: Route, m: int) -> Buffers:
        """Memory of a backward pass of m seeds."""
        arena = route.arena
        return Buffers.new(self._plan, arena, m, arena.size, self._threads, self._device)

    def value(self, tensor: PhysicalTensor, reduce: Reduce | None = None) -> Floats:
        """The values of a kept tensor, float32 (N, …), in the file's order of axes; or a function of them."""
        with self._device.running():
            found = self._device.read(self._forward.arrays[tensor.name]).transpose(tensor.logical_axes)
            return np.array(found if reduce is None else reduce(found))


def renamed(seeds: Floats, route: Route) -> Floats:
    """Seeds (n, K, …) in the shape of a route's end, which is its start under other names of axes."""
    rows = seeds.reshape(-1, *seeds.shape[2:]).transpose(0, *route.start.order)
    named = rows.reshape(-1, *route.end.shape).transpose(route.end.logical_axes)
    return np.array(named.reshape(*seeds.shape[:2], *named.shape[1:]))


def steps(plan: Plan, x: Samples, threads: int) -> Iterator[tuple[Instruction, Mapping[str, Floats]]]:
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
    forward = Forward.make(plan, len(x), threads, CPU)
    for piece in forward.pieces:
        piece.entry.write(x[piece.samples])
        with CPU.running():
            piece.entry.settle()
    for run in forward.bound:
        with CPU.running():
            run.forward()
        yield run.instruction, forward.arrays
