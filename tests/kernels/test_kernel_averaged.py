"""The reverse of a pointwise convolution and the average of whole planes behind it, in one kernel."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
from harness import (
    NO_MASK,
    ON_CARD,
    Guarded,
    assert_same_bits,
    bits_of,
    check_reverse,
    noise,
)

from gbp.kernels.average_pool import averagepool_bwd
from gbp.kernels.averaged import averaged_pointwise_bwd, averaged_scratch
from gbp.kernels.codegen.gate import OPEN, Gate
from gbp.kernels.codegen.memory import aligned
from gbp.kernels.conv_direct import pack
from gbp.kernels.conv_pointwise import conv_pointwise_bwd, pointwise_scratch
from gbp.kernels.taps import Taps

pytestmark = pytest.mark.skipif(ON_CARD, reason="only processors compute it in one kernel")


@pytest.mark.parametrize("gate", [OPEN, Gate(1, 0), Gate(0, 1), Gate(1, 1)])
@pytest.mark.parametrize(
    ("size", "C", "O", "density"),
    [((13, 13), 40, 200, 0.01), ((3, 25), 300, 65, 0.3), ((1, 2), 5, 9, 1.0), ((2, 3), 17, 64, 0.0)],
)
def test_averaged_pointwise(size: tuple[int, int], C: int, O: int, density: float, gate: Gate) -> None:
    (H, W), w = size, noise(O, C, seed=1)
    z = noise(2, H, W, O, seed=2)
    gy = noise(6, 1, 1, O, seed=3)
    gy *= np.random.default_rng(4).random(gy.shape) < density
    whole, samples = np.repeat(z, 3, axis=0), np.broadcast_to(gy / np.float32(H * W), (6, H, W, O))
    gates = {"forward_gate": bool(gate.forward), "gradient_gate": bool(gate.gradient)}
    gz = naive.rectifier_bwd(np.float64(samples), whole, **gates)
    packed = pack(np.ascontiguousarray(w.T)[..., None, None])
    passes = np.ascontiguousarray(bits_of(z > 0))
    as_row = passes.reshape(2, 1, H * W, -1)

    def run(gy: Any, samples: slice, mask: Any, own: Gate, gx: Any, accumulate: int, threads: int) -> None:
        memory = aligned((averaged_scratch(O, threads),))
        memory.fill(np.nan)
        between = Guarded.of(as_row[samples]), gate
        averaged_pointwise_bwd(gy, *between, packed, mask, own, gx, accumulate, memory, threads)

    check_reverse(run, gy, (gz @ w).reshape(6, 1, H * W, C), targets=3)

    together, apart = np.empty((2, 6, 1, H * W, C), np.float32)
    run(gy, slice(0, 2), NO_MASK, OPEN, together, 0, 2)
    middle = np.empty((6, H, W, O), np.float32)
    averagepool_bwd(gy, passes, gate, middle, 0, Taps(H, W), 0, 2)
    memory = aligned((pointwise_scratch(2),))
    rows = middle.reshape(6, 1, H * W, O)
    conv_pointwise_bwd(rows, packed, NO_MASK, OPEN, apart, 0, memory, 1.0, 2)
    assert_same_bits(together, apart)
