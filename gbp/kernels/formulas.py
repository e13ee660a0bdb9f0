"""Functions of one number: a pair (f, f') for each.

`VECTORS` compute on whole vectors of float32 and share one exponential.  `NUMBERS` compute element by element
in float64 through the C library.  Some functions have parameters p and q.  At a kink the slope is that on the
left, as at a rectifier's 0; the slope of Abs at 0 is 0.

No function overflows where its value does not, and none loses digits where its value is small: the
exponentials inside are of −|x| and so at most 1, and small values are not computed as differences.

Source: ONNX operator specifications; He et al. 2015, "Delving Deep into Rectifiers", section 2.1 (PRelu);
Cephes expf and tanhf; Press et al., Numerical Recipes, erfcc.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .codegen.jit import device_function
from .codegen.simd import (
    above,
    broadcast,
    fma,
    polynomial,
    power_of_two,
    select,
    square_root,
    zeros,
)

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_ERFC = (
    *(0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807),
    *(-0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223),
)
#: log1p(e) / 2s, in s², where s = e / (2 + e).
_LOG = (1 / 15, 1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0)
#: ln 2 in two parts, of which k times the first is exact.
_LN2 = (0.693359375, -2.12194440e-4)
_LOG2_E = 1 / math.log(2)
_ROOT_HALF = math.sqrt(0.5)
#: The normal density at 0; and twice the slope of the inside of Gelu's tanh.
_DENSITY = 1 / math.sqrt(2 * math.pi)
_GELU_RISE = math.sqrt(8 / math.pi)
_SHIFT = 12582912.0  # 1.5·2²³: a float this large has no room for a fraction


@device_function
def _number(value: float) -> Any:
    return broadcast(np.float32(value))


@device_function
def _larger(a: Any, b: Any) -> Any:
    return select(above(b, a), b, a)


@device_function
def _smaller(a: Any, b: Any) -> Any:
    return select(above(a, b), b, a)


@device_function
def _absolute(x: Any) -> Any:
    return select(above(zeros(), x), 0.0 - x, x)


@device_function
def _within(x: Any, lo: float, hi: float) -> Any:
    """Bits of the lanes where lo < x < hi."""
    return above(x, _number(lo)) & above(_number(hi), x)


@device_function
def _exp(x: Any) -> Any:
    """eˣ = 2ᵏ·eʳ with k whole and |r| ≤ ½ ln 2; 0 below −87.3, infinity above 88.3."""
    inside = _smaller(_larger(x, _number(-87.3)), _number(88.3))
    shifted = fma(inside, _number(_LOG2_E), _number(_SHIFT))
    k = shifted - _SHIFT
    r = fma(k, _number(-_LN2[1]), fma(k, _number(-_LN2[0]), inside))
    y = fma(polynomial(r, _EXP), r * r, r) + 1.0
    y = select(above(x, inside), _number(np.inf), y * power_of_two(shifted))
    return select(above(inside, x), zeros(), y)


@device_function
def _sigmoid(x: Any) -> Any:
    e = _exp(0.0 - _absolute(x))
    return select(above(zeros(), x), e, _number(1)) / (1.0 + e)


@device_function
def _sigmoid_slope(x: Any) -> Any:
    e = _exp(0.0 - _absolute(x))
    return e / ((1.0 + e) * (1.0 + e))


@device_function
def _tanh(x: Any) -> Any:
    a, square = _absolute(x), x * x
    small = fma(polynomial(square, _TANH), square * x, x)
    e = _exp(-2.0 * a)
    large = (1.0 - e) / (1.0 + e)
    large = select(above(zeros(), x), 0.0 - large, large)
    return select(above(_number(0.625), a), small, large)


@device_function
def _tanh_slope(x: Any) -> Any:
    return 4.0 * _sigmoid_slope(2.0 * x)


@device_function
def _softplus(x: Any) -> Any:
    """log(1 + eˣ) = max(x, 0) + log1p(e^−|x|)."""
    e = _exp(0.0 - _absolute(x))
    s = e / (2.0 + e)
    return fma(2.0 * s, polynomial(s * s, _LOG), _larger(x, zeros()))


@device_function
def _expm1(x: Any) -> Any:
    """eˣ − 1 = tanh(x/2)·(eˣ + 1)."""
    return _tanh(0.5 * x) * (_exp(x) + 1.0)


@device_function
def _normal(x: Any) -> Any:
    """Φ(x) = ½ erfc(−x/√2).  The smaller of Φ(x) and Φ(−x) has a small relative error."""
    z = _absolute(x) * _ROOT_HALF
    t = 1.0 / (1.0 + 0.5 * z)
    tail = 0.5 * t * _exp(polynomial(t, _ERFC) - z * z)
    return select(above(x, zeros()), 1.0 - tail, tail)


@device_function
def _mish_parts(x: Any) -> Any:
    """a and b such that tanh(softplus(x)) = a / (a + b), both in powers of e^−|x|."""
    e = _exp(0.0 - _absolute(x))
    positive = above(x, zeros())
    return select(positive, 1.0 + 2.0 * e, e * (2.0 + e)), select(positive, 2.0 * e * e, _number(2))


@device_function
def _mish(x: Any) -> Any:
    a, b = _mish_parts(x)
    return x * a / (a + b)


@device_function
def _mish_slope(x: Any) -> Any:
    a, b = _mish_parts(x)
    y = a / (a + b)
    return y + x * _sigmoid(x) * (b / (a + b)) * (1.0 + y)


@device_function
def _swish_slope(x: Any, p: float) -> Any:
    return _sigmoid(x * p) + x * p * _sigmoid_slope(x * p)


@device_function
def _gelu_slope(x: Any) -> Any:
    return _normal(x) + x * _exp(-0.5 * x * x) * _DENSITY


@device_function
def _gelu_inner(x: Any) -> Any:
    """½(1 + tanh u) = σ(2u); this is 2u."""
    return fma(x * x, _number(0.044715), _number(1)) * x * _GELU_RISE


@device_function
def _gelu_tanh_slope(x: Any) -> Any:
    inside = _smaller(_larger(x, _number(-32)), _number(32))  # beyond, the product would be 0·∞
    u = _gelu_inner(inside)
    rise = fma(inside * inside, _number(3 * 0.044715), _number(1)) * _GELU_RISE
    return _sigmoid(u) + inside * rise * _sigmoid_slope(u)


@device_function
def _softsign_slope(x: Any) -> Any:
    d = 1.0 + _absolute(x)
    return 1.0 / (d * d)


Pair = tuple[Callable[..., Any], Callable[..., Any]]

#: Name → (f, f') of vectors x and numbers p, q.
VECTORS: dict[str, Pair] = {
    "LeakyRelu": (  # and PRelu, where p is a vector
        lambda x, p, q: select(above(zeros(), x), x * p, x),
        lambda x, p, q: select(above(x, zeros()), _number(1), _number(1) * p),
    ),
    "ThresholdedRelu": (
        lambda x, p, q: select(above(x, broadcast(p)), x, zeros()),
        lambda x, p, q: select(above(x, broadcast(p)), _number(1), zeros()),
    ),
    "Elu": (  # Selu with q = 1
        lambda x, p, q: select(above(x, zeros()), x, _expm1(x) * p) * q,
        lambda x, p, q: select(above(x, zeros()), _number(1), _exp(x) * p) * q,
    ),
    "Celu": (
        lambda x, p, q: select(above(x, zeros()), x, _expm1(x / p) * p),
        lambda x, p, q: select(above(x, zeros()), _number(1), _exp(x / p)),
    ),
    "Sigmoid": (lambda x, p, q: _sigmoid(x), lambda x, p, q: _sigmoid_slope(x)),
    "Tanh": (lambda x, p, q: _tanh(x), lambda x, p, q: _tanh_slope(x)),
    "HardSigmoid": (
        lambda x, p, q: _smaller(_larger(x * p + q, zeros()), _number(1)),
        lambda x, p, q: select(_within(x * p + q, 0, 1), broadcast(p), zeros()),
    ),
    "HardSwish": (
        lambda x, p, q: x * _smaller(_larger(x * (1 / 6) + 0.5, zeros()), _number(1)),
        lambda x, p, q: select(
            _within(x, -3, 3), x * (1 / 3) + 0.5, select(above(x, zeros()), _number(1), zeros())
        ),
    ),
    "Swish": (lambda x, p, q: x * _sigmoid(x * p), lambda x, p, q: _swish_slope(x, p)),
    "Mish": (lambda x, p, q: _mish(x), lambda x, p, q: _mish_slope(x)),
    "Gelu": (lambda x, p, q: x * _normal(x), lambda x, p, q: _gelu_slope(x)),
    "GeluTanh": (lambda x, p, q: x * _sigmoid(_gelu_inner(x)), lambda x, p, q: _gelu_tanh_slope(x)),
    "Softplus": (lambda x, p, q: _softplus(x), lambda x, p, q: _sigmoid(x)),
    "Softsign": (lambda x, p, q: x / (1.0 + _absolute(x)), lambda x, p, q: _softsign_slope(x)),
    "Shrink": (  # p: bias, q: lambda
        lambda x, p, q: select(
            above(broadcast(-q), x), x + p, select(above(x, broadcast(q)), x - p, zeros())
        ),
        lambda x, p, q: select(above(broadcast(-q), x) | above(x, broadcast(q)), _number(1), zeros()),
    ),
    "Abs": (
        lambda x, p, q: _absolute(x),
        lambda x, p, q: select(
            above(x, zeros()), _number(1), select(above(zeros(), x), _number(-1), zeros())
        ),
    ),
    "Exp": (lambda x, p, q: _exp(x), lambda x, p, q: _exp(x)),
    "Sqrt": (lambda x, p, q: square_root(x), lambda x, p, q: 0.5 / square_root(x)),
    "Reciprocal": (lambda x, p, q: 1.0 / x, lambda x, p, q: -1.0 / (x * x)),
    "Square": (lambda x, p, q: x * x, lambda x, p, q: 2.0 * x),
    # With the slopes of relevance propagation: see `rewrites.lrp`.
    "Stabilized": (  # p: epsilon
        lambda x, p, q: x + zeros(),
        lambda x, p, q: x / (x + select(above(zeros(), x), broadcast(-p), broadcast(p))),
    ),
    "ClipPassed": (  # p: from, q: to; 0 is between them
        lambda x, p, q: _smaller(_larger(x, broadcast(p)), broadcast(q)),
        lambda x, p, q: select(
            above(_absolute(x), zeros()), _smaller(_larger(x, broadcast(p)), broadcast(q)) / x, zeros()
        ),
    ),
    "SwishPassed": (lambda x, p, q: x * _sigmoid(x * p), lambda x, p, q: _sigmoid(x * p)),
}

#: Name → (f, f') of float64 numbers.
NUMBERS: dict[str, Pair] = {
    "Erf": (
        lambda x, p, q: math.erf(x),
        lambda x, p, q: 2 / math.sqrt(math.pi) * math.exp(-x * x),
    ),
    "Log": (lambda x, p, q: math.log(x), lambda x, p, q: 1 / x),
    "Pow": (
        lambda x, p, q: math.pow(x, p),
        lambda x, p, q: 0.0 if p == 0 else p * math.pow(x, p - 1),
    ),
    "Sin": (lambda x, p, q: math.sin(x), lambda x, p, q: math.cos(x)),
    "Cos": (lambda x, p, q: math.cos(x), lambda x, p, q: -math.sin(x)),
    "Tan": (lambda x, p, q: math.tan(x), lambda x, p, q: 1 / math.cos(x) ** 2),
    "Asin": (lambda x, p, q: math.asin(x), lambda x, p, q: 1 / math.sqrt((1 - x) * (1 + x))),
    "Acos": (lambda x, p, q: math.acos(x), lambda x, p, q: -1 / math.sqrt((1 - x) * (1 + x))),
    "Atan": (lambda x, p, q: math.atan(x), lambda x, p, q: 1 / (1 + x * x)),
    "Sinh": (lambda x, p, q: math.sinh(x), lambda x, p, q: math.cosh(x)),
    "Cosh": (lambda x, p, q: math.cosh(x), lambda x, p, q: math.sinh(x)),
    "Asinh": (lambda x, p, q: math.asinh(x), lambda x, p, q: 1 / math.sqrt(x * x + 1)),
    "Acosh": (lambda x, p, q: math.acosh(x), lambda x, p, q: 1 / math.sqrt((x - 1) * (x + 1))),
    "Atanh": (lambda x, p, q: math.atanh(x), lambda x, p, q: 1 / ((1 - x) * (1 + x))),
    "Sign": (lambda x, p, q: np.sign(x), lambda x, p, q: 0.0),
    "Floor": (lambda x, p, q: np.floor(x), lambda x, p, q: 0.0),
    "Ceil": (lambda x, p, q: np.ceil(x), lambda x, p, q: 0.0),
    "Round": (lambda x, p, q: np.rint(x), lambda x, p, q: 0.0),
}
