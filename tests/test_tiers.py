"""How pytest runs these tests: the fast tier, and in how many threads NumPy computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent


def plugin_with(config: pytest.Config, name: str) -> Any:
    """The module of conftest.py that has this name."""
    return next(plugin for plugin in config.pluginmanager.get_plugins() if hasattr(plugin, name))


def test_numpy_is_told_in_how_many_threads_it_computes(pytestconfig: pytest.Config) -> None:
    """Two threads wait for each other, which takes up to three times the time where tests have neighbours."""
    assert plugin_with(pytestconfig, "IS_IN_TIME").IS_IN_TIME, "leave out the plugin that imports NumPy"


def test_the_fast_tier_has_what_it_names(pytestconfig: pytest.Config) -> None:
    """Of each function in such a file at least the first case is marked, so the file needs to have tests."""
    paths = [TESTS / name for name in plugin_with(pytestconfig, "FAST").FAST]
    assert [path.name for path in paths if not path.exists()] == []
    assert [path.name for path in paths if path.is_file() and "\ndef test_" not in path.read_text()] == []


def test_pytest_chooses_by_the_mark() -> None:
    """All of one file, some of a folder, none of a file that is not in the tier: these are soon imported."""
    options = ("-m", "fast", "--collect-only", "-q", "-p", "no:cacheprovider")
    files = ("test_words.py", "kernels/test_memory.py", "test_facts.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=True,
    )
    chosen = [Path(line.partition("::")[0]).name for line in done.stdout.splitlines() if "::" in line]
    assert set(chosen) == {"test_words.py", "test_memory.py"}
