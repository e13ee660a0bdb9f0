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
from weakref import WeakSet


class _Builder:
    """Somebody who has the collector wait."""


class _Waiting:
    """Who has the collector wait, and whether it was on before.

    A builder that an interrupt ended before it could say so is forgotten with its frame.
    """

    def __init__(self) -> None:
        self.lock, self.builders, self.was_on = Lock(), WeakSet[_Builder](), False

    def begin(self, builder: _Builder) -> None:
        with self.lock:
            self.builders.add(builder)
            if gc.isenabled():
                self.was_on = True
                gc.disable()

    def end(self, builder: _Builder) -> None:
        with self.lock:
            self.builders.discard(builder)
            if self.was_on and not self.builders:
                gc.enable()
                self.was_on = False

    def begin_anew(self) -> None:
        """In a forked child no other thread builds any more."""
        if self.was_on:
            gc.enable()
        self.__init__()  # type: ignore[misc]


_waiting = _Waiting()


@contextmanager
def collected_later() -> Iterator[None]:
    """A context manager: the collector waits, in all threads.  Then it is on again if it was on before."""
    builder = _Builder()
    try:
        _waiting.begin(builder)
        yield
    finally:
        _waiting.end(builder)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_waiting.begin_anew)
