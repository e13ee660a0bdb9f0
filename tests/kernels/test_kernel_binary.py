"""Functions of two numbers, and choices among several, with broadcasting."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import assert_close, assert_same_bits, noise
from test_kernel_broadcast import FULL, SHAPES, stretched

from gbp.kernels.binary import choice_kernel, chosen_bwd, slope_kernel, value_kernel

N, K = FULL[0], 3

#: f, ∂f/∂a, ∂f/∂b in float64.
FUNCTIONS: dict[str, Any] = {
    "Sub": (lambda a, b: a - b, lambda a, b: 1, lambda a, b: -1),
    "Div": (lambda a, b: a / b, lambda a, b: 1 / b, lambda a, b: -a / b**2),
    "Pow": (np.power, lambda a, b: b * a ** (b - 1), lambda a, b: a**b * np.log(a)),
}


def positive(*shape: int, seed: int = 0) -> Any:
    return np.abs(noise(*shape, seed=seed)) + np.float32(0.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_of_two(name: str, shape: tuple[int, ...]) -> None:
    """Also of an operand that has one row for all samples, and for K targets of each."""
    value, *slopes = FUNCTIONS[name]
    a, b, gy = positive(*FULL), positive(*shape, seed=1), noise(N * K, *FULL[1:], seed=2)
    outputs = [np.empty(FULL, np.float32) for _ in range(2)]
    for threads, y in enumerate(outputs, 1):
        value_kernel(name)(a, stretched(b, len(b)), y, threads)
    assert_close(outputs[0], value(a.astype(np.float64), b))
    assert_same_bits(*outputs)
    wide_a = np.repeat(a, K, axis=0).astype(np.float64)
    wide_b = np.repeat(b, K, axis=0).astype(np.float64) if len(b) > 1 else b.astype(np.float64)
    for operand, slope in enumerate(slopes):
        gx_shape = (N * K, *(a, b)[operand].shape[1:])
        started = noise(*gx_shape, seed=3)
        results = [started.copy() for _ in range(2)]
        for threads, gx in enumerate(results, 1):
            given = gy, a, stretched(b, len(b)), stretched(gx, N * K)
            slope_kernel(name, operand)(*given, threads)
        assert_close(results[0], started + naive.unbroadcast(gy * slope(wide_a, wide_b), gx_shape))
        assert_same_bits(*results)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_of_equals_is_chosen(threads: int) -> None:
    rng = np.random.default_rng(0)
    xs = [rng.integers(0, 3, FULL).astype(np.float32) for _ in range(3)]
    y, switches = np.empty(FULL, np.float32), np.full((N, np.prod(FULL[1:])), 99, np.uint8)
    choice_kernel("First")(xs[0], xs[0], 0, y, switches, threads)
    for i in (1, 2):
        choice_kernel("Max")(xs[i], xs[i], i, y, switches, threads)
    which = np.stack(xs).argmax(axis=0)
    np.testing.assert_array_equal(y, np.max(xs, axis=0))
    np.testing.assert_array_equal(switches.reshape(FULL), which)
    gy = noise(N * K, *FULL[1:])
    for i in range(3):
        gx = np.zeros_like(gy)
        chosen_bwd(gy, switches, i, gx, threads)
        np.testing.assert_array_equal(gx, gy * (np.repeat(which, K, axis=0) == i))
