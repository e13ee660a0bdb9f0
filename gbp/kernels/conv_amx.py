"""Direct convolution on Intel's AMX, channels last: the sums of `conv_direct` at the accuracy of float32.

    y[n, oh, ow, o]  = Σ_{i, j, c}  x[n, oh·sh + i·dh − top, ow·sw + j·dw − left, c] · w[o, c, i, j]  +  b[o]

Values are split into three parts of bfloat16 (`codegen.amx`).  The split pixels, with padding, are written
into a *frame*: for each chunk of DEPTH channels and each part, a row of 64 bytes a pixel.  So a tile of 16
neighbouring pixels is read in place, for every tap.  The weights are split when they are packed.

Where the stride is 1, all pixels of a frame are one line, and a tile may go on in the next row of it: the few
sums that belong to padding are not written.  With other strides each row of the output is a line.

All outputs are summed in the same order (`amx_sums`), whatever the threads, the batch or the pixel's place in
a tile: equal windows give equal outputs at every position.

The epilogue of a pair of tiles is done beside the multiplications of the next pair.  The arrays that the next
pair's own epilogue reads and writes are fetched there, too.

Threads share the rows of the output, and each splits the pixels that it needs, few enough for its cache.  If
the weights are larger than the plane, one phase splits all pixels, and in the next threads share the output
channels, so that each weight is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .amx_beside import BLOCK_BYTES, PIECE, Beside, fetch_bwd, fetch_fwd
from .amx_frame import FRAME, Frame, positions_in, positions_of, split_rows
from .amx_sums import STEP, SUMS, SUMS_ROW, Sum, chunks, chunks_of, multiply_beside
from .codegen.amx import PARTS, ROW_BYTES, ROWS, amx_begin, amx_end
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel, one_of_many
from .codegen.packing import Share
from .codegen.simd import address_of
from .codegen.tile import TILE_CHANNELS
from .codegen.views import targets_of
from .epilogue import (
    EndBwd,
    EndFwd,
    Plane,
    Run,
    end_run_bwd,
    end_run_fwd,
    finish_bwd,
    finish_fwd,
    joins_bwd,
    joins_fwd,
    run_bwd,
    run_fwd,
)
from .taps import TAPS, Taps

#: Bytes of split pixels that a thread holds at once; the cores with AMX have 2 MiB of second-level cache.
_HELD = 3 * 2**18
#: Bytes of weights that it keeps there where a frame is larger than the cache: a tile of pixels runs through
#: them before the next.
_WEIGHTS = 2**20


def band_of(C: int, frame: Frame, taps: Taps) -> int:
    """How many rows of the output a thread computes at once, so that their split pixels stay in its cache."""
    extent = (taps.rows - 1) * taps.dilation_h + 1
    # Without a halo there is nothing to lose by few rows, and more of what the epilogue touches stays too.
    held = _HELD if extent > 1 else _HELD // 4
    rows = held // (chunks_of(C) * PARTS * ROW_BYTES * frame.columns)
    return max(1, (rows - extent) // taps.stride_h + 1)


def amx_scratch(C: int, frame: Frame, taps: Taps, band: int, threads: int) -> tuple[int, int]:
    """Floats of scratch: (a fixed number, more for each sample).  `band`: 0 if threads share channels."""
    sums, split = threads * 2 * SUMS, chunks_of(C) * PARTS * ROW_BYTES // 4
    if not band:
        return sums, split * positions_of(frame.rows, frame.columns, taps.stride_w)
    rows = (band - 1) * taps.stride_h + (taps.rows - 1) * taps.dilation_h + 1
    return sums + threads * split * positions_of(rows, frame.columns, taps.stride_w), 0


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
def _split_share(x: Plane, job: Job, to: int, t: int) -> None:
    """Split part t of the rows of all frames."""
    frame = job.frame
    positions = positions_in(frame.rows, frame.columns, job.taps.stride_w)
    rows, sample = job.N * frame.rows, chunks(x.C) * PARTS * positions * ROW_BYTES
    for q in range(rows * t // job.parts, rows * (t + 1) // job.parts):
        n, row = q // frame.rows, q % frame.rows
        out = to + n * sample + row * frame.columns * ROW_BYTES
        split_rows(x, n, frame, row, 1, out, positions)


class Tiles(NamedTuple):
    """How the pixels of a band lie in tiles, and which pixels of y they are.

    A line of the frame has `length` pixels in `across` tiles; rows, W pixels each, begin every `columns` of
    them.  The band begins at row h of sample n.
    """

    across: int
    length: int
    columns: int
    n: int
    h: int
    W: int


def _shares_of(end_run: Any, run_of: Any, finish_run: Any, fetch: Any, joins: Any, name: str) -> Any:
    """Make the functions for one part of the work, by rows and by channels, from those of `epilogue`."""

    @one_of_many(f"end_tile_{name}")
    def end_tile(s: int, tile: int, c0: int, tiles: Tiles, end: Any) -> None:
        """Finish the pixels of a tile, whose sums are at s."""
        start = tile % tiles.across * ROWS
        stop = min(tiles.length, start + ROWS)
        row, column = tiles.h + tile // tiles.across + start // tiles.columns, start % tiles.columns
        while start < stop:
            count = min(stop - start, tiles.columns - column)
            if column < tiles.W:
                end_run(s, min(count, tiles.W - column), c0, tiles.n, row, column, end)
            s, start = s + count * SUMS_ROW, start + count
            row, column = row + 1, 0

    @one_of_many(f"some_{name}", inline=True)
    def some(run: Run, beside: Any) -> Run:
        if run.pixels:
            fetch(run, beside)
            run = finish_run(run, PIECE, beside.end)
        return run

    @one_of_many(f"rest_{name}")
    def rest(run: Run, beside: Any) -> None:
        while run.pixels:
            run = some(run, beside)

    @one_of_many(f"run_from_{name}")
    def run_from(s: int, k: int, two: int, c0: int, tiles: Tiles, end: Any) -> Run:
        """The pixels of one or two tiles of a line, from tile k on."""
        start = k % tiles.across * ROWS
        stop = min(tiles.length, start + (1 + two) * ROWS)
        row, column = tiles.h + k // tiles.across + start // tiles.columns, start % tiles.columns
        if column >= tiles.W:  # it begins in padding
            skipped = tiles.columns - column
            s, start, row, column = s + skipped * SUMS_ROW, start + skipped, row + 1, 0
        pixels, at = 0, start - column
        while at < stop:
            pixels += min(stop, at + tiles.W) - max(start, at)
            at += tiles.columns
        gap = (tiles.columns - tiles.W) * SUMS_ROW
        return run_of(s, pixels, gap, c0, tiles.n, row, column, end)

    multiply = multiply_beside(some, name)

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
        width: int,
        sums: int,
    ) -> None:
        """Compute blocks of channels of rows [h, h + rows) of sample n, whose pixels are at `split`.

        A pair of tiles runs through `width` blocks before the next pair.
        """
        taps, columns = job.taps, job.frame.columns
        line, pixel = taps.stride_h * columns * ROW_BYTES, taps.stride_w * ROW_BYTES
        lines, length, columns_out = rows, job.W, job.W
        if taps.stride_h == 1 and taps.stride_w == 1:  # one line through the whole frame
            lines, length, columns_out = 1, (rows - 1) * columns + job.W, columns
        across = (length + ROWS - 1) // ROWS
        tiles = Tiles(across, length, columns_out, n, h, job.W)
        part, count = positions * ROW_BYTES, chunks(I)
        none, simple = Run(sums, 0, 1, 1, 0, 0, 0, 0, 0), joins(end)
        run = none
        terms = Sum(
            pixel, part, PARTS * part, count,
            taps.rows, taps.dilation_h * columns * ROW_BYTES, taps.columns, taps.dilation_w * ROW_BYTES,
        )  # fmt: skip
        own, weights = sums, count * taps.rows * taps.columns * STEP
        for group in range(blocks[0], blocks[1], width):
            last = min(blocks[1], group + width)
            for k in range(0, lines * across, 2):
                two = 1 if k + 1 < lines * across else 0
                a = split + k // across * line + k % across * ROWS * pixel
                b = split + (k + 1) // across * line + (k + 1) % across * ROWS * pixel
                for block in range(group, last):
                    c0, w = block * TILE_CHANNELS, job.w + block * weights
                    # How far the sums that are computed now are from those of the run before.
                    if block > group:
                        beside = Beside(end, 0, BLOCK_BYTES)
                    else:
                        beside = Beside(end, 2 * ROWS, (group + 1 - last) * BLOCK_BYTES)
                    run = multiply(two, job.C - c0, a, b, terms, w, own, run, beside)
                    rest(run, beside)
                    # The epilogue of these pixels is done beside the next multiplications, if it is simple.
                    if simple and c0 + TILE_CHANNELS <= job.C and (not two or k % across + 1 < across):
                        run = run_from(own, k, two, c0, tiles, end)
                    else:
                        run = none
                        for tile in range(k, k + 1 + two):
                            end_tile(own + (tile - k) * ROWS * SUMS_ROW, tile, c0, tiles, end)
                    own = sums if own != sums else sums + 4 * SUMS
        rest(run, Beside(end, 0, 0))

    @one_of_many(f"by_rows_{name}")
    def by_rows(x: Plane, job: Job, end: Any, t: int, slot: int) -> None:
        """Compute part t of the rows of all samples, a band at a time."""
        sums = job.scratch + slot * 8 * SUMS
        positions = positions_in(_rows_read(job.band, job.taps), job.frame.columns, job.taps.stride_w)
        split = job.scratch + job.threads * 8 * SUMS
        split += slot * chunks(x.C) * PARTS * positions * ROW_BYTES
        blocks = (job.C + TILE_CHANNELS - 1) // TILE_CHANNELS
        q, stop = job.N * job.H * t // job.parts, job.N * job.H * (t + 1) // job.parts
        while q < stop:
            n, h = q // job.H, q % job.H
            left = min(stop - q, job.H - h)
            bands = (left + job.band - 1) // job.band
            rows = (left + bands - 1) // bands
            reads = _rows_read(rows, job.taps)
            split_rows(x, n, job.frame, h * job.taps.stride_h, reads, split, positions)
            finish(split, positions, x.C, job, end, n, h, rows, (0, blocks), 1, sums)
            q += rows

    @one_of_many(f"by_channels_{name}")
    def by_channels(x: Plane, job: Job, end: Any, t: int, slot: int) -> None:
        """Compute part t of the channels of all samples, whose pixels are split."""
        sums = job.scratch + slot * 8 * SUMS
        positions = positions_in(job.frame.rows, job.frame.columns, job.taps.stride_w)
        sample = chunks(x.C) * PARTS * positions * ROW_BYTES
        blocks = (job.C + TILE_CHANNELS - 1) // TILE_CHANNELS
        first, stop = blocks * t // job.parts, blocks * (t + 1) // job.parts
        together = max(1, _WEIGHTS // (chunks(x.C) * job.taps.rows * job.taps.columns * STEP))
        for block in range(first, stop, together):
            own = block, min(stop, block + together)
            for n in range(job.N):
                split = job.scratch + job.threads * 8 * SUMS + n * sample
                finish(split, positions, x.C, job, end, n, 0, job.H, own, together, sums)

    @one_of_many(f"amx_parts_{name}")
    def parts(x: Plane, job: Job, end: Any, share: Share) -> None:
        amx_begin()
        for t in range(share.first, share.last):
            if job.band:
                by_rows(x, job, end, t, share.slot)
            elif share.phase == 0:
                _split_share(x, job, job.scratch + job.threads * 8 * SUMS, t)
            else:
                by_channels(x, job, end, t, share.slot)
        amx_end()

    return parts


_parts_fwd = _shares_of(end_run_fwd, run_fwd, finish_fwd, fetch_fwd, joins_fwd, "fwd")
_parts_bwd = _shares_of(end_run_bwd, run_bwd, finish_bwd, fetch_bwd, joins_bwd, "bwd")


def _phases(args: Sequence[Any]) -> int:
    """Two where threads share channels: the first splits the pixels."""
    return 1 if args[-3] else 2


@kernel(
    ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT, DENSE, TAPS, FRAME,
    INT, INT, INT,
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
