"""Scale, shift, sum and clip, with masks and gates."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import (
    CHANNELS,
    INF,
    NO_ACTIVATION,
    NO_CHANNELS,
    NO_MASK,
    Guarded,
    check_epilogue,
    check_reverse,
    noise,
)

from gbp.kernels.codegen.gate import OPEN, Gate
from gbp.kernels.pointwise import pointwise_bwd, pointwise_fwd


def scale_and_shift(C: int, given: bool) -> tuple[Any, Any]:
    return (noise(C, seed=1), noise(C, seed=2)) if given else (NO_CHANNELS, NO_CHANNELS)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("C", CHANNELS)
def test_forward(C: int, given: bool) -> None:
    x = noise(3, 3, 2, C)
    a, b = scale_and_shift(C, given)
    linear = x.astype(np.float64) * a + b if given else x.astype(np.float64)
    check_epilogue(lambda samples, *rest: pointwise_fwd(Guarded.of(x[samples]), a, b, *rest), linear)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("C", CHANNELS)
def test_reverse(C: int, given: bool) -> None:
    gy = noise(6, 3, 2, C)
    a, _ = scale_and_shift(C, given)
    expected = gy.astype(np.float64) * a if given else gy.astype(np.float64)
    check_reverse(lambda gy, samples, *rest: pointwise_bwd(gy, a, *rest), gy, expected, targets=3)


def test_in_place() -> None:
    x = noise(2, 3, 3, 17)
    y = x.copy()
    pointwise_fwd(y, NO_CHANNELS, NO_CHANNELS, y, y, NO_MASK, 0.0, INF, 2)
    np.testing.assert_array_equal(y, np.maximum(x + x, 0))
    g = x.copy()
    pointwise_bwd(g, NO_CHANNELS, NO_MASK, Gate(0, 1), g, 0, 2)
    np.testing.assert_array_equal(g, np.maximum(x, 0))


def test_nan_shows() -> None:
    x = np.full((1, 1, 1, 9), np.nan, np.float32)
    y, gx = np.zeros_like(x), np.zeros_like(x)
    pointwise_fwd(x, NO_CHANNELS, NO_CHANNELS, NO_ACTIVATION, y, NO_MASK, 0.0, 6.0, 1)
    pointwise_bwd(x, NO_CHANNELS, NO_MASK, Gate(0, 1), gx, 0, 1)
    assert np.isnan(y).all()
    assert np.isnan(gx).all()


def test_oracle_agrees_on_the_open_gate() -> None:
    gy = noise(1, 1, 1, 8)
    gx = np.empty_like(gy)
    pointwise_bwd(gy, NO_CHANNELS, NO_MASK, OPEN, gx, 0, 1)
    np.testing.assert_array_equal(gx, naive.rectifier_bwd(gy, gy, forward_gate=False, gradient_gate=False))
