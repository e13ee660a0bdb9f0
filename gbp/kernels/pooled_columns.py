"""The input gradient of a strided convolution into few channels, from the gradient of the max-pool behind it.

It is what `maxpool_bwd`, `conv_pointwise_bwd` and `col2im` compute one after the other, with the same bits:

    gz = the pool's vjp of gy, gated;   columns = gz · w;   gx = the sum of each pixel's columns

gz and the columns are the largest tensors of a network whose first layer is such a convolution, and larger
than a core's second-level cache.  Here a row of gz is computed, then its columns, then the rows of gx that
wait for no more columns, so none of them leaves that cache.  A part of the work is a run of rows of gx.
Columns that two parts need are computed by both, so parts are large (`split`), and windows that overlap in
more than one row had better take the three kernels.

Several targets of a sample share the switches and the mask, so a value of gz is mostly 0 for all of them or
for none.  Their columns are computed together, pixel by pixel: from one list of the values that are not 0 for
all, by rows of weights that are read once.

All behind gz is the same linear function for all samples, so the sum of several samples' gx is that of the
sum of their gz.  Where only such a sum is asked for, a row of gz is added up over the samples, and the
columns are computed once.
"""

from __future__ import annotations

from typing import Any

from .codegen.emit import LANES
from .codegen.gate import GATE, MASK, Gate, write_gradient
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of, at
from .codegen.tile import TILE_CHANNELS, multiply_tile
from .codegen.work import copy_run, part_of, sample_of, targets_of
from .columns import sum_rows
from .conv_pointwise import STRIP, STRIP_SUMS, is_sparse, multiply_strip, pointwise_scratch
from .epilogue import Plane, backward, pixel_of, plane_of
from .lists import GROUP, MOST_GRADIENTS, SUMMED_BLOCKS, add_nonzero_of, nonzero_in
from .pool import BLOCK, SWITCHES_U8, sum_won, sum_won_four, unpool_row, unpool_row_of_all, windows_at
from .taps import TAPS, Taps, windows_across, windows_down

#: Rows of columns that are held besides those that one row of gx needs: the others are seldom moved.
_MORE = 6


def _held(taps: Taps) -> int:
    """How many rows of columns are held of a target."""
    return (taps.rows - 1) // taps.stride_h + 1 + _MORE


def _gz_floats(W: int, O: int) -> int:
    """Floats for a row of gz (W, O) of one target, or for a pixel of each of several targets."""
    return max(W, MOST_GRADIENTS) * O


def pooled_columns_scratch(W: int, O: int, columns: int, taps: Taps, threads: int) -> int:
    """Floats of scratch: for each thread a strip's, some of gz, and rows (W, columns) of several targets."""
    held = MOST_GRADIENTS * _held(taps) * W * columns
    return threads * (pointwise_scratch(1) + _gz_floats(W, O) + held)


_rows_held = device_function(_held)
_floats_of_gz = device_function(_gz_floats)


@device_function
def _targets_in(part: int, targets: int) -> Any:
    """The rows [first, stop) of a gradient that are computed together: some targets of one sample."""
    parts = (targets + MOST_GRADIENTS - 1) // MOST_GRADIENTS
    n, k = part // parts, part % parts
    return n * targets + targets * k // parts, n * targets + targets * (k + 1) // parts


@device_function
def _row_of_columns(
    gz: int, W: int, O: int, w: int, max_density: float, scratch: int, y: int, size: int
) -> None:
    """Write the columns of a row of gz, `size` floats for each of W pixels, to address y."""
    nowhere = Plane(0, 0, 0, 0, 0, 0, 0)
    end = backward(Plane(y, 0, 0, 4 * size, 1, W, size), 0, nowhere, 1, Gate(0, 0))
    strips = (W + STRIP - 1) // STRIP
    for strip in range(strips):
        first = W * strip // strips
        count, ga = W * (strip + 1) // strips - first, gz + 4 * first * O
        few = is_sparse(ga, 4 * O, count, O, max_density)
        for c0 in range(0, size, SUMMED_BLOCKS * TILE_CHANNELS):
            multiply_strip(few, ga, 4 * O, count, O, w, c0, scratch, 0, 0, first, end)


@device_function
def _pixel_of_targets(
    gy: Any, switches: Any, mask: Any, gate: Gate, gz: int, pool: Taps, rows: Any, down: Any, pixel: Any
) -> None:
    """Write a pixel of gz for several targets of a sample to address gz, one target behind the other.

    `rows`, `pixel`: see `_row_of_targets`, and the pixel's row and column.  `down`: from `windows_down`.
    """
    (first, stop), (h, w), C = rows, pixel, gy.shape[3]
    sample = sample_of(first, targets_of(gy, switches))
    ma = at(mask, sample_of(first, targets_of(gy, mask)), h, w)
    across = windows_across(pool, w, gy.shape[2])
    whole = C // BLOCK * BLOCK
    for n in range(first, stop):
        windows = windows_at(gy, switches, n, sample, down, across, pool)
        for c in range(0, whole, BLOCK):
            v0, v1, v2, v3 = sum_won_four(windows, switches, c)
            write_gradient(v0, c, gate, 0, gz, ma, LANES)
            write_gradient(v1, c + LANES, gate, 0, gz, ma, LANES)
            write_gradient(v2, c + 2 * LANES, gate, 0, gz, ma, LANES)
            write_gradient(v3, c + 3 * LANES, gate, 0, gz, ma, LANES)
        for c in range(whole, C, LANES):
            write_gradient(sum_won(windows, switches, c, C - c), c, gate, 0, gz, ma, C - c)
        gz += 4 * C


