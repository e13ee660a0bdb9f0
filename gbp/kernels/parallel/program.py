"""`Program`: what a run calls over and over again on the same arrays, prepared once and run without Python.

While a run is recorded each kernel that it calls leaves an instruction: where the machine code is, its packed
arguments, parts and phases.  Steps that do more than call the same kernels with the same arguments are kept
as they are, between the rows of instructions before and after them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..codegen.jit import Kernel
from .team import INSTRUCTION, MAX_PARTS
from .threads import run

Work = Callable[[], None]

#: Instructions that are run at once: between them the interpreter can be interrupted.
_AT_ONCE = 32
_BYTES = 8 * INSTRUCTION
#: Elements below which a prepared call is not cut into parts: it would be done before a helper came.
_SMALL = 2**14


class _Where(NamedTuple):
    word: NDArray[np.int64]
    value: int


class _Instruction:
    """One call of a kernel."""

    def __init__(self, kernel: Kernel, args: Sequence[Any], where: _Where | None, cuts_small: bool) -> None:
        self.args, self.threads = args, int(args[-1])
        self.block = kernel.pack(args[:-1])  # the address of this memory goes into the row
        parts = 1 if self.threads == 1 else min(MAX_PARTS, kernel.split * self.threads)
        if not cuts_small and kernel.elements(args) < _SMALL:
            parts = 1
        phases = kernel.phases(args) if kernel.phases else 1
        self._where = where  # its word must live
        condition = (0, 0) if where is None else (where.word.ctypes.data, where.value)
        self.row = kernel.address, self.block.ctypes.data, parts, phases, *condition


class _Row:
    """Instructions one after another."""

    def __init__(self, instructions: Sequence[_Instruction]) -> None:
        self._instructions = instructions  # their arrays and blocks must live
        self._words: NDArray[np.int64] = np.array([each.row for each in instructions], np.int64)
        self._threads = max(each.threads for each in instructions)
        first = self._words.ctypes.data
        stop = first + self._words.nbytes
        self._spans = [
            (at, min(stop, at + _BYTES * _AT_ONCE)) for at in range(first, stop, _BYTES * _AT_ONCE)
        ]

    def __call__(self) -> None:
        for first, stop in self._spans:
            run(first, stop, self._threads)


class Program:
    """Runs the work that it is first given, which must do the same on the same arrays each time."""

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
        self._recorded = []  # there may be what a run left that was interrupted
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
    where: _Where | None = None


_recording = _Recording()


def submit(kernel: Kernel, args: Sequence[Any]) -> None:
    """Run one kernel; where a program is recorded on this thread, it will again."""
    instruction = _Instruction(kernel, args, _recording.where, cuts_small=_recording.program is None)
    if _recording.program is not None:
        _recording.program.add(instruction)
    _Row([instruction])()


@contextmanager
def only_where(word: NDArray[np.int64], value: int) -> Iterator[None]:
    """Run the kernels that are called within only where the word (1,) holds this value when their turn comes.

    So a run that decides by what it computed is prepared as well: both ways, each under its condition.
    """
    before, _recording.where = _recording.where, _Where(word, value)
    try:
        yield
    finally:
        _recording.where = before


def perform(work: Work, repeats: bool) -> None:
    """Do `work`.

    `repeats`: it calls kernels with the same arguments each time and does nothing else.  Where it does more,
    a program that is recorded keeps it whole.
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
