"""Receptive fields: which pixels a unit of a layer sees, from the windows of the layers before it.

A box is a range of indices for each axis of a tensor.  The box of a layer's output needs a box of each input.
Walking back from the unit to the image, the boxes that a tensor is needed for are joined.  Windows may reach
beyond a tensor, into its padding, so that units at a border have fields of the same size as others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from ..graph.geometry import Axis
from ..graph.graph import Graph
from ..graph.op import Op
from ..graph.shapes import Shape
from ..ops.affine import Affine, Scale
from ..ops.broadcast import SameRank
from ..ops.concat import AxisSlice, Concat
from ..ops.conv.conv import Conv
from ..ops.conv_transpose import Spread
from ..ops.dynamic import QuantizeByRange
from ..ops.functions import Function, PRelu
from ..ops.lp_pool import LpPool
from ..ops.lrn import LRN
from ..ops.pool import AveragePool, MaxPool
from ..ops.quantize import Dequantize, Quantize
from ..ops.rectifier import Rectifier
from ..ops.shape import Pad, Reshape, Transpose

Range: TypeAlias = tuple[int, int]
#: For each axis of a tensor, the batch among them: the first index, and the one after the last.
Box: TypeAlias = tuple[Range, ...]

_POINTWISE = (Affine, Scale, SameRank, Function, PRelu, Rectifier, Quantize, Dequantize, QuantizeByRange)


def field_of(graph: Graph, tensor: str, unit: Sequence[int]) -> Box:
    """The part of the input that a unit sees.

    Parameters
    ----------
    graph
        The network.
    tensor
        The tensor that has the unit.
    unit
        Its index, without the batch.

    Returns
    -------
    A range for each axis of the input, without the batch.  It may reach beyond the input, where windows reach
    into padding.  Where an op's reach is not known, it is all of the tensor.
    """
    boxes: dict[str, Box] = {tensor: ((0, 1), *((i, i + 1) for i in unit))}
    for layer in reversed(graph.layers):
        box = boxes.get(layer.output)
        if box is None:
            continue
        shapes = tuple(graph.shapes[name] for name in layer.inputs)
        needed = _needed(layer.op, box, shapes)
        for name, part in zip(layer.inputs, needed, strict=True):
            if part is not None:
                boxes[name] = _joined(boxes[name], part) if name in boxes else part
    return boxes.get(graph.input, _all(graph.shapes[graph.input]))[1:]


def _needed(op: Op, box: Box, x: tuple[Shape, ...]) -> Iterator[Box | None]:
    """The box that each input of an op is needed for; None where it is not."""
    if isinstance(op, Concat):
        yield from _parts(op, box, x)
        return
    for shape in x:
        yield _of_one(op, box, shape)


def _of_one(op: Op, box: Box, x: Shape) -> Box:
    """The box of an input of this shape."""
    if isinstance(op, _POINTWISE) and len(x) == len(box):
        return tuple((0, 1) if n == 1 else part for n, part in zip(x, box, strict=True))
    if isinstance(op, (Conv, MaxPool, AveragePool, LpPool)):
        depth = (op.depth if isinstance(op, Conv) else None) or Axis(x[-3], 1, 1, 1, 0, 0)
        axes = [depth, op.window.height, op.window.width][-(len(x) - 2) :]  # those that x has, from the last
        channels = (0, x[1]) if isinstance(op, Conv) else box[1]
        return (box[0], channels, *(_seen(a, part) for a, part in zip(axes, box[2:], strict=True)))
    if isinstance(op, LRN):
        return (box[0], (0, x[1]), *box[2:])
    if isinstance(op, Transpose):
        return tuple(box[op.perm.index(axis)] for axis in range(len(x)))
    if isinstance(op, Pad):
        return tuple((a - n, b - n) for (a, b), n in zip(box, op.begin, strict=True))
    if isinstance(op, AxisSlice):
        a, b = box[op.axis]
        return (*box[: op.axis], (a + op.start, b + op.start), *box[op.axis + 1 :])
    if isinstance(op, Spread):
        steps = zip(box[2:], op.step, op.begin, strict=True)
        spatial = ((-((begin - a) // step), (b - 1 - begin) // step + 1) for (a, b), step, begin in steps)
        return (*box[:2], *spatial)
    if isinstance(op, Reshape):
        return _of_reshape(box, x, op.to)
    return _all(x)


def _seen(axis: Axis, part: Range) -> Range:
    """The pixels that the windows of these positions see, padding included."""
    start, stop = part
    return start * axis.stride - axis.begin, (stop - 1) * axis.stride - axis.begin + axis.extent


def _parts(op: Concat, box: Box, x: tuple[Shape, ...]) -> Iterator[Box | None]:
    """The box that each computed part of a concatenation is needed for."""
    computed, at = iter(x), 0
    start, stop = box[op.axis]
    for k in range(len(x) + len(op.constants)):
        if k in op.constants:
            at += op.constants[k].shape[op.axis]
            continue
        size = next(computed)[op.axis]
        a, b = max(0, start - at), min(size, stop - at)
        yield None if a >= b else (*box[: op.axis], (a, b), *box[op.axis + 1 :])
        at += size


def _of_reshape(box: Box, x: Shape, y: Shape) -> Box:
    """Axes of one element come and go; anything else mixes all axes."""
    if [n for n in x[1:] if n != 1] != [n for n in y[1:] if n != 1]:
        return _all(x)
    parts = iter([part for part, n in zip(box[1:], y[1:], strict=True) if n != 1])
    return (box[0], *((0, 1) if n == 1 else next(parts) for n in x[1:]))


def _all(shape: Shape) -> Box:
    return ((0, 1), *((0, n) for n in shape[1:]))


def _joined(a: Box, b: Box) -> Box:
    return tuple((min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a, b, strict=True))
