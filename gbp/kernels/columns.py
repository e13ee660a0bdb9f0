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
from .codegen.gate import GATE, MASK, Gate, write_gradient
from .codegen.jit import ACTIVATION, INT, device_function, kernel
from .codegen.packing import Share
from .codegen.simd import at, keep_rolled, load_between, load_some, zeros
from .codegen.views import part_of, sample_of, targets_of
from .taps import TAPS, Taps, windows_across, windows_down


@device_function
def _gather_line(
    columns: int,
    row_step: int,
    rows: int,
    pixel_step: int,
    windows: int,
    stride: int,
    run: int,
    position: int,
    count: int,
) -> Any:
    """Sum what the windows hold for `count` values of a padded line of gx, from `position` on.

    `rows` rows of windows read this line, each through another row of its taps.  `columns` is the address at
    which window 0 of the first row of windows holds its `run` values for the line.  The same values of the
    next row of windows are `row_step` bytes further, those of the next window `pixel_step` bytes.  In the
    line, window ow begins at value ow · stride.
    """
    # Lines are long and few windows overlap, so two divisions are cheap.
    first = max(0, (position - run) // stride + 1)
    last = min(windows - 1, (position + count - 1) // stride)
    v = zeros()
    for p in range(rows):
        row = columns + p * row_step
        for ow in range(first, last + 1):
            keep_rolled()
            offset = position - ow * stride  # of lane 0 in the window's run; lanes outside the run are 0
            v = v + load_between(row + ow * pixel_step + 4 * offset, -offset, min(count, run - offset))
    return v


@device_function
def sum_row(
    columns: int,
    pixel: int,
    line: int,
    size: Any,
    mask: Any,
    gate: Gate,
    gx: Any,
    accumulate: int,
    taps: Taps,
    n: int,
    h: int,
    sample: int,
) -> None:
    """Write row h of gx, row n of the batch, or add it with `accumulate`; then apply the gate.

    `columns` is the address of the first row of windows that reads the row.  A window's columns are `pixel`
    bytes, and a row of windows `line` bytes.  `size`: how many windows there are down and across.
    `sample`: the row of the mask.
    """
    W, C = gx.shape[2], gx.shape[3]
    count_h, _, step_oh, i, step_i = windows_down(taps, h, size[0])
    row_step = step_oh * line + step_i * taps.columns * 4 * C
    # A mask begins a new byte at each pixel, so a vector that holds several pixels cannot be gated by it.
    if C < LANES and taps.dilation_w == 1 and gx.strides[2] == 4 * C and not gate.forward:
        ca = columns + i * taps.columns * 4 * C
        for q in range(0, W * C, LANES):
            count = min(LANES, W * C - q)
            v = _gather_line(
                ca,
                row_step,
                count_h,
                pixel,
                size[1],
                taps.stride_w * C,
                taps.columns * C,
                q + taps.left * C,
                count,
            )
            write_gradient(v, 0, gate, accumulate, at(gx, n, h, 0) + 4 * q, 0, count)
        return
    for w in range(W):
        count_w, ow, step_ow, j, step_j = windows_across(taps, w, size[1])
        ca = columns + ow * pixel + (i * taps.columns + j) * 4 * C
        column_step = step_ow * pixel + step_j * 4 * C
        xa, ma = at(gx, n, h, w), at(mask, sample, h, w)
        for c in range(0, C, LANES):
            v = zeros()
            for p in range(count_h):
                a = ca + p * row_step + 4 * c
                for _ in range(count_w):
                    keep_rolled()
                    v = v + load_some(a, C - c)
                    a += column_step
            write_gradient(v, c, gate, accumulate, xa, ma, C - c)


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
    size, H = (columns.shape[1], columns.shape[2]), gx.shape[1]
    targets = targets_of(columns, mask)
    for row in range(*part_of(len(gx) * H, share, threads)):
        n, h = row // H, row % H
        _, oh, _, _, _ = windows_down(taps, h, size[0])
        sum_row(
            at(columns, n, oh, 0), columns.strides[2], columns.strides[1], size, mask, gate, gx, accumulate,
            taps, n, h, sample_of(n, targets),
        )  # fmt: skip
