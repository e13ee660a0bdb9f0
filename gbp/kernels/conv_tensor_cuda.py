"""Convolution on a card's tensor cores, at float32's accuracy (`tensor_cuda`): implicit GEMM.

    y[p, o] = Σ_k X[p, k] · w[k, o],   k = (i·KW + j)·C + c,   X[p, k] = x[n, oh·sh + i·dh − top, …, c] or 0

A block computes a tile of pixels × channels.  Each step multiplies 32 columns of X with 32 rows of w.
Meanwhile those of the next steps are copied to shared memory by `cp.async`, which writes zeros for taps in
the padding.  Weights are stored split into big and small, in the order that they have in shared memory.

The sums over k are cut into as many parts as fill a card with the blocks of one sample.  If a layer has many
sums, each block adds its own parts.  If it has few, each part has a block, and `sums_cuda` adds.  Both add
the parts in the same order.  So the bits depend neither on that choice nor on the tile.

The backward pass is the same product of gy and weights whose input and output channels are exchanged and
whose taps are in reverse order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32

from .codegen import staging_cuda as staging
from .codegen.gate import GATE, MASK, Gate
from .codegen.jit import ACTIVATION, DENSE, FLOAT, INT
from .codegen.jit_cuda import SIMULATED, CudaKernel, block_kernel, int32, int64, specialised
from .codegen.staging_cuda import (
    below,
    commit,
    copy_4,
    copy_16,
    divide,
    global_address,
    load_place,
    shared_address,
    store_place,
)
from .codegen.tensor_cuda import load_words_of, wgmma_of
from .codegen.warps_cuda import TILES_BY
from .eights_cuda import eight_of, epilogue_bwd, epilogue_fwd
from .sums_cuda import keep_eight
from .taps import TAPS, Taps

#: Columns of X that a step multiplies, and bytes of a row of them.
DEPTH = 32
_ROW = 4 * DEPTH
#: Bytes of eight channels of a tile of weights, big or small.
_ATOM = 8 * _ROW
_FAR = -(2**30)  # a row so far above the plane that no tap is on it


class Tile(NamedTuple):
    """The work of a block.

    `pixels`, `channels`: what it computes.  `stages`: steps in shared memory at once.  `blocks`: blocks of a
    multiprocessor.  `kind`: of the tensor cores, "wgmma", "mma" or "simulated".  `products`: 3 for float32's
    accuracy, 1 for TF32's.
    """

    pixels: int
    channels: int
    stages: int
    blocks: int
    kind: str = "wgmma"
    warps: int = 8
    products: int = 3

    @property
    def threads(self) -> int:
        return self.warps * (1 if SIMULATED else 32)

    @property
    def rows_bytes(self) -> int:
        """Room for the first tap of each pixel, and a barrier for each stage."""
        barriers = 8 * self.stages if self.kind == "wgmma" else 0
        return -(-(16 * self.pixels + barriers) // 1024) * 1024

    @property
    def stage_bytes(self) -> int:
        return _ROW * (self.pixels + self.channels * (2 if self.products > 1 else 1))

    @property
    def shared_bytes(self) -> int:
        """Room for the stages, which begin at multiples of 1024 bytes.  At the end the sums replace them."""
        sums = 4 * self.pixels * (self.channels + 8)
        return 1024 + self.rows_bytes + max(self.stages * self.stage_bytes, sums)


#: Values of the tile that a copy of the functions below is made for.  `kernels_of` sets them.
PIXELS = CHANNELS = THREADS = STAGES = OWN = WORDS = EIGHTS = ACROSS = 1
ROWS_BYTES = X_BYTES = STAGE_BYTES = W_ATOM = X_UNITS = X_WORDS = W_UNITS = 0
_begin: Any = None
_copy_weights = _first_wait = _wait = _arrived = _load = _multiply = _store_sums = _begin


class Shared(NamedTuple):
    """Addresses in shared memory: of the first taps of pixels, of a barrier for each stage, and of stages."""

    places: int
    barriers: int
    stages: int


class Factors(NamedTuple):
    """The factors of a block's products, beside x.

    `K`: terms of a sum.  `w`: address of the weights, which are of `eights` times eight channels, the block's
    from number `first` on.  `fours`: see `_conv_fwd`.
    """

    K: int
    w: int
    eights: int
    first: int
    fours: int


class Parts(NamedTuple):
    """How sums are cut: see `_conv_fwd`.  `kept`: memory for the sums of parts.  `steps`: of a part."""

    kept: Any
    alone: int
    steps: int


def _conv_fwd(
    x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, taps: Taps, lo: float, hi: float,
    partial: Any, alone: int, part_steps: int, x_fours: int, y_fours: int,
) -> None:  # fmt: skip
    """See `conv_tiles_cuda.Conv.forward`.

    `partial`: memory for the sums of parts.  `alone`: whether each part has a block of its own.  `x_fours`,
    `y_fours`: whether x, and r and y, are read and written by fours; 2 if also no step is in two taps.
    """
    shared = cuda.shared.array(0, float32, alignment=16)
    v = cuda.local.array(8, float32)
    at = _product(x, w, y, taps, Parts(partial, alone, part_steps), x_fours, shared)
    N, OH, OW, O = y.shape
    for unit in range(cuda.threadIdx.x, PIXELS * EIGHTS, THREADS):
        p, n, h, u, o = _place_of(unit, y)
        if n < N and o < O:
            eight_of(shared, at + unit // EIGHTS * ACROSS + unit % EIGHTS * 8, v)
            if alone:
                keep_eight(v, cuda.blockIdx.y * N * OH * OW + p, o, partial, (O + 3) // 4 * 4)
            else:
                epilogue_fwd(v, n, h, u, o, b, r, y, mask, lo, hi, y_fours)


def _conv_bwd(
    gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps,
    partial: Any, alone: int, part_steps: int, gy_fours: int, gx_fours: int,
) -> None:  # fmt: skip
    """See `conv_tiles_cuda.Conv.backward`, and `_conv_fwd` for the other arguments."""
    shared = cuda.shared.array(0, float32, alignment=16)
    v = cuda.local.array(8, float32)
    at = _product(gy, w, gx, taps, Parts(partial, alone, part_steps), gy_fours, shared)
    N, H, W, C = gx.shape
    for unit in range(cuda.threadIdx.x, PIXELS * EIGHTS, THREADS):
        p, n, h, u, c = _place_of(unit, gx)
        if n < N and c < C:
            eight_of(shared, at + unit // EIGHTS * ACROSS + unit % EIGHTS * 8, v)
            if alone:
                keep_eight(v, cuda.blockIdx.y * N * H * W + p, c, partial, (C + 3) // 4 * 4)
            else:
                epilogue_bwd(v, n, h, u, c, mask, gate, gx, accumulate, gx_fours)


def _place_of(unit: int, y: Any) -> tuple[int, int, int, int, int]:
    """A unit of a block's sums: the number of its pixel in y, that pixel's n, h and w, its first channel."""
    _, H, W, C = y.shape
    across = (C + CHANNELS - 1) // CHANNELS
    p = int32(cuda.blockIdx.x // across * PIXELS + unit // EIGHTS)
    line = divide(p, int32(W))
    n = divide(line, int32(H))
    first = cuda.blockIdx.x % across * CHANNELS
    return p, int64(n), int64(line - n * int32(H)), int64(p - line * int32(W)), first + unit % EIGHTS * 8


def _product(x: Any, w: Any, y: Any, taps: Taps, parts: Parts, fours: int, shared: Any) -> int:
    """Store the sums of a block where the stages were, pixel by pixel.  Returns the index of the first."""
    start = shared_address(shared)
    places = int32((start + 1023) // 1024 * 1024)
    memory = Shared(places, int32(places + 16 * PIXELS), int32(places + ROWS_BYTES))
    across = (y.shape[3] + CHANNELS - 1) // CHANNELS
    block, first = cuda.blockIdx.x // across, cuda.blockIdx.x % across * EIGHTS
    K = taps.rows * taps.columns * x.shape[3]
    factors = Factors(K, global_address(w), (y.shape[3] + 7) // 8, first, fours)
    begin, end = int32(0), int32((K + DEPTH - 1) // DEPTH)
    boundary = int32(parts.steps)
    if parts.alone:
        begin = int32(cuda.blockIdx.y * parts.steps)
        end = int32(min(begin + parts.steps, end))
        boundary = end
    own, part = cuda.local.array(OWN, float32), cuda.local.array(OWN, float32)
    words, others = cuda.local.array(WORDS, float32), cuda.local.array(WORDS, float32)
    for i in range(OWN):
        own[i] = np.float32(0)
    _begin(memory.barriers)
    _locate(x, y, taps, block, memory.places)
    cuda.syncthreads()
    for s in range(STAGES - 1):
        _fetch(x, taps, factors, int32(begin + s), end, int32(s), memory)
    _first_wait()
    cuda.syncthreads()
    if begin < end:
        _load(memory.stages, words)
    stage, ahead, parity = int32(0), int32(STAGES - 1), int32(0)
    step = begin
    while step < end:
        for turn in range(2):  # in which the two arrays of words change places: registers have fixed names
            if step < end:
                _wait()
                cuda.syncthreads()
                _fetch(x, taps, factors, int32(step + STAGES - 1), end, ahead, memory)
                _arrived(int32(memory.barriers + 8 * stage), parity)
                to = int32(memory.stages + stage * STAGE_BYTES)
                following = int32(to + STAGE_BYTES if stage < STAGES - 1 else memory.stages)
                if turn == 0:
                    _multiply(to, following, part, words, others)
                else:
                    _multiply(to, following, part, others, words)
                for i in range(OWN):
                    own[i] += part[i]
                ahead = stage
                if stage < STAGES - 1:
                    stage = int32(stage + 1)
                else:
                    stage, parity = int32(0), int32(parity ^ 1)
                step = int32(step + 1)
                if step == boundary and step < end:
                    _add_up(own, parts.kept, step == parts.steps, False)
                    boundary = int32(boundary + parts.steps)
    if not parts.alone and boundary > parts.steps:
        _add_up(own, parts.kept, False, True)
    cuda.syncthreads()
    _store_sums(memory.stages, own)
    cuda.syncthreads()
    return (memory.stages - start) // 4


def _locate(x: Any, y: Any, taps: Taps, block: int, places: int) -> None:
    """Write address, h and w of the first tap of each of the block's pixels."""
    N, OH, OW = int32(y.shape[0]), int32(y.shape[1]), int32(y.shape[2])
    for row in range(cuda.threadIdx.x, PIXELS, THREADS):
        p = int32(block * PIXELS + row)
        line = divide(p, OW)
        n = divide(line, OH)
        h = int64(line - n * OH) * taps.stride_h - taps.top
        w = int64(p - line * OW) * taps.stride_w - taps.left
        place = global_address(x) + n * x.strides[0] + h * x.strides[1] + w * x.strides[2]
        store_place(int32(places + 16 * row), place, int32(h if n < N else _FAR), int32(w))


