"""The private parts of Numba that gbp uses: three files name them, and they do what these say of them."""

from __future__ import annotations

import ast
import ctypes
import math
import pickle
import subprocess
import sys
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import njit, types
from numba.core import event, ir
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.compiler import DefaultPassBuilder, Flags, StateDict, run_frontend
from numba.core.errors import TypingError
from numba.core.postproc import PostProcessor
from numba.core.targetconfig import TargetConfig
from numba.core.types.functions import BaseFunction
from numba.core.typing import templates
from test_cache import end, environment, start

from gbp.kernels.codegen import numba_compiler, numba_private, numba_shortcuts
from gbp.kernels.codegen.bits import store_index
from gbp.kernels.codegen.cache import MachineCode
from gbp.kernels.codegen.jit import _linked, device_function, one_of_many

ROOT = Path(__file__).resolve().parent.parent
CODEGEN = ROOT / "gbp" / "kernels" / "codegen"
PRIVATE = [CODEGEN / f"numba_{name}.py" for name in ("private", "compiler", "shortcuts")]
#: Modules that Numba documents for others.
PUBLIC = {"numba", "numba.cuda", "numba.extending", "numba.types", "numba.config"}
#: Attributes of Numba's dispatchers and caches.
ATTRIBUTES = {
    "overloads",
    "fndesc",
    "serialize_using_object_code",
    "cache_misses",
    "_cache",
    "_cache_file",
    "_specialized",
    "_data_path",
    "_dump",
    "_open_for_write",
    "c_helpers",
    "cudadrv",
}


def _names_of(tree: ast.AST) -> set[str]:
    """The modules that are imported, the attributes that are read, and texts, which may name modules."""
    found = set()
    for each in ast.walk(tree):
        if isinstance(each, ast.Import):
            found |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom) and not each.level:
            assert each.module is not None
            found |= {each.module}
            found |= {f"{each.module}.{alias.name}" for alias in each.names if alias.name == "core"}
        elif isinstance(each, ast.Attribute):
            found.add(each.attr)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str) and " " not in each.value:
            found.add(each.value)
    return found


@pytest.mark.fast
def test_three_files_name_them() -> None:
    for path in sorted((ROOT / "gbp").rglob("*.py")):
        text = path.read_text()
        if not any(word in text for word in ("numba", *ATTRIBUTES)):
            continue
        names = _names_of(ast.parse(text))
        private = {name for name in names if name.startswith("numba.")} - PUBLIC | names & ATTRIBUTES
        assert not private or path in PRIVATE, (path, private)
    assert {"numba.core", "overloads"} <= _names_of(ast.parse(PRIVATE[0].read_text()))


def _twice_and_one(x: float) -> float:
    return np.sqrt(x) * 2 + 1  # type: ignore[no-any-return]


def test_machine_code_is_linked_and_called_by_address() -> None:
    for name, address in numba_private.runtime_symbols():
        assert address
        llvm.add_symbol(name, address)
    dispatcher = njit(no_cpython_wrapper=True)(_twice_and_one)
    symbol, objects = numba_compiler.machine_code(dispatcher, types.float64(types.float64))
    engine, address = _linked(MachineCode(symbol, objects))
    assert engine
    assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(address)(9.0) == 7.0


@device_function
def _keep(number: int, address: int) -> None:
    store_index(address, number * 2)


def test_an_entry_gives_a_function_its_arguments() -> None:
    kept = (ctypes.c_int32 * 1)()
    entry = numba_compiler.Entry(
        "by_way", 3, lambda context, builder, args: [builder.add(*args[:2]), args[2]]
    )
    symbol, objects = numba_compiler.machine_code(_keep, types.void(types.int64, types.int64), entry)
    assert symbol == "by_way"
    engine, address = _linked(MachineCode(symbol, objects))
    assert engine
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(address)(20, 1, ctypes.addressof(kept))
    assert kept[0] == 42


def _write_twice(number: int, to: int) -> None:
    store_index(to, int(_made_of(number) * 2))


def _made_of(number: int) -> Any:
    raise NotImplementedError("kernels of the template have a function of this name")


def test_a_template_is_compiled_once_for_functions_of_the_same_types() -> None:
    """The others are copies that call other functions.  Another type needs a template of its own."""
    entry = numba_compiler.Entry("written_0", 2, lambda context, builder, args: list(args))
    compiled = []
    for i, function in enumerate((lambda n: n + 1, lambda n: n * 10, lambda n: n / 4, lambda n: n - 1)):
        value = one_of_many(f"template_value_{i}", inline=True)(function)
        values = _write_twice.__globals__ | {"_made_of": value}
        kernel = device_function(FunctionType(_write_twice.__code__, values, f"written_{i}"))
        template = numba_compiler.Template("test", (value,))
        given = types.void(types.int64, types.int64), entry._replace(name=f"written_{i}")
        symbol, objects = numba_compiler.machine_code(kernel, *given, template)
        assert symbol == f"written_{i}"
        engine, address = _linked(MachineCode(symbol, objects))
        assert engine
        kept = (ctypes.c_int32 * 1)()
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2)(address)(6, ctypes.addressof(kept))
        assert kept[0] == (14, 120, 3, 10)[i]
        compiled.append(bool(kernel.overloads))
    assert compiled == [True, False, True, False]


