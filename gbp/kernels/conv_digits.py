"""Direct convolution on Intel's AMX, channels last: `conv_amx` with digits of whole numbers (`amx_digits`).

Four phases: facts about each row of x; the scale of each sample; splitting all pixels, if threads share
channels; and the sums.  A sample whose scale is 0 is left to another algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import float32

from .amx_beside import Scales
from .amx_digits import (
    DIGITS_BLOCK,
    DIGITS_STEP,
    LEVELS,
    balance_at,
    chunks_of_digits,
    multiply_digits_beside,
    split_row_of_digits,
    sum_of_levels,
    weight_scales_at,
)
from .amx_frame import FRAME, Frame
from .amx_scale import (
    FACTS,
    NONE,
    exceeds,
    gather_facts,
    largest_in,
    least_power_in,
    leave_out_facts,
    scale_from,
)
from .amx_shares import Form, Job, shares_of
from .codegen.amx import ROW_BYTES, has_bytes
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, broadcast, load, load_scalar, store_scalar
from .codegen.work import part_of, targets_of
from .conditions import WORDS
from .epilogue import Forward, Plane, backward, plane_of
from .taps import TAPS, Taps


@device_function
def _scale_of(job: Job, n: int) -> float:
    return load_scalar(job.scales + 4 * n)


@device_function
def _sum_at(s: int, c: int, c0: int, scales: Scales) -> Any:
    """The sums of a pixel in a block, whose first level is at s."""
    factor = load(scales.weights + 4 * c0) * broadcast(scales.values)
    return sum_of_levels(s, scales.sample) * factor


#: Pixels whose epilogue is done between two groups of multiplications.
_PIECE = 8
#: A pair of tiles runs through eight blocks: it stays in the cache, and the lines of y that are written are
#: neighbours.  The weights of more blocks would leave a second-level cache.
_FORM = Form(
    split_row_of_digits, chunks_of_digits, _scale_of, _sum_at,
    DIGITS_BLOCK, DIGITS_STEP, LEVELS, ROW_BYTES, _PIECE, 8,
)  # fmt: skip
_shares = shares_of(_FORM, multiply_digits_beside, "digits")


@device_function
def _gather(
    x: Plane, N: int, facts: int, balance: int, max_crest_4: float, threads: int, share: Share
) -> None:
    """The first phase: facts about the rows of x.

    Where the rows of a sample before have shown that its scale is 0, a row is not read.
    """
    sample, largest, least_power = -1, float32(0), float32(NONE)
    for row in range(*part_of(N * x.H, share, threads)):
        n, to = row // x.H, facts + row * 4 * FACTS
        if n != sample:
            sample, largest, least_power = n, float32(0), float32(NONE)
        if exceeds(largest, least_power, max_crest_4):
            leave_out_facts(to)
            continue
        gather_facts(x, n, row % x.H, to, balance)
        largest, least_power = max(largest, largest_in(to)), min(least_power, least_power_in(to))


@device_function
def _find_scales(
    x: Plane,
    N: int,
    facts: int,
    scales: int,
    max_crest_3: float,
    max_crest_4: float,
    threads: int,
    share: Share,
) -> None:
    """The second phase: the scale of each sample."""
    for n in range(*part_of(N, share, threads)):
        rows = facts + n * x.H * 4 * FACTS
        store_scalar(scales + 4 * n, scale_from(rows, x.H, max_crest_3, max_crest_4))


@device_function
def _rest(share: Share) -> Share:
    """A share of the phases of `shares_of`, which follow."""
    return Share(share.first, share.last, share.slot, share.phase - 2)


def _phases(args: Sequence[Any]) -> int:
    """The third splits the pixels, where threads share channels."""
    band = args[-3]
    return 3 if band else 4


@kernel(
    ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT, FLOAT, FLOAT, DENSE, DENSE,
    TAPS, FRAME, INT, INT, INT,
    phases=_phases, needs=has_bytes,
)  # fmt: skip
def conv_digits_fwd(
    x: Any,
    w: Any,
    b: Any,
    r: Any,
    y: Any,
    mask: Any,
    lo: float,
    hi: float,
    max_crest_3: float,
    max_crest_4: float,
    scales: Any,
    scratch: Any,
    taps: Taps,
    frame: Frame,
    band: int,
    members: int,
    threads: int,
    share: Share,
) -> None:
    """`conv_amx_fwd` for the samples that digits suit.

    Parameters
    ----------
    w
        Weights that `pack_digits` packed.
    max_crest_3, max_crest_4
        The largest crests for three and for four levels (`scale_from`).
    scales
        Receives the scale of each sample, 0 for one that is left out.
    scratch
        FACTS floats for each row of x, then `amx_scratch` for chunks of DIGITS_DEPTH channels and sums of
        LEVELS bytes.
    b, frame, band, members
        As in `conv_amx_fwd`.
    x, r, y, mask, lo, hi, taps, threads, share
        As in all kernels (`gbp.kernels`).
    """
    N, H, W, C = y.shape
    source, facts, own = plane_of(x), address_of(scratch), address_of(scales)
    balance = balance_at(address_of(w), w.size, source.C)
    if share.phase == 0:
        _gather(source, N, facts, balance, max_crest_4, threads, share)
    elif share.phase == 1:
        _find_scales(source, N, facts, own, max_crest_3, max_crest_4, threads, share)
    else:
        sums = facts + N * source.H * 4 * FACTS
        weights = weight_scales_at(address_of(w), w.size, C, source.C)
        job = Job(address_of(w), N, H, W, C, taps, frame, band, sums, threads, members, own, balance, weights)
        end = Forward(plane_of(y), plane_of(r), plane_of(mask), address_of(b), lo, hi)
        _shares(source, job, end, _rest(share))


@kernel(
    ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, FLOAT, FLOAT, DENSE, WORDS, DENSE, TAPS, FRAME,
    INT, INT, INT,
    phases=_phases, needs=has_bytes,
)  # fmt: skip
def conv_digits_bwd(
    gy: Any,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    max_crest_3: float,
    max_crest_4: float,
    scales: Any,
    done: Any,
    scratch: Any,
    taps: Taps,
    frame: Frame,
    band: int,
    members: int,
    threads: int,
    share: Share,
) -> None:
    """`conv_amx_bwd` for the rows of gy that digits suit: those without negative values first of all.

    Parameters
    ----------
    w
        The flipped, transposed weights, which `pack_digits` packed.
    scales
        Receives the scale of each row.
    done
        Receives 1 for each row that is computed, 0 for the others.
    max_crest_3, max_crest_4, scratch, frame, band, members
        As in `conv_digits_fwd`.
    gy, mask, gate, gx, accumulate, taps, threads, share
        As in all kernels (`gbp.kernels`).
    """
    N, H, W, C = gx.shape
    source, facts, own = plane_of(gy), address_of(scratch), address_of(scales)
    balance = balance_at(address_of(w), w.size, source.C)
    if share.phase == 0:
        _gather(source, N, facts, balance, max_crest_4, threads, share)
    elif share.phase == 1:
        _find_scales(source, N, facts, own, max_crest_3, max_crest_4, threads, share)
        for n in range(*part_of(N, share, threads)):
            done[n] = 1 if load_scalar(own + 4 * n) != 0 else 0
    else:
        sums = facts + N * source.H * 4 * FACTS
        weights = weight_scales_at(address_of(w), w.size, C, source.C)
        job = Job(address_of(w), N, H, W, C, taps, frame, band, sums, threads, members, own, balance, weights)
        end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gx, mask), gate)
        _shares(source, job, end, _rest(share))
