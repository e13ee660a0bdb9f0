"""Reproducible property tests, threads, the fast tier, and figures that are reported at the end of a run."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import settings

# Before gbp and NumPy are imported: tests have neighbours.
IS_IN_TIME = "numpy" not in sys.modules  # no plugin of pytest imported it, so it reads what is set here
THREADS = "GBP_NUM_THREADS"
os.environ[THREADS] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # which computes the oracle's products

# Numba gives colours to an error of each signature that it tries and rejects, and shows hardly any of them.
os.environ["NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING"] = "1"

# Tests start many processes.  Where Python is told to keep no bytecode, each of them would compile all
# sources anew, which takes longer than most of what they do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")

#: Whether kernels run as on a card (`make cudasim`); what needs that is left out elsewhere.
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
if SIMULATED and hasattr(os, "sched_setaffinity"):
    # Threads that take turns wake each other faster on one core; each process of pytest-xdist has its own.
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {cores[worker % len(cores)]})
if SIMULATED:
    from at_once import install

    install()
collect_ignore = [] if SIMULATED or os.environ.get("GBP_TEST_CARD") == "1" else ["test_card.py"]

#: The fast tier (`make check`): of every function in these files or folders, one case in so many.
FAST = {
    "kernels": 10,
    "test_attribution.py": 1,
    "test_axes.py": 1,
    "test_cli.py": 1,
    "test_demo.py": 1,
    "test_dialects.py": 1,
    "test_explainer.py": 1,
    "test_functions.py": 10,
    "test_image.py": 1,
    "test_naive.py": 1,
    "test_no_card.py": 1,
    "test_layers.py": 1,
    "test_odd_models.py": 4,
    "test_ops.py": 2,
    "test_picture.py": 1,
    "test_plan.py": 1,
    "test_progress.py": 1,
    "test_projections.py": 10,
    "test_refusals.py": 1,
    "test_refused_input.py": 1,
    "test_threads.py": 1,
    "test_verify.py": 4,
    "test_volumes.py": 1,
    "test_weights.py": 1,
    "test_words.py": 1,
}

#: These files run first.  Tests that wait for a clock do so while the simulator's tests use the processor
#: (`make test`).  The longest tests follow, so that no process is left with one of them at the end.
FIRST = (
    "test_serve_process.py",
    "test_bulk.py",
    "test_report.py",
    "test_page.py",
    "test_embedding.py",
    "test_conformance.py",
    "test_mutations.py",
    "test_golden.py",
    "test_zoo.py",
    "test_architectures.py",
    "test_graphs.py",
    "test_distribution.py",
    "test_hostile_images.py",
    "test_documents.py",
    "test_guard.py",
    "test_warmup.py",
    "test_cache.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Python's collector of garbage leaves alone what stays until the end: modules and thousands of tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Mark the fast tier before pytest chooses by marks, and put some files first after it ordered all."""
    seen: Counter[str] = Counter()
    for item in items:
        every = FAST.get(item.path.name) or FAST.get(item.path.parent.name)
        function = item.nodeid.partition("[")[0]
        if every and seen[function] % every == 0:
            item.add_marker(pytest.mark.fast)
        seen[function] += 1
    yield
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread runs the kernels; two do in tests marked `threads`, and in the processes that they start.

    Kernels divide their work by the number of threads they are given; if fewer run, each computes several
    shares.
    """
    wanted = "2" if item.get_closest_marker("threads") else "1"
    if os.environ.get(THREADS) != wanted:
        from gbp.kernels.parallel import threads

        os.environ[THREADS] = wanted
        threads.available.cache_clear()
        threads._turns.cache_clear()


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Report a test that passes once; pytest reports its setup and teardown too.

    pytest-xdist sends each report to the main process, which takes longer than many a test.
    """
    if item.config.getoption("durations") is not None:  # it lists setups and teardowns
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


FIGURE = "figure"
_reported: list[str] = []


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that puts a line into the summary of the run."""
    return lambda line: request.node.user_properties.append((FIGURE, line))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Runs in the main process, to which pytest-xdist sends the properties of a test."""
    if report.when == "call":
        _reported.extend(str(line) for name, line in report.user_properties if name == FIGURE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _reported:
        terminalreporter.section("figures")
        for line in _reported:
            terminalreporter.line(line)
