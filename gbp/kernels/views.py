"""Where things lie in an activation (N, H, W, C), and runs of consecutive float32 values."""

from __future__ import annotations

from typing import Any

from .jit import device_function
from .simd import LANES, load_some, store_some, zeros


@device_function  # type: ignore[untyped-decorator]
def at(a: Any, n: int, h: int, w: int) -> Any:
    """Return the address of pixel (n, h, w)."""
    return a.ctypes.data + n * a.strides[0] + h * a.strides[1] + w * a.strides[2]


@device_function  # type: ignore[untyped-decorator]
def targets_of(gradient: Any, saved: Any) -> Any:
    """Return K: row n of a gradient of N·K rows belongs to row n // K of what was saved of N samples."""
    return gradient.shape[0] // max(1, saved.shape[0])


@device_function  # type: ignore[untyped-decorator]
def copy_run(x: int, y: int, count: int) -> None:
    """Copy `count` float32 values from address x to address y."""
    for k in range(0, count, LANES):
        store_some(y + 4 * k, load_some(x + 4 * k, count - k), count - k)


@device_function  # type: ignore[untyped-decorator]
def zero_run(y: int, count: int) -> None:
    """Write `count` zeros to address y."""
    for k in range(0, count, LANES):
        store_some(y + 4 * k, zeros(), count - k)
