"""Linear maps along one axis, and interpolation by them (ONNX Resize, Upsample; CumSum).

    y[…, o, …]  = Σ_t w[o, t] · x[…, i[o, t], …]
    gx[…, a, …] = Σ_{o, t: i[o, t] = a} w[o, t] · gy[…, o, …]

Interpolation is separable, so each axis that changes is one op.  Output o is at coordinate s of the input,
between ⌊s⌋ and ⌊s⌋ + 1.  The kernel k gives the weights of the pixels i around it:

    nearest    1 for the pixel that nearest_mode chooses
    linear     k(s − i),  k(d) = 1 − |d|                                 for |d| < 1
    cubic      k(s − i),  k(d) = (a+2)|d|³ − (a+3)d² + 1                 for |d| ≤ 1
                          k(d) = a|d|³ − 5ad² + 8a|d| − 4a               for 1 < |d| < 2

With `antialias` the kernel is wider by the factor by which the output is smaller.  Pixels beyond the edge
have the value of the edge; with exclude_outside they have no weight.

Source: ONNX Resize (opset 19) and its reference implementation; Upsample, and Resize at opset 10, as
onnxruntime has them, because the specification says too little.  By scales the output has ⌊scale · size⌋
cells in float32, and align_corners aligns the last of these, as PyTorch and onnxruntime have it; the
reference implementation takes float64 and scale · size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import counted
from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.codegen.gate import OPEN
from ..kernels.resample import resample
from ..limits import elements
from .facts import Fact
from .folded import as_operands, as_resized, slow
from .node import Node
from .shape import or_identity
from .step import NO_MASK, Clipped, Context, Floats, GradientSlot, Step, view

#: Most taps of one table, over all outputs.
MAX_TAPS = 2**22

#: The cost of a vector of taps (load, multiply, add), in multiply-adds of a convolution.
_TAP = 2**7


@dataclass(frozen=True, eq=False)
class Table:
    """A sparse matrix: y[o] = Σ weights[k] · x[taps[k]], for k from starts[o] to starts[o + 1] − 1."""

    starts: NDArray[np.int64]
    taps: NDArray[np.int32]
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, indices: NDArray[Any], weights: NDArray[Any]) -> Table:
        """Make a table from i and w (outputs, taps).  Weights of 0 are left out."""
        used = weights != 0
        starts = np.concatenate(([0], np.cumsum(used.sum(axis=1)))).astype(np.int64)
        return cls(starts, indices[used].astype(np.int32), weights[used].astype(np.float32))

    def on(self, target: Target) -> Table:
        """The same table in the memory of a device."""
        return Table(target.constant(self.starts), target.constant(self.taps), target.constant(self.weights))

    @property
    def outputs(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def averages(self) -> bool:
        """Whether the weights of each output add up to 1, and some output has several weights."""
        counts = np.diff(self.starts)
        if not counts.size or counts.min() < 1 or counts.max() < 2:
            return False
        sums = np.add.reduceat(self.weights, self.starts[:-1], dtype=np.float64)
        return bool(np.abs(sums - 1).max() < 1e-6)

    def is_identity(self, size: int) -> bool:
        return (
            len(self.taps) == self.outputs == size
            and bool((self.taps == np.arange(size)).all())
            and bool((np.diff(self.starts) == 1).all() and (self.weights == 1).all())
        )

    def transposed(self, size: int) -> Table:
        """The transposed matrix, for gradients.  `size`: elements of the input."""
        outputs = np.repeat(np.arange(self.outputs, dtype=np.int32), np.diff(self.starts))
        order = np.argsort(self.taps, kind="stable")
        counts = np.bincount(self.taps, minlength=size)
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        return Table(starts, outputs[order], self.weights[order])


@dataclass(frozen=True, eq=False)
class Resample(Op):
    """Applies a table along `axis`, which has `size` elements."""

    axis: int
    size: int
    table: Table

    @property
    def planning(self) -> int:
        return 4

    @property
    def nbytes(self) -> int:
        return 8 * (2 * len(self.table.taps) + self.table.outputs + self.size)

    def shape(self, *x: Shape) -> Shape:
        return *x[0][: self.axis], self.table.outputs, *x[0][self.axis + 1 :]

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        around = elements(y) // max(1, self.table.outputs)
        return super().work(x, y) + 2 * _TAP * len(self.table.taps) * around

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return ResampleStep(self, order, target)


class ResampleStep(Step):
    def __init__(self, op: Resample, order: Order, target: Target) -> None:
        self.table, self.transposed = op.table.on(target), op.table.transposed(op.size).on(target)
        self.averages = op.table.averages
        self.at = 1 + order.index(op.axis)
        # A mask has whole bytes for each row of the innermost axis.  Along that axis single elements are
        # written, which have no mask to gate by.
        self.gates = self.at < len(order)
        self.algorithm = f"{op.size} to {op.table.outputs}"

    def _around(self, x: NDArray[Any]) -> NDArray[Any]:
        """x as (batch, before, axis, behind, innermost).  The last two are 1 if the axis is innermost."""
        inner = x.shape[self.at + 1 :]
        after = (elements(inner[:-1]), inner[-1]) if inner else (1, 1)
        return view(x, len(x), elements(x.shape[1 : self.at]), x.shape[self.at], *after)

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        table, to = self.table, self._around(y)
        # Averages are anchored at the first tap, so flat areas stay flat.
        end = NO_MASK[..., None], OPEN, to, 0, int(self.averages), context.threads
        resample(self._around(x[0]), table.starts, table.taps, table.weights, *end)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (g,), table = gx, self.transposed
        to = self._around(g.array)
        mask = view(g.mask, len(g.mask), *to.shape[1:4], -1) if g.mask.size else NO_MASK[..., None]
        end = mask, g.gate, to, int(g.accumulate), 0, context.threads
        resample(self._around(gy), table.starts, table.taps, table.weights, *end)


def refuse_unless_it_fits(node: Node, size: int, outputs: float, taps: float = 1) -> None:
    """Refuse a table that is too large, before memory is allocated for it."""
    if size > MAX_TAPS:
        node.refuse(f"an axis of {size} elements.", supported=f"up to {MAX_TAPS} along one axis")
    if not outputs * max(1, taps) <= MAX_TAPS:
        node.refuse(
            f"{outputs:.4g} outputs along one axis.", supported=f"up to {MAX_TAPS} inputs to them in all"
        )


def select(axis: int, size: int, indices: NDArray[np.int64]) -> Resample:
    """y[…, o, …] = x[…, indices[o], …], where that axis of x has `size` elements."""
    return Resample(axis, size, Table.of(indices[:, None], np.ones((len(indices), 1))))


# --- Interpolation ------------------------------------------------------------------------------------------

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
)
#: A coordinate this near to the middle of two pixels is in the middle, as onnxruntime has it: float32 rounds
#: 1 / (2 / 7) to 3.4999998.
_TIE = 1e-6
_NEAREST: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "round_prefer_floor": lambda s: np.ceil(s.astype(np.float64) - 0.5 - _TIE),
    "round_prefer_ceil": lambda s: np.floor(s.astype(np.float64) + 0.5 + _TIE),
    "floor": np.floor,
    "ceil": np.ceil,
}
_POLICIES = ("stretch", "not_larger", "not_smaller")


@dataclass(frozen=True)
class _Interpolation:
    """Interpolation as the node's attributes describe it; the fields are these attributes.

    `nearest` is None in old opsets: down where the axis grows, up where it shrinks.  `cubic` is a.
    """

    mode: str
    coordinates: str
    nearest: str | None
    cubic: float
    exclude_outside: bool
    antialias: bool

    def kernel(self, d: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weight of a pixel at distance d."""
        d = np.abs(d)
        if self.mode == "linear":
            return np.maximum(0, 1 - d)
        a = self.cubic
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    def taps(self, scale: float) -> int:
        """How many pixels on each side contribute to an output."""
        if self.mode == "nearest":
            return 1
        reach = 1 if self.mode == "linear" else 2
        return math.ceil(reach / min(scale, 1)) if self.antialias else reach

    def table(self, size: int, outputs: int, scale: float) -> Table:
        """The interpolation of an axis of `size` to `outputs`, by `scale`."""
        if self.mode == "nearest":
            # Whole coordinates decide: rounded to float32 they are what exporters and runtimes meant.
            s = self._coordinates(np.arange(outputs, dtype=np.float32), size, np.float32(scale))
            pixel = _NEAREST[self.nearest or ("floor" if scale >= 1 else "ceil")](s)
            return Table.of(np.clip(pixel, 0, size - 1).astype(np.int64)[:, None], np.ones((outputs, 1)))
        s = self._coordinates(np.arange(outputs, dtype=np.float64), size, np.float64(scale))
        below = np.floor(s)
        reach = self.taps(scale)
        pixels = below[:, None] + np.arange(1 - reach, 1 + reach)
        w = self.kernel((pixels - s[:, None]) * (min(scale, 1) if self.antialias else 1))
        if self.exclude_outside:
            w[(pixels < 0) | (pixels >= size)] = 0
        w /= w.sum(axis=1, keepdims=True)
        return Table.of(np.clip(pixels, 0, size - 1).astype(np.int64), w)

    def _coordinates(self, o: NDArray[Any], size: int, scale: Any) -> NDArray[Any]:
        """The coordinates of outputs o in the input, in the precision of o."""
        number = o.dtype.type
        half = number(0.5)
        s: NDArray[Any]
        match self.coordinates:
            case "asymmetric":
                s = o / scale
            case "tf_half_pixel_for_nn":
                s = (o + half) / scale
            case "align_corners":
                s = o * number(size - 1) / number(len(o) - 1) if len(o) > 1 else 0 * o
            case "pytorch_half_pixel" if len(o) == 1:
                s = 0 * o
            case "half_pixel_symmetric":
                length = scale * number(size)  # the output's, before it became a whole number
                offset = number(size / 2) * (number(1) - number(len(o)) / length)
                s = offset + (o + half) / scale - half
            case _:
                s = (o + half) / scale - half
        return s


