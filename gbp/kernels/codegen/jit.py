"""How a kernel is compiled: one signature, on first use, cached under a hash of all kernel sources."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from time import perf_counter
from types import FunctionType
from typing import Any, ClassVar, Protocol

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import njit, types
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    _CacheLocator,
    _SourceFileBackedLocatorMixin,
)
from numba.core.runtime import _nrt_python

from .packing import packer_of, unpack_of

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
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    # Processes for different targets would race for the numbers of files in one index.
    target = numba.config.CPU_NAME or llvm.get_host_cpu_name(), numba.config.CPU_FEATURES
    digest.update(f"{numba.__version__} {sys.version} {target}".encode())
    root = os.environ.get("GBP_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "gbp"
    )
    return os.path.join(root, digest.hexdigest()[:16])


#: Where this version's kernels are kept on this machine.
CACHE_DIRECTORY = _cache_directory()

#: Kernels that this process had to compile, in order, and the seconds that each took.
compiled: list[tuple[str, float]] = []
#: Why kernels that it compiled could not be kept; empty where all is well.
not_kept: list[str] = []

log = logging.getLogger("gbp")
_compiling = Lock()


def _begin_anew() -> None:
    """In a forked child: the thread that compiled at that moment is not there to let go."""
    global _compiling  # noqa: PLW0603  # a child's own
    _compiling = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@cache
def _name_runtime() -> None:
    """Tell the linker where the functions of Numba's runtime are; machine code needs no more of it."""
    for name, address in _nrt_python.c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


class Locator(_SourceFileBackedLocatorMixin, _CacheLocator):
    """Every kernel in one directory, which may be read-only: Numba's own would look elsewhere then."""

    def __init__(self, function: Any, file: str) -> None:
        self._py_file = file
        self._lineno = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Locator:
        return cls(py_func, py_file)

    def get_cache_path(self) -> str:
        return CACHE_DIRECTORY


class _Format(CompileResultCacheImpl):
    _locator_classes: ClassVar = [Locator]


class _Cache(FunctionCache):
    """Numba's cache of one kernel: quicker to load, content with a read-only directory, and with a word
    before it compiles.
    """

    _impl_class = _Format

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The cached kernel, or None.

        Numba would first load all that it knows of types and functions, which takes a tenth of a second and
        serves compiling only.
        """
        _name_runtime()
        try:
            found = self._load_overload(sig, target_context)
        except OSError:
            found = None
        if found is None:
            log.info("compiling kernel %s", self._py_func.__name__)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:  # nowhere to write: every process compiles, as a last resort
            not_kept.append(error.strerror or str(error))


class Compiled(Protocol):
    """What can be compiled ahead of use."""

    def compile(self) -> None: ...


#: What a kernel's entry takes: the block of its arguments, parts [first, last) of `parts`, slot and phase.
ENTRY = types.void(*[INT] * 6)
#: Parts that a kernel's work is cut into for each thread: a thread that comes late finds less to do.
SPLIT = 4
#: Parameters that hold no data but room for some.
_SCRATCH = ("scratch", "sums", "lists")


def _entry(block: int, first: int, last: int, parts: int, slot: int, phase: int) -> None:
    """What every kernel is called by; `_kernel` and `_unpack` stand for its own."""
    _kernel(*_unpack(block, first, last, parts, slot, phase))


def _kernel(*args: Any) -> None: ...


def _unpack(*args: int) -> Any: ...


class Native:
    """A Numba function that compiles, or loads from the cache, on first use, and is called by its address."""

    def __init__(
        self, function: Callable[..., Any], argument_types: Sequence[Any], calls: Sequence[Any] = ()
    ) -> None:
        self.name, self.module = function.__name__, function.__module__
        self._calls = [_shared[callee.symbol] for callee in calls]
        self.__doc__ = function.__doc__
        self._function = function
        self.argument_types = tuple(argument_types)
        self._address = 0

    def compile(self) -> None:
        for callee in self._calls:
            # The linker looks here for the symbol by which the kernel calls it.
            llvm.add_symbol(f"gbp_{callee.name}", callee.address)
        with _compiling:  # a thread that waited would find compilation disabled
            if not self._address:
                self._address = self._compiled()

    @property
    def address(self) -> int:
        """Of the machine code, for callers by C's convention."""
        if not self._address:
            self.compile()
        return self._address

    def _source(self) -> tuple[Callable[..., Any], Any]:
        """The function to compile, and its signature."""
        return self._function, types.void(*self.argument_types)

    def _compiled(self) -> int:
        start = perf_counter()
        function, signature = self._source()
        dispatcher = njit(error_model="numpy", boundscheck=False, nogil=True, no_cpython_wrapper=True)(
            function
        )
        dispatcher._cache = _Cache(function)
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        if dispatcher.stats.cache_misses:
            compiled.append((self.name, perf_counter() - start))
        self._dispatcher = dispatcher  # owns the machine code
        (compiled_code,) = dispatcher.overloads.values()
        name = compiled_code.fndesc.llvm_cfunc_wrapper_name
        return int(compiled_code.library.get_pointer_to_function(name))


