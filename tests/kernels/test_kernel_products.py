"""Products of tensors, and with one number a channel."""

from typing import Any

import numpy as np
import pytest
from harness import CHANNELS, ON_CARD, Guarded, assert_close, assert_same_bits, check_reverse, noise
from numpy.lib.stride_tricks import as_strided

from gbp.kernels.products import products_bwd, products_fwd, products_sum_bwd

pytestmark = pytest.mark.skipif(ON_CARD, reason="cards multiply by the kernels of broadcasting")

SHAPE = 3, 5


def spread(s: Any) -> Any:
    """(N, 1, 1, C), used again for each pixel."""
    return as_strided(s, (len(s), *SHAPE, s.shape[-1]), (s.strides[0], 0, 0, s.strides[-1]))


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("C", CHANNELS)
def test_forward(C: int, by_channel: bool) -> None:
    x, s = noise(2, *SHAPE, C), noise(2, *((1, 1) if by_channel else SHAPE), C, seed=1)
    factor = spread(Guarded.of(s)) if by_channel else Guarded.of(s)
    outputs = [Guarded(x.shape) for _ in range(2)]
    for threads, y in enumerate(outputs, 1):
        products_fwd(Guarded.of(x), factor, y.view, threads)
    np.testing.assert_array_equal(outputs[0].result(), x * s)
    assert_same_bits(*(y.result() for y in outputs))


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("C", CHANNELS)
def test_reverse(C: int, by_channel: bool) -> None:
    s, gy = noise(2, *((1, 1) if by_channel else SHAPE), C, seed=1), noise(6, *SHAPE, C)
    expected = gy.astype(np.float64) * np.repeat(s, 3, axis=0)

    def run(gy: Any, samples: slice, *rest: Any) -> None:
        saved = Guarded.of(s[samples])
        products_bwd(gy, spread(saved) if by_channel else saved, *rest)

    check_reverse(run, gy, expected, targets=3)


@pytest.mark.parametrize("C", CHANNELS)
def test_reverse_of_a_factor(C: int) -> None:
    x, gy = noise(2, *SHAPE, C, seed=1), noise(6, *SHAPE, C)
    expected = (gy.astype(np.float64) * np.repeat(x, 3, axis=0)).sum(axis=(1, 2), keepdims=True)

    def run(gy: Any, samples: slice, *rest: Any) -> None:
        products_sum_bwd(gy, Guarded.of(x[samples]), *rest)

    check_reverse(run, gy, expected, targets=3)


def test_in_place() -> None:
    x, s = noise(1, *SHAPE, 17), noise(1, *SHAPE, 17, seed=1)
    y, other = x.copy(), s.copy()
    products_fwd(y, s, y, 2)
    products_fwd(x, other, other, 2)
    assert_close(y, x * s)
    assert_same_bits(y, other)
