"""Networks whose relevance is compared with zennit's (`golden/make_relevance.py`), and their input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from builder import Builder
from numpy.typing import NDArray

SHAPE = (2, 3, 16, 16)


def plain(b: Builder, x: str) -> str:
    """As VGG: convolutions, max-pools, dense layers; a ReLU6 among the rectifiers."""
    for channels in (8, 8):
        x = b.relu(b.conv(x, channels, 3, pads=(1, 1, 1, 1)))
    x = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.clip(b.conv(x, 12, 3), 0, 2)
    return b.gemm(b.relu(b.gemm(b.flatten(x), 20)), 5)


def residual(b: Builder, x: str) -> str:
    """As ResNet: batch normalization, shortcuts, average pools."""
    x = b.relu(b.batchnorm(b.conv(x, 8, 3, pads=(1, 1, 1, 1))))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    y = b.relu(b.batchnorm(b.conv(x, 8, 3, pads=(1, 1, 1, 1))))
    x = b.relu(b.add(b.batchnorm(b.conv(y, 8, 1)), x))
    x = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return b.gemm(b.flatten(b.node("GlobalAveragePool", x)), 5)


NETWORKS: dict[str, Callable[[Builder, str], str]] = {"plain": plain, "residual": residual}


def model_of(name: str) -> onnx.ModelProto:
    b = Builder(opset=13, seed=3)
    return b.model(NETWORKS[name](b, b.input(*SHAPE)))


def samples() -> NDArray[np.float32]:
    return np.random.default_rng(11).standard_normal(SHAPE).astype(np.float32)
