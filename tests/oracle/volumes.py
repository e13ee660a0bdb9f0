"""Sliding windows over any number of axes, transposed convolution, norms and unpooling, from the ONNX spec.

Plain loops over taps, and of pools over windows; what is done there is done for all samples and channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import naive
import numpy as np
from naive import Array

from . import classic
from .node import Kinked, Node, Operand, Operator, Vjp, margin

Index = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """By spatial axis; `ends` is the padding at the end."""

    size: Index
    kernel: Index
    stride: Index
    dilation: Index
    begins: Index
    ends: Index
    ceil_mode: bool = False

    @classmethod
    def of(cls, n: Node, size: Sequence[int], kernel: Sequence[int]) -> Window:
        one, rank = [1] * len(size), len(size)
        stride, dilation = n.get("strides", one), n.get("dilations", one)
        pads, auto_pad = n.get("pads", [0] * 2 * rank), n.get("auto_pad", "NOTSET")
        sides = [(pads[i], pads[rank + i]) for i in range(rank)]
        if auto_pad != "NOTSET":
            axes = zip(size, kernel, stride, dilation, strict=True)
            sides = [naive.resolve_pads(auto_pad, *axis) for axis in axes]
        begins, ends = zip(*sides, strict=True)
        lists = (size, kernel, stride, dilation, begins, ends)
        return cls(*map(tuple, lists), bool(n.get("ceil_mode", 0)))

    @property
    def outputs(self) -> Index:
        return tuple(self._outputs(i) for i in range(len(self.size)))

    def _outputs(self, i: int) -> int:
        padded = self.size[i] + self.begins[i] + self.ends[i]
        room = (padded - (self.kernel[i] - 1) * self.dilation[i] - 1) / self.stride[i]
        count = (math.ceil(room) if self.ceil_mode else math.floor(room)) + 1
        starts_in_the_end = (count - 1) * self.stride[i] >= self.size[i] + self.begins[i]
        return count - 1 if self.ceil_mode and starts_in_the_end else count

    def taps(self, o: Index) -> Iterator[tuple[Index, Index]]:
        """(tap, pixel) of window o, row-major, on the plane and off it."""
        for k in np.ndindex(*self.kernel):
            parts = zip(o, k, self.stride, self.dilation, self.begins, strict=True)
            yield k, tuple(a * s + t * d - begin for a, t, s, d, begin in parts)

    def inside(self, o: Index) -> Iterator[tuple[Index, Index]]:
        for k, p in self.taps(o):
            if all(0 <= a < size for a, size in zip(p, self.size, strict=True)):
                yield k, p

    def padded(self, o: Index) -> int:
        """How many taps lie on the plane or on its padding."""
        sides = list(zip(self.begins, self.size, self.ends, strict=True))
        return sum(
            all(-begin <= a < size + end for a, (begin, size, end) in zip(p, sides, strict=True))
            for _, p in self.taps(o)
        )


def at(x: Array, p: Index) -> Array:
    """All samples and channels at pixel p, writable."""
    return x[(slice(None), slice(None), *p)]


# --- Convolution --------------------------------------------------------------------------------------------


def matrices(w: Array, group: int) -> dict[Index, Array]:
    """For each tap of weights (O, C / group, …) the matrix (O, C) that is block-diagonal by groups."""
    O, each = w.shape[:2]
    found = {}
    for k in np.ndindex(*w.shape[2:]):
        found[k] = np.zeros((O, each * group))
        for o in range(O):
            g = o // (O // group)
            found[k][o, g * each : (g + 1) * each] = w[(o, slice(None), *k)]
    return found


def strided(x: Array, starts: Sequence[int], counts: Sequence[int], steps: Sequence[int]) -> Array:
    """`counts` pixels of x along each axis, from `starts`, every `steps`; writable."""
    axes = zip(starts, counts, steps, strict=True)
    return x[(..., *(slice(start, start + (count - 1) * step + 1, step) for start, count, step in axes))]


def conv(n: Node, x: Array, w: Array, b: Operand = None) -> tuple[Array, Vjp]:
    """The sum, over the taps, of what they see of the padded x."""
    window, matrix = Window.of(n, x.shape[2:], w.shape[2:]), matrices(w, n.get("group", 1))
    frame = [(0, 0), (0, 0), *zip(window.begins, window.ends, strict=True)]
    padded = np.pad(x, frame)

    def seen(image: Array, k: Index) -> Array:
        starts = [t * d for t, d in zip(k, window.dilation, strict=True)]
        return strided(image, starts, window.outputs, window.stride)

    y = np.zeros((len(x), len(w), *window.outputs))
    for k in np.ndindex(*window.kernel):
        y += np.einsum("oc,nc...->no...", matrix[k], seen(padded, k))
    if b is not None:
        y += b.reshape(-1, *[1] * len(window.size))

    def vjp(gy: Array) -> list[Array]:
        gx = np.zeros_like(padded)
        for k in np.ndindex(*window.kernel):
            seen(gx, k)[:] += np.einsum("oc,no...->nc...", matrix[k], gy)
        return [strided(gx, window.begins, window.size, [1] * len(window.size))]

    return y, vjp


def transposed_pads(n: Node, size: Sequence[int], made: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """(begin of each axis, output of each axis), given what would be made without pads."""
    rank = len(size)
    pads, auto_pad = n.get("pads", [0] * 2 * rank), n.get("auto_pad", "NOTSET")
    outputs = n.get("output_shape")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and outputs is None:
        outputs = [a * s for a, s in zip(size, n.get("strides", [1] * rank), strict=True)]
    if outputs is not None:
        total = [max(0, m - out) for m, out in zip(made, outputs, strict=True)]
        return [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total], outputs
    if auto_pad == "VALID":
        pads = [0] * 2 * rank
    return pads[:rank], [m - pads[i] - pads[rank + i] for i, m in enumerate(made)]


def conv_transpose(n: Node, x: Array, w: Array, b: Operand = None) -> tuple[Array, Vjp]:
    """Each pixel of x adds its multiple of the kernel; of all that, some is cut off."""
    size, kernel, group = x.shape[2:], w.shape[2:], n.get("group", 1)
    one = [1] * len(size)
    stride, dilation = n.get("strides", one), n.get("dilations", one)
    extra = n.get("output_padding", [0] * len(size))
    made = [
        s * (a - 1) + e + (k - 1) * d + 1
        for s, a, e, k, d in zip(stride, size, extra, kernel, dilation, strict=True)
    ]
    begins, outputs = transposed_pads(n, size, made)
    room = [max(m, begin + out) for m, begin, out in zip(made, begins, outputs, strict=True)]
    # As a convolution from y to x has them, O and C change their roles.
    matrix = matrices(w, group)

    def reached(image: Array, k: Index) -> Array:
        starts = [t * d for t, d in zip(k, dilation, strict=True)]
        return strided(image, starts, size, stride)

    everything = np.zeros((len(x), w.shape[1] * group, *room))
    for k in np.ndindex(*kernel):
        reached(everything, k)[:] += np.einsum("co,nc...->no...", matrix[k], x)
    y = strided(everything, begins, outputs, one)
    if b is not None:
        y = y + b.reshape(-1, *one)

    def vjp(gy: Array) -> list[Array]:
        gradient = np.zeros_like(everything)
        strided(gradient, begins, outputs, one)[:] = gy
        return [
            sum(np.einsum("co,no...->nc...", matrix[k], reached(gradient, k)) for k in np.ndindex(*kernel))
        ]

    return y, vjp


# --- Pools --------------------------------------------------------------------------------------------------


def whole(x: Array) -> Window:
    rank = x.ndim - 2
    one, zero = (1,) * rank, (0,) * rank
    return Window(x.shape[2:], x.shape[2:], one, one, zero, zero)


def max_over(window: Window, x: Array, by_columns: bool = False) -> tuple[list[Array], Kinked]:
    """The maxima, and where they lie, counted through the whole tensor."""
    N, C = x.shape[:2]
    y = np.zeros((N, C, *window.outputs))
    indices = np.zeros(y.shape, np.int64)
    winners: dict[Index, Index] = {}
    distances = [np.empty(0)]
    for o in np.ndindex(*window.outputs):
        pixels = [p for _, p in window.inside(o)]
        cells = np.array([at(x, p) for p in pixels])
        first = cells.argmax(axis=0)
        at(y, o)[:] = cells.max(axis=0)
        if len(cells) > 1:
            ordered = np.sort(cells, axis=0)
            distances.append((ordered[-1] - ordered[-2]).ravel())
        for n, c in np.ndindex(N, C):
            p = pixels[first[n, c]]
            winners[n, c, *o] = (n, c, *p)
            order, sizes = (p[::-1], x.shape[:1:-1]) if by_columns else (p, x.shape[2:])
            position = np.ravel_multi_index(order, sizes)
            indices[n, c, *o] = (n * C + c) * math.prod(sizes) + position

    def vjp(gy: Array, *_: Any) -> list[Array]:
        gx = np.zeros_like(x)
        for o, p in winners.items():
            gx[p] += gy[o]
        return [gx]

    return [y, indices], Kinked(vjp, lambda: margin(np.concatenate(distances), x))


def max_pool(n: Node, x: Array) -> tuple[list[Array], Kinked]:
    window = Window.of(n, x.shape[2:], n.get("kernel_shape"))
    return max_over(window, x, by_columns=n.get("storage_order", 0) == 1)


def global_max_pool(n: Node, x: Array) -> tuple[Array, Kinked]:
    (y, _), vjp = max_over(whole(x), x)
    return y, vjp


def average_over(window: Window, x: Array, include_pad: bool = False) -> tuple[Array, Vjp]:
    y = np.zeros((*x.shape[:2], *window.outputs))
    counts = {}
    for o in np.ndindex(*window.outputs):
        pixels = [p for _, p in window.inside(o)]
        counts[o] = window.padded(o) if include_pad else len(pixels)
        at(y, o)[:] = sum(at(x, p) for p in pixels) / counts[o]

    def vjp(gy: Array) -> list[Array]:
        gx = np.zeros_like(x)
        for o, count in counts.items():
            for _, p in window.inside(o):
                at(gx, p)[:] += at(gy, o) / count
        return [gx]

    return y, vjp


def average_pool(n: Node, x: Array) -> tuple[Array, Vjp]:
    window = Window.of(n, x.shape[2:], n.get("kernel_shape"))
    return average_over(window, x, include_pad=n.get("count_include_pad", 0) == 1)


def global_average_pool(n: Node, x: Array) -> tuple[Array, Vjp]:
    return average_over(whole(x), x)


def norm_over(window: Window, x: Array, p: int) -> tuple[Array, Vjp | Kinked]:
    y = np.zeros((*x.shape[:2], *window.outputs))
    for o in np.ndindex(*window.outputs):
        at(y, o)[:] = sum(np.abs(at(x, q)) ** p for _, q in window.inside(o)) ** (1 / p)

    def vjp(gy: Array) -> list[Array]:
        gx = np.zeros_like(x)
        for o in np.ndindex(*window.outputs):
            norm = np.where(at(y, o) > 0, at(y, o), 1)
            for _, q in window.inside(o):
                at(gx, q)[:] += at(gy, o) * np.sign(at(x, q)) * (np.abs(at(x, q)) / norm) ** (p - 1)
        return [gx]

    return y, Kinked(vjp, lambda: margin(np.abs(x), x)) if p == 1 else vjp


def lp_pool(n: Node, x: Array) -> tuple[Array, Vjp | Kinked]:
    return norm_over(Window.of(n, x.shape[2:], n.get("kernel_shape")), x, n.get("p", 2))


def global_lp_pool(n: Node, x: Array) -> tuple[Array, Vjp | Kinked]:
    return norm_over(whole(x), x, n.get("p", 2))


def max_unpool(n: Node, x: Array, indices: Array, output_shape: Operand = None) -> tuple[Array, Vjp]:
    """Values go where their indices say, one after another, in the output as one row."""
    size, kernel = x.shape[2:], n.get("kernel_shape")
    rank = len(size)
    stride, pads = n.get("strides", [1] * rank), n.get("pads", [0] * 2 * rank)
    plane = [(size[i] - 1) * stride[i] + kernel[i] - pads[i] - pads[rank + i] for i in range(rank)]
    y = np.zeros((*x.shape[:2], *plane) if output_shape is None else tuple(output_shape))
    owner: dict[int, Index] = {}
    for i in np.ndindex(*x.shape):
        y.flat[indices[i]] = x[i]
        owner[int(indices[i])] = i

    def vjp(gy: Array) -> list[Array]:
        gx = np.zeros_like(x)
        for to, i in owner.items():
            gx[i] = gy.flat[to]
        return [gx]

    return y, vjp


def unless_planar(planar: Operator, general: Operator) -> Operator:
    """`naive` has (N, C, H, W) where only the first output is asked for."""

    def operator(n: Node, x: Array, *operands: Operand) -> Any:
        return (planar if x.ndim == 4 and len(n.outputs) == 1 else general)(n, x, *operands)

    return operator


def col2im(n: Node, x: Array, image: Array, block: Array) -> tuple[Array, Vjp]:
    rank, (N, columns, _) = len(block), x.shape
    strides, dilations, pads = (
        n.get(k, [v] * rank * 2) for k, v in (("strides", 1), ("dilations", 1), ("pads", 0))
    )
    C = columns // int(np.prod(block))
    ends = [image[i] + pads[i] + pads[i + rank] - dilations[i] * (block[i] - 1) for i in range(rank)]
    places = list(itertools.product(*(range(0, end, s) for end, s in zip(ends, strides, strict=False))))
    taps = list(itertools.product(*map(range, block)))

    def pairs() -> Any:
        for (column, tap), (at, place) in itertools.product(enumerate(taps), enumerate(places)):
            pixel = tuple(int(p + d * t - b) for p, t, d, b in zip(place, tap, dilations, pads, strict=False))
            if all(0 <= p < size for p, size in zip(pixel, image, strict=True)):
                yield column, at, pixel

    rows = x.reshape(N, C, len(taps), len(places))
    y = np.zeros((N, C, *image))
    for column, at, pixel in pairs():
        y[(slice(None), slice(None), *pixel)] += rows[:, :, column, at]

    def vjp(gy: Array) -> list[Array]:
        gx = np.zeros((len(gy), C, len(taps), len(places)))
        for column, at, pixel in pairs():
            gx[:, :, column, at] = gy[(slice(None), slice(None), *pixel)]
        return [gx.reshape(len(gy), columns, len(places))]

    return y, vjp


OPERATORS: dict[str, Operator] = {
    "AveragePool": unless_planar(classic.average_pool, average_pool),
    "Col2Im": col2im,
    "Conv": unless_planar(classic.conv, conv),
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": unless_planar(classic.global_average_pool, global_average_pool),
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": unless_planar(classic.global_max_pool, global_max_pool),
    "LpPool": lp_pool,
    "MaxPool": unless_planar(classic.max_pool, max_pool),
    "MaxUnpool": max_unpool,
}
