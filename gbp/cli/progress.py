"""Progress: a line on stderr while kernels are compiled or another long stage runs.

The library itself prints nothing.  It logs each compiled kernel to the logger "gbp".
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import shown

_CLEAR = "\r\x1b[K"


class _Line(logging.Handler):
    """On a terminal, one line that counts the kernels; elsewhere, one line at the first kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.counts = sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.INFO:  # the reason why kernels are not stored is printed at the end
            return
        self.kernels += 1
        if self.counts:
            text = f"gbp: {record.getMessage()} ({self.kernels}), once on this machine"
            print(_CLEAR + text, end="", file=sys.stderr, flush=True)
        elif self.kernels == 1:
            card = ", which takes half a minute" if record.getMessage().endswith("for the card") else ""
            print(f"gbp: compiling kernels{card}, once on this machine", file=sys.stderr, flush=True)


@contextmanager
def compiling_shown() -> Iterator[None]:
    """Show every kernel that is compiled inside this context."""
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
            _warn_of_lost_kernels()


@contextmanager
def reporting() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows the current stage.  It prints on a terminal only."""
    shows = sys.stderr.isatty()

    def report(text: str) -> None:
        if shows:
            print(f"{_CLEAR}gbp: {shown(text)}", end="", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if shows:
            print(_CLEAR, end="", file=sys.stderr, flush=True)


def _warn_of_lost_kernels() -> None:
    """Print a warning if compiled kernels could not be stored."""
    from ..kernels.codegen.cache import CACHE_DIRECTORY
    from ..kernels.codegen.jit import not_kept

    if not_kept:
        print(shown(f"gbp: they cannot be kept in {CACHE_DIRECTORY}: {not_kept[-1]}"), file=sys.stderr)
