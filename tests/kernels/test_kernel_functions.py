"""Functions of one number, and PRelu: kernels against formulas of complex numbers."""

from typing import Any

import numpy as np
import pytest
from harness import CHANNELS, ON_CARD, Guarded, assert_close, check_forward, check_reverse, noise
from numpy.lib.stride_tricks import as_strided
from oracle.functions import FORMULAS, derivative

from gbp.kernels.codegen.gate import OPEN
from gbp.kernels.formulas import NUMBERS, VECTORS
from gbp.kernels.functions import function_kernels

PARAMETERS: dict[str, tuple[float, ...]] = {
    "LeakyRelu": (0.2,),
    "ThresholdedRelu": (0.3,),
    "Elu": (0.7, 1.25),
    "Celu": (0.6,),
    "HardSigmoid": (0.25, 0.375),
    "Swish": (1.5,),
    "Shrink": (0.25, 0.5),
    "Pow": (3.0,),
}
#: Where a function is not defined on all numbers.
DOMAINS: dict[str, Any] = {
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal"), lambda x: np.abs(x) + np.float32(0.1)),
    **dict.fromkeys(("Asin", "Acos", "Atanh", "Tan"), lambda x: np.tanh(x) * np.float32(0.9)),
    "Acosh": lambda x: np.abs(x) + np.float32(1.1),
}
#: Functions whose slopes are those of relevance propagation, and no derivatives: (f, slope) of float64.
RELEVANCE: dict[str, tuple[tuple[float, ...], Any, Any]] = {
    "Stabilized": ((0.25,), lambda x: x, lambda x: x / (x + np.where(x < 0, -0.25, 0.25))),
    "ClipPassed": ((-0.5, 1.5), lambda x: np.clip(x, -0.5, 1.5), lambda x: np.clip(x, -0.5, 1.5) / x),
    "SwishPassed": ((1.5,), lambda x: x / (1 + np.exp(-1.5 * x)), lambda x: 1 / (1 + np.exp(-1.5 * x))),
}
PARAMETERS |= {name: parameters for name, (parameters, *_) in RELEVANCE.items()}
WIDTHS = (3, 17) if ON_CARD else CHANNELS


def formula(name: str) -> Any:
    """f(z) in float64, with the parameters as float32 holds them."""
    parameters = [float(np.float32(p)) for p in PARAMETERS.get(name, ())]
    if name == "Pow":
        return lambda z: z * z * z
    return lambda z: FORMULAS["Selu" if name == "Elu" else name](z, *parameters)


def numbers(name: str) -> tuple[float, float]:
    p, q, *_ = (*PARAMETERS.get(name, ()), 0.0, 0.0)
    return p, q


def inputs(name: str, x: Any) -> Any:
    return DOMAINS.get(name, lambda x: x)(x)


@pytest.mark.parametrize("name", [*VECTORS, *NUMBERS])
def test_function(name: str) -> None:
    fwd, bwd = function_kernels(name)
    p, q = numbers(name)
    if name in RELEVANCE:
        _, value, slope = RELEVANCE[name]
    else:
        f = formula(name)
        value, slope = (lambda x: np.real(f(x.astype(np.complex128)))), (lambda x: derivative(f, x))
    for C in WIDTHS:
        x, gy = inputs(name, 2 * noise(2, 3, 2, C)), noise(6, 3, 2, C, seed=1)

        def run(samples: slice, threads: int, x: Any = x) -> Any:
            y = Guarded((samples.stop - samples.start, *x.shape[1:]))
            fwd(Guarded.of(x[samples]), p, q, y.view, threads)
            return (y.result(),)

        (y,) = check_forward(run, len(x))
        assert_close(y, value(x.astype(np.float64)))

        def reverse(gy: Any, samples: slice, *rest: Any, x: Any = x) -> None:
            bwd(gy, Guarded.of(x[samples]), p, q, *rest)

        wide = np.repeat(x, 3, axis=0).astype(np.float64)
        check_reverse(reverse, gy, gy * slope(wide), targets=3)


