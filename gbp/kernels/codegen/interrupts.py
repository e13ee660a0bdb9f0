"""Compiling and linking, which nothing may interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait until the block is done, then their Python handlers run: Ctrl-C raises KeyboardInterrupt.

    While LLVM links a kernel it calls back into Python through ctypes, which drops what is raised there.  A
    handler that raises would leave LLVM without the kernel, and Numba writes to where it should be.  Python
    runs handlers in the main thread only, so nothing waits in others.
    """
    held: dict[int, Any] = {}
    waiting: dict[int, FrameType | None] = {}

    def wait(number: int, frame: FrameType | None) -> None:
        waiting[number] = frame

    try:
        if threading.current_thread() is threading.main_thread():
            for number in map(int, signal.valid_signals()):
                handler = signal.getsignal(number)
                if callable(handler):
                    held[number] = handler
                    signal.signal(number, wait)
        yield
    finally:
        # Ctrl-C's last, so that it interrupts none of this.
        for number, handler in sorted(held.items(), key=lambda item: item[1] is signal.default_int_handler):
            signal.signal(number, handler)
        for number, frame in waiting.items():
            held[number](number, frame)
