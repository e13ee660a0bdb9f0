"""Local response normalisation across channels, and its exact derivative.

    d[c]  = bias + α/size · Σ_{i ∈ region(c)} x[i]²,   region(c) = c − ⌊(size−1)/2⌋ … c + ⌈(size−1)/2⌉
    y[c]  = x[c] · d[c]^−β
    gx[i] = gy[i] · d[i]^−β  −  2αβ/size · x[i] · Σ_{c: i ∈ region(c)} gy[c] · x[c] · d[c]^(−β−1)

A pixel's intermediate values are stored in lines of the thread's scratch.  Zeros on both sides of a line
serve windows that reach beyond the channels.

Source: ONNX LRN; Krizhevsky et al. 2012, section 3.3 (whose α is ONNX's α/size).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate, write_gradient
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import (
    address_of,
    at,
    broadcast,
    fma,
    load,
    load_scalar,
    load_some,
    square_root,
    store,
    store_scalar,
    store_some,
    zeros,
)
from .codegen.work import part_of, targets_of, zero_run

LINES = 4


def _whole_vectors(count: int) -> int:
    return (count + LANES - 1) // LANES * LANES


def lrn_scratch_floats(channels: int, size: int) -> int:
    """Return how many float32 of scratch the kernels need for each thread."""
    return LINES * (_whole_vectors(channels) + 2 * _whole_vectors(size))


_whole = device_function(_whole_vectors)


class Lines(NamedTuple):
    """Addresses of channel 0 in the lines of a thread, and the numbers of the formulas."""

    squares: int
    d: int
    power: int
    terms: int
    size: int
    scale: Any
    beta: float
    bias: float


@device_function
def _lines(scratch: Any, slot: int, C: int, size: int, alpha: float, beta: float, bias: float) -> Lines:
    """The thread's lines, with zeros in them."""
    line = 4 * (_whole(C) + 2 * _whole(size))
    base = address_of(scratch) + slot * LINES * line
    zero_run(base, LINES * line // 4)
    squares = base + 4 * _whole(size)
    scale = np.float32(alpha / size)
    return Lines(squares, squares + line, squares + 2 * line, squares + 3 * line, size, scale, beta, bias)


@device_function
def _window_sum(line: int, size: int) -> Any:
    """Return line[0] + … + line[size − 1], for a vector of neighbours at a time."""
    v = zeros()
    for i in range(size):
        v = v + load(line + 4 * i)
    return v


@device_function
def _powers(x: int, C: int, lines: Lines) -> None:
    """Write d[c] and d[c]^−β of the pixel at x to their lines."""
    for c in range(0, C, LANES):
        v = load_some(x + 4 * c, C - c)
        store(lines.squares + 4 * c, v * v)
    below = (lines.size - 1) // 2
    for c in range(0, C, LANES):
        total = _window_sum(lines.squares + 4 * (c - below), lines.size)
        v = fma(total, broadcast(lines.scale), broadcast(lines.bias))
        store(lines.d + 4 * c, v)
        if lines.beta == 0.75:
            root = square_root(v)
            store(lines.power + 4 * c, broadcast(np.float32(1)) / (root * square_root(root)))
    if lines.beta != 0.75:
        for c in range(C):
            power = math.pow(load_scalar(lines.d + 4 * c), -lines.beta)
            store_scalar(lines.power + 4 * c, np.float32(power))


@kernel(ACTIVATION, ACTIVATION, DENSE, INT, FLOAT, FLOAT, FLOAT, INT)
def lrn_fwd(
    x: Any,
    y: Any,
    scratch: Any,
    size: int,
    alpha: float,
    beta: float,
    bias: float,
    threads: int,
    share: Share,
) -> None:
    """Write y; y may be x.

    scratch: `lrn_scratch_floats` a thread.  size, alpha, beta, bias: as in the equations, alpha is α.
    """
    N, H, W, C = x.shape
    lines = _lines(scratch, share.slot, C, size, alpha, beta, bias)
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            xa, ya = at(x, n, h, w), at(y, n, h, w)
            _powers(xa, C, lines)
            for c in range(0, C, LANES):
                store_some(ya + 4 * c, load_some(xa + 4 * c, C - c) * load(lines.power + 4 * c), C - c)


@kernel(ACTIVATION, ACTIVATION, MASK, GATE, ACTIVATION, INT, DENSE, INT, FLOAT, FLOAT, FLOAT, INT)
def lrn_bwd(
    gy: Any,
    x: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    size: int,
    alpha: float,
    beta: float,
    bias: float,
    threads: int,
    share: Share,
) -> None:
    """Write the gradient to gx, or add it with `accumulate`; then apply the gate.

    gx may be gy.  scratch holds `lrn_scratch_floats` a thread.
    """
    N, H, W, C = gx.shape
    sharing, targets = targets_of(gy, x), targets_of(gy, mask)
    slope = np.float32(-2 * alpha * beta / size)
    above = size - 1 - (size - 1) // 2  # region(c) reaches this far up, so i is in regions of channels below
    lines = _lines(scratch, share.slot, C, size, alpha, beta, bias)
    for row in range(*part_of(N * H, share, threads)):
        n, h = row // H, row % H
        for w in range(W):
            ga, xa = at(gy, n, h, w), at(x, n // sharing, h, w)
            to, ma = at(gx, n, h, w), at(mask, n // targets, h, w)
            _powers(xa, C, lines)
            for c in range(0, C, LANES):
                g = load_some(ga + 4 * c, C - c) * load(lines.power + 4 * c)
                term = g * load_some(xa + 4 * c, C - c) / load(lines.d + 4 * c)
                store_some(lines.terms + 4 * c, term, C - c)  # beyond C it stays 0, though 0/0 is NaN
            for c in range(0, C, LANES):
                g = load_some(ga + 4 * c, C - c) * load(lines.power + 4 * c)
                s = _window_sum(lines.terms + 4 * (c - above), size) * broadcast(slope)
                v = fma(s, load_some(xa + 4 * c, C - c), g)
                write_gradient(v, c, gate, accumulate, to, ma, C - c)