class Kernel(Native):
    """A function over arrays whose work can be cut into parts, which threads share.

    It takes arguments of `argument_types`, the last of them the number of parts, and a `Share`: which parts
    to do.  It is called without that, and with the number of threads in place of the parts.  `split`: parts
    for each thread.  `phases`: of the arguments, how many phases the work has; threads meet after each.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        argument_types: Sequence[Any],
        calls: Sequence[Any] = (),
        split: int = SPLIT,
        phases: Callable[[Sequence[Any]], int] | None = None,
    ) -> None:
        super().__init__(function, argument_types, calls)
        self.split, self.phases = split, phases
        names = function.__code__.co_varnames[: len(self.argument_types)]
        self._sized = [
            i
            for i, (name, kind) in enumerate(zip(names, self.argument_types, strict=True))
            if isinstance(kind, types.Array) and name not in _SCRATCH
        ]
        self.pack = packer_of(self.argument_types[:-1])

    def elements(self, args: Sequence[Any]) -> int:
        """How many elements these arguments hold, scratch aside: about how much there is to do."""
        return sum(args[i].size for i in self._sized)

    def _source(self) -> tuple[Callable[..., Any], Any]:
        given = {"_kernel": device_function(self._function), "_unpack": unpack_of(self.argument_types[:-1])}
        name = f"{self.module.rpartition('.')[2]}_{self.name}"
        entry = FunctionType(_entry.__code__, _entry.__globals__ | given, name)
        entry.__qualname__ = name
        return entry, ENTRY

    def __call__(self, *args: Any) -> None:
        if not isinstance(args[0], np.ndarray):  # a kernel runs where its arrays lie
            from ...devices.cuda import hand_over

            hand_over(self, args)
            return
        from ...devices.program import submit

        submit(self, args)


def kernel(
    *argument_types: Any,
    calls: Sequence[Any] = (),
    split: int = SPLIT,
    phases: Callable[[Sequence[Any]], int] | None = None,
) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a function as a `Kernel` of these argument types; `calls`: the `shared` functions it needs."""
    return lambda function: Kernel(function, argument_types, calls, split, phases)


def kernel_from(
    template: Callable[..., Any], name: str, *argument_types: Any, **functions: Callable[..., Any]
) -> Kernel:
    """`template` as a `Kernel` of its own in which these global names stand for other functions.

    As free variables of a closure they would keep it from ever being found in the cache: Numba takes a
    captured function for a new one in every process.
    """
    named = {key: one_of_many(f"{name}_{key}")(function) for key, function in functions.items()}
    copy = FunctionType(template.__code__, template.__globals__ | named, name)
    copy.__qualname__, copy.__doc__ = name, template.__doc__
    return Kernel(copy, argument_types)


_shared: dict[str, Native] = {}


def shared(*argument_types: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that kernels call and do not inline.

    It is compiled once for all of them: a device function is compiled anew in each.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        symbol = f"gbp_{function.__name__}"
        _shared[symbol] = Native(function, argument_types)
        return types.ExternalFunction(symbol, types.void(*argument_types))

    return decorate
