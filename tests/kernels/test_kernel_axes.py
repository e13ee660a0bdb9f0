"""Linear maps along an axis, reductions, normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import (
    NO_MASK,
    ON_CARD,
    THREADS,
    Guarded,
    assert_close,
    assert_same_bits,
    bits_of,
    check_forward,
    noise,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gbp.kernels import reduce as kinds
from gbp.kernels.codegen.gate import OPEN, Gate
from gbp.kernels.normalize import NORMALIZE_SUMS, normalize_bwd, normalize_fwd
from gbp.kernels.reduce import REDUCE_SUMS, extremum_bwd, extremum_fwd, reduce_bwd, reduce_fwd
from gbp.kernels.resample import resample
from gbp.ops.resample import Table

NO_MASK_5 = NO_MASK[..., None]
#: (A, R, B, S): one neighbour or none, whole blocks of them, blocks and a rest.
RUNS = ((1, 3, 5, 1), (4, 1, 1, 7), (2, 3, 16, 2), (1, 2, 35, 3), (3, 1, 1, 1))
if ON_CARD:
    RUNS = ((1, 3, 5, 1), (1, 1, 1, 7), (1, 3, 2, 2), (2, 1, 1, 1))


def matrix(outputs: int, size: int, seed: int = 0) -> Any:
    """Weights (outputs, size), some rows and columns of zeros among them."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((outputs, size)) * (rng.random((outputs, size)) < 0.4)


def table(w: Any) -> Table:
    return Table.of(np.broadcast_to(np.arange(w.shape[1]), w.shape), w)


def whole(shape: tuple[int, ...]) -> Any:
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("anchored", [0, 1])
@pytest.mark.parametrize("C", [1, 3, 17, 33])
def test_resample(C: int, anchored: int) -> None:
    w = matrix(6, 5)
    if anchored:  # with an output of no taps as well
        w /= np.where(w.sum(axis=1) == 0, 1, w.sum(axis=1))[:, None]
    t, back = table(w), table(w).transposed(5)
    x, gy = noise(2, 3, 5, 4, C), noise(6, 3, 6, 4, C, seed=1)

    def run(samples: slice, threads: int) -> Any:
        y = Guarded((samples.stop - samples.start, 3, 6, 4, C))
        given = Guarded.of(x[samples])
        resample(given, t.starts, t.taps, t.weights, NO_MASK_5, OPEN, y.view, 0, anchored, threads)
        return (y.result(),)

    (y,) = check_forward(run, len(x))
    assert_close(y, np.einsum("oa,npamc->npomc", w, x.astype(np.float64)))

    def reverse(
        gy: Any, samples: slice, mask: Any, gate: Gate, gx: Any, accumulate: int, threads: int
    ) -> None:
        five = mask.reshape(len(mask), 3, 5, 4, -1) if mask.size else NO_MASK_5
        five_gx = gx.reshape(len(gx), 3, 5, 4, C, copy=False)
        five_gy = gy.reshape(len(gy), 3, 6, 4, C, copy=False)
        resample(five_gy, back.starts, back.taps, back.weights, five, gate, five_gx, accumulate, 0, threads)

    expected = np.einsum("oa,npomc->npamc", w, gy.astype(np.float64))
    rows = np.ascontiguousarray(gy.reshape(6, 3, -1, C))
    # The rim of a guarded array parts the axes that the kernel sees; here it lies around whole rows.
    check_resampled(reverse, rows, expected.reshape(6, 1, -1, C))


def check_resampled(run: Any, gy: Any, expected: Any) -> None:
    """`check_reverse` for arrays of two rows a sample or one, whose axes merge."""
    before, started = noise(2, *expected.shape[1:], seed=7), noise(*expected.shape, seed=8)
    for gate in (OPEN, Gate(1, 0), Gate(0, 1), Gate(1, 1)):
        for accumulate in (0, 1):
            outputs = []
            for threads in THREADS:
                gx = started.copy() if accumulate else whole(expected.shape)
                mask = bits_of(before > 0) if gate.forward else NO_MASK
                run(gy, slice(0, 2), mask, gate, gx, accumulate, threads)
                outputs.append(gx)
            assert_same_bits(outputs[0], outputs[-1])
            flowing = expected + accumulate * started
            passes = (np.repeat(before, 3, axis=0) > 0) | (not gate.forward)
            passes &= (flowing > 0) | (not gate.gradient)
            assert_close(outputs[0], np.where(passes, flowing, 0))


