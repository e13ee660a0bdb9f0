"""A CUDA card: its memory, its arrays, and the launching of kernels.

Steps do not know that there is a card.  An array on the card supports the few NumPy functions that steps
call.  A kernel that is given such an array runs its twin in `kernels/*_cuda.py` instead.  A kernel without a
twin is an error; nothing is computed elsewhere.

All work of a card goes into one stream, in order.  The host waits only where it reads a result.  Launches on
the same arrays are recorded the first time, and later replayed as one launch of a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

from ..errors import InputError, OutOfMemoryError, readable_bytes
from ..kernels.codegen import numba_private
from ..kernels.codegen.jit_cuda import SIMULATED, CudaKernel, tensor_cores
from .base import Device, Entry, Exit, Repeater
from .cuda_array import CudaArray, copyto, row_major_strides
from .cuda_ends import CudaEntry, CudaExit

if SIMULATED:
    from ..kernels.codegen.simulation import simulate

_making = RLock()
#: With at least so many bytes of samples, the first samples are computed while the others are copied.
_LARGE = 2**10 if SIMULATED else 2**22
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class Launch(NamedTuple):
    """A kernel and its arguments; `args` in the form that Numba expects."""

    kernel: CudaKernel
    blocks: tuple[int, ...]
    threads: tuple[int, ...]
    args: tuple[Any, ...]


class CudaDevice(Device):
    """The first CUDA device, or Numba's simulator.  There is one in a process."""

    name = "cuda"
    max_slice = 256

    def __init__(self) -> None:
        self._lock = RLock()  # Only one thread may record.
        self._recorded: list[Launch] | None = None
        self.numba_stream: Any = None if SIMULATED else cuda.stream()
        self._pinned: Any = None if SIMULATED else _pinned()
        #: The stream of all kernels and graphs.
        self.stream: Any = 0 if SIMULATED else _core_stream(self.numba_stream)
        self.slice_bytes = self.max_bytes = (
            2**28 if SIMULATED else cuda.current_context().get_memory_info().free // 2
        )

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> CudaArray:
        dtype = np.dtype(dtype)
        nbytes = max(1, math.prod(shape)) * dtype.itemsize
        if SIMULATED:
            host = np.empty(shape, dtype)
            return CudaArray(self, host, None, host.ctypes.data)
        try:
            memory = cuda.device_array(nbytes, np.uint8)
        except numba_private.cuda_api_error() as error:
            if error.code != _OUT_OF_MEMORY:
                raise
            free, total = cuda.current_context().get_memory_info()
            raise self.out_of_memory(nbytes, free, total) from None
        # The shadow is used for its shape and strides.  Its elements are never read.
        shadow = as_strided(np.empty(1, dtype), shape, row_major_strides(shape, dtype.itemsize))
        return CudaArray(self, shadow, memory, shadow.ctypes.data)

    def out_of_memory(self, needed: int, free: int, total: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"the card has {readable_bytes(free)} left of {readable_bytes(total)}, and "
            f"{readable_bytes(needed)} are needed at once.",
            hint="Explain fewer at a time, or smaller images.",
        )

    def upload(self, values: NDArray[Any]) -> CudaArray:
        """A C-contiguous copy of an array of the host."""
        to = self.empty(values.shape, values.dtype)
        self._copy_in(np.ascontiguousarray(values), to)
        return to

    def write(self, values: NDArray[Any], to: CudaArray) -> None:
        if to.shadow.flags.c_contiguous:
            self._copy_in(np.ascontiguousarray(values), to)
        else:
            copyto(to, self.upload(values))

    def read(self, x: CudaArray) -> NDArray[Any]:
        (values,) = self.read_all(x)
        return values

    def read_all(self, *arrays: CudaArray) -> list[NDArray[Any]]:
        found = [self._on_the_way(x) for x in arrays]
        if not SIMULATED:
            self._wait()
        return found

    def _on_the_way(self, x: CudaArray) -> NDArray[Any]:
        """An array of the host that will hold the values of x once all work in the stream is done."""
        if not x.shadow.flags.c_contiguous:
            dense = self.empty(x.shape, x.dtype)
            copyto(dense, x)
            x = dense
        if SIMULATED:
            return x.shadow.copy()
        pinned: NDArray[Any] | None = self._pinned.array(x.shape) if x.dtype == np.float32 else None
        values = np.empty(x.shape, x.dtype) if pinned is None else pinned
        if values.size:
            self._pinned.download(x.address, values, int(self.stream.handle))
        return values

    def _copy_in(self, values: NDArray[Any], to: CudaArray) -> None:
        """Copy values to the card in the stream.  The caller may overwrite them when this returns."""
        if SIMULATED:
            to.shadow[...] = values
        elif values.size:
            self._pinned.upload(values, to.address, int(self.stream.handle))

    def copy_ahead(self, values: NDArray[Any], to: CudaArray) -> None:
        """Like `_copy_in`, beside the work in the stream.  No work there may use `to`."""
        if SIMULATED:
            to.shadow[...] = values
        elif values.size:
            self._pinned.upload_ahead(values, to.address, int(self.stream.handle))

    def _wait(self) -> None:
        """Wait until all work in the stream is done."""
        self.numba_stream.synchronize()
        self._pinned.arrived()

    def pieces(self, n: int, nbytes: int) -> list[slice]:
        if n * nbytes < _LARGE or n < 2:
            return [slice(0, n)]
        ends = sorted({0, n // 4, n // 2, n})
        return [slice(begin, end) for begin, end in pairwise(ends)]

    def entry(self, x: CudaArray, axes: tuple[int, ...], marks: CudaArray, threads: int) -> Entry:
        return CudaEntry(x, axes, marks)

    def exit(self, x: CudaArray, axes: tuple[int, ...], threads: int) -> Exit:
        return CudaExit(x, axes)

    @property
    def has_tf32(self) -> bool:
        return bool(tensor_cores())

    def constant(self, values: NDArray[Any]) -> Any:
        if not values.size:
            return values
        with self.running():
            return self.upload(values)

    @contextmanager
    def running(self, threads: int = 1) -> Iterator[None]:
        with self._lock:
            if not SIMULATED:
                self._pinned.use()
            yield

    def launch(
        self, kernel: CudaKernel, blocks: tuple[int, ...], threads: tuple[int, ...], args: tuple[Any, ...]
    ) -> None:
        """Put a kernel into the stream, and into the recording where there is one.

        Parameters
        ----------
        kernel
            The kernel.
        blocks, threads
            The sizes of the grid and of a block.
        args
            Its arguments.  Empty arrays may be the host's: no kernel reads them.
        """
        launch = Launch(kernel, blocks, threads, tuple(map(self._argument, args)))
        if self._recorded is not None:
            self._recorded.append(launch)
        self._put(launch, self.stream)

    def _put(self, launch: Launch, stream: Any) -> None:
        """Launch a kernel in a stream."""
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
            # Numba's own syntax warns about small grids, and keeps every configuration that it has seen.
            shape = _three(blocks), _three(threads)
            numba_private.launch(kernel.dispatcher, args, *shape, stream, kernel.shared_bytes)

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
        """Run the function, and return the launches that it made."""
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
    """One CUDA graph of these launches.

    It is captured on another stream, because the card's own may be in use.
    """
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


def cuda_device() -> CudaDevice:
    """The card of this process.  Raises InputError if there is none."""
    with _making:
        return _cuda_device()


@cache
def _cuda_device() -> CudaDevice:
    """The card, made once."""
    why = ""
    if not SIMULATED and find_spec("numba_cuda") is None:
        why = "numba-cuda is not installed"
    elif not cuda.is_available():
        why = str(cuda.cuda_error() or "no device, or no NVVM").strip().splitlines()[0]
    if why:
        raise InputError(
            f"device is 'cuda', and there is no CUDA here: {why.rstrip('.')}.",
            supported="an NVIDIA card with its driver, and the extra gbp-explain[cuda12] or [cuda13]",
            hint="Leave the device out to compute on the CPU.",
        )
    return CudaDevice()
