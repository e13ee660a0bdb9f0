"""Direct convolution on Intel's AMX, channels last: the sums of `conv_direct` at the accuracy of float32.

    y[n, oh, ow, o]  = Σ_{i, j, c}  x[n, oh·sh + i·dh − top, ow·sw + j·dw − left, c] · w[o, c, i, j]  +  b[o]

Values are split into three parts of bfloat16 (`codegen.amx`).  The split pixels, with padding, are written
into a *frame*: for each chunk of DEPTH channels and each part, a row of 64 bytes a pixel.  So a tile of 16
neighbouring pixels is read in place, for every tap.  The weights are split when they are packed.

Where the stride is 1, all pixels of a frame are one line, and a tile may go on in the next row of it: the few
sums that belong to padding are not written.  With other strides each row of the output is a line.

All outputs are summed in the same order (`amx_sums`), whatever the threads, the batch or the pixel's place in
a tile: equal windows give equal outputs at every position.

`amx_shares` has how threads share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import float32

from .amx_beside import Scales
from .amx_frame import FRAME, Frame, split_row
from .amx_shares import Form, Job, shares_of
from .amx_sums import STEP, SUMS, SUMS_ROW, chunks, multiply_beside
from .codegen.amx import is_usable
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, load, load_scalar
from .codegen.tile import TILE_CHANNELS
from .codegen.work import targets_of
from .epilogue import Forward, backward, plane_of
from .taps import TAPS, Taps


@device_function
def _scale_of(job: Job, n: int) -> float:
    """1, or 0 for a sample that `conv_digits` computes."""
    done = job.scales != 0 and load_scalar(job.scales + 4 * n) != 0
    return float32(0.0 if done else 1.0)


@device_function
def _sum_at(s: int, c: int, c0: int, scales: Scales) -> Any:
    return load(s + 4 * c)


#: Pixels whose epilogue is done between two groups of multiplications.
_PIECE = 4
_FORM = Form(
    split_row, chunks, _scale_of, _sum_at,
    TILE_CHANNELS, STEP, 4 * SUMS, SUMS_ROW, _PIECE, 1,
)  # fmt: skip
_shares = shares_of(_FORM, multiply_beside, "amx")


def _phases(args: Sequence[Any]) -> int:
    """Two where threads share channels: the first splits the pixels."""
    band = args[-3]
    return 1 if band else 2


@kernel(
    ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT, DENSE, DENSE, TAPS, FRAME,
    INT, INT, INT,
    phases=_phases, needs=is_usable,
)  # fmt: skip
def conv_amx_fwd(
    x: Any,
    w: Any,
    b: Any,
    r: Any,
    y: Any,
    mask: Any,
    lo: float,
    hi: float,
    scales: Any,
    scratch: Any,
    taps: Taps,
    frame: Frame,
    band: int,
    members: int,
    threads: int,
    share: Share,
) -> None:
    """Write y = clip(conv(x, w) + b + r, lo, hi), and the bit lo < · < hi of each unit to mask.

    Parameters
    ----------
    w, b
        Weights that `pack_amx` packed; the bias, padded with 0 to whole blocks of TILE_CHANNELS.
    scales
        A number for each sample, which is left out if that is not 0; empty to compute all.
    scratch
        `amx_scratch` floats.
    frame
        The frame that windows read.
    band
        How many rows of y a thread computes at once (`band_of`); 0 if threads share channels.
    members
        How many threads there are.
    x, r, y, mask, lo, hi, taps, threads, share
        As in all kernels (`gbp.kernels`).
    """
    left_out = address_of(scales) if scales.size else 0
    N, H, W, C = y.shape
    work = address_of(scratch)
    job = Job(address_of(w), N, H, W, C, taps, frame, band, work, threads, members, left_out, 0, 0)
    end = Forward(plane_of(y), plane_of(r), plane_of(mask), address_of(b), lo, hi)
    _shares(plane_of(x), job, end, share)


@kernel(
    ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, DENSE, TAPS, FRAME, INT, INT, INT,
    phases=_phases, needs=is_usable,
)  # fmt: skip
def conv_amx_bwd(
    gy: Any,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    scratch: Any,
    taps: Taps,
    frame: Frame,
    band: int,
    members: int,
    threads: int,
    share: Share,
) -> None:
    """Write gx = conv(gy, w), or add it to gx with `accumulate`; then apply the gate of gx's own rectifier.

    Parameters
    ----------
    w
        The flipped, transposed weights, which `pack_amx` packed.
    taps
        The window of the backward pass; its stride is 1.
    scratch, frame, band, members
        As in `conv_amx_fwd`.
    gy, mask, gate, gx, accumulate, threads, share
        As in all kernels (`gbp.kernels`).
    """
    N, H, W, C = gx.shape
    job = Job(address_of(w), N, H, W, C, taps, frame, band, address_of(scratch), threads, members, 0, 0, 0)
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gx, mask), gate)
    _shares(plane_of(gy), job, end, share)
