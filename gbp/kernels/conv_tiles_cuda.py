"""The host's side of convolutions on tensor cores: packs weights, chooses tiles, and cuts sums into parts.

The number of parts depends on the layer's sizes alone: as many as fill a card with the blocks of one sample.
The choice of tile depends on the batch too, and changes no bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from .codegen.gate import Gate
from .codegen.jit_cuda import SIMULATED
from .codegen.tensor_cuda import split
from .conv_tensor_cuda import DEPTH, Tile, kernels_of
from .eights_cuda import all_in_fours
from .sums_cuda import finish_bwd, finish_fwd
from .taps import Taps

#: Sums are cut until a sample has this many blocks of _NOMINAL² sums, or a part this few steps.
_MULTIPROCESSORS = 2 if SIMULATED else 132
_ENOUGH_BLOCKS = 2 * _MULTIPROCESSORS
_NOMINAL = 64
_FEWEST_STEPS = 1 if SIMULATED else 4
#: With more sums than this, the blocks add up their parts themselves.
_ENOUGH_SUMS = 16 * 32 if SIMULATED else _MULTIPROCESSORS * _NOMINAL**2
_MAX_PIXELS = 2**31
NOTHING = np.empty(0, np.float32)


def steps_of(taps: int, C: int) -> int:
    return -(-taps * C // DEPTH)


def parts_of(pixels: int, channels: int, steps: int) -> int:
    """The number of parts of each sum, for a sample of y of so many pixels and channels."""
    blocks = -(-pixels // _NOMINAL) * -(-channels // _NOMINAL)
    parts = max(1, min(_ENOUGH_BLOCKS // max(1, blocks), steps // _FEWEST_STEPS))
    return -(-steps // -(-steps // parts)) if steps else 1


def pack(w: NDArray[Any], products: int = 3) -> NDArray[np.float32]:
    """Pack weights (O, C, KH, KW) for the kernels: (steps, ⌈O / 8⌉, [big, small], 8, 32), flat.

    For each step and eight channels there is a tile with the order of shared memory.
    """
    O, C, KH, KW = w.shape
    steps, eights = steps_of(KH * KW, C), -(-O // 8)
    rows = np.zeros((eights * 8, steps * DEPTH), np.float32)
    rows[:O, : KH * KW * C] = w.transpose(0, 2, 3, 1).reshape(O, -1)
    # Chunk c of row r is stored at position c xor r.
    chunks = rows.reshape(eights, 8, steps, 8, 4).transpose(2, 0, 1, 3, 4)
    r, c = np.arange(8)[:, None], np.arange(8)
    swizzled = chunks[:, :, r, c ^ r]
    big, rest = split(np.ascontiguousarray(swizzled))
    both = (big,) if products == 1 else (big, split(rest)[0])
    return np.stack(both, 2).reshape(-1)


#: Tiles for each kind of tensor cores, and their speed relative to each other, measured on an H200.
_TILES = {
    "wgmma": {
        Tile(128, 128, 4, 1): 80,
        Tile(64, 64, 3, 3, warps=4): 67,
        Tile(64, 32, 3, 4, warps=4): 40,
    },
    "mma": {
        Tile(128, 64, 3, 2, "mma"): 50,
        Tile(64, 64, 3, 2, "mma"): 45,
        Tile(128, 32, 3, 2, "mma"): 30,
    },
    "simulated": {Tile(16, 32, 3, 1, "simulated", 1): 2, Tile(8, 16, 2, 1, "simulated", 1): 1},
}


class Conv:
    """Both kernels for one kind of tensor cores, in tiles of all sizes."""

    def __init__(self, kind: str, products: int = 3) -> None:
        self.products = products
        self.rates = {tile._replace(products=products): rate for tile, rate in _TILES[kind].items()}
        self.kernels = {tile: kernels_of(tile) for tile in self.rates}

    def tile_for(self, pixels: int, channels: int) -> Tile:
        """The tile with which a card of _MULTIPROCESSORS finishes first."""

        def cost(tile: Tile) -> float:
            blocks = -(-pixels // tile.pixels) * -(-channels // tile.channels)
            # A multiprocessor that holds fewer blocks than it could is slower.
            turns = max(-(-blocks // _MULTIPROCESSORS), 0.6 * tile.blocks)
            return turns * tile.pixels * tile.channels / self.rates[tile]

        return min(self.rates, key=cost)

    def forward(
        self, x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, taps: Taps, lo: float, hi: float,
        parts: int, scratch: Any,
    ) -> None:  # fmt: skip
        """Write y = clip(conv(x, w) + b + r, lo, hi) and the bit lo < · < hi of each unit to mask.

        w is packed by `pack`; b (O,); r and mask may be empty.  Sums are cut into `parts`; `scratch` holds
        `scratch_of` floats.
        """
        tile, partial, alone, steps = self._chosen(x, y, taps, parts, scratch)
        fours = all_in_fours(y, r)
        forward, _ = self.kernels[tile]
        sizes = partial, alone, steps, _in_fours(x), fours
        forward(x, w, b, r, y, mask, taps, lo, hi, *sizes)
        if alone:
            finish_fwd(partial, parts, b, r, y, mask, lo, hi, fours)

    def backward(
        self, gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps,
        parts: int, scratch: Any,
    ) -> None:  # fmt: skip
        """Write conv(gy, w) to gx, or add it with `accumulate`; then apply the gate.

        w is packed by `pack` from the weights of the backward pass, and `taps` is its window.
        """
        tile, partial, alone, steps = self._chosen(gy, gx, taps, parts, scratch)
        fours = all_in_fours(gx)
        _, backward = self.kernels[tile]
        sizes = partial, alone, steps, _in_fours(gy), fours
        backward(gy, w, mask, gate, gx, accumulate, taps, *sizes)
        if alone:
            finish_bwd(partial, parts, mask, gate, gx, accumulate, fours)

    def _chosen(self, x: Any, y: Any, taps: Taps, parts: int, scratch: Any) -> tuple[Tile, Any, int, int]:
        """The tile, memory for sums of parts, whether each part has its own blocks, and its steps."""
        N, H, W, C = y.shape
        if N * H * W >= _MAX_PIXELS:
            raise UnsupportedError(
                f"{N} planes of {H} x {W} are computed at once.",
                supported=f"fewer than {_MAX_PIXELS} pixels on a card",
                hint="Give a smaller batch_size.",
            )
        steps = steps_of(taps.rows * taps.columns, x.shape[3])
        tile, alone, partial = self.tile_for(N * H * W, C), 0, NOTHING
        if parts > 1:
            alone = int(N * H * W * C < _ENOUGH_SUMS)
            blocks = -(-N * H * W // tile.pixels) * -(-C // tile.channels)
            floats = parts * N * H * W * (-(-C // 4) * 4) if alone else blocks * tile.pixels * tile.channels
            partial = scratch[:floats]
        return tile, partial, alone, max(1, -(-steps // parts))


def _in_fours(x: Any) -> int:
    """The flag of the kernels: 0, 1 if x is read by fours, 2 if also no step is in two taps."""
    return all_in_fours(x) * (2 if x.shape[3] % DEPTH == 0 else 1)


def scratch_of(pixels: int, channels: int, parts: int) -> tuple[int, int]:
    """Floats for the sums of parts: (a fixed number, more for each sample)."""
    if parts == 1:
        return 0, 0
    fours = -(-channels // 4) * 4
    alone = parts * _ENOUGH_SUMS * fours // channels if pixels * channels < _ENOUGH_SUMS else 0
    largest = max(max(tile.pixels, tile.channels) for tile in _TILES["simulated" if SIMULATED else "wgmma"])
    return alone + largest * (channels + largest), pixels * (channels + largest)


@cache
def conv_of(kind: str, products: int) -> Conv:
    """The kernels for one kind of tensor cores; made once in a process."""
    return Conv(kind, products)
