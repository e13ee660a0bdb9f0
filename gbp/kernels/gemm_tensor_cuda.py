"""Dense layers on a card's tensor cores, at float32's accuracy.  They take as long as reading w does.

    forward  y[n, m]  = Σ_k x[n, k] · w[m, k]        backward  gx[n, k] = Σ_m gy[n, m] · w[m, k]

A block computes 64 outputs of some samples.  Each step multiplies 32 terms of each sum, while the terms of
the next steps are copied to shared memory.  Outputs are the rows of the product and samples its columns, so a
single sample uses all that is read.  Weights are stored as in the file, and split into big and small parts in
registers.

The sums are cut into as many parts as fill a card.  Each part has its own blocks; `finish_fwd` and
`finish_bwd` of convolutions add the parts in order.  So the bits do not depend on the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32

from .codegen.gate import Gate
from .codegen.jit import ACTIVATION, DENSE, INT
from .codegen.jit_cuda import SIMULATED, CudaKernel, block_kernel, int32, int64, specialised
from .codegen.staging_cuda import commit, copy_4, copy_16, global_address, shared_address
from .codegen.staging_cuda import wait_2 as _wait
from .codegen.tensor_cuda import split
from .codegen.warps_cuda import add_product, floats_at, split_word
from .eights_cuda import all_in_fours
from .sums_cuda import finish_bwd, finish_fwd

#: Outputs of a block, terms of a step, and steps that are being copied.
ROWS = 16 if SIMULATED else 64
DEPTH = 32
STAGES = 4
#: Samples of a block: few or many.
SAMPLES = (8, 32)
_WARPS = ROWS // 16
THREADS = _WARPS * (1 if SIMULATED else 32)
#: Floats between the terms of an output or a sample; and between outputs, if those are neighbours in memory.
_APART = DEPTH + 4
_ROWS_APART = ROWS + 8
_ENOUGH_BLOCKS = 4 if SIMULATED else 4 * 132
_FEWEST_STEPS = 1 if SIMULATED else 8

#: Values of the kernel that a copy of the functions below is made for.
COLUMNS = OWN = COLUMNS_OF_8 = W_FLOATS = STAGE_FLOATS = ROW_STEP = TERM_STEP = FORWARD = 1
_multiply: Any = None
_keep: Any = None


def parts_of(outputs: int, terms: int) -> int:
    """The number of parts that the sums are cut into."""
    steps = -(-terms // DEPTH)
    blocks = -(-outputs // ROWS)
    parts = max(1, min(_ENOUGH_BLOCKS // max(1, blocks), steps // _FEWEST_STEPS))
    return -(-steps // -(-steps // parts))


def _copy_line(to: int, source: int, count: int, fours: int) -> None:
    """Copy four floats to shared memory; 0 from number `count` on."""
    if fours:
        copy_16(to, source, int32(min(max(count, 0), 4) * 4))
    else:
        for e in range(4):
            inside = e < count
            copy_4(int32(to + 4 * e), source + 4 * e if inside else source, int32(4 if inside else 0))


def _fetch(
    x: Any, w: Any, outputs: int, terms: int, row: int, sample: int, step: int, fours: int, stage: int
) -> None:  # fmt: skip
    """Start a thread's share of the copies of a step: of w and of x."""
    t = int32(cuda.threadIdx.x)
    first = step * DEPTH
    start = global_address(w)
    for unit in range(t, ROWS * DEPTH // 4, THREADS):
        if FORWARD:  # w[row, term], terms are neighbours
            r, k = unit // (DEPTH // 4), unit % (DEPTH // 4) * 4
            count = terms - first - k if row + r < outputs else 0
            at, to = (row + r) * terms + first + k, r * _APART + k
        else:  # w[term, row], rows are neighbours
            k, r = unit // (ROWS // 4), unit % (ROWS // 4) * 4
            count = outputs - row - r if first + k < terms else 0
            at, to = (first + k) * outputs + row + r, k * _ROWS_APART + r
        _copy_line(int32(stage + 4 * to), start + 4 * at if count > 0 else start, count, fours)
    base = global_address(x)
    for unit in range(t, COLUMNS * DEPTH // 4, THREADS):
        n, k = unit // (DEPTH // 4), unit % (DEPTH // 4) * 4
        count = terms - first - k if sample + n < x.shape[0] else 0
        source = base + (sample + n) * x.strides[0] + 4 * (first + k) if count > 0 else base
        _copy_line(int32(stage + 4 * (W_FLOATS + n * _APART + k)), source, count, fours)


def _gemm(x: Any, w: Any, partial: Any, outputs: int, part_steps: int, fours: int) -> None:
    """Write the partial sums (parts, N, outputs rounded up to four) of x (N, 1, 1, terms) with w."""
    shared = cuda.shared.array(0, float32, alignment=16)
    own, part = cuda.local.array(OWN, float32), cuda.local.array(OWN, float32)
    N, terms = x.shape[0], x.shape[3]
    groups = (N + COLUMNS - 1) // COLUMNS
    sample, row = cuda.blockIdx.x % groups * COLUMNS, cuda.blockIdx.x // groups * ROWS
    begin = int64(cuda.blockIdx.y) * part_steps
    end = min(begin + part_steps, (terms + DEPTH - 1) // DEPTH)
    base = int32(shared_address(shared))
    for i in range(OWN):
        own[i] = np.float32(0)
    for s in range(STAGES - 1):
        if begin + s < end:
            to = int32(base + s * 4 * STAGE_FLOATS)
            _fetch(x, w, outputs, terms, row, sample, begin + s, fours, to)
        commit()
    for step in range(begin, end):
        _wait()
        cuda.syncthreads()
        ahead = step + STAGES - 1
        if ahead < end:
            to = int32(base + (ahead - begin) % STAGES * 4 * STAGE_FLOATS)
            _fetch(x, w, outputs, terms, row, sample, ahead, fours, to)
        commit()
        _multiply(int32(base + (step - begin) % STAGES * 4 * STAGE_FLOATS), part)
        for i in range(OWN):
            own[i] += part[i]
    start = (cuda.blockIdx.y * N + sample) * ((outputs + 3) // 4 * 4) + row
    _keep(own, partial, start, N - sample, outputs - row, (outputs + 3) // 4 * 4)


def _multiply_by_warp(stage: int, part: Any) -> None:
    """part = the products of a step, of a warp's 16 rows with all columns."""
    big, small = cuda.local.array(4, float32), cuda.local.array(4, float32)
    x_big, x_small = cuda.local.array(2, float32), cuda.local.array(2, float32)
    t = int32(cuda.threadIdx.x)
    g, r = (t & 31) >> 2, t & 3
    row = (t >> 5) * 16 + g
    for i in range(OWN):
        part[i] = np.float32(0)
    for k in range(DEPTH // 8):
        at = stage + 4 * (row * ROW_STEP + (8 * k + r) * TERM_STEP)
        for e in range(4):
            split_word(int32(at + 4 * (e % 2 * 8 * ROW_STEP + e // 2 * 4 * TERM_STEP)), e, big, small)
        for j in range(COLUMNS_OF_8):
            to = stage + 4 * (W_FLOATS + (8 * j + g) * _APART + 8 * k + r)
            for e in range(2):
                split_word(int32(to + 16 * e), e, x_big, x_small)
            add_product(part, 4 * j, small, 0, x_big, 0)
            add_product(part, 4 * j, big, 0, x_small, 0)
            add_product(part, 4 * j, big, 0, x_big, 0)


def _keep_of_warp(own: Any, partial: Any, start: int, samples: int, outputs: int, apart: int) -> None:
    """The sums to where those of a part are kept, as far as there are samples and outputs."""
    t = int32(cuda.threadIdx.x)
    row = (t >> 5) * 16 + ((t & 31) >> 2)
    for j in range(COLUMNS_OF_8):
        for e in range(4):
            n, m = 8 * j + (t & 3) * 2 + e % 2, row + e // 2 * 8
            if n < samples and m < outputs:
                partial[start + n * apart + m] = own[4 * j + e]


if SIMULATED:

    def _multiply_simulated(stage: int, part: Any) -> None:
        floats = floats_at(stage, STAGE_FLOATS)
        w = np.lib.stride_tricks.as_strided(floats, (ROWS, DEPTH), (4 * ROW_STEP, 4 * TERM_STEP))
        x = floats[W_FLOATS:].reshape(COLUMNS, _APART)[:, :DEPTH]
        (big, small), (x_big, x_small) = split(w.copy()), split(x.copy())
        pairs = (small, x_big), (big, x_small), (big, x_big)
        sums = sum(a.astype(np.float64) @ b.astype(np.float64).T for a, b in pairs)
        part[:] = np.asarray(sums, np.float32).reshape(-1)

    def _keep_simulated(own: Any, partial: Any, start: int, samples: int, outputs: int, apart: int) -> None:
        for n, sums in enumerate(own.reshape(ROWS, COLUMNS).T[:samples]):
            partial[start + n * apart : start + n * apart + min(ROWS, outputs)] = sums[:outputs]

    _ENDS = _multiply_simulated, _keep_simulated
else:
    _ENDS = _multiply_by_warp, _keep_of_warp


def _kernel_of(forward: bool, columns: int) -> CudaKernel:
    w_floats = ROWS * _APART if forward else DEPTH * _ROWS_APART
    values = {
        "FORWARD": int(forward),
        "COLUMNS": columns,
        "COLUMNS_OF_8": columns // 8,
        "OWN": ROWS * columns // THREADS,
        "W_FLOATS": w_floats,
        "STAGE_FLOATS": w_floats + columns * _APART,
        "ROW_STEP": _APART if forward else 1,
        "TERM_STEP": 1 if forward else _ROWS_APART,
    }
    called: dict[str, Any] = {
        "_copy_line": _copy_line,
        "_fetch": _fetch,
        "_multiply": _ENDS[0],
        "_keep": _ENDS[1],
    }
    (gemm,) = specialised(f"tensor_{'fwd' if forward else 'bwd'}{columns}", (_gemm,), called, values)

    def blocks(*args: Any) -> tuple[int, int]:
        x, _, partial, outputs = args[:4]
        parts = partial.size // (len(x) * (-(-outputs // 4) * 4))
        return -(-len(x) // columns) * -(-outputs // ROWS), parts

    return block_kernel(
        *(ACTIVATION, DENSE, DENSE, INT, INT, INT),
        threads=(THREADS,),
        blocks=blocks,
        shared_bytes=STAGES * 4 * values["STAGE_FLOATS"],
        least_blocks=4,
        capability=(8, 0),
    )(gemm)


KERNELS = {columns: (_kernel_of(True, columns), _kernel_of(False, columns)) for columns in SAMPLES}


def _partial(x: Any, w: Any, outputs: int, forward: bool) -> tuple[Any, int]:
    """The parts' sums of a product, and how many parts."""
    N, terms = len(x), x.shape[3]
    parts = parts_of(outputs, terms)
    partial = x.device.empty((parts * N * (-(-outputs // 4) * 4),))
    kernels = KERNELS[SAMPLES[0] if SAMPLES[0] >= N else SAMPLES[1]]
    steps = (terms + DEPTH - 1) // DEPTH
    part_steps = (steps + parts - 1) // parts
    fours = all_in_fours(x) and w.is_aligned(16) and (terms if forward else outputs) % 4 == 0
    kernels[0 if forward else 1](x, w, partial, outputs, part_steps, int(fours))
    return partial, parts


def forward(x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, lo: float, hi: float) -> None:
    """As `gemm_cuda.gemm_fwd`."""
    partial, parts = _partial(x, w, y.shape[3], True)
    finish_fwd(partial, parts, b, r, y, mask, lo, hi, all_in_fours(y, r))


def backward(gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int) -> None:
    """As `gemm_cuda.gemm_bwd`."""
    partial, parts = _partial(gy, w, gx.shape[3], False)
    finish_bwd(partial, parts, mask, gate, gx, accumulate, all_in_fours(gx))
