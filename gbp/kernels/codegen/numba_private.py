"""Private parts of Numba, all that gbp uses: a new minor version may lack or change any of them.

No other file imports them or reads such attributes of Numba's objects.  `tests/test_numba_private.py` runs
them, and pyproject.toml bounds the version.  Some are slow to load and are needed only to compile, or only
for a card: those are functions that import them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.caching import IndexDataCacheFile, _CacheLocator, _SourceFileBackedLocatorMixin
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager
from numba.core.datamodel.models import PrimitiveModel
from numba.core.runtime import _nrt_python
from numba.core.types.functions import BaseFunction
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.np.numpy_support import as_dtype

__all__ = [
    "AbstractTemplate",
    "CacheLocator",
    "DataFile",
    "PrimitiveModel",
    "as_dtype",
    "infer_global",
    "signature",
]

# ------------------------------------------------------------------------------------------ types and code

get_or_insert_function = cgutils.get_or_insert_function
pack_array = cgutils.pack_array
unpack_tuple = cgutils.unpack_tuple


def array_view(context: Any, builder: Any, kind: Any, array: Any = None) -> Any:
    """The struct of an array of type `kind`: that of a value, or a new one."""
    from numba.np.arrayobj import make_array

    make = make_array(kind)
    return make(context, builder) if array is None else make(context, builder, array)


def populate_array(view: Any, **fields: Any) -> Any:
    """Fill the struct of a new array, and return the array."""
    from numba.np.arrayobj import populate_array as populate

    populate(view, **fields)
    return view._getvalue()


# --------------------------------------------------------------------------------------- compiled functions


def runtime_symbols() -> Iterator[tuple[str, int]]:
    """The names by which machine code calls Numba's runtime, and their addresses."""
    for name, address in _nrt_python.c_helpers.items():
        yield (name if name.startswith("_") else f"NRT_{name}"), address


def compiled_with(dispatcher: Any) -> Any:
    """The result of a dispatcher that has compiled one signature."""
    (compiled,) = dispatcher.overloads.values()
    return compiled


@cache
def _frugal_codegen(usual: Any) -> Any:
    """Numba's code generator, whose libraries are neither optimised nor turned into machine code.

    Numba does both to each function that it compiles, and again to each that calls it.  Functions that Python
    may call are left to `usual`, Numba's own generator.
    """
    codegen = import_module("numba.core.codegen")
    flags = import_module("numba.core.targetconfig").ConfigStack

    class Library(codegen.JITCodeLibrary):  # type: ignore[name-defined]
        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalize_dynamic_globals()
            self._finalized = True

        def get_pointer_to_function(self, name: str) -> int:
            self._ensure_finalized()  # links the functions that it calls
            try:
                self.get_function(name)
            except NameError:
                return 0  # Numba's answer too for a wrapper that there is not
            raise RuntimeError(f"{name} was compiled as a part of a kernel and has no address.")

        def machine_code(self, symbol: str) -> bytes:
            for function in self._final_module.functions:
                # Nobody else calls it, so LLVM inlines more, and drops it where it is inlined everywhere.
                if not function.is_declaration and function.name != symbol:
                    function.linkage = "internal"
            super()._optimize_final_module()
            self._refuse_what_no_linker_finds()
            code: bytes = self._codegen._tm.emit_object(self._final_module)
            return code

        def _refuse_what_no_linker_finds(self) -> None:
            """Raise RuntimeError: LLVM's linker would end the process."""
            # Numba calls a function that is not yet compiled by way of a variable, which its own linker sets.
            late = codegen.RuntimeLinker.PREFIX
            for each in (*self._final_module.functions, *self._final_module.global_variables):
                if each.is_declaration and each.name.startswith(("_ZN", late)):
                    raise RuntimeError(
                        f"{self.name} calls {each.name.removeprefix(late)}, whose code is not there.  "
                        "A function of a kernel may call itself, but not by way of another function."
                    )

    class Codegen(codegen.JITCPUCodegen):  # type: ignore[name-defined]
        _library_class = Library

        def create_library(self, name: str, **options: Any) -> Any:
            function = flags().top_or_none()
            is_part = function is None or function.no_cpython_wrapper
            create = super().create_library if is_part else usual.create_library
            return create(name, **options)

        def unserialize_library(self, serialized: Any) -> Any:
            return usual.unserialize_library(serialized)  # somebody's function, from Numba's own cache

        def set_env(self, name: str, environment: Any) -> None:
            pass  # for Python's objects, which kernels do not have

    return Codegen("gbp")


