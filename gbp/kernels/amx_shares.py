"""How threads share a convolution on AMX: what `conv_amx` and `conv_digits` do for one part of it.

Threads share the rows of the output, and each splits the pixels that it needs, few enough for its cache.  If
the weights are larger than the plane, one phase splits all pixels, and in the next threads share the output
channels, so that each weight is read once.

The epilogue of a pair of tiles is done beside the multiplications of the next pair.  The arrays that the next
pair's own epilogue reads and writes are fetched there, too.

The two kernels differ in the `Form` of split values.  For each, `shares_of` makes a copy of these functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import float32

from .amx_beside import Beside, Run, Scales, fetch, rest_of, rows_join, run_of
from .amx_frame import Frame, Split, positions_in, positions_of
from .amx_sums import SUMS, Sum, chunks_of
from .codegen.amx import DEPTH, PARTS, ROW_BYTES, ROWS, amx_begin, amx_end
from .codegen.emit import LANES
from .codegen.jit import copy_of, device_function, inlined
from .codegen.packing import Share
from .codegen.work import zero_run
from .epilogue import Place, Plane, right_of, write
from .taps import Taps

#: Bytes of split pixels that a thread holds at once; the cores with AMX have 2 MiB of second-level cache.
_HELD = 3 * 2**18
#: Bytes of weights that it keeps there where a frame is larger than the cache: a tile of pixels runs through
#: them before the next.
_WEIGHTS = 2**20
#: Floats of a row of split values.
_ROW = ROW_BYTES // 4


def band_of(C: int, frame: Frame, taps: Taps, depth: int = DEPTH) -> int:
    """How many rows of the output a thread computes at once, so that their split pixels stay in its cache."""
    extent = (taps.rows - 1) * taps.dilation_h + 1
    # Without a halo there is nothing to lose by few rows, and more of what the epilogue touches stays too.
    held = _HELD if extent > 1 else _HELD // 4
    rows = held // (chunks_of(C, depth) * PARTS * ROW_BYTES * frame.columns)
    return max(1, (rows - extent) // taps.stride_h + 1)


def amx_scratch(
    C: int, frame: Frame, taps: Taps, band: int, threads: int, depth: int = DEPTH, sums: int = SUMS
) -> tuple[int, int]:
    """Floats of scratch: (a fixed number, more for each sample).

    `band`: 0 if threads share channels.  `depth`: channels of a chunk.  `sums`: floats of the sums of two
    tiles of pixels.
    """
    sums, split = threads * 2 * sums, chunks_of(C, depth) * PARTS * ROW_BYTES // 4
    if not band:
        return sums, split * positions_of(frame.rows, frame.columns, taps.stride_w)
    rows = (band - 1) * taps.stride_h + (taps.rows - 1) * taps.dilation_h + 1
    return sums + threads * split * positions_of(rows, frame.columns, taps.stride_w), 0


class Job(NamedTuple):
    """Numbers that are the same for all threads.

    `w`: address of the weights.  `H`, `W`, `C`: sizes of the output.  `band`: see `band_of`; 0 if threads
    share channels.  `scratch`: its address.  `parts`: into how many parts the work is cut.  `scales`: address
    of the scales of samples, or 0 for none.  `balance` and `weight_scales`: see `Split` and `Scales`.
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
    scales: int
    balance: int
    weight_scales: int


class Form(NamedTuple):
    """How values are split, and what their sums are."""

    #: Splits pixels into a row of a frame, as `amx_frame.split_row`.
    split_row: Any
    #: How many chunks so many channels are.
    chunks: Any
    #: The scale of a sample, from a Job; 0 if another kernel computes this sample.
    scale_of: Any
    #: A vector of sums, from where a pixel's sums are, a channel of the block, the block's first channel, and
    #: the Scales.
    sum_at: Any
    #: Channels of a block of weights, and bytes of a block for one chunk and tap.
    block: int
    step: int
    #: Bytes of the sums of two tiles of pixels, and from pixel to pixel.
    sums: int
    pixel: int
    #: Pixels whose epilogue is done between two groups of multiplications.
    piece: int
    #: Through how many blocks a pair of tiles runs before the next pair, where threads share rows.
    width: int


#: A `Form`, and what multiplies its split values; `shares_of` gives each copy of the functions below its own.
FORM: Any = None
_multiply: Any = None


