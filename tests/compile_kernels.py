"""Compiles every kernel, in one process: `make test` does so first, because its tests need them all.

Kernels share functions.  A process compiles such a function once, so where each process of the tests compiles
what it meets, compiling takes more than twice as long.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages

# Before Numba is imported: see conftest.py.
os.environ["NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING"] = "1"

from gbp import kernels
from gbp.kernels import binary, depthwise_dense, functions
from gbp.kernels.codegen.jit import Native


def every_kernel() -> Iterator[Native]:
    """Those that a module names, each behind those that it calls, and those that are made on demand."""
    for module in walk_packages(kernels.__path__, f"{kernels.__name__}."):
        if not module.name.endswith("_cuda"):
            for each in vars(import_module(module.name)).values():
                if isinstance(each, Native):
                    yield from each.with_callees()
    for name in (*functions.VECTORS, *functions.NUMBERS, *functions.BY_PLACE):
        yield from functions.function_kernels(name)
    for name in binary.VALUES:
        yield binary.value_kernel(name)
    for name in binary.SLOPES:
        yield from (binary.slope_kernel(name, operand) for operand in (0, 1))
    for name in binary.CHOICES:
        yield binary.choice_kernel(name)
    for columns in depthwise_dense.WIDTHS:
        yield from depthwise_dense.dense_kernels(columns)


def main() -> None:
    gc.disable()  # the process ends with its last kernel
    for kernel in every_kernel():
        if kernel.runs_here:
            kernel.compile()


if __name__ == "__main__":
    main()