@settings(max_examples=30, deadline=None)
@given(outputs=st.integers(1, 40), size=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_the_transposed_table_is_the_transposed_matrix(outputs: int, size: int, seed: int) -> None:
    w = matrix(outputs, size, seed)

    def dense(t: Table, columns: int) -> Any:
        result = np.zeros((t.outputs, columns))
        rows = np.repeat(np.arange(t.outputs), np.diff(t.starts))
        result[rows, t.taps] = t.weights
        return result

    np.testing.assert_allclose(dense(table(w), size), w, rtol=1e-6)
    np.testing.assert_allclose(dense(table(w).transposed(size), outputs), w.T, rtol=1e-6)


def test_long_sums_round_little() -> None:
    x = np.full((1, 1, 1, 1, 1), 0.1, np.float32)
    x = np.repeat(x, 2**20, axis=2)
    t, y = table(np.ones((1, 2**20))), np.empty((1, 1, 1, 1, 1), np.float32)
    resample(x, t.starts, t.taps, t.weights, NO_MASK_5, OPEN, y, 0, 0, 1)
    assert_close(y, x.astype(np.float64).sum(axis=2, keepdims=True))


REDUCTIONS = {
    kinds.SUM: (lambda x: x.sum(axis=(2, 4)), lambda x, y: np.ones_like(x)),
    kinds.MEAN: (lambda x: x.mean(axis=(2, 4)), lambda x, y: np.full_like(x, y.size / x.size)),
    kinds.L1: (lambda x: np.abs(x).sum(axis=(2, 4)), lambda x, y: np.sign(x)),
    kinds.L2: (lambda x: np.sqrt((x**2).sum(axis=(2, 4))), lambda x, y: x / y),
    kinds.SUM_SQUARE: (lambda x: (x**2).sum(axis=(2, 4)), lambda x, y: 2 * x),
    kinds.LOG_SUM: (lambda x: np.log(x.sum(axis=(2, 4))), lambda x, y: np.exp(-y) + 0 * x),
    kinds.LOG_SUM_EXP: (lambda x: np.log(np.exp(x).sum(axis=(2, 4))), lambda x, y: np.exp(x - y)),
    kinds.PROD: (lambda x: x.prod(axis=(2, 4)), lambda x, y: y / x),
}


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reduce(kind: int, runs: tuple[int, ...]) -> None:
    A, R, B, S = runs
    f, slope = REDUCTIONS[kind]
    x, gy = noise(2, A, R, B, S), noise(6, A, B, seed=1)
    x = np.abs(x) + np.float32(0.1) if kind == kinds.LOG_SUM else x
    x64 = x.astype(np.float64)
    y64 = f(x64)

    def run(samples: slice, threads: int) -> Any:
        y = whole((samples.stop - samples.start, A, B))
        reduce_fwd(x[samples], y, np.full(threads * REDUCE_SUMS, np.nan), kind, threads)
        return (y,)

    (y,) = check_forward(run, 2)
    assert_close(y, y64)
    slopes = np.repeat(slope(x64, y64[:, :, None, :, None]), 3, axis=0)
    check_gradient(
        lambda gx, accumulate, threads: reduce_bwd(
            gy, x, gx, accumulate, np.full(threads * REDUCE_SUMS, np.nan), kind, threads
        ),
        gy[:, :, None, :, None] * slopes,
    )


def check_gradient(run: Any, expected: Any) -> None:
    """Threads change no bit, and `accumulate` adds."""
    started = noise(*expected.shape, seed=8)
    for accumulate in (0, 1):
        outputs = [started.copy() if accumulate else whole(expected.shape) for _ in THREADS]
        for threads, gx in zip(THREADS, outputs, strict=True):
            run(gx, accumulate, threads)
        assert_same_bits(outputs[0], outputs[-1])
        assert_close(outputs[0], expected + accumulate * started)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([2, 3, 4], [12, 8, 6]), ([2, 0, 4], [0, 8, 0]), ([0, 3, 0], [0, 0, 0])],
)
def test_a_product_with_zeros(values: list[float], expected: list[float]) -> None:
    x = np.float32(values).reshape(1, 1, 1, 1, 3)
    gx = whole(x.shape)
    reduce_bwd(np.ones((1, 1, 1), np.float32), x, gx, 0, np.empty(REDUCE_SUMS), kinds.PROD, 1)
    np.testing.assert_array_equal(gx.ravel(), expected)


