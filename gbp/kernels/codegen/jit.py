"""Compiles kernels: for one signature, on first use, with a cache keyed by a hash of all kernel sources."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from threading import RLock
from time import perf_counter
from types import FunctionType
from typing import Any, ClassVar, Protocol

import llvmlite.binding as llvm
import numpy as np
from numba import njit, types
from numba.extending import overload

from . import numba_compiler, numba_private
from .cache import CACHE_DIRECTORY, CodeFile, MachineCode, log, warn
from .interrupts import uninterrupted
from .lock import only_one
from .packing import ENTRY_WORDS, SHARE, packer_of, unpacked

#: Types of arguments.  An activation is (N, H, W, C) with any strides and a dense channel axis, so that a
#: crop, a group of channels or a part of a concatenation is passed without a copy.
ACTIVATION = types.Array(types.float32, 4, "A")
DENSE = types.Array(types.float32, 1, "C")
WEIGHTS = types.Array(types.float32, 1, "C", readonly=True)  # may be part of a mapped file
INT = types.int64
FLOAT = types.float32

_OPTIONS = {
    "error_model": "numpy", "boundscheck": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True
} | numba_compiler.LEAN  # fmt: skip
#: Inlined into the kernels that call it, so it needs no signature; Python cannot call it, because the wrapper
#: for that would take a quarter of the time to compile.
device_function = njit(**_OPTIONS)
#: A device function that is inlined wherever it is called.  LLVM would call a large one, or one that is used
#: often, and a call passes most arguments and all results through memory.
inlined = njit(**_OPTIONS, forceinline=True)


def one_of_many(name: str, inline: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that a factory makes: a `device_function`, or `inlined`, under a name of its own.

    Numba names machine code by qualified name and a count within the process.  Kernels that two processes
    compiled may so have different code under one name, and the linker silently takes either.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ = name
        return inlined(function) if inline else device_function(function)

    return decorate


def copy_of(function: Any, name: str, **values: Any) -> Any:
    """Copy a device function and all others of its module, with these global names replaced.

    The copies call each other.  Each has machine code under a name of its own (see `one_of_many`).
    """
    module = function.py_func.__globals__
    names = module | values
    for key, other in module.items():
        plain = getattr(other, "py_func", None)
        if key not in values and plain is not None and plain.__globals__ is module:
            copy = FunctionType(plain.__code__, names, key)
            inline = other.targetoptions.get("forceinline", False)
            names[key] = one_of_many(f"{key}_{name}", inline)(copy)
    return names[function.__name__]


def by_class(name: str, functions: Mapping[type, Callable[..., Any]]) -> Any:
    """Make a device function, always inlined, that is one of these, by the class of its last argument.

    That argument is a NamedTuple, so the choice is made when a kernel is compiled.  The functions are plain
    ones, and take the same parameters.
    """

    def function(*args: Any) -> Any:
        raise NotImplementedError(f"{name} is for kernels")

    @overload(function, jit_options=_OPTIONS | {"forceinline": True}, strict=False)
    def chosen(*args: Any) -> Any:
        return functions[args[-1].instance_class]

    return function


def by_count(name: str, functions: Sequence[Any], first: int = 1) -> Any:
    """Make a device function (count, …) that is the one of these device functions for this count.

    Each is made for one count, from `first` on, and takes the same arguments.  A tree of branches finds it.
    """
    if len(functions) == 1:
        return functions[0]
    half = len(functions) // 2
    lower = by_count(f"{name}_low", functions[:half], first)
    upper = by_count(f"{name}_high", functions[half:], first + half)
    middle = first + half

    @one_of_many(name)
    def choose(count: int, *args: Any) -> Any:
        if count < middle:
            return lower(count, *args)
        return upper(count, *args)

    return choose


#: Kernels that this process had to compile, or had others compile, in order, and the seconds that each took.
compiled: list[tuple[str, float]] = []
#: Why kernels that it compiled could not be kept; empty where all is well.
not_kept: list[str] = []

_compiling = RLock()


if hasattr(os, "register_at_fork"):
    # A fork waits until no other thread compiles: the child could not free the locks of Numba and of LLVM.
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release
    )


@contextmanager
def _garbage_stays() -> Iterator[None]:
    """Pause Python's collector of garbage.

    A compilation keeps most of what it makes until it ends, and searching that takes a tenth of its time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _name_runtime() -> None:
    """Tell the linker where the functions of Numba's runtime are; machine code needs no more of it."""
    for name, address in numba_private.runtime_symbols():
        llvm.add_symbol(name, address)


