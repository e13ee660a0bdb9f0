"""Layer-wise relevance propagation (LRP) as a gradient times values.

A relevance R is kept as R = g · value, where g is what the backward pass carries.  Then max-pools, moves and
rectifiers pass relevance on by their gradient, and only these slopes change:

ε      y = w∗x + b     R_i = Σ_j x_i w_ij R_j / z_j,  z = y ± ε              g at y becomes g · y / (y ± ε)
plus   y = w∗x + b     R_i = Σ_j (x_i w_ij)⁺ R_j / p_j,  p = Σ_i (x_i w_ij)⁺ + b⁺ ± ε
                                                     a second layer p gets g · y / p, and y itself nothing
pass   y = f(x)        R_i = R_j                                             the slope becomes f(x) / x

± has the sign of what it is added to, and + at 0.  Sums and average pools follow ε, as other linear layers.
Scale and shift are folded into convolutions first; what is left of them follows ε.

A seed 1 distributes the value of what it is the seed of, such as a score.

Sources: Bach et al. 2015 (ε), Montavon et al. 2019 (composites).  The rules are those that zennit calls
`Epsilon`, and `EpsilonPlus`: `ZPlus` for convolutions, `Epsilon` for dense layers, `Norm` for sums and
average pools, `Pass` for activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError, UnsupportedError
from ..graph.graph import Graph, Layer, unused
from ..graph.op import Op
from ..ops.affine import Affine, Scale
from ..ops.binary import Binary, Choice
from ..ops.broadcast import Add
from ..ops.concat import AxisSlice, Concat
from ..ops.conv.conv import Conv
from ..ops.conv_transpose import Spread
from ..ops.functions import Function, PRelu
from ..ops.gemm import Dense, DenseSum
from ..ops.pool import AveragePool, MaxPool
from ..ops.rectifier import Rectifier
from ..ops.reduce import Extremum, Reduce
from ..ops.resample import Resample
from ..ops.shape import Pad, Reshape, Transpose
from ..ops.step import Clipped
from ..passes.signs import nonnegative

#: Layers whose gradient passes relevance on: they move values, choose among them, or have slopes y / x.
_EXACT = (AxisSlice, Choice, Concat, Extremum, MaxPool, PRelu, Pad, Reshape, Spread, Transpose)
_LINEAR = (Add, Affine, AveragePool, Conv, Dense, DenseSum, Resample, Scale)
#: Functions with f(0) = 0 → the row of `kernels.formulas` with the slope f(x) / x.
_PASSED = {"Swish": "SwishPassed"}
_TINY, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
#: Ops of fully connected layers, which follow ε under either rule.
_DENSE = ("Gemm", "MatMul", "FusedGemm", "FusedMatMul")


@dataclass(frozen=True)
class Relevance:
    """A rewrite: LRP.

    Parameters
    ----------
    epsilon
        Keeps denominators of the ε-rule from 0.
    plus
        Whether convolutions follow the plus rule, in place of ε.
    """

    epsilon: float = 1e-6
    plus: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for an ε that keeps nothing from 0."""
        is_number = isinstance(self.epsilon, (int, float, np.integer, np.floating))
        if not is_number or not _TINY <= self.epsilon <= _LARGEST:
            raise InputError(f"epsilon is {self.epsilon!r:.80}.", supported="a positive number of float32")

    def __call__(self, graph: Graph) -> Graph:
        """The graph with these slopes.  Raises UnsupportedError for layers without a rule, all by name."""
        refused = [layer for layer in graph.layers if not _has_rule(layer.op)]
        if refused:
            nodes = ", ".join(f"{layer.kind} {layer.name!r}" for layer in refused[:5])
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise UnsupportedError(
                f"LRP has no rule here for {nodes}{more}.",
                supported="linear layers, sums, pools, rectifiers and SiLU",
                hint="Other rules explain this network.",
            )
        shapes, layers = dict(graph.shapes), list[Layer]()
        positive = nonnegative(graph, image=False)

        def made(base: str, shape_of: str) -> str:
            name = unused(base, shapes)
            shapes[name] = shapes[shape_of]
            return name

        for layer in graph.layers:
            if isinstance(layer.op, Conv) and self.plus and layer.kind not in _DENSE:
                layers += _plus(layer, made, layer.inputs[0] in positive)
            elif isinstance(layer.op, _LINEAR) or _is_linear_reduction(layer.op):
                y = made(f"{layer.output}/exact", layer.output)
                layers.append(replace(layer, output=y))
                layers.append(replace(layer, op=Function("Stabilized", self.epsilon), inputs=(y,)))
            else:
                layers.append(replace(layer, op=_passing(layer.op)))
        return replace(graph, shapes=shapes).with_layers(layers)


def _has_rule(op: Op) -> bool:
    if isinstance(op, Rectifier):
        return op.clip.lo <= 0 <= op.clip.hi and type(op) is Rectifier
    if isinstance(op, Function):
        return op.name in _PASSED or op.name == "LeakyRelu"
    if isinstance(op, Choice):
        return op.name != "Where" and all(c is None for c in op.constants)
    return isinstance(op, (*_EXACT, *_LINEAR)) or _is_linear_reduction(op)


def _is_linear_reduction(op: Op) -> bool:
    return isinstance(op, Reduce) and op.is_linear


def _passing(op: Op) -> Op:
    """The same op with the slope f(x) / x."""
    if isinstance(op, Rectifier) and (op.clip.lo, op.clip.hi) != (0, np.inf):
        return Function("ClipPassed", op.clip.lo, op.clip.hi)
    if isinstance(op, Function) and op.name in _PASSED:
        return replace(op, name=_PASSED[op.name])
    return op


def _plus(layer: Layer, made: Callable[[str, str], str], is_positive: bool) -> Iterator[Layer]:
    """The convolution, a second one that gets the gradient, and the op that passes it on."""
    op, (x,), y = layer.op, layer.inputs, layer.output
    assert isinstance(op, Conv)
    exact, plus = made(f"{y}/exact", y), made(f"{y}/plus", y)
    yield replace(layer, output=exact)
    above = replace(op, w=np.maximum(op.w, 0), b=np.maximum(op.b, 0))
    if is_positive:
        yield replace(layer, op=above, output=plus)
    else:
        below = replace(op, w=np.minimum(op.w, 0), b=np.zeros_like(op.b))
        parts = []
        for sign, conv, clip in (("+", above, Clipped(lo=0.0)), ("-", below, Clipped(hi=0.0))):
            part, share = made(f"{x}/{sign}", x), made(f"{y}/plus{sign}", y)
            yield Layer(layer.name, Rectifier(clip), (x,), part, layer.kind)
            yield replace(layer, op=conv, inputs=(part,), output=share)
            parts.append(share)
        yield Layer(layer.name, Add(), tuple(parts), plus, layer.kind)
    yield Layer(layer.name, Binary("Redistribute", (None, None)), (exact, plus), y, layer.kind)
