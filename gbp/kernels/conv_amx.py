"""Direct convolution on Intel's AMX, channels last: the sums of `conv_direct` at the accuracy of float32.

    y[n, oh, ow, o]  = Σ_{i, j, c}  x[n, oh·sh + i·dh − top, ow·sw + j·dw − left, c] · w[o, c, i, j]  +  b[o]

Values are split into three parts of bfloat16 (`codegen.amx`).  The split pixels, with padding, are written
into a *frame*: for each chunk of DEPTH channels and each part, a row of 64 bytes a pixel.  So a tile of 16
neighbouring pixels is read in place, for every tap.  The weights are split when they are packed.

Where the stride is 1, all pixels of a frame are one line, and a tile may go on in the next row of it: the few
sums that belong to padding are not written.  With other strides each row of the output is a line.

All outputs are summed in the same order (`amx_sums`), whatever the threads, the batch or the pixel's place in
a tile: equal windows give equal outputs at every position.

Threads share the rows of the output, and each splits the pixels that it needs, few enough for its cache.  If
the weights are larger than the plane, one phase splits all pixels, and in the next threads share the output
channels, so that each weight is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numba import types

from .amx_sums import STEP, SUMS, SUMS_ROW, chunks, chunks_of, multiply_parts
from .codegen.amx import DEPTH, PARTS, ROW_BYTES, ROWS, amx_begin, amx_end, store_parts
from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel, one_of_many
from .codegen.packing import Share
from .codegen.simd import address_of, load, load_some
from .codegen.tile import TILE_CHANNELS
from .codegen.views import targets_of, zero_run
from .epilogue import EndBwd, EndFwd, Plane, end_run_bwd, end_run_fwd
from .taps import TAPS, Taps

#: Bytes of split pixels that a thread holds at once; the cores with AMX have 2 MiB of second-level cache.
_HELD = 3 * 2**18
#: Bytes of weights that it keeps there; a tile of pixels runs through them before the next.
_WEIGHTS = 2**20
_ROW = ROW_BYTES // 4


class Frame(NamedTuple):
    """Where windows read: sides of the padded plane, and where pixel (0, 0) of x is in it."""

    rows: int
    columns: int
    top: int
    left: int


FRAME = types.NamedUniTuple(types.int64, 4, Frame)


def band_of(C: int, frame: Frame, taps: Taps) -> int:
    """How many rows of the output a thread computes at once, so that their split pixels stay in its cache."""
    extent = (taps.rows - 1) * taps.dilation_h + 1
    rows = _HELD // (chunks_of(C) * PARTS * ROW_BYTES * frame.columns)
    return max(1, (rows - extent) // taps.stride_h + 1)


def _positions_of(rows: int, columns: int, stride: int) -> int:
    """Pixels of a frame, and room for those that the last tile reads beyond its line.

    The rows of the same pixels in different parts must not share sets of a first-level cache, of which there
    are 64.
    """
    return (rows * columns + ROWS * stride + 42) // 64 * 64 + 21


_positions = device_function(_positions_of)


def amx_scratch(C: int, frame: Frame, taps: Taps, band: int, threads: int) -> tuple[int, int]:
    """Floats of scratch: (a fixed number, more for each sample).  `band`: 0 if threads share channels."""
    sums, split = threads * SUMS, chunks_of(C) * PARTS * _ROW
    if not band:
        return sums, split * _positions_of(frame.rows, frame.columns, taps.stride_w)
    rows = (band - 1) * taps.stride_h + (taps.rows - 1) * taps.dilation_h + 1
    return sums + threads * split * _positions_of(rows, frame.columns, taps.stride_w), 0


@device_function
def _zero_parts(to: int, count: int, part: int) -> None:
    for k in range(PARTS):
        zero_run(to + k * part, count * _ROW)


@device_function
def _split_pixels(x: int, plane: Plane, count: int, to: int, part: int) -> None:
    """Split `count` pixels of a plane from address x on."""
    for c in range(0, plane.C, DEPTH):
        pixel, out = x + 4 * c, to + c // DEPTH * PARTS * part
        if c + DEPTH <= plane.C:
            for _ in range(count):
                store_parts(out, part, load(pixel), load(pixel + 4 * LANES))
                pixel, out = pixel + plane.pixel, out + ROW_BYTES
        else:
            left = plane.C - c
            for _ in range(count):
                store_parts(out, part, load_some(pixel, left), load_some(pixel + 4 * LANES, left - LANES))
                pixel, out = pixel + plane.pixel, out + ROW_BYTES


@device_function
def _split_rows(x: Plane, n: int, frame: Frame, begin: int, rows: int, to: int, positions: int) -> None:
    """Split `rows` rows of sample n's frame, from row `begin` on, to address `to`."""
    part = positions * ROW_BYTES
    start = min(frame.columns, max(0, frame.left))
    stop = max(start, min(frame.columns, frame.left + x.W))
    for row in range(rows):
        h = begin + row - frame.top
        low, high = start, stop
        if h < 0 or h >= x.H:
            low, high = frame.columns, frame.columns
        line = x.address + n * x.image + h * x.line + (low - frame.left) * x.pixel
        out = to + row * frame.columns * ROW_BYTES
        for c in range(0, x.C, DEPTH):
            chunk = out + c // DEPTH * PARTS * part
            _zero_parts(chunk, low, part)
            _zero_parts(chunk + high * ROW_BYTES, frame.columns - high, part)
        for first in range(low, high, ROWS):  # few pixels at a time: each may be in a page of its own
            last = min(high, first + ROWS)
            _split_pixels(line + (first - low) * x.pixel, x, last - first, out + first * ROW_BYTES, part)