class Compiled(Protocol):
    """Something that can be compiled before it is used."""

    def compile(self) -> None: ...


#: Parts of a kernel's work for each thread.  With several, a thread that starts late computes fewer of them.
SPLIT = 4
#: Parameters that hold no data but room for some.
_SCRATCH = ("scratch", "sums", "lists")


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

    def __reduce__(self) -> tuple[Any, ...]:
        return found, (self.module, self.name)

    def compile(self) -> None:
        with uninterrupted(), _compiling:
            if self._address:
                return
            for callee in self._calls:
                # The linker looks here for the symbol by which the kernel calls it.
                llvm.add_symbol(f"gbp_{callee.name}", callee.address)
            self._address = self._loaded()

    @property
    def address(self) -> int:
        """The address of the machine code, which has C's calling convention."""
        if not self._address:
            self.compile()
        return self._address

    @property
    def is_stored(self) -> bool:
        """Whether its machine code is loaded or kept."""
        return bool(self._address) or self._file().path.exists()

    @property
    def runs_here(self) -> bool:
        """Whether this processor can run it.  Where it cannot, LLVM ends the process that compiles it."""
        return True

    def with_callees(self) -> tuple[Native, ...]:
        """The functions that it calls and does not inline, and then itself."""
        return *self._calls, self

    def _file(self) -> CodeFile:
        return CodeFile(self.module, self.name, repr((self.argument_types, _words_of(self._function))))

    def _loaded(self) -> int:
        """Load the machine code from the cache, or compile and keep it.  Returns its address."""
        file = self._file()
        code = file.load()
        if code is None:
            log.info("compiling kernel %s", self.name)
            with only_one(file.name):
                code = file.load()  # another process may have compiled it meanwhile
                if code is None:
                    code = self._compiled()
                    try:
                        file.save(code)
                    except OSError as error:  # no place to write: then every process compiles
                        not_kept.append(error.strerror or str(error))
                        warn(CACHE_DIRECTORY, "kernels", not_kept[-1])
        self._engine, address = _linked(code)  # the engine owns the memory of the code
        return address

    def _compiled(self) -> MachineCode:
        start = perf_counter()
        with _garbage_stays():
            code = MachineCode(*self._machine_code())
        compiled.append((self.name, perf_counter() - start))
        return code

    def _machine_code(self) -> tuple[str, bytes]:
        """Compile it.  Returns the symbol and the object file."""
        dispatcher = njit(**_OPTIONS | {"no_cfunc_wrapper": False})(self._function)
        return numba_compiler.machine_code(dispatcher, types.void(*self.argument_types))


def _words_of(function: Callable[..., Any]) -> tuple[Any, ...]:
    """The code of a function and its constants, to distinguish it from others of its name."""
    code = function.__code__
    return code.co_code, code.co_names, [each for each in code.co_consts if isinstance(each, (int, float))]


def _linked(code: MachineCode) -> tuple[Any, int]:
    """An engine of LLVM that has loaded the code, and the address of its symbol.

    Each has an engine of its own, so that no other code can replace its functions.  Numba would also
    parse the code's source, which takes longer than all the rest.
    """
    _name_runtime()
    target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code.objects))
    engine.finalize_object()
    return engine, engine.get_function_address(code.symbol)


def found(module: str, name: str) -> Native:
    """The function of this name in a module, for other processes and what is pickled.

    A module that makes kernels on demand has a function `made`, which makes the one of a name.
    """
    home = import_module(module)
    there = getattr(home, name) if hasattr(home, name) else home.made(name)
    return there if isinstance(there, Native) else _shared[there.symbol]


