"""Ops without arithmetic: the same values in another shape, in another order, or with padding.

    Reshape, Flatten, Squeeze, Unsqueeze, Identity, Cast, …     y = x, row-major     gx = gy
    Transpose                                                   y[p(i)] = x[i]       gx[i] = gy[p(i)]
    DepthToSpace, SpaceToDepth                                  reshaped, transposed, reshaped
    Pad (constant)                                              y = x inside, value outside; gx = gy inside

The first two are views where the memory order allows it; `orders` names an order that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.moves import reorder
from ..limits import MAX_AXES, elements
from .dtypes import FLOATS, type_name
from .facts import Fact
from .folded import as_operands
from .functions import Function
from .node import Node
from .step import Clipped, Context, Floats, GradientSlot, Step, strided


def _blocks(x: Shape, y: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Split the axes behind the batch into the smallest pairs (axes of x, axes of y) with equal products."""
    i = j = 1
    while i < len(x) or j < len(y):
        left, right, left_size, right_size = [], [], 1, 1
        while True:
            if i < len(x) and (left_size <= right_size or j >= len(y)):
                left_size *= x[i]
                left.append(i)
                i += 1
            elif j < len(y):
                right_size *= y[j]
                right.append(j)
                j += 1
            if left_size == right_size and left and right:
                break
            if i >= len(x) and j >= len(y):
                break
        yield left, right


@dataclass(frozen=True)
class Reshape(Op):
    """The same values, row-major, in another shape."""

    to: Shape

    moves_only = True

    def shape(self, *x: Shape) -> Shape:
        return self.to

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        """Axes that are merged or split together must be adjacent, in the file's order."""
        blocks = list(_blocks(x[0], self.to))
        if any(not left or not right for left, right in blocks):  # trailing axes of 1 on one side
            return (tuple(range(1, len(x[0]))),), tuple(range(1, len(self.to)))
        wanted: list[int] = []
        result: list[int] = []
        for axis in sorted(given[0], key=lambda axis: x[0][axis] == 1):  # Axes of size 1 may be anywhere.
            left, right = next(block for block in blocks if axis in block[0])
            if left[0] not in wanted:
                wanted += left
                result += right
        return (tuple(wanted),), tuple(result)

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> None:
        return None


def or_identity(ops: Sequence[Op], shape: Shape) -> tuple[Op, ...]:
    """The ops; if there is none, an op that does nothing."""
    return tuple(ops) or (Reshape(shape),)


@dataclass(frozen=True)
class Transpose(Op):
    """The same values with the axes in the order `perm`, the batch first."""

    perm: tuple[int, ...]

    moves_only = True

    def shape(self, *x: Shape) -> Shape:
        return tuple(x[0][axis] for axis in self.perm)

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        return given, tuple(self.perm.index(axis) for axis in given[0])

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> None:
        return None


