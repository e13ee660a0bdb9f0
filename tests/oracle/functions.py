"""Functions of one number, and functions of two and choices among several under broadcasting.

Formulas are those of the ONNX specification, of complex numbers: where f is analytic, f'(x) is the imaginary
part of f(x + ih) / h, exactly enough for an h too small to be seen in the real part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import naive
import numpy as np
from naive import Array
from onnx import TensorProto

from .node import Activation, Kinked, Node, Operand, Operator, Rectifier, Vjp, margin

STEP = 1e-30


def derivative(f: Callable[[Array], Array], x: Array) -> Array:
    return np.imag(f(x + 1j * STEP)) / STEP


# --- Of one number ------------------------------------------------------------------------------------------


def erf(z: Array) -> Array:
    """Its slope by differences of fourth order."""

    def real(x: Array) -> Array:
        return np.vectorize(math.erf)(x)

    h = 1e-3
    slope = (8 * (real(z.real + h) - real(z.real - h)) - real(z.real + 2 * h) + real(z.real - 2 * h)) / (
        12 * h
    )
    return real(z.real) + 1j * slope * z.imag


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def softplus(z: Array) -> Array:
    return np.log1p(np.exp(z))


def clipped(z: Array, lo: float, hi: float) -> Array:
    """At a bound the bound, which does not depend on z."""
    return np.where(z.real <= lo, lo, np.where(z.real >= hi, hi, z))


#: Name → f(z, parameters …).
FORMULAS: dict[str, Callable[..., Array]] = {
    "LeakyRelu": lambda z, alpha: np.where(z.real > 0, z, alpha * z),
    "ThresholdedRelu": lambda z, alpha: np.where(z.real > alpha, z, 0),
    "Elu": lambda z, alpha: np.where(z.real > 0, z, alpha * np.expm1(z)),
    "Selu": lambda z, alpha, gamma: gamma * np.where(z.real > 0, z, alpha * np.expm1(z)),
    "Celu": lambda z, alpha: np.where(z.real > 0, z, alpha * np.expm1(z / alpha)),
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "HardSigmoid": lambda z, alpha, beta: clipped(alpha * z + beta, 0, 1),
    "HardSwish": lambda z: z * clipped(z / 6 + 0.5, 0, 1),
    "Swish": lambda z, alpha: z * sigmoid(alpha * z),
    "Mish": lambda z: z * np.tanh(softplus(z)),
    "Gelu": lambda z: 0.5 * z * (1 + erf(z / math.sqrt(2))),
    "GeluTanh": lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "Softplus": softplus,
    "Softsign": lambda z: z / (1 + z * np.sign(z.real)),
    "Shrink": lambda z, bias, lambd: np.where(
        z.real < -lambd, z + bias, np.where(z.real > lambd, z - bias, 0)
    ),
    "Erf": erf,
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Reciprocal": lambda z: 1 / z,
    "Square": lambda z: z * z,
    "Abs": lambda z: z * np.sign(z.real),
    "Neg": lambda z: -z,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tan": np.tan,
    "Asin": np.arcsin,
    "Acos": np.arccos,
    "Atan": np.arctan,
    "Sinh": np.sinh,
    "Cosh": np.cosh,
    "Asinh": np.arcsinh,
    "Acosh": np.arccosh,
    "Atanh": np.arctanh,
    "Sign": lambda z: np.sign(z.real),
    "Floor": lambda z: np.floor(z.real),
    "Ceil": lambda z: np.ceil(z.real),
    "Round": lambda z: np.round(z.real),
    "Not": lambda z: 1.0 - z.real,
}

#: Attributes and their defaults, in the order of the formula's parameters.
PARAMETERS: dict[str, dict[str, float]] = {
    "LeakyRelu": {"alpha": 0.01},
    "ThresholdedRelu": {"alpha": 1.0},
    "Elu": {"alpha": 1.0},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "Celu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "Swish": {"alpha": 1.0},
    "Shrink": {"bias": 0.0, "lambd": 0.5},
}

ACTIVATIONS = (
    *(set(PARAMETERS) - {"ThresholdedRelu"}),
    "Sigmoid",
    "Tanh",
    "HardSwish",
    "Mish",
    "Gelu",
    "Softplus",
    "Softsign",
)

#: Distances from where a function, given its parameters, jumps or bends.
KINKS: dict[str, Callable[..., Array]] = {
    "LeakyRelu": lambda x, alpha: np.abs(x),
    "ThresholdedRelu": lambda x, alpha: np.abs(x - alpha),
    "Elu": lambda x, alpha: np.abs(x),
    "Selu": lambda x, alpha, gamma: np.abs(x),
    "HardSigmoid": lambda x, alpha, beta: np.minimum(abs(alpha * x + beta), abs(alpha * x + beta - 1)),
    "HardSwish": lambda x: np.abs(np.abs(x) - 3),
    "Shrink": lambda x, bias, lambd: np.abs(np.abs(x) - lambd),
    "Abs": np.abs,
    "Sign": np.abs,
    "Floor": lambda x: np.abs(x - np.round(x)),
    "Ceil": lambda x: np.abs(x - np.round(x)),
    "Round": lambda x: np.abs(x - np.floor(x) - 0.5),
}


def of_one(n: Node, x: Array) -> tuple[Array, Any]:
    """ThresholdedRelu is a rectifier whose gate is open above its threshold."""
    name = "GeluTanh" if n.get("approximate") == "tanh" else n.op
    parameters = [np.float32(n.get(key, value)) for key, value in PARAMETERS.get(name, {}).items()]

    def f(z: Array) -> Array:
        return FORMULAS[name](z, *map(float, parameters))

    if name == "ThresholdedRelu":
        return np.where(x > parameters[0], x, 0), Rectifier(x, float(parameters[0]), math.inf)
    vjp: Any = lambda gy: [gy * derivative(f, x)]  # noqa: E731
    if name in KINKS:
        vjp = Kinked(vjp, lambda: margin(KINKS[name](x, *map(float, parameters)), x))
    return np.real(f(x.astype(np.complex128))), Activation(vjp) if n.op in ACTIVATIONS else vjp


def prelu(n: Node, x: Array, slope: Array) -> tuple[Array, Activation]:
    if n.opset < 7 and slope.ndim == 1 and slope.size > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    positive = x > 0
    return np.where(positive, x, slope * x), Activation(
        Kinked(lambda gy: [np.where(positive, gy, slope * gy)], lambda: margin(np.abs(x), x))
    )


# --- Of two numbers -----------------------------------------------------------------------------------------


def of_two(f: Callable[[Array, Array], Array]) -> Operator:
    def operator(n: Node, a: Array, b: Array) -> tuple[Array, Vjp]:
        def vjp(gy: Array) -> list[Array]:
            ga, gb = derivative(lambda z: f(z, b), a), derivative(lambda z: f(a, z), b)
            return [naive.unbroadcast(gy * ga, np.shape(a)), naive.unbroadcast(gy * gb, np.shape(b))]

        return f(a, b), vjp

    return operator


def power(n: Node, a: Array, b: Array) -> tuple[Array, Vjp]:
    """A negative number to a whole power too, of which NumPy's complex power has an imaginary trace."""

    def vjp(gy: Array) -> list[Array]:
        with np.errstate(all="ignore"):
            ga, gb = np.where(b == 0, 0, b * a ** (b - 1)), np.where(a > 0, np.power(a, b) * np.log(a), 0)
        return [naive.unbroadcast(gy * ga, np.shape(a)), naive.unbroadcast(gy * gb, np.shape(b))]

    return np.power(a, b), vjp


