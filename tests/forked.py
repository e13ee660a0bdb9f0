"""Python programs as forks of a process that has imported Numba and ONNX, and has compiled a function.

A program that starts by itself spends a second on both before it reaches gbp.  Such a fork suits a test of
what gbp does in a process of its own.  It does not suit one of how a process starts, or of how it ends:
functions that are registered with `atexit` are not run.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import connection, forkserver
from pathlib import Path
from threading import Lock

import pytest

_FORKS = multiprocessing.get_context("forkserver")
#: Held by who starts a process or looks how one ended.  Starting one looks at all others, and of two threads
#: that look at the same process the second finds nothing, which multiprocessing takes for exit code 255.
_looking = Lock()


@cache
def _begin() -> None:
    """Start the process of which all are forks.  Until Python 3.13 it finds modules by PYTHONPATH alone."""
    _FORKS.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()


class Forked:
    """A program that runs.  It is used like a `subprocess.Popen` whose outputs are read at its end.

    Parameters
    ----------
    arguments
        Those of Python: "-c" and code, or "-m" and the name of a module, and then those of the program.
    cwd
        The folder that it runs in.
    env
        Its environment.  PYTHONPATH is all that it sees besides what is installed.
    """

    returncode: int | None = None

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("out", "err")]
        given = (*arguments,), str(cwd), dict(env), [str(path) for path in self._outputs]
        with _looking:
            _begin()
            self._process = _FORKS.Process(target=_main, args=given)
            self._process.start()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end, and return what it wrote to the standard output and to the standard error."""
        connection.wait([self._process.sentinel], timeout)
        with _looking:
            self.returncode = self._process.exitcode
        if self.returncode is None:
            self._process.kill()
            raise TimeoutError(f"it ran for {timeout} s")
        out, err = (path.read_text() for path in self._outputs)
        self._folder.cleanup()
        return out, err


def _main(arguments: tuple[str, ...], cwd: str, env: dict[str, str], outputs: list[str]) -> None:
    assert "preloaded" in sys.modules  # where it cannot be imported, forkserver says nothing
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in env
    installed = [
        path for path in sys.path if Path(path).is_relative_to(sys.base_prefix) or "-packages" in path
    ]
    sys.path[:] = [cwd, *env.get("PYTHONPATH", "").split(os.pathsep), *installed]
    kind, program, *rest = arguments
    sys.argv = [kind, *rest]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