@dataclass(frozen=True)
class Pad(Op):
    """Pads with a constant.  `begin` and `end` are by logical axis, and 0 on the batch."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    value: float

    def shape(self, *x: Shape) -> Shape:
        return tuple(n + a + b for n, a, b in zip(x[0], self.begin, self.end, strict=True))

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        inside = [slice(self.begin[axis], self.begin[axis] + x[0][axis]) for axis in order]
        return PadStep((slice(None), *inside), self.value)


def _reshaped(node: Node) -> Shape:
    shape = node.shape(0)
    target = list(node.constant_ints(1) if node.opset >= 5 else node.integers("shape", ()))
    if len(target) > MAX_AXES:  # the product of many large numbers alone can take minutes
        node.refuse(f"its target has {len(target)} axes.", supported=f"up to {MAX_AXES} axes")
    if not node.integer("allowzero", 0):
        if len(target) > len(shape) and 0 in target[len(shape) :]:
            node.invalid(f"target {target} copies an axis that {list(shape)} has not.")
        target = [shape[i] if n == 0 else n for i, n in enumerate(target)]
    if target[:1] == [1]:  # Files that were traced with one image say so, though their batch is open.
        target[0] = node.samples
    size = elements(shape)
    if target.count(-1) > 1 or min(target, default=1) < -1:
        node.invalid(f"target {target} has no meaning.")
    if -1 in target:
        known = -elements(target)
        target[target.index(-1)] = size // known if known else 0
    if elements(target) != size:
        node.invalid(f"{list(shape)} cannot become {target}.")
    return tuple(target)


def _parse_reshape(node: Node) -> Op:
    """Reshape, Flatten, Squeeze and Unsqueeze, none of which may touch the batch."""
    target, batch = TARGETS[node.op](node), node.shape(0)[0]
    if not target or target[0] != batch:
        node.refuse(
            f"shape {list(node.shape(0))} becomes {list(target)}, which mixes the batch axis of {batch}.",
            supported="reshaping within a sample",
        )
    return Reshape(target)


def _flattened(node: Node) -> Shape:
    shape = node.shape(0)
    axis = node.integer("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        node.invalid(f"axis {axis} is outside a tensor of {len(shape)} axes.")
    axis = axis + len(shape) if axis < 0 else axis
    return elements(shape[:axis]), elements(shape[axis:])


def _axes(node: Node, rank: int) -> tuple[int, ...] | None:
    """`axes`: an attribute before opset 13, an input since."""
    axes = node.constant_ints(1) if node.has(1) else node.integers("axes")
    if axes is None:
        return None
    return node.axes(axes, rank)


def _squeezed(node: Node) -> Shape:
    shape = node.shape(0)
    axes = _axes(node, len(shape))
    if axes is None:
        axes = tuple(i for i, n in enumerate(shape) if n == 1 and not (i == 0 and node.batch_is_open))
    if any(shape[a] != 1 for a in axes):
        node.invalid(f"axes {list(axes)} of {list(shape)} are not all 1.")
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def _unsqueezed(node: Node) -> Shape:
    shape = node.shape(0)
    count = len(node.constant_ints(1)) if node.has(1) else len(node.integers("axes") or ())
    axes = _axes(node, len(shape) + count)
    if axes is None:
        node.invalid("axes are missing.")
    rest = iter(shape)
    return tuple(1 if i in axes else next(rest) for i in range(len(shape) + count))


#: ONNX op → the function that computes the shape of its output.
TARGETS: Mapping[str, Callable[[Node], Shape]] = {
    "Reshape": _reshaped,
    "Flatten": _flattened,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
}


def parse_identity(node: Node) -> Op:
    return Reshape(node.shape(0))


def parse_dropout(node: Node) -> Op:
    node.ignore("ratio", "seed", "is_test")
    if node.has(2) and bool(node.constant(2, np.bool_).any()):
        node.refuse(
            "training_mode is true.", supported="inference", hint="Export the model in evaluation mode."
        )
    return Reshape(node.shape(0))


def parse_cast(node: Node) -> Op | tuple[Op, ...]:
    """Between floating-point types it does nothing: gbp computes in float32.  An image may be bytes.

    A truth value is 1 where x is not 0, and 0 elsewhere: sign(|x|).
    """
    to = node.text("to", "").upper() if node.opset < 6 else type_name(node.integer("to", 0))
    node.ignore("saturate", "round_mode")
    shape = node.shape(0)
    if to == "BOOL":
        return Function("Abs"), Function("Sign")
    if to not in map(type_name, FLOATS):
        node.refuse(f"it casts to {to}.", supported="floating point, BOOL")
    return Reshape(shape)


def parse_cast_like(node: Node) -> Op:
    """To the type of another tensor; `load.py` leaves out a computed one, which is floating point."""
    node.ignore("saturate", "round_mode")
    if node.is_constant(1):
        node.constant(1)
    return Reshape(node.shape(0))


def parse_transpose(node: Node) -> Op:
    shape = node.shape(0)
    perm = node.integers("perm", tuple(reversed(range(len(shape)))))
    if perm is None or sorted(perm) != list(range(len(shape))):
        node.invalid(f"perm {perm} does not order {len(shape)} axes.")
    if perm[0] != 0:
        node.refuse(f"perm {list(perm)} moves the batch axis.", supported="perm[0] = 0")
    return Transpose(perm)


def _blocks_moved(node: Node, inside: Shape, perm: tuple[int, ...], result: Shape) -> tuple[Op, ...]:
    """Split the axes to `inside`, transpose them by `perm`, and merge them to `result`."""
    batch = node.shape(0)[0]
    return Reshape((batch, *inside)), Transpose(perm), Reshape((batch, *result))


def _blocks_of_depth(node: Node) -> tuple[int, bool]:
    """The side of a block; and whether channels are numbered by a block's pixels before the depth (DCR)."""
    mode = node.text("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        node.invalid(f"mode is {mode!r}, not DCR or CRD.")
    return node.integer("blocksize", 0), mode == "DCR"


def parse_depth_to_space(node: Node) -> tuple[Op, ...]:
    C, H, W = node.shape(0, rank=4)[1:]
    b, depth_first = _blocks_of_depth(node)
    if b < 1 or C % (b * b):
        node.invalid(f"blocks of {b} × {b} do not part {C} channels.")
    D = C // (b * b)
    result = D, H * b, W * b
    if depth_first:
        return _blocks_moved(node, (b, b, D, H, W), (0, 3, 4, 1, 5, 2), result)
    return _blocks_moved(node, (D, b, b, H, W), (0, 1, 4, 2, 5, 3), result)


def parse_space_to_depth(node: Node) -> tuple[Op, ...]:
    C, H, W = node.shape(0, rank=4)[1:]
    b, depth_first = _blocks_of_depth(node)
    if b < 1 or H % b or W % b:
        node.invalid(f"blocks of {b} × {b} do not part a plane of {H} × {W}.")
    result = C * b * b, H // b, W // b
    perm = (0, 3, 5, 1, 2, 4) if depth_first else (0, 1, 3, 5, 2, 4)
    return _blocks_moved(node, (C, H // b, b, W // b, b), perm, result)


PARSERS = {
    **dict.fromkeys(TARGETS, _parse_reshape),
    "Identity": parse_identity,
    "Dropout": parse_dropout,
    "Cast": parse_cast,
    "CastLike": parse_cast_like,
    "Transpose": parse_transpose,
    "DepthToSpace": parse_depth_to_space,
    "SpaceToDepth": parse_space_to_depth,
}

FACTS = {
    **dict.fromkeys(
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
        Fact("other", keeps_values=True, folds=as_operands),
    ),
    **dict.fromkeys(
        ("Identity", "Dropout", "Cast"),
        Fact("other", keeps_values=True, is_pixelwise=True, folds=as_operands),
    ),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), Fact("other", reads_planes=True, folds=as_operands)),
    "CastLike": Fact("other", folds=as_operands),
    "ZipMap": Fact("other", keeps_values=True),  # gives names to scores; no parser ever reads it
}


class CopyStep(Step):
    """Copies a tensor to another memory order.  The plan inserts it where an op needs one."""

    algorithm = "reorder"

    def __init__(self, given: Order, wanted: Order) -> None:
        self.axes = (0, *(1 + given.index(axis) for axis in wanted))
        self.back = tuple(int(i) for i in np.argsort(self.axes))
        self.repeats = self.repeats_back = _runs_of(given, wanted) <= _KERNEL_AXES

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        moved = x[0].transpose(self.axes)
        if self.repeats and isinstance(y, np.ndarray):
            reorder(*_merged(moved, y), 0, context.threads)
        else:
            np.copyto(y, moved)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        moved, slot = gy.transpose(self.back), gx[0]
        if self.repeats and isinstance(gy, np.ndarray):
            reorder(*_merged(moved, slot.array), int(slot.accumulate), context.threads)
        else:
            slot.put(moved)


#: Axes of the arrays that `kernels.moves.reorder` takes.
_KERNEL_AXES = 4


def _runs_of(given: Order, wanted: Order) -> int:
    """Most axes, with the batch, that are left once those that are neighbours in both orders are one.

    The innermost axis of each order stays alone, because rows of a larger buffer have gaps behind it.
    """
    ends = {given[-1:], wanted[-1:]}
    joined = sum(given.index(b) == given.index(a) + 1 and (b,) not in ends for a, b in pairwise(wanted))
    return 1 + len(wanted) - joined


def _merged(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """x and y, of one shape, as arrays of `_KERNEL_AXES` axes: runs of both memories become one axis."""
    shape, x_steps, y_steps = list[int](), list[int](), list[int]()
    for n, x_step, y_step in zip(x.shape, x.strides, y.strides, strict=True):
        if n == 1:
            continue
        if shape and x_steps[-1] == n * x_step and y_steps[-1] == n * y_step:
            shape[-1] *= n
            x_steps[-1], y_steps[-1] = x_step, y_step
        else:
            shape.append(n)
            x_steps.append(x_step)
            y_steps.append(y_step)
    more = _KERNEL_AXES - len(shape)
    sizes, none = (1,) * more + tuple(shape), (0,) * more
    return strided(x, sizes, none + tuple(x_steps)), strided(y, sizes, none + tuple(y_steps))


class PadStep(Step):
    """Copies x to the part `inside` of y, and the value around it."""

    algorithm = "pad"

    def __init__(self, inside: tuple[slice, ...], value: float) -> None:
        self.inside, self.value = inside, value

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        y.fill(self.value)
        y[self.inside] = x[0]

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        gx[0].put(gy[self.inside])
