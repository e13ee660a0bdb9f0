"""Functions of one number, of two, and choices among several."""

from __future__ import annotations

from builder import Builder
from onnx import TensorProto

from .case import Case, Net, chain, conv, node, with_noise


def scaled(a: float, b: float = 0.0) -> Net:
    """a·x + b."""
    return lambda b_, x: b_.add(b_.mul(x, b_.constant(a)), b_.constant(b))


def positive(b: Builder, x: str) -> str:
    """Return x² + ½."""
    return b.add(b.mul(x, x), b.constant(0.5))


inside = chain(node("Tanh"), scaled(0.9))

PLAIN = ("Sigmoid", "Tanh", "HardSwish", "Mish", "Softplus", "Softsign", "Gelu", "Erf", "Exp", "Abs", "Neg")
PLAIN += ("Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh", "Sign", "Floor", "Ceil", "Round")

PARAMETERS: dict[str, dict[str, float]] = {
    "LeakyRelu": {"alpha": 0.2},
    "ThresholdedRelu": {"alpha": 0.3},
    "Elu": {"alpha": 0.7},
    "Selu": {"alpha": 1.5, "gamma": 0.8},
    "Celu": {"alpha": 0.6},
    "HardSigmoid": {"alpha": 0.4, "beta": 0.3},
    "Swish": {"alpha": 1.7},
    "Shrink": {"bias": 0.2, "lambd": 0.3},
}

#: Functions that are not defined everywhere, behind what keeps their operand where they are.
PARTLY: dict[str, Net] = {
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal"), positive),
    **dict.fromkeys(("Asin", "Acos", "Atanh", "Tan"), inside),
    "Acosh": chain(positive, scaled(1.0, 0.7)),
}


OF_ONE = {
    **{op.lower(): Case(node(op)) for op in (*PLAIN, *PARAMETERS)},
    **{f"{op.lower()} {list(p.values())}": Case(node(op, **p)) for op, p in PARAMETERS.items()},
    **{op.lower(): Case(chain(net, node(op))) for op, net in PARTLY.items()},
    "gelu by tanh": Case(node("Gelu", approximate="tanh")),
    "gelu none": Case(node("Gelu", approximate="none")),
    "leakyrelu, opset 7": Case(node("LeakyRelu"), opset=7),
    "hardsigmoid, opset 7": Case(node("HardSigmoid"), opset=7),
    "leakyrelu after conv": Case(chain(conv(6), node("LeakyRelu", alpha=0.1))),
    "sigmoid of (N, C)": Case(node("Sigmoid"), (3, 17)),
    "sigmoid of 5 axes": Case(lambda b, x: b.node("Sigmoid", b.reshape(x, 0, 5, 7, 3, 3))),
    "sin of (N, C, L)": Case(lambda b, x: b.node("Sin", b.reshape(x, 0, 5, -1))),
    "sigmoids side by side": Case(
        lambda b, x: b.concat(b.node("Sigmoid", b.conv(x, 8, 1)), b.node("Tanh", b.conv(x, 5, 1)))
    ),
    "sigmoid of a part": Case(lambda b, x: b.node("Sigmoid", b.split(b.conv(x, 6, 1), (2, 4))[1])),
}

SLOPES: tuple[tuple[int, ...], ...] = ((), (1,), (5, 1, 1), (1, 5, 1, 1), (9,), (7, 1), (5, 7, 9), (5, 1, 9))

PRELUS = {
    **{f"prelu {list(shape)}": Case(with_noise("PRelu", *shape)) for shape in SLOPES},
    "prelu after conv": Case(chain(conv(6), with_noise("PRelu", 6, 1, 1))),
    "prelu of (N, C)": Case(with_noise("PRelu", 7), (3, 7)),
    "prelu of 5 axes": Case(
        lambda b, x: b.node("PRelu", b.reshape(x, 0, 5, 7, 3, 3), b.constant(b.noise(5, 1, 3, 1)))
    ),
    "prelu of a part": Case(
        lambda b, x: b.node("PRelu", b.split(b.conv(x, 6, 1), (2, 4))[1], b.constant(b.noise(4, 1, 1)))
    ),
}


def both(op: str, left: Net, right: Net) -> Net:
    """The op of two tensors made of x."""
    return lambda b, x: b.node(op, left(b, x), right(b, x))


def same(b: Builder, x: str) -> str:
    return x


plane, pooled = conv(1, 1), node("GlobalMaxPool")