def _fetch(x: Any, taps: Taps, factors: Factors, step: int, end: int, stage: int, memory: Shared) -> None:
    """Start a thread's share of the copies of a step, if there is one, to a stage."""
    if step < end:
        to = int32(memory.stages + stage * STAGE_BYTES)
        _copy_weights(
            int32(to + X_BYTES),
            factors.w + (int64(step) * factors.eights + factors.first) * W_ATOM,
            int32(min(EIGHTS, factors.eights - factors.first) * W_ATOM),
            int32(memory.barriers + 8 * stage),
        )
        _copy_columns(x, taps, factors, step, memory.places, to)
    commit()


def _copy_columns(x: Any, taps: Taps, factors: Factors, step: int, places: int, to: int) -> None:
    """Start a thread's share of the copies of DEPTH columns of X: by fours, or one by one.

    Chunk c of four columns of row r is stored at position c xor r.
    """
    t = int32(cuda.threadIdx.x)
    if factors.fours:
        for q in range(X_UNITS):
            unit = int32(q * THREADS + t)
            row, chunk = unit >> 3, unit & 7
            k = int32(step * DEPTH + chunk * 4)
            tap = divide(int32(step * DEPTH) if factors.fours > 1 else k, int32(x.shape[3]))
            source, inside = _find(x, taps, factors.K, k, tap, int32(places + row * 16))
            at = int32(to + row * _ROW + ((chunk ^ (row & 7)) << 4))
            copy_16(at, source, int32(16 if inside else 0))
    else:
        for q in range(X_WORDS):
            unit = int32(q * THREADS + t)
            row, word = unit >> 5, unit & 31
            k = int32(step * DEPTH + word)
            tap = divide(k, int32(x.shape[3]))
            source, inside = _find(x, taps, factors.K, k, tap, int32(places + row * 16))
            at = int32(to + row * _ROW + (((word >> 2) ^ (row & 7)) << 4) + ((word & 3) << 2))
            copy_4(at, source, int32(4 if inside else 0))


