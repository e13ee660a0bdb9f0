"""Partial sums, each computed by its own blocks: how they are stored, added and finished.

They are stored one after the other, (parts, pixels, channels rounded up to four), and added in that order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT
from .codegen.jit_cuda import device_function, kernel
from .codegen.simd_cuda import at_pixel, load_four, store_four
from .eights_cuda import add_four, eights_of, epilogue_bwd, epilogue_fwd


@device_function
def keep_eight(v: Any, p: int, o: int, partial: Any, channels: int) -> None:
    """Store eight partial sums of a pixel, up to the last channel."""
    if o < channels:
        store_four((v[0], v[1], v[2], v[3]), partial, p * channels + o)
    if o + 4 < channels:
        store_four((v[4], v[5], v[6], v[7]), partial, p * channels + o + 4)


@device_function
def _added(partial: Any, parts: int, pixels: int, p: int, o: int, channels: int, v: Any) -> None:
    """Eight channels of a pixel, summed over the parts in order."""
    for k in range(8):
        v[k] = np.float32(0)
    for s in range(parts):
        i = (s * pixels + p) * channels + o
        add_four(v, 0, load_four(partial, i))
        if o + 4 < channels:
            add_four(v, 4, load_four(partial, i + 4))


@kernel(
    *(DENSE, INT, DENSE, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT, INT),
    units=lambda *args: eights_of(args[4]),
)
def finish_fwd(
    partial: Any, parts: int, b: Any, r: Any, y: Any, mask: Any, lo: float, hi: float, fours: int
) -> None:
    """Add the parts of a forward pass, and apply its epilogue.

    partial: sums of the parts, as `keep_eight` stores them.  fours: as `all_in_fours` of r and y.
    """
    v = cuda.local.array(8, float32)
    N, OH, OW, O = y.shape
    eights, pixels, channels = (O + 7) // 8, N * OH * OW, (O + 3) // 4 * 4
    for unit in range(cuda.grid(1), pixels * eights, cuda.gridsize(1)):
        p, o = unit // eights, unit % eights * 8
        n, h, w = at_pixel(p, OH, OW)
        _added(partial, parts, pixels, p, o, channels, v)
        epilogue_fwd(v, n, h, w, o, b, r, y, mask, lo, hi, fours)


@kernel(
    *(DENSE, INT, MASK, GATE, ACTIVATION, INT, INT),
    units=lambda *args: eights_of(args[4]),
)
def finish_bwd(partial: Any, parts: int, mask: Any, gate: Gate, gx: Any, accumulate: int, fours: int) -> None:
    """Add the parts of a backward pass, and apply its epilogue.  partial, fours: as for `finish_fwd`."""
    v = cuda.local.array(8, float32)
    N, H, W, C = gx.shape
    eights, pixels, channels = (C + 7) // 8, N * H * W, (C + 3) // 4 * 4
    for unit in range(cuda.grid(1), pixels * eights, cuda.gridsize(1)):
        p, c = unit // eights, unit % eights * 8
        n, h, w = at_pixel(p, H, W)
        _added(partial, parts, pixels, p, c, channels, v)
        epilogue_bwd(v, n, h, w, c, mask, gate, gx, accumulate, fours)
