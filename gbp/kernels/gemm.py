"""Dense layers.  Memory is the bottleneck: each weight is read once, in the order of the file.

    y[n, m]  = clip(Σ_k x[n, k] · w[m, k] + b[m] + r[n, m], lo, hi)        w (M, K), row-major
    gx[n, k] = Σ_m gy[n, m] · w[m, k],  then the gate of gx's own rectifier

Matrices are activations (N, 1, 1, C).  Forward, a tile holds the dot products of ROWS rows of w with up to
SAMPLES rows of x, and each thread computes some rows of w.  Each of a thread's last rows, of which there are
fewer than ROWS, has a tile to itself, which takes as long as ROWS rows.  Further samples find the BLOCK of
these rows in a first-level cache.  Backward, gx is a sum of rows of w, each times its gy, and each thread
computes some columns.  A row whose gy is 0 for every sample is not read; behind a rule that gates the
gradient these are most rows.

A dot product has LANES partial sums for each BLOCK of k, and the blocks are added one after another.  A
backward sum is one chain in the order of m.  Neither depends on N, on threads or on the tile.

Source: ONNX Gemm and MatMul.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .codegen.emit import LANES, TILE_ROWS, VECTOR_BYTES
from .codegen.gate import GATE, MASK, Gate, gate_run
from .codegen.jit import ACTIVATION, FLOAT, INT, WEIGHTS, by_count, copy_of, device_function, kernel
from .codegen.memory import ALIGNMENT
from .codegen.packing import Share
from .codegen.simd import (
    address_of,
    at,
    broadcast,
    fma,
    load,
    load_scalar,
    load_some,
    prefetch_read,
    store,
    store_scalar,
    store_some,
    sum_lanes,
)
from .codegen.tile import TILE_VECTORS, tile_dot, tile_dot_first, tile_zeros
from .codegen.work import targets_of, zero_run
from .epilogue import Forward, Plane, place_of, plane_of, write

#: Samples in a tile: as many as the smallest register file holds.
SAMPLES = 4
#: Rows of w in a tile.
ROWS = 4 if 4 * SAMPLES <= TILE_VECTORS * TILE_ROWS else 2
#: Columns of a partial sum: those of ROWS rows stay in a first-level cache.
BLOCK = 1024
#: Floats of x that stay in a second-level cache while all rows of w are read.
_HELD = 2**18
#: How many bytes of a row of w are fetched ahead.
_AHEAD = 2048
#: Columns of gradients that rows of w are added to at a time: for up to SAMPLES samples, so many that the
#: processor fetches a row on its own; for more, so few that all stay in a first-level cache.
_COLUMNS, _FEW_COLUMNS = 2**13, 2**9


#: Samples of the tile in the function below.  Each of its copies has its own.
_SAMPLES = SAMPLES


@device_function
def _add_dots_of_tile(
    samples: int, x: int, x_row: int, w: int, w_row: int, count: int, y: int, y_row: int, rows: int,
    first: bool,
) -> None:  # fmt: skip
    """For each sample i and row j of w, add to y[i, j] the dot product of `count` columns of x[i] and w[j].

    With `first` it is written instead.  `samples` is _SAMPLES.
    """
    t = tile_zeros(_SAMPLES, ROWS)
    for _ in range(count // LANES):
        for j in range(ROWS):
            prefetch_read(w + j * w_row + _AHEAD)
        t = tile_dot(t, ROWS, x, x_row, w, w_row)
        x += VECTOR_BYTES
        w += VECTOR_BYTES
    if count % LANES:
        t = tile_dot_first(t, ROWS, x, x_row, w, w_row, count % LANES)
    for i in range(_SAMPLES):
        for j in range(rows):
            to = y + i * y_row + 4 * j
            total = sum_lanes(t[i * ROWS + j])
            store_scalar(to, total if first else load_scalar(to) + total)


_add_dots = by_count(
    "add_dots", [copy_of(_add_dots_of_tile, f"{count}", _SAMPLES=count) for count in range(1, SAMPLES + 1)]
)


@device_function
def _add_dots_of_rows(x: Plane, w: int, y: Plane, N: int, m: int, rows: int, begin: int, end: int) -> None:
    """Add the dot products of rows [m, m + rows) of w with N rows of x, in columns [begin, end).

    There are ROWS rows, or one.  One row fills the tile with copies of it, by a step of 0, and takes as long.
    """
    w_row = 4 * x.C if rows == ROWS else 0
    for k in range(begin, end, BLOCK):
        wa, count = w + 4 * (m * x.C + k), min(BLOCK, x.C - k)
        for n in range(0, N, SAMPLES):
            xa, ya = x.address + n * x.image + 4 * k, y.address + n * y.image + 4 * m
            _add_dots(min(SAMPLES, N - n), xa, x.image, wa, w_row, count, ya, y.image, rows, k == 0)


@kernel(ACTIVATION, WEIGHTS, WEIGHTS, ACTIVATION, ACTIVATION, MASK, FLOAT, FLOAT, INT)
def gemm_fwd(
    x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int, share: Share
) -> None:
    """Write y = clip(x · wᵀ + b + r, lo, hi) and the bit lo < · < hi of each unit to mask.

    x (N, 1, 1, K), w (M·K,), b (M,) or empty, y (N, 1, 1, M); r, of y's shape but not in its memory, and mask
    may be empty.
    """
    N, K, M = x.shape[0], x.shape[3], y.shape[3]
    bias = address_of(b) if b.size else 0
    source, end = plane_of(x), Forward(plane_of(y), plane_of(r), plane_of(mask), bias, lo, hi)
    columns = max(1, _HELD // (N * BLOCK)) * BLOCK
    units = (M + LANES - 1) // LANES  # each is LANES rows of w, so that threads write whole bytes of mask
    for t in range(share.first, share.last):
        m0, m1 = units * t // threads * LANES, min(M, units * (t + 1) // threads * LANES)
        for first in range(0, K, columns):
            m = m0
            while m < m1:
                rows = ROWS if m + ROWS <= m1 else 1
                _add_dots_of_rows(source, address_of(w), end.out, N, m, rows, first, min(K, first + columns))
                m += rows
        for n in range(N):
            place = place_of(n, 0, 0, end)
            for m in range(m0, m1, LANES):
                write(load_some(place.out + 4 * m, M - m), m, place, M - m, end)


@device_function
def _next_row(gy: int, step: int, N: int, M: int, m: int) -> int:
    """Return the first row of w from m on whose gy is not 0 for all samples, or M."""
    while m < M:
        for n in range(N):
            if load_scalar(gy + n * step + 4 * m) != 0:
                return m
        m += 1
    return M


@device_function
def _next_rows(gy: int, step: int, N: int, M: int, m: int) -> Any:
    """Return the next four such rows, where they exist."""
    m0 = _next_row(gy, step, N, M, m)
    m1 = _next_row(gy, step, N, M, m0 + 1)
    m2 = _next_row(gy, step, N, M, m1 + 1)
    return m0, m1, m2, _next_row(gy, step, N, M, m2 + 1)


@device_function
def _factor(gy: int, M: int, m: int) -> Any:
    """A row's factor; 0 beyond the last row."""
    return broadcast(load_scalar(gy + 4 * m) if m < M else np.float32(0))