def _interpolate(
    node: Node,
    interpolation: _Interpolation,
    axes: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[float],
) -> tuple[Op, ...]:
    shape = node.shape(0)
    ops: list[Op] = []
    for axis, outputs, scale in zip(axes, sizes, scales, strict=True):
        size = shape[axis]
        if not (math.isfinite(scale) and scale > 0) or outputs < 1:
            node.invalid(f"axis {axis} of {size} becomes one of {outputs} by a scale of {scale:.4g}.")
        if outputs == size and math.isclose(scale, 1):
            continue
        if axis == 0:
            node.refuse(f"the batch is scaled by {scale:.4g}.", supported="1 on the batch axis")
        taps = 2 * interpolation.taps(scale) if scale > 1 / MAX_TAPS else math.inf
        refuse_unless_it_fits(node, size, outputs, taps)
        table = interpolation.table(size, outputs, scale)
        if not np.isfinite(table.weights).all():
            node.refuse(f"along axis {axis} some output has no input.")
        if not table.is_identity(size):
            ops.append(Resample(axis, size, table))
    return or_identity(ops, shape)


def _scaled_sizes(node: Node, axes: Sequence[int], scales: Sequence[float]) -> list[int]:
    """⌊scale · size⌋ of each axis, in float32: PyTorch and onnxruntime make 7 of 10 by 0.7, which is less."""
    if len(scales) != len(axes):
        node.invalid(f"scales for {counted(len(scales), 'axis', 'axes')}, where it resizes {len(axes)}.")
    with np.errstate(all="ignore"):
        sizes = [
            float(np.float32(node.shape(0)[axis]) * np.float32(scale))
            for axis, scale in zip(axes, scales, strict=True)
        ]
    if not all(math.isfinite(size) for size in sizes):
        node.invalid(f"scales {list(scales)} are not all finite.")
    return [math.floor(size) for size in sizes]


