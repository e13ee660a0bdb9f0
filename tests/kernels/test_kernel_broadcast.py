"""Sums and products with broadcasting, and their gradients, which sum over broadcast axes."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import assert_close, assert_same_bits, noise
from numpy.lib.stride_tricks import as_strided

from gbp.kernels.broadcast import add_bwd, add_fwd, mul_bwd, mul_fwd

FULL = (2, 3, 2, 4, 3, 5)
SHAPES = [
    FULL,
    (2, 1, 2, 1, 3, 5),
    (2, 3, 1, 4, 3, 1),
    (2, 1, 1, 1, 1, 1),
    (1, 3, 1, 1, 1, 5),
    (1, 1, 1, 1, 1, 1),
]


def stretched(a: Any, rows: int) -> Any:
    """A writable view of `a` in FULL's shape with `rows` on axis 0, stride 0 where `a` has one cell."""
    shape = (rows, *FULL[1:])
    return as_strided(
        a, shape, [0 if size == 1 else step for size, step in zip(a.shape, a.strides, strict=True)]
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "oracle"), [(add_fwd, naive.add_fwd), (mul_fwd, naive.mul_fwd)])
def test_forward(kernel: Any, oracle: Any, shape: tuple[int, ...]) -> None:
    x0, x1 = noise(*FULL), noise(*shape, seed=1)
    outputs = [np.empty(FULL, np.float32) for _ in range(2)]
    for threads, y in enumerate(outputs, 1):
        kernel(x0, stretched(x1, 2), y, threads)
    assert_close(outputs[0], oracle(x0, x1))
    assert_same_bits(*outputs)


@pytest.mark.parametrize("other_shape", SHAPES)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] > 1])
def test_reverse(shape: tuple[int, ...], other_shape: tuple[int, ...]) -> None:
    K = 3
    other, gy = noise(*other_shape, seed=1), noise(2 * K, *FULL[1:], seed=2)
    wide = (2 * K, *shape[1:])
    started = noise(*wide, seed=3)
    shared = np.repeat(other, K, axis=0) if len(other) > 1 else other
    for kernel, saved, flowing in (
        (add_bwd, (), gy.astype(np.float64)),
        (mul_bwd, (stretched(other, len(other)),), naive.mul_fwd(gy, shared)),
    ):
        outputs = [started.copy() for _ in range(2)]
        for threads, gx in enumerate(outputs, 1):
            kernel(gy, *saved, stretched(gx, 2 * K), threads)
        assert_close(outputs[0], started + naive.unbroadcast(flowing, wide))
        assert_same_bits(*outputs)