@device_function
def _add_rows(gx: int, count: int, gy: int, M: int, w: int, row: int, rows: Any) -> None:
    """Add four rows of w, each times its gy, one after the other, to `count` values at gx.

    `w` is the address of row 0.  A row beyond the last one counts nothing: the last one is read instead.
    """
    m0, m1, m2, m3 = rows
    f0, f1, f2, f3 = _factor(gy, M, m0), _factor(gy, M, m1), _factor(gy, M, m2), _factor(gy, M, m3)
    w0, w1 = w + row * m0, w + row * min(m1, M - 1)
    w2, w3 = w + row * min(m2, M - 1), w + row * min(m3, M - 1)
    whole = count // LANES * LANES
    for k in range(0, whole, LANES):
        v = fma(f0, load(w0 + 4 * k), load(gx + 4 * k))
        v = fma(f1, load(w1 + 4 * k), v)
        v = fma(f2, load(w2 + 4 * k), v)
        store(gx + 4 * k, fma(f3, load(w3 + 4 * k), v))
    for k in range(whole, count, LANES):
        c = count - k
        v = fma(f0, load_some(w0 + 4 * k, c), load_some(gx + 4 * k, c))
        v = fma(f1, load_some(w1 + 4 * k, c), v)
        v = fma(f2, load_some(w2 + 4 * k, c), v)
        v = fma(f3, load_some(w3 + 4 * k, c), v)
        store_some(gx + 4 * k, v, c)


@device_function
def _fetch_rows(begin: int, end: int, M: int, w: int, row: int, rows: Any) -> None:
    """Fetch columns [begin, end) of four rows of w, which are added next."""
    for m in rows:
        address = w + row * min(m, M - 1)
        for line in range(4 * begin, 4 * end, ALIGNMENT):
            prefetch_read(address + line)


@kernel(ACTIVATION, WEIGHTS, MASK, GATE, ACTIVATION, INT, INT)
def gemm_bwd(
    gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, threads: int, share: Share
) -> None:
    """Write gy · w to gx, or add it with `accumulate`; then apply the gate.

    gy (N, 1, 1, M), w (M·K,), gx (N, 1, 1, K).  w is finite, because rows are skipped or multiplied by 0.
    """
    N, M, K = gx.shape[0], gy.shape[3], gx.shape[3]
    targets = targets_of(gy, mask)
    columns = _COLUMNS if N <= SAMPLES else _FEW_COLUMNS
    units = (K + LANES - 1) // LANES
    first_gy, step = address_of(gy), gy.strides[0]
    for t in range(share.first, share.last):
        stop = min(K, units * (t + 1) // threads * LANES)
        for k in range(units * t // threads * LANES, stop, columns):
            count = min(columns, stop - k)
            if not accumulate:
                for n in range(N):
                    zero_run(at(gx, n, 0, 0) + 4 * k, count)
            column = address_of(w) + 4 * k
            rows = _next_rows(first_gy, step, N, M, 0)
            while rows[0] < M:
                following = _next_rows(first_gy, step, N, M, rows[3] + 1)
                for n in range(N):
                    if N > SAMPLES:
                        begin, end = count * n // N, count * (n + 1) // N
                        _fetch_rows(begin, end, M, column, 4 * K, following)
                    _add_rows(at(gx, n, 0, 0) + 4 * k, count, at(gy, n, 0, 0), M, column, 4 * K, rows)
                rows = following
            for n in range(N):
                gate_run(at(gx, n, 0, 0) + 4 * k, count, gate, at(mask, n // targets, 0, 0) + k // 8)
