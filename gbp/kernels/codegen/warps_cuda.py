"""How the warps of a block multiply a tile of K on tensor cores, and store their sums.

By warpgroup, four warps (`wgmma`): each warp holds 16 rows of X in registers and computes all channels of the
tile; tensor cores read the weights from shared memory.  By warp (`mma`): each computes some rows and some
channels.  In the simulator one thread does the work of a warp, which computes the whole tile.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numba import cuda, float32

from .jit_cuda import SIMULATED, device_function, int32
from .staging_cuda import copy_16, copy_run, make_barrier, store_pair, wait_at
from .tensor_cuda import load_matrices, load_word, mma, split, split_one

_K_STEPS = 4  # of 8, in a tile of K

#: Values of the tile that a copy of `multiply` and `store_sums` is made for.
CHANNELS = THREADS = STAGES = X_BYTES = W_ATOM = W_UNITS = SUMS = ACROSS = 0
ROWS_OF_16 = COLUMNS_OF_8 = WARPS_ACROSS = A_WORDS = B_WORDS = 1
PRODUCTS = 3
wgmma: Any = None
load_words: Any = None


def floats_at(address: int, count: int) -> Any:
    """The simulator's array at this address."""
    floats: Any = (ctypes.c_float * count).from_address(address)
    return np.frombuffer(floats, np.float32)


