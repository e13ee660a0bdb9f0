"""The kernel of `resample.py` on a card: one thread for each element."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .codegen.gate import GATE, Gate
from .codegen.jit import DENSE, INT
from .codegen.jit_cuda import elements_of, kernel
from .codegen.simd_cuda import targets_of, write_gradient
from .resample import _PART, AROUND, AROUND_MASK, STARTS, TAPS


@kernel(
    *(AROUND, STARTS, TAPS, DENSE, AROUND_MASK, GATE, AROUND, INT, INT),
    units=lambda *args: elements_of(args[6]),
)
def resample(
    x: Any,
    starts: Any,
    taps: Any,
    weights: Any,
    mask: Any,
    gate: Gate,
    y: Any,
    accumulate: int,
    anchored: int,
) -> None:
    """Write y, added to y with `accumulate`; then apply the gate.  y is not x.

    `anchored`: as on the CPU.
    """
    N, P, O, M, C = y.shape
    targets = targets_of(y, mask)
    for i in range(cuda.grid(1), N * P * O * M * C, cuda.gridsize(1)):
        c, line = i % C, i // C
        m, line = line % M, line // M
        o, line = line % O, line // O
        n, p = line // P, line % P
        stop = starts[o + 1]
        v, lost, base = np.float32(0), np.float32(0), np.float32(0)
        if anchored and starts[o] < stop:
            base = x[n, p, taps[starts[o]], m, c]
        for part in range(starts[o], stop, _PART):
            s = np.float32(0)
            for k in range(part, min(part + _PART, stop)):
                s += weights[k] * (x[n, p, taps[k], m, c] - base)
            s = s - lost
            total = v + s
            lost = (total - v) - s
            v = total
        v = v + base
        write_gradient(v, c, gate, accumulate, y, (n, p, o, m), mask, (n // targets, p, o, m))