def _scales(node: Node, index: int) -> list[float]:
    return [float(scale) for scale in node.constant(index).reshape(-1)]


def parse_upsample(node: Node) -> tuple[Op, ...]:
    """Scales: two attributes at opset 1, one since 7, an input since 9."""
    shape = node.shape(0)
    axes = range(len(shape))
    if node.opset >= 9:
        scales = _scales(node, 1)
    elif node.opset >= 7:
        scales = list(node.numbers("scales", ()))
    else:
        scales = [1.0, 1.0, node.number("height_scale", 0), node.number("width_scale", 0)]
    mode = node.text("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear"):
        node.refuse(f"mode is {mode!r}.", supported="nearest, linear")
    mode = "nearest" if mode == "nearest" else "linear"
    interpolation = _Interpolation(mode, "asymmetric", None, 0.0, exclude_outside=False, antialias=False)
    return _interpolate(node, interpolation, axes, _scaled_sizes(node, axes, scales), scales)


def _interpolation_of(node: Node) -> _Interpolation:
    if node.opset < 11:
        mode = node.text("mode", "nearest")
        interpolation = _Interpolation(mode, "asymmetric", None, 0.0, exclude_outside=False, antialias=False)
    else:
        node.ignore("extrapolation_value")  # of tf_crop_and_resize
        interpolation = _Interpolation(
            node.text("mode", "nearest"),
            node.text("coordinate_transformation_mode", "half_pixel"),
            node.text("nearest_mode", "round_prefer_floor"),
            node.number("cubic_coeff_a", -0.75),
            bool(node.integer("exclude_outside", 0)),
            bool(node.integer("antialias", 0)),
        )
    for what, found, known in (
        ("mode", interpolation.mode, ("nearest", "linear", "cubic")),
        ("coordinate_transformation_mode", interpolation.coordinates, _COORDINATES),
        ("nearest_mode", interpolation.nearest, (None, *_NEAREST)),
    ):
        if found not in known:
            node.refuse(f"{what} is {found!r}.", supported=", ".join(name for name in known if name))
    if interpolation.mode == "nearest" and interpolation.antialias:
        node.invalid("mode nearest has no antialias.")
    return interpolation