if SIMULATED:

    def _tile(address: int, rows: int) -> Any:
        """Rows of 32 floats with their chunks in the original order."""
        r, c = np.arange(rows)[:, None], np.arange(8)
        return floats_at(address, 32 * rows).reshape(rows, 8, 4)[r, c ^ (r & 7)].reshape(rows, 32)

    def begin_of_simulated(barriers: int) -> None:
        """Do nothing: there is nothing to wait for."""

    def copy_weights_of_simulated(to: int, source: int, nbytes: int, barrier: int) -> None:
        ctypes.memmove(to, source, nbytes)

    def arrived_of_simulated(barrier: int, parity: int) -> None:
        """Do nothing: copies are done at once."""

    def load_of_simulated(stage: int, own: Any) -> None:
        """Do nothing: rows of X are read when they are multiplied."""

    def multiply_of_simulated(stage: int, following: int, part: Any, own: Any, then: Any) -> None:
        """`multiply_of_warp` by one thread, for the whole tile."""
        big, small = split(_tile(stage, len(part) // CHANNELS))
        weights = [_tile(stage + X_BYTES + W_ATOM * o, W_ATOM // 128) for o in range(CHANNELS // 8)]
        w_big, w_small = np.concatenate([w[:8] for w in weights]), np.concatenate([w[-8:] for w in weights])
        pairs = [(small, w_big), (big, w_small), (big, w_big)] if PRODUCTS > 1 else [(big, w_big)]
        sums = sum(a.astype(np.float64) @ b.astype(np.float64).T for a, b in pairs)
        part[:] = sums.reshape(-1).astype(np.float32)

    def store_sums_of_simulated(base: int, total: Any) -> None:
        for p, sums in enumerate(total.reshape(-1, CHANNELS)):
            ctypes.memmove(base + 4 * ACROSS * p, sums.ctypes.data, sums.nbytes)


@device_function
def add_product(part: Any, o: int, a: Any, i: int, b: Any, j: int) -> None:
    part[o], part[o + 1], part[o + 2], part[o + 3] = mma(
        part[o], part[o + 1], part[o + 2], part[o + 3], a[i], a[i + 1], a[i + 2], a[i + 3], b[j], b[j + 1]
    )


@device_function
def split_word(address: int, k: int, big: Any, small: Any) -> None:
    """Split a float of shared memory and store the parts at index k of big and small."""
    big[k], small[k] = split_one(load_word(address))


@device_function
def _rows_at(stage: int, t: int) -> int:
    """The address of the row that a lane gives to `ldmatrix`.

    Lanes give rows 0 … 15 of their warp, then those of the next chunk.
    """
    return int32(stage + ((t >> 5) * 16 + (t & 15)) * 128 + ((((t >> 4) & 1) ^ (t & 7)) << 4))


def begin_of_warpgroup(barriers: int) -> None:
    """Make a barrier for each stage."""
    if cuda.threadIdx.x == 0:
        for s in range(STAGES):
            make_barrier(int32(barriers + 8 * s))


def copy_weights_of_warpgroup(to: int, source: int, nbytes: int, barrier: int) -> None:
    """Start the copy of the tile's weights, in one run."""
    if cuda.threadIdx.x == 0:
        copy_run(to, source, nbytes, barrier)


def arrived_of_warpgroup(barrier: int, parity: int) -> None:
    """Wait for the weights of a stage."""
    wait_at(barrier, parity)


def load_of_warpgroup(stage: int, own: Any) -> None:
    """own = the rows of X of the first stage, split."""
    load_words(own, _rows_at(stage, int32(cuda.threadIdx.x)))


def multiply_of_warpgroup(stage: int, following: int, part: Any, own: Any, then: Any) -> None:
    """part = the products of a tile of K, for a warp's 16 rows of X (`own`) and all channels of the tile.

    Meanwhile the rows of the next stage are read and split.
    """
    wgmma(part, own, then, int32(stage + X_BYTES), _rows_at(following, int32(cuda.threadIdx.x)))


def begin_of_warp(barriers: int) -> None:
    """Do nothing: copies are waited for by count."""


def arrived_of_warp(barrier: int, parity: int) -> None:
    """Do nothing: weights are copied together with the rows."""


def load_of_warp(stage: int, own: Any) -> None:
    """Do nothing: rows of X are read when they are multiplied."""


def copy_weights_of_warp(to: int, source: int, nbytes: int, barrier: int) -> None:
    """Start a thread's share of the copy of the tile's weights; 0 from `nbytes` on."""
    t = int32(cuda.threadIdx.x)
    for q in range(W_UNITS):
        at = int32((q * THREADS + t) * 16)
        inside = at < nbytes
        copy_16(int32(to + at), source + at if inside else source, int32(16 if inside else 0))


def store_sums_of_warpgroup(base: int, total: Any) -> None:
    """Store the sums in shared memory, pixel by pixel, ACROSS floats apart."""
    t = int32(cuda.threadIdx.x)
    row, column = (t >> 5) * 16 + ((t & 31) >> 2), (t & 3) * 2
    for j in range(COLUMNS_OF_8):
        at = int32(base + (row * ACROSS + column + 8 * j) * 4)
        store_pair(at, total[4 * j], total[4 * j + 1])
        store_pair(int32(at + 32 * ACROSS), total[4 * j + 2], total[4 * j + 3])


def multiply_of_warp(stage: int, following: int, part: Any, own: Any, then: Any) -> None:
    """part = the products of a tile of K, for the rows of X and the channels of one warp."""
    big, small = cuda.local.array(A_WORDS, float32), cuda.local.array(A_WORDS, float32)
    w_big, w_small = cuda.local.array(B_WORDS, float32), cuda.local.array(B_WORDS, float32)
    t = int32(cuda.threadIdx.x)
    lane, warp = t & 31, t >> 5
    row = warp // WARPS_ACROSS * (16 * ROWS_OF_16) + (lane & 15)
    atom = warp % WARPS_ACROSS * COLUMNS_OF_8
    for i in range(SUMS):
        part[i] = np.float32(0)
    for k in range(_K_STEPS):
        for i in range(ROWS_OF_16):
            chunk = (2 * k + (lane >> 4)) ^ (lane & 7)
            a, b, c, d = load_matrices(int32(stage + (row + 16 * i) * 128 + (chunk << 4)))
            big[4 * i], small[4 * i] = split_one(a)
            big[4 * i + 1], small[4 * i + 1] = split_one(b)
            big[4 * i + 2], small[4 * i + 2] = split_one(c)
            big[4 * i + 3], small[4 * i + 3] = split_one(d)
        for j in range(COLUMNS_OF_8):
            chunk = (2 * k + ((lane >> 3) & 1)) ^ (lane & 7)
            at = int32(stage + X_BYTES + (atom + j) * W_ATOM + (lane & 7) * 128 + (chunk << 4))
            if PRODUCTS > 1:
                a, b, c, d = load_matrices(int32(at + (lane >> 4) * 1024))
                w_big[2 * j], w_big[2 * j + 1], w_small[2 * j], w_small[2 * j + 1] = a, b, c, d
            else:
                w_big[2 * j], w_big[2 * j + 1], a, b = load_matrices(at)
        if PRODUCTS > 1:
            for i in range(ROWS_OF_16):
                for j in range(COLUMNS_OF_8):
                    add_product(part, 4 * (i * COLUMNS_OF_8 + j), small, 4 * i, w_big, 2 * j)
            for i in range(ROWS_OF_16):
                for j in range(COLUMNS_OF_8):
                    add_product(part, 4 * (i * COLUMNS_OF_8 + j), big, 4 * i, w_small, 2 * j)
        for i in range(ROWS_OF_16):
            for j in range(COLUMNS_OF_8):
                add_product(part, 4 * (i * COLUMNS_OF_8 + j), big, 4 * i, w_big, 2 * j)


def store_sums_of_warp(base: int, total: Any) -> None:
    """Store the sums in shared memory, pixel by pixel, ACROSS floats apart."""
    t = int32(cuda.threadIdx.x)
    lane, warp = t & 31, t >> 5
    row = warp // WARPS_ACROSS * (16 * ROWS_OF_16) + (lane >> 2)
    column = warp % WARPS_ACROSS * (8 * COLUMNS_OF_8) + (lane & 3) * 2
    for i in range(ROWS_OF_16):
        for j in range(COLUMNS_OF_8):
            o = 4 * (i * COLUMNS_OF_8 + j)
            at = int32(base + ((row + 16 * i) * ACROSS + column + 8 * j) * 4)
            store_pair(at, total[o], total[o + 1])
            store_pair(int32(at + 32 * ACROSS), total[o + 2], total[o + 3])


def functions_of(kind: str) -> dict[str, Any]:
    """The functions for one kind of tensor cores, by the names under which a kernel calls them."""
    names = "begin", "copy_weights", "arrived", "load", "multiply", "store_sums"
    return {f"_{name}": globals()[f"{name}_of_{kind}"] for name in names}


#: For each kind of tensor cores, the functions that fill and multiply stages and store their sums.
TILES_BY: dict[str, Any] = (
    {"simulated": functions_of("simulated")}
    if SIMULATED
    else {"wgmma": functions_of("warpgroup"), "mma": functions_of("warp")}
)
