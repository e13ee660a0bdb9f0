"""How a CUDA kernel is compiled and launched: the twin of `jit.py`.

A twin has the name and the arguments of the kernel that it stands for, without the number of threads, and
lies in the module of that name with `_cuda` behind it.  Nothing here is imported before a device is asked
for.

Under `NUMBA_ENABLE_CUDASIM=1` kernels run as plain Python (`simulation.py`), so that they are tested where
there is no card; then blocks are small, because a thread of the host stands for each of the card's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from threading import Lock
from time import perf_counter
from types import FunctionType, MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numba import cuda, types
from numba.core import config
from numba.np.numpy_support import as_dtype

from ...errors import GbpError
from .cache import KernelFile, Locator, log
from .jit import compiled, not_kept

#: Whether the simulator stands in for a card.
SIMULATED = bool(config.ENABLE_CUDASIM)

#: Threads of a block where they do not work together.
_BLOCK = 4 if SIMULATED else 256
#: Blocks at most; each thread goes on with the unit of work that is as many further as there are threads.
_MAX_BLOCKS = 1 if SIMULATED else 2**16

#: What kernels compute addresses with; those of the simulator are the host's, of 64 bits.
int32, int64 = (int, int) if SIMULATED else (types.int32, types.int64)

#: Bytes of shared memory that a block has without asking.
_SHARED_BYTES = 48 * 1024


@cache
def tensor_cores() -> str:
    """How this card's multiply float32 numbers: by "wgmma", by "mma", or "" where they cannot."""
    if SIMULATED:
        return "simulated"
    major, _ = cuda.get_current_device().compute_capability
    return "wgmma" if major == 9 else "mma" if major >= 8 else ""


#: Called by kernels, and by nothing else.  It may name what is in its module, but nothing of `cuda`.
device_function: Callable[[Any], Any] = (lambda function: function) if SIMULATED else cuda.jit(device=True)


def device_function_of(function: Any, **named: Any) -> Any:
    """A device function of the CPU for the card, in which these global names stand for other functions."""
    source = function.py_func
    return device_function(FunctionType(source.__code__, source.__globals__ | named, source.__name__))


class CudaKernel:
    """A function of fixed argument types; compiles on first call, runs on the card of its first argument."""

    def __init__(
        self,
        function: Callable[..., None],
        argument_types: tuple[Any, ...],
        grid: Callable[..., tuple[tuple[int, ...], tuple[int, ...]]],
        together: bool = False,
        shared_bytes: int = 0,
        bounds: tuple[int, int] | None = None,
        capability: tuple[int, int] = (0, 0),
    ) -> None:
        """`together`: the threads of a block work together.  `bounds`: how many threads a block has, and how
        many blocks a multiprocessor should hold.  `capability`: the least that a card must have.
        """
        self.together, self.bounds, self.capability = together, bounds, capability
        self.name, self.__doc__ = function.__name__, function.__doc__
        self.function, self.argument_types = function, argument_types
        self.shared_bytes, self._grid = shared_bytes, grid
        self._dispatcher: Any = None
        self._lock = Lock()

    def _check(self, args: tuple[Any, ...]) -> None:
        """Raise TypeError for arrays that a card would misread, as it knows them by these types alone."""
        for kind, value in zip(self.argument_types, args, strict=True):
            if isinstance(kind, types.Array):
                if value.dtype != as_dtype(kind.dtype) or value.ndim != kind.ndim:
                    raise TypeError(f"{self.name}: {value.dtype} of {value.ndim} axes for {kind}")
                if kind.layout == "C" and not getattr(value, "shadow", value).flags.c_contiguous:
                    raise TypeError(f"{self.name}: strides {value.strides} for {kind}")

    def __call__(self, *args: Any) -> None:
        self._check(args)
        blocks, threads = self._grid(*args)
        if all(blocks):
            args[0].device.launch(self, blocks, threads, args)

    def compile(self) -> None:
        if not SIMULATED:
            _ = self.dispatcher  # made when first asked for

    @property
    def dispatcher(self) -> Any:
        """Numba's, compiled for the card in use."""
        with self._lock:
            if self._dispatcher is None:
                self._dispatcher = self._compiled()
        return self._dispatcher

    def _compiled(self) -> Any:
        start = perf_counter()
        dispatcher = cuda.jit(self.function, launch_bounds=self.bounds)
        dispatcher._cache = _kept(self.function)
        try:
            dispatcher.compile(tuple(self.argument_types))
            (compiled_here,) = dispatcher.overloads.values()
            compiled_here._codelibrary.get_cufunc()  # what the driver refuses, it refuses here
        except Exception as error:
            raise GbpError(
                f"kernel {self.name} does not compile: {type(error).__name__}: {str(error)[:300]}",
                supported="numba-cuda 0.30, with the CUDA of the card's driver or an older one",
                hint="Install gbp-explain[cuda12] or [cuda13] again, or leave the device out.",
            ) from error
        dispatcher.disable_compile()
        dispatcher._specialized = True  # it takes arrays of any strides as they are
        if self.shared_bytes > _SHARED_BYTES:
            _allow(dispatcher, self.shared_bytes)
        if dispatcher.stats.cache_misses:
            compiled.append((self.name, perf_counter() - start))
        return dispatcher


