"""The machine's limits, measured: multiply-adds in registers, and reading from memory."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers import available
from timing import medians

from gbp.kernels.codegen.emit import LANES, TILE_ROWS, VECTOR_BYTES
from gbp.kernels.codegen.jit import DENSE, INT, device_function, kernel
from gbp.kernels.codegen.memory import aligned
from gbp.kernels.codegen.packing import Share
from gbp.kernels.codegen.simd import address_of, keep_rolled, load, store, zeros
from gbp.kernels.codegen.tile import TILE_FLOATS, TILE_VECTORS, tile_store, tile_update, tile_zeros
from gbp.kernels.parallel.threads import parallel

#: Steps of the multiply-add kernel: about 10 ms.
STEPS = 1 << 20
#: Far beyond any cache.
BUFFER_BYTES = 1 << 30
READ_VECTORS = 4
ROUNDS = 9


@device_function
def _tiles(x: int, w: int, y: int, steps: int) -> None:
    t = tile_zeros(TILE_ROWS, TILE_VECTORS)
    for _ in range(steps):
        keep_rolled()
        t = tile_update(t, TILE_VECTORS, x, 4, w)
    tile_store(t, TILE_VECTORS, y)


@kernel(DENSE, DENSE, DENSE, INT, INT, split=1)
def multiply_adds(x: Any, w: Any, y: Any, steps: int, threads: int, share: Share) -> None:
    """The tile kernel on operands in the first-level cache: steps · TILE_FLOATS multiply-adds a thread."""
    for thread in range(share.first, share.last):
        _tiles(address_of(x), address_of(w), address_of(y) + 4 * TILE_FLOATS * thread, steps)


@device_function
def _read(start: int, stop: int, y: int) -> None:
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    for x in range(start, stop, READ_VECTORS * VECTOR_BYTES):
        a = a + load(x)
        b = b + load(x + VECTOR_BYTES)
        c = c + load(x + 2 * VECTOR_BYTES)
        d = d + load(x + 3 * VECTOR_BYTES)
    store(y, (a + b) + (c + d))


@kernel(DENSE, DENSE, INT, split=1)
def read_all(x: Any, y: Any, threads: int, share: Share) -> None:
    """Read x once, a thread a contiguous part of it."""
    each = 4 * len(x) // threads
    for thread in range(share.first, share.last):
        start = address_of(x) + each * thread
        _read(start, start + each, address_of(y) + VECTOR_BYTES * thread)


def peak_gflops(threads: int) -> float:
    """Multiply-adds in registers, 10⁹ floating-point operations a second, of `threads` threads."""
    x, w = aligned((TILE_ROWS,)), aligned((TILE_VECTORS * LANES,))
    y = aligned((threads * TILE_FLOATS,))
    x[:], w[:] = 1e-9, 1e-9
    with parallel():
        (seconds,) = medians([lambda: multiply_adds(x, w, y, STEPS, threads)], ROUNDS)
    return 2e-9 * STEPS * TILE_FLOATS * threads / seconds


def read_gbytes(threads: int) -> float:
    """Bandwidth of reading from memory, 10⁹ bytes a second, of `threads` threads."""
    part = READ_VECTORS * VECTOR_BYTES * threads
    x = aligned((BUFFER_BYTES // part * part // 4,))
    y = aligned((threads * LANES,))
    x.fill(0)
    with parallel():
        (seconds,) = medians([lambda: read_all(x, y, threads)], ROUNDS)
    return 1e-9 * x.nbytes / seconds


def cpu_name() -> str:
    """As the kernel tells it, with LLVM's name for the microarchitecture."""
    import llvmlite.binding as llvm

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({llvm.get_host_cpu_name()})"


def machine(threads: tuple[int, ...]) -> dict[str, Any]:
    """Everything that a figure depends on and that is no part of gbp."""
    packages = {name: version(name) for name in ("numpy", "numba", "onnx", "pillow")}
    load, _, _ = os.getloadavg()  # before anything is measured: a busy machine's figures mean little
    limits = {
        "peak_gflops": {str(n): peak_gflops(n) for n in threads},
        "read_gbytes": {str(n): read_gbytes(n) for n in threads},
    }
    return {
        "load": load,
        "cpu": cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": packages,
        "peers": available(),
        "vector_bits": 8 * VECTOR_BYTES,
    } | limits
