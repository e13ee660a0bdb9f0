"""The second half of a strided convolution's input gradient: each pixel sums its columns.

The first half is a matrix product, columns[n, oh, ow, (i·KW + j)·C + c] = Σ_o gy[n, oh, ow, o] · w[o, c, i,
j].  Then

    gx[n, h, w, c] = Σ_{i, j}  columns[n, oh, ow, (i·KW + j)·C + c],
                     oh·sh = h + top − i·dh,   ow·sw = w + left − j·dw

With few channels (the first layer has three) a vector of one pixel's channels would be mostly empty.  But
without column dilation, row i of a window is contiguous both in `columns` and in gx: KW·C values.  So a whole
row of gx is summed as one line of W·C values, and a vector may hold channels of neighbouring pixels.

Source: the transpose of ONNX Conv; "col2im" as in Caffe (Jia et al. 2014).
"""

from __future__ import annotations

from typing import Any

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, INT, by_count, copy_of, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import keep_rolled, load, load_between, load_some, zeros
from .codegen.tile import TILE_CHANNELS, tile_add_between, tile_store, tile_zeros
from .codegen.work import part_of, targets_of
from .epilogue import Backward, Plane, backward, pixel_of, place_of, plane_of, write
from .lists import MOST_GRADIENTS
from .taps import TAPS, Taps, windows_across, windows_down


@device_function
def _windows_holding(columns: Plane, stride: int, run: int, position: int, count: int) -> Any:
    """The first and the last window that hold one of `count` values of a line, from `position` on."""
    # Lines are long and few windows overlap, so two divisions are cheap.
    return max(0, (position - run) // stride + 1), min(columns.W - 1, (position + count - 1) // stride)


@device_function
def _gather_line(
    row: int, row_step: int, rows: int, columns: Plane, stride: int, run: int, position: int, count: int
) -> Any:
    """Sum what the windows hold for `count` values of a padded line of gx, from `position` on.

    `rows` rows of windows read this line, each through another row of its taps.  `row` is the address at
    which window 0 of the first row of windows holds its `run` values for the line, and `row_step` bytes
    further the next row of windows does.  In the line, window ow begins at value ow · stride.
    """
    first, last = _windows_holding(columns, stride, run, position, count)
    v = zeros()
    for p in range(rows):
        for ow in range(first, last + 1):
            keep_rolled()
            offset = position - ow * stride  # of lane 0 in the window's run; lanes outside the run are 0
            a = row + p * row_step + ow * columns.pixel + 4 * offset
            v = v + load_between(a, -offset, min(count, run - offset))
    return v


#: Rows of the tile in the function below.  Each of its copies has its own.
_ROWS = MOST_GRADIENTS


@device_function
def _gather_tile(
    gradients: int,
    row: int,
    row_step: int,
    rows: int,
    columns: Plane,
    stride: int,
    run: int,
    position: int,
    count: int,
    sums: int,
) -> None:
    """Write what `_gather_line` returns for each of several gradients to address sums.

    Their columns are `columns.image` bytes apart, and their sums 4 · TILE_CHANNELS.  `gradients` is _ROWS.
    """
    first, last = _windows_holding(columns, stride, run, position, count)
    t = tile_zeros(_ROWS, 1)
    for p in range(rows):
        for ow in range(first, last + 1):
            keep_rolled()
            offset = position - ow * stride
            a = row + p * row_step + ow * columns.pixel + 4 * offset
            t = tile_add_between(t, a, columns.image, -offset, min(count, run - offset))
    tile_store(t, 1, sums)


_gather_lines = by_count(
    "gather_lines",
    [copy_of(_gather_tile, f"{rows}", _ROWS=rows) for rows in range(2, MOST_GRADIENTS + 1)],
    first=2,
)


@device_function
def _has_lines(taps: Taps, end: Backward) -> bool:
    """Whether vectors go through lines.

    A mask begins a new byte at each pixel, so a vector that holds several pixels cannot be gated by it.
    """
    C = end.out.C
    return C < LANES and taps.dilation_w == 1 and end.out.pixel == 4 * C and not end.gate.forward


@device_function
def sum_row(row: int, columns: Plane, taps: Taps, n: int, h: int, end: Backward) -> None:
    """Finish row h of gx, row n of the batch.

    `columns`: those of all windows.  `row`: the address of the first row of windows that reads row h.
    """
    W, C = end.out.W, end.out.C
    count_h, _, step_oh, i, step_i = windows_down(taps, h, columns.H)
    row_step = step_oh * columns.line + step_i * taps.columns * 4 * C
    if _has_lines(taps, end):
        line = place_of(n, h, 0, end)
        first_tap, stride, run = row + i * taps.columns * 4 * C, taps.stride_w * C, taps.columns * C
        for q in range(0, W * C, LANES):
            position, count = q + taps.left * C, min(LANES, W * C - q)
            v = _gather_line(first_tap, row_step, count_h, columns, stride, run, position, count)
            write(v, q, line, count, end)
        return
    for w in range(W):
        count_w, ow, step_ow, j, step_j = windows_across(taps, w, columns.W)
        first = row + ow * columns.pixel + (i * taps.columns + j) * 4 * C
        column_step = step_ow * columns.pixel + step_j * 4 * C
        place = place_of(n, h, w, end)
        for c in range(0, C, LANES):
            v = zeros()
            for p in range(count_h):
                a = first + p * row_step + 4 * c
                for _ in range(count_w):
                    keep_rolled()
                    v = v + load_some(a, C - c)
                    a += column_step
            write(v, c, place, C - c, end)


@device_function
def sum_rows(
    gradients: int, row: int, columns: Plane, taps: Taps, sums: int, n: int, h: int, end: Backward
) -> None:
    """Finish row h of gx, in rows n, n + 1, … of the batch: as many as `gradients`, up to MOST_GRADIENTS.

    `row`, `columns`: as for `sum_row`, of the first; those of the next are `columns.image` bytes further.
    `sums`: an address for as many blocks of sums.
    """
    if gradients == 1 or not _has_lines(taps, end):
        for k in range(gradients):
            sum_row(row + k * columns.image, columns, taps, n + k, h, end)
        return
    W, C = end.out.W, end.out.C
    count_h, _, step_oh, i, step_i = windows_down(taps, h, columns.H)
    row_step = step_oh * columns.line + step_i * taps.columns * 4 * C
    first_tap, stride, run = row + i * taps.columns * 4 * C, taps.stride_w * C, taps.columns * C
    for q in range(0, W * C, LANES):
        position, count = q + taps.left * C, min(LANES, W * C - q)
        _gather_lines(gradients, first_tap, row_step, count_h, columns, stride, run, position, count, sums)
        for k in range(gradients):
            write(load(sums + k * 4 * TILE_CHANNELS), q, place_of(n + k, h, 0, end), count, end)


@kernel(ACTIVATION, MASK, GATE, ACTIVATION, INT, TAPS, INT)
def col2im(
    columns: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    taps: Taps,
    threads: int,
    share: Share,
) -> None:
    """Write the sum of each pixel's columns (N, OH, OW, KH·KW·C) to gx (N, H, W, C).

    With `accumulate` it is added.  Then the gate is applied.  Windows are added in row-major order.
    """
    H, windows = gx.shape[1], plane_of(columns)
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(columns, mask), gate)
    for row in range(*part_of(len(gx) * H, share, threads)):
        n, h = row // H, row % H
        _, oh, _, _, _ = windows_down(taps, h, windows.H)
        sum_row(pixel_of(windows, n, oh, 0), windows, taps, n, h, end)
