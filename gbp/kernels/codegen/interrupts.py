"""Protects compiling and linking from signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay the Python handlers of signals until the block is done.  Then Ctrl-C raises KeyboardInterrupt.

    An exception in the middle of compiling would leave Numba's own tables half filled.  Python runs handlers
    in the main thread only, so other threads need no delay.
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
