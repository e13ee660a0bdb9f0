"""Which algorithm computes a convolution, by its sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...graph.geometry import Window
from ...graph.op import Target
from ...kernels.amx_balance import Balance, balance_of
from ...kernels.codegen import amx
from ...kernels.codegen.emit import LANES
from ...kernels.codegen.tile import TILE_CHANNELS
from ...kernels.conv_lists import SLID_CHANNELS
from ...kernels.winograd import MATRICES, SQUARE
from ...limits import elements
from ..step import Floats
from .algorithms import (
    FEW_OUTPUTS,
    READ,
    BackwardAlgorithm,
    ColumnsBackward,
    DirectBackward,
    DirectForward,
    ForwardAlgorithm,
    PointwiseBackward,
    WinogradBackward,
    WinogradForward,
    flipped,
)
from .algorithms_amx import AmxBackward, AmxForward, AmxLayer
from .algorithms_digits import DigitsBackward, DigitsForward, DigitsLayer, suits_digits
from .algorithms_lists import ListsBackward, SparseBackward
from .algorithms_strides import AmxMerged, AmxPhases

#: Up to this many channels in gx, vectors of channels would be half empty, so columns are used where an
#: algorithm is asked for by name.
_FEW_CHANNELS = LANES // 2
#: The density of gy up to which lists are faster than Winograd, than direct tiles, and than AMX.
_MAX_BEFORE_WINOGRAD, _MAX_BEFORE_DIRECT, _MAX_BEFORE_AMX, _MAX_BEFORE_AMX_1x1 = 0.17, 0.3, 0.12, 0.1
_MAX_BEFORE_DIGITS = 0.08
#: Costs of a load in a sum of columns; and of a float of columns, where they take more bytes than a cache.
_LOAD, _MOVED, _CACHE = 11, 8, 2**22
#: How much longer a vector of products takes that is alone in its tile, which has room for two.
_LONE = 0.3
#: Phases on AMX may cost so much of what columns do, which save the products of zeros.  Those of 1×1, which
#: have one phase, may cost the same.
_MAX_OF_COLUMNS = 0.7
#: Lists are used only where more than this part of the channels that they work on exists.
_MIN_FULL = 0.7
#: The algorithms that leave the choice to the costs.
_FREE = ("auto", "fast")
#: The density of gy up to which lists are used where an algorithm is asked for by name; otherwise measured.
_MAX_WHERE_NAMED = {"direct": 0.0, "lists": 1.0}


def whole(count: int, tile: int) -> int:
    """`count`, rounded up to whole tiles."""
    return -(-count // tile) * tile


def packed_bytes(O: int, C: int) -> int:
    """Most bytes of the packed weights of one tap, O channels from C, where no algorithm transforms them."""
    floats, split = 4 * C, 2 * amx.PARTS * whole(C, amx.DEPTH)
    # Where most of a chunk is padding, AMX does not pay.
    return whole(O, TILE_CHANNELS) * (max(floats, split) if split <= 5 * floats else floats)


def is_3x3(window: Window) -> bool:
    return window.kernel == (3, 3) and window.is_unstrided and window.is_undilated


# Costs are in vector multiply-adds of a core.  They are for one sample, because the bits must not depend on
# the batch.


def _cost_of_direct(O: int, C: int, taps: int, plane: tuple[int, int]) -> float:
    """The products, reading the weights, and the epilogue of O channels of a plane from C."""
    vectors, pixels = whole(O, LANES) // LANES, elements(plane)
    in_pairs = vectors + _LONE * (vectors % 2)
    return in_pairs * (taps * C * (pixels + READ) + 6 * pixels)


def _cost_of_columns(O: int, C: int, window: Window) -> float:
    """The product of gy and the weights, and the sums of columns that give gx, C channels.

    A sum takes a load for each vector and window that reads it.  Columns beyond a core's cache are written to
    memory and read again.
    """
    taps, columns = window.taps, elements(window.output) * window.taps * C
    product = _cost_of_direct(taps * C, O, 1, window.output)
    if C < LANES:  # a vector goes through the pixels of a line (`kernels.columns`)
        windows = min(LANES / (C * window.width.stride) + window.width.kernel, window.width.outputs)
        vectors = whole(window.width.size * C, LANES) / LANES
        loads = window.height.outputs * window.height.kernel * vectors * windows
    else:
        loads = elements(window.output) * taps * whole(C, LANES) / LANES
    return product + _LOAD * loads + (_MOVED * columns if 4 * columns > _CACHE else 0)


def _cost_of_winograd(O: int, C: int, plane: tuple[int, int]) -> float:
    """The products, reading the weights, and for each square the measured time of the transforms."""
    outputs, inputs = whole(O, TILE_CHANNELS) // LANES, whole(C, LANES) // LANES
    squares = -(-plane[0] // SQUARE) * -(-plane[1] // SQUARE)
    return MATRICES * C * outputs * (squares + READ) + squares * (380 * inputs + 330 * outputs)


def _cheapest(layer: AmxLayer, window: Window, algorithm: str, **others: float) -> tuple[str, float]:
    """The algorithm that `algorithm` names, or the one that costs least: "direct", "amx" or one of `others`.

    `others`: the costs of further algorithms.  Returns what it costs, too: 0 if it was named.
    """
    if algorithm not in _FREE:
        return "winograd" if algorithm == "winograd" and is_3x3(window) else "direct", 0.0
    direct = _cost_of_direct(layer.O, layer.C, window.taps, layer.size)
    costs = {"direct": direct, "amx": layer.cost, **others}
    chosen = min(costs, key=costs.__getitem__)
    return chosen, costs[chosen]


def _forward(
    w: NDArray[np.float64], b: NDArray[np.float64], window: Window, target: Target
) -> ForwardAlgorithm:
    O, C = w.shape[:2]
    layer = AmxLayer.forward(O, C, window)
    fast = target.algorithm == "fast" and is_3x3(window)
    others = {"winograd": _cost_of_winograd(O, C, window.output)} if fast else {}
    digits = DigitsLayer.forward(O, C, window).cost
    single = w.astype(np.float32)
    chosen, _ = _cheapest(layer, window, target.algorithm, digits=digits, **others)
    if chosen == "digits":
        balance = balance_of(single)
        if suits_digits(balance):
            return DigitsForward(single, b, window, balance)
        chosen, _ = _cheapest(layer, window, target.algorithm, **others)
    if chosen == "winograd":
        return WinogradForward(w, b, window)
    return DirectForward(single, b, window) if chosen == "direct" else AmxForward(single, b, window)


def _backward(w: NDArray[np.float64], window: Window, target: Target) -> BackwardAlgorithm:
    """The algorithm for the input gradient, as `target` asks for it or as it costs least."""
    (O, C), algorithm, single = w.shape[:2], target.algorithm, w.astype(np.float32)
    if not window.is_unstrided:
        return _backward_of_strides(single, window, algorithm)
    others = {"columns": _cost_of_columns(O, C, window)} if window.taps > 1 else {}
    if is_3x3(window):
        others["winograd"] = _cost_of_winograd(C, O, window.size)
    chosen, cost = _cheapest(AmxLayer.backward(O, C, window), window, algorithm, **others)
    balance = balance_of(flipped(single)) if DigitsLayer.backward(O, C, window).cost < cost else None
    if balance is not None and not suits_digits(balance):
        balance = None
    if chosen == "amx" and not is_3x3(window):
        on_amx = _with_digits(single, window, AmxBackward(single, window), balance)
        if _is_plain_1x1(window) and O > C:
            return SparseBackward(single, window, on_amx, _MAX_BEFORE_AMX_1x1)
        return on_amx
    if _is_plain_1x1(window):
        return PointwiseBackward(single, window, _MAX_WHERE_NAMED.get(algorithm))
    by_name = algorithm not in _FREE
    if chosen == "columns" or (
        by_name and (C <= _FEW_CHANNELS or (algorithm == "lists" and not is_3x3(window)))
    ):
        return ColumnsBackward(single, window, _MAX_WHERE_NAMED.get(algorithm))
    return _backward_in_tiles(w, window, algorithm, chosen, balance)


def _is_plain_1x1(window: Window) -> bool:
    """Whether it has one tap, which is never in the padding."""
    return window.taps == 1 and window.is_unpadded


def _with_digits(
    single: Floats, window: Window, other: BackwardAlgorithm, balance: Balance | None
) -> BackwardAlgorithm:
    """Digits of weights with this balance, and `other` where they do not suit; `other` alone for None."""
    return other if balance is None else DigitsBackward(single, window, other, balance)


def _backward_of_strides(single: Floats, window: Window, algorithm: str) -> BackwardAlgorithm:
    """For a stride above 1: AMX, if that is cheaper than columns; or columns, of which 1×1 has one."""
    O, C = single.shape[:2]
    if algorithm in _FREE:
        few = window.taps > 1 and C * window.height.stride * window.width.stride <= LANES
        on_amx = AmxMerged if few else AmxPhases
        limit = _cost_of_columns(O, C, window) * (1 if window.taps == 1 else _MAX_OF_COLUMNS)
        if on_amx.cost(O, C, window) < limit:
            return on_amx(single, window)
    kind = PointwiseBackward if _is_plain_1x1(window) else ColumnsBackward
    return kind(single, window, _MAX_WHERE_NAMED.get(algorithm))


def _backward_in_tiles(
    w: NDArray[np.float64], window: Window, algorithm: str, chosen: str, balance: Balance | None
) -> BackwardAlgorithm:
    """Winograd, AMX or direct tiles for stride 1, and lists where a gradient has few nonzero values.

    Parameters
    ----------
    w, window
        The weights (O, C, KH, KW) and the window.
    algorithm
        As `target` has it.
    chosen
        "winograd", "amx" or "direct".
    balance
        That of the flipped weights, where digits suit them and are cheaper.
    """
    (O, C), single = w.shape[:2], w.astype(np.float32)
    dense: BackwardAlgorithm
    if chosen == "winograd":
        dense, max_density = WinogradBackward(w, window), _MAX_BEFORE_WINOGRAD
    elif chosen == "amx":
        dense, max_density = AmxBackward(single, window), _MAX_BEFORE_AMX
    else:
        dense, max_density = DirectBackward(single, window), _MAX_BEFORE_DIRECT
    if balance is not None:
        dense, max_density = _with_digits(single, window, dense, balance), _MAX_BEFORE_DIGITS
    if algorithm == "lists":
        return ListsBackward(single, window, dense, 1.0)
    # Lists compute whole blocks of SLID_CHANNELS channels of gx; this part of them exists.
    full = C / whole(C, SLID_CHANNELS)
    pays = full > _MIN_FULL and (chosen != "direct" or O >= FEW_OUTPUTS)
    if algorithm in _FREE and is_3x3(window) and pays:
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
