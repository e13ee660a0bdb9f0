"""Sampling at the positions of a grid (ONNX GridSample), in 1 to 3 dimensions.

    y[n, c, o]  = Σ_t w[t] · x[n, c, i[t]]             w and i from the position s = grid[n, o]
    gx[n, c, a] = Σ_{o, t: i[t] = a} w[t] · gy[n, c, o]
    ggrid[n, o] = Σ_c gy[n, c, o] · Σ_t w'[t] · x[n, c, i[t]]

Along each axis w is the kernel k(s − i) of Resize, and the weight of a tap is the product over the axes.  A
coordinate g from −1 to 1 means position s = (g + 1)/2 · (size − 1) with align_corners, else
s = ((g + 1) · size − 1)/2.  Positions are float32 as in other runtimes, because rounding decides which pixel
is nearest.

A constant grid is one linear map of all pixels, a `Resample`.  A computed grid is such a map for each sample,
made in the run.

Source: ONNX GridSample (opsets 16, 20, 22) and its reference implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape, innermost, row_major
from ..kernels.codegen.gate import OPEN
from ..kernels.resample import resample
from ..limits import ELEMENT, elements
from .facts import Fact
from .folded import as_inferred
from .node import Node
from .resample import Resample, Table, refuse_unless_it_fits
from .shape import Pad, Reshape
from .step import NO_MASK, Clipped, Context, Floats, GradientSlot, NumpyStep, Step, view

#: Before opset 20, and since.
_MODES = {
    "bilinear": "linear",
    "bicubic": "cubic",
    "linear": "linear",
    "cubic": "cubic",
    "nearest": "nearest",
}
_TAPS = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}
_PADDINGS = ("zeros", "border", "reflection")
_CUBIC = -0.75

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How positions become pixels and weights."""

    mode: str
    padding: str
    align_corners: bool

    def taps(self, grid: NDArray[np.float32], sizes: Shape) -> tuple[Indices, Numbers, list[Numbers]]:
        """The pixels of x that each output reads, their weights, and the slopes of the weights.

        `grid`: (outputs, axes), the last axis first.  All results are (outputs, taps); there is one array of
        slopes for each number of the grid.  If x is padded with 0, taps outside x read one extra pixel behind
        its last.  So the weights of an output add up to 1, and flat areas stay flat to the last bit.
        """
        axes = [self._along(grid[:, ~d], size) for d, size in enumerate(sizes)]
        count = len(grid)
        pixels, weights = np.zeros((count, 1), np.int64), np.ones((count, 1))
        slopes, beyond = [np.ones((count, 1)) for _ in sizes], np.zeros((count, 1), bool)
        for d, ((i, w, slope), size) in enumerate(zip(axes, sizes, strict=True)):
            outside = (i < 0) | (i >= size)
            pixels = (pixels[:, :, None] * size + i[:, None]).reshape(count, -1)
            beyond = (beyond[:, :, None] | outside[:, None]).reshape(count, -1)
            weights = _products(weights, w)
            slopes = [_products(each, slope if k == d else w) for k, each in enumerate(slopes)]
        pixels[beyond] = elements(sizes)
        for each in slopes:
            each[beyond] = 0
        return pixels, weights, slopes[::-1]

    def _along(self, g: NDArray[np.float32], size: int) -> tuple[Indices, Numbers, Numbers]:
        """Pixels, weights and slopes (outputs, taps) along one axis."""
        # NumPy keeps float32: each step rounds as it does in runtimes.
        s32 = (g + 1) / 2 * (size - 1) if self.align_corners else ((g + 1) * size - 1) / 2
        if self.mode == "nearest":
            s32 = np.rint(s32)
        s, rise = self._inside(s32.astype(np.float64), size)
        rise *= ((size - 1) if self.align_corners else size) / 2
        first = np.nan_to_num(np.floor(s))
        d = s - first
        pixels = first.astype(np.int64)[:, None] + np.array(_TAPS[self.mode])
        weights, slopes = _kernel(self.mode, d)
        slopes *= rise[:, None]
        if self.padding == "reflection":
            pixels = self._reflected(pixels.astype(np.float64), size)[0].astype(np.int64)
        return pixels if self.padding == "zeros" else np.clip(pixels, 0, size - 1), weights, slopes

    def _inside(self, s: Numbers, size: int) -> tuple[Numbers, Numbers]:
        """Positions with the padding applied, and their derivative by the given positions: 1, −1 or 0."""
        lo, hi = self._ends(size)
        rise = np.ones(len(s))
        if self.padding == "zeros":
            return np.clip(s, -4, size + 4), rise  # so far out there is no tap on a pixel
        if self.padding == "reflection":
            return self._reflected(s, size)
        beyond = (s < lo) | (s > hi)
        rise[beyond] = 0
        return np.where(beyond, np.clip(s, 0, size - 1), s), rise

    def _ends(self, size: int) -> tuple[float, float]:
        return (0, size - 1) if self.align_corners else (-0.5, size - 0.5)

    def _reflected(self, s: Numbers, size: int) -> tuple[Numbers, Numbers]:
        lo, hi = self._ends(size)
        if hi == lo:  # the centre of the only pixel
            return np.full(s.shape, lo), np.zeros(s.shape)
        beyond = np.maximum(np.maximum(lo - s, s - hi), 0)  # how far
        turns, rest = np.divmod(beyond, hi - lo)
        # From the end that was crossed inwards; after an odd number of turns from the other end.
        from_lo = (s < lo) == (turns % 2 == 0)
        back = np.where(from_lo, lo + rest, hi - rest)
        return np.where(beyond > 0, back, s), np.where((beyond > 0) & (turns % 2 == 0), -1.0, 1.0)


