"""The input gradient of a pointwise convolution behind which planes are averaged, for few explained classes.

    gz[n, p, o] = gy[n, o] / P,  gated
    gx[n, p, c] = Σ_o gz[n, p, o] · w[o, c]

for each of P pixels p.  `averagepool_bwd` and `conv_pointwise_bwd` compute the same one after the other, with
the same bits.  Before the gate, gz is the same at all pixels, and 0 in every channel whose gy is 0.  So gz is
not written: the few channels are found once, and the mask says at which pixels they count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .codegen.bits import load_bits
from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate, gated
from .codegen.jit import ACTIVATION, DENSE, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, at, broadcast, load_some, store_some
from .codegen.tile import TILE_CHANNELS, blocks_in
from .codegen.work import sample_of, targets_of
from .conv_pointwise import STRIP, STRIP_SUMS
from .epilogue import backward, finish, plane_of
from .lists import GROUP, SUMMED_BLOCKS, SUMS, add_nonzero, nonzero_in


def averaged_scratch(O: int, threads: int) -> int:
    """Floats of scratch: for each thread the sums of a strip, and gz at a pixel that no mask closes."""
    return threads * (STRIP_SUMS // 4 + _room_of(O))


def _room_of(O: int) -> int:
    """Floats for O values, in whole vectors."""
    return (O + LANES - 1) // LANES * LANES


_room = device_function(_room_of)


@device_function
def _shares(gy: int, O: int, pixels: int, gate: Gate, to: int) -> None:
    """Write what each pixel gets of gy to address `to`, if its mask lets all pass."""
    part = broadcast(np.float32(1) / np.float32(pixels))
    for o in range(0, O, LANES):
        v = load_some(gy + 4 * o, O - o) * part
        store_some(to + 4 * o, gated(v, Gate(0, gate.gradient), 0, LANES), LANES)


@device_function
def _passing(mask: int, channels: int) -> int:
    """Bits of the channels of a GROUP that a pixel's mask lets pass."""
    bits = 0
    for o in range(0, min(GROUP, channels), LANES):
        bits |= load_bits(mask + o // 8, channels - o) << o
    return bits


@device_function
def _sum_strip(
    shares: int, O: int, mask: int, pixel: int, gate: Gate, count: int, blocks: int, w: int, sums: int
) -> None:
    """Compute `blocks` blocks of channels of `count` pixels, whose masks are `pixel` bytes apart."""
    step = 4 * TILE_CHANNELS * O
    for o in range(0, O, GROUP):
        g, rows, few = shares + 4 * o, w + 4 * TILE_CHANNELS * o, nonzero_in(shares + 4 * o, O - o)
        if few == 0 and o > 0:
            continue
        for p in range(count):
            bits = few
            if gate.forward:
                bits &= _passing(mask + p * pixel + o // 8, O - o)
            if bits or o == 0:
                add_nonzero(blocks, g, bits, rows, step, sums + p * SUMS, o == 0)


@kernel(ACTIVATION, MASK, GATE, WEIGHTS, MASK, GATE, ACTIVATION, INT, DENSE, INT)
def averaged_pointwise_bwd(
    gy: Any,
    gz_mask: Any,
    gz_gate: Gate,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    threads: int,
    share: Share,
) -> None:
    """Write gx, or add it to gx with `accumulate`; then apply the gate of gx's own rectifier.

    gy (N, 1, 1, O) is the gradient of the averages, gx (N, 1, P, C).  gz_mask and gz_gate are of the
    rectifier between the convolution and the average.  w is packed as for `conv_pointwise_bwd`, and finite.
    scratch holds `averaged_scratch`.
    """
    N, _, W, C = gx.shape
    O = gy.shape[3]
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gy, mask), gate)
    strips = (W + STRIP - 1) // STRIP
    groups = (blocks_in(C) + SUMMED_BLOCKS - 1) // SUMMED_BLOCKS
    work, targets = N * strips * groups, targets_of(gy, gz_mask)
    sums = address_of(scratch) + share.slot * (STRIP_SUMS + 4 * _room(O))
    shares, known = sums + STRIP_SUMS, -1
    for t in range(share.first, share.last):
        for q in range(work * t // threads, work * (t + 1) // threads):
            strip, block = q // groups, q % groups * SUMMED_BLOCKS
            n, first = strip // strips, W * (strip % strips) // strips
            count = W * (strip % strips + 1) // strips - first
            if n != known:
                known = n
                _shares(at(gy, n, 0, 0), O, W, gz_gate, shares)
            passes, pixel = at(gz_mask, sample_of(n, targets), 0, first), gz_mask.strides[2]
            blocks = min(SUMMED_BLOCKS, blocks_in(C) - block)
            rows = address_of(w) + block * 4 * TILE_CHANNELS * O
            _sum_strip(shares, O, passes, pixel, gz_gate, count, blocks, rows, sums)
            for b in range(block, block + blocks):
                finish(
                    sums + (b - block) * 4 * TILE_CHANNELS, SUMS, count, b * TILE_CHANNELS, n, 0, first, end
                )