#: Passes of Numba's compiler over each function that find nothing to do in a kernel.  It has no arithmetic of
#: whole arrays, no `with`, no inner functions and no loops over tuples of several types, and raises nothing.
_IDLE_PASSES = {
    "InlineInlinables",
    "InlineOverloads",
    "FindLiterallyCalls",
    "LiteralPropagationSubPipelinePass",
    "LiteralUnroll",
    "MakeFunctionToJitFunction",
    "NopythonRewrites",
    "RewriteDynamicRaises",
    "WithLifting",
}


class _Pipeline(CompilerBase):
    """Numba's passes without those above."""

    def define_pipelines(self) -> list[Any]:
        made = DefaultPassBuilder.define_nopython_pipeline(self.state)
        kept = PassManager("gbp")
        for each, description in made.passes:
            if each.__name__ not in _IDLE_PASSES:
                kept.add_pass(each, description)
        kept.finalize()
        return [kept]


#: Options of a kernel's functions.  They do not count references to arrays: they own none, and LLVM would
#: have to find that each count is taken back.
LEAN: dict[str, Any] = {"_nrt": False, "pipeline_class": _Pipeline}

_OPERATORS = frozenset(each for each in vars(operator).values() if callable(each))
#: The signatures of operators of numbers, by function and arguments.
_signatures: dict[Any, Any] = {}


@contextmanager
def _operators_remembered() -> Iterator[None]:
    """Look up the signature of each operator of numbers once.

    Numba tries a dozen templates at every `a + b`, and writes down why each did not match.
    """
    look_up = BaseFunction.get_call_type

    def remembered(self: Any, context: Any, args: Any, kws: Any) -> Any:
        if kws or self.typing_key not in _OPERATORS or not all(isinstance(arg, types.Number) for arg in args):
            return look_up(self, context, args, kws)
        key = self, *args
        if key not in _signatures:
            _signatures[key] = look_up(self, context, args, kws)
        return _signatures[key]

    BaseFunction.get_call_type = remembered  # type: ignore[method-assign]
    try:
        yield
    finally:
        BaseFunction.get_call_type = look_up  # type: ignore[method-assign]


class Entry(NamedTuple):
    """A function of C's convention that calls another one, which returns nothing.

    Numba would compile such a function in Python as slowly as any other, and there is one for each kernel.
    """

    #: The symbol.
    name: str
    #: How many int64 it takes.
    words: int
    #: (context, builder, those) → the arguments of the other function, as Numba passes them.
    arguments_of: Callable[[Any, Any, Any], list[Any]]


def _with_entry(context: Any, compiled: Any, entry: Entry) -> Any:
    """A library of a compiled function and its entry."""
    function = compiled.fndesc
    library = context.codegen().create_library(entry.name)
    module = context.create_module(entry.name)
    number = ir.IntType(64)
    kind = ir.FunctionType(ir.VoidType(), [number] * entry.words)
    made = ir.Function(module, kind, entry.name)
    builder = ir.IRBuilder(made.append_basic_block())
    arguments = entry.arguments_of(context, builder, made.args)
    callee = context.declare_function(module, function)
    # The status that it returns says whether it raised an exception, and kernels raise none.
    context.call_conv.call_function(builder, callee, function.restype, function.argtypes, arguments)
    builder.ret_void()
    library.add_linking_library(compiled.library)
    library.add_ir_module(module)
    library.finalize()
    return library


