"""Which tensors hold no negative number for any image, as far as the ops alone imply it."""

from __future__ import annotations

from ..graph.graph import Graph
from ..graph.op import Op
from ..ops.affine import Affine, Scale
from ..ops.binary import Binary, Choice
from ..ops.broadcast import Add, Mul
from ..ops.concat import AxisSlice, Concat
from ..ops.conv_transpose import Spread
from ..ops.dynamic import QuantizeByRange
from ..ops.functions import End, Function
from ..ops.lp_pool import LpPool
from ..ops.pool import AveragePool, MaxPool
from ..ops.quantize import Dequantize, Quantize
from ..ops.rectifier import Rectifier
from ..ops.reduce import Extremum, Reduce
from ..ops.resample import Resample
from ..ops.shape import Pad, Reshape, Transpose
from ..ops.softmax import Softmax
from ..ops.unpool import MaxUnpool

#: Functions that are never negative; and functions that are not negative if their argument is not.
_NEVER = {"Abs", "Exp", "HardSigmoid", "Sigmoid", "Softplus", "Sqrt", "Square", "ThresholdedRelu"}
_KEEP = {
    "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "GeluTanh", "HardSwish", "LeakyRelu", "Mish", "Pow",
    "Reciprocal", "Round", "Sign", "Softsign", "Swish", "Tanh",
}  # fmt: skip
_MOVES = (
    Reshape, Transpose, AxisSlice, MaxPool, AveragePool, MaxUnpool, Spread, Extremum, End, Dequantize,
    Quantize, QuantizeByRange, Add, Mul,
)  # fmt: skip


def nonnegative(graph: Graph, image: bool = True) -> set[str]:
    """The names of tensors that hold no negative number.

    The difference of two of them counts as such a tensor, as in E[x²] − E[x]².  Integers of a QuantizeLinear
    count as the numbers that they stand for.  `image`: whether the image counts as such a tensor.
    """
    found = {graph.input} if image else set()
    for layer in graph.layers:
        inputs = [name in found for name in layer.inputs]
        square = isinstance(layer.op, Mul) and len(inputs) == 2 and layer.inputs[0] == layer.inputs[1]
        if square or _keeps(layer.op, inputs):
            found.add(layer.output)
    return found


def _keeps(op: Op, x: list[bool]) -> bool:
    """Whether y is never negative, given the inputs of which that is known."""
    match op:
        case Rectifier(clip):
            return clip.lo >= 0 or x[0]
        case Function(name):
            return name in _NEVER or (x[0] and name in _KEEP)
        case Softmax():
            return not op.logarithm
        case LpPool():
            return True
        case Quantize() if (op.zero == op.lo).all():
            return True
        case Affine() | Scale():
            return x[0] and bool((op.a >= 0).all() and (op.b >= 0).all())
        case Binary(name, constants) if name in ("Div", "Pow"):
            return all(x) and all(c is None or bool((c >= 0).all()) for c in constants)
        case Binary(name):
            return name != "Sub" or all(x)
        case Choice(name, constants):
            given = iter(x)
            operands = [next(given) if c is None else bool((c >= 0).all()) for c in constants]
            return any(operands) if name == "Max" else all(operands[name == "Where" :])
        case Concat():
            return all(x) and all(bool((c >= 0).all()) for c in op.constants.values())
        case Pad():
            return x[0] and op.value >= 0
        case Resample():
            return x[0] and bool((op.table.weights >= 0).all())
        case Reduce():
            return op.is_never_negative or (x[0] and op.keeps_nonnegative)
    return isinstance(op, _MOVES) and all(x)