def _allow(dispatcher: Any, nbytes: int) -> None:
    """Let a compiled kernel have more shared memory than a card gives unasked."""
    from cuda.bindings.driver import CUfunction_attribute
    from numba.cuda.cudadrv.driver import driver

    (compiled,) = dispatcher.overloads.values()
    function = compiled._codelibrary.get_cufunc()
    attribute = CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(attribute, nbytes, function.handle, function.device.id)


def _kept(function: Callable[..., None]) -> Any:
    """Numba's cache, in the directory in which no kernel can be stale."""
    from numba.cuda.dispatcher import CUDACache, CUDACacheImpl

    class Format(CUDACacheImpl):
        _locator_classes: ClassVar = [Locator]

    class Cache(CUDACache):
        _impl_class = Format

        def __init__(self, function: Any) -> None:
            super().__init__(function)
            self._cache_file = KernelFile.instead_of(self)

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            try:
                found = super().load_overload(sig, target_context)
            except Exception:  # there is none, or it cannot be read
                found = None
            if found is None:
                log.info("compiling kernel %s for the card", function.__name__)
            return found

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                super().save_overload(sig, data)
            except OSError as error:
                not_kept.append(error.strerror or str(error))

    return Cache(function)


def specialised(
    name: str,
    kernels: Sequence[Callable[..., None]],
    parts: Sequence[Callable[..., Any]] | Mapping[str, Callable[..., Any]] = (),
    values: Mapping[str, Any] = MappingProxyType({}),
) -> list[Callable[..., None]]:
    """Copies of functions in which these global names stand for other values; `parts` are what they call,
    by their own names or by those of a mapping.

    As free variables of a closure the values would keep a kernel from ever being found in the cache: Numba
    takes a captured function for a new one in every process.
    """
    names: dict[str, Any] = {}

    def copied(function: Any) -> Any:
        names.update({key: value for key, value in function.__globals__.items() if key not in names})
        copy = FunctionType(function.__code__, names, f"{function.__name__.lstrip('_')}_{name}")
        copy.__qualname__, copy.__doc__ = copy.__name__, function.__doc__
        return copy

    names.update(values)
    called = parts if isinstance(parts, Mapping) else {part.__name__: part for part in parts}
    copies = {called_as: device_function(copied(part)) for called_as, part in called.items()}
    names.update(copies)
    return [copied(function) for function in kernels]


def kernel(*argument_types: Any, units: Callable[..., int]) -> Callable[[Callable[..., None]], CudaKernel]:
    """Decorate a kernel whose threads share `units(*args)` units of work, each those of `mine(units)`."""

    def grid(*args: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (min(_MAX_BLOCKS, -(-units(*args) // _BLOCK)),), (_BLOCK,)

    return lambda function: CudaKernel(function, argument_types, grid)


def kernel_from(
    template: Any, name: str, *argument_types: Any, units: Callable[..., int], **others: Any
) -> CudaKernel:
    """`template` as a kernel of its own in which these global names stand for others."""
    return kernel(*argument_types, units=units)(_renamed(template, name, others))


def device_copy(function: Any, name: str) -> Any:
    """A device function of the same code under a name of its own: by names Numba tells machine code apart."""
    return device_function(_renamed(function, name, {}))


def _renamed(function: Any, name: str, others: dict[str, Any]) -> Any:
    copy = FunctionType(function.__code__, function.__globals__ | others, name)
    copy.__qualname__, copy.__doc__ = name, function.__doc__
    return copy


def block_kernel(
    *argument_types: Any,
    threads: Sequence[int],
    blocks: Callable[..., tuple[int, ...]],
    shared_bytes: int = 0,
    least_blocks: int = 0,
    capability: tuple[int, int] = (0, 0),
) -> Callable[[Callable[..., None]], CudaKernel]:
    """Decorate a kernel whose blocks of `threads` work together, `blocks(*args)` of them.

    Each has `shared_bytes` of shared memory besides what the kernel declares.  `least_blocks`: how many of
    them a multiprocessor should hold at a time.  `capability`: the least that a card must have.
    """
    bounds = (int(np.prod(threads)), least_blocks) if least_blocks else None

    def grid(*args: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return blocks(*args), tuple(threads)

    return lambda function: CudaKernel(function, argument_types, grid, True, shared_bytes, bounds, capability)


def elements_of(y: Any) -> int:
    """Units of work of a kernel that has one for each element of an array."""
    return int(np.prod(y.shape, dtype=np.int64))
