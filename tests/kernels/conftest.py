"""Under `NUMBA_ENABLE_CUDASIM=1` the same tests run the kernels' twins: nothing here knows but this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ON_CARD
from numpy.typing import NDArray

from gbp.kernels.codegen.jit import Kernel


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every kernel promises the same bits for any number of threads."""
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            item.add_marker(pytest.mark.threads)


def _root(x: NDArray[Any]) -> NDArray[Any]:
    """The array in whose memory x lies."""
    root, owner = x, x.base
    while hasattr(owner, "base"):  # an array, or what `as_strided` puts in between
        root, owner = owner if isinstance(owner, np.ndarray) else root, owner.base
    return root


def run_twin(kernel: Kernel, *args: Any) -> None:
    """The kernel's twin on copies of the arrays, laid out alike; what it wrote is copied back."""
    from gbp.devices.cuda import cuda_device
    from gbp.devices.cuda_array import CudaArray, twin_of

    roots: dict[int, tuple[NDArray[Any], CudaArray]] = {}

    def uploaded(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        root = _root(x)
        if id(root) not in roots:
            roots[id(root)] = root, cuda_device().upload(root.reshape(-1).view(np.uint8))
        memory = roots[id(root)][1].shadow
        start = x.ctypes.data - root.ctypes.data
        shadow = np.ndarray(x.shape, x.dtype, memory.data, start, x.strides)
        return CudaArray(cuda_device(), shadow, None, memory.ctypes.data)

    twin_of(kernel)(*map(uploaded, args[:-1]))
    for root, copy in roots.values():
        if root.flags.writeable:
            root.reshape(-1).view(np.uint8)[:] = copy.shadow


if ON_CARD:

    @pytest.fixture(autouse=True)
    def _on_card(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Kernel, "__call__", run_twin)
