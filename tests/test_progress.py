"""What stderr tells of kernels that are compiled, and of what else takes its time."""

from __future__ import annotations

import io
import logging

import pytest

from gbp.cli.progress import compiling_shown, reporting


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal  # type: ignore[method-assign]


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("gbp")


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
        assert shown.endswith("gbp: compiling kernel pad (2), once on this machine")
        assert stream.getvalue().endswith("\r\x1b[K")
    else:
        assert shown == stream.getvalue() == "gbp: compiling kernels, once on this machine\n"


def test_it_says_that_a_card_takes_longer(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(False)
    monkeypatch.setattr("sys.stderr", stream)
    with compiling_shown():
        log.info("compiling kernel %s for the card", "conv_fwd")
    reporting = "gbp: compiling kernels, which takes half a minute, once on this machine\n"
    assert stream.getvalue() == reporting


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


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_done_is_told_on_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal)
    monkeypatch.setattr("sys.stderr", stream)
    with reporting() as report:
        report("one")
        report("two")
    clear = "\r\x1b[K"
    assert stream.getvalue() == (f"{clear}gbp: one{clear}gbp: two{clear}" if terminal else "")
