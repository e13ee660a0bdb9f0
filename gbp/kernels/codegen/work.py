"""The part of the work that one call computes: cells of planes, rows of a gradient, runs of values."""

from __future__ import annotations

from typing import Any

from .emit import LANES
from .jit import device_function
from .packing import Share
from .simd import load_some, store_some, zeros


@device_function
def part_of(work: int, share: Share, threads: int) -> Any:
    """Return [start, stop): the units that this call computes, of `work` units in `threads` parts."""
    return work * share.first // threads, work * share.last // threads


@device_function
def cell_of(number: int, rows: int, columns: int) -> Any:
    """A cell of planes that are divided into rows × columns cells, as (n, row, column)."""
    line = number // columns
    return line // rows, line % rows, number - line * columns


@device_function
def next_cell(n: int, row: int, column: int, rows: int, columns: int) -> Any:
    """The cell behind this one.  Divisions, as in `cell_of`, would cost as much as a short sum."""
    column += 1
    if column == columns:
        column, row = 0, row + 1
        if row == rows:
            row, n = 0, n + 1
    return n, row, column


@device_function
def targets_of(gradient: Any, saved: Any) -> Any:
    """Return K, the targets of a sample: row n of a gradient of N·K rows uses row n // K of `saved`."""
    return gradient.shape[0] // max(1, saved.shape[0])


@device_function
def sample_of(row: int, targets: int) -> int:
    """Return the sample of a row of a gradient; a division takes as long as a vector, and K is mostly 1."""
    return row if targets == 1 else row // targets


@device_function
def copy_run(x: int, y: int, count: int) -> None:
    """Copy `count` float32 values from address x to address y."""
    for k in range(0, count, LANES):
        store_some(y + 4 * k, load_some(x + 4 * k, count - k), count - k)


@device_function
def zero_run(y: int, count: int) -> None:
    """Write `count` zeros to address y."""
    for k in range(0, count, LANES):
        store_some(y + 4 * k, zeros(), count - k)