def _products(a: Numbers, b: Numbers) -> Numbers:
    """All products of a number in a row of one array and a number in the same row of the other."""
    return np.asarray((a[:, :, None] * b[:, None]).reshape(len(a), -1))


def _kernel(mode: str, d: Numbers) -> tuple[Numbers, Numbers]:
    """Weights of the taps of a mode at distance d behind tap 0, and their slopes in d."""
    if mode == "nearest":
        return d[:, None] + 1, np.zeros((len(d), 1))  # d is 0, or NaN
    if mode == "linear":
        one = np.ones(len(d))
        return np.stack([1 - d, d], axis=1), np.stack([-one, one], axis=1)
    a = _CUBIC
    weights, slopes = [], []
    for tap in _TAPS[mode]:
        t, sign = np.abs(d - tap), np.sign(d - tap)
        if tap in (0, 1):
            weights.append((a + 2) * t**3 - (a + 3) * t**2 + 1)
            slopes.append(sign * (3 * (a + 2) * t**2 - 2 * (a + 3) * t))
        else:
            weights.append(a * (t**3 - 5 * t**2 + 8 * t - 4))
            slopes.append(sign * a * (3 * t**2 - 10 * t + 8))
    return np.stack(weights, axis=1), np.stack(slopes, axis=1)


@dataclass(frozen=True)
class GridSample(Op):
    """Samples x (N, C, …) at a computed grid (N, outputs …, axes)."""

    sampling: Sampling

    def shape(self, *x: Shape) -> Shape:
        return *x[0][:2], *x[1][1:-1]

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        taps: int = len(_TAPS[self.sampling.mode]) ** (len(y) - 2)
        return super().work(x, y) + ELEMENT * taps * (elements(y) + len(y) * elements(x[1]))

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        order = innermost(1, len(x[0]))
        return (order, row_major(len(x[1]))), order

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return GridSampleStep(self.sampling, x[0][2:], y)


def _common(grid: NDArray[np.float32], node: Node) -> NDArray[np.float32]:
    """The row of a constant grid, (outputs …, axes), which is the same for all samples."""
    if not len(grid) or not (grid == grid[:1]).all():
        node.refuse("its constant grid differs by sample.", supported="one for all samples")
    return np.asarray(grid[0])


def _check_shapes(node: Node, x: Shape, grid: Sequence[int]) -> None:
    if not 3 <= len(x) <= 5:
        node.refuse(f"x has shape {list(x)}.", supported="1 to 3 axes behind the channels")
    if len(grid) != len(x) or grid[-1] != len(x) - 2 or 0 in grid:
        node.invalid(f"a grid of shape {list(grid)} does not fit x of shape {list(x)}.")


