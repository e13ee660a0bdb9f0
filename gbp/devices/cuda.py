"""A CUDA card: its memory, arrays in it, and the launching of kernels.

Steps do not know of it.  An array of the card speaks NumPy's protocols for the few functions that steps call
on arrays, and a kernel that is given one hands over to its twin in `kernels/*_cuda.py`.  What has no twin is
an error and never computed elsewhere.

All work of a card goes into one stream, in order, and the host waits only where it reads a result.  What is
run over and over on the same arrays is recorded the first time; from then on it is one launch of a CUDA
graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy as copy_of
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from threading import RLock
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numba import cuda
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

from ..errors import InputError, OutOfMemoryError, UnsupportedError
from ..kernels.codegen.jit import Kernel
from ..kernels.codegen.jit_cuda import SIMULATED, CudaKernel, tensor_cores
from ..kernels.moves_cuda import MOVED_AXES, add, copy, fill, multiply, subtract
from ..limits import readable_bytes
from ..ops.conv.algorithms import Algorithm
from ..ops.resample import Table
from ..ops.step import Step
from ..plan.layout import Instruction
from .base import Device, Entry, Exit, Repeater
from .cuda_ends import CardEntry, CardExit

if SIMULATED:
    from ..kernels.codegen.simulation import simulate

_making = RLock()
#: Bytes of samples from which on the first are computed while others are on their way.
_LARGE = 2**10 if SIMULATED else 2**22
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class Launch(NamedTuple):
    """A kernel with all that it is called with; `args` as Numba takes them."""

    kernel: CudaKernel
    blocks: tuple[int, ...]
    threads: tuple[int, ...]
    args: tuple[Any, ...]


class CudaDevice(Device):
    """The first CUDA device, or Numba's simulator.  One a process."""

    name = "cuda"
    max_slice = 256

    def __init__(self) -> None:
        self._lock = RLock()  # whoever records must be alone
        self._recorded: list[Launch] | None = None
        self.numba_stream: Any = None if SIMULATED else cuda.stream()
        self._pinned: Any = None if SIMULATED else _pinned()
        #: As kernels and graphs are launched into it.
        self.stream: Any = 0 if SIMULATED else _core_stream(self.numba_stream)
        self.slice_bytes = self.max_bytes = (
            2**28 if SIMULATED else cuda.current_context().get_memory_info().free // 2
        )

    @property
    def full_name(self) -> str:
        """Of the card, as its maker has it."""
        return "simulator" if SIMULATED else str(cuda.get_current_device().name)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> CudaArray:
        dtype = np.dtype(dtype)
        nbytes = max(1, math.prod(shape)) * dtype.itemsize
        if SIMULATED:
            host = np.empty(shape, dtype)
            return CudaArray(self, host, None, host.ctypes.data)
        try:
            memory = cuda.device_array(nbytes, np.uint8)
        except cuda.cudadrv.driver.CudaAPIError as error:
            if error.code != _OUT_OF_MEMORY:
                raise
            free, total = cuda.current_context().get_memory_info()
            raise self.out_of_memory(nbytes, free, total) from None
        # Only NumPy's arithmetic of shapes and strides is wanted: nobody ever looks at what is there.
        shadow = as_strided(np.empty(1, dtype), shape, _row_major(shape, dtype.itemsize))
        return CudaArray(self, shadow, memory, shadow.ctypes.data)

    def out_of_memory(self, needed: int, free: int, total: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"the card has {readable_bytes(free)} left of {readable_bytes(total)}, and {readable_bytes(needed)} are needed at once.",
            hint="Explain fewer at a time, or smaller images.",
        )

    def upload(self, values: NDArray[Any]) -> CudaArray:
        """A copy of an array of the host, C-contiguous."""
        to = self.empty(values.shape, values.dtype)
        self._copy_in(np.ascontiguousarray(values), to)
        return to

    def write(self, values: NDArray[Any], to: CudaArray) -> None:
        if to.shadow.flags.c_contiguous:
            self._copy_in(np.ascontiguousarray(values), to)
        else:
            _copyto(to, self.upload(values))

    def read(self, x: CudaArray) -> NDArray[Any]:
        (values,) = self.read_all(x)
        return values

    def read_all(self, *arrays: CudaArray) -> list[NDArray[Any]]:
        found = [self._on_the_way(x) for x in arrays]
        if not SIMULATED:
            self._wait()
        return found

    def _on_the_way(self, x: CudaArray) -> NDArray[Any]:
        """An array of the host that holds what x does once all is done that is in the stream."""
        if not x.shadow.flags.c_contiguous:
            dense = self.empty(x.shape, x.dtype)
            _copyto(dense, x)
            x = dense
        if SIMULATED:
            return x.shadow.copy()
        pinned: NDArray[Any] | None = self._pinned.array(x.shape) if x.dtype == np.float32 else None
        values = np.empty(x.shape, x.dtype) if pinned is None else pinned
        if values.size:
            self._pinned.download(x.address, values, int(self.stream.handle))
        return values

    def _copy_in(self, values: NDArray[Any], to: CudaArray) -> None:
        """Copy them into the stream; they may be gone when this returns."""
        if SIMULATED:
            to.shadow[...] = values
        elif values.size:
            self._pinned.upload(values, to.address, int(self.stream.handle))

    def copy_ahead(self, values: NDArray[Any], to: CudaArray) -> None:
        """`_copy_in` where nothing in the stream needs `to` any more: while that goes on."""
        if SIMULATED:
            to.shadow[...] = values
        elif values.size:
            self._pinned.upload_ahead(values, to.address, int(self.stream.handle))

    def _wait(self) -> None:
        """Until all that is in the stream is done."""
        self.numba_stream.synchronize()
        self._pinned.arrived()

    def pieces(self, n: int, nbytes: int) -> list[slice]:
        if n * nbytes < _LARGE or n < 2:
            return [slice(0, n)]
        ends = sorted({0, n // 4, n // 2, n})
        return [slice(begin, end) for begin, end in pairwise(ends)]

    def entry(self, x: CudaArray, order: tuple[int, ...], marks: CudaArray | None) -> Entry:
        return CardEntry(x, order, marks if marks is not None else self.empty((len(x),)))

    def exit(self, x: CudaArray, axes: tuple[int, ...]) -> Exit:
        return CardExit(x, axes)

    @property
    def has_tf32(self) -> bool:
        return bool(tensor_cores())

    @property
    def looks_at_samples(self) -> bool:
        return True

    def take(self, instructions: Sequence[Instruction]) -> list[Step]:
        refused = [instruction for instruction in instructions if not instruction.step.on_card]
        if refused:
            layers = ", ".join(layer for instruction in refused for layer in instruction.layers)
            raise UnsupportedError(
                f"there are no kernels for a card of {layers}.",
                supported="all layers but quantization, and products of matrices that go through NumPy",
                hint="Leave the device out to compute on the CPU.",
            )
        moved: dict[int, Any] = {}
        with self._lock:
            return [self._taken(instruction.step, moved) for instruction in instructions]

    def _taken(self, value: Any, moved: dict[int, Any]) -> Any:
        """A copy of a step, or of what one holds, with all arrays on the card; the same where it has none."""
        if id(value) in moved:
            return moved[id(value)][1]
        taken = value
        if isinstance(value, np.ndarray) and value.size:
            taken = self.upload(value)
        elif isinstance(value, (list, tuple)):
            parts = [self._taken(part, moved) for part in value]
            if any(a is not b for a, b in zip(parts, value, strict=True)):
                taken = type(value)(parts)
        elif isinstance(value, (Step, Algorithm, Table)):
            parts_of = {name: self._taken(part, moved) for name, part in vars(value).items()}
            taken = copy_of(value)
            taken.__dict__.update(parts_of)
        moved[id(value)] = value, taken  # kept alive: its id is its name
        return taken

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._lock:
            if not SIMULATED:
                self._pinned.use()
            yield

    def launch(
        self, kernel: CudaKernel, blocks: tuple[int, ...], threads: tuple[int, ...], args: tuple[Any, ...]
    ) -> None:
        """Put a kernel into the stream.  Empty arrays may be the host's: no kernel looks into them."""
        launch = Launch(kernel, blocks, threads, tuple(map(self._argument, args)))
        if self._recorded is not None:
            self._recorded.append(launch)
        self._put(launch, self.stream)

    def _put(self, launch: Launch, stream: Any) -> None:
        kernel, blocks, threads, args = launch
        if SIMULATED:
            simulate(
                kernel.function,
                blocks,
                threads,
                kernel.shared_bytes,
                kernel.together,
                args,
            )
        else:
            # Not by way of Numba's own syntax, which warns of small grids and keeps each that it has seen.
            (compiled,) = kernel.dispatcher.overloads.values()
            compiled.launch(args, _three(blocks), _three(threads), stream, kernel.shared_bytes)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, CudaArray):
            return value.handle
        if isinstance(value, np.ndarray):
            if value.size:
                raise TypeError(f"a kernel on the card was given an array {value.shape} of the host")
            return self._nothing(value.ndim, value.dtype.str)
        return value

    @cache  # noqa: B019  # there is one card
    def _nothing(self, rank: int, dtype: str) -> Any:
        return self.empty((0,) * rank, dtype).handle

    def seed(self, x: CudaArray, where: tuple[NDArray[np.int64], ...]) -> None:
        values = np.zeros(x.shape, x.dtype)
        values[where] = 1
        outermost_first = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
        self.write(values.transpose(outermost_first), x.transpose(*outermost_first))

    def repeater(self) -> Repeater:
        recorded: list[Launch] = []
        graph: Any = None

        def repeat(run: Callable[[], None]) -> None:
            nonlocal graph
            with self._lock:
                if not recorded:
                    recorded.extend(self._recording(run))
                elif SIMULATED:
                    for launch in recorded:
                        self._put(launch, self.stream)
                else:
                    graph = graph or _graph_of(recorded, self._put)
                    graph.launch(self.stream)

        return repeat

    def _recording(self, run: Callable[[], None]) -> list[Launch]:
        """Run it, and return what it launched."""
        self._recorded = []
        try:
            run()
            return self._recorded
        finally:
            self._recorded = None


def _pinned() -> Any:
    from .pinned import Pinned

    return Pinned()


def _core_stream(stream: Any) -> Any:
    from cuda.core import Stream

    return Stream.from_handle(int(stream.handle))


def _graph_of(launches: list[Launch], put: Callable[[Launch, Any], None]) -> Any:
    """One graph of all of them, captured on a stream of its own: that of the card may be in use meanwhile."""
    from cuda.core import Device as CoreDevice

    device = CoreDevice(cuda.get_current_device().id)
    device.set_current()
    builder = device.create_graph_builder().begin_building()
    try:
        for launch in launches:
            put(launch, builder)
        return builder.end_building().complete()
    finally:
        builder.close()


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*sizes, 1, 1)[:3]