def comparison(f: Callable[[Array, Array], Array]) -> Operator:
    def operator(n: Node, a: Array, b: Array) -> tuple[Array, Kinked]:
        numbers = [np.asarray(v, np.float64) for v in np.broadcast_arrays(a, b)]
        return f(a, b), Kinked(
            lambda gy: [np.zeros(np.shape(a)), np.zeros(np.shape(b))],
            lambda: margin(np.abs(numbers[0] - numbers[1]), numbers[0]),
        )

    return operator


# --- Choices ------------------------------------------------------------------------------------------------


def _chosen(xs: tuple[Array, ...], which: Array) -> tuple[Array, Vjp]:
    """y = x_i where `which` is i."""
    y = np.take_along_axis(np.stack([np.broadcast_to(x, which.shape) for x in xs]), which[None], axis=0)[0]
    return y, lambda gy: [naive.unbroadcast(gy * (which == i), np.shape(x)) for i, x in enumerate(xs)]


def extreme(sign: int) -> Operator:
    def operator(n: Node, *xs: Array) -> tuple[Array, Any]:
        numbers = [float(x.reshape(())) for x in xs if x.ndim == 0]
        if numbers and len(numbers) == len(xs) - 1:  # with one number it is a Clip
            ((i, x),) = ((i, x) for i, x in enumerate(xs) if x.ndim)
            lo, hi = (max(numbers), math.inf) if sign > 0 else (-math.inf, min(numbers))
            return naive.clip_fwd(x, lo, hi), Rectifier(x, lo, hi, lo == 0, i)
        stack = sign * np.stack(np.broadcast_arrays(*xs))
        y, vjp = _chosen(xs, stack.argmax(axis=0))
        ordered = np.sort(stack, axis=0)
        runner_up = ordered[-1] - ordered[-2] if len(xs) > 1 else np.full(1, math.inf)
        return y, Kinked(vjp, lambda: margin(runner_up, stack))

    return operator


def where(n: Node, condition: Array, a: Array, b: Array) -> tuple[Array, Vjp]:
    shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
    y, vjp = _chosen((a, b), np.broadcast_to(1 - condition.astype(int), shape))
    return y, lambda gy: [np.zeros(condition.shape), *vjp(gy)]


def mean(n: Node, *xs: Operand) -> tuple[Array, Vjp]:
    return naive.add_fwd(*xs) / len(xs), lambda gy: naive.add_bwd(gy / len(xs), *(x.shape for x in xs))


def cast(n: Node, x: Array) -> tuple[Array, Vjp]:
    """To BOOL, whose truths are 1 here, or between types of numbers."""
    if n.get("to") == TensorProto.BOOL:
        return (x != 0).astype(float), lambda gy: [0 * gy]
    return x, lambda gy: [gy]


OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(set(FORMULAS) - {"GeluTanh", "Square"}, of_one),
    "And": comparison(np.logical_and),
    "Cast": cast,
    "Div": of_two(lambda a, b: a / b),
    "Equal": comparison(np.equal),
    "Greater": comparison(np.greater),
    "GreaterOrEqual": comparison(np.greater_equal),
    "Less": comparison(np.less),
    "LessOrEqual": comparison(np.less_equal),
    "Max": extreme(1),
    "Mean": mean,
    "Min": extreme(-1),
    "Or": comparison(np.logical_or),
    "PRelu": prelu,
    "Pow": power,
    "Sub": of_two(lambda a, b: a - b),
    "Where": where,
    "Xor": comparison(np.logical_xor),
}
