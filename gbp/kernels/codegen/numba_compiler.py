"""Compiles a kernel by private parts of Numba, without what Numba does for nothing, or again.

`numba_shortcuts.py` has what Numba repeats for each function.  The other private parts are in
`numba_private.py`, which says what holds for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager

from .numba_private import compiled_with
from .numba_shortcuts import repeats_left_out


class Template(NamedTuple):
    """The parts of a kernel, for those that differ from others only in functions that they call."""

    #: The same for all of them, and different for other kernels.
    key: Any
    #: The dispatchers of those functions.
    functions: tuple[Any, ...]


@cache
def _frugal_codegen(usual: Any) -> Any:
    """Numba's code generator, whose libraries are neither optimised nor turned into machine code.

    Numba does both to each function that it compiles, and again to each that calls it.  Functions that Python
    may call are left to `usual`, Numba's own generator.
    """
    codegen = import_module("numba.core.codegen")
    flags = import_module("numba.core.targetconfig").ConfigStack

    class Library(codegen.JITCodeLibrary):  # type: ignore[name-defined]
        def _optimize_functions(self, module: Any) -> None:
            """Simplify each function before it is copied to all that call it."""
            module.data_layout = self._codegen._data_layout
            passes, builder = self._codegen.first_passes
            for function in module.functions:
                if not function.is_declaration:
                    passes.run(function, builder)

        def finalize(self) -> None:
            self._finalized = True

        def _get_module_for_linking(self) -> Any:
            """The module that other libraries link.  The same function may reach a kernel by several ways."""
            return self._for_others

        @cached_property
        def _for_others(self) -> Any:
            module = self._linked()
            for function in module.functions:
                if not function.is_declaration and function.linkage == codegen.ll.Linkage.external:
                    function.linkage = "linkonce_odr"
            return module

        def _linked(self) -> Any:
            """A new module of its function and of all that it calls."""
            module = self._final_module.clone()
            for library in dict.fromkeys(self._linking_libraries):
                module.link_in(library._get_module_for_linking(), preserve=True)
            return module

        def renamed(self, names: dict[str, str], libraries: dict[Any, Any]) -> Any:
            """A copy in which these symbols have other names, and these libraries others in their place."""
            copy = type(self)(self._codegen, self.name)
            text = str(self._final_module)
            for name, other in names.items():
                text = text.replace(name, other)
            copy._final_module = codegen.ll.parse_assembly(text)
            copy._linking_libraries = [libraries.get(each, each) for each in self._linking_libraries]
            copy.finalize()
            return copy

        def get_pointer_to_function(self, name: str) -> int:
            try:
                self.get_function(name)
            except NameError:
                return 0  # Numba's answer too for a wrapper that there is not
            raise RuntimeError(f"{name} was compiled as a part of a kernel and has no address.")

        def machine_code(self, symbol: str) -> bytes:
            whole = type(self)(self._codegen, self.name)
            module = whole._final_module = self._linked()
            for function in module.functions:
                # Nobody else calls it, so LLVM inlines more, and drops it where it is inlined everywhere.
                if not function.is_declaration and function.name != symbol:
                    function.linkage = "internal"
            module.verify()
            self._codegen._check_llvm_bugs()
            whole._optimize_final_module()
            whole._refuse_what_no_linker_finds()
            code: bytes = self._codegen._tm.emit_object(whole._final_module)
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

        @cached_property
        def first_passes(self) -> Any:
            """Numba would make them for each function, and for each that it only calls."""
            return self._function_pass_manager()

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
#: "IRLegalization" marks where a variable is used for the last time, for those who count references.
_IDLE_PASSES = {
    "InlineClosureLikes",
    "InlineInlinables",
    "InlineOverloads",
    "IRLegalization",
    "FindLiterallyCalls",
    "LiteralPropagationSubPipelinePass",
    "LiteralUnroll",
    "MakeFunctionToJitFunction",
    "NopythonRewrites",
    "RewriteDynamicRaises",
    "WithLifting",
}


class _Passes(PassManager):
    """Runs passes.  Numba would also measure each, and tell who listens of its options and arguments."""

    def _runPass(self, index: int, each: Any, state: Any) -> None:  # noqa: N802
        each.analysis = self._analysis
        each.run_initialization(state)
        each.run_pass(state)
        each.run_finalizer(state)


class _Pipeline(CompilerBase):
    """Numba's passes without those above."""

    def define_pipelines(self) -> list[Any]:
        made = DefaultPassBuilder.define_nopython_pipeline(self.state)
        kept = _Passes("gbp")
        for each, description in made.passes:
            if each.__name__ not in _IDLE_PASSES:
                kept.add_pass(each, description)
        kept.finalize()
        return [kept]


#: Options of a kernel's functions.  They do not count references to arrays: they own none, and LLVM would
#: have to find that each count is taken back.
LEAN: dict[str, Any] = {"_nrt": False, "pipeline_class": _Pipeline}


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


class _Made(NamedTuple):
    """A kernel of a template, as Numba compiled it: the library of its entry, and its own."""

    entry: Entry
    functions: tuple[Any, ...]
    library: Any
    inner: Any


#: By template and signature, one for all kernels whose functions return the same types.
_made: dict[Any, list[_Made]] = {}


def _like_another(template: Template, kind: Any, entry: Entry) -> Any:
    """The library of a kernel, copied from one of its template; None where there is none like it.

    The copy calls the functions of this kernel.  Numba takes longer to compile the rest than LLVM does.
    """
    for made in _made.get((template.key, kind), ()):
        names, libraries = {made.entry.name: entry.name}, {}
        for function, other in zip(template.functions, made.functions, strict=True):
            for arguments, before in other.overloads.items():
                function.compile(arguments)
                now = function.overloads[arguments]
                if now.signature.return_type == before.signature.return_type:
                    names[before.fndesc.mangled_name] = now.fndesc.mangled_name
                    libraries[before.library] = now.library
        if len(libraries) == sum(len(other.overloads) for other in made.functions):
            libraries[made.inner] = made.inner.renamed(names, libraries)
            return made.library.renamed(names, libraries)
    return None


def machine_code(
    dispatcher: Any, kind: Any, entry: Entry | None = None, template: Template | None = None
) -> tuple[str, bytes]:
    """Compile a dispatcher for a signature, together with all that it calls.

    Parameters
    ----------
    dispatcher
        The function, for which the option `no_cfunc_wrapper` is set where it has an `entry`.
    kind
        Its signature.
    entry
        Another function to call it by; None for one that takes the same arguments.
    template
        Its parts, if others are like it.  They all have an `entry`.

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
            with repeats_left_out(context):
                if template and entry and (library := _like_another(template, kind, entry)):
                    return entry.name, library.machine_code(entry.name)
                dispatcher.compile(kind)
            compiled = compiled_with(dispatcher)
            symbol, library = compiled.fndesc.llvm_cfunc_wrapper_name, compiled.library
            if entry is not None:
                symbol, library = entry.name, _with_entry(context, compiled, entry)
            if template and entry:
                made = _Made(entry, template.functions, library, compiled.library)
                _made.setdefault((template.key, kind), []).append(made)
        finally:
            context._internal_codegen = usual
        return symbol, library.machine_code(symbol)
