"""`Workers`: threads that take tasks from a queue of limited length, tasks of one kind together."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

#: The share of the newest duration in the mean of durations.
_NEWEST = 0.1


class BusyError(Exception):
    """The queue is full, or nothing is explained yet.

    Parameters
    ----------
    seconds
        After how many seconds there may be a place.
    why
        Why there is none.
    """

    def __init__(self, seconds: int, why: str = "the server is busy") -> None:
        super().__init__(f"{why}; try again in {seconds} s")
        self.seconds, self.why = seconds, why


@dataclass(eq=False)
class _Entry(Generic[Task, Result]):
    """A task in the queue, with the arguments of `submit`."""

    task: Task
    key: Hashable
    together: int
    future: Future[Result] = field(default_factory=Future)


class Workers(Generic[Task, Result]):
    """Threads that do tasks in the order of their arrival.

    Parameters
    ----------
    run
        Does some tasks together: a result or an exception for each.
    threads
        How many threads.
    length
        Tasks that may wait.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Task]], Sequence[Result | BaseException]],
        *,
        threads: int,
        length: int,
    ) -> None:
        self._run, self._length = run, length
        self._waiting: deque[_Entry[Task, Result]] = deque()
        self._changed = threading.Condition()
        self._idle, self._closed = 0, False
        #: The mean duration of a task.
        self._seconds = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"gbp-serve-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """How many tasks wait."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Raise `BusyError` if no further task may wait."""
        if self._closed or len(self._waiting) >= self._length:
            raise BusyError(self._seconds_until_room())

    def submit(self, task: Task, key: Hashable, together: int = 1) -> Future[Result]:
        """Have a task done.

        Parameters
        ----------
        task
            For `run`.
        key
            Tasks with equal keys may be done together.
        together
            How many of these at most.

        Raises
        ------
        BusyError
            If the queue is full, or closed.
        """
        entry: _Entry[Task, Result] = _Entry(task, key, together)
        with self._changed:
            self.check_room()
            self._waiting.append(entry)
            self._changed.notify()
        return entry.future

    def leave(self, future: Future[Result]) -> None:
        """Take a task that nobody waits for any more out of the queue, if it is still there."""
        with self._changed:
            for entry in self._waiting:
                if entry.future is future:
                    self._waiting.remove(entry)
                    break
        future.cancel()

    def close(self) -> None:
        """Accept no more, and return when all that was accepted is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _seconds_until_room(self) -> int:
        """In about how many seconds the tasks that wait now are done, at least 1."""
        return max(1, math.ceil(len(self._waiting) * self._seconds / len(self._threads)))

    def _take(self) -> list[_Entry[Task, Result]]:
        """The oldest task and others with its key; none if all are done and no more will come."""
        with self._changed:
            self._idle += 1
            while not self._waiting and not self._closed:
                self._changed.wait()
            # Idle threads share what waits.
            share = math.ceil(len(self._waiting) / self._idle)
            self._idle -= 1
            if not self._waiting:
                return []
            first = self._waiting[0]
            alike = [entry for entry in self._waiting if entry.key == first.key]
            taken = alike[: min(share, first.together)]
            for entry in taken:
                self._waiting.remove(entry)
        return taken

    def _work(self) -> None:
        """Do tasks until the queue is closed and empty."""
        while taken := self._take():
            entries = [entry for entry in taken if entry.future.set_running_or_notify_cancel()]
            if not entries:
                continue
            began = time.perf_counter()
            try:
                results = self._run([entry.task for entry in entries])
            except BaseException as error:  # a thread must survive it
                results = [error] * len(entries)
            took = (time.perf_counter() - began) / len(entries)
            self._seconds += _NEWEST * (took - self._seconds)
            for entry, result in zip(entries, results, strict=True):
                if isinstance(result, BaseException):
                    entry.future.set_exception(result)
                else:
                    entry.future.set_result(result)
