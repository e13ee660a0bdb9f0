"""Several pieces of work at once, each by one thread; their results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..limits import computing

T = TypeVar("T")


def in_order(works: Iterable[Callable[[], T]], workers: int) -> Iterator[T]:
    """Call functions, several at once, and yield what they return in the order of the functions.

    While several threads run kernels, each works alone, so none waits for another at the end of a layer.  The
    last one has the others' help.

    Parameters
    ----------
    works
        The functions.  The calling thread takes them one by one, and only a few more than are computed.
    workers
        How many threads call them; 1 is the calling thread.
    """
    if workers < 2:
        for work in works:
            yield work()
        return

    def compute(work: Callable[[], T]) -> T:
        with computing():  # NumPy's settings are those of a thread
            return work()

    threads, waiting = ThreadPoolExecutor(workers), deque[Future[T]]()
    try:
        for work in works:
            waiting.append(threads.submit(compute, work))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