class Kernel(Native):
    """A function over arrays whose work is cut into parts, which threads share.

    A caller passes the arguments, the last of which is the number of threads.  The function itself receives
    the number of parts in its place, and a `Share`, which says which parts to compute.

    Parameters
    ----------
    function
        The function to compile.
    argument_types
        Numba types of the arguments, without the `Share`.
    calls
        The `shared` functions that it calls.
    split
        Parts for each thread.
    phases
        Computes the number of phases from the arguments; None for one.  Threads wait for each other after
        each.
    needs
        Says whether this processor can run it; None for any processor.
    """

    #: The parts of which `kernel_from` made it.
    template: numba_compiler.Template | None = None
    #: The function that runs a call; `program` sets it when the package `kernels` is imported.
    submit: ClassVar[Callable[[Kernel, Sequence[Any]], None]]

    def __init__(
        self,
        function: Callable[..., Any],
        argument_types: Sequence[Any],
        calls: Sequence[Any] = (),
        split: int = SPLIT,
        phases: Callable[[Sequence[Any]], int] | None = None,
        needs: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(function, argument_types, calls)
        self.split, self.phases, self._needs = split, phases, needs
        names = function.__code__.co_varnames[: len(self.argument_types)]
        self._sized = [
            i
            for i, (name, kind) in enumerate(zip(names, self.argument_types, strict=True))
            if isinstance(kind, types.Array) and name not in _SCRATCH
        ]
        self.pack = packer_of(self.argument_types[:-1])

    @property
    def runs_here(self) -> bool:
        return self._needs is None or self._needs()

    def elements(self, args: Sequence[Any]) -> int:
        """How many elements these arguments hold, scratch aside: about how much there is to do."""
        return sum(args[i].size for i in self._sized)

    def _machine_code(self) -> tuple[str, bytes]:
        *kinds, _ = self.argument_types
        entry = numba_compiler.Entry(
            f"{self.module.rpartition('.')[2]}.{self.name}", ENTRY_WORDS, partial(unpacked, kinds)
        )
        signature = types.void(*self.argument_types, SHARE)
        return numba_compiler.machine_code(device_function(self._function), signature, entry, self.template)

    def __call__(self, *args: Any) -> None:
        if not isinstance(args[0], np.ndarray):  # an array of another device runs the kernel's twin
            args[0].run_kernel(self, args)
            return
        Kernel.submit(self, args)


def kernel(
    *argument_types: Any,
    calls: Sequence[Any] = (),
    split: int = SPLIT,
    phases: Callable[[Sequence[Any]], int] | None = None,
    needs: Callable[[], bool] | None = None,
) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a function as a `Kernel`.  The parameters are those of `Kernel`."""
    return lambda function: Kernel(function, argument_types, calls, split, phases, needs)


def kernel_from(
    template: Callable[..., Any], name: str, *argument_types: Any, **functions: Callable[..., Any]
) -> Kernel:
    """Make a `Kernel` from a template in which these global names are replaced by functions.

    Plain functions are inlined; device functions are taken as they are.  A closure would do the same, but the
    cache tells kernels apart by their names and code, and the closures of one function share both.
    """
    own = {
        key: one_of_many(f"{name}_{key}", inline=True)(function)
        for key, function in functions.items()
        if not hasattr(function, "py_func")
    }
    copy = FunctionType(template.__code__, template.__globals__ | functions | own, name)
    copy.__qualname__, copy.__doc__ = name, template.__doc__
    others = tuple((key, function) for key, function in functions.items() if key not in own)
    made = Kernel(copy, argument_types)
    made.template = numba_compiler.Template((template, *own, *others), tuple(own.values()))
    return made


_shared: dict[str, Native] = {}


def shared(*argument_types: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that kernels call and do not inline.

    It is compiled once for all kernels.  A device function is compiled again in each kernel.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        symbol = f"gbp_{function.__name__}"
        _shared[symbol] = Native(function, argument_types)
        return types.ExternalFunction(symbol, types.void(*argument_types))

    return decorate