def parse_resize(node: Node) -> tuple[Op, ...]:
    shape = node.shape(0)
    interpolation = _interpolation_of(node)
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy not in _POLICIES:
        node.refuse(f"keep_aspect_ratio_policy is {policy!r}.", supported=", ".join(_POLICIES))
    axes = node.axes(node.integers("axes", range(len(shape))), len(shape))
    at = 1 if node.opset < 11 else 2
    if node.has(at) and (scales := _scales(node, at)):
        return _interpolate(node, interpolation, axes, _scaled_sizes(node, axes, scales), scales)
    if not node.has(3):
        node.invalid("it has neither scales nor sizes.")
    sizes = list(node.constant_ints(3))
    if len(sizes) != len(axes) or not sizes:
        node.invalid(f"sizes for {counted(len(sizes), 'axis', 'axes')}, where it resizes {len(axes)}.")
    scales = [size / shape[axis] for size, axis in zip(sizes, axes, strict=True)]
    if policy != "stretch":
        scales = [min(scales) if policy == "not_larger" else max(scales)] * len(axes)
        sizes = [math.floor(scales[0] * shape[axis] + 0.5) for axis in axes]
    return _interpolate(node, interpolation, axes, sizes, scales)


def parse_cumsum(node: Node) -> tuple[Op, ...]:
    """Sums of all elements up to each: a triangular matrix."""
    shape = node.shape(0)
    axis = node.axis_within(node.scalar(1, np.int64), len(shape))
    size = shape[axis]
    refuse_unless_it_fits(node, size, size, size)
    weights = np.tri(size, k=-1 if node.integer("exclusive", 0) else 0)
    if node.integer("reverse", 0):
        weights = weights[::-1, ::-1]
    return (Resample(axis, size, Table.of(np.broadcast_to(np.arange(size), (size, size)), weights)),)


PARSERS: dict[str, Callable[[Node], Any]] = {
    "CumSum": parse_cumsum,
    "Resize": parse_resize,
    "Upsample": parse_upsample,
}

FACTS = {
    "CumSum": Fact("other", folds=as_operands),
    "Resize": Fact("other", folds=slow(as_resized)),
    "Upsample": Fact("other", folds=as_resized),
}
