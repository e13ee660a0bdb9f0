"""The fast tier has tests of all files that it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_the_fast_tier_has_what_it_names(pytestconfig: pytest.Config) -> None:
    plugins = pytestconfig.pluginmanager.get_plugins()
    fast: dict[str, int] = next(plugin.FAST for plugin in plugins if hasattr(plugin, "FAST"))
    options = "-m", "fast", "--collect-only", "-q", "-p", "no:cacheprovider"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {part for line in done.stdout.splitlines() for part in line.partition("::")[0].split("/")}
    assert fast.keys() <= names
