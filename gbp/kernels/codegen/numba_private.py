"""Private parts of Numba: a new minor version may lack or change any of them.

No file but this one, `numba_compiler.py` and `numba_shortcuts.py` imports them or reads such attributes of
Numba's objects.
`tests/test_numba_private.py` runs them, and pyproject.toml bounds the version.  Some are slow to load and are
needed only to compile, or only for a card: those are functions that import them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from numba.core import cgutils
from numba.core.caching import IndexDataCacheFile, _CacheLocator, _SourceFileBackedLocatorMixin
from numba.core.datamodel.models import PrimitiveModel
from numba.core.runtime import _nrt_python
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
