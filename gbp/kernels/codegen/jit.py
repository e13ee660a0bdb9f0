"""How a kernel is compiled: one signature, on first use, cached under a hash of all kernel sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from threading import Lock
from time import perf_counter
from types import FunctionType
from typing import Any, ClassVar, Protocol

import llvmlite.binding as llvm
import numpy as np
from numba import njit, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.runtime import _nrt_python

from .cache import KernelFile, Locator, log
from .interrupts import uninterrupted

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


#: Kernels that this process had to compile, in order, and the seconds that each took.
compiled: list[tuple[str, float]] = []
#: Why kernels that it compiled could not be kept; empty where all is well.
not_kept: list[str] = []

_compiling = Lock()


@cache
def _name_runtime() -> None:
    """Tell the linker where the functions of Numba's runtime are; machine code needs no more of it."""
    for name, address in _nrt_python.c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


class _Format(CompileResultCacheImpl):
    _locator_classes: ClassVar = [Locator]


class _Cache(FunctionCache):
    """Numba's cache of one kernel: quicker to load, content with a read-only directory, and with a word
    before it compiles.
    """

    _impl_class = _Format

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = KernelFile.instead_of(self)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The cached kernel, or None.

        Numba would first load all that it knows of types and functions, which takes a tenth of a second and
        serves compiling only.
        """
        _name_runtime()
        try:
            found = self._load_overload(sig, target_context)
        except Exception:  # there is none, or it cannot be read
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


class Kernel:
    """A Numba function with one explicit signature that compiles, or loads from the cache, on first call."""

    def __init__(
        self,
        function: Callable[..., Any],
        argument_types: tuple[Any, ...],
        calls: Sequence[Any] = (),
        parallel: bool = True,
    ) -> None:
        self.name, self.module = function.__name__, function.__module__
        self._calls = [_shared[callee.symbol] for callee in calls]
        self.__doc__ = function.__doc__
        self._function = function
        self._argument_types = argument_types
        self._dispatcher: Any = None
        self._parallel = parallel

    def compile(self) -> None:
        with uninterrupted():
            for callee in self._calls:
                callee.compile()
                # The linker looks here for the symbol by which the kernel calls it.
                llvm.add_symbol(f"gbp_{callee.name}", callee.address)
            with _compiling:  # a thread that waited would find compilation disabled
                if self._dispatcher is None:
                    self._dispatcher = self._compiled()

    def _compiled(self) -> Any:
        start = perf_counter()
        options: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "nogil": True}
        if self._parallel:
            # fusion: Numba sees no dependence between loops that are linked only through addresses.
            options |= {"parallel": {"fusion": False}, "no_cfunc_wrapper": True}
        dispatcher = njit(**options)(self._function)
        dispatcher._cache = _Cache(self._function)
        dispatcher.compile(types.void(*self._argument_types))
        dispatcher.disable_compile()
        if dispatcher.stats.cache_misses:
            compiled.append((self.name, perf_counter() - start))
        return dispatcher

    @property
    def address(self) -> int:
        """Of the machine code, for callers by C's convention."""
        (compiled,) = self._dispatcher.overloads.values()
        name = compiled.fndesc.llvm_cfunc_wrapper_name
        return int(compiled.library.get_pointer_to_function(name))

    def __call__(self, *args: Any) -> None:
        if not isinstance(args[0], np.ndarray):  # a kernel runs where its arrays lie
            from ...devices.cuda import hand_over

            hand_over(self, args)
            return
        if self._dispatcher is None:
            self.compile()
        self._dispatcher(*args)


def kernel(*argument_types: Any, calls: Sequence[Any] = ()) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a function as a `Kernel` of these argument types; `calls`: the `shared` functions it needs."""
    return lambda function: Kernel(function, argument_types, calls)


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
