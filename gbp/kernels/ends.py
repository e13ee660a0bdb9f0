"""The two ends of a run: samples come in from a caller's array, and maps leave into a new one.

Both arrays change from call to call, so kernels find them by an address in a word, which is written before
the run; 0 means that there is nothing to do.
"""

from __future__ import annotations

from typing import Any

from .codegen.emit import LANES
from .codegen.jit import DENSE, INT, kernel
from .codegen.packing import Share
from .codegen.simd import (
    address_of,
    at,
    fma,
    load_scalar,
    load_some,
    store_scalar,
    store_some,
    sum_lanes,
    zeros,
)
from .codegen.views import part_of
from .conditions import WORDS
from .moves import STRIDED


@kernel(WORDS, STRIDED, INT)
def bring_in(source: Any, x: Any, threads: int, share: Share) -> None:
    """Write the samples (N, C, H, W) at the address in source (1,), C-contiguous, to x of any strides.

    Threads share the rows, with all channels, because these are neighbours in x as a rule.
    """
    N, C, H, W = x.shape
    step, begin = x.strides[3], source[0]
    if begin == 0:
        return
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        for c in range(C):
            given, to = begin + 4 * W * ((n * C + c) * H + h), at(x, n, c, h)
            if step == 4:
                for w in range(0, W, LANES):
                    store_some(to + 4 * w, load_some(given + 4 * w, W - w), W - w)
            else:
                for w in range(W):
                    store_scalar(to + step * w, load_scalar(given + 4 * w))


@kernel(DENSE, WORDS, WORDS, INT)
def take_out(x: Any, target: Any, odd: Any, threads: int, share: Share) -> None:
    """Copy x to the address in target (1,).  Writes 1 to odd (1,) if x holds NaN or infinity."""
    begin, to = address_of(x), target[0]
    if to == 0:
        return
    vectors = (x.size + LANES - 1) // LANES
    seen = zeros()
    for i in range(*part_of(vectors, share, threads)):
        v = load_some(begin + 4 * LANES * i, x.size - LANES * i)
        seen = fma(v, zeros(), seen)  # NaN, if a value is NaN or infinite
        store_some(to + 4 * LANES * i, v, x.size - LANES * i)
    if sum_lanes(seen) != 0:
        odd[0] = 1
