"""Which tiles compute a convolution on tensor cores, its weights as they read them, and into how many parts
its sums are cut.

Neither depends on anything but the layer's sizes where it could change a bit: the parts of K are those that
fill a card with the blocks of one sample.
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

#: Blocks of _NOMINAL² sums that K is cut for, and the fewest steps of a part.
_MULTIPROCESSORS = 2 if SIMULATED else 132
_ENOUGH_BLOCKS = 2 * _MULTIPROCESSORS
_NOMINAL = 64
_FEWEST_STEPS = 1 if SIMULATED else 4
#: Sums of a layer from which on the blocks add up their parts themselves.
_ENOUGH_SUMS = 16 * 32 if SIMULATED else _MULTIPROCESSORS * _NOMINAL**2
_MAX_PIXELS = 2**31
NOTHING = np.empty(0, np.float32)


def steps_of(taps: int, C: int) -> int:
    return -(-taps * C // DEPTH)


def parts_of(pixels: int, channels: int, steps: int) -> int:
    """Parts of K, for y of so many pixels a sample."""
    blocks = -(-pixels // _NOMINAL) * -(-channels // _NOMINAL)
    parts = max(1, min(_ENOUGH_BLOCKS // max(1, blocks), steps // _FEWEST_STEPS))
    return -(-steps // -(-steps // parts)) if steps else 1


def pack(w: NDArray[Any], products: int = 3) -> NDArray[np.float32]:
    """Weights (O, C, KH, KW) as the kernels read them, flat.

    (steps, O / 8, [big, small], 8, 32): of each step and eight channels a tile as it lies in shared memory.
    """
    O, C, KH, KW = w.shape
    steps, eights = steps_of(KH * KW, C), -(-O // 8)
    rows = np.zeros((eights * 8, steps * DEPTH), np.float32)
    rows[:O, : KH * KW * C] = w.transpose(0, 2, 3, 1).reshape(O, -1)
    # chunk c of row r lies at c xor r
    chunks = rows.reshape(eights, 8, steps, 8, 4).transpose(2, 0, 1, 3, 4)
    r, c = np.arange(8)[:, None], np.arange(8)
    swizzled = chunks[:, :, r, c ^ r]
    big, rest = split(np.ascontiguousarray(swizzled))
    both = (big,) if products == 1 else (big, split(rest)[0])
    return np.stack(both, 2).reshape(-1)


#: Tiles of each kind of tensor cores, and how much they multiply in the same time, measured on an H200.
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
    """Both kernels, in tiles of all sizes, on the tensor cores of a kind of card."""

    def __init__(self, how: str, products: int = 3) -> None:
        self.products = products
        self.rates = {tile._replace(products=products): rate for tile, rate in _TILES[how].items()}
        self.kernels = {tile: kernels_of(tile) for tile in self.rates}

    def tile_for(self, pixels: int, channels: int) -> Tile:
        """The tile by which a card of _MULTIPROCESSORS is done first."""

        def cost(tile: Tile) -> float:
            blocks = -(-pixels // tile.pixels) * -(-channels // tile.channels)
            # A few blocks on a multiprocessor that could hold more do not use it well.
            turns = max(-(-blocks // _MULTIPROCESSORS), 0.6 * tile.blocks)
            return turns * tile.pixels * tile.channels / self.rates[tile]

        return min(self.rates, key=cost)

    def forward(
        self, x: Any, w: Any, b: Any, r: Any, y: Any, mask: Any, taps: Taps, lo: float, hi: float,
        parts: int, scratch: Any,
    ) -> None:  # fmt: skip
        """Write y = clip(conv(x, w) + b + r, lo, hi) and the bit lo < · < hi of each unit to mask.

        w as of `pack`, b (O,); r and mask may be empty.  Padding holds
        zeros.  K is cut into `parts`; `scratch` holds `scratch_of` floats.
        """
        tile, partial, alone, steps = self._chosen(x, y, taps, parts, scratch)
        fours = all_in_fours(y, r)
        forward, _ = self.kernels[tile]
        sizes = partial, alone, steps, _in_fours(x), fours
        forward(x, w, b, r, y, mask, taps, lo, hi, *sizes)
        if alone:
            finish_fwd(partial, parts, b, r, y, mask, lo, hi, fours)

    def reverse(
        self, gy: Any, w: Any, mask: Any, gate: Gate, gx: Any, accumulate: int, taps: Taps,
        parts: int, scratch: Any,
    ) -> None:  # fmt: skip
        """Write conv(gy, w) to gx, added to gx with `accumulate`; of that, what passes the gate.

        w as of `pack`, turned round by the caller, as the strides and begins of the window are.
        """
        tile, partial, alone, steps = self._chosen(gy, gx, taps, parts, scratch)
        fours = all_in_fours(gx)
        _, reverse = self.kernels[tile]
        sizes = partial, alone, steps, _in_fours(gy), fours
        reverse(gy, w, mask, gate, gx, accumulate, taps, *sizes)
        if alone:
            finish_bwd(partial, parts, mask, gate, gx, accumulate, fours)

    def _chosen(self, x: Any, y: Any, taps: Taps, parts: int, scratch: Any) -> tuple[Tile, Any, int, int]:
        """The tile, where the sums of parts go, whether parts have blocks of their own, and their steps."""
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
    """As the kernels are told it."""
    return all_in_fours(x) * (2 if x.shape[3] % DEPTH == 0 else 1)


def scratch_of(pixels: int, channels: int, parts: int) -> tuple[int, int]:
    """Floats for the sums of parts, (fixed, for each sample)."""
    if parts == 1:
        return 0, 0
    fours = -(-channels // 4) * 4
    alone = parts * _ENOUGH_SUMS * fours // channels if pixels * channels < _ENOUGH_SUMS else 0
    largest = max(max(tile.pixels, tile.channels) for tile in _TILES["simulated" if SIMULATED else "wgmma"])
    return alone + largest * (channels + largest), pixels * (channels + largest)


@cache
def conv_of(how: str, products: int) -> Conv:
    """The kernels of a kind of tensor cores, of which there is one a process."""
    return Conv(how, products)
