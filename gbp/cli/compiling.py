"""Compiles a model's kernels in several processes, each for one processor.  Numba compiles one at a time.

Such a process runs `main` with the search path of this one, so that it imports the same modules and none from
the current folder.  It reads lines `module name`, compiles that kernel, which the cache then keeps, and
answers with the seconds that this took.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from threading import Condition, Thread
from time import perf_counter
from typing import Any

from .. import Explainer, InputError, Picture
from ..engine.warming import kernels_of
from ..kernels.codegen.cache import CACHE_DIRECTORY, log, make_folder, refused
from ..kernels.codegen.jit import Native, compiled, found, not_kept
from ..kernels.parallel.threads import available

#: Fewer kernels are compiled before another process has started.
_FEW = 4
#: Most processes.  The largest kernel takes a third of the time, and others wait for it.
_MOST = 4


def compile_on_new_machine(explainer: Explainer, image: Picture | None) -> None:
    """Compile together where this version of gbp has compiled nothing yet.

    Where images decide about the size, nothing is compiled ahead.  An image that is refused, because nothing
    says how the model wants it, say, is refused before.

    Parameters
    ----------
    explainer
        The model.
    image
        One that will be explained; None where broken ones are left out.

    Raises
    ------
    InputError
        For an image that cannot be prepared.
    """
    if not os.path.isdir(CACHE_DIRECTORY):
        if image is not None:
            explainer.prepare([image])
        with suppress(InputError):
            compile_together(explainer)


def compile_together(explainer: Explainer, size: tuple[int, int] | None = None) -> None:
    """Compile the kernels that a warm-up would compile, and keep them.

    It compiles none where there is nothing to gain, where they cannot be kept, and where no other Python can
    be started.

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
    engine = explainer._engine
    count = min(available(), engine.settings.threads, _MOST)
    if count < 2 or not engine.settings.device.is_host or refused():
        return
    if not sys.executable or getattr(sys, "frozen", False):  # a program that holds Python, or was made of it
        return
    missing = [kernel for kernel in kernels_of(engine, size) if not kernel.is_stored]
    if len(missing) >= _FEW:
        try:
            make_folder()
        except OSError:  # first use says why
            return
        _Queue(missing).run(count)


class _Queue:
    """Kernels to compile.  A kernel waits until those that it calls are compiled.

    Parameters
    ----------
    kernels
        In an order in which each stands behind those that it calls.
    """

    def __init__(self, kernels: Sequence[Native]) -> None:
        self._left, self._busy = list(kernels), set[Native]()
        self._changed = Condition()

    def run(self, count: int) -> None:
        """Compile them in so many processes.  First use compiles those of a failed process."""
        code = f"import sys; sys.path[:] = {sys.path!a}; from gbp.cli.compiling import main; main()"
        command, pipe = (sys.executable, "-P", "-c", code), subprocess.PIPE
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
            with self._changed:  # after Ctrl-C, threads still wait for more to do
                self._left.clear()
                self._changed.notify_all()
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
            with suppress(OSError, ValueError):  # ValueError: Ctrl-C has closed the pipes
                print(kernel.module, kernel.name, file=worker.stdin, flush=True)
                answer = worker.stdout.readline()
            with self._changed:
                self._busy.remove(kernel)
                self._changed.notify_all()
            if not answer:
                return
            with suppress(ValueError):  # it failed; first use says why
                compiled.append((kernel.name, float(answer)))


def main() -> None:
    """Compile what the standard input names, as long as it can be kept."""
    gc.disable()  # the process ends with its last kernel
    for line in sys.stdin:
        began = perf_counter()
        try:
            found(*line.split()).compile()
        except Exception as error:  # others may be compiled all the same
            print(type(error).__name__, flush=True)
            continue
        if not_kept:
            return
        print(perf_counter() - began, flush=True)
