"""`Program`: the kernel calls of a run, recorded the first time and then repeated without Python.

A run on the same arrays makes the same calls each time.  While the first run is recorded, each call becomes
an instruction: the address of the machine code, the packed arguments, the numbers of parts and phases.
Neighbouring instructions form a row, which native code runs at once.  Some steps do more than call the same
kernels with the same arguments.  They are recorded as Python functions, between the rows.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..codegen.jit import Kernel
from ..codegen.memory import address_of
from .team import INSTRUCTION, MAX_PARTS
from .threads import run

Work = Callable[[], None]

#: Instructions that native code runs at once; in between, the interpreter can handle Ctrl-C.  More, while the
#: arrays of all hold no more elements than these, because to go back costs more than a small instruction.
_AT_ONCE, _ELEMENTS_AT_ONCE = 32, 2**24
_BYTES = 8 * INSTRUCTION
#: A recorded call on fewer elements is not cut into parts: it is done before a helper wakes up.
_SMALL = 2**14


class Condition(NamedTuple):
    """The word (1,) holds the value."""

    word: NDArray[np.int64]
    value: int


class _Instruction:
    """One call of a kernel."""

    def __init__(
        self, kernel: Kernel, args: Sequence[Any], where: Condition | None, cuts_small: bool
    ) -> None:
        self.args, self.threads = args, int(args[-1])
        self.block = kernel.pack(args[:-1])  # the address of this memory goes into the row
        self.elements = kernel.elements(args)
        parts = 1 if self.threads == 1 else min(MAX_PARTS, kernel.split * self.threads)
        if not cuts_small and self.elements < _SMALL:
            parts = 1
        phases = kernel.phases(args) if kernel.phases else 1
        self._where = where  # keeps the word's memory alive
        condition = (0, 0) if where is None else (address_of(where.word), where.value)
        block, _ = self.block.buffer_info()
        self.words = array("q", (kernel.address, block, parts, phases, *condition))

    def __call__(self) -> None:
        first, _ = self.words.buffer_info()
        run(first, first + _BYTES, self.threads)


class _Row:
    """Instructions one after another."""

    def __init__(self, instructions: Sequence[_Instruction]) -> None:
        self._instructions = instructions  # keeps their arrays and blocks alive
        self._words: array[int] = array("q")
        for each in instructions:
            self._words += each.words
        self._threads = max(each.threads for each in instructions)
        first, _ = self._words.buffer_info()
        self._spans = [
            (first + _BYTES * start, first + _BYTES * stop)
            for start, stop in _spans([each.elements for each in instructions])
        ]

    def __call__(self) -> None:
        for first, stop in self._spans:
            run(first, stop, self._threads)


def _spans(elements: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Which instructions, of so many elements each, native code runs at once: [start, stop) of each span."""
    start = held = 0
    for at, each in enumerate(elements):
        if at - start >= _AT_ONCE and held + each > _ELEMENTS_AT_ONCE:
            yield start, at
            start, held = at, 0
        held += each
    yield start, len(elements)


class Program:
    """Runs work: the first time it records what the work does, and later it repeats the record.

    The work must make the same calls on the same arrays each time.
    """

    def __init__(self) -> None:
        self._prepared: list[Work] | None = None
        self._recorded: list[_Instruction | Work] = []

    def __call__(self, work: Work) -> None:
        if self._prepared is None:
            self._record(work)
        else:
            for prepared in self._prepared:
                prepared()

    def add(self, what: _Instruction | Work) -> None:
        self._recorded.append(what)

    def _record(self, work: Work) -> None:
        self._recorded = []  # an earlier run may have been interrupted while it was recorded
        before, _recording.program = _recording.program, self
        try:
            work()
        finally:
            _recording.program = before
        prepared: list[Work] = []
        row: list[_Instruction] = []
        for each in (*self._recorded, None):
            if isinstance(each, _Instruction):
                row.append(each)
                continue
            if row:
                prepared.append(_Row(row))
                row = []
            if each is not None:
                prepared.append(each)
        self._recorded = []
        self._prepared = prepared


class _Recording(threading.local):
    program: Program | None = None
    where: Condition | None = None
    named: dict[Kernel, None] | None = None


_recording = _Recording()


def submit(kernel: Kernel, args: Sequence[Any]) -> None:
    """Run one kernel.  If this thread records a program, the call becomes a part of it."""
    if _recording.named is not None:
        _recording.named[kernel] = None
        return
    instruction = _Instruction(kernel, args, _recording.where, cuts_small=_recording.program is None)
    if _recording.program is not None:
        _recording.program.add(instruction)
    instruction()


@contextmanager
def under(condition: Condition | None) -> Iterator[Condition | None]:
    """A context manager: kernels called inside run only where the condition holds, or always.

    Yields the condition outside.
    """
    before, _recording.where = _recording.where, condition
    try:
        yield before
    finally:
        _recording.where = before


@contextmanager
def only_named() -> Iterator[dict[Kernel, None]]:
    """A context manager: kernels that this thread calls inside do not run.  Yields them, in order, each once.

    A run inside needs memory of its own, and leaves it as it was.
    """
    before, _recording.named = _recording.named, {}
    try:
        yield _recording.named
    finally:
        _recording.named = before


def perform(work: Work, repeats: bool) -> None:
    """Do `work`, and record it if this thread records a program.

    Parameters
    ----------
    work
        The function.
    repeats
        Whether it calls the same kernels with the same arguments each time and does nothing else.  Then its
        calls are recorded.  If not, the function itself is.
    """
    program = _recording.program
    if repeats or program is None:
        work()
        return
    program.add(work)
    _recording.program = None
    try:
        work()
    finally:
        _recording.program = program


Kernel.submit = submit