def machine_code(dispatcher: Any, kind: Any, entry: Entry | None = None) -> tuple[str, bytes]:
    """Compile a dispatcher for a signature, together with all that it calls.

    Parameters
    ----------
    dispatcher
        The function, for which the option `no_cfunc_wrapper` is set where it has an `entry`.
    kind
        Its signature.
    entry
        Another function to call it by; None for one that takes the same arguments.

    Returns
    -------
    The symbol to call by C's convention, and the object file.

    Raises
    ------
    RuntimeError
        Where a function that it calls has no code: a function of a kernel may not call itself by way of
        another.
    """
    context = dispatcher.targetdescr.target_context
    with import_module("numba.core.compiler_lock").global_compiler_lock:
        context.refresh()  # Numba's runtime and its extensions are loaded here, for the whole process
        usual = context._internal_codegen
        context._internal_codegen = _frugal_codegen(usual)
        try:
            with _operators_remembered():
                dispatcher.compile(kind)
            compiled = compiled_with(dispatcher)
            symbol, library = compiled.fndesc.llvm_cfunc_wrapper_name, compiled.library
            if entry is not None:
                symbol, library = entry.name, _with_entry(context, compiled, entry)
        finally:
            context._internal_codegen = usual
        return symbol, library.machine_code(symbol)


def was_compiled(dispatcher: Any) -> bool:
    """Whether it had to compile, and did not find all in its cache."""
    return bool(dispatcher.stats.cache_misses)


# ---------------------------------------------------------------------------------------------------- cache


class CacheLocator(_SourceFileBackedLocatorMixin, _CacheLocator):
    """Says where a function's compiled code is kept."""

    def __init__(self, function: Any, file: str) -> None:
        self._py_file = file
        self._lineno = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file)


class DataFile(IndexDataCacheFile):
    """Writes and names files of compiled code; a subclass has `save` and `load`."""

    @classmethod
    def instead_of(cls, cache: Any) -> Any:
        """For the function that Numba's cache keeps."""
        kept = cache._impl
        return cls(kept.locator.get_cache_path(), kept.filename_base, kept.locator.get_source_stamp())

    def path_of(self, name: str) -> str:
        """The path of a file for this function and name."""
        return str(self._data_path(f"{self._index_name.removesuffix('.nbi')}.{name}.nbc"))

    @property
    def source_stamp(self) -> Any:
        return self._source_stamp

    def dump(self, data: Any) -> bytes:
        content: bytes = self._dump(data)
        return content

    def open_for_write(self, path: str) -> Any:
        """A context manager of a binary file, which takes its place when it is complete."""
        return self._open_for_write(path)


def replace_file(cache: Any, file: Any) -> None:
    """Have a cache keep its code by way of a `DataFile`."""
    cache._cache_file = file


def use_cache(dispatcher: Any, cache: Any) -> None:
    dispatcher._cache = cache


# ---------------------------------------------------------------------------------------------------- cards


def cuda_cache_classes() -> tuple[Any, Any]:
    """Numba's caches for kernels of a card, as bases of classes with other locators and files."""
    dispatcher = import_module("numba.cuda.dispatcher")
    return dispatcher.CUDACache, dispatcher.CUDACacheImpl


def cuda_api_error() -> Any:
    """The exception of a failed call of the driver; its `code` says why."""
    return import_module("numba.cuda.cudadrv.driver").CudaAPIError


def cuda_driver() -> Any:
    """The driver's functions, by their names in C."""
    return import_module("numba.cuda.cudadrv.driver").driver


def card_function(dispatcher: Any) -> Any:
    """The function that the driver made of a kernel with one signature; loads it where it is not yet."""
    return compiled_with(dispatcher)._codelibrary.get_cufunc()


def take_any_strides(dispatcher: Any) -> None:
    """Have a kernel of a card that was compiled take arrays of any strides as they are."""
    dispatcher._specialized = True


def launch(
    dispatcher: Any, args: Any, blocks: tuple[int, ...], threads: tuple[int, ...], stream: Any, shared: int
) -> None:
    """Launch a card's kernel of one signature; Numba's own syntax would warn of small grids and keep each."""
    compiled_with(dispatcher).launch(args, blocks, threads, stream, shared)


def libdevice() -> Any:
    """The module of a card's own functions of numbers."""
    return import_module("numba.cuda.libdevice")


def simulator() -> Any:
    """The module with the simulator's `Dim3`, `FakeCUDAModule` and `swapped_cuda_module`."""
    return import_module("numba.cuda.simulator.kernelapi")
