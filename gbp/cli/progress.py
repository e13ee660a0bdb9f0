"""A line on stderr while kernels are compiled, of which the library only logs, to the logger "gbp"; or while
something else takes its time.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CLEAR = "\r\x1b[K"


class _Line(logging.Handler):
    """On a terminal one line that counts, elsewhere one line at the first kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.counts = sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        self.kernels += 1
        if self.counts:
            text = f"gbp: {record.getMessage()} ({self.kernels}), once on this machine"
            print(_CLEAR + text, end="", file=sys.stderr, flush=True)
        elif self.kernels == 1:
            card = ", which takes half a minute" if record.getMessage().endswith("for the card") else ""
            print(f"gbp: compiling kernels{card}, once on this machine", file=sys.stderr, flush=True)


@contextmanager
def compiling_shown() -> Iterator[None]:
    """Tell of every kernel that has to be compiled meanwhile."""
    log, line = logging.getLogger("gbp"), _Line()
    level = log.level
    log.addHandler(line)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(line)
        if line.counts and line.kernels:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
        if line.kernels:
            _tell_what_is_lost()


@contextmanager
def reporting() -> Iterator[Callable[[str], None]]:
    """A function that shows what is being done, on a terminal only and until the next."""
    shows = sys.stderr.isatty()

    def report(text: str) -> None:
        if shows:
            print(f"{_CLEAR}gbp: {text}", end="", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if shows:
            print(_CLEAR, end="", file=sys.stderr, flush=True)


def _tell_what_is_lost() -> None:
    from ..kernels.codegen.jit import CACHE_DIRECTORY, not_kept

    if not_kept:
        print(f"gbp: they cannot be kept in {CACHE_DIRECTORY}: {not_kept[-1]}", file=sys.stderr)