def test_the_norm_of_nothing_has_no_gradient() -> None:
    x, gx = np.zeros((1, 1, 1, 1, 3), np.float32), whole((1, 1, 1, 1, 3))
    reduce_bwd(np.ones((1, 1, 1), np.float32), x, gx, 0, np.empty(REDUCE_SUMS), kinds.L2, 1)
    np.testing.assert_array_equal(gx, 0)


def test_log_sum_exp_does_not_overflow() -> None:
    x, y = np.full((1, 1, 1, 1, 2), 1e4, np.float32), whole((1, 1, 1))
    reduce_fwd(x, y, np.empty(REDUCE_SUMS), kinds.LOG_SUM_EXP, 1)
    np.testing.assert_allclose(y, 1e4 + np.log(2))


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("highest", [0, 1])
def test_extremum(highest: int, runs: tuple[int, ...]) -> None:
    """Of few whole numbers, so that there are ties: the first takes the gradient."""
    A, R, B, S = runs
    x = np.random.default_rng(0).integers(-2, 3, (2, A, R, B, S)).astype(np.float32)
    gy = noise(6, A, B, seed=1)
    flat = x.transpose(0, 1, 3, 2, 4).reshape(2, A, B, R * S)
    first = flat.argmax(axis=-1) if highest else flat.argmin(axis=-1)

    def run(samples: slice, threads: int) -> Any:
        n = samples.stop - samples.start
        y, switches = whole((n, A, B)), np.full((n, A, B), 99, np.uint32)
        extremum_fwd(x[samples], y, switches, highest, threads)
        return y, switches

    y, switches = check_forward(run, 2)
    np.testing.assert_array_equal(y, flat.max(axis=-1) if highest else flat.min(axis=-1))
    np.testing.assert_array_equal(switches, first)
    expected = np.zeros((6, A, B, R * S))
    np.put_along_axis(expected, np.repeat(first, 3, axis=0)[..., None], gy[..., None], axis=-1)
    check_gradient(
        lambda gx, accumulate, threads: extremum_bwd(gy, switches, gx, accumulate, threads),
        expected.reshape(6, A, B, R, S).transpose(0, 1, 3, 2, 4),
    )


def test_the_first_nan_is_extreme() -> None:
    x = np.float32([1, 5, np.nan, -7, np.nan, 9, -9]).reshape(1, 1, 1, 1, 7)
    for highest in (0, 1):
        y, switches = whole((1, 1, 1)), np.zeros((1, 1, 1), np.uint32)
        extremum_fwd(x, y, switches, highest, 1)
        assert np.isnan(y).all()
        assert switches.item() == 2


@pytest.mark.parametrize("runs", [runs for runs in RUNS if runs[1] * runs[3] > 1])
@pytest.mark.parametrize(
    ("centred", "power", "norm"), [(1, 2, False), (0, 2, False), (0, 2, True), (0, 1, True)]
)
def test_normalize(centred: int, power: int, norm: bool, runs: tuple[int, ...]) -> None:
    A, R, B, S = runs
    numbers = (centred, power, 1 if norm else R * S, 0.0 if norm else 0.1)
    x, gy = noise(2, A, R, B, S) + np.float32(0.5), noise(6, A, R, B, S, seed=1)

    def f(x: Any) -> Any:
        """Also for complex x."""
        d = x - x.mean(axis=(2, 4), keepdims=True) * centred
        terms = d * np.sign(d.real) if power == 1 else d * d
        return d / (terms.sum(axis=(2, 4), keepdims=True) / numbers[2] + numbers[3]) ** (1 / power)

    def run(samples: slice, threads: int) -> Any:
        y = whole((samples.stop - samples.start, A, R, B, S))
        normalize_fwd(x[samples], y, np.full(threads * NORMALIZE_SUMS, np.nan), *numbers, threads)
        return (y,)

    (y,) = check_forward(run, 2)
    assert_close(y, f(x.astype(np.float64)))

    shared, expected = np.repeat(x.astype(np.complex128), 3, axis=0), np.zeros(gy.shape)
    for r in range(R):
        for s in range(S):  # each group has one of its elements moved
            moved = shared.copy()
            moved[:, :, r, :, s] += 1e-150j
            expected[:, :, r, :, s] = (gy * f(moved).imag / 1e-150).sum(axis=(2, 4))
    check_gradient(
        lambda gx, accumulate, threads: normalize_bwd(
            gy, x, gx, accumulate, np.full(threads * NORMALIZE_SUMS, np.nan), *numbers, threads
        ),
        expected,
    )