def test_variables_of_numbas_ir_are_those_that_numba_finds() -> None:
    usual = ir.Inst._rec_list_vars
    for block in run_frontend(_write_twice).blocks.values():
        for statement in block.body:
            found = usual(statement, statement.__dict__)
            assert numba_shortcuts._variables(statement, statement.__dict__) == found


def test_options_of_numba_are_those_that_it_lists() -> None:
    flags = Flags()
    flags.nrt = True
    assert numba_shortcuts._options(flags) == flags.values()


def test_passes_that_kernels_do_without_are_passes_of_numba() -> None:
    """A new version may rename one; then it would run again."""
    state = StateDict(func_ir=None, flags=Flags())
    usual = {each.__name__ for each, _ in DefaultPassBuilder.define_nopython_pipeline(state).passes}
    assert usual > numba_compiler._IDLE_PASSES


def test_numba_is_as_usual_after_a_kernel() -> None:
    def replaced() -> list[Any]:
        context = njit(_twice_and_one).targetdescr.target_context
        template = templates._TemplateTargetHelperMixin
        return [
            BaseFunction.get_call_type,
            template._get_target_registry,
            type(context).get_abi_sizeof,
            *(event.start_event, event.end_event),
            *(PostProcessor.run, TargetConfig.values, ir.Inst._rec_list_vars),
        ]

    usual = replaced()
    numba_compiler.machine_code(njit(no_cpython_wrapper=True)(_rooted), types.float64(types.float64))
    assert replaced() == usual
    with pytest.raises(TypingError):
        numba_compiler.machine_code(njit(lambda x: x + ""), types.float64(types.float64))
    assert replaced() == usual


@device_function
def _root(x: float) -> float:
    if x < 0:
        raise ValueError("negative")
    return math.sqrt(x) + abs(x) // 1 + np.sign(x)


def _rooted(x: float) -> float:
    return _root(x) * 2 + 1


