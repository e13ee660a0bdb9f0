"""The one place that picks and guards Numba's threading layer.

TBB          survives threads and forks      its wheel's library lies where the loader does not look
OpenMP       survives threads                kills a forked child that enters parallel code
workqueue    aborts the process              when two Python threads enter parallel code at once
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numba
import numpy as np

from ..errors import InputError

_lock = threading.RLock()
_started_in: int | None = None  # the process whose threads are running


def _preload_tbb() -> None:
    for library in sorted(Path(sys.prefix, "lib").glob("libtbb.so.1*")):
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            return
        except OSError:
            continue


def available() -> int:
    """Processors that this process may use."""
    return int(numba.config.NUMBA_NUM_THREADS)


def thread_count(threads: int | None) -> int:
    """The number of threads to use: all that are available by default.  Raises InputError below 1."""
    if threads is None:
        return available()
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or not 1 <= threads <= 1024:
        raise InputError(
            f"threads is {threads!r}.", supported="a whole number from 1 to 1024, or None for all"
        )
    return int(threads)


@contextmanager
def parallel() -> Iterator[None]:
    """Enter parallel code, as the threading layer in use allows.

    Raises InputError in a forked child of a process whose OpenMP threads are running.
    """
    global _started_in  # noqa: PLW0603  # a fact about the process
    if _started_in is None:
        with _lock:
            if _started_in is None:
                _preload_tbb()
                numba.set_num_threads(available())  # starts the layer
                _start_layer()
                _started_in = os.getpid()
    layer = numba.threading_layer()
    if layer == "omp" and _started_in != os.getpid():
        raise InputError(
            "this process was forked after gbp had started OpenMP threads, which do not survive a fork.",
            hint="Install the tbb package, start workers with spawn, or use gbp only after forking.",
        )
    if layer == "workqueue":
        with _lock:
            yield
    else:
        yield


def _start_layer() -> None:
    from numba.np.ufunc.parallel import _launch_threads

    _launch_threads()
