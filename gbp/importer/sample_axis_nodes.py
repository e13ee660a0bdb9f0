"""One handler for each op that can be read with an axis of samples in front.

`sample_axis.py` says when that is needed.  A handler moves the node's axes and sizes by one place.  The op's
own parser reads the result.  A handler calls `refuse_if_bound` if the node would work along axis 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from ..graph.shapes import Shape
from ..ops import PARSERS
from ..ops.functions import PARSERS as FUNCTIONS
from ..ops.node import Node, Positions
from ..ops.resample import refuse_unless_it_fits, select
from ..ops.rows import over_rows
from ..ops.shape import TARGETS, Reshape, Transpose
from ..ops.unpool import Indices
from .proto import qualified
from .sample_axis import Lifted, Lifting, Operand, Ops, SampleAxis, one_after_another

Handler = Callable[[Lifting], Lifted | None]


def in_front(node: Node, batch: SampleAxis) -> Lifted | None:
    """Read a node, whose operands have the file's shapes, with samples in front.

    None if that is not possible.  Raises ModelError, UnsupportedError, also if the node would work along an
    axis that is bound.
    """
    handler = HANDLERS.get(qualified(node.proto))
    if handler is None or any(isinstance(operand, Positions) for operand in node.operands):
        return None
    return handler(Lifting(node, batch))


def by_rows(node: Node, batch: SampleAxis) -> Lifted | None:
    """Read a node that takes axis 0 of the file's tensors for its batch: each row is then a sample.

    None if its tensors have different numbers of rows.  Raises ModelError, UnsupportedError.
    """
    shapes = [operand for operand in node.operands if isinstance(operand, tuple)]
    rows = {shape[:1] for shape in shapes}
    if len(rows) != 1 or not shapes[0] or shapes[0][0] == batch.samples or shapes[0][0] % batch.samples:
        return None
    if any(isinstance(operand, Positions) for operand in node.operands):
        return None
    parsed = PARSERS[qualified(node.proto)](node)
    several = parsed if isinstance(parsed, list) else [parsed]
    if any(isinstance(op, Indices) for op in several):
        node.refuse("its Indices are used.", supported="the first output, where a sample has several rows")
    spread = [tuple(over_rows(op, batch.samples) for op in one_after_another(ops)) for ops in several]
    node.operands = [batch.lifted(o) if isinstance(o, tuple) else o for o in node.operands]
    return Lifted(node, list(spread) if isinstance(parsed, list) else spread[0])


# ------------------------------------------------------------------------------------ number by number


def _unary(lifting: Lifting) -> Lifted | None:
    return lifting.parse()


def _broadcast(lifting: Lifting) -> Lifted | None:
    """Operands align at their last axes, so all get the rank of the longest."""
    node, rank = lifting.node, lifting.rank
    ragged = any(len(shape) != rank for shape in lifting.shapes)
    constants = [o for o in node.operands if isinstance(o, np.ndarray)]
    if ragged or any(
        c.ndim > rank or (c.ndim == rank > 0 and not lifting.is_by_row(len(c))) for c in constants
    ):
        lifting.refuse_if_bound("it broadcasts along axis 0")
    operands = lifting.operands(max([rank, 1, *(c.ndim for c in constants)]))
    if node.opset >= 7:
        return _widened(lifting, operands) or lifting.parse(operands)
    axis = node.integer("axis", -1)  # Before opset 7 the second operand begins at `axis`.
    if ragged or (axis == 0 and lifting.batch.bound):
        return None
    return lifting.parse(operands, axis=axis + 1 if axis >= 0 else None)


def _widened(lifting: Lifting, operands: list[Operand]) -> Lifted | None:
    """If a constant is wider than the only computed operand, that operand is repeated first."""
    shape, *others = [operand for operand in operands if isinstance(operand, tuple)]
    if others or lifting.node.op not in ("Add", "Sub", "Mul", "Div", "Sum", "Mean"):
        return None
    try:
        constants = [operand.shape for operand in operands if isinstance(operand, np.ndarray)]
        wide = tuple(map(int, np.broadcast_shapes(shape, *constants)))
    except ValueError:
        return None
    if wide == shape or len(wide) != len(shape):
        return None
    widened = [(axis, n) for axis, n in enumerate(wide) if n != shape[axis]]
    for _, n in widened:
        refuse_unless_it_fits(lifting.node, 1, n)
    repeated = [select(axis, 1, np.zeros(n, np.int64)) for axis, n in widened]
    result = lifting.parse([wide if isinstance(operand, tuple) else operand for operand in operands])
    result.node.operands = operands
    return replace(result, parsed=(*repeated, *one_after_another(cast(Ops, result.parsed))))


def _prelu(lifting: Lifting) -> Lifted | None:
    slopes = lifting.node.operands[1]
    if lifting.node.opset < 7:  # Slopes belong to axis 1.
        return None
    return None if isinstance(slopes, np.ndarray) and slopes.ndim > lifting.rank else lifting.parse()


# ---------------------------------------------------------------------------------------- along one axis


def _along(default: int) -> Handler:
    return lambda lifting: lifting.parse(axis=lifting.axis(lifting.node.integer("axis", default)))


def _softmax(lifting: Lifting) -> Lifted | None:
    return _along(-1 if lifting.node.opset >= 13 else 1)(lifting)


def _concat(lifting: Lifting) -> Lifted | None:
    operands = [o[None] if isinstance(o, np.ndarray) else o for o in lifting.operands()]
    return lifting.parse(operands, axis=lifting.axis(lifting.node.integer("axis", 1)))


def _gather(lifting: Lifting) -> Lifted | None:
    node, batch = lifting.node, lifting.batch
    if not node.is_constant(1):
        return None
    axis = node.integer("axis", 0)
    if batch.held > 1 and axis in (0, -lifting.rank):
        return _gather_of_each(lifting, node.constant_integers(1))
    return lifting.parse(axis=lifting.axis(axis))


def _gather_of_each(lifting: Lifting, indices: NDArray[np.integer[Any]]) -> Lifted | None:
    """Gather along axis 0 that picks the same of each sample's rows, as torch's as_strided is exported."""
    k, rows = lifting.batch.samples, lifting.shapes[0][0]
    if indices.ndim and indices.size and len(indices) % k == 0 and rows % k == 0:
        picked = np.where(indices < 0, indices + rows, indices).reshape(
            k, len(indices) // k, *indices.shape[1:]
        )
        own = picked - (rows // k) * np.arange(k).reshape(-1, *(1,) * indices.ndim)
        if (own == own[0]).all() and own[0].min() >= 0 and own[0].max() < rows // k:
            return lifting.parse([lifting.operands()[0], own[0]], axis=1)
    lifting.refuse_if_bound("it picks along axis 0")
    return None


def _quantized(lifting: Lifting) -> Lifted | None:
    scale = lifting.node.operands[1]
    if not isinstance(scale, np.ndarray) or scale.size == 1:
        return lifting.parse(axis=None)
    return _along(1)(lifting)


def _cumsum(lifting: Lifting) -> Lifted | None:
    axis = lifting.axis(int(lifting.node.scalar(1, np.int64)))
    return lifting.parse([lifting.operands()[0], np.array(axis)])


# ---------------------------------------------------------------------------------------- along some axes


def _reduce(lifting: Lifting) -> Lifted | None:
    axes = lifting.integers(1, "axes") or ()
    if not axes and lifting.node.integer("noop_with_empty_axes", 0):
        return lifting.parse()
    moved = list(map(lifting.axis, axes or range(lifting.rank)))
    return lifting.parse([lifting.operands()[0]], axes=moved) if moved else None


def _normalize(lifting: Lifting) -> Lifted | None:
    axes = lifting.node.integers("axes", (0, 2, 3))
    return lifting.parse(axes=list(map(lifting.axis, axes)))


def _slice(lifting: Lifting) -> Lifted | None:
    """Along axis 0 only where all is kept, or where no batch is bound."""
    node = lifting.node
    old = node.opset < 10
    starts, ends = (
        (node.integers("starts", ()), node.integers("ends", ()))
        if old
        else (node.constant_ints(1), node.constant_ints(2))
    )
    axes = node.integers("axes") if old else node.constant_ints(3) if node.has(3) else None
    steps = node.constant_ints(4) if not old and node.has(4) else (1,) * len(starts)
    axes = tuple(range(len(starts))) if axes is None else axes
    if len(axes) != len(starts) or len(ends) != len(starts) or len(steps) != len(starts) or 0 in steps:
        return None
    size = lifting.shapes[0][0] if lifting.rank else 1
    moved = []
    for axis, *cut in zip(axes, starts, ends, steps, strict=True):
        whole = axis in (0, -lifting.rank) and slice(*cut).indices(size) == (0, size, 1)
        moved.append(1 + axis % lifting.rank if whole else lifting.axis(axis))
    if old:
        return lifting.parse(axes=moved)
    operands = [*lifting.operands(), None, None][:5]
    operands[3] = np.array(moved, np.int64)
    return lifting.parse(operands)


def _pad(lifting: Lifting) -> Lifted | None:
    """Along axis 0 only by nothing, or where no batch is bound."""
    node = lifting.node
    name = "pads" if node.opset > 1 else "paddings"
    pads = list(lifting.integers(1, name) or ())
    axes = node.constant_ints(3) if node.has(3) else range(lifting.rank)
    if len(pads) != 2 * len(axes):
        return None
    half = len(axes)
    for i, axis in enumerate(axes):
        if axis in (0, -lifting.rank) and (pads[i] or pads[half + i]):
            lifting.refuse_if_bound(f"pads {pads} change axis 0")
    moved = [1 + axis % lifting.rank if -lifting.rank <= axis < lifting.rank else axis + 1 for axis in axes]
    begin, end = [0] * (lifting.rank + 1), [0] * (lifting.rank + 1)
    if max(moved, default=0) > lifting.rank:
        return None
    for i, axis in enumerate(moved):
        begin[axis], end[axis] = pads[i], pads[half + i]
    if node.opset < 11:
        return lifting.parse(**{name: begin + end})
    operands = [*lifting.operands()[:3]]
    operands[1] = np.array(begin + end, np.int64)
    return lifting.parse(operands)


def _tile(lifting: Lifting) -> Lifted | None:
    """Along axis 0 only once, or where no batch is bound."""
    node, operands = lifting.node, lifting.operands()
    if node.opset < 6:
        axis = int(node.scalar(2))
        operands[2] = np.array(axis + 1 if axis >= 0 else axis, np.float32)
        if axis in (0, -lifting.rank) and int(node.scalar(1)) != 1:
            lifting.refuse_if_bound("it repeats axis 0")
        return lifting.parse(operands)
    repeats = node.constant_ints(1)
    if repeats[:1] != (1,):
        lifting.refuse_if_bound(f"repeats {list(repeats)} multiply axis 0")
    operands[1] = np.array((1, *repeats), np.int64)
    return lifting.parse(operands)


def _expand(lifting: Lifting) -> Lifted | None:
    target = lifting.node.constant_ints(1)
    shape = lifting.shapes[0]
    if len(target) > len(shape) or (len(target) == len(shape) > 0 and target[0] not in (1, shape[0])):
        lifting.refuse_if_bound(f"{list(shape)} becomes {list(target)}")
    elif len(target) == len(shape) > 0:
        target = (1, *target[1:])
    return lifting.parse([lifting.operands(max(1, len(target)))[0], np.array(target, np.int64)])


def _resize(lifting: Lifting) -> Lifted | None:
    """Scales or sizes for all axes get one more in front.  Where the node has `axes`, only these move."""
    if lifting.batch.bound:
        return None
    axes = lifting.node.integers("axes", range(lifting.rank))
    return lifting.parse(axes=[axis + 1 if axis >= 0 else axis for axis in axes])


def _upsample(lifting: Lifting) -> Lifted | None:
    node = lifting.node
    if lifting.batch.bound or node.opset < 7:
        return None
    if node.opset < 9:
        return lifting.parse(scales=[1.0, *node.numbers("scales", ())])
    return lifting.parse([lifting.operands()[0], np.concatenate([[1], node.constant(1).reshape(-1)])])


# ------------------------------------------------------------------------------------------------ shapes


def _reshape(lifting: Lifting) -> Lifted | None:
    """Samples are stored one after another, so any shape fits whose first axis holds as many rows of each."""
    batch, node, shape = lifting.batch, lifting.node, lifting.shapes[0]
    target = TARGETS[node.op](node)
    moves = node.op in ("Squeeze", "Unsqueeze") and target[:1] != shape[:1]
    if moves or not target or target[0] % batch.held:
        lifting.refuse_if_bound(f"{list(shape)} becomes {list(target)}")
    node.operands[0] = batch.lifted(shape)
    return Lifted(node, Reshape(batch.lifted(target) if target else (batch.samples,)))


def _transpose(lifting: Lifting) -> Lifted | None:
    perm = lifting.node.integers("perm", tuple(reversed(range(lifting.rank))))
    if perm[:1] not in ((), (0,)):
        lifting.refuse_if_bound(f"perm {list(perm)} moves axis 0")
    return lifting.parse(perm=[0, *(axis + 1 for axis in perm or (0,))])


# ---------------------------------------------------------------------------------------------- products


def _matmul(lifting: Lifting) -> Lifted | None:
    """A vector becomes a matrix of one row or one column.  That axis is dropped at the end."""
    a, b = operands = cast(list[Operand], lifting.node.operands)
    shapes: list[Shape] = [o.shape if isinstance(o, np.ndarray) else o for o in (a, b)]
    ranks = list(map(len, shapes))
    if 0 in ranks:
        return None
    if min(ranks) < 2 or _moves_rows(lifting):
        lifting.refuse_if_bound("it multiplies along axis 0")
    if ranks == [1, 2] and isinstance(b, np.ndarray):  # It is a row of a dense layer.
        return lifting.parse()
    matrices = [
        (1, *shapes[0]) if ranks[0] == 1 else shapes[0],
        (*shapes[1], 1) if ranks[1] == 1 else shapes[1],
    ]
    rank = max(map(len, matrices))
    factors = [
        o.reshape(shape) if isinstance(o, np.ndarray) else lifting.batch.lifted(shape, rank)
        for o, shape in zip(operands, matrices, strict=True)
    ]
    product = lifting.parse(factors)
    if min(ranks) > 1:
        return product
    lead = np.broadcast_shapes(*(shape[:-2] for shape in matrices))
    rows, columns = matrices[0][-2:-1] * (ranks[0] > 1), matrices[1][-1:] * (ranks[1] > 1)
    ops = product.parsed if isinstance(product.parsed, tuple) else (product.parsed,)
    kept = (lifting.batch.samples, *map(int, lead), *rows, *columns)
    return Lifted(product.node, (*ops, Reshape(kept)))


def _gemm(lifting: Lifting) -> Lifted | None:
    """With transA only.  Without it axis 0 counts rows, and the node is read by rows."""
    node, operands = lifting.node, list(lifting.node.operands)
    if not node.integer("transA", 0) or list(map(len, lifting.shapes)) != [2] or node.is_constant(0):
        return None
    lifting.refuse_if_bound("it sums over axis 0")
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.attribute[:]
    proto.attribute.extend(a for a in node.proto.attribute if a.name != "transA")
    operands[0] = lifting.shapes[0][::-1]
    plain = Node(proto, node.opset, operands, node.read)
    rows = [over_rows(op, lifting.batch.samples) for op in one_after_another(PARSERS["Gemm"](plain))]
    plain.operands[0] = lifting.batch.lifted(lifting.shapes[0])
    return Lifted(plain, (Transpose((0, 2, 1)), *rows))


def _moves_rows(lifting: Lifting) -> bool:
    """Whether axis 0 of a computed factor is summed over or becomes another axis."""
    a, b = cast(list[Operand], lifting.node.operands)
    if len(lifting.shapes) == 2:
        return not len(a) == len(b) >= 3
    c = a if isinstance(a, np.ndarray) else b
    if c.ndim > max(2, lifting.rank) or (c is a and lifting.rank < 3):
        return True
    return c.ndim == lifting.rank > 2 and not lifting.is_by_row(len(c))


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys((*FUNCTIONS, "Relu", "Clip", "Neg", "Not"), _unary),
    **dict.fromkeys(("Identity", "Dropout", "Cast", "CastLike", "DynamicQuantizeLinear"), _unary),
    "PRelu": _prelu,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "Max", "Min", "Where"), _broadcast),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _broadcast),
    **dict.fromkeys(("And", "Or", "Xor"), _broadcast),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "LpNormalization"), _along(-1)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantized),
    "Concat": _concat,
    "Split": _along(0),
    "Gather": _gather,
    "CumSum": _cumsum,
    **dict.fromkeys((op for op in PARSERS if op.startswith("Reduce")), _reduce),
    "MeanVarianceNormalization": _normalize,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
    "Expand": _expand,
    "Resize": _resize,
    "Upsample": _upsample,
    **dict.fromkeys(TARGETS, _reshape),
    "Transpose": _transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
}
