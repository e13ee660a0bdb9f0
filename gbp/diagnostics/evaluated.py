"""These ops replace those of onnx's reference evaluator, which are missing, slow, or rounded to float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv_transpose import ConvTranspose as OnnxConvTranspose
from onnx.reference.ops.op_grid_sample import GridSample as OnnxGridSample
from onnx.reference.ops.op_max_pool import MaxPool as OnnxMaxPool

Doubles = NDArray[np.float64]


class GridSample(OnnxGridSample):
    """In place of the evaluator's, which rounds all positions to float32.

    Here they are double where the result changes with the position.  The nearest pixel is found in float32,
    as runtimes find it.
    """

    def _gs_denormalize_coordinates(self, n: Doubles, dims: Sequence[int], align_corners: bool) -> Doubles:
        single = np.float32 if vars(self)["mode"] == "nearest" else np.float64
        pairs = zip(n.astype(single), dims, strict=True)
        return np.array([self._gs_denormalize(v, size, align_corners) for v, size in pairs], single)


class MaxPool(OnnxMaxPool):
    """In place of the evaluator's, which takes a microsecond for each number of a window."""

    def _max_pool_2d(self, x: NDArray[Any], *given: Any) -> tuple[NDArray[Any], ...]:
        _, _, dilations, kernel, pads, _, strides, sizes = given
        if x.dtype.kind != "f" or len(self.output) > 1 or np.min(pads) < 0 or min(sizes) < 1:
            evaluator: Any = super()
            return tuple(evaluator._max_pool_2d(x, *given))
        lengths = [(n - 1) * s + 1 for n, s in zip(sizes, strides, strict=True)]  # from first to last window
        needed = [n + (k - 1) * d for n, k, d in zip(lengths, kernel, dilations, strict=True)]
        frame = [max(a, p + n) for a, (p, _), n in zip(needed, pads, x.shape[2:], strict=True)]
        padded = np.full((*x.shape[:2], *frame), -np.inf, x.dtype)
        (top, _), (left, _) = pads
        padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
        # The evaluator has found the windows; here all are compared at once, tap by tap.
        taps = [
            padded[:, :, i : i + lengths[0] : strides[0], j : j + lengths[1] : strides[1]]
            for i in range(0, kernel[0] * dilations[0], dilations[0])
            for j in range(0, kernel[1] * dilations[1], dilations[1])
        ]
        y = np.maximum.reduce(taps)
        return (np.where(np.isneginf(y), 0, y),)  # as the evaluator has windows without a pixel


class ConvTranspose(OpRun):
    """In place of the evaluator's, which has no groups."""

    def _run(self, x: Doubles, w: Doubles, b: Any = None, group: int = 1, **given: Any) -> tuple[Doubles]:
        alone: Any = OnnxConvTranspose._run
        parts = zip(np.split(x, group, axis=1), np.split(w, group), strict=True)
        y = np.concatenate([alone(self, *part, group=1, **given)[0] for part in parts], axis=1)
        return (y if b is None else y + b.reshape(-1, *(1,) * (x.ndim - 2)),)


class Erf(OpRun):
    """In place of the evaluator's, which rounds to float32: differences would see the roundings."""

    def _run(self, x: Doubles) -> tuple[Doubles]:
        return (np.vectorize(math.erf, otypes=[np.float64])(x),)


class Gelu(OpRun):
    """In place of the evaluator's, for the same reason."""

    def _run(self, x: Doubles, approximate: str) -> tuple[Doubles]:
        if approximate == "tanh":
            return (x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (x / 2 * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))),)


class LRN(OpRun):
    """In place of the evaluator's, which computes only as many channels as there are samples."""

    def _run(self, x: Doubles, alpha: float, beta: float, bias: float, size: int) -> tuple[Doubles]:
        before, after = (size - 1) // 2, size // 2
        channels = [(0, 0)] * x.ndim
        channels[1] = before, after
        near = sliding_window_view(np.pad(x**2, channels), size, axis=1)
        return (x / (bias + alpha / size * near.sum(axis=-1)) ** beta,)


class GlobalMaxPool(OpRun):
    """In place of the evaluator's, which knows images alone."""

    def _run(self, x: Doubles) -> tuple[Doubles]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class MeanVarianceNormalization(OpRun):
    """In place of the evaluator's, which computes float32 alone."""

    def _run(self, x: Doubles, axes: Sequence[int]) -> tuple[Doubles]:
        centred = x - x.mean(axis=tuple(axes), keepdims=True)
        return (centred / (np.sqrt((centred**2).mean(axis=tuple(axes), keepdims=True)) + 1e-9),)


#: `new_ops` of the evaluator.
OPS: list[type[OpRun]] = [
    GridSample, MaxPool, ConvTranspose, Erf, Gelu, LRN, GlobalMaxPool, MeanVarianceNormalization
]  # fmt: skip
