"""Loads, stores and epilogues of eight neighbouring channels of a pixel, for kernels of a card.

The bits of eight channels fill a byte of a mask.  `v` is a thread's local array of eight floats.  `fours`:
the number of channels is a multiple of four and the arrays are aligned to 16 bytes, so four channels are
loaded or stored at once.  `all_in_fours` finds that out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .codegen.gate import Gate
from .codegen.jit_cuda import device_function, int32
from .codegen.simd_cuda import (
    clipped,
    load_channel,
    load_channels,
    load_four,
    store_channel,
    store_channels,
    targets_of,
)


def all_in_fours(*arrays: Any) -> int:
    """Whether four channels of each of these (N, H, W, C) arrays can be loaded at once.

    Empty arrays do not count.
    """
    return int(all(x.shape[3] % 4 == 0 and x.is_aligned(16) for x in arrays if x.size))


def eights_of(y: Any) -> int:
    """The units of work of a kernel with one for eight channels of each pixel of (N, H, W, C)."""
    N, H, W, C = y.shape
    return int(N * H * W * (-(-C // 8)))


@device_function
def load_eight_of(x: Any, n: int, h: int, w: int, c: int, v: Any, fours: int) -> None:
    """Load eight channels of a pixel from c on into v; 0 beyond the last channel."""
    C = x.shape[3]
    if fours and c + 4 < C:
        v[0], v[1], v[2], v[3] = load_channels(x, n, h, w, c)
        v[4], v[5], v[6], v[7] = load_channels(x, n, h, w, c + 4)
    else:
        for k in range(8):
            v[k] = load_channel(x, n, h, w, c + k) if c + k < C else np.float32(0)


@device_function
def eight_of(sums: Any, i: int, v: Any) -> None:
    """Copy eight sums from i on to v."""
    v[0], v[1], v[2], v[3] = load_four(sums, i)
    v[4], v[5], v[6], v[7] = load_four(sums, i + 4)


@device_function
def write_eight(v: Any, n: int, h: int, w: int, o: int, y: Any, fours: int) -> None:
    """Store eight channels of a pixel in y, up to the last channel."""
    O = y.shape[3]
    if fours:
        if o < O:
            store_channels((v[0], v[1], v[2], v[3]), y, n, h, w, o)
        if o + 4 < O:
            store_channels((v[4], v[5], v[6], v[7]), y, n, h, w, o + 4)
    else:
        for k in range(8):
            if o + k < O:
                store_channel(v[k], y, n, h, w, o + k)


@device_function
def add_four(v: Any, k: int, four: Any) -> None:
    """Add four numbers to v from k on."""
    v[k] += four[0]
    v[k + 1] += four[1]
    v[k + 2] += four[2]
    v[k + 3] += four[3]


@device_function
def add_eight(v: Any, n: int, h: int, w: int, o: int, r: Any, fours: int) -> None:
    """Add eight channels of a pixel of r to v, up to the last channel."""
    O = r.shape[3]
    if fours:
        if o < O:
            add_four(v, 0, load_channels(r, n, h, w, o))
        if o + 4 < O:
            add_four(v, 4, load_channels(r, n, h, w, o + 4))
    else:
        for k in range(8):
            if o + k < O:
                v[k] += load_channel(r, n, h, w, o + k)


@device_function
def epilogue_fwd(
    v: Any, n: int, h: int, w: int, o: int, b: Any, r: Any, y: Any, mask: Any, lo: Any, hi: Any, fours: int
) -> None:
    """Finish eight channels of a pixel of y, whose sums are v: add bias and residual, clip, write the mask.

    Parameters
    ----------
    v
        The sums; what is written to y replaces them.
    n, h, w, o
        The pixel, and its first channel.
    b, r, y, mask, lo, hi
        As in all kernels (`gbp.kernels`).
    fours
        Whether r and y are read and written by fours.
    """
    bits = 0
    if fours and o + 4 < b.size:
        add_four(v, 0, load_four(b, o))
        add_four(v, 4, load_four(b, o + 4))
    else:
        for k in range(8):
            if o + k < b.size:
                v[k] += b[o + k]
    if r.size:
        add_eight(v, n, h, w, o, r, fours)
    for k in range(8):
        if lo < v[k] < hi and o + k < y.shape[3]:
            bits |= 1 << k
        v[k] = clipped(v[k], lo, hi)
    write_eight(v, n, h, w, o, y, fours)
    if mask.size:
        mask[n, h, w, o // 8] = bits


@device_function
def epilogue_bwd(
    v: Any, n: int, h: int, w: int, o: int, mask: Any, gate: Gate, gx: Any, accumulate: int, fours: int
) -> None:
    """Finish eight channels of a pixel of gx, whose sums are v: add what is there, apply the gate.

    Parameters
    ----------
    v
        The sums; what is written to gx replaces them.
    n, h, w, o
        The pixel, and its first channel.
    mask, gate, gx, accumulate
        As in all kernels (`gbp.kernels`).
    fours
        Whether gx is read and written by fours.
    """
    if accumulate:
        add_eight(v, n, h, w, o, gx, fours)
    bits = int32(255)
    if gate.forward:
        bits = int32(mask[n // targets_of(gx, mask), h, w, o // 8])
    for k in range(8):
        if not (bits >> k) & 1 or (gate.gradient and v[k] <= 0):
            v[k] = np.float32(0)
    write_eight(v, n, h, w, o, gx, fours)