def parse(node: Node) -> Op | tuple[Op, ...]:
    shape = node.shape(0)
    mode, padding = node.text("mode", "bilinear"), node.text("padding_mode", "zeros")
    if mode not in _MODES:
        node.refuse(f"mode is {mode!r}.", supported=", ".join(_MODES))
    if padding not in _PADDINGS:
        node.refuse(f"padding_mode is {padding!r}.", supported=", ".join(_PADDINGS))
    if (_MODES[mode], padding) == ("cubic", "border"):
        node.refuse(
            "mode is 'cubic' and padding_mode 'border'.",
            supported="another of the two",
            hint="ONNX clamps the position, onnxruntime each pixel.",
        )
    sampling = Sampling(_MODES[mode], padding, bool(node.integer("align_corners", 0)))
    pixels = elements(shape[2:])
    if not node.is_constant(1):
        _check_shapes(node, shape, node.shape(1))
        if node.shape(1)[0] != shape[0]:
            node.invalid(f"x has {shape[0]} samples and the grid {node.shape(1)[0]}.")
        taps = len(_TAPS[sampling.mode]) ** len(shape[2:])
        refuse_unless_it_fits(node, pixels, elements(node.shape(1)[1:-1]), taps)
        return GridSample(sampling)
    given = node.constant(1)
    _check_shapes(node, shape, given.shape)
    grid = _common(given, node)
    outputs = grid.shape[:-1]
    refuse_unless_it_fits(node, pixels, elements(outputs), len(_TAPS[sampling.mode]) ** len(outputs))
    indices, weights, _ = sampling.taps(grid.reshape(-1, len(outputs)), shape[2:])
    zero = (Pad((0, 0, 0), (0, 0, 1), 0.0),) if (indices == pixels).any() else ()
    return (
        Reshape((*shape[:2], pixels)),
        *zero,
        Resample(2, pixels + len(zero), Table.of(indices, weights)),
        Reshape((*shape[:2], *outputs)),
    )


PARSERS = {"GridSample": parse}

FACTS = {"GridSample": Fact("other", since=16, folds=as_inferred)}


class GridSampleStep(NumpyStep):
    """Computes sample by sample, so that no sample's bits depend on the others."""

    wants_whole = True
    saves_x = True

    def __init__(self, sampling: Sampling, sizes: Shape, y: Shape) -> None:
        self.sampling, self.sizes = sampling, sizes
        self.pixels, self.outputs, self.channels = elements(sizes), elements(y[2:]), y[1]
        super().__init__((max(self.outputs, self.pixels + 1), self.channels))
        self.algorithm = f"{sampling.mode}, {sampling.padding}"

    def _scratch(self, context: Context, pixels: int) -> Floats:
        (moved,) = self.temporaries(context)
        return moved[None, :pixels]

    def _taps(self, grid: Floats) -> tuple[Indices, Numbers, list[Numbers]]:
        return self.sampling.taps(view(grid, self.outputs, -1), self.sizes)

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        padded = self._scratch(context, self.pixels + 1)
        padded[:, -1] = 0
        for n, grid in enumerate(x[1]):
            indices, weights, _ = self._taps(grid)
            table = Table.of(indices, weights)
            np.copyto(padded[:, :-1], view(x[0][n : n + 1], 1, self.pixels, self.channels))
            _apply(table, padded, y[n : n + 1], context.threads, anchored=table.averages)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        x, grids = context.x
        targets = len(gy) // len(x)
        moved = self._scratch(context, self.outputs)
        for n, grid in enumerate(grids):
            rows = n * targets, (n + 1) * targets
            g, (to, to_grid) = gy[slice(*rows)], (slot.rows(*rows) for slot in gx)
            indices, weights, slopes = self._taps(grid)
            back = Table.of(indices, weights).transposed(self.pixels + 1)
            back = Table(back.starts[:-1], back.taps, back.weights)  # but to the pixel behind the last
            _apply(back, g, to.array, context.threads, to.accumulate)
            changes = np.empty(to_grid.array.shape, np.float32)
            for axis, slope in enumerate(slopes):
                _apply(Table.of(indices, slope), x[n : n + 1], moved, context.threads)
                products = moved * view(g, targets, self.outputs, self.channels)
                changes[..., axis] = products.sum(axis=-1).reshape(changes.shape[:-1])
            to_grid.put(changes)


def _apply(
    table: Table, x: Floats, y: Floats, threads: int, accumulate: bool = False, anchored: bool = False
) -> None:
    """Apply the table along all axes of x and y except the first and the last."""
    x, y = (view(a, len(a), 1, -1, 1, a.shape[-1]) for a in (x, y))
    end = NO_MASK[..., None], OPEN, y, int(accumulate), int(anchored), threads
    resample(x, table.starts, table.taps, table.weights, *end)
