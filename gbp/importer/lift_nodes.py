"""One handler for each op that can be read with an axis of samples in front; `lift.py` says when that is
needed.

A handler moves the node's axes and sizes one place.  The op's own parser reads the result.  A handler calls
`touch` if the node would work along axis 0.
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
from .lift import Lifted, Operand, Ops, Reader, SampleAxis, one_after_another
from .proto import qualified

Handler = Callable[[Reader], Lifted | None]


def in_front(node: Node, place: SampleAxis) -> Lifted | None:
    """Read a node, whose operands have the file's shapes, with samples in front.  None if that is not
    possible.

    Raises ModelError, UnsupportedError, also if the node would work along an axis that is bound.
    """
    handler = HANDLERS.get(qualified(node.proto))
    if handler is None or any(isinstance(operand, Positions) for operand in node.operands):
        return None
    return handler(Reader(node, place))


def by_rows(node: Node, place: SampleAxis) -> Lifted | None:
    """Read a node that takes axis 0 of the file's tensors for its batch: each row is then a sample.

    None if its tensors have different numbers of rows.  Raises ModelError, UnsupportedError.
    """
    shapes = [operand for operand in node.operands if isinstance(operand, tuple)]
    rows = {shape[:1] for shape in shapes}
    if len(rows) != 1 or not shapes[0] or shapes[0][0] == place.samples or shapes[0][0] % place.samples:
        return None
    if any(isinstance(operand, Positions) for operand in node.operands):
        return None
    parsed = PARSERS[qualified(node.proto)](node)
    several = parsed if isinstance(parsed, list) else [parsed]
    if any(isinstance(op, Indices) for op in several):
        node.refuse("its Indices are used.", supported="the first output, where a sample has several rows")
    spread = [tuple(over_rows(op, place.samples) for op in one_after_another(ops)) for ops in several]
    node.operands = [place.lifted(o) if isinstance(o, tuple) else o for o in node.operands]
    return Lifted(node, list(spread) if isinstance(parsed, list) else spread[0])


# ------------------------------------------------------------------------------------ number by number


def _unary(reader: Reader) -> Lifted | None:
    return reader.again()


def _broadcast(reader: Reader) -> Lifted | None:
    """Operands align at their last axes, so all get the rank of the longest."""
    node, rank = reader.node, reader.rank
    ragged = any(len(shape) != rank for shape in reader.shapes)
    constants = [o for o in node.operands if isinstance(o, np.ndarray)]
    if ragged or any(
        c.ndim > rank or (c.ndim == rank > 0 and not reader.is_by_row(len(c))) for c in constants
    ):
        reader.touch("it broadcasts along axis 0")
    operands = reader.operands(max([rank, 1, *(c.ndim for c in constants)]))
    if node.opset >= 7:
        return _widened(reader, operands) or reader.again(operands)
    axis = node.integer("axis", -1)  # Before opset 7 the second operand begins at `axis`.
    if ragged or (axis == 0 and reader.place.bound):
        return None
    return reader.again(operands, axis=axis + 1 if axis >= 0 else None)


def _widened(reader: Reader, operands: list[Operand]) -> Lifted | None:
    """If a constant is wider than the only computed operand, that operand is repeated first."""
    shape, *others = {operand for operand in operands if isinstance(operand, tuple)}
    if others or reader.node.op not in ("Add", "Sub", "Mul", "Div", "Sum", "Mean"):
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
        refuse_unless_it_fits(reader.node, 1, n)
    repeated = [select(axis, 1, np.zeros(n, np.int64)) for axis, n in widened]
    result = reader.again([wide if isinstance(operand, tuple) else operand for operand in operands])
    result.node.operands = operands
    return replace(result, parsed=(*repeated, *one_after_another(cast(Ops, result.parsed))))


def _prelu(reader: Reader) -> Lifted | None:
    return reader.again() if reader.node.opset >= 7 else None  # Slopes belong to axis 1.


# ---------------------------------------------------------------------------------------- along one axis


def _along(default: int) -> Handler:
    return lambda reader: reader.again(axis=reader.axis(reader.node.integer("axis", default)))


def _softmax(reader: Reader) -> Lifted | None:
    return _along(-1 if reader.node.opset >= 13 else 1)(reader)


def _concat(reader: Reader) -> Lifted | None:
    operands = [o[None] if isinstance(o, np.ndarray) else o for o in reader.operands()]
    return reader.again(operands, axis=reader.axis(reader.node.integer("axis", 1)))


def _gather(reader: Reader) -> Lifted | None:
    node, place = reader.node, reader.place
    if not node.is_constant(1):
        return None
    axis = node.integer("axis", 0)
    if place.samples > 1 and axis in (0, -reader.rank):
        return _gather_of_each(reader, node.constant_integers(1))
    return reader.again(axis=reader.axis(axis))


def _gather_of_each(reader: Reader, indices: NDArray[np.integer[Any]]) -> Lifted | None:
    """Gather along axis 0 that picks the same of each sample's rows, as torch's as_strided is exported."""
    k, rows = reader.place.samples, reader.shapes[0][0]
    if indices.ndim and len(indices) % k == 0 and rows % k == 0:
        picked = np.where(indices < 0, indices + rows, indices).reshape(
            k, len(indices) // k, *indices.shape[1:]
        )
        own = picked - (rows // k) * np.arange(k).reshape(-1, *(1,) * indices.ndim)
        if (own == own[0]).all() and own[0].min() >= 0 and own[0].max() < rows // k:
            return reader.again([reader.operands()[0], own[0]], axis=1)
    reader.touch("it picks along axis 0")
    return None


def _quantized(reader: Reader) -> Lifted | None:
    scale = reader.node.operands[1]
    if not isinstance(scale, np.ndarray) or scale.size == 1:
        return reader.again(axis=None)
    return _along(1)(reader)


def _cumsum(reader: Reader) -> Lifted | None:
    axis = reader.axis(int(reader.node.scalar(1, np.int64)))
    return reader.again([reader.operands()[0], np.array(axis)])


# ---------------------------------------------------------------------------------------- along some axes


def _reduce(reader: Reader) -> Lifted | None:
    axes = reader.integers(1, "axes") or ()
    if not axes and reader.node.integer("noop_with_empty_axes", 0):
        return reader.again()
    moved = list(map(reader.axis, axes or range(reader.rank)))
    return reader.again([reader.operands()[0]], axes=moved) if moved else None


def _normalize(reader: Reader) -> Lifted | None:
    axes = reader.node.integers("axes", (0, 2, 3))
    return reader.again(axes=list(map(reader.axis, axes)))


def _slice(reader: Reader) -> Lifted | None:
    node = reader.node
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
    size = reader.shapes[0][0] if reader.rank else 1
    moved = []
    for axis, *cut in zip(axes, starts, ends, steps, strict=True):
        whole = axis in (0, -reader.rank) and slice(*cut).indices(size) == (0, size, 1)
        moved.append(1 + axis % reader.rank if whole else reader.axis(axis))
    if old:
        return reader.again(axes=moved)
    operands = [*reader.operands(), None, None][:5]
    operands[3] = np.array(moved, np.int64)
    return reader.again(operands)


def _pad(reader: Reader) -> Lifted | None:
    node = reader.node
    name = "pads" if node.opset > 1 else "paddings"
    pads = list(reader.integers(1, name) or ())
    axes = node.constant_ints(3) if node.has(3) else range(reader.rank)
    if len(pads) != 2 * len(axes):
        return None
    half = len(axes)
    for i, axis in enumerate(axes):
        if axis in (0, -reader.rank) and (pads[i] or pads[half + i]):
            reader.touch(f"pads {pads} change axis 0")
    moved = [1 + axis % reader.rank if -reader.rank <= axis < reader.rank else axis + 1 for axis in axes]
    begin, end = [0] * (reader.rank + 1), [0] * (reader.rank + 1)
    if max(moved, default=0) > reader.rank:
        return None
    for i, axis in enumerate(moved):
        begin[axis], end[axis] = pads[i], pads[half + i]
    if node.opset < 11:
        return reader.again(**{name: begin + end})
    operands = [*reader.operands()[:3]]
    operands[1] = np.array(begin + end, np.int64)
    return reader.again(operands)


def _tile(reader: Reader) -> Lifted | None:
    node, operands = reader.node, reader.operands()
    if node.opset < 6:
        axis = int(node.scalar(2))
        operands[2] = np.array(axis + 1 if axis >= 0 else axis, np.float32)
        if axis in (0, -reader.rank) and int(node.scalar(1)) != 1:
            reader.touch("it repeats axis 0")
        return reader.again(operands)
    repeats = node.constant_ints(1)
    if repeats[:1] != (1,):
        reader.touch(f"repeats {list(repeats)} multiply axis 0")
    operands[1] = np.array((1, *repeats), np.int64)
    return reader.again(operands)


def _expand(reader: Reader) -> Lifted | None:
    target = reader.node.constant_ints(1)
    shape = reader.shapes[0]
    if len(target) > len(shape) or (len(target) == len(shape) > 0 and target[0] not in (1, shape[0])):
        reader.touch(f"{list(shape)} becomes {list(target)}")
    elif len(target) == len(shape) > 0:
        target = (1, *target[1:])
    return reader.again([reader.operands(max(1, len(target)))[0], np.array(target, np.int64)])


def _resize(reader: Reader) -> Lifted | None:
    """Scales or sizes for all axes get one more in front.  Where the node has `axes`, only these move."""
    if reader.place.bound:
        return None
    axes = reader.node.integers("axes", range(reader.rank))
    return reader.again(axes=[axis + 1 if axis >= 0 else axis for axis in axes])


def _upsample(reader: Reader) -> Lifted | None:
    node = reader.node
    if reader.place.bound or node.opset < 7:
        return None
    if node.opset < 9:
        return reader.again(scales=[1.0, *node.numbers("scales", ())])
    return reader.again([reader.operands()[0], np.concatenate([[1], node.constant(1).reshape(-1)])])


# ------------------------------------------------------------------------------------------------ shapes


def _reshape(reader: Reader) -> Lifted | None:
    """Samples are stored one after another, so any shape fits whose first axis holds as many rows of each."""
    place, node, shape = reader.place, reader.node, reader.shapes[0]
    target = TARGETS[node.op](node)
    moves = node.op in ("Squeeze", "Unsqueeze") and target[:1] != shape[:1]
    if moves or not target or target[0] % place.samples:
        reader.touch(f"{list(shape)} becomes {list(target)}")
    node.operands[0] = place.lifted(shape)
    return Lifted(node, Reshape(place.lifted(target) if target else (place.samples,)))


def _transpose(reader: Reader) -> Lifted | None:
    perm = reader.node.integers("perm", tuple(reversed(range(reader.rank))))
    if perm[:1] not in ((), (0,)):
        reader.touch(f"perm {list(perm)} moves axis 0")
    return reader.again(perm=[0, *(axis + 1 for axis in perm or (0,))])


# ---------------------------------------------------------------------------------------------- products


def _matmul(reader: Reader) -> Lifted | None:
    """A vector becomes a matrix of one row or one column.  That axis is dropped at the end."""
    a, b = operands = cast(list[Operand], reader.node.operands)
    shapes: list[Shape] = [o.shape if isinstance(o, np.ndarray) else o for o in (a, b)]
    ranks = list(map(len, shapes))
    if 0 in ranks:
        return None
    if min(ranks) < 2 or _moves_rows(reader):
        reader.touch("it multiplies along axis 0")
    if ranks == [1, 2] and isinstance(b, np.ndarray):  # It is a row of a dense layer.
        return reader.again()
    matrices = [
        (1, *shapes[0]) if ranks[0] == 1 else shapes[0],
        (*shapes[1], 1) if ranks[1] == 1 else shapes[1],
    ]
    rank = max(map(len, matrices))
    factors = [
        o.reshape(shape) if isinstance(o, np.ndarray) else reader.place.lifted(shape, rank)
        for o, shape in zip(operands, matrices, strict=True)
    ]
    product = reader.again(factors)
    if min(ranks) > 1:
        return product
    lead = np.broadcast_shapes(*(shape[:-2] for shape in matrices))
    rows, columns = matrices[0][-2:-1] * (ranks[0] > 1), matrices[1][-1:] * (ranks[1] > 1)
    ops = product.parsed if isinstance(product.parsed, tuple) else (product.parsed,)
    kept = (reader.place.samples, *map(int, lead), *rows, *columns)
    return Lifted(product.node, (*ops, Reshape(kept)))


def _gemm(reader: Reader) -> Lifted | None:
    """With transA only.  Without it axis 0 counts rows, and the node is read by rows."""
    node, operands = reader.node, list(reader.node.operands)
    if not node.integer("transA", 0) or list(map(len, reader.shapes)) != [2] or node.is_constant(0):
        return None
    reader.touch("it sums over axis 0")
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.attribute[:]
    proto.attribute.extend(a for a in node.proto.attribute if a.name != "transA")
    operands[0] = reader.shapes[0][::-1]
    plain = Node(proto, node.opset, operands, node.read)
    rows = [over_rows(op, reader.place.samples) for op in one_after_another(PARSERS["Gemm"](plain))]
    plain.operands[0] = reader.place.lifted(reader.shapes[0])
    return Lifted(plain, (Transpose((0, 2, 1)), *rows))


def _moves_rows(reader: Reader) -> bool:
    """Whether axis 0 of a computed factor is summed over or becomes another axis."""
    a, b = cast(list[Operand], reader.node.operands)
    if len(reader.shapes) == 2:
        return not len(a) == len(b) >= 3
    c = a if isinstance(a, np.ndarray) else b
    if c.ndim > max(2, reader.rank) or (c is a and reader.rank < 3):
        return True
    return c.ndim == reader.rank > 2 and not reader.is_by_row(len(c))


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys((*FUNCTIONS, "Relu", "Clip", "Neg", "Not"), _unary),
    **dict.fromkeys(("Identity", "Dropout", "Cast", "CastLike"), _unary),
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
