"""Winograd convolution F(4×4, 3×3), channels last: 36 multiplications where the direct sum has 144.

    V = Bᵀ x B      a patch of 6 × 6 pixels of x, for each channel
    M = Σ_c V ⊙ U   36 matrix products over all patches: V[k] (patches, I) · U[k] (I, O)
    y = Aᵀ M A      a square of 4 × 4 pixels of y

with the transforms of `winograd.py`, where U comes from.  For 3×3 windows of stride 1 without dilation; the
input gradient is the same with flipped, transposed weights.  Padding is never laid out: a patch that hangs
over the border is gathered into scratch first.

Threads share the squares of y, each working through its own so that V and M stay in its cache; or, where the
weights outweigh the plane, they share the output channels, so that each weight is read once.  Each output is
one transform of chains in the order of c, whatever the share, so results do not depend on threads or batch.

Source: Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import prange

from .emit import LANES, TILE_ROWS, VECTOR_BYTES
from .ending import end_bwd, end_fwd
from .jit import ACTIVATION, DENSE, FLOAT, INT, device_function, kernel
from .rectifier import GATE, MASK, Gate
from .simd import address_of
from .tile import TILE_CHANNELS, multiply_tile
from .views import targets_of
from .winograd import MATRICES, PATCH, SQUARE, gather_patch, transform_patch, transform_product


def winograd_scratch(together: int, I: int, by_squares: bool, threads: int) -> int:
    """Floats of scratch for `together` squares at a time: V, then for each thread M, a patch and a square."""
    whole = -(-I // LANES) * LANES
    patches = MATRICES * (together * whole + LANES)
    own = MATRICES * (together * TILE_CHANNELS + LANES) + MATRICES * whole + SQUARE * SQUARE * TILE_CHANNELS
    return (threads if by_squares else 1) * patches + threads * own


class Plane(NamedTuple):
    """An activation as numbers: address of its first pixel, strides in bytes, sizes."""

    address: int
    image: int
    line: int
    pixel: int
    H: int
    W: int
    C: int


class Work(NamedTuple):
    """Where one thread finds its part of scratch, in bytes, and how far the planes of V and M are apart.

    A row of V is one patch, `row` bytes.
    """

    v: int
    v_step: int
    row: int
    m: int
    m_step: int
    patch: int
    square: int


@device_function
def _work(scratch: int, together: int, I: int, by_squares: int, threads: int, t: int) -> Work:
    row = (I + LANES - 1) // LANES * LANES * 4
    # One vector more than they hold: a power of two apart, 36 planes would fall into few sets of the cache.
    v_step, m_step = together * row + VECTOR_BYTES, together * 4 * TILE_CHANNELS + VECTOR_BYTES
    patch = MATRICES * m_step
    square = patch + MATRICES * row
    own = square + SQUARE * SQUARE * 4 * TILE_CHANNELS
    v, m = scratch, scratch + MATRICES * v_step * (threads if by_squares else 1) + t * own
    if by_squares:
        v += t * MATRICES * v_step
    return Work(v, v_step, row, m, m_step, m + patch, m + square)


@device_function
def _across(size: int) -> int:
    return (size + SQUARE - 1) // SQUARE


@device_function
def _locate(q: int, down: int, across: int) -> Any:
    """Square q as (n, its row, its column), in squares."""
    row = q // across
    return row // down, row % down, q - row * across


@device_function
def _next(n: int, i: int, j: int, down: int, across: int) -> Any:
    j += 1
    if j == across:
        j, i = 0, i + 1
        if i == down:
            i, n = 0, n + 1
    return n, i, j


@device_function
def _pixel(x: Plane, n: int, h: int, w: int) -> int:
    return x.address + n * x.image + h * x.line + w * x.pixel


@device_function
def _transform_patches(x: Plane, start: Any, grid: Any, squares: Any, v: int, work: Work) -> None:
    """The patches of squares [first, last) to the rows of V from v on."""
    n, i, j = _locate(squares[0], grid[0], grid[1])
    for _ in range(squares[0], squares[1]):
        h, w = SQUARE * i - start[0], SQUARE * j - start[1]
        a, line, pixel = _pixel(x, n, h, w), x.line, x.pixel
        if h < 0 or w < 0 or h + PATCH > x.H or w + PATCH > x.W or work.row != 4 * x.C:
            gather_patch(a, line, pixel, x.C, -h, x.H - h, -w, x.W - w, work.patch, work.row)
            a, line, pixel = work.patch, PATCH * work.row, work.row
        transform_patch(a, line, pixel, v, work.v_step, work.row)
        v += work.row
        n, i, j = _next(n, i, j, grid[0], grid[1])


@device_function
def _multiply(rows: int, channels: int, I: int, u: int, work: Work) -> None:
    """M of one block of output channels, of which so many exist, for the first `rows` rows of V."""
    groups = (rows + TILE_ROWS - 1) // TILE_ROWS
    for k in range(MATRICES):
        v, m = work.v + k * work.v_step, work.m + k * work.m_step
        for g in range(groups):
            first, last = rows * g // groups, rows * (g + 1) // groups
            x, out = v + first * work.row, m + first * 4 * TILE_CHANNELS
            multiply_tile(last - first, channels, x, work.row, 1, 0, 1, 0, I, u, out)
        u += 4 * I * TILE_CHANNELS


@device_function
def _write_squares_fwd(
    squares: Any, block: int, grid: Any, b: int, limits: Any, r: Plane, mask: Plane, y: Plane, work: Work
) -> None:
    n, i, j = _locate(squares[0], grid[0], grid[1])
    c0 = block * TILE_CHANNELS
    for k in range(squares[1] - squares[0]):
        transform_product(work.m + k * 4 * TILE_CHANNELS, work.m_step, y.C - c0, work.square)
        w = SQUARE * j
        for h in range(SQUARE * i, min(y.H, SQUARE * (i + 1))):
            s = work.square + (h - SQUARE * i) * SQUARE * 4 * TILE_CHANNELS
            ra = _pixel(r, n, h, w) if r.C else 0
            ma = _pixel(mask, n, h, w) if mask.C else 0
            end_fwd(
                s, 4 * TILE_CHANNELS, min(SQUARE, y.W - w), c0, y.C, b, limits[0], limits[1],
                ra, r.pixel, ma, mask.pixel, _pixel(y, n, h, w), y.pixel,
            )  # fmt: skip
        n, i, j = _next(n, i, j, grid[0], grid[1])


@device_function
def _write_squares_bwd(
    squares: Any, block: int, grid: Any, accumulate: int, gate: Gate, targets: int, mask: Plane, gx: Plane,
    work: Work,
) -> None:  # fmt: skip
    n, i, j = _locate(squares[0], grid[0], grid[1])
    c0 = block * TILE_CHANNELS
    for k in range(squares[1] - squares[0]):
        transform_product(work.m + k * 4 * TILE_CHANNELS, work.m_step, gx.C - c0, work.square)
        w = SQUARE * j
        for h in range(SQUARE * i, min(gx.H, SQUARE * (i + 1))):
            s = work.square + (h - SQUARE * i) * SQUARE * 4 * TILE_CHANNELS
            end_bwd(
                s, 4 * TILE_CHANNELS, min(SQUARE, gx.W - w), c0, gx.C,
                accumulate, gate.forward, gate.gradient,
                _pixel(mask, n // targets, h, w), mask.pixel, _pixel(gx, n, h, w), gx.pixel,
            )  # fmt: skip
        n, i, j = _next(n, i, j, grid[0], grid[1])


@kernel(
    ACTIVATION, DENSE, DENSE, ACTIVATION, ACTIVATION, MASK, DENSE, INT, INT, FLOAT, FLOAT, INT, INT, INT,
    calls=[multiply_tile, gather_patch, transform_patch, transform_product],
)  # fmt: skip
def conv_winograd_fwd(
    x: Any,
    u: Any,
    b: Any,
    r: Any,
    y: Any,
    mask: Any,
    scratch: Any,
    top: int,
    left: int,
    lo: float,
    hi: float,
    together: int,
    by_squares: int,
    threads: int,
) -> None:
    """y = clip(conv(x, w) + b + r, lo, hi), and the bit lo < · < hi of each unit to mask.

    r and mask may be empty.  u from `pack_winograd`; b padded with 0 to whole tiles; scratch as
    `winograd_scratch` says.  `by_squares`: each thread takes its squares of y for all channels, `together`
    at a time; else they transform so many together and each takes its channels.
    """
    N, H, W, I = x.shape
    OH, OW, O = y.shape[1], y.shape[2], y.shape[3]
    source = Plane(address_of(x), x.strides[0], x.strides[1], x.strides[2], H, W, I)
    out = Plane(address_of(y), y.strides[0], y.strides[1], y.strides[2], OH, OW, O)
    residual = Plane(address_of(r), r.strides[0], r.strides[1], r.strides[2], OH, OW, r.shape[3])
    bits = Plane(address_of(mask), mask.strides[0], mask.strides[1], mask.strides[2], OH, OW, mask.shape[3])
    limits, start = (lo, hi), (top, left)
    grid = _across(OH), _across(OW)
    squares, blocks = N * grid[0] * grid[1], (O + TILE_CHANNELS - 1) // TILE_CHANNELS
    u_block = MATRICES * I * 4 * TILE_CHANNELS
    if by_squares:
        for t in prange(threads):
            work = _work(address_of(scratch), together, I, by_squares, threads, t)
            first, last = squares * t // threads, squares * (t + 1) // threads
            rounds = (last - first + together - 1) // together
            for k in range(rounds):
                part = first + (last - first) * k // rounds, first + (last - first) * (k + 1) // rounds
                _transform_patches(source, start, grid, part, work.v, work)
                for block in range(blocks):
                    _multiply(
                        part[1] - part[0], O - block * TILE_CHANNELS, I, address_of(u) + block * u_block, work
                    )
                    _write_squares_fwd(part, block, grid, address_of(b), limits, residual, bits, out, work)
    else:
        rounds = (squares + together - 1) // together
        for k in range(rounds):
            first, last = squares * k // rounds, squares * (k + 1) // rounds
            for t in prange(threads):
                work = _work(address_of(scratch), together, I, by_squares, threads, t)
                part = first + (last - first) * t // threads, first + (last - first) * (t + 1) // threads
                _transform_patches(source, start, grid, part, work.v + (part[0] - first) * work.row, work)
            for t in prange(threads):
                work = _work(address_of(scratch), together, I, by_squares, threads, t)
                part = first, last
                for block in range(blocks * t // threads, blocks * (t + 1) // threads):
                    _multiply(
                        last - first, O - block * TILE_CHANNELS, I, address_of(u) + block * u_block, work
                    )
                    _write_squares_fwd(part, block, grid, address_of(b), limits, residual, bits, out, work)


@kernel(
    ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, DENSE, INT, INT, INT, INT, INT,
    calls=[multiply_tile, gather_patch, transform_patch, transform_product],
)  # fmt: skip
def conv_winograd_bwd(
    gy: Any,
    u: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    top: int,
    left: int,
    together: int,
    by_squares: int,
    threads: int,
) -> None:
    """gx = conv(gy, w), added to gx with `accumulate`; of that, what passes the gate of gx's own rectifier.

    u from `pack_winograd` of the flipped, transposed weights; top and left are the pads of that convolution.
    """
    N, H, W, O = gy.shape
    GH, GW, C = gx.shape[1], gx.shape[2], gx.shape[3]
    source = Plane(address_of(gy), gy.strides[0], gy.strides[1], gy.strides[2], H, W, O)
    out = Plane(address_of(gx), gx.strides[0], gx.strides[1], gx.strides[2], GH, GW, C)
    bits = Plane(address_of(mask), mask.strides[0], mask.strides[1], mask.strides[2], GH, GW, mask.shape[3])
    targets, start = targets_of(gx, mask), (top, left)
    grid = _across(GH), _across(GW)
    squares, blocks = N * grid[0] * grid[1], (C + TILE_CHANNELS - 1) // TILE_CHANNELS
    u_block = MATRICES * O * 4 * TILE_CHANNELS
    if by_squares:
        for t in prange(threads):
            work = _work(address_of(scratch), together, O, by_squares, threads, t)
            first, last = squares * t // threads, squares * (t + 1) // threads
            rounds = (last - first + together - 1) // together
            for k in range(rounds):
                part = first + (last - first) * k // rounds, first + (last - first) * (k + 1) // rounds
                _transform_patches(source, start, grid, part, work.v, work)
                for block in range(blocks):
                    _multiply(
                        part[1] - part[0], C - block * TILE_CHANNELS, O, address_of(u) + block * u_block, work
                    )
                    _write_squares_bwd(part, block, grid, accumulate, gate, targets, bits, out, work)
    else:
        rounds = (squares + together - 1) // together
        for k in range(rounds):
            first, last = squares * k // rounds, squares * (k + 1) // rounds
            for t in prange(threads):
                work = _work(address_of(scratch), together, O, by_squares, threads, t)
                part = first + (last - first) * t // threads, first + (last - first) * (t + 1) // threads
                _transform_patches(source, start, grid, part, work.v + (part[0] - first) * work.row, work)
            for t in prange(threads):
                work = _work(address_of(scratch), together, O, by_squares, threads, t)
                part = first, last
                for block in range(blocks * t // threads, blocks * (t + 1) // threads):
                    _multiply(
                        last - first, C - block * TILE_CHANNELS, O, address_of(u) + block * u_block, work
                    )
                    _write_squares_bwd(part, block, grid, accumulate, gate, targets, bits, out, work)
