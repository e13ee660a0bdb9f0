"""The input gradient of a pointwise convolution, over an output gradient that is mostly zero.

    gx[n, h, w, c] = Σ_o gy[n, h, w, o] · w[o, c]

Pixels are computed in strips.  If few values of gy are nonzero, to add these alone is faster; if many are,
the dense tiles of `conv_direct`.  Both add in the order of o, in the same chains, and a product with 0 adds
nothing.  So the choice changes no bit of gx.  It is made from the density of a few pixels of the strip.
"""

from __future__ import annotations

from typing import Any

from .codegen.bits import nonzero
from .codegen.emit import LANES, TILE_ROWS
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, at, load_some
from .codegen.tile import TILE_CHANNELS, blocks_in, first_pixel, multiply_tile, tiles_of
from .codegen.work import targets_of
from .epilogue import backward, finish, plane_of, prefetch
from .lists import GROUP, SUMMED_BLOCKS, SUMS, add_nonzero, nonzero_in

#: Pixels in a strip: they are multiplied with one group of weights before the next group.
STRIP = 4 * TILE_ROWS
#: Bytes of scratch of a thread: the sums of a strip.
STRIP_SUMS = STRIP * SUMS


def pointwise_scratch(threads: int) -> int:
    """Floats of scratch."""
    return threads * STRIP_SUMS // 4


@device_function
def _density(gy: int, pixel: int, count: int, O: int) -> float:
    """The part of gy that is nonzero, measured at up to three of `count` pixels."""
    found, seen = 0, 0
    for p in range(0, count, max(1, count // 2)):
        for o in range(0, O, LANES):
            found += nonzero(load_some(gy + p * pixel + 4 * o, O - o))
        seen += O
    return found / seen


@device_function
def is_sparse(gy: int, pixel: int, count: int, O: int, max_density: float) -> bool:
    """Whether at most this part of a strip of `count` pixels is nonzero, as far as a few pixels show."""
    return _density(gy, pixel, count, O) <= max_density


@device_function
def _multiply_nonzero(gy: int, pixel: int, count: int, O: int, blocks: int, w: int, sums: int) -> None:
    """Compute the sums of `blocks` blocks of channels of a strip from its nonzero values."""
    step = 4 * TILE_CHANNELS * O
    for o in range(0, O, GROUP):
        g, rows = gy + 4 * o, w + 4 * TILE_CHANNELS * o
        for p in range(count):
            bits = nonzero_in(g, O - o)
            if bits or o == 0:
                add_nonzero(blocks, g, bits, rows, step, sums + p * SUMS, o == 0)
            g += pixel


@device_function
def multiply_strip(
    sparse: bool,
    gy: int,
    pixel: int,
    count: int,
    O: int,
    w: int,
    c0: int,
    scratch: int,
    n: int,
    h: int,
    first: int,
    end: Any,
) -> None:
    """Compute up to SUMMED_BLOCKS blocks of channels of a strip.

    Parameters
    ----------
    sparse
        Whether to add the nonzero values alone.
    gy, pixel, count, O
        The strip's gradient: the address of its first pixel, bytes from pixel to pixel, and how many pixels
        and channels it has.
    w, c0
        The address of all weights, and the first of the channels to compute.
    scratch
        The address of STRIP_SUMS bytes.
    n, h, first, end
        The strip's first pixel in the gradient that `end` writes.
    """
    block, C, step = c0 // TILE_CHANNELS, end.out.C, 4 * TILE_CHANNELS * O
    together, wa = min(SUMMED_BLOCKS, blocks_in(C) - block), w + block * step
    if sparse:
        _multiply_nonzero(gy, pixel, count, O, together, wa, scratch)
    tiles = tiles_of(count, pixel)
    for b in range(together):
        c = c0 + b * TILE_CHANNELS
        for k in range(tiles):
            p = first_pixel(k, tiles, count)
            pixels = first_pixel(k + 1, tiles, count) - p
            s, s_step = scratch + p * SUMS + b * 4 * TILE_CHANNELS, SUMS
            if not sparse:
                s, s_step = scratch, 4 * TILE_CHANNELS
                prefetch(pixels, c, n, h, first + p, end)
                multiply_tile(pixels, C - c, gy + p * pixel, pixel, 1, 0, 1, 0, O, wa + b * step, s)
            finish(s, s_step, pixels, c, n, h, first + p, end)


@kernel(ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, DENSE, FLOAT, INT, calls=[multiply_tile])
def conv_pointwise_bwd(
    gy: Any,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    max_density: float,
    threads: int,
    share: Share,
) -> None:
    """Write gx = gy · w, or add it to gx with `accumulate`; then apply the gate of gx's own rectifier.

    Parameters
    ----------
    gy, gx
        (N, H, W, O) and (N, H, W, C).
    w
        The transposed weights (C, O, 1, 1), packed by `conv_direct.pack`.
    scratch
        `pointwise_scratch` floats.
    max_density
        In strips of a density up to this zeros are left out: in all strips at 1.
    mask, gate, accumulate, threads, share
        As in all kernels (`gbp.kernels`).
    """
    N, H, W, C = gx.shape
    O = gy.shape[3]
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gy, mask), gate)
    strips = (W + STRIP - 1) // STRIP
    parts = (blocks_in(C) + SUMMED_BLOCKS - 1) // SUMMED_BLOCKS
    work = N * H * strips * parts
    own = address_of(scratch) + share.slot * STRIP_SUMS
    for t in range(share.first, share.last):
        measured, sparse = -1, False  # a strip, and whether it is sparse
        for q in range(work * t // threads, work * (t + 1) // threads):
            strip, c0 = q // parts, q % parts * SUMMED_BLOCKS * TILE_CHANNELS
            row = strip // strips
            n, h, first = row // H, row % H, W * (strip % strips) // strips
            count = W * (strip % strips + 1) // strips - first
            ga, pixel = at(gy, n, h, first), gy.strides[2]
            if strip != measured:
                measured, sparse = strip, is_sparse(ga, pixel, count, O, max_density)
            multiply_strip(sparse, ga, pixel, count, O, address_of(w), c0, own, n, h, first, end)