class Job(NamedTuple):
    """Numbers that are the same for all threads.

    `w`: address of the weights.  `H`, `W`, `C`: sizes of the output.  `band`: see `band_of`; 0 if threads
    share channels.  `scratch`: its address.  `parts`: into how many parts the work is cut.
    """

    w: int
    N: int
    H: int
    W: int
    C: int
    taps: Taps
    frame: Frame
    band: int
    scratch: int
    parts: int
    threads: int


@device_function
def _rows_read(rows: int, taps: Taps) -> int:
    """How many rows of the frame so many rows of the output read."""
    return (rows - 1) * taps.stride_h + (taps.rows - 1) * taps.dilation_h + 1


@device_function
def _together(channels: int, taps: Taps) -> int:
    """How many blocks of weights stay in a cache; a tile of pixels runs through them before the next tile."""
    return max(1, _WEIGHTS // (chunks(channels) * taps.rows * taps.columns * STEP))


@device_function
def _split_share(x: Plane, job: Job, to: int, t: int) -> None:
    """Split part t of the rows of all frames."""
    frame = job.frame
    positions = _positions(frame.rows, frame.columns, job.taps.stride_w)
    rows, sample = job.N * frame.rows, chunks(x.C) * PARTS * positions * ROW_BYTES
    for q in range(rows * t // job.parts, rows * (t + 1) // job.parts):
        n, row = q // frame.rows, q % frame.rows
        out = to + n * sample + row * frame.columns * ROW_BYTES
        _split_rows(x, n, frame, row, 1, out, positions)


def _shares_of(end_run: Any, name: str) -> Any:
    """Make the functions for one part of the work, by rows and by channels.  `end_run` is the epilogue."""

    @one_of_many(f"end_tile_{name}")
    def end_tile(
        s: int, tile: int, across: int, length: int, columns: int, c0: int, n: int, h: int, W: int, end: Any
    ) -> None:
        """A line has `length` pixels in `across` tiles; rows, W pixels each, begin every `columns` of them.

        The pixels of a tile are those of rows h, h + 1, … of sample n; s is the address of its sums.
        """
        start = tile % across * ROWS
        stop = min(length, start + ROWS)
        row, column = h + tile // across + start // columns, start % columns
        while start < stop:
            count = min(stop - start, columns - column)
            if column < W:
                end_run(s, min(count, W - column), c0, n, row, column, end)
            s, start = s + count * SUMS_ROW, start + count
            row, column = row + 1, 0

    @one_of_many(f"finish_{name}")
    def finish(
        split: int,
        positions: int,
        I: int,
        job: Job,
        end: Any,
        n: int,
        h: int,
        rows: int,
        blocks: Any,
        sums: int,
    ) -> None:
        """Compute blocks of channels of rows [h, h + rows) of sample n, whose pixels are at `split`."""
        taps, columns = job.taps, job.frame.columns
        line, pixel = taps.stride_h * columns * ROW_BYTES, taps.stride_w * ROW_BYTES
        lines, length, columns_out = rows, job.W, job.W
        if taps.stride_h == 1 and taps.stride_w == 1:  # one line through the whole frame
            lines, length, columns_out = 1, (rows - 1) * columns + job.W, columns
        across = (length + ROWS - 1) // ROWS
        part, count = positions * ROW_BYTES, chunks(I)
        weights = count * taps.rows * taps.columns * STEP
        for k in range(0, lines * across, 2):
            two = 1 if k + 1 < lines * across else 0
            a = split + k // across * line + k % across * ROWS * pixel
            b = split + (k + 1) // across * line + (k + 1) % across * ROWS * pixel
            for block in range(blocks[0], blocks[1]):
                c0 = block * TILE_CHANNELS
                multiply_parts(
                    two, job.C - c0, a, b, pixel, part, PARTS * part, count,
                    taps.rows, taps.dilation_h * columns * ROW_BYTES,
                    taps.columns, taps.dilation_w * ROW_BYTES,
                    job.w + block * weights, sums,
                )  # fmt: skip
                for tile in range(k, k + 1 + two):
                    s = sums + (tile - k) * ROWS * SUMS_ROW
                    end_tile(s, tile, across, length, columns_out, c0, n, h, job.W, end)

    @one_of_many(f"by_rows_{name}")
    def by_rows(x: Plane, job: Job, end: Any, t: int, slot: int) -> None:
        """Compute part t of the rows of all samples, a band at a time."""
        sums = job.scratch + slot * 4 * SUMS
        positions = _positions(_rows_read(job.band, job.taps), job.frame.columns, job.taps.stride_w)
        split = job.scratch + job.threads * 4 * SUMS
        split += slot * chunks(x.C) * PARTS * positions * ROW_BYTES
        blocks, together = (job.C + TILE_CHANNELS - 1) // TILE_CHANNELS, _together(x.C, job.taps)
        q, stop = job.N * job.H * t // job.parts, job.N * job.H * (t + 1) // job.parts
        while q < stop:
            n, h = q // job.H, q % job.H
            left = min(stop - q, job.H - h)
            bands = (left + job.band - 1) // job.band
            rows = (left + bands - 1) // bands
            reads = _rows_read(rows, job.taps)
            _split_rows(x, n, job.frame, h * job.taps.stride_h, reads, split, positions)
            for block in range(0, blocks, together):
                own = block, min(blocks, block + together)
                finish(split, positions, x.C, job, end, n, h, rows, own, sums)
            q += rows

    @one_of_many(f"by_channels_{name}")
    def by_channels(x: Plane, job: Job, end: Any, t: int, slot: int) -> None:
        """Compute part t of the channels of all samples, whose pixels are split."""
        sums = job.scratch + slot * 4 * SUMS
        positions = _positions(job.frame.rows, job.frame.columns, job.taps.stride_w)
        sample = chunks(x.C) * PARTS * positions * ROW_BYTES
        blocks = (job.C + TILE_CHANNELS - 1) // TILE_CHANNELS
        stop, together = blocks * (t + 1) // job.parts, _together(x.C, job.taps)
        for block in range(blocks * t // job.parts, stop, together):
            for n in range(job.N):
                split, own = (
                    job.scratch + job.threads * 4 * SUMS + n * sample,
                    (block, min(stop, block + together)),
                )
                finish(split, positions, x.C, job, end, n, 0, job.H, own, sums)

    @one_of_many(f"amx_parts_{name}")
    def parts(x: Plane, job: Job, end: Any, share: Share) -> None:
        amx_begin()
        for t in range(share.first, share.last):
            if job.band:
                by_rows(x, job, end, t, share.slot)
            elif share.phase == 0:
                _split_share(x, job, job.scratch + job.threads * 4 * SUMS, t)
            else:
                by_channels(x, job, end, t, share.slot)
        amx_end()

    return parts


_parts_fwd, _parts_bwd = _shares_of(end_run_fwd, "fwd"), _shares_of(end_run_bwd, "bwd")


def _phases(args: Sequence[Any]) -> int:
    """Two where threads share channels: the first splits the pixels."""
    return 1 if args[-3] else 2


@kernel(
    ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT, DENSE, TAPS, FRAME,
    INT, INT, INT,
    calls=[multiply_parts],
    phases=_phases,
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
    scratch: Any,
    taps: Taps,
    frame: Frame,
    band: int,
    members: int,
    threads: int,
    share: Share,
) -> None:
    """Write y = clip(conv(x, w) + b + r, lo, hi), and the bit lo < · < hi of each unit to mask.

    r and mask may be empty.  w is packed by `pack_amx`; b is padded with 0 to whole blocks of TILE_CHANNELS;
    scratch holds `amx_scratch`.  `members`: how many threads there are.
    """
    N, OH, OW, O = y.shape
    source = Plane(
        address_of(x), x.strides[0], x.strides[1], x.strides[2], x.shape[1], x.shape[2], x.shape[3]
    )
    out = Plane(address_of(y), y.strides[0], y.strides[1], y.strides[2], OH, OW, O)
    residual = Plane(address_of(r), r.strides[0], r.strides[1], r.strides[2], OH, OW, r.shape[3])
    bits = Plane(address_of(mask), mask.strides[0], mask.strides[1], mask.strides[2], OH, OW, mask.shape[3])
    job = Job(address_of(w), N, OH, OW, O, taps, frame, band, address_of(scratch), threads, members)
    _parts_fwd(source, job, EndFwd(address_of(b), lo, hi, residual, bits, out), share)


@kernel(
    ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, DENSE, TAPS, FRAME, INT, INT, INT,
    calls=[multiply_parts],
    phases=_phases,
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

    w is packed by `pack_amx` from the flipped, transposed weights; the window has stride 1.
    """
    N, H, W, C = gx.shape
    source = Plane(
        address_of(gy), gy.strides[0], gy.strides[1], gy.strides[2], gy.shape[1], gy.shape[2], gy.shape[3]
    )
    out = Plane(address_of(gx), gx.strides[0], gx.strides[1], gx.strides[2], H, W, C)
    bits = Plane(address_of(mask), mask.strides[0], mask.strides[1], mask.strides[2], H, W, mask.shape[3])
    job = Job(address_of(w), N, H, W, C, taps, frame, band, address_of(scratch), threads, members)
    _parts_bwd(source, job, EndBwd(accumulate, gate, targets_of(gx, mask), bits, out), share)
