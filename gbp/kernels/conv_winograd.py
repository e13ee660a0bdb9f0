"""Winograd convolution F(4×4, 3×3), channels last: 36 multiplications where the direct sum has 144.

    V = Bᵀ x B      a patch of 6 × 6 pixels of x, for each channel
    M = Σ_c V ⊙ U   36 matrix products over all patches: V[k] (patches, I) · U[k] (I, O)
    y = Aᵀ M A      a square of 4 × 4 pixels of y

`winograd.py` has the transforms and makes U.  Windows are 3×3 with stride 1 and without dilation.  The input
gradient is the same with flipped and transposed weights.  No padded copy of x is made: a patch that crosses
the border is first copied into scratch.

Threads share the squares of y, and each works on few squares at a time, so that V and M stay in its cache.
If the weights are larger than the plane, threads share the output channels instead, so that each weight is
read once.  Either way each output is one transform of chains in the order of c, so results do not depend on
threads or batch.

A pixel's rounding depends on its place in its square and on the rest of the square, so equal windows do not
give equal outputs.  In the forward pass that breaks the ties of max-pools; the backward pass has no maxima.

Source: Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .codegen.emit import LANES, TILE_ROWS, VECTOR_BYTES
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of
from .codegen.tile import TILE_CHANNELS, blocks_in, multiply_tile
from .codegen.work import cell_of, next_cell, targets_of
from .epilogue import Forward, Plane, backward, finish, pixel_of, plane_of
from .taps import TAPS, Taps
from .winograd import MATRICES, PATCH, SQUARE, gather_patch, transform_patch, transform_product

#: Bytes of the sums of a line of a square.
LINE = SQUARE * 4 * TILE_CHANNELS


def winograd_scratch(together: int, width: int, I: int, by_squares: bool, threads: int) -> int:
    """Floats of scratch: V, and for each thread M, a patch and a square.

    `together` squares are transformed at a time, and `width` blocks of channels have their products held.
    """
    whole = -(-I // LANES) * LANES
    patches = MATRICES * (together * whole + LANES)
    products = MATRICES * (width * together * TILE_CHANNELS + LANES)
    own = products + MATRICES * whole + SQUARE * SQUARE * TILE_CHANNELS
    return (threads if by_squares else 1) * patches + threads * own


class Job(NamedTuple):
    """Numbers that are the same for all threads.

    `top`, `left`: pads of x.  `u`: address of U.  `down`, `across`: squares in a column and in a row;
    `squares`: all of them.  `together`, `width`: see `winograd_scratch`.  `scratch`: its address.  `parts`:
    into how many parts the work is cut.
    """

    top: int
    left: int
    u: int
    down: int
    across: int
    squares: int
    together: int
    width: int
    scratch: int
    parts: int


class Work(NamedTuple):
    """Addresses of one thread's scratch, and the steps in V and M, in bytes.

    `v_step`, `m_step`: from plane to plane.  `row`: a row of V, which is one patch.  `block`: a block of M,
    the products of all patches.
    """

    v: int
    v_step: int
    row: int
    m: int
    m_step: int
    block: int
    patch: int
    square: int


@device_function
def _work(x: Plane, job: Job, by_squares: int, slot: int) -> Work:
    row = (x.C + LANES - 1) // LANES * LANES * 4
    block = job.together * 4 * TILE_CHANNELS
    # One vector of room between planes: at a distance of a power of two, 36 planes would use few cache sets.
    v_step, m_step = job.together * row + VECTOR_BYTES, job.width * block + VECTOR_BYTES
    patch = MATRICES * m_step
    square = patch + MATRICES * row
    own = square + SQUARE * SQUARE * 4 * TILE_CHANNELS
    v = job.scratch
    if by_squares:
        v += slot * (MATRICES * v_step + own)
        m = v + MATRICES * v_step
    else:
        m = v + MATRICES * v_step + slot * own
    return Work(v, v_step, row, m, m_step, block, m + patch, m + square)


@device_function
def _across(size: int) -> int:
    return (size + SQUARE - 1) // SQUARE


@device_function
def _transform_patches(x: Plane, job: Job, first: int, last: int, v: int, work: Work) -> None:
    """Transform the patches of squares [first, last) into the rows of V from v on."""
    n, i, j = cell_of(first, job.down, job.across)
    for _ in range(first, last):
        h, w = SQUARE * i - job.top, SQUARE * j - job.left
        a, line, pixel = pixel_of(x, n, h, w), x.line, x.pixel
        if h < 0 or w < 0 or h + PATCH > x.H or w + PATCH > x.W or work.row != 4 * x.C:
            gather_patch(a, line, pixel, x.C, -h, x.H - h, -w, x.W - w, work.patch, work.row)
            a, line, pixel = work.patch, PATCH * work.row, work.row
        transform_patch(a, line, pixel, v, work.v_step, work.row)
        v += work.row
        n, i, j = next_cell(n, i, j, job.down, job.across)


@device_function
def _transform_share(x: Plane, job: Job, first: int, last: int, t: int, slot: int) -> None:
    """Transform part t of the patches of squares [first, last) into the V that all threads share."""
    work, count = _work(x, job, 0, slot), last - first
    start, stop = count * t // job.parts, count * (t + 1) // job.parts
    _transform_patches(x, job, first + start, first + stop, work.v + start * work.row, work)


@device_function
def _multiply(rows: int, c0: int, blocks: int, C: int, I: int, u: int, work: Work) -> None:
    """Compute M for `blocks` blocks of the C output channels, from c0 on, and the first `rows` rows of V."""
    groups, matrix = (rows + TILE_ROWS - 1) // TILE_ROWS, 4 * I * TILE_CHANNELS
    u += c0 // TILE_CHANNELS * MATRICES * matrix
    for k in range(MATRICES):
        v, m = work.v + k * work.v_step, work.m + k * work.m_step
        for b in range(blocks):
            channels, own_u = C - c0 - b * TILE_CHANNELS, u + (b * MATRICES + k) * matrix
            for g in range(groups):
                first, last = rows * g // groups, rows * (g + 1) // groups
                x, out = v + first * work.row, m + b * work.block + first * 4 * TILE_CHANNELS
                multiply_tile(last - first, channels, x, work.row, 1, 0, 1, 0, I, own_u, out)


@device_function
def _multiply_squares(x: Plane, job: Job, end: Any, squares: Any, blocks: Any, work: Work) -> None:
    """Compute a range of blocks of channels for a range of squares whose patches are in V."""
    first, last = squares
    H, W, C = end.out.H, end.out.W, end.out.C
    for group in range(blocks[0], blocks[1], job.width):
        width = min(job.width, blocks[1] - group)
        _multiply(last - first, group * TILE_CHANNELS, width, C, x.C, job.u, work)
        n, i, j = cell_of(first, job.down, job.across)
        for k in range(last - first):
            for b in range(width):
                c0, m = (group + b) * TILE_CHANNELS, work.m + b * work.block + k * 4 * TILE_CHANNELS
                transform_product(m, work.m_step, C - c0, work.square)
                for h in range(SQUARE * i, min(H, SQUARE * (i + 1))):
                    s, pixels = work.square + (h - SQUARE * i) * LINE, min(SQUARE, W - SQUARE * j)
                    finish(s, 4 * TILE_CHANNELS, pixels, c0, n, h, SQUARE * j, end)
            n, i, j = next_cell(n, i, j, job.down, job.across)


@device_function
def _by_squares(x: Plane, job: Job, end: Any, t: int, slot: int) -> None:
    """Compute part t of the squares, for all channels, `together` squares at a time."""
    work = _work(x, job, 1, slot)
    start, stop = job.squares * t // job.parts, job.squares * (t + 1) // job.parts
    rounds = (stop - start + job.together - 1) // job.together
    for k in range(rounds):
        first, last = start + (stop - start) * k // rounds, start + (stop - start) * (k + 1) // rounds
        _transform_patches(x, job, first, last, work.v, work)
        _multiply_squares(x, job, end, (first, last), (0, blocks_in(end.out.C)), work)


@device_function
def _by_channels(x: Plane, job: Job, end: Any, first: int, last: int, t: int, slot: int) -> None:
    """Compute part t of the channels, for squares [first, last), whose patches are in the shared V."""
    count = blocks_in(end.out.C)
    blocks = count * t // job.parts, count * (t + 1) // job.parts
    _multiply_squares(x, job, end, (first, last), blocks, _work(x, job, 0, slot))


@device_function
def _compute(
    x: Plane, N: int, u: int, scratch: int, taps: Taps, together: int, width: int, by_squares: int,
    threads: int, share: Share, end: Any,
) -> None:  # fmt: skip
    """Compute a share of a phase.  The arguments are those of `conv_winograd_fwd`."""
    down, across = _across(end.out.H), _across(end.out.W)
    squares = N * down * across
    job = Job(taps.top, taps.left, u, down, across, squares, together, width, scratch, threads)
    rounds, k = (squares + together - 1) // together, share.phase // 2
    first, last = squares * k // rounds, squares * (k + 1) // rounds
    for t in range(share.first, share.last):
        if by_squares:
            _by_squares(x, job, end, t, share.slot)
        elif share.phase % 2 == 0:
            _transform_share(x, job, first, last, t, share.slot)
        else:
            _by_channels(x, job, end, first, last, t, share.slot)


def _phases(args: Sequence[Any]) -> int:
    """How many phases a call has.  Threads wait for each other between phases.

    By squares there is one phase.  By channels each round of squares has two, one for V and one for M.
    """
    y = args[4]
    _, OH, OW, _ = y.shape
    squares, together, by_squares = len(y) * -(-OH // SQUARE) * -(-OW // SQUARE), args[-4], args[-2]
    return 1 if by_squares else 2 * -(-squares // together)


@kernel(
    ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, DENSE, TAPS, FLOAT, FLOAT, *[INT] * 4,
    calls=[multiply_tile, gather_patch, transform_patch, transform_product],
    split=1,
    phases=_phases,
)  # fmt: skip
def conv_winograd_fwd(
    x: Any,
    u: Any,
    b: Any,
    r: Any,
    y: Any,
    mask: Any,
    scratch: Any,
    taps: Taps,
    lo: float,
    hi: float,
    together: int,
    width: int,
    by_squares: int,
    threads: int,
    share: Share,
) -> None:
    """Write y = clip(conv(x, w) + b + r, lo, hi), and the bit lo < · < hi of each unit to mask.

    Parameters
    ----------
    u, b
        Weights that `pack_winograd` packed; the bias, padded with 0 to whole tiles.
    scratch
        `winograd_scratch` floats.
    together
        How many squares are transformed at a time: by each thread, or by all of them.
    width
        The number of blocks of channels whose products are held at once.
    by_squares
        1 if threads share the squares of y; 0 if they transform the same squares and share the channels.
    x, r, y, mask, taps, lo, hi, threads, share
        As in all kernels (`gbp.kernels`).
    """
    end = Forward(plane_of(y), plane_of(r), plane_of(mask), address_of(b), lo, hi)
    _compute(
        plane_of(x), len(y), address_of(u), address_of(scratch), taps, together, width, by_squares,
        threads, share, end,
    )  # fmt: skip


@kernel(
    ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, DENSE, TAPS, *[INT] * 4,
    calls=[multiply_tile, gather_patch, transform_patch, transform_product],
    split=1,
    phases=_phases,
)  # fmt: skip
def conv_winograd_bwd(
    gy: Any,
    u: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    taps: Taps,
    together: int,
    width: int,
    by_squares: int,
    threads: int,
    share: Share,
) -> None:
    """Write gx = conv(gy, w), or add it to gx with `accumulate`; then apply the gate of gx's own rectifier.

    Parameters
    ----------
    u
        The flipped, transposed weights, which `pack_winograd` packed.
    taps
        The window of that convolution.
    scratch, together, width, by_squares
        As in `conv_winograd_fwd`.
    gy, mask, gate, gx, accumulate, threads, share
        As in all kernels (`gbp.kernels`).
    """
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gx, mask), gate)
    _compute(
        plane_of(gy), len(gx), address_of(u), address_of(scratch), taps, together, width, by_squares,
        threads, share, end,
    )  # fmt: skip
