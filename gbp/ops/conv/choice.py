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
#: The density of gy up to which lists are faster than Winograd, and than direct tiles.
_MAX_BEFORE_WINOGRAD, _MAX_BEFORE_DIRECT = 0.17, 0.3
#: Lists are used only where more than this part of the channels that they work on exists.
_MIN_FULL = 0.7
#: How many vector multiply-adds take as long as reading one vector from memory.
_READ = 16


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


def _by_winograd(free: bool, algorithm: str, window: Window, O: int, C: int, plane: tuple[int, int]) -> bool:
    """Whether to use Winograd's transforms.

    Costs are in vector multiply-adds of a core: the products, reading the weights, and for each square the
    measured time of the transforms.  They are for one sample, because the bits must not depend on the batch.

    Parameters
    ----------
    free
        Whether costs decide.  Otherwise the name of the algorithm does.
    algorithm
        One of ALGORITHMS.
    window
        The window.
    O, C
        Channels of the output and of the input.
    plane
        The sides of the output plane.
    """
    blocks, vectors = whole(O, TILE_CHANNELS) // LANES, whole(C, LANES) // LANES
    squares, pixels = -(-plane[0] // SQUARE) * -(-plane[1] // SQUARE), elements(plane)
    winograd = MATRICES * C * blocks * (squares + _READ) + squares * (440 * vectors + 380 * blocks)
    direct = 9 * C * blocks * (pixels + _READ) + 6 * pixels * blocks
    return is_3x3(window) and (algorithm == "winograd" or (free and winograd < direct))


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
    if target.algorithm in ("auto", "fast") and AmxLayer.forward(len(w), w.shape[1], window).pays:
        return AmxForward(w.astype(np.float32), b, window)
    free = target.algorithm == "fast"
    if _by_winograd(free, target.algorithm, window, len(w), w.shape[1], window.output):
        return WinogradForward(w, b, window)
    return DirectForward(w.astype(np.float32), b, window)


def _backward(w: NDArray[np.float64], window: Window, target: Target) -> BackwardAlgorithm:
    O, C = w.shape[:2]
    algorithm = target.algorithm
    forced: float | None = {"direct": 0.0, "lists": 1.0}.get(algorithm)
    single = w.astype(np.float32)
    if (
        algorithm in ("auto", "fast")
        and window.is_dense
        and not is_3x3(window)
        and AmxLayer.backward(O, C, window).pays
    ):
        return AmxBackward(single, window)
    if window.taps == 1 and window.is_unpadded:
        return PointwiseBackward(single, window, forced)
    if not window.is_dense or C <= _FEW_CHANNELS or (algorithm == "lists" and not is_3x3(window)):
        return ColumnsBackward(single, window, forced)
    free = algorithm in ("auto", "fast")
    by_winograd = _by_winograd(free, algorithm, window, C, O, window.size)
    if free and not by_winograd and _by_columns(window, C):
        return ColumnsBackward(single, window, forced)
    dense = WinogradBackward(w, window) if by_winograd else DirectBackward(single, window)
    if algorithm == "lists":
        return ListsBackward(single, window, dense, 1.0)
    # Lists compute whole blocks of LISTED_CHANNELS channels of gx; this part of them exists.
    full = C / whole(C, LISTED_CHANNELS)
    max_density = full * (_MAX_BEFORE_WINOGRAD if by_winograd else _MAX_BEFORE_DIRECT)
    pays = full > _MIN_FULL and (by_winograd or O >= FEW_OUTPUTS)
    if free and is_3x3(window) and pays:
        return ListsBackward(single, window, dense, max_density)
    return dense


def algorithms_for(
    target: Target,
) -> tuple[Callable[..., ForwardAlgorithm], Callable[..., BackwardAlgorithm]]:
    """Functions that make the algorithms of one group: (w, b, window, target) and (w, window, target)."""
    if target.name == "cpu":
        return _forward, _backward
    from .algorithms_cuda import algorithms_of  # here, because importing CUDA is slow and needs an extra

    return algorithms_of(target)
