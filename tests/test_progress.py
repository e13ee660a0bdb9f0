"""What stderr tells of kernels that are compiled, and of what else takes its time."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys

import pytest

from gbp.cli import progress
from gbp.cli.progress import FEW, compiling_shown, reporting


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal  # type: ignore[method-assign]


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("gbp")


LINE = "gbp: compiling kernels, once on this machine: about half a minute\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_one_line(terminal: bool, log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal)
    monkeypatch.setattr("sys.stderr", stream)
    with compiling_shown():
        assert stream.getvalue() == ""
        for name in ("conv_fwd", "pad"):
            log.info("compiling kernel %s", name)
        shown = stream.getvalue()
    if terminal:  # rewritten in place, and gone at the end
        assert [part.count("\n") for part in shown.split("\r")] == [0, 0, 0]
        assert shown.endswith(f"\r\x1b[K{LINE.strip()}; 2 so far")
        assert stream.getvalue().endswith("\r\x1b[K")
    else:
        assert shown == stream.getvalue() == LINE


def test_outside_of_it_the_library_is_silent(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream(True)
    monkeypatch.setattr("sys.stderr", stream)
    with compiling_shown():
        pass
    log.info("compiling kernel pad")
    assert stream.getvalue() == ""
    with caplog.at_level(logging.INFO, logger="gbp"):  # but whoever wants to know, can
        log.info("compiling kernel pad")
    assert caplog.messages == ["compiling kernel pad"]


def test_quiet(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(True)
    monkeypatch.setattr("sys.stderr", stream)
    with compiling_shown(quiet=True):
        log.info("compiling kernel pad")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_done_is_told_on_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal)
    monkeypatch.setattr("sys.stderr", stream)
    with reporting() as report:
        report("one")
        report("two")
    clear = "\r\x1b[K"
    assert stream.getvalue() == (f"{clear}gbp: one{clear}gbp: two{clear}" if terminal else "")


def test_a_line_fits_into_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What wraps would stay behind on the screen, once for each report."""
    stream = Stream(True)
    stream.fileno = lambda: 2  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((12, 24)))
    with reporting() as report:
        report("a layer of a long name")
    assert stream.getvalue() == "\r\x1b[Kgbp: a laye\r\x1b[K"


# ---------------------------------------------------------------------------------------- many images


def options(**given: bool) -> argparse.Namespace:
    return argparse.Namespace(**{"quiet": False, "progress": False} | given)


@pytest.mark.parametrize(
    ("terminal", "total", "given", "shown"),
    [
        (True, FEW + 1, {}, True),
        (True, FEW, {}, False),
        (True, FEW, {"progress": True}, True),
        (True, 1000, {"quiet": True}, False),
        (True, 1000, {"quiet": True, "progress": True}, False),
        (False, 1000, {}, False),
        (False, 1000, {"progress": True}, True),
    ],
)
@pytest.mark.parametrize("has_tqdm", [False, True])
def test_when_progress_is_shown(
    terminal: bool,
    total: int,
    given: dict[str, bool],
    shown: bool,
    has_tqdm: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Stream(terminal)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "_SELDOM", 0.0)
    if not has_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    elif terminal:
        pytest.importorskip("tqdm", reason="the bar is tqdm's: extra batch")
    with progress.advancing(options(**given), total) as bar:
        assert (bar is not None) == shown
        if bar is not None:
            bar.advance(total // 2)
            bar.clear()
            bar.advance(1)
    assert (stream.getvalue() != "") == shown


def test_the_line_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = Stream(True), [0.0]
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress.advancing(options(), 4100, done=100) as bar:
        assert bar is not None
        now[0] = 2.0
        bar.advance(20)
        shown = stream.getvalue()
        now[0] = 2.1
        bar.advance(20)  # too soon to be read
        assert stream.getvalue() == shown
    assert shown == "\r\x1b[Kgbp: 120 of 4100 images, 10 a second, 6:38 left"
    assert stream.getvalue() == shown + "\r\x1b[K"


def test_in_a_log_it_is_one_line_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = Stream(False), [0.0]
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress.advancing(options(progress=True), 100_000) as bar:
        assert bar is not None
        for second in range(1, 22):
            now[0] = float(second)
            bar.advance(2)
    assert stream.getvalue() == (
        "gbp: 20 of 100000 images, 2 a second, 13:53:10 left\n"
        "gbp: 40 of 100000 images, 2 a second, 13:53:00 left\n"
        "gbp: 42 of 100000 images, 2 a second, 13:52:59 left\n"
    )
