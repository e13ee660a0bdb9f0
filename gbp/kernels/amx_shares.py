"""How threads share a convolution on AMX: the functions of `conv_amx` and `conv_digits` for one part of it.

Threads share the rows of the output, and each splits the pixels that it needs, few enough for its cache.  If
the weights are larger than the plane, one phase splits all pixels, and in the next threads share the output
channels, so that each weight is read once.

The epilogue of a pair of tiles is done beside the multiplications of the next pair.  The arrays that the next
pair's own epilogue reads and writes are fetched there, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import float32

from .amx_beside import Beside, Run, Worth, fetch, rest_of, rows_join, run_of
from .amx_frame import Frame, positions_in, positions_of, split_rows
from .amx_sums import STEP, SUMS, SUMS_ROW, Sum, chunks, chunks_of, multiply_beside
from .codegen.amx import DEPTH, PARTS, ROW_BYTES, ROWS, amx_begin, amx_end
from .codegen.emit import LANES
from .codegen.jit import device_function, one_of_many
from .codegen.packing import Share
from .codegen.simd import load, load_scalar
from .codegen.tile import TILE_CHANNELS
from .epilogue import Place, Plane, right_of, write
from .taps import Taps

#: Pixels whose epilogue is done between two groups of multiplications.
_PIECE = 4
#: Bytes of split pixels that a thread holds at once; the cores with AMX have 2 MiB of second-level cache.
_HELD = 3 * 2**18
#: Bytes of weights that it keeps there where a frame is larger than the cache: a tile of pixels runs through
#: them before the next.
_WEIGHTS = 2**20


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
    of the scales of samples, or 0 for none; `balance`: of what x is multiplied by, and `worths`: of what sums
    are worth (both `conv_digits`).
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
    worths: int


class Form(NamedTuple):
    """How values are split, and how split values are multiplied."""

    #: Writes rows of a frame, from those of x.
    split_rows: Any
    #: See `multiply_beside`.
    multiply_beside: Any
    #: How many chunks so many channels are.
    chunks: Any
    #: The scale of a sample, from a Job; 0 if another kernel computes this sample.
    scale_of: Any
    #: A vector of sums, from where a pixel's sums are, a channel of the block, the block's first channel, and
    #: the Worth.
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


@device_function
def _rows_read(rows: int, taps: Taps) -> int:
    """How many rows of the frame so many rows of the output read."""
    return (rows - 1) * taps.stride_h + (taps.rows - 1) * taps.dilation_h + 1


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


@device_function
def _split_parts(
    x: Plane,
    n: int,
    frame: Frame,
    begin: int,
    rows: int,
    to: int,
    positions: int,
    scale: float,
    balance: int,
) -> None:
    split_rows(x, n, frame, begin, rows, to, positions)


@device_function
def _unscaled(job: Job, n: int) -> float:
    done = job.scales != 0 and load_scalar(job.scales + 4 * n) != 0
    return float32(0.0 if done else 1.0)


@device_function
def _sum_at(s: int, c: int, c0: int, worth: Worth) -> Any:
    return load(s + 4 * c)


PARTS_OF_BFLOAT16 = Form(
    _split_parts, multiply_beside, chunks, _unscaled, _sum_at,
    TILE_CHANNELS, STEP, 4 * SUMS, SUMS_ROW, _PIECE, 1,
)  # fmt: skip


def shares_of(form: Form, name: str) -> Any:
    """Make the function that computes a share of a convolution: `shares(x, job, end, share)`."""
    split, chunks, scale_of, sum_at = form.split_rows, form.chunks, form.scale_of, form.sum_at
    block_channels, tap_bytes, piece, width_by_rows = form.block, form.step, form.piece, form.width
    sums_bytes, pixel_bytes = form.sums, form.pixel

    @one_of_many(f"split_share_{name}")
    def split_share(x: Plane, job: Job, to: int, t: int) -> None:
        """Split part t of the rows of all frames."""
        frame = job.frame
        positions = positions_in(frame.rows, frame.columns, job.taps.stride_w)
        rows, sample = job.N * frame.rows, chunks(x.C) * PARTS * positions * ROW_BYTES
        for q in range(rows * t // job.parts, rows * (t + 1) // job.parts):
            n, row = q // frame.rows, q % frame.rows
            scale = scale_of(job, n)
            if scale != 0:
                out = to + n * sample + row * frame.columns * ROW_BYTES
                split(x, n, frame, row, 1, out, positions, scale, job.balance)

    @one_of_many(f"finish_pixels_{name}", inline=True)
    def finish_pixels(run: Run, count: int, channels: int, end: Any, worth: Worth) -> Run:
        """Finish up to `count` pixels of the first row of a run, in whose block so many channels exist."""
        count = min(count, run.pixels, run.left)
        s, place = run.s, run.place
        for _ in range(count):
            for c in range(0, block_channels, LANES):
                if c + LANES <= channels:
                    write(sum_at(s, c, run.c0, worth), run.c0 + c, place, LANES, end)
                elif c < channels:
                    write(sum_at(s, c, run.c0, worth), run.c0 + c, place, channels - c, end)
            s, place = s + pixel_bytes, right_of(place, 1, end)
        return rest_of(run, count, s, place)

    @one_of_many(f"finish_tile_{name}")
    def finish_tile(s: int, tile: int, c0: int, tiles: Tiles, end: Any, worth: Worth) -> None:
        """Finish the pixels of a tile, whose sums are at s."""
        start = tile % tiles.across * ROWS
        stop = min(tiles.length, start + ROWS)
        row, column = tiles.h + tile // tiles.across + start // tiles.columns, start % tiles.columns
        while start < stop:
            count = min(stop - start, tiles.columns - column)
            if column < tiles.W:
                pixels = min(count, tiles.W - column)
                run = run_of(s, pixels, 0, c0, tiles.n, row, column, end)
                finish_pixels(run, pixels, end.out.C - c0, end, worth)
            s, start = s + count * pixel_bytes, start + count
            row, column = row + 1, 0

    @one_of_many(f"finish_piece_{name}", inline=True)
    def finish_piece(run: Run, beside: Beside) -> Run:
        """Finish a piece of a run in a whole block, if any is left.  Returns the rest."""
        if run.pixels:
            fetch(run, beside, piece, 4 * block_channels)
            run = finish_pixels(run, piece, block_channels, beside.end, beside.worth)
        return run

    @one_of_many(f"finish_run_{name}")
    def finish_run(run: Run, beside: Beside) -> None:
        while run.pixels:
            run = finish_piece(run, beside)

    @one_of_many(f"run_from_{name}")
    def run_from(s: int, k: int, two: int, c0: int, tiles: Tiles, end: Any) -> Run:
        """The pixels of one or two tiles of a line, from tile k on."""
        start = k % tiles.across * ROWS
        stop = min(tiles.length, start + (1 + two) * ROWS)
        row, column = tiles.h + k // tiles.across + start // tiles.columns, start % tiles.columns
        if column >= tiles.W:  # it begins in padding
            skipped = tiles.columns - column
            s, start, row, column = s + skipped * pixel_bytes, start + skipped, row + 1, 0
        pixels, at = 0, start - column
        while at < stop:
            pixels += min(stop, at + tiles.W) - max(start, at)
            at += tiles.columns
        gap = (tiles.columns - tiles.W) * pixel_bytes
        return run_of(s, pixels, gap, c0, tiles.n, row, column, end)

    multiply = form.multiply_beside(finish_piece, name)

    @one_of_many(f"compute_{name}")
    def compute(
        pixels: int,
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
        scale: float,
    ) -> None:
        """Compute blocks of channels of rows [h, h + rows) of sample n, whose split pixels are at `pixels`.

        A pair of tiles runs through `width` blocks before the next pair.
        """
        taps, columns = job.taps, job.frame.columns
        worth = Worth(job.worths, float32(2.0**16) / float32(abs(scale)), scale)
        line, pixel = taps.stride_h * columns * ROW_BYTES, taps.stride_w * ROW_BYTES
        lines, length, columns_out = rows, job.W, job.W
        if taps.stride_h == 1 and taps.stride_w == 1:  # one line through the whole frame
            lines, length, columns_out = 1, (rows - 1) * columns + job.W, columns
        across = (length + ROWS - 1) // ROWS
        tiles = Tiles(across, length, columns_out, n, h, job.W)
        part, count = positions * ROW_BYTES, chunks(I)
        none, simple = Run(sums, 0, 1, 1, 0, 0, Place(0, 0, 0)), rows_join(end)
        run = none
        terms = Sum(
            pixel, part, PARTS * part, count,
            taps.rows, taps.dilation_h * columns * ROW_BYTES, taps.columns, taps.dilation_w * ROW_BYTES,
            scale,
        )  # fmt: skip
        own, weights = sums, count * taps.rows * taps.columns * tap_bytes
        for group in range(blocks[0], blocks[1], width):
            last = min(blocks[1], group + width)
            for k in range(0, lines * across, 2):
                two = 1 if k + 1 < lines * across else 0
                a = pixels + k // across * line + k % across * ROWS * pixel
                b = pixels + (k + 1) // across * line + (k + 1) % across * ROWS * pixel
                for block in range(group, last):
                    c0, w = block * block_channels, job.w + block * weights
                    # How far the sums that are computed now are from those of the run before.
                    if block > group:
                        beside = Beside(end, worth, 0, 4 * block_channels)
                    else:
                        beside = Beside(end, worth, 2 * ROWS, (group + 1 - last) * 4 * block_channels)
                    run = multiply(two, job.C - c0, a, b, terms, w, own, run, beside)
                    finish_run(run, beside)
                    # The epilogue of these pixels is done beside the next multiplications, if it is simple.
                    if simple and c0 + block_channels <= job.C and (not two or k % across + 1 < across):
                        run = run_from(own, k, two, c0, tiles, end)
                    else:
                        run = none
                        for tile in range(k, k + 1 + two):
                            finish_tile(own + (tile - k) * ROWS * pixel_bytes, tile, c0, tiles, end, worth)
                    own = sums if own != sums else sums + sums_bytes
        finish_run(run, Beside(end, worth, 0, 0))

    @one_of_many(f"by_rows_{name}")
    def by_rows(x: Plane, job: Job, end: Any, t: int, slot: int) -> None:
        """Compute part t of the rows of all samples, a band at a time."""
        sums = job.scratch + slot * 2 * sums_bytes
        positions = positions_in(_rows_read(job.band, job.taps), job.frame.columns, job.taps.stride_w)
        to = job.scratch + job.threads * 2 * sums_bytes
        to += slot * chunks(x.C) * PARTS * positions * ROW_BYTES
        blocks = (job.C + block_channels - 1) // block_channels
        q, stop = job.N * job.H * t // job.parts, job.N * job.H * (t + 1) // job.parts
        while q < stop:
            n, h = q // job.H, q % job.H
            left = min(stop - q, job.H - h)
            scale = scale_of(job, n)
            if scale == 0:
                q += left
                continue
            bands = (left + job.band - 1) // job.band
            rows = (left + bands - 1) // bands
            reads = _rows_read(rows, job.taps)
            split(x, n, job.frame, h * job.taps.stride_h, reads, to, positions, scale, job.balance)
            compute(to, positions, x.C, job, end, n, h, rows, (0, blocks), width_by_rows, sums, scale)
            q += rows

    @one_of_many(f"by_channels_{name}")
    def by_channels(x: Plane, job: Job, end: Any, t: int, slot: int) -> None:
        """Compute part t of the channels of all samples, whose pixels are split."""
        sums = job.scratch + slot * 2 * sums_bytes
        positions = positions_in(job.frame.rows, job.frame.columns, job.taps.stride_w)
        sample = chunks(x.C) * PARTS * positions * ROW_BYTES
        blocks = (job.C + block_channels - 1) // block_channels
        first, stop = blocks * t // job.parts, blocks * (t + 1) // job.parts
        together = max(1, _WEIGHTS // (chunks(x.C) * job.taps.rows * job.taps.columns * tap_bytes))
        for block in range(first, stop, together):
            own = block, min(stop, block + together)
            for n in range(job.N):
                scale = scale_of(job, n)
                if scale != 0:
                    at = job.scratch + job.threads * 2 * sums_bytes + n * sample
                    compute(at, positions, x.C, job, end, n, 0, job.H, own, together, sums, scale)

    @one_of_many(f"shares_{name}")
    def shares(x: Plane, job: Job, end: Any, share: Share) -> None:
        amx_begin()
        for t in range(share.first, share.last):
            if job.band:
                by_rows(x, job, end, t, share.slot)
            elif share.phase == 0:
                split_share(x, job, job.scratch + job.threads * 2 * sums_bytes, t)
            else:
                by_channels(x, job, end, t, share.slot)
        amx_end()

    return shares
