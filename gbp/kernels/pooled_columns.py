"""The input gradient of a strided convolution into few channels, from the gradient of the max-pool behind it.

It is what `maxpool_bwd`, `conv_pointwise_bwd` and `col2im` compute one after the other, with the same bits:

    gz = the pool's vjp of gy, gated;   columns = gz · w;   gx = the sum of each pixel's columns

gz and the columns are the largest tensors of a network whose first layer is such a convolution, and larger
than a core's second-level cache.  Here a row of gz is computed, then its columns, then the rows of gx that
wait for no more columns, so none of them leaves that cache.  A part of the work is a run of rows of gx.
Columns that two parts need are computed by both, so parts are large (`split`), and windows that overlap in
more than one row had better take the three kernels.

All behind gz is the same linear function for all samples, so the sum of several samples' gx is that of the
sum of their gz.  Where only such a sum is asked for, a row of gz is added up over the samples, and the
columns are computed once.
"""

from __future__ import annotations

from typing import Any

from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT, WEIGHTS, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import address_of
from .codegen.tile import TILE_CHANNELS, multiply_tile
from .codegen.views import copy_run, part_of, targets_of
from .columns import sum_row
from .conv_pointwise import STRIP, STRIP_SUMS, is_sparse, multiply_strip, pointwise_scratch
from .epilogue import Plane, backward, plane_of
from .lists import SUMMED_BLOCKS
from .pool import SWITCHES_U8, unpool_row, unpool_row_of_all
from .taps import TAPS, Taps, windows_down

#: Rows of columns that are held besides those that one row of gx needs: the others are seldom moved.
_MORE = 6


def _held(taps: Taps) -> int:
    """How many rows of columns are held."""
    return (taps.rows - 1) // taps.stride_h + 1 + _MORE


def pooled_columns_scratch(W: int, O: int, columns: int, taps: Taps, threads: int) -> int:
    """Floats of scratch: for each thread a strip's, a row of gz (W, O), and rows of `columns` each."""
    return threads * (pointwise_scratch(1) + W * O + _held(taps) * W * columns)


_rows_held = device_function(_held)


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
    windows = Plane(0, 0, 4 * line, 4 * size, height, width, size)
    end = backward(plane_of(gx), accumulate, plane_of(mask), targets_of(gy, mask), gate)
    strip = address_of(scratch) + share.slot * (STRIP_SUMS + 4 * (width * O + held * line))
    gz = strip + STRIP_SUMS
    columns = gz + 4 * width * O
    last, first, stop = -1, 0, 0  # the row of the batch whose rows first … stop − 1 of columns are held
    for row in range(*part_of(len(gx) * H, share, threads)):
        n, h = row // H, row % H
        count, oh, _, _, _ = windows_down(taps, h, height)
        if count and (n != last or oh >= stop):
            last, first, stop = n, oh, oh
        while count and stop < oh + count:
            if stop - first == held:
                copy_run(columns + 4 * (oh - first) * line, columns, (stop - oh) * line)
                first = oh
            if len(gy) == len(gx):
                unpool_row(gy, switches, gz_mask, gz_gate, gz, 4 * O, (width, O), 0, pool, n, stop)
            else:
                rows = n, len(gy), len(gx)
                unpool_row_of_all(gy, switches, gz_mask, gz_gate, gz, (width, O), pool, rows, stop)
            _row_of_columns(
                gz, width, O, address_of(w), max_density, strip, columns + 4 * (stop - first) * line, size
            )
            stop += 1
        sum_row(columns + 4 * (oh - first) * line, windows, taps, n, h, end)
