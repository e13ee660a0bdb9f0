"""Compiles a model's kernels in several processes, each for one processor.  Numba compiles one at a time.

`python -m gbp.cli.compiling` is such a process.  It reads lines `module name`, compiles that kernel, which
the cache then keeps, and answers with the seconds that this took.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from threading import Condition, Thread
from time import perf_counter
from typing import Any

from ..errors import InputError
from ..explainer import Explainer
from ..kernels.codegen.cache import CACHE_DIRECTORY, log, refused
from ..kernels.codegen.jit import Native, compiled, found
from ..kernels.parallel.threads import available
from ..warming import kernels_of
from .progress import compiling_shown

#: Fewer kernels are compiled before another process has started.
_FEW = 4
#: Most processes.  The largest kernel takes a third of the time, and others wait for it.
_MOST = 4


def compile_on_new_machine(explainer: Explainer, quiet: bool = False) -> None:
    """Compile together where this version of gbp has compiled nothing yet, and show it unless `quiet`.

    Where images decide about the size, nothing is compiled ahead.
    """
    if not os.path.isdir(CACHE_DIRECTORY):
        with suppress(InputError), compiling_shown(quiet):
            compile_together(explainer)


def compile_together(explainer: Explainer, size: tuple[int, int] | None = None) -> None:
    """Compile the kernels that a warm-up would compile, and keep them; none where there is nothing to gain.

    Parameters
    ----------
    explainer
        The model.
    size
        (H, W) where the model leaves it open.

    Raises
    ------
    InputError
        As `Explainer.warmup`.
    """
    engine, count = explainer._engine, min(available(), _MOST)
    if count < 2 or not engine.settings.device.is_host or refused():
        return
    missing = [kernel for kernel in kernels_of(engine, size) if not kernel.is_stored]
    if len(missing) >= _FEW:
        _Queue(missing).run(count)


class _Queue:
    """Kernels to compile: those that others call first, because who calls them waits for them.

    Parameters
    ----------
    kernels
        Each behind those that it calls.
    """

    def __init__(self, kernels: Sequence[Native]) -> None:
        self._left, self._busy = list(kernels), set[Native]()
        self._changed = Condition()

    def run(self, count: int) -> None:
        """Compile them in so many processes.  First use compiles those of a failed process."""
        command, pipe = (sys.executable, "-m", "gbp.cli.compiling"), subprocess.PIPE
        options: Any = {"stdin": pipe, "stdout": pipe, "stderr": subprocess.DEVNULL, "text": True}
        workers: list[subprocess.Popen[str]] = []
        try:
            with suppress(OSError):
                for _ in range(count):
                    workers.append(subprocess.Popen(command, **options))
            threads = [Thread(target=self._work, args=(worker,), daemon=True) for worker in workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()

    def _take(self) -> Native | None:
        """A kernel whose callees are there; None if there will be no more."""
        with self._changed:
            while self._left:
                waiting = self._busy.union(self._left)
                for kernel in self._left:
                    if waiting.isdisjoint(kernel.with_callees()[:-1]):
                        self._left.remove(kernel)
                        self._busy.add(kernel)
                        return kernel
                self._changed.wait()
        return None

    def _work(self, worker: subprocess.Popen[str]) -> None:
        """Have one process compile what there is."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        while kernel := self._take():
            log.info("compiling kernel %s", kernel.name)
            answer = ""
            with suppress(OSError):
                print(kernel.module, kernel.name, file=worker.stdin, flush=True)
                answer = worker.stdout.readline()
            with self._changed:
                self._busy.remove(kernel)
                self._changed.notify_all()
            if not answer:
                return
            compiled.append((kernel.name, float(answer)))


def main() -> None:
    """Compile what the standard input names."""
    for line in sys.stdin:
        began = perf_counter()
        found(*line.split()).compile()
        print(perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
