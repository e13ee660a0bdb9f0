"""Several pieces of work at once, each by one thread; what they find is taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeAlias, TypeVar

from numpy.typing import NDArray

from ..kernels.parallel.threads import work_alone
from ..limits import computing

T = TypeVar("T")
#: Work, and where its result goes.  None ends a thread.
_Task: TypeAlias = tuple[Future[T], Callable[[], T]] | None


def in_order(works: Iterable[Callable[[], T]], workers: int) -> Iterator[T]:
    """Call functions, several at once, and yield what they return in the order of the functions.

    Each thread runs its kernels alone, so none waits for another at the end of a layer.

    Parameters
    ----------
    works
        The functions.  The calling thread takes them one by one, and only a few more than are computed.
    workers
        How many threads call them.  The calling thread does where it is 1, and where the system gives no
        thread.
    """
    tasks: SimpleQueue[_Task[T]] = SimpleQueue()
    threads: list[Thread] = []
    waiting = deque[Future[T]]()
    try:
        if workers > 1:
            threads = _begun(workers, tasks)
        for work in works:
            if not threads:
                yield work()
                continue
            waiting.append(Future())
            tasks.put((waiting[-1], work))
            if len(waiting) > len(threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        _end(workers, tasks)
        for future in waiting:
            future.cancel()
        for thread in threads:
            thread.join()


@contextmanager
def meanwhile(work: Callable[[], T] | None) -> Iterator[Future[T] | None]:
    """A context manager: another thread does `work` alone.

    Yields what will hold its result; None where there is no work, and where the system gives no thread.
    """
    tasks: SimpleQueue[_Task[T]] = SimpleQueue()
    threads: list[Thread] = []
    future = Future[T]()
    try:
        if work is not None and (threads := _begun(1, tasks)):
            tasks.put((future, work))
        yield future if threads else None
    finally:
        _end(1, tasks)
        for thread in threads:
            thread.join()


class InTurn:
    """Calls a function with parts in order, by the thread that brings the next one.

    A part that comes early is copied, and its turn comes when those before it were brought.

    Parameters
    ----------
    act
        Is called with the index of a part's first row, and with arrays of its rows, each (n, …).
    """

    def __init__(self, act: Callable[..., None]) -> None:
        self._act, self._lock = act, Lock()
        self._next = 0
        self._early: dict[int, list[NDArray[Any]]] = {}

    def bring(self, offset: int, *rows: NDArray[Any]) -> None:
        """Bring the rows from index `offset` on.  They are not kept."""
        with self._lock:
            if offset != self._next:
                self._early[offset] = [each.copy(order="K") for each in rows]
                return
        part: Sequence[NDArray[Any]] | None = rows
        while part is not None:  # only the thread with the part that is next moves `_next`: no lock is needed
            self._act(self._next, *part)
            with self._lock:
                self._next += len(part[0])
                part = self._early.pop(self._next, None)


def _begun(workers: int, tasks: SimpleQueue[_Task[T]]) -> list[Thread]:
    """Up to `workers` threads that do tasks: fewer where the system gives no more or Python ends."""
    threads: list[Thread] = []
    for _ in range(workers):
        thread = Thread(target=_work, args=(tasks,), name="gbp work")
        try:
            thread.start()
        except RuntimeError:
            break
        threads.append(thread)
    return threads


def _end(workers: int, tasks: SimpleQueue[_Task[T]]) -> None:
    """End all threads that do tasks, behind these, also one whose beginning Ctrl-C interrupted."""
    for _ in range(workers):
        tasks.put(None)


def _work(tasks: SimpleQueue[_Task[T]]) -> None:
    """Do tasks until None comes."""
    work_alone()
    with computing():  # NumPy's settings are those of a thread
        while (task := tasks.get()) is not None:
            future, work = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
