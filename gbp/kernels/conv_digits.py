"""Direct convolution on Intel's AMX, channels last: `conv_amx` with digits of whole numbers (`amx_digits`).

Four phases: facts about each row of x; the scale of each sample; splitting all pixels, if threads share
channels; and the sums.  A sample whose scale is 0 is left to `conv_amx`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .amx_beside import fetch_fwd
from .amx_digits import (
    DIGITS_TAIL,
    chunks_of_digits,
    multiply_digits_beside,
    split_digits,
)
from .amx_facts import FACTS, gather_facts, scale_from
from .amx_frame import FRAME, Frame
from .amx_shares import LEVELS, Form, Job, shares_of
from .codegen.gate import MASK
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, load_scalar, store_scalar
from .epilogue import EndFwd, Plane, end_run_fwd, finish_fwd, joins_fwd, run_fwd
from .taps import TAPS, Taps


@device_function
def _scale_of(job: Job, n: int) -> float:
    return load_scalar(job.scales + 4 * n)


_FORM = Form(split_digits, multiply_digits_beside, chunks_of_digits, _scale_of, DIGITS_TAIL)
_parts = shares_of(end_run_fwd, run_fwd, finish_fwd, fetch_fwd, joins_fwd, _FORM, "digits")


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
    N, OH, OW, O = y.shape
    source = Plane(
        address_of(x), x.strides[0], x.strides[1], x.strides[2], x.shape[1], x.shape[2], x.shape[3]
    )
    out = Plane(address_of(y), y.strides[0], y.strides[1], y.strides[2], OH, OW, O)
    residual = Plane(address_of(r), r.strides[0], r.strides[1], r.strides[2], OH, OW, r.shape[3])
    bits = Plane(address_of(mask), mask.strides[0], mask.strides[1], mask.strides[2], OH, OW, mask.shape[3])
    facts, own = address_of(scratch), address_of(scales)
    levels = facts + N * source.H * 4 * FACTS
    if share.phase == 0:
        rows = N * source.H
        for row in range(rows * share.first // threads, rows * share.last // threads):
            gather_facts(source, row // source.H, row % source.H, facts + row * 4 * FACTS)
    elif share.phase == 1:
        for n in range(N * share.first // threads, N * share.last // threads):
            scale = scale_from(facts + n * source.H * 4 * FACTS, source.H, enough, furthest)
            store_scalar(own + 4 * n, scale)
    else:
        sums = levels + members * LEVELS
        job = Job(address_of(w), N, OH, OW, O, taps, frame, band, sums, threads, members, own, levels)
        rest = Share(share.first, share.last, share.slot, share.phase - 2)
        _parts(source, job, EndFwd(address_of(b), lo, hi, residual, bits, out), rest)
