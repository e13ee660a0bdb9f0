"""Memory of runs: buffers cut out of an arena, and the pool that keeps arenas for the next call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from ..devices.base import Array, Device, Exit
from ..limits import elements
from ..ops.step import Floats, view
from ..plan.aliasing import BufferSlice
from ..plan.arena import Arena
from ..plan.backward import Route
from ..plan.plan import Plan
from .locks import give_lock

T = TypeVar("T")


class Buffers:
    """The arrays of all tensors for `n` samples, cut out of one arena; and scratch.

    Parameters
    ----------
    plan
        Fixes the buffer slice of each tensor.
    arena
        `plan.activations`, or that of a route or of the plan's tail.
    n
        Samples.
    floats
        The memory, float32.  The arena is at its beginning.
    scratch
        Memory for intermediate results of single steps, float32.
    shared
        Buffers that are not in this memory, (n, floats).
    """

    def __init__(
        self,
        plan: Plan,
        arena: Arena,
        n: int,
        floats: Floats,
        scratch: Floats,
        shared: Mapping[str, Floats] | None = None,
    ) -> None:
        self._plan, self.n, self.arena = plan, n, arena
        self.floats, self.scratch = floats, scratch
        self._ends: tuple[Floats, Exit] | None = None
        self._buffers = {root: self._buffer(root) for root in arena.begins} | dict(shared or {})
        self.arrays: dict[str, Floats] = {
            name: view(self.at(part), n, *plan.tensors[name].shape)
            for name, part in plan.slices.items()
            if part.root in self._buffers
        }

    def _buffer(self, root: str) -> Floats:
        """The memory of a buffer, (n, floats)."""
        begin, size = self.n * self.arena.begins[root], elements(self._plan.tensors[root].shape)
        return self.floats[begin : begin + self.n * size].reshape(self.n, size)

    @classmethod
    def new(cls, plan: Plan, arena: Arena, n: int, size: int, threads: int, device: Device) -> Buffers:
        """Buffers in newly allocated memory of `size` floats a sample."""
        scratch = device.empty((scratch_floats(plan, n, threads),))
        return cls(plan, arena, n, device.empty((n * size,)), scratch)

    def piece(self, arena: Arena, rows: slice, begin: int, shared: Iterable[str] = ()) -> Buffers:
        """Buffers for some rows, which stand for samples, in the same memory.

        Parameters
        ----------
        arena
            Theirs.
        rows
            The rows of these buffers that are theirs.
        begin
            The first float of the memory that they take.
        shared
            The buffers that they have in common with these.
        """
        n = rows.stop - rows.start
        floats = self.floats[begin : begin + n * arena.size]
        common = {root: self._buffers[root][rows] for root in shared}
        return Buffers(self._plan, arena, n, floats, self.scratch, common)

    def ends(self, route: Route, device: Device, threads: int) -> tuple[Floats, Exit]:
        """The ends of a backward pass: the start's gradient, in memory order, and where the end's leaves.

        `route`: the one whose arena this is.
        """
        if self._ends is None:
            start, end = route.start, route.end
            seed = device.empty((self.n, *start.shape))
            self._ends = seed, device.exit(self.arrays[end.name], end.logical_axes, threads)
        return self._ends

    def at(self, part: BufferSlice) -> Floats:
        """The memory of a buffer slice, (n, rows, elements)."""
        return part.of(self._buffers[part.root].reshape(self.n, -1, part.row))


def masks_of(plan: Plan, n: int, device: Device) -> dict[str, Array]:
    """The mask of every tensor that has one: uint8 (n, H, W, bytes)."""
    memories = {
        root: device.empty((n, *plan.tensors[root].mask_shape), np.uint8)
        for root in {part.root for part in plan.masks.values()}
    }
    return {
        name: view(part.of(memories[part.root].reshape(n, -1, part.row)), n, *plan.tensors[name].mask_shape)
        for name, part in plan.masks.items()
    }


class MemoryPool:
    """Keeps memory that is not in use for the next call.

    Fresh pages from the system take as long as a small network.

    Parameters
    ----------
    max_bytes
        Bytes that kept memories of one kind may take together.  One is kept even if it is larger.
    max_kept
        How many memories of one kind and size are kept.
    """

    lock: Lock

    def __init__(self, max_bytes: int = 0, max_kept: int = 4) -> None:
        self._free: dict[tuple[str, Hashable], list[Any]] = {}
        self._bytes: dict[tuple[str, Hashable], int] = {}
        self.max_bytes, self._max_kept = max_bytes, max_kept
        give_lock(self)

    def acquire(self, kind: str, size: Hashable, nbytes: int, make: Callable[[], T]) -> T:
        """Take a memory of this kind, size and number of bytes from the pool, or call `make`.

        Kept memories of this kind and of other sizes are freed first, if they take more than `max_bytes`
        together with this one: those that were used longest ago, and no more than it takes.
        """
        with self.lock:
            if len(self._free) > 1 or (kind, size) not in self._free:
                self._make_room(kind, size, nbytes)
            kept = self._free.get((kind, size))
            if kept:
                memory: T = kept.pop()
                return memory
        return make()

    def clear(self) -> None:
        """Free all that is kept."""
        with self.lock:
            self._free.clear()
            self._bytes.clear()

    def release(self, kind: str, size: Hashable, nbytes: int, memory: Any) -> None:
        """Put a memory back.  It is kept where there is room, or where none of its size is."""
        with self.lock:
            kept = self._free.pop((kind, size), [])
            self._free[kind, size], self._bytes[kind, size] = kept, nbytes  # the last is what was used last
            if not kept and len(self._free) == 1:  # as one caller has it
                kept.append(memory)
                return
            room = self._make_room(kind, size, (len(kept) + 1) * nbytes)
            if not kept or (room >= 0 and len(kept) < self._max_kept):
                kept.append(memory)

    def _make_room(self, kind: str, size: Hashable, nbytes: int) -> int:
        """Free memories of other sizes until `nbytes` fit beside the rest.  Returns the bytes that are left.

        The caller has the lock.
        """
        others = [key for key in self._free if key[0] == kind and key[1] != size]
        room = self.max_bytes - nbytes - sum(len(self._free[key]) * self._bytes[key] for key in others)
        for other in others:
            while room < 0 and self._free[other]:
                self._free[other].pop()
                room += self._bytes[other]
            if not self._free[other]:
                del self._free[other], self._bytes[other]
        return room


def scratch_floats(plan: Plan, n: int, threads: int) -> int:
    """Floats of scratch that a run of `n` samples needs: those of the step that needs most."""
    largest = 0
    for instruction in plan.instructions:
        fixed, each = instruction.step.scratch(threads)
        largest = max(largest, fixed + n * each)
    return largest
