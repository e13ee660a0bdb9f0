"""Which algorithm computes a convolution, by its sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Window
from ...graph.op import Target
from ...kernels.codegen import amx
from ...kernels.codegen.emit import LANES
from ...kernels.codegen.tile import TILE_CHANNELS
from ...kernels.conv_lists import LISTED_CHANNELS
from ...kernels.winograd import MATRICES, SQUARE
from ...limits import elements
from .algorithms import (
    FEW_OUTPUTS,
    READ,
    BackwardAlgorithm,
    ColumnsBackward,
    DirectBackward,
    DirectForward,
    ForwardAlgorithm,
    ListsBackward,
    PointwiseBackward,
    WinogradBackward,
    WinogradForward,
)
from .algorithms_amx import AmxBackward, AmxForward, AmxLayer

#: Up to this many channels in gx, vectors of channels would be half empty, so columns are used.
_FEW_CHANNELS = LANES // 2
#: The density of gy up to which lists are faster than Winograd, than direct tiles, and than AMX.
_MAX_BEFORE_WINOGRAD, _MAX_BEFORE_DIRECT, _MAX_BEFORE_AMX = 0.17, 0.3, 0.12
#: Lists are used only where more than this part of the channels that they work on exists.
_MIN_FULL = 0.7


def whole(count: int, tile: int) -> int:
    """`count`, rounded up to whole tiles."""
    return -(-count // tile) * tile


def packed_bytes(O: int, C: int) -> int:
    """Most bytes of the packed weights of one tap, O channels from C, where no algorithm transforms them."""
    floats, split = 4 * C, 2 * amx.PARTS * whole(C, amx.DEPTH)
    # Where most of a chunk is padding, AMX does not pay.
    return whole(O, TILE_CHANNELS) * (max(floats, split) if split <= 5 * floats else floats)


def is_3x3(window: Window) -> bool:
    return window.kernel == (3, 3) and window.is_dense and window.is_undilated


# Costs are in vector multiply-adds of a core.  They are for one sample, because the bits must not depend on
# the batch.


def _cost_of_direct(O: int, C: int, taps: int, plane: tuple[int, int]) -> float:
    """The products, reading the weights, and the epilogue of O channels of a plane from C."""
    vectors, pixels = whole(O, TILE_CHANNELS) // LANES, elements(plane)
    return vectors * (taps * C * (pixels + READ) + 6 * pixels)


def _cost_of_winograd(O: int, C: int, plane: tuple[int, int]) -> float:
    """The products, reading the weights, and for each square the measured time of the transforms."""
    outputs, inputs = whole(O, TILE_CHANNELS) // LANES, whole(C, LANES) // LANES
    squares = -(-plane[0] // SQUARE) * -(-plane[1] // SQUARE)
    return MATRICES * C * outputs * (squares + READ) + squares * (440 * inputs + 380 * outputs)


def _cheapest(layer: AmxLayer, window: Window, algorithm: str, winograd: bool) -> str:
    """The algorithm that `algorithm` names, or the one that costs least: "direct", "amx" or "winograd".

    `winograd`: whether that may be chosen by its cost.
    """
    if algorithm not in ("auto", "fast"):
        return "winograd" if algorithm == "winograd" and is_3x3(window) else "direct"
    O, C, plane = layer.O, layer.C, layer.size
    costs = {"direct": _cost_of_direct(O, C, window.taps, plane), "amx": layer.cost}
    if winograd and is_3x3(window):
        costs["winograd"] = _cost_of_winograd(O, C, plane)
    return min(costs, key=costs.__getitem__)


def _by_columns(window: Window, C: int) -> bool:
    """Whether columns need less than half of the products of the direct sum.

    They do where the direct sum works mostly on padding, as for large windows on small planes, or in tiles of
    channels that C does not fill.
    """
    direct = elements(window.size) * window.taps * whole(C, TILE_CHANNELS)
    return direct > 2 * elements(window.output) * whole(window.taps * C, TILE_CHANNELS)


def _forward(
    w: NDArray[np.float64], b: NDArray[np.float64], window: Window, target: Target
) -> ForwardAlgorithm:
    layer = AmxLayer.forward(len(w), w.shape[1], window)
    chosen = _cheapest(layer, window, target.algorithm, winograd=target.algorithm == "fast")
    if chosen == "winograd":
        return WinogradForward(w, b, window)
    single = w.astype(np.float32)
    return AmxForward(single, b, window) if chosen == "amx" else DirectForward(single, b, window)


def _backward(w: NDArray[np.float64], window: Window, target: Target) -> BackwardAlgorithm:
    O, C = w.shape[:2]
    algorithm = target.algorithm
    forced: float | None = {"direct": 0.0, "lists": 1.0}.get(algorithm)
    single = w.astype(np.float32)
    chosen = "direct"
    if window.is_dense:
        chosen = _cheapest(AmxLayer.backward(O, C, window), window, algorithm, winograd=True)
    if chosen == "amx" and not is_3x3(window):
        return AmxBackward(single, window)
    if window.taps == 1 and window.is_unpadded:
        return PointwiseBackward(single, window, forced)
    if not window.is_dense or C <= _FEW_CHANNELS or (algorithm == "lists" and not is_3x3(window)):
        return ColumnsBackward(single, window, forced)
    free = algorithm in ("auto", "fast")
    if free and chosen == "direct" and _by_columns(window, C):
        return ColumnsBackward(single, window, forced)
    dense: BackwardAlgorithm
    if chosen == "winograd":
        dense, max_density = WinogradBackward(w, window), _MAX_BEFORE_WINOGRAD
    elif chosen == "amx":
        dense, max_density = AmxBackward(single, window), _MAX_BEFORE_AMX
    else:
        dense, max_density = DirectBackward(single, window), _MAX_BEFORE_DIRECT
    if algorithm == "lists":
        return ListsBackward(single, window, dense, 1.0)
    # Lists compute whole blocks of LISTED_CHANNELS channels of gx; this part of them exists.
    full = C / whole(C, LISTED_CHANNELS)
    pays = full > _MIN_FULL and (chosen != "direct" or O >= FEW_OUTPUTS)
    if free and is_3x3(window) and pays:
        return ListsBackward(single, window, dense, full * max_density)
    return dense


def algorithms_for(
    target: Target,
) -> tuple[Callable[..., ForwardAlgorithm], Callable[..., BackwardAlgorithm]]:
    """Functions that make the algorithms of one group: (w, b, window, target) and (w, window, target)."""
    if target.name == "cpu":
        return _forward, _backward
    from .algorithms_cuda import algorithms_of  # here, because importing CUDA is slow and needs an extra

    return algorithms_of(target)