def card() -> CudaDevice:
    """The card of this process.  Raises InputError where there is none."""
    with _making:
        return _card()


@cache
def _card() -> CudaDevice:
    why = ""
    if not SIMULATED and find_spec("numba_cuda") is None:
        why = "numba-cuda is not installed"
    elif not cuda.is_available():
        why = str(cuda.cuda_error() or "no device, or no NVVM").strip().splitlines()[0]
    if why:
        raise InputError(
            f"device is 'cuda', and there is no CUDA here: {why.rstrip('.')}.",
            supported="an NVIDIA card with its driver, and the extra gbp[cuda12] or gbp[cuda13]",
            hint="Leave the device out to compute on the CPU.",
        )
    return CudaDevice()


class CudaArray(NDArrayOperatorsMixin):
    """An array in the memory of a card.

    `shadow` has its shape and strides; except in the simulator there is nothing behind it.
    """

    def __init__(self, card: CudaDevice, shadow: NDArray[Any], memory: Any, origin: int) -> None:
        """`memory` holds it; a view whose shadow starts at `origin` starts where the memory does."""
        self.card, self.shadow, self._memory, self._origin = card, shadow, memory, origin
        self._handle: Any = None

    def _view(self, shadow: NDArray[Any]) -> CudaArray:
        return CudaArray(self.card, shadow, self._memory, self._origin)

    @property
    def handle(self) -> Any:
        """What Numba takes for it."""
        if self._handle is None:
            self._handle = self.shadow if SIMULATED else self._device_array()
        return self._handle

    def _device_array(self) -> Any:
        """Numba's array, which keeps the memory alive and not this."""
        description = {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": self.strides,
            "version": 3,
        }
        return cuda.from_cuda_array_interface(description, owner=self._memory, sync=False)

    @property
    def address(self) -> int:
        """Of its first element."""
        start: int = self._memory.__cuda_array_interface__["data"][0]
        return start + self.shadow.ctypes.data - self._origin

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shadow.shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self.shadow.strides

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.shadow.dtype

    @property
    def ndim(self) -> int:
        return self.shadow.ndim

    @property
    def size(self) -> int:
        return self.shadow.size

    @property
    def itemsize(self) -> int:
        return self.shadow.itemsize

    def __len__(self) -> int:
        return len(self.shadow)

    def __getitem__(self, index: Any) -> CudaArray:
        index = index if isinstance(index, tuple) else (index,)
        if not all(i is None or i is ... or isinstance(i, (int, slice)) for i in index):
            raise TypeError(f"{index!r} is no view of an array on the card")
        return self._view(self.shadow[index if ... in index else (*index, ...)])

    def __setitem__(self, index: Any, value: Any) -> None:
        part = self[index]
        if not (isinstance(value, CudaArray) and part._is(value)):  # as `a[i] += b` would have it
            _copyto(part, value)

    def _is(self, other: CudaArray) -> bool:
        mine, its = self.shadow.__array_interface__, other.shadow.__array_interface__
        return bool(mine == its and self._memory is other._memory)

    def reshape(self, *shape: Any, copy: bool | None = None) -> CudaArray:
        """A view; raises ValueError where that takes a copy."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return self._view(self.shadow.reshape(wanted, copy=False))

    def is_aligned(self, nbytes: int) -> bool:
        """Whether all rows along the last axis start at multiples of so many bytes."""
        start = self.shadow.ctypes.data - self._origin
        outer = zip(self.strides[:-1], self.shape[:-1], strict=True)
        return start % nbytes == 0 and all(step % nbytes == 0 or size == 1 for step, size in outer)

    def strided(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> CudaArray:
        """A view with any strides, in bytes."""
        return self._view(as_strided(self.shadow, shape, strides))

    def view(self, dtype: DTypeLike) -> CudaArray:
        """The same bytes as elements of another type."""
        return self._view(self.shadow.view(dtype))

    def transpose(self, *axes: Any) -> CudaArray:
        return self._view(self.shadow.transpose(*axes))

    def fill(self, value: float) -> None:
        if self.dtype != np.float32 and value:
            raise TypeError(f"only zeros are filled into {self.dtype}")
        zeros = self if self.dtype == np.float32 else self.view(np.float32)  # which are zeros of any type
        fill(_merged(zeros)[0], value)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("an array on the card is read by Card.read alone")

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function not in _FUNCTIONS:
            return NotImplemented
        return _FUNCTIONS[function](*args, **kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs or ufunc not in _UFUNCS:
            return NotImplemented
        shape = np.broadcast_shapes(
            *(np.shape(x) if not isinstance(x, CudaArray) else x.shape for x in inputs)
        )
        y = self.card.empty(shape) if out is None else out[0]
        a, b = (
            x if isinstance(x, CudaArray) else self.card.upload(np.asarray(x, np.float32)) for x in inputs
        )
        _UFUNCS[ufunc](*_merged(y, *(_broadcast_to(x, y.shape) for x in (a, b))))
        return y


def _row_major(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _merged(*arrays: CudaArray) -> list[CudaArray]:
    """The same arrays of one shape with MOVED_AXES axes: those that lie alike in all are made one."""
    shape = arrays[0].shape
    axes: list[list[int]] = []  # runs of neighbours
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        joins = axes and all(a.strides[axes[-1][-1]] == size * a.strides[axis] for a in arrays)
        if joins:
            axes[-1].append(axis)
        else:
            axes.append([axis])
    if len(axes) > MOVED_AXES:
        raise UnsupportedError(
            f"{len(axes)} axes of an array {list(shape)} move apart.",
            supported=f"up to {MOVED_AXES} on a card",
        )
    sizes = [math.prod(shape[axis] for axis in run) for run in axes]
    filled = (1,) * (MOVED_AXES - len(axes))
    merged = []
    for array in arrays:
        strides = [array.strides[run[-1]] for run in axes]
        merged.append(array.strided((*filled, *sizes), (*(0 for _ in filled), *strides)))
    return merged


def _broadcast_to(x: CudaArray, shape: tuple[int, ...]) -> CudaArray:
    return x._view(np.broadcast_to(x.shadow, shape))


def _copyto(to: CudaArray, values: Any) -> None:
    if isinstance(values, CudaArray):
        target, source = _merged(to, _broadcast_to(values, to.shape))
        copy(source, target)
    elif np.ndim(values) == 0:
        to.fill(float(values))
    else:
        raise TypeError("only an array on the card, or a number, can be copied into one")


#: What steps may do with arrays besides calling kernels, and what it is here.
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.broadcast_to: _broadcast_to,
    np.copyto: _copyto,
    np.empty_like: lambda x: x.card.empty(x.shape, x.dtype),
}
_UFUNCS: dict[Any, Callable[..., None]] = {np.add: add, np.multiply: multiply, np.subtract: subtract}


def hand_over(kernel: Kernel, args: tuple[Any, ...]) -> None:
    """Run a kernel's twin; the last of the arguments is the number of threads, which a card does not need."""
    twin_of(kernel)(*args[:-1])


@cache
def twin_of(kernel: Kernel) -> Callable[..., None]:
    """The kernel of the same name in the module `…_cuda` beside its own."""
    twin: Callable[..., None] = getattr(import_module(f"{kernel.module}_cuda"), kernel.name)
    return twin
