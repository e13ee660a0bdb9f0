"""Progress on stderr: of kernels that are compiled, of long stages, and of many images.

The library itself prints nothing.  It logs each compiled kernel to the logger "gbp".
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import counted, shown

_CLEAR = "\r\x1b[K"
#: So many images are done before anybody looks.
FEW = 16
#: Seconds between two reports: on a terminal, and elsewhere.
_OFTEN, _SELDOM = 0.2, 10.0
#: With how long all kernels of a classifier take.
_COMPILING = "gbp: compiling kernels, once on this machine: about half a minute"


def _show(text: str) -> None:
    """Put a line in the place of the last one on the terminal.

    It is cut to the terminal's width, because what goes over into the next row is not replaced.
    """
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        width = 0
    print(_CLEAR + text[: (width or 80) - 1], end="", file=sys.stderr, flush=True)


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
            _show(f"{_COMPILING}; {self.kernels} so far")
        elif self.kernels == 1:
            print(_COMPILING, file=sys.stderr, flush=True)


@contextmanager
def compiling_shown(quiet: bool = False) -> Iterator[None]:
    """Show every kernel that is compiled inside this context, unless `quiet`."""
    if quiet:
        yield
        return
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
            _show(f"gbp: {shown(text)}")

    try:
        yield report
    finally:
        if shows:
            print(_CLEAR, end="", file=sys.stderr, flush=True)


def add_progress(command: argparse.ArgumentParser) -> None:
    """Add the options for progress."""
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    command.add_argument(
        "--progress", action="store_true", help="show progress where stderr is no terminal too"
    )


class Progress:
    """How many images are done, with the rate and the time left: a bar by tqdm, or a line without it.

    Where stderr is no terminal, it is a line of its own every ten seconds.

    Parameters
    ----------
    total
        How many images there are in all.
    done
        How many of them were done before.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done, self._before = total, done, done
        self._in_place = sys.stderr.isatty()
        self._start = time.monotonic()
        # The last report: on a terminal the first comes at once, elsewhere after ten seconds.
        self._last = float("-inf") if self._in_place else self._start
        self._bar = self._tqdm() if self._in_place else None

    def advance(self, count: int = 1) -> None:
        """Count images that are done now, and show it."""
        self.done += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(count)
        elif now - self._last >= (_OFTEN if self._in_place else _SELDOM):
            self._last = now
            text = f"gbp: {self._text(now - self._start)}"
            if self._in_place:
                _show(text)
            else:
                print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make way for other lines on the terminal; the next `advance` shows progress again."""
        if self._bar is not None:
            self._bar.clear()
        elif self._in_place:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
            self._last = float("-inf")

    def close(self) -> None:
        """Remove the bar or the line from the terminal."""
        if self._bar is not None:
            self._bar.close()
        elif self._in_place:
            self.clear()
        else:
            print(f"gbp: {self._text(time.monotonic() - self._start)}", file=sys.stderr, flush=True)

    def _tqdm(self) -> Any:
        try:
            from tqdm import tqdm
        except ImportError:
            return None
        options = {"unit": "image", "dynamic_ncols": True, "leave": False, "file": sys.stderr}
        return tqdm(desc="gbp", total=self.total, initial=self.done, smoothing=0.05, **options)

    def _text(self, seconds: float) -> str:
        text = f"{self.done} of {counted(self.total, 'image')}"
        new = self.done - self._before
        if new and seconds > 0:
            rate = new / seconds
            text += f", {rate:.3g} a second, {_duration((self.total - self.done) / rate)} left"
        return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def advancing(arguments: argparse.Namespace, total: int, done: int = 0) -> Iterator[Progress | None]:
    """Yield a `Progress`, or None where nothing is to be shown.

    It is shown on a terminal for more than `FEW` images, elsewhere with --progress, and never with -q.

    Parameters
    ----------
    arguments
        With the options of `add_progress`.
    total, done
        As for `Progress`.
    """
    asked = arguments.progress or (sys.stderr.isatty() and total - done > FEW)
    progress = Progress(total, done) if asked and not arguments.quiet else None
    try:
        yield progress
    finally:
        if progress is not None:
            progress.close()


@contextmanager
def counting(arguments: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (images done, images in all) that shows both as `advancing` does.

    The images that are done at its first call were done before.

    Parameters
    ----------
    arguments
        As for `advancing`.
    """
    begun, progress = False, None
    with ExitStack() as stack:

        def show(done: int, total: int) -> None:
            nonlocal begun, progress
            if not begun:
                begun, progress = True, stack.enter_context(advancing(arguments, total, done))
            elif progress is not None:
                progress.advance(done - progress.done)

        yield show


def _warn_of_lost_kernels() -> None:
    """Print a warning if compiled kernels could not be stored."""
    from ..kernels.codegen.cache import CACHE_DIRECTORY, HINT
    from ..kernels.codegen.jit import not_kept

    if not_kept:
        text = f"gbp: they cannot be kept in {CACHE_DIRECTORY}: {not_kept[-1]}. {HINT}"
        print(shown(text), file=sys.stderr)
