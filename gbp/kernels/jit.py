"""How a kernel is compiled: one signature, on first use, cached under a hash of all kernel sources."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import llvmlite.binding as llvm
import numba
from numba import njit, types

#: Array arguments.  Activations are views (N, H, W, C) with any strides but a dense channel axis, so
#: that a crop, a group of channels or one part of a concatenation is passed without a copy.
ACTIVATION = types.Array(types.float32, 4, "A")
DENSE = types.Array(types.float32, 1, "C")
MAPPED = types.Array(types.float32, 1, "C", readonly=True)  # weights as they lie in the file
INT = types.int64
FLOAT = types.float32

#: Inlined into the kernels that call it, so it needs no signature; Python cannot call it, because the wrapper
#: for that would take a quarter of the time to compile.
device_function = njit(error_model="numpy", boundscheck=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def one_of_many(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a device function that a factory makes: a `device_function` under a name of its own.

    Numba names machine code by qualified name and a count within the process.  Kernels that two processes
    compiled may so bring different code under one name, of which the linker silently takes either.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ = name
        return device_function(function)

    return decorate


def _cache_directory() -> str:
    """Numba keys its cache on the kernel's own file alone and would run stale code after an edit of a
    file that the kernel inlines; a directory named by a hash of them all cannot hit stale code.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    # Processes for different targets would race for the numbers of files in one index.
    target = numba.config.CPU_NAME or llvm.get_host_cpu_name(), numba.config.CPU_FEATURES
    digest.update(f"{numba.__version__} {sys.version} {target}".encode())
    root = os.environ.get("GBP_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "gbp"
    )
    return os.path.join(root, digest.hexdigest()[:16])


_CACHE_DIRECTORY = _cache_directory()
_compiling = Lock()


def is_first_use() -> bool:
    """Whether kernels have to be compiled because none of this version has been cached here."""
    return not any(Path(_CACHE_DIRECTORY).rglob("*.nbi"))


class Kernel:
    """A Numba function with one explicit signature that compiles, or loads from the cache, on first call."""

    def __init__(
        self,
        function: Callable[..., Any],
        argument_types: tuple[Any, ...],
        calls: Sequence[Any] = (),
        parallel: bool = True,
    ) -> None:
        self.name = function.__name__
        self._calls = [_shared[callee.symbol] for callee in calls]
        self.__doc__ = function.__doc__
        self._signature = types.void(*argument_types)
        self._dispatcher = self._cached(function, parallel)
        self._ready = False

    @staticmethod
    def _cached(function: Callable[..., Any], parallel: bool) -> Any:
        # fusion: Numba sees no dependence between loops that are linked only through addresses.
        options = {"error_model": "numpy", "boundscheck": False, "nogil": True}
        if parallel:
            options["parallel"] = {"fusion": False}
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _CACHE_DIRECTORY
        try:
            return njit(cache=True, **options)(function)
        except (RuntimeError, OSError):  # nowhere to write: compile in every process, as a last resort
            return njit(**options)(function)
        finally:
            numba.config.CACHE_DIR = before

    def compile(self) -> None:
        for callee in self._calls:
            callee.compile()
            # The linker looks here for the symbol by which the kernel calls it.
            llvm.add_symbol(f"gbp_{callee.name}", callee.address)
        with _compiling:  # a thread that waited would find compilation disabled
            if not self._ready:
                self._dispatcher.compile(self._signature)
                self._dispatcher.disable_compile()
                self._ready = True

    @property
    def address(self) -> int:
        """Of the machine code, for callers by C's convention."""
        (compiled,) = self._dispatcher.overloads.values()
        name = compiled.fndesc.llvm_cfunc_wrapper_name
        return int(compiled.library.get_pointer_to_function(name))

    def __call__(self, *args: Any) -> None:
        if not self._ready:
            self.compile()
        self._dispatcher(*args)


def kernel(*argument_types: Any, calls: Sequence[Any] = ()) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a function as a `Kernel` of these argument types; `calls`: the `shared` functions it needs."""
    return lambda function: Kernel(function, argument_types, calls)


_shared: dict[str, Kernel] = {}


def shared(*argument_types: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that kernels call and do not inline.

    It is compiled once for all of them: a device function is compiled anew in each.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        symbol = f"gbp_{function.__name__}"
        _shared[symbol] = Kernel(function, argument_types, parallel=False)
        return types.ExternalFunction(symbol, types.void(*argument_types))

    return decorate