def apply(name: str, x: Any) -> tuple[Any, Any]:
    """f and f' of x (n,)."""
    fwd, bwd = function_kernels(name)
    x = x.astype(np.float32).reshape(1, 1, 1, -1)
    y, gx, mask = np.empty_like(x), np.empty_like(x), np.zeros((0, 0, 0, 0), np.uint8)
    fwd(x, *numbers(name), y, 1)
    bwd(np.ones_like(x), x, *numbers(name), mask, OPEN, gx, 0, 1)
    return y.ravel(), gx.ravel()


SMOOTH = (
    "Elu",
    "Celu",
    "Sigmoid",
    "Tanh",
    "Swish",
    "Mish",
    "Gelu",
    "GeluTanh",
    "Softplus",
    "Softsign",
    "Exp",
)


@pytest.mark.parametrize("name", SMOOTH)
def test_small_numbers_keep_their_digits(name: str) -> None:
    """Where all of a tensor is small, its error is relative to what is small."""
    for scale in (1e-1, 1e-3, 1e-6):
        x = noise(99) * np.float32(scale)
        y, slope = apply(name, x)
        f = formula(name)
        assert_close(y, np.real(f(x.astype(np.complex128))))
        assert_close(slope, derivative(f, x.astype(np.float64)))


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh", "Swish", "Mish", "Softplus", "Exp"])
def test_tails_keep_their_digits(name: str) -> None:
    """So do values that are small because x is far out."""
    x = np.linspace(-18, -6, 99, dtype=np.float32)
    y, slope = apply(name, x)
    w = np.exp(x.astype(np.float64))
    p = numbers(name)[0]
    s = np.exp(p * x.astype(np.float64))
    expected = {
        "Sigmoid": (w / (1 + w), w / (1 + w) ** 2),
        "Tanh": (np.tanh(x.astype(np.float64)), 4 * w**2 / (1 + w**2) ** 2),
        "Swish": (x * s / (1 + s), s / (1 + s) + x * p * s / (1 + s) ** 2),
        "Softplus": (np.log1p(w), w / (1 + w)),
        "Exp": (w, w),
        "Mish": (x * w * (w + 2) / (w * (w + 2) + 2), None),
    }[name]
    for got, truth in zip((y, slope), expected, strict=True):
        if truth is not None:
            np.testing.assert_allclose(got, truth, rtol=1e-5)


@pytest.mark.parametrize("name", [*SMOOTH, "HardSwish", "HardSigmoid", "LeakyRelu"])
def test_nothing_overflows_far_out(name: str) -> None:
    x = np.array([-1e30, -1e4, -200, -90, 90, 200, 1e4, 1e30])
    y, slope = apply(name, x)
    if name == "Exp":
        np.testing.assert_array_equal(y, [0, 0, 0, 0] + 4 * [np.inf])
        return
    assert np.isfinite(y).all()
    assert np.isfinite(slope).all()
    assert (abs(slope) <= 1.5).all()


@pytest.mark.parametrize("name", [*VECTORS])
def test_nan_shows(name: str) -> None:
    y, _ = apply(name, np.full(5, np.nan))
    if name not in ("ThresholdedRelu", "Shrink"):  # which compare and give 0
        assert np.isnan(y).all()


@pytest.mark.parametrize("shape", [(1, 3, 2, 17), (1, 1, 1, 17)])
def test_prelu(shape: tuple[int, ...]) -> None:
    x, gy = noise(2, 3, 2, 17), noise(6, 3, 2, 17, seed=1)
    slopes = noise(*shape, seed=2)
    strides = [0 if n == 1 else step for n, step in zip(shape, slopes.strides, strict=True)]
    fwd, bwd = function_kernels("PRelu")
    given = as_strided(slopes, (1, *x.shape[1:]), strides)

    def run(samples: slice, threads: int) -> Any:
        y = Guarded((samples.stop - samples.start, *x.shape[1:]))
        fwd(Guarded.of(x[samples]), given, 0.0, y.view, threads)
        return (y.result(),)

    assert_close(*check_forward(run, len(x)), np.where(x > 0, x, x.astype(np.float64) * slopes))
    wide = np.repeat(x, 3, axis=0)
    check_reverse(
        lambda gy, samples, *rest: bwd(gy, Guarded.of(x[samples]), given, 0.0, *rest),
        gy,
        np.where(wide > 0, gy, gy.astype(np.float64) * slopes),
        targets=3,
    )
