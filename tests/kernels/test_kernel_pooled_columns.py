"""The reverse of a convolution and the max-pool behind it, in one kernel."""

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
    nchw,
    nhwc,
    noise,
    taps_of,
)

from gbp.kernels.codegen.gate import OPEN, Gate
from gbp.kernels.codegen.memory import aligned
from gbp.kernels.columns import col2im
from gbp.kernels.conv_direct import pack
from gbp.kernels.conv_pointwise import conv_pointwise_bwd, pointwise_scratch
from gbp.kernels.pool import maxpool_bwd_u8
from gbp.kernels.pooled_columns import pooled_columns_bwd, pooled_columns_scratch

pytestmark = pytest.mark.skipif(ON_CARD, reason="only processors compute it in one kernel")

STEM = {"kernel": (3, 3), "stride": (2, 2)}
#: Sizes of the image, the convolution, the pool, and the channels of the image and of the convolution.
CASES: dict[str, tuple[tuple[int, int], dict[str, Any], dict[str, Any], int, int]] = {
    "a stem": ((47, 33), STEM, STEM, 3, 17),
    "many rows, which are moved": ((60, 9), STEM, {"kernel": (2, 2), "stride": (2, 2)}, 1, 8),
    "padded": ((12, 11), {**STEM, "pads": (1, 1, 1, 1)}, {**STEM, "pads": (1, 1, 0, 0)}, 3, 65),
    "many channels": ((9, 8), STEM, {"kernel": (2, 2)}, 19, 5),
    "stride leaves gaps": ((13, 12), {"kernel": (2, 2), "stride": (3, 3)}, {"kernel": (2, 2)}, 3, 7),
    "windows that overlap in many rows": ((23, 9), {"kernel": (7, 3)}, STEM, 2, 4),
    "dilated": (
        (15, 11),
        {"kernel": (3, 2), "stride": (2, 1), "dilation": (1, 2)},
        {"kernel": (2, 2), "stride": (3, 3), "dilation": (2, 1)},
        3,
        6,
    ),
    "long lines": ((5, 201), STEM, {"kernel": (2, 3), "stride": (1, 2)}, 3, 9),
}


@pytest.mark.parametrize("most", [0.0, 1.0])
@pytest.mark.parametrize("gate", [OPEN, Gate(1, 0), Gate(1, 1)])
@pytest.mark.parametrize("name", CASES)
def test_pooled_columns(name: str, gate: Gate, most: float) -> None:
    size, window, pool, C, O = CASES[name]
    w = noise(O, C, *window["kernel"], seed=1)
    beside = {key: value for key, value in window.items() if key != "kernel"}
    z = nhwc(naive.conv_fwd(noise(2, C, *size), w, **beside)).astype(np.float32)
    y, switches = (nhwc(a) for a in naive.maxpool_fwd(nchw(z), **pool))
    switches = np.ascontiguousarray(switches, np.uint8)
    gy = noise(6, *y.shape[1:], seed=2)
    gz = naive.maxpool_bwd(nchw(gy), np.repeat(nchw(switches), 3, axis=0), (6, O, *z.shape[1:3]), **pool)
    gates = {"forward_gate": bool(gate.forward), "gradient_gate": bool(gate.gradient)}
    gz = naive.rectifier_bwd(nhwc(gz), np.repeat(z, 3, axis=0), **gates)
    expected = nhwc(naive.conv_bwd(nchw(gz), w, (6, C, *size), **beside))
    # As `ColumnsBackward` packs them.
    packed = pack(np.ascontiguousarray(w.transpose(2, 3, 1, 0)).reshape(-1, O, 1, 1))
    taps, windows, passes = taps_of(window), taps_of(pool), np.ascontiguousarray(bits_of(z > 0))
    height, width, columns = *z.shape[1:3], w[0].size

    def run(gy: Any, samples: slice, mask: Any, own: Gate, gx: Any, accumulate: int, threads: int) -> None:
        memory = aligned((pooled_columns_scratch(width, O, columns, taps, threads),))
        memory.fill(np.nan)
        saved = Guarded.of(switches[samples]), windows, Guarded.of(passes[samples]), gate
        target = mask, own, gx, accumulate, taps, height, width
        pooled_columns_bwd(gy, *saved, packed, *target, memory, most, threads)

    check_reverse(run, gy, expected, targets=3)

    # More targets than are computed together: each map has the bits that it has alone.
    many = noise(7, *gy.shape[1:], seed=3)
    maps, alone = np.empty((2, 7, *size, C), np.float32)
    run(many, slice(0, 1), NO_MASK, OPEN, maps, 0, 2)
    for k in range(7):
        run(many[k : k + 1], slice(0, 1), NO_MASK, OPEN, alone[k : k + 1], 0, 1)
    assert_same_bits(maps, alone)

    # The image's gradient is dense, so that vectors go through lines.
    together, apart = np.empty((2, 6, *size, C), np.float32)
    run(gy, slice(0, 2), NO_MASK, OPEN, together, 0, 2)
    middle, summed = (
        np.empty((6, *z.shape[1:]), np.float32),
        np.empty((6, height, width, columns), np.float32),
    )
    maxpool_bwd_u8(gy, switches, passes, gate, middle, 0, windows, 2)
    memory = aligned((pointwise_scratch(2),))
    conv_pointwise_bwd(middle, packed, NO_MASK, OPEN, summed, 0, memory, most, 2)
    col2im(summed, NO_MASK, OPEN, apart, 0, taps, 2)
    assert_same_bits(together, apart)

    # The sum of the two samples, for each of three targets.
    total, once = np.empty((2, 3, *size, C), np.float32)
    run(gy, slice(0, 2), NO_MASK, OPEN, total, 0, 2)
    conv_pointwise_bwd(middle[:3] + middle[3:], packed, NO_MASK, OPEN, summed[:3], 0, memory, most, 2)
    col2im(summed[:3], NO_MASK, OPEN, once, 0, taps, 2)
    assert_same_bits(total, once)
