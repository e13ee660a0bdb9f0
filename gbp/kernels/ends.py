"""The two ends of a run: samples come in from a caller's array, and maps leave into a new one.

Both arrays change from call to call, so kernels find them by an address in a word, which is written before
the run; 0 means that there is nothing to do.
"""

from __future__ import annotations

from typing import Any

from numba import types

from .codegen.emit import LANES
from .codegen.jit import DENSE, INT, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import (
    address_of,
    at,
    broadcast,
    fma,
    interleave_three,
    load,
    load_scalar,
    load_some,
    prefetch_read,
    store_each,
    store_scalar,
    store_some,
    sum_lanes,
    zeros,
)
from .codegen.work import part_of
from .conditions import WORDS
from .moves import STRIDED

#: Rows of samples (N, H, floats), the floats side by side.
ROWS = types.Array(types.float32, 3, "A")
#: How many bytes of the terms of a blend are fetched ahead.
_AHEAD = 2**11


@device_function
def _copy_row(given: int, to: int, step: int, W: int) -> Any:
    """Copy W numbers to addresses `step` bytes apart.  Returns a vector: NaN if one of them is not finite."""
    seen = zeros()
    for w in range(0, W, LANES):
        v = load_some(given + 4 * w, W - w)
        seen = fma(v, zeros(), seen)
        if step == 4:
            store_some(to + 4 * w, v, W - w)
    if step != 4:
        for w in range(W):
            store_scalar(to + step * w, load_scalar(given + 4 * w))
    return seen


@device_function
def _copy_colours(given: int, plane: int, to: int, W: int) -> Any:
    """Copy W pixels of three planes, `plane` bytes apart, side by side; returns the same as `_copy_row`."""
    seen, whole = zeros(), W // LANES * LANES
    for w in range(0, whole, LANES):
        a, b, c = load(given + 4 * w), load(given + plane + 4 * w), load(given + 2 * plane + 4 * w)
        seen = fma(a, zeros(), fma(b, zeros(), fma(c, zeros(), seen)))
        store_each(to + 12 * w, 4 * LANES, interleave_three(a, b, c))
    for i in range(3):
        seen = seen + _copy_row(given + i * plane + 4 * whole, to + 12 * whole + 4 * i, 12, W - whole)
    return seen


@kernel(WORDS, STRIDED, DENSE, INT)
def bring_in(source: Any, x: Any, marks: Any, threads: int, share: Share) -> None:
    """Write the samples (N, C, H, W) at the address in source (1,), C-contiguous, to x of any strides.

    Writes 1 to the mark of each sample that holds NaN or infinity; marks are (N,).  Threads share the rows,
    with all channels, because these are neighbours in x as a rule.
    """
    N, C, H, W = x.shape
    step, begin = x.strides[3], source[0]
    if begin == 0:
        return
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        given, plane = begin + 4 * W * (n * C * H + h), 4 * W * H
        seen = zeros()
        if C == 3 and x.strides[1] == 4 and step == 12:
            seen = _copy_colours(given, plane, at(x, n, 0, h), W)
        else:
            for c in range(C):
                seen = seen + _copy_row(given + c * plane, at(x, n, c, h), step, W)
        if sum_lanes(seen) != 0:
            marks[n] = 1


@kernel(WORDS, DENSE, ROWS, INT)
def blend(sources: Any, factor: Any, x: Any, threads: int, share: Share) -> None:
    """Write base + factor · term to x, one term for each sample.

    sources: the addresses of the first term and of the base, which have the order of a sample of x.  factor:
    (1,).
    """
    N, H, size = x.shape
    times = broadcast(factor[0])
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        to = address_of(x) + n * x.strides[0] + h * x.strides[1]
        term, base = sources[0] + 4 * size * row, sources[1] + 4 * size * h
        for i in range(0, size, LANES):
            prefetch_read(term + 4 * i + _AHEAD)
            v = load_some(term + 4 * i, size - i) * times + load_some(base + 4 * i, size - i)
            store_some(to + 4 * i, v, size - i)


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
