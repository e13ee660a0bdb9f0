"""Every kernel of a card compiles to PTX, which takes NVIDIA's compiler but no card.

The simulator takes what Numba's type inference would refuse.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

import gbp.kernels
from gbp.kernels.binary import CHOICES, SLOPES, VALUES
from gbp.kernels.formulas import NUMBERS, VECTORS
from gbp.kernels.functions import BY_PLACE

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" or find_spec("numba_cuda") is None,
    reason="needs numba-cuda, without the simulator",
)

#: Compute capability: what CUDA 12 still knows, the first with TF32, and a recent one.
CAPABILITIES = ((7, 5), (8, 0), (9, 0))

#: Kernels that are made when first asked for.
ON_DEMAND = {
    "functions_cuda": [
        f"{name.lower()}_{way}" for name in (*VECTORS, *NUMBERS, *BY_PLACE) for way in ("fwd", "bwd")
    ],
    "binary_cuda": [
        *(f"{name.lower()}_fwd" for name in VALUES),
        *(f"{name.lower()}_bwd{i}" for name in SLOPES for i in range(2)),
        *(f"{name.lower()}_choice" for name in CHOICES),
    ],
}
MODULES = [name for _, name, _ in pkgutil.iter_modules(gbp.kernels.__path__) if name.endswith("_cuda")]


def kernels_of(name: str) -> Iterator[Any]:
    from gbp.kernels.codegen.jit_cuda import CudaKernel

    module = import_module(f"gbp.kernels.{name}")
    for value in vars(module).values():
        if isinstance(value, CudaKernel):
            yield value
    for pair in getattr(module, "KERNELS", {}).values():
        yield from pair
    for kernel in ON_DEMAND.get(name, ()):
        yield getattr(module, kernel)
    if name == "conv_tiles_cuda":
        for how in ("wgmma", "mma"):
            for products in (3, 1):
                for pair in module.conv_of(how, products).kernels.values():
                    yield from pair


@pytest.mark.parametrize("name", MODULES)
def test_compiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import numba.cuda.dispatcher
    from numba import cuda

    for capability in CAPABILITIES:
        device = SimpleNamespace(compute_capability=capability)
        # Device functions ask the card what it can do.
        monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda device=device: device)
        for kernel in kernels_of(name):
            if capability < kernel.capability:
                continue
            ptx, _ = cuda.compile_ptx(kernel.function, tuple(kernel.argument_types), cc=capability)
            assert ".visible .entry" in ptx, kernel.name
            assert ".local" not in ptx or "conv" not in kernel.name, f"{kernel.name} spills its sums"
