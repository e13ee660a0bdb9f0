"""Python's collector of cyclic garbage waits while a network is built, and while its first run is recorded.

A network is a hundred objects a layer, which stay, and hardly any garbage.  The collector looks at all of
them whenever their number has grown by a quarter.  For large networks that takes a quarter of the time.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class _Waiting:
    """How many builders have the collector wait, and whether it was on before the first of them."""

    def __init__(self) -> None:
        self.lock, self.builders, self.was_on = Lock(), 0, False

    def begin(self) -> None:
        with self.lock:
            if self.builders == 0:
                self.was_on = gc.isenabled()
                gc.disable()
            self.builders += 1

    def end(self) -> None:
        with self.lock:
            self.builders -= 1
            if self.builders == 0 and self.was_on:
                gc.enable()

    def begin_anew(self) -> None:
        """In a forked child no other thread builds any more."""
        if self.builders and self.was_on:
            gc.enable()
        self.__init__()  # type: ignore[misc]


_waiting = _Waiting()


@contextmanager
def collected_later() -> Iterator[None]:
    """A context manager: the collector waits, in all threads.  Then it is on again if it was on before."""
    _waiting.begin()
    try:
        yield
    finally:
        _waiting.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_waiting.begin_anew)
