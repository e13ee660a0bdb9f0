"""How many values of a gradient are nonzero, estimated from some of its pixels."""

from __future__ import annotations

from typing import Any

from numba import types

from .codegen.bits import nonzero
from .codegen.emit import LANES
from .codegen.jit import ACTIVATION, INT, kernel
from .codegen.packing import Share
from .codegen.simd import at, load_some
from .codegen.work import part_of
from .conditions import WORDS

#: Pixels that are looked at, evenly spaced.
_PIXELS = 16


@kernel(ACTIVATION, WORDS, types.float64, INT)
def choose_sparse(gy: Any, chosen: Any, most: float, threads: int, share: Share) -> None:
    """Write 1 to chosen[n] if at most this part of row n of gy (N, H, W, O) is nonzero, else 0.

    The row alone decides, so that a batch changes nothing.
    """
    N, H, W, O = gy.shape
    pixels = H * W
    looks = min(_PIXELS, pixels)
    for n in range(*part_of(N, share, threads)):
        found = 0
        for k in range(looks):
            pixel = (2 * k + 1) * pixels // (2 * looks)
            ga = at(gy, n, pixel // W, pixel % W)
            for o in range(0, O, LANES):
                found += nonzero(load_some(ga + 4 * o, O - o))
        chosen[n] = 1 if found <= most * looks * O else 0
