"""An array in a card's memory.  It supports the NumPy functions that steps call on arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NoReturn, Protocol

import numpy as np
from numba import cuda
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

from ..errors import UnsupportedError
from ..kernels.codegen.jit import Kernel
from ..kernels.codegen.jit_cuda import SIMULATED
from ..kernels.moves_cuda import MOVED_AXES, add, copy, fill, multiply, subtract


class Allocator(Protocol):
    """The functions of a CUDA device that its arrays call."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = ...) -> CudaArray: ...
    def upload(self, values: NDArray[Any]) -> CudaArray: ...
    def launch(
        self, kernel: Any, blocks: tuple[int, ...], threads: tuple[int, ...], args: tuple[Any, ...]
    ) -> None: ...


class CudaArray(NDArrayOperatorsMixin):
    """An array in the memory of a card, or a view of one.

    It has a *shadow*, a NumPy array of the same shape, strides and dtype.  NumPy slices and transposes the
    shadow in place of the array on the card, whose address follows from the shadow's.  The elements of a
    shadow are never read, except in the simulator, where it is the array itself.

    Parameters
    ----------
    device
        The card.
    shadow
        The shadow.
    memory
        The memory on the card, as Numba allocates it; None in the simulator.
    origin
        The address of a shadow whose array would start where the memory does.
    """

    def __init__(self, device: Allocator, shadow: NDArray[Any], memory: Any, origin: int) -> None:
        self.device, self.shadow, self._memory, self._origin = device, shadow, memory, origin
        self._handle: Any = None

    def _view(self, shadow: NDArray[Any]) -> CudaArray:
        return CudaArray(self.device, shadow, self._memory, self._origin)

    @property
    def handle(self) -> Any:
        """The form in which Numba takes the array."""
        if self._handle is None:
            self._handle = self.shadow if SIMULATED else self._device_array()
        return self._handle

    def _device_array(self) -> Any:
        """Numba's array.  It keeps the memory alive, and not this object."""
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
        """The address of the first element on the card."""
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
        # `a[i] += b` adds in place and then assigns the sum to itself.
        if not (isinstance(value, CudaArray) and part._is(value)):
            copyto(part, value)

    def _is(self, other: CudaArray) -> bool:
        """Whether both are views of the same elements."""
        mine, its = self.shadow.__array_interface__, other.shadow.__array_interface__
        return bool(mine == its and self._memory is other._memory)

    def reshape(self, *shape: Any, copy: bool | None = None) -> CudaArray:
        """A view in another shape.  Raises ValueError if that takes a copy."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return self._view(self.shadow.reshape(wanted, copy=False))

    def is_aligned(self, nbytes: int) -> bool:
        """Whether all rows along the last axis begin at multiples of so many bytes."""
        start = self.shadow.ctypes.data - self._origin
        outer = zip(self.strides[:-1], self.shape[:-1], strict=True)
        return start % nbytes == 0 and all(step % nbytes == 0 or size == 1 for step, size in outer)

    def strided(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> CudaArray:
        """A view with any strides, in bytes."""
        return self._view(as_strided(self.shadow, shape, strides))

    def view(self, dtype: DTypeLike) -> CudaArray:
        """The same bytes with elements of another type."""
        return self._view(self.shadow.view(dtype))

    def transpose(self, *axes: Any) -> CudaArray:
        return self._view(self.shadow.transpose(*axes))

    def fill(self, value: float) -> None:
        if self.dtype != np.float32 and value:
            raise TypeError(f"only zeros are filled into {self.dtype}")
        # The kernel writes float32.  The bytes of 0.0 are those of 0 in any type.
        floats = self if self.dtype == np.float32 else self.view(np.float32)
        fill(_merged(floats)[0], value)

    def run_kernel(self, kernel: Kernel, args: tuple[Any, ...]) -> None:
        """Run the twin of a CPU's kernel.  The last argument, the number of threads, is left out."""
        twin_of(kernel)(*args[:-1])

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("an array on the card is read by CudaDevice.read alone")

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function not in _FUNCTIONS:
            return NotImplemented
        return _FUNCTIONS[function](*args, **kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs or ufunc not in _UFUNCS:
            return NotImplemented
        a, b = (
            x if isinstance(x, CudaArray) else self.device.upload(np.asarray(x, np.float32)) for x in inputs
        )
        y = self.device.empty(np.broadcast_shapes(a.shape, b.shape)) if out is None else out[0]
        _UFUNCS[ufunc](*_merged(y, _broadcast_to(a, y.shape), _broadcast_to(b, y.shape)))
        return y


def row_major_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides in bytes of a C-contiguous array."""
    return tuple(itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _merged(*arrays: CudaArray) -> list[CudaArray]:
    """The arrays, which have one shape, as views of MOVED_AXES axes, which is what the kernels take.

    Neighbouring axes become one where each array is dense across them, axes of size 1 are dropped, and axes
    of size 1 in front fill up the number.  Raises UnsupportedError where more axes are left.
    """
    shape = arrays[0].shape
    axes: list[list[int]] = []  # runs of neighbours that become one axis
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
    missing = MOVED_AXES - len(axes)
    merged = []
    for array in arrays:
        strides = [array.strides[run[-1]] for run in axes]
        merged.append(array.strided((*[1] * missing, *sizes), (*[0] * missing, *strides)))
    return merged


def _broadcast_to(x: CudaArray, shape: tuple[int, ...]) -> CudaArray:
    return x._view(np.broadcast_to(x.shadow, shape))


def copyto(to: CudaArray, values: Any) -> None:
    """Copy an array on the card, or a number, into one.  Raises TypeError for an array of the host."""
    if isinstance(values, CudaArray):
        target, source = _merged(to, _broadcast_to(values, to.shape))
        copy(source, target)
    elif np.ndim(values) == 0:
        to.fill(float(values))
    else:
        raise TypeError("only an array on the card, or a number, can be copied into one")


#: The functions that steps may call on arrays, and what they do here.
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.broadcast_to: _broadcast_to,
    np.copyto: copyto,
    np.empty_like: lambda x: x.device.empty(x.shape, x.dtype),
}
_UFUNCS: dict[Any, Callable[..., None]] = {np.add: add, np.multiply: multiply, np.subtract: subtract}


@cache
def twin_of(kernel: Kernel) -> Callable[..., None]:
    """The CUDA kernel for a kernel of the CPU: of the same name, in the module `…_cuda` beside its own."""
    twin: Callable[..., None] = getattr(import_module(f"{kernel.module}_cuda"), kernel.name)
    return twin