@device_function
def _row_of_targets(
    gy: Any,
    switches: Any,
    mask: Any,
    gate: Gate,
    pool: Taps,
    w: int,
    rows: Any,
    h: int,
    W: int,
    sums: int,
    gz: int,
    y: Plane,
) -> None:
    """Write the columns of a row of gz for several targets of a sample.

    Parameters
    ----------
    gy, switches, mask, gate, pool, w
        As for `pooled_columns_bwd`; w is an address, mask and gate are those of gz.
    rows
        The first of these rows of gy, and where they stop.
    h, W, y
        The row, how many pixels it has, and the columns (targets, 1, W, …).
    sums, gz
        Addresses of MOST_GRADIENTS blocks of sums, and of as many pixels of gz.
    """
    (first, stop), O, size = rows, gy.shape[3], y.C
    targets, down = stop - first, windows_down(pool, h, gy.shape[1])
    for x in range(W):
        _pixel_of_targets(gy, switches, mask, gate, gz, pool, rows, down, (h, x))
        for c in range(0, size, TILE_CHANNELS):
            for o in range(0, O, GROUP):
                bits = 0
                for k in range(targets):
                    bits |= nonzero_in(gz + 4 * (k * O + o), O - o)
                weights = w + 4 * (c * O + TILE_CHANNELS * o)
                add_nonzero_of(targets, gz + 4 * o, 4 * O, bits, weights, sums, o == 0)
            for k in range(targets):
                to = pixel_of(y, k, 0, x) + 4 * c
                copy_run(sums + k * 4 * TILE_CHANNELS, to, min(TILE_CHANNELS, size - c))


@kernel(
    *(ACTIVATION, SWITCHES_U8, TAPS, MASK, GATE, WEIGHTS, MASK, GATE, ACTIVATION, INT, TAPS, INT, INT),
    *(DENSE, FLOAT, INT),
    calls=[multiply_tile],
    split=2,
)
def pooled_columns_bwd(
    gy: Any,
    switches: Any,
    pool: Taps,
    gz_mask: Any,
    gz_gate: Gate,
    w: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    taps: Taps,
    height: int,
    width: int,
    scratch: Any,
    max_density: float,
    threads: int,
    share: Share,
) -> None:
    """Write the gradient of the convolution's input to gx, or add it with `accumulate`; then apply the gate.

    Where gy has several times as many rows as gx, row r of gx is the sum over rows r, r + len(gx), … of gy.
    They are added up in this order.

    Parameters
    ----------
    gy, switches, pool
        The gradient and the switches of the pool's windows, and the window.
    gz_mask, gz_gate
        Mask and gate of the rectifier between the convolution and the pool.
    w, taps
        The convolution's weights, as `conv_pointwise_bwd` takes them for columns, and its window, which is
        not dilated along rows.
    height, width
        The sides of the convolution's result.
    scratch
        `pooled_columns_scratch` floats.
    max_density
        As for `conv_pointwise_bwd`.
    mask, gate, gx, accumulate, threads, share
        As in all kernels (`gbp.kernels`).
    """
    H, C, O = gx.shape[1], gx.shape[3], gy.shape[3]
    size, held = taps.rows * taps.columns * C, _rows_held(taps)
    line = width * size
    windows = Plane(0, 4 * held * line, 4 * line, 4 * size, height, width, size)
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gy, mask), gate)
    own = STRIP_SUMS + 4 * (_floats_of_gz(width, O) + MOST_GRADIENTS * held * line)
    strip = address_of(scratch) + share.slot * own
    gz = strip + STRIP_SUMS
    columns = gz + 4 * _floats_of_gz(width, O)
    adds_up = len(gy) != len(gx)
    targets = 1 if adds_up else targets_of(gx, switches)
    parts = len(gx) // targets * ((targets + MOST_GRADIENTS - 1) // MOST_GRADIENTS)
    last, first, stop = -1, 0, 0  # the part whose rows first … stop − 1 of columns are held
    for row in range(*part_of(parts * H, share, threads)):
        part, h = row // H, row % H
        n, after = rows = _targets_in(part, targets)
        count, oh, _, _, _ = windows_down(taps, h, height)
        if count and (part != last or oh >= stop):
            last, first, stop = part, oh, oh
        while count and stop < oh + count:
            if stop - first == held:
                for k in range(after - n):
                    own_columns = columns + k * windows.image
                    copy_run(own_columns + 4 * (oh - first) * line, own_columns, (stop - oh) * line)
                first = oh
            y = columns + 4 * (stop - first) * line
            if after - n > 1:
                to = Plane(y, windows.image, 0, 4 * size, 1, width, size)
                _row_of_targets(
                    gy, switches, gz_mask, gz_gate, pool, address_of(w), rows, stop, width, strip, gz, to
                )
            else:
                if adds_up:
                    of_all = n, len(gy), len(gx)
                    unpool_row_of_all(gy, switches, gz_mask, gz_gate, gz, (width, O), pool, of_all, stop)
                else:
                    unpool_row(gy, switches, gz_mask, gz_gate, gz, 4 * O, (width, O), 0, pool, n, stop)
                _row_of_columns(gz, width, O, address_of(w), max_density, strip, y, size)
            stop += 1
        sum_rows(after - n, columns + 4 * (oh - first) * line, windows, taps, strip, n, h, end)
