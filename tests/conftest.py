"""Reproducible property tests, and figures that tests report at the end of the run."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")

#: Whether kernels run as on a card (`make cudasim`); what needs that is left out elsewhere.
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
if SIMULATED and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # threads that take turns wake each other faster
collect_ignore = [] if SIMULATED or os.environ.get("GBP_TEST_CARD") == "1" else ["test_card.py"]

_reported: list[str] = []


@pytest.fixture
def report() -> Callable[[str], None]:
    """A function that puts a line into the summary of the run."""
    return _reported.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _reported:
        terminalreporter.section("figures")
        for line in _reported:
            terminalreporter.line(line)
