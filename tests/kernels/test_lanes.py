"""What lanes of a warp do on tensor cores, with the instructions' meaning as NVIDIA's PTX ISA has it.

The simulator's other tests let a thread stand for a warp.  Here 32 threads are one, and the instructions that
lanes do together exchange what each brings: `ldmatrix`, `mma.sync.m16n8k8`, `wgmma.mma_async.m64nNk8`.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import pytest
from harness import ON_CARD
from numpy.typing import NDArray

if not ON_CARD:
    pytest.skip("needs the simulator", allow_module_level=True)

from gbp.devices.cuda import cuda_device
from gbp.kernels import conv_tensor_cuda as conv
from gbp.kernels.codegen import warps_cuda
from gbp.kernels.codegen.tensor_cuda import split
from gbp.kernels.conv_tiles_cuda import NOTHING, pack, steps_of
from gbp.kernels.taps import Taps

NO_TENSOR, NO_MASK = np.empty((0, 0, 0, 0), np.float32), np.empty((0, 0, 0, 0), np.uint8)
_brought: dict[int, Any] = {}


def lane_of() -> int:
    thread: Any = threading.current_thread()
    return int(thread.threadIdx.x)


def together(value: Any) -> dict[int, Any]:
    """What every lane brings."""
    thread: Any = threading.current_thread()
    _brought[lane_of()] = value
    thread.syncthreads()
    everyones = dict(_brought)
    thread.syncthreads()
    return everyones


def truncated(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """As tensor cores read it."""
    return (np.ascontiguousarray(x).view(np.int32) & np.int32(-0x2000)).view(np.float32).astype(np.float64)


def word_at(address: int) -> float:
    return ctypes.c_float.from_address(address).value


def load_matrices(address: int) -> tuple[np.float32, ...]:
    rows, lane = together(address), lane_of()
    first = lane // 32 * 32
    return tuple(np.float32(word_at(rows[first + 8 * m + lane % 32 // 4] + lane % 4 * 4)) for m in range(4))


def split_one(x: float) -> tuple[Any, Any]:
    big, small = split(np.array([x], np.float32))
    return big[0], small[0]


def left_of(lanes: dict[int, Any], first: int) -> NDArray[np.float32]:
    """A 16 × 8 of a warp, of which each lane brings four."""
    a = np.empty((16, 8), np.float32)
    for lane in range(32):
        g, r = lane // 4, lane % 4
        a[g, r], a[g + 8, r], a[g, r + 4], a[g + 8, r + 4] = lanes[first + lane]
    return a


def own_of(sums: NDArray[Any], lane: int) -> list[np.float32]:
    """What a lane has of each 16 × 8 of a warp's sums."""
    g, r = lane % 32 // 4, lane % 4
    return [
        np.float32(sums[g + e // 2 * 8, 8 * j + 2 * r + e % 2])
        for j in range(sums.shape[1] // 8)
        for e in range(4)
    ]


def mma(*given: float) -> list[np.float32]:
    lanes, lane = together(given), lane_of()
    first = lane // 32 * 32
    a = left_of({k: v[4:8] for k, v in lanes.items()}, first)
    b, c = np.empty((8, 8), np.float32), np.empty((16, 8), np.float32)
    for k in range(32):
        g, r = k // 4, k % 4
        b[r, g], b[r + 4, g] = lanes[first + k][8:]
        c[g, 2 * r], c[g, 2 * r + 1], c[g + 8, 2 * r], c[g + 8, 2 * r + 1] = lanes[first + k][:4]
    return own_of(c + truncated(a) @ truncated(b), lane)


def load_words(own: Any, rows: int) -> None:
    for k in range(4):
        for i, word in enumerate(load_matrices(rows ^ (32 * k))):
            own[4 * k + i], own[16 + 4 * k + i] = split_one(float(word))


def wgmma_of(columns: int) -> Any:
    def wgmma(part: Any, own: Any, following: Any, weights: int, rows: int) -> None:
        lanes, lane = together(np.array(own)), lane_of()
        first, total = lane // 32 * 32, np.zeros((16, columns))
        for half, other in ((16, 0), (0, 1), (0, 0)):
            for k in range(4):
                a = left_of({i: v[half + 4 * k : half + 4 * k + 4] for i, v in lanes.items()}, first)
                b = np.empty((8, columns), np.float32)
                for o in range(columns):
                    for e in range(8):
                        chunk = (2 * k + e // 4) ^ (o % 8)
                        b[e, o] = word_at(
                            weights + o // 8 * 2048 + other * 1024 + o % 8 * 128 + chunk * 16 + e % 4 * 4
                        )
                total += truncated(a) @ truncated(b)
        part[:] = own_of(total, lane)
        load_words(following, rows)

    return wgmma


def store_pair(address: int, a: float, b: float) -> None:
    ctypes.c_float.from_address(address).value = a
    ctypes.c_float.from_address(address + 4).value = b


def copy_run(to: int, source: int, nbytes: int, barrier: int) -> None:
    ctypes.memmove(to, source, nbytes)


@pytest.mark.parametrize(
    ("how", "pixels", "channels", "warps"),
    [("mma", 32, 16, 1), ("mma", 32, 64, 2), ("wgmma", 64, 16, 4)],
)
def test_lanes_compute_a_convolution(
    how: str, pixels: int, channels: int, warps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "SIMULATED", False)  # a thread is a lane
    kinds = {"mma": warps_cuda.functions_of("warp"), "wgmma": warps_cuda.functions_of("warpgroup")}
    monkeypatch.setattr(conv, "TILES_BY", kinds)
    monkeypatch.setattr(conv, "wgmma_of", lambda columns, products: wgmma_of(columns))
    monkeypatch.setattr(conv, "load_words_of", lambda products: load_words)
    for name, meaning in {
        "load_matrices": load_matrices,
        "split_one": split_one,
        "mma": mma,
        "store_pair": store_pair,
        "copy_run": copy_run,
        "make_barrier": lambda barrier: None,
        "wait_at": lambda barrier, parity: None,
    }.items():
        monkeypatch.setattr(warps_cuda, name, meaning)
    forward, _ = conv.kernels_of(conv.Tile(pixels, channels, 3, 1, how, warps))
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 5, 7, 8), np.float32), rng.standard_normal((12, 8, 3, 3), np.float32)
    b, y = rng.standard_normal(12, np.float32), cuda_device().empty((1, 5, 7, 12))
    y.fill(np.nan)
    taps = Taps(3, 3, top=1, left=1)
    ends = taps, -np.inf, np.inf, NOTHING, 0, steps_of(9, 8), 1, 1
    forward(
        cuda_device().upload(x),
        cuda_device().upload(pack(w)),
        cuda_device().upload(b),
        NO_TENSOR,
        y,
        NO_MASK,
        *ends,
    )
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = b + sum(
        padded[:, i : i + 5, j : j + 7] @ w[:, :, i, j].T.astype(np.float64)
        for i in range(3)
        for j in range(3)
    )
    error = np.linalg.norm(cuda_device().read(y) - expected) / np.linalg.norm(expected)
    assert error < 1e-6
