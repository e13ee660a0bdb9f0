"""Callers, and the helpers that work with them.

A caller is a thread that runs kernels.  A process has one team of helpers (`team`), which is made on first
use.  One caller at a time has the team; meanwhile the others work alone.  Callers and working helpers
together are no more than the processors that the process may use: each further caller takes the place of a
helper.

On a busy machine a caller may wait long for a helper that the system does not run.  A caller that waited too
long in two runs in a row works alone for a while.  A run is one call of `run`: some dozen calls of kernels.
Runs shorter than a wait that counts say nothing, so they may lie between the two.  One long wait says little:
the system may wake a helper on the caller's own processor, and leaves it there until its next tick.

A thread may also work alone always, because others compute at the same time.

A forked child has none of its parent's threads, so it makes a team of its own.

Ctrl-C may interrupt the main thread anywhere, also between a count and the block that would end by undoing
it.  So callers are a set of threads, which the next call of the same thread puts right, and the main thread
takes no turn that could be lost.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from functools import cache
from queue import SimpleQueue
from threading import get_ident

import numpy as np

from ...errors import InputError
from ..codegen.memory import aligned
from . import team as native
from .cores import MAX_THREADS, usable_cores

#: Seconds that a thread spins before it sleeps: about as long as waking up takes.
_SPINNING = 50e-6
#: How many times as long a helper does while a caller explains.  Between the runs of an explanation are some
#: tenths of a millisecond of Python, and to wake a helper takes a caller another tenth.
_STAYING = 6
#: The machine was busy in a run if it waited for more than this share of its time, and for so many seconds.
_WAITED, _LEAST_WAIT = 0.3, 1e-3
#: Seconds that callers then work alone: after the second wait in a row, and at most, as each further one
#: doubles them.
_ALONE, _MAX_ALONE = 0.05, 1.0
#: The word of a team that says how often a helper spins.
_HELPERS_SPINS = native.HELPERS_SPINS // 8


@cache
def available() -> int:
    """Processors that this process may use, or what GBP_NUM_THREADS says.  Raises InputError."""
    return usable_cores()


def thread_count(threads: int | None) -> int:
    """The number of threads to use: all that are available by default.  Raises InputError below 1."""
    if threads is None:
        return available()
    if (
        isinstance(threads, bool)
        or not isinstance(threads, (int, np.integer))
        or not 1 <= threads <= MAX_THREADS
    ):
        raise InputError(
            f"threads is {threads!r}.", supported=f"a whole number from 1 to {MAX_THREADS}, or None for all"
        )
    return int(threads)


class _Team:
    """The helpers of this process.

    `free` is held by the caller that has them.  `callers` are the identifiers of threads.
    """

    def __init__(self) -> None:
        self.free = threading.Lock()
        self.callers: set[int] = set()
        self._helpers = 0
        self._alone_until, self._alone = 0.0, 0.0
        self._memory = aligned((native.MEMBERS + MAX_THREADS * native.MEMBER_BYTES,), np.uint8)
        self._address, self.words = self._memory.ctypes.data, self._memory.view(np.int64)
        self.spins = 0  # of a thread before it sleeps

    def call(self, threads: int) -> None:
        """Wake the helpers that a run will have, if it begins now.

        Waking up takes as long as a caller needs to prepare a run.
        """
        members = min(self._members(threads), 1 + self._helpers)
        if members > 1:
            _functions().call(self._address, members)

    def _members(self, threads: int) -> int:
        """How many threads, with the caller, may work on a run now."""
        members = min(threads, 1 + available() - max(1, len(self.callers)))
        return members if members > 1 and time.monotonic() >= self._alone_until else 1

    def run(self, first: int, stop: int, threads: int) -> None:
        """Run the instructions from address `first` to `stop`, with as many helpers as may work."""
        members = self._members(threads)
        if members > 1 and self.free.acquire(blocking=False):
            try:
                self._run(first, stop, members)
            finally:
                self.free.release()
        else:
            _functions().run_alone(first, stop)

    def _run(self, first: int, stop: int, members: int) -> None:
        self._hire(members - 1)
        began, worked = time.perf_counter(), time.thread_time()
        _functions().run_team(self._address, first, stop, members)
        took = time.perf_counter() - began
        waited = took - (time.thread_time() - worked)
        if waited > max(_LEAST_WAIT, _WAITED * took):
            self._alone_until = time.monotonic() + self._alone
            self._alone = min(max(_ALONE, 2 * self._alone), _MAX_ALONE)
        elif took > _LEAST_WAIT:  # a shorter run could not have waited too long
            self._alone = 0.0

    def _hire(self, helpers: int) -> None:
        """Have at least so many helpers."""
        if self._helpers >= helpers:
            return
        if not self._helpers:
            self._begin()
        # Helpers inherit this mask, so that the process's signals go to other threads.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()) if _SIGMASK else None
        try:
            for slot in range(self._helpers + 1, helpers + 1):
                member = self._new_member(slot)
                _PYTHON.PyThread_start_new_thread(_functions().work, member)
                self._helpers = slot
        finally:
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _begin(self) -> None:
        self._memory.fill(0)
        self.words[native.SPINS // 8] = self.words[_HELPERS_SPINS] = self.spins = _spins()
        self.words[native.ACQUIRE // 8] = _address_of(_PYTHON.PyThread_acquire_lock)
        self.words[native.RELEASE // 8] = _address_of(_PYTHON.PyThread_release_lock)
        self._new_member(0)

    def _new_member(self, slot: int) -> int:
        """Make a member and return its address.  Its lock is locked, so taking the lock means to sleep."""
        lock = _PYTHON.PyThread_allocate_lock()
        _PYTHON.PyThread_acquire_lock(lock, 1)
        member = native.MEMBERS + slot * native.MEMBER_BYTES
        words = self._memory[member : member + native.MEMBER_BYTES].view(np.int64)
        words[native.LOCK // 8], words[native.TEAM // 8], words[native.SLOT // 8] = lock, self._address, slot
        return self._address + member


# The interpreter's C functions for threads and locks exist on every system.  They do not need its own lock.
_PYTHON = ctypes.pythonapi
_PYTHON.PyThread_allocate_lock.restype = ctypes.c_void_p
_PYTHON.PyThread_acquire_lock.argtypes = [ctypes.c_void_p, ctypes.c_int]
_PYTHON.PyThread_start_new_thread.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
_PYTHON.PyThread_start_new_thread.restype = ctypes.c_ulong
_SIGMASK = hasattr(signal, "pthread_sigmask")


def _address_of(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address is not None
    return address


class _Functions:
    """The machine code of `team` as Python calls it: without the interpreter's lock."""

    def __init__(self) -> None:
        self.run_team = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(native.run_team.address)
        self.call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2)(native.call.address)
        self.run_alone = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2)(native.run_alone.address)
        self.spin = ctypes.CFUNCTYPE(None, ctypes.c_int64)(native.spin.address)
        self.work = native.work.address


