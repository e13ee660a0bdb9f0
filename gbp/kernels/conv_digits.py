"""Direct convolution on Intel's AMX, channels last: `conv_amx` with digits of whole numbers (`amx_digits`).

Four phases: facts about each row of x; the scale of each sample; splitting all pixels, if threads share
channels; and the sums.  A sample whose scale is 0 is left to another algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .amx_beside import fetch_bwd, fetch_fwd
from .amx_digits import (
    DIGITS_DEPTH,
    DIGITS_TAIL,
    chunks_of_digits,
    multiply_digits_beside,
    split_digits,
)
from .amx_facts import FACTS, gather_facts, scale_from
from .amx_frame import FRAME, Frame
from .amx_shares import LEVELS, Form, Job, shares_of
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, load_scalar, store_scalar
from .codegen.views import part_of, targets_of
from .density import CHOSEN
from .epilogue import (
    EndBwd,
    EndFwd,
    Plane,
    end_run_bwd,
    end_run_fwd,
    finish_bwd,
    finish_fwd,
    joins_bwd,
    joins_fwd,
    plane_of,
    run_bwd,
    run_fwd,
)
from .taps import TAPS, Taps


@device_function
def _scale_of(job: Job, n: int) -> float:
    return load_scalar(job.scales + 4 * n)


_FORM = Form(split_digits, multiply_digits_beside, chunks_of_digits, _scale_of, DIGITS_TAIL)
_parts_fwd = shares_of(end_run_fwd, run_fwd, finish_fwd, fetch_fwd, joins_fwd, _FORM, "digits_fwd")
_parts_bwd = shares_of(end_run_bwd, run_bwd, finish_bwd, fetch_bwd, joins_bwd, _FORM, "digits_bwd")


@device_function
def _balance(w: Any, x: Plane) -> int:
    """Address of what the channels of x are multiplied by: at the end of the packed weights."""
    return address_of(w) + 4 * (w.size - chunks_of_digits(x.C) * DIGITS_DEPTH)


@device_function
def _gather(x: Plane, N: int, facts: int, balance: int, threads: int, share: Share) -> None:
    """The first phase: facts about the rows of x."""
    for row in range(*part_of(N * x.H, share, threads)):
        gather_facts(x, row // x.H, row % x.H, facts + row * 4 * FACTS, balance)


@device_function
def _rest(share: Share) -> Share:
    """A share of the phases of `shares_of`, which follow."""
    return Share(share.first, share.last, share.slot, share.phase - 2)


def _phases(args: Sequence[Any]) -> int:
    """The third splits the pixels, where threads share channels."""
    return 3 if args[-3] else 4


@kernel(
    ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT, FLOAT, FLOAT, DENSE, DENSE,
    TAPS, FRAME, INT, INT, INT,
    phases=_phases,
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
    enough: float,
    furthest: float,
    scales: Any,
    scratch: Any,
    taps: Taps,
    frame: Frame,
    band: int,
    members: int,
    threads: int,
    share: Share,
) -> None:
    """`conv_amx_fwd` for the samples that digits suit.  Writes the scale of each sample to `scales`.

    w is packed by `pack_digits`.  enough, furthest: see `scale_from`.  scratch holds the facts about the rows
    of x, LEVELS bytes a thread, and `amx_scratch` for chunks of DIGITS_DEPTH channels.
    """
    N, H, W, C = y.shape
    source, facts, own = plane_of(x), address_of(scratch), address_of(scales)
    balance = _balance(w, source)
    if share.phase == 0:
        _gather(source, N, facts, balance, threads, share)
    elif share.phase == 1:
        for n in range(*part_of(N, share, threads)):
            rows = facts + n * source.H * 4 * FACTS
            store_scalar(own + 4 * n, scale_from(rows, source.H, enough, furthest))
    else:
        levels = facts + N * source.H * 4 * FACTS
        sums = levels + members * LEVELS
        job = Job(
            address_of(w), N, H, W, C, taps, frame, band, sums, threads, members, own, levels, balance
        )  # fmt: skip
        end = EndFwd(address_of(b), lo, hi, plane_of(r), plane_of(mask), plane_of(y))
        _parts_fwd(source, job, end, _rest(share))


@kernel(
    ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, FLOAT, FLOAT, DENSE, CHOSEN, DENSE, TAPS, FRAME,
    INT, INT, INT,
    phases=_phases,
)  # fmt: skip
def conv_digits_bwd(
    gy: Any,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    enough: float,
    furthest: float,
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

    Writes 1 to done[n] where it computes row n, else 0.  The other arguments are those of `conv_digits_fwd`.
    """
    N, H, W, C = gx.shape
    source, facts, own = plane_of(gy), address_of(scratch), address_of(scales)
    balance = _balance(w, source)
    if share.phase == 0:
        _gather(source, N, facts, balance, threads, share)
    elif share.phase == 1:
        for n in range(*part_of(N, share, threads)):
            scale = scale_from(facts + n * source.H * 4 * FACTS, source.H, enough, furthest)
            store_scalar(own + 4 * n, scale)
            done[n] = 1 if scale != 0 else 0
    else:
        levels = facts + N * source.H * 4 * FACTS
        sums = levels + members * LEVELS
        job = Job(
            address_of(w), N, H, W, C, taps, frame, band, sums, threads, members, own, levels, balance
        )  # fmt: skip
        end = EndBwd(accumulate, gate, targets_of(gx, mask), plane_of(mask), plane_of(gx))
        _parts_bwd(source, job, end, _rest(share))