def test_numba_compiles_the_same_functions_for_others_before_and_after() -> None:
    """A program may have Numba functions of its own, which call what a kernel calls."""
    before = njit(lambda x: np.sign(x) + abs(x) // 1)
    assert before(9.0) == 10.0
    numba_compiler.machine_code(njit(no_cpython_wrapper=True)(_rooted), types.float64(types.float64))
    after = njit(lambda x: _root(x) + np.sign(x) + abs(x) // 1)
    assert after(9.0) == 23.0
    with pytest.raises(ValueError, match="negative"):
        after(-1.0)
    assert before(16) == 17


#: Numba's runtime, which all functions of a process share, is the usual one where a kernel is compiled first.
RUNTIME = """
from numba import njit, types
from numba.core.runtime import rtsys
from gbp.kernels.codegen import numba_compiler

def work(x):
    return x + 1

numba_compiler.machine_code(njit(no_cpython_wrapper=True)(work), types.float64(types.float64))
assert rtsys.library.get_pointer_to_function("nrt_unresolved_abort")

@njit
def even(n):
    return n == 0 or odd(n - 1)

@njit
def odd(n):
    return n != 0 and even(n - 1)

assert even(10)
"""

#: Python calls functions that a kernel compiled, or loaded from Numba's cache, as it calls any other.
CALLED = """
from numba import njit, types
from gbp.kernels.codegen import numba_compiler

@njit
def thrice(x):
    if x < 0:
        raise ValueError("negative", x)
    return x * 3

@njit(cache=True)
def kept(x):
    return thrice(x) + 1

def work(x):
    return kept(x) + 1

numba_compiler.machine_code(njit(no_cpython_wrapper=True)(work), types.float64(types.float64))
assert thrice(2.0) == 6.0
assert kept(2.0) == 7.0
try:
    thrice(-2.0)
except ValueError as error:
    assert error.args == ("negative", -2.0)
else:
    raise AssertionError
"""


@pytest.mark.parametrize("program", [RUNTIME, CALLED], ids=["runtime", "called"])
def test_a_process_whose_first_compiled_function_is_a_kernel(program: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program)
    where = environment(tmp_path, tmp_path / "cache", NUMBA_CACHE_DIR=str(tmp_path / "numba"))
    for _ in range(2):  # the second finds `kept` in Numba's cache
        command = (sys.executable, "-c", "import program")
        done = subprocess.run(
            command, cwd=tmp_path, env=where, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]


@device_function
def _is_even(n: int) -> bool:
    return n == 0 or _is_odd(n - 1)


@device_function
def _is_odd(n: int) -> bool:
    return n != 0 and _is_even(n - 1)


@device_function
def _factorial(n: int) -> int:
    return 1 if n < 2 else n * _factorial(n - 1)


_nowhere = types.ExternalFunction("_ZN3gbp7nowhereE", types.int64(types.int64))


def test_a_function_whose_code_is_missing_is_refused() -> None:
    """LLVM's linker would end the process."""

    def compiled(function: Any) -> tuple[str, bytes]:
        return numba_compiler.machine_code(njit(no_cpython_wrapper=True)(function), types.int64(types.int64))

    with pytest.raises(RuntimeError, match=r"calls _ZN.*_is_\w+.*may call itself, but not by way of another"):
        compiled(lambda n: _is_even(n) + 1)
    with pytest.raises(RuntimeError, match="calls _ZN3gbp7nowhereE"):
        compiled(lambda n: _nowhere(n) + 1)
    engine, address = _linked(MachineCode(*compiled(lambda n: _factorial(n) + 1)))
    assert engine
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(5) == 121


def test_no_part_of_a_kernel_has_an_address() -> None:
    """Zero would do for Numba, which then jumps to it."""
    dispatcher = njit(no_cpython_wrapper=True)(_twice_and_one)
    symbol, _ = numba_compiler.machine_code(dispatcher, types.float64(types.float64))
    library = numba_private.compiled_with(dispatcher).library
    assert library.get_pointer_to_function("not there") == 0
    with pytest.raises(RuntimeError, match="compiled as a part of a kernel"):
        library.get_pointer_to_function(symbol)


def test_files_of_numbas_cache_are_replaced(tmp_path: Path) -> None:
    """As those of kernels for cards are."""

    class Locator(numba_private.CacheLocator):
        def get_cache_path(self) -> str:
            return str(tmp_path)

        def ensure_cache_path(self) -> None:
            pass

    class File(numba_private.DataFile):
        def save(self, key: Any, data: Any) -> None:
            assert self.source_stamp
            with self.open_for_write(self.path_of("one")) as file:
                file.write(self.dump((key, data)))

        def load(self, key: Any) -> Any:
            kept, data = pickle.loads(Path(self.path_of("one")).read_bytes())
            assert kept == key
            return data

    class Format(CompileResultCacheImpl):
        _locator_classes: ClassVar = [Locator]

    class Cache(FunctionCache):
        _impl_class = Format

        def __init__(self, function: Any) -> None:
            super().__init__(function)
            numba_private.replace_file(self, File.instead_of(self))

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            try:
                return super().load_overload(sig, target_context)
            except FileNotFoundError:
                return None

    for was_compiled in (True, False):
        dispatcher = njit(_twice_and_one)
        numba_private.use_cache(dispatcher, Cache(_twice_and_one))
        dispatcher.compile(types.float64(types.float64))
        assert numba_private.was_compiled(dispatcher) == was_compiled
        assert dispatcher(9.0) == 7.0
        assert [path.suffix for path in tmp_path.iterdir()] == [".nbc"]


#: Types and operators of vectors, the struct of an array read and made, functions of LLVM.
KERNEL = """
import numpy as np
from gbp.kernels.codegen import simd
from gbp.kernels.codegen.emit import LANES
from gbp.kernels.codegen.jit import ACTIVATION, DENSE, INT, Kernel, compiled

def work(x, y, parts, share):
    vector = simd.load(simd.at(x, 0, 0, 1))
    simd.store(simd.address_of(y), vector * 2.0 + simd.square_root(vector) - vector / vector)

work = Kernel(work, (ACTIVATION, DENSE, INT))
x = np.arange(1, 2 * LANES + 1, dtype=np.float32).reshape(1, 1, 2, LANES)
y = np.zeros(LANES, np.float32)
work(x, y, 1)
assert "work" in [name for name, _ in compiled]
assert np.allclose(y, x[0, 0, 1] * 2 + np.sqrt(x[0, 0, 1]) - 1)
"""


def test_vectors_and_arrays_compile(tmp_path: Path) -> None:
    (tmp_path / "vectors.py").write_text(KERNEL)
    end(start(tmp_path, "import vectors", tmp_path / "cache"))


def test_the_parts_of_the_simulator() -> None:
    parts = numba_private.simulator()
    assert (parts.Dim3(1, 2, 3).x, parts.Dim3(1, 2, 3).z) == (1, 3)
    assert callable(parts.swapped_cuda_module)
    module = parts.FakeCUDAModule((1, 1, 1), (2, 1, 1), 0)
    assert module.blockDim.x == 2
