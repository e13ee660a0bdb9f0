"""Dense layers."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import NO_CHANNELS, NO_MASK, ON_CARD, Guarded, check_epilogue, check_reverse, noise

from gbp.kernels.codegen.gate import OPEN
from gbp.kernels.gemm import BLOCK, gemm_bwd, gemm_fwd

# (M, K): odd numbers, one of everything, more than one block of columns
SHAPES = (
    [(1, 1), (3, 7), (17, 33)]
    if ON_CARD
    else [(1, 1), (3, 7), (17, 33), (10, 64), (33, 100), (7, 2 * BLOCK + 5)]
)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("N", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("M", "K"), SHAPES)
def test_forward(M: int, K: int, N: int, biased: bool) -> None:
    x, w, b = noise(N, 1, 1, K), noise(M, K, seed=1), noise(M, seed=2) if biased else NO_CHANNELS
    linear = naive.gemm_fwd(x[:, 0, 0], w, b if biased else None, trans_b=True)[:, None, None]
    check_epilogue(lambda samples, *rest: gemm_fwd(Guarded.of(x[samples]), w.ravel(), b, *rest), linear)


@pytest.mark.parametrize("zeros", [0.0, 0.8, 1.0])
@pytest.mark.parametrize(("M", "K"), SHAPES)
def test_reverse(M: int, K: int, zeros: float) -> None:
    w = noise(M, K, seed=1)
    gy = noise(6, 1, 1, M)
    gy[np.random.default_rng(3).random(gy.shape) < zeros] = 0
    expected = naive.gemm_bwd(gy[:, 0, 0], w, trans_b=True)[:, None, None]

    def run(gy: Any, samples: slice, *rest: Any) -> None:
        gemm_bwd(gy, w.ravel(), *rest)

    check_reverse(run, gy, expected, targets=3)


def test_nan_shows() -> None:
    gy, w, gx = np.zeros((1, 1, 1, 5), np.float32), noise(5, 9), np.zeros((1, 1, 1, 9), np.float32)
    gy[..., 2] = np.nan
    gemm_bwd(gy, w.ravel(), NO_MASK, OPEN, gx, 0, 1)
    assert np.isnan(gx).all()
