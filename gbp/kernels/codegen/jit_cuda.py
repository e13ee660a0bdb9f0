"""Compile and launch CUDA kernels: the twin of `jit.py`.

The twin of a kernel has its name and its arguments without the number of threads, and is in the module of the
same name with `_cuda` added.  Nothing here is imported before a card is asked for.

Under `NUMBA_ENABLE_CUDASIM=1` kernels run as plain Python (`simulation.py`), so they are tested without a
card.  Blocks are small there, because each thread of the card is a thread of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from threading import Lock
from time import perf_counter
from types import FunctionType, MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numba import config, cuda, types

from ...errors import GbpError
from . import numba_private
from .cache import KernelFile, Locator, log
from .jit import compiled, not_kept
from .numba_private import as_dtype

#: Whether the simulator replaces a card.
SIMULATED = bool(config.ENABLE_CUDASIM)

#: Threads of a block whose threads work independently.
_BLOCK = 4 if SIMULATED else 256
#: The most blocks.  If there are T threads, thread i computes the units of work i, i + T, i + 2T, ….
_MAX_BLOCKS = 1 if SIMULATED else 2**16

#: The type of addresses in kernels.  In the simulator they are the host's, of 64 bits.
int32, int64 = (int, int) if SIMULATED else (types.int32, types.int64)

#: Bytes of shared memory that a block has by default.
_SHARED_BYTES = 48 * 1024


@cache
def tensor_cores() -> str:
    """How this card's tensor cores multiply float32 numbers: "wgmma", "mma", or "" if they cannot."""
    if SIMULATED:
        return "simulated"
    major, _ = cuda.get_current_device().compute_capability
    return "wgmma" if major == 9 else "mma" if major >= 8 else ""


#: A function that only kernels call.  It may use names of its module, except `cuda`.
device_function: Callable[[Any], Any] = (lambda function: function) if SIMULATED else cuda.jit(device=True)


def device_function_of(function: Any, **named: Any) -> Any:
    """A device function of the CPU, compiled for the card, with these global names replaced."""
    source = function.py_func
    return device_function(FunctionType(source.__code__, source.__globals__ | named, source.__name__))


class CudaKernel:
    """A kernel with fixed argument types.

    It compiles on the first call and runs on the card of its first argument.
    """

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
        """Make a kernel from a Python function.

        `together`: whether the threads of a block share memory and wait for each other; if not, the simulator
        needs no threads.  `bounds`: the threads of a block, and how many blocks a multiprocessor should hold.
        `capability`: the least compute capability.
        """
        self.together, self.bounds, self.capability = together, bounds, capability
        self.name, self.__doc__ = function.__name__, function.__doc__
        self.function, self.argument_types = function, argument_types
        self.shared_bytes, self._grid = shared_bytes, grid
        self._dispatcher: Any = None
        self._lock = Lock()

    def _check(self, args: tuple[Any, ...]) -> None:
        """Raise TypeError for arrays of other types, which a card would misread."""
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
        """Numba's dispatcher, for the card in use."""
        with self._lock:
            if self._dispatcher is None:
                self._dispatcher = self._compiled()
        return self._dispatcher

    def _compiled(self) -> Any:
        start = perf_counter()
        dispatcher = cuda.jit(self.function, launch_bounds=self.bounds)
        numba_private.use_cache(dispatcher, _kept(self.function))
        try:
            dispatcher.compile(tuple(self.argument_types))
            numba_private.card_function(dispatcher)  # load it now: the driver may refuse it too
        except Exception as error:
            raise GbpError(
                f"kernel {self.name} does not compile: {type(error).__name__}: {str(error)[:300]}",
                supported="numba-cuda 0.30, with the CUDA of the card's driver or an older one",
                hint="Install gbp-explain[cuda12] or [cuda13] again, or leave the device out.",
            ) from error
        dispatcher.disable_compile()
        numba_private.take_any_strides(dispatcher)
        if self.shared_bytes > _SHARED_BYTES:
            _allow(dispatcher, self.shared_bytes)
        if numba_private.was_compiled(dispatcher):
            compiled.append((self.name, perf_counter() - start))
        return dispatcher


def _allow(dispatcher: Any, nbytes: int) -> None:
    """Allow a compiled kernel more shared memory than the default."""
    from cuda.bindings.driver import CUfunction_attribute

    function, driver = numba_private.card_function(dispatcher), numba_private.cuda_driver()
    attribute = CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(attribute, nbytes, function.handle, function.device.id)


def _kept(function: Callable[..., None]) -> Any:
    """Numba's cache, in a directory that changes with the kernels' sources."""
    cuda_cache: Any
    cuda_format: Any
    cuda_cache, cuda_format = numba_private.cuda_cache_classes()

    class Format(cuda_format):
        _locator_classes: ClassVar = [Locator]

    class Cache(cuda_cache):
        _impl_class = Format

        def __init__(self, function: Any) -> None:
            super().__init__(function)
            numba_private.replace_file(self, KernelFile.instead_of(self))

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
    """Copies of functions in which these global names have other values.

    `parts`: functions that they call, which are copied too: a sequence, or a mapping from the names by which
    they are called.  `values`: the other names.  A closure over the values would never be found in the cache,
    because Numba takes a captured function for a new one in every process.
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
    """Decorate a kernel whose threads share `units(*args)` units of work.  Each takes `mine(units)`."""

    def grid(*args: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (min(_MAX_BLOCKS, -(-units(*args) // _BLOCK)),), (_BLOCK,)

    return lambda function: CudaKernel(function, argument_types, grid)


def kernel_from(
    template: Any, name: str, *argument_types: Any, units: Callable[..., int], **others: Any
) -> CudaKernel:
    """A kernel from `template`, with these global names replaced."""
    return kernel(*argument_types, units=units)(_renamed(template, name, others))


def device_copy(function: Any, name: str) -> Any:
    """A device function with the same code and another name.  Numba distinguishes machine code by names."""
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
    """Decorate a kernel whose blocks of `threads` threads work together.  There are `blocks(*args)` blocks.

    `shared_bytes`: shared memory of a block, besides what the kernel declares.  `least_blocks`: how many
    blocks a multiprocessor should hold at a time.  `capability`: the least compute capability.
    """
    bounds = (int(np.prod(threads)), least_blocks) if least_blocks else None

    def grid(*args: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return blocks(*args), tuple(threads)

    return lambda function: CudaKernel(function, argument_types, grid, True, shared_bytes, bounds, capability)


def elements_of(y: Any) -> int:
    """The units of work of a kernel with one for each element of an array."""
    return int(np.prod(y.shape, dtype=np.int64))