def _find(x: Any, taps: Taps, K: int, k: int, tap: int, place: int) -> tuple[int, bool]:
    """The address in x of column k of X, which is in this tap, and whether it is inside.

    `place`: where that of the row's pixel is stored.
    """
    C, H, W, KW = int32(x.shape[3]), int32(x.shape[1]), int32(x.shape[2]), int32(taps.columns)
    i = divide(tap, KW)
    dh, dw = int32(i * taps.dilation_h), int32((tap - i * KW) * taps.dilation_w)
    address, h, w = load_place(place)
    inside = k < K and below(int32(h + dh), H) and below(int32(w + dw), W)
    return address + (dh * x.strides[1] + dw * x.strides[2] + 4 * (k - tap * C)), inside


def _add_up(own: Any, kept: Any, is_first: bool, is_last: bool) -> None:
    """Add the sums of a part to those of the parts before it, which are kept in memory."""
    start = cuda.blockIdx.x * (OWN * THREADS) + cuda.threadIdx.x
    for i in range(OWN):
        v = own[i] if is_first else kept[start + i * THREADS] + own[i]
        if is_last:
            own[i] = v
        else:
            kept[start + i * THREADS] = v
            own[i] = np.float32(0)


def _constants(tile: Tile) -> dict[str, Any]:
    """The values of a tile, by the names that its copy of the functions reads."""
    halves = 2 if tile.products > 1 else 1
    values: dict[str, Any] = {
        "PIXELS": tile.pixels,
        "CHANNELS": tile.channels,
        "THREADS": tile.threads,
        "STAGES": tile.stages,
        "EIGHTS": tile.channels // 8,
        "ACROSS": tile.channels + 8,
        "ROWS_BYTES": tile.rows_bytes,
        "X_BYTES": tile.pixels * _ROW,
        "STAGE_BYTES": tile.stage_bytes,
        "W_ATOM": _ATOM * halves,
        "X_UNITS": tile.pixels * 8 // tile.threads,
        "X_WORDS": tile.pixels * 32 // tile.threads,
        "W_UNITS": tile.channels * 8 * halves // tile.threads,
        "PRODUCTS": tile.products,
        "OWN": tile.pixels * tile.channels // tile.threads,
        "WORDS": 16 * halves if tile.kind == "wgmma" else 1,
    }
    # A warpgroup reads the rows of a stage while it multiplies those of the stage before.
    early = tile.kind == "wgmma"
    waits = staging.wait_0, staging.wait_1, staging.wait_2
    values |= {"_first_wait": waits[tile.stages - 2], "_wait": waits[tile.stages - 2 - early]}
    if tile.kind == "wgmma":
        values |= {"wgmma": wgmma_of(tile.channels, tile.products), "COLUMNS_OF_8": tile.channels // 8}
        values |= {"load_words": load_words_of(tile.products)}
    elif tile.kind == "mma":
        columns = min(tile.channels, 32)
        across = tile.channels // columns
        rows = tile.pixels // (tile.warps // across) // 16
        values |= {"WARPS_ACROSS": across, "ROWS_OF_16": rows, "COLUMNS_OF_8": columns // 8}
        values |= {"A_WORDS": 4 * rows, "B_WORDS": columns // 4, "SUMS": values["OWN"]}
    return values


def _called(tile: Tile) -> dict[str, Any]:
    """The functions that the kernels call, by the names under which they call them."""
    own = _place_of, _product, _locate, _fetch, _copy_columns, _find, _add_up
    return {function.__name__: function for function in own} | TILES_BY[tile.kind]


def kernels_of(tile: Tile) -> tuple[CudaKernel, CudaKernel]:
    """Make the two kernels that compute such tiles."""
    name = f"{tile.kind}{tile.products}_{tile.pixels}x{tile.channels}_{tile.stages}"
    conv_fwd, conv_bwd = specialised(name, (_conv_fwd, _conv_bwd), _called(tile), _constants(tile))

    def blocks_of(y: Any, partial: Any, alone: int) -> tuple[int, int]:
        N, H, W, C = y.shape
        parts = partial.size // (N * H * W * (-(-C // 4) * 4)) if alone else 1
        return -(-N * H * W // tile.pixels) * -(-C // tile.channels), parts

    forward = ACTIVATION, DENSE, DENSE, ACTIVATION, ACTIVATION, MASK, TAPS, FLOAT, FLOAT
    backward = ACTIVATION, DENSE, MASK, GATE, ACTIVATION, INT, TAPS
    options: dict[str, Any] = {
        "threads": (tile.threads,),
        "shared_bytes": tile.shared_bytes,
        "least_blocks": tile.blocks,
        "capability": {"wgmma": (9, 0), "mma": (8, 0)}.get(tile.kind, (0, 0)),
    }
    more = DENSE, INT, INT, INT, INT
    return (
        block_kernel(*forward, *more, blocks=lambda *a: blocks_of(a[4], a[9], a[10]), **options)(conv_fwd),
        block_kernel(*backward, *more, blocks=lambda *a: blocks_of(a[4], a[7], a[8]), **options)(conv_bwd),
    )