@cache
def _functions() -> _Functions:
    return _Functions()


def _spins() -> int:
    """How many spins take `_SPINNING` seconds."""
    times, seconds = 1000, []
    for _ in range(5):  # the shortest counts, because other work may interrupt the thread
        began = time.perf_counter()
        _functions().spin(times)
        seconds.append(time.perf_counter() - began)
    return max(1, int(times * _SPINNING / min(seconds)))


_team = _Team()
_main = threading.main_thread().ident
_this_thread = threading.local()


def work_alone() -> None:
    """Have the calling thread run all its kernels alone from now on."""
    _this_thread.is_alone = True


def is_alone() -> bool:
    """Whether the calling thread runs its kernels alone: see `work_alone`."""
    return getattr(_this_thread, "is_alone", False)


def run(first: int, stop: int, threads: int) -> None:
    """Run the instructions from address `first` to `stop` on at most so many threads."""
    if threads == 1 or is_alone():
        _functions().run_alone(first, stop)
    else:
        _team.run(first, stop, threads)


class turn:  # named like a function; as a generator it would take a notable part of a small network's time
    """A context manager that waits until few enough other threads explain.

    Twice as many as there are processors may explain: one computes while another is in the interpreter.  More
    would take more memory and not be faster.  The main thread does not wait.

    Inside, helpers spin longer before they sleep, because the next run of the explanation is near.
    """

    def __enter__(self) -> None:
        self._turns = None if get_ident() == _main else _turns()
        if self._turns is not None:
            self._turns.get()
        _team.words[_HELPERS_SPINS] = _STAYING * _team.spins

    def __exit__(self, *_: object) -> None:
        _team.words[_HELPERS_SPINS] = _team.spins
        if self._turns is not None:
            self._turns.put(None)


@cache
def _turns() -> SimpleQueue[None]:
    turns: SimpleQueue[None] = SimpleQueue()
    for _ in range(2 * available()):
        turns.put(None)
    return turns


class parallel:  # named like a function, as `turn`
    """A context manager inside which a thread counts as a caller, and so takes the place of a helper.

    Parameters
    ----------
    threads
        How many threads the runs inside may use.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        self._team = _team
        self._team.callers.add(get_ident())
        if self._threads > 1 and not is_alone():
            self._team.call(self._threads)

    def __exit__(self, *_: object) -> None:
        self._team.callers.discard(get_ident())


def _begin_anew() -> None:
    global _team, _main  # a child's own
    _team, _main = _Team(), get_ident()
    available.cache_clear()
    _turns.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