BINARY = {
    **{
        f"{op} constant {list(shape)}{' first' if first else ''}": Case(with_noise(op, *shape, first=first))
        for op in ("Sub", "Max", "Min")
        for shape in ((), (5, 1, 1), (9,), (5, 1, 9))
        for first in (False, True)
    },
    "x / constant": Case(with_noise("Div", 5, 1, 1)),
    "x / number": Case(lambda b, x: b.node("Div", x, b.constant(3.0))),
    "constant / x": Case(chain(positive, with_noise("Div", 5, 1, 1, first=True))),
    "x - conv": Case(both("Sub", same, conv(5, 1))),
    "x - x": Case(both("Sub", same, same)),
    "x - plane": Case(both("Sub", same, plane)),
    "pooled - x": Case(both("Sub", pooled, same)),
    "x / x²": Case(both("Div", same, positive)),
    "x / plane": Case(both("Div", same, chain(plane, positive))),
    "pooled / x": Case(both("Div", pooled, positive)),
    "x ** x": Case(both("Pow", positive, same)),
    "x ** plane": Case(both("Pow", positive, plane)),
    "constant ** x": Case(lambda b, x: b.node("Pow", b.constant(2.5), x)),
    "x ** constants": Case(
        lambda b, x: b.node("Pow", positive(b, x), b.constant([[[2.0]], [[0.5]], [[3]], [[0]], [[-1]]]))
    ),
    **{
        f"x ** {exponent:g}": Case(chain(node("Pow", exponent), scaled(1.0, 0.7)))
        for exponent in (2.0, 3.0, 1.0, 0.0)
    },
    "x ** integer": Case(chain(node("Pow", 2), scaled(1.0, 0.7))),
    **{
        f"x² ** {exponent:g}": Case(lambda b, x, e=exponent: b.node("Pow", positive(b, x), b.constant(e)))
        for exponent in (0.5, -1.0, 1.3, -0.5)
    },
    "mean of one": Case(node("Mean")),
    "mean of three": Case(lambda b, x: b.node("Mean", x, b.conv(x, 5, 1), plane(b, x))),
    "mean with a constant": Case(with_noise("Mean", 5, 1, 1)),
    "max of one": Case(node("Max")),
    "max of three": Case(lambda b, x: b.node("Max", x, b.conv(x, 5, 1), pooled(b, b.conv(x, 5, 1)))),
    "min of three": Case(lambda b, x: b.node("Min", plane(b, x), x, b.constant(b.noise(9)))),
    "max with 0": Case(lambda b, x: b.node("Max", x, b.constant(0.0))),
    "min with 6 of max with 0": Case(
        lambda b, x: b.node("Min", b.constant(0.8), b.node("Max", b.constant(0.0), x))
    ),
    "maxout": Case(lambda b, x: b.node("Max", *b.split(b.conv(x, 6, 1), (3, 3)))),
    "max of 5 axes": Case(
        lambda b, x: b.node("Max", b.reshape(x, 0, 5, 7, 3, 3), b.constant(b.noise(7, 3, 1)))
    ),
}


def greater(op: str = "Greater", bound: float = 0.2) -> Net:
    return lambda b, x: b.node(op, x, b.constant(bound))


def choose(condition: Net, left: Net, right: Net) -> Net:
    return lambda b, x: b.node("Where", condition(b, x), left(b, x), right(b, x))


def number(value: float) -> Net:
    return lambda b, x: b.constant(value)


def noise_of(*shape: int) -> Net:
    return lambda b, x: b.constant(b.noise(*shape))


CHOICES = {
    **{
        f"where {op}": Case(choose(greater(op), scaled(2.0), same))
        for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    "where x is conv": Case(choose(both("Equal", same, conv(5, 1)), scaled(2.0), same)),
    "where x is above conv": Case(choose(both("Greater", same, conv(5, 1)), same, conv(5, 1))),
    "where plane is below x": Case(choose(both("Less", plane, same), same, number(0.3))),
    **{
        f"where {op}": Case(choose(both(op, greater(), greater("Less", 0.9)), same, number(-0.4)))
        for op in ("And", "Or", "Xor")
    },
    "where not": Case(choose(chain(greater(), node("Not")), same, number(-0.4))),
    "where truths": Case(
        choose(
            chain(greater(), node("Cast", to=TensorProto.FLOAT), node("Cast", to=TensorProto.BOOL)),
            scaled(2.0),
            same,
        )
    ),
    "where, both computed": Case(choose(greater(), conv(5, 1), same)),
    "where plane, pooled and a constant": Case(choose(chain(plane, greater()), pooled, noise_of(5, 7, 1))),
    "where of constants": Case(choose(greater(), number(1.0), noise_of(5, 1, 1))),
}

CASES: dict[str, Case] = {**OF_ONE, **PRELUS, **BINARY, **CHOICES}
