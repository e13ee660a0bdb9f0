"""Local response normalisation, Softmax, LogSoftmax."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import (
    CHANNELS,
    NO_MASK,
    ON_CARD,
    Guarded,
    assert_close,
    assert_same_bits,
    check_forward,
    check_reverse,
    nchw,
    nhwc,
    noise,
)

from gbp.kernels.codegen.gate import OPEN
from gbp.kernels.codegen.memory import aligned
from gbp.kernels.lrn import lrn_bwd, lrn_fwd, lrn_scratch_floats
from gbp.kernels.softmax import logsoftmax_bwd, logsoftmax_fwd, softmax_bwd, softmax_fwd


@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("C", (3, 33) if ON_CARD else CHANNELS)
def test_lrn(C: int, size: int, beta: float) -> None:
    options = {"size": size, "alpha": 0.7, "beta": beta, "bias": 1.5}
    numbers = tuple(options.values())
    x, gy = noise(2, 3, 2, C), noise(6, 3, 2, C, seed=1)

    def scratch(threads: int) -> Any:
        return np.full(threads * lrn_scratch_floats(C, size), np.nan, np.float32)

    def run(samples: slice, threads: int) -> Any:
        y = Guarded((samples.stop - samples.start, *x.shape[1:]))
        lrn_fwd(Guarded.of(x[samples]), y.view, scratch(threads), *numbers, threads)
        return (y.result(),)

    assert_close(*check_forward(run, len(x)), nhwc(naive.lrn_fwd(nchw(x), **options)))

    def reverse(
        gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int
    ) -> None:
        lrn_bwd(gy, Guarded.of(x[samples]), mask, gate, gx, accumulate, scratch(threads), *numbers, threads)

    expected = nhwc(naive.lrn_bwd(nchw(gy), nchw(np.repeat(x, 3, axis=0)), **options))
    check_reverse(reverse, gy, expected, targets=3)


def test_lrn_in_place() -> None:
    x, gy = noise(1, 2, 3, 33), noise(2, 2, 3, 33, seed=1)
    scratch, numbers = np.empty(lrn_scratch_floats(33, 5), np.float32), (5, 0.7, 0.75, 1.5)
    y, gx = np.empty_like(x), np.empty_like(gy)
    lrn_fwd(x, y, scratch, *numbers, 1)
    lrn_bwd(gy, x, NO_MASK, OPEN, gx, 0, scratch, *numbers, 1)
    lrn_bwd(gy, x, NO_MASK, OPEN, gy, 0, scratch, *numbers, 1)
    lrn_fwd(x, x, scratch, *numbers, 1)
    assert_same_bits(x, y)
    assert_same_bits(gy, gx)


SOFTMAXES = {
    "softmax": (softmax_fwd, softmax_bwd, naive.softmax_fwd, naive.softmax_bwd),
    "logsoftmax": (logsoftmax_fwd, logsoftmax_bwd, naive.logsoftmax_fwd, naive.logsoftmax_bwd),
}


@pytest.mark.parametrize("op", SOFTMAXES)
@pytest.mark.parametrize("C", CHANNELS)
def test_softmax(C: int, op: str) -> None:
    forward, backward, expected_forward, expected_backward = SOFTMAXES[op]
    x, gy = 30 * noise(2, 3, 2, C), noise(6, 3, 2, C, seed=1)

    def run(samples: slice, threads: int) -> Any:
        y = Guarded((samples.stop - samples.start, *x.shape[1:]))
        forward(Guarded.of(x[samples]), y.view, threads)
        return (y.result(),)

    (y,) = check_forward(run, len(x))
    assert_close(y, expected_forward(x))

    def reverse(gy: Any, samples: slice, *rest: Any) -> None:
        backward(gy, Guarded.of(y[samples]), *rest)

    check_reverse(reverse, gy, expected_backward(gy, np.repeat(y, 3, axis=0)), targets=3)


def test_softmax_does_not_overflow() -> None:
    x = np.array([1e30, -1e30, 1e30], np.float32).reshape(1, 1, 1, 3)
    y = aligned(x.shape)
    softmax_fwd(x, y, 1)
    np.testing.assert_array_equal(y.ravel(), [0.5, 0, 0.5])