def shares_of(form: Form, multiply_beside: Any, name: str) -> Any:
    """Make the function that computes a share of a convolution on values of this form: see `_shares`.

    `multiply_beside`: as that of `amx_sums`.  `name`: of the form, for the names of machine code.
    """
    finish_piece = copy_of(_finish_piece, name, FORM=form)
    multiply = multiply_beside(finish_piece, name)
    return copy_of(_shares, name, FORM=form, _multiply=multiply, _finish_piece=finish_piece)


@device_function
def _shares(x: Plane, job: Job, end: Any, share: Share) -> None:
    """Compute the parts of a share, whose sums the epilogue `end` finishes."""
    amx_begin()
    for t in range(share.first, share.last):
        if job.band:
            _by_rows(x, job, end, t, share.slot)
        elif share.phase == 0:
            _split_share(x, job, t)
        else:
            _by_channels(x, job, end, t, share.slot)
    amx_end()


class Band(NamedTuple):
    """Rows [h, h + rows) of sample n of the output."""

    n: int
    h: int
    rows: int


class Blocks(NamedTuple):
    """Blocks of output channels [first, stop).  A pair of tiles runs through `width` before the next pair."""

    first: int
    stop: int
    width: int


@device_function
def _by_rows(x: Plane, job: Job, end: Any, t: int, slot: int) -> None:
    """Compute part t of the rows of all samples, a band at a time."""
    part = positions_in(_rows_read(job.band, job.taps), job.frame.columns, job.taps.stride_w) * ROW_BYTES
    to = _behind_sums(job) + slot * FORM.chunks(x.C) * PARTS * part
    blocks = Blocks(0, (job.C + FORM.block - 1) // FORM.block, FORM.width)
    q, stop = job.N * job.H * t // job.parts, job.N * job.H * (t + 1) // job.parts
    while q < stop:
        n, h = q // job.H, q % job.H
        left = min(stop - q, job.H - h)
        scale = FORM.scale_of(job, n)
        if scale == 0:
            q += left
            continue
        bands = (left + job.band - 1) // job.band
        rows = (left + bands - 1) // bands
        split = Split(to, part, x.C, scale, job.balance)
        _split_rows(x, n, job.frame, h * job.taps.stride_h, _rows_read(rows, job.taps), split)
        _compute(job, end, split, Band(n, h, rows), blocks, slot)
        q += rows


@device_function
def _split_share(x: Plane, job: Job, t: int) -> None:
    """Split part t of the rows of all frames."""
    frame = job.frame
    part = positions_in(frame.rows, frame.columns, job.taps.stride_w) * ROW_BYTES
    rows, sample = job.N * frame.rows, FORM.chunks(x.C) * PARTS * part
    for q in range(rows * t // job.parts, rows * (t + 1) // job.parts):
        n, row = q // frame.rows, q % frame.rows
        scale = FORM.scale_of(job, n)
        if scale != 0:
            to = _behind_sums(job) + n * sample + row * frame.columns * ROW_BYTES
            _split_rows(x, n, frame, row, 1, Split(to, part, x.C, scale, job.balance))


@device_function
def _split_rows(x: Plane, n: int, frame: Frame, begin: int, rows: int, split: Split) -> None:
    """Split `rows` rows of sample n's frame, from row `begin` on.  Padding becomes zeros.

    So does padding of the next row that the last one shares, whoever else writes it.
    """
    start = min(frame.columns, max(0, frame.left))
    stop = max(start, min(frame.columns, frame.left + x.W))
    for row in range(rows):
        h = begin + row - frame.top
        low, high = start, stop
        if h < 0 or h >= x.H:
            low, high = frame.columns, frame.columns
        line = x.address + n * x.image + h * x.line + (low - frame.left) * x.pixel
        to = split.address + row * frame.columns * ROW_BYTES
        for k in range(FORM.chunks(x.C) * PARTS):
            zero_run(to + k * split.part, low * _ROW)
            zero_run(to + k * split.part + high * ROW_BYTES, (frame.columns + frame.shared - high) * _ROW)
        FORM.split_row(line, x, low, high, to, frame, split)


@device_function
def _by_channels(x: Plane, job: Job, end: Any, t: int, slot: int) -> None:
    """Compute part t of the channels of all samples, whose pixels are split."""
    part = positions_in(job.frame.rows, job.frame.columns, job.taps.stride_w) * ROW_BYTES
    sample = FORM.chunks(x.C) * PARTS * part
    blocks = (job.C + FORM.block - 1) // FORM.block
    first, stop = blocks * t // job.parts, blocks * (t + 1) // job.parts
    width = max(1, _WEIGHTS // (FORM.chunks(x.C) * job.taps.rows * job.taps.columns * FORM.step))
    for block in range(first, stop, width):
        own = Blocks(block, min(stop, block + width), width)
        for n in range(job.N):
            scale = FORM.scale_of(job, n)
            if scale != 0:
                split = Split(_behind_sums(job) + n * sample, part, x.C, scale, job.balance)
                _compute(job, end, split, Band(n, 0, job.H), own, slot)


@device_function
def _rows_read(rows: int, taps: Taps) -> int:
    """How many rows of the frame so many rows of the output read."""
    return (rows - 1) * taps.stride_h + (taps.rows - 1) * taps.dilation_h + 1


class Tiles(NamedTuple):
    """How the pixels of a band are cut into tiles, and which pixels of y they are.

    There are `lines` lines of the frame, each of `length` pixels in `across` tiles.  In a line, a row of W
    pixels begins every `columns` pixels.  The band begins at row h of sample n.
    """

    lines: int
    across: int
    length: int
    columns: int
    n: int
    h: int
    W: int


@device_function
def _compute(job: Job, end: Any, split: Split, band: Band, blocks: Blocks, slot: int) -> None:
    """Compute blocks of channels of rows from split pixels."""
    tiles, terms = _tiles_of(job, band), _terms_of(job, split)
    scales = Scales(job.weight_scales, float32(2.0**16) / float32(abs(split.scale)), split.scale)
    # There is room for two pairs: the sums of one are finished while those of the next are written.
    sums = job.scratch + slot * 2 * FORM.sums
    own, run, joined = sums, _nothing(sums), rows_join(end)
    line = job.taps.stride_h * job.frame.columns * ROW_BYTES
    weights = terms.chunks * terms.taps_h * terms.taps_w * FORM.step
    for group in range(blocks.first, blocks.stop, blocks.width):
        last = min(blocks.stop, group + blocks.width)
        for k in range(0, tiles.lines * tiles.across, 2):
            two = 1 if k + 1 < tiles.lines * tiles.across else 0
            a, b = _tile_at(k, tiles, split, terms, line), _tile_at(k + 1, tiles, split, terms, line)
            for block in range(group, last):
                c0, w = block * FORM.block, job.w + block * weights
                # How far the sums that are computed now are from those of the run before.
                if block > group:
                    beside = Beside(end, scales, 0, 4 * FORM.block)
                else:
                    beside = Beside(end, scales, 2 * ROWS, (group + 1 - last) * 4 * FORM.block)
                run = _multiply(two, job.C - c0, a, b, terms, w, own, run, beside)
                _finish_run(run, beside)
                run = _finish_or_leave(own, k, 1 + two, c0, tiles, end, scales, joined)
                own = sums if own != sums else sums + FORM.sums
    _finish_run(run, Beside(end, scales, 0, 0))


@device_function
def _tiles_of(job: Job, band: Band) -> Tiles:
    """The tiles of these rows: with stride 1 those of one line through the whole frame."""
    lines, length, columns = band.rows, job.W, job.W
    if job.taps.stride_h == 1 and job.taps.stride_w == 1:
        columns = job.frame.columns
        lines, length = 1, (band.rows - 1) * columns + job.W
    return Tiles(lines, (length + ROWS - 1) // ROWS, length, columns, band.n, band.h, job.W)


@device_function
def _terms_of(job: Job, split: Split) -> Sum:
    """The terms of each sum over split pixels."""
    taps = job.taps
    return Sum(
        taps.stride_w * ROW_BYTES, split.part, PARTS * split.part, FORM.chunks(split.C),
        taps.rows, taps.dilation_h * job.frame.columns * ROW_BYTES, taps.columns, taps.dilation_w * ROW_BYTES,
        split.scale,
    )  # fmt: skip


@device_function
def _tile_at(k: int, tiles: Tiles, split: Split, terms: Sum, line: int) -> int:
    """The address of the split pixels of tile k; each line of tiles begins `line` bytes after the last."""
    return split.address + k // tiles.across * line + k % tiles.across * ROWS * terms.pixel


@device_function
def _pixels_of(k: int, count: int, tiles: Tiles) -> tuple[int, int, int, int]:
    """The pixels [start, stop) of `count` tiles of a line from tile k on, and row and column of the first."""
    start = k % tiles.across * ROWS
    stop = min(tiles.length, start + count * ROWS)
    return start, stop, tiles.h + k // tiles.across + start // tiles.columns, start % tiles.columns


@device_function
def _nothing(s: int) -> Run:
    """A run of no pixels."""
    return Run(s, 0, 1, 1, 0, 0, Place(0, 0, 0))


@device_function
def _finish_or_leave(
    s: int, k: int, count: int, c0: int, tiles: Tiles, end: Any, scales: Scales, joined: bool
) -> Run:
    """Finish `count` tiles from tile k on, or leave them as a run that is finished beside the next products.

    A run is one line of a whole block, in arrays whose rows join (`joined`).
    """
    if joined and c0 + FORM.block <= end.out.C and k % tiles.across + count <= tiles.across:
        return _run_from(s, k, count, c0, tiles, end)
    for tile in range(k, k + count):
        _finish_tile(s + (tile - k) * ROWS * FORM.pixel, tile, c0, tiles, end, scales)
    return _nothing(s)


@device_function
def _run_from(s: int, k: int, count: int, c0: int, tiles: Tiles, end: Any) -> Run:
    """The pixels of one or two tiles of a line, from tile k on."""
    start, stop, row, column = _pixels_of(k, count, tiles)
    if column >= tiles.W:  # it begins in padding
        skipped = tiles.columns - column
        s, start, row, column = s + skipped * FORM.pixel, start + skipped, row + 1, 0
    pixels, at = 0, start - column
    while at < stop:
        pixels += min(stop, at + tiles.W) - max(start, at)
        at += tiles.columns
    gap = (tiles.columns - tiles.W) * FORM.pixel
    return run_of(s, pixels, gap, c0, tiles.n, row, column, end)


@device_function
def _finish_run(run: Run, beside: Beside) -> None:
    """Finish what is left of a run."""
    while run.pixels:
        run = _finish_piece(run, beside)


@device_function
def _finish_tile(s: int, tile: int, c0: int, tiles: Tiles, end: Any, scales: Scales) -> None:
    """Finish the pixels of a tile, whose sums are at s."""
    start, stop, row, column = _pixels_of(tile, 1, tiles)
    while start < stop:
        count = min(stop - start, tiles.columns - column)
        if column < tiles.W:
            pixels = min(count, tiles.W - column)
            run = run_of(s, pixels, 0, c0, tiles.n, row, column, end)
            _finish_pixels(run, pixels, end.out.C - c0, end, scales)
        s, start = s + count * FORM.pixel, start + count
        row, column = row + 1, 0


@inlined
def _finish_piece(run: Run, beside: Beside) -> Run:
    """Finish a piece of a run in a whole block, if any is left.  Returns the rest."""
    if run.pixels:
        fetch(run, beside, FORM.piece, 4 * FORM.block)
        run = _finish_pixels(run, FORM.piece, FORM.block, beside.end, beside.scales)
    return run


@inlined
def _finish_pixels(run: Run, count: int, channels: int, end: Any, scales: Scales) -> Run:
    """Finish up to `count` pixels of the first row of a run, in whose block so many channels exist."""
    count = min(count, run.pixels, run.left)
    s, place = run.s, run.place
    for _ in range(count):
        for c in range(0, FORM.block, LANES):
            if c + LANES <= channels:
                write(FORM.sum_at(s, c, run.c0, scales), run.c0 + c, place, LANES, end)
            elif c < channels:
                write(FORM.sum_at(s, c, run.c0, scales), run.c0 + c, place, channels - c, end)
        s, place = s + FORM.pixel, right_of(place, 1, end)
    return rest_of(run, count, s, place)


@device_function
def _behind_sums(job: Job) -> int:
    """The address of the scratch behind the sums of all threads, where split pixels are."""
    return job.scratch + job.threads * 2 * FORM.sums
