"""Operators along axes: resizing, selecting, reducing, normalising.

What only moves cells about is applied to an array of positions, by NumPy's function of the same meaning; what
maps vectors to vectors or numbers is differentiated by complex steps.  Resize is evaluated output by output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

import naive
import numpy as np
from naive import Array

from .node import Kinked, Node, Operand, Operator, Vjp, margin

# --- Moving cells about -------------------------------------------------------------------------------------


def _moved(x: Array, move: Callable[[Array], Array], outside: float = 0.0) -> tuple[Array, Vjp]:
    """`move` of x; it sees positions in x, and may put in -1 for what is `outside`."""
    positions = move(np.arange(x.size).reshape(x.shape))
    inside = positions >= 0

    def vjp(gy: Array) -> list[Array]:
        gx = np.zeros(x.size)
        np.add.at(gx, positions[inside], gy[inside])
        return [gx.reshape(x.shape)]

    return np.where(inside, x.reshape(-1)[positions], outside), vjp


def slice_(n: Node, x: Array, *operands: Operand) -> tuple[Array, Vjp]:
    if n.opset < 10:
        starts, ends, axes, steps = n.get("starts"), n.get("ends"), n.get("axes"), None
    else:
        starts, ends, axes, steps = (*operands, *[None] * (4 - len(operands)))
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    taken = [slice(None)] * x.ndim
    for axis, *ends_and_step in zip(axes, starts, ends, steps, strict=True):
        taken[axis] = slice(*map(int, ends_and_step))
    return _moved(x, lambda p: p[tuple(taken)])


def gather(n: Node, x: Array, indices: Array) -> tuple[Array, Vjp]:
    return _moved(x, lambda p: np.take(p, indices, axis=n.get("axis", 0)))


def tile(n: Node, x: Array, repeats: Array) -> tuple[Array, Vjp]:
    return _moved(x, lambda p: np.tile(p, repeats))


def expand(n: Node, x: Array, shape: Array) -> tuple[Array, Vjp]:
    return _moved(x, lambda p: np.broadcast_to(p, np.broadcast_shapes(p.shape, tuple(shape))))


def pad(
    n: Node, x: Array, pads: Operand = None, value: Operand = None, axes: Operand = None
) -> tuple[Array, Vjp]:
    """Negative pads cut off, then the others add."""
    given, mode = n.moved("pads", 11, pads), n.get("mode", "constant")
    axes = range(x.ndim) if axes is None else axes
    sides = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        sides[axis] = int(given[i]), int(given[i + len(axes)])
    kept = tuple(slice(max(0, -a), size - max(0, -b)) for (a, b), size in zip(sides, x.shape, strict=True))
    added = [(max(0, a), max(0, b)) for a, b in sides]
    how = {"constant_values": -1} if mode == "constant" else {}
    value = float(n.moved("value", 11, value, default=0.0))
    return _moved(x, lambda p: np.pad(p[kept], added, mode=mode, **how), value)


def depth_to_space(n: Node, x: Array) -> tuple[Array, Vjp]:
    b, (N, C, H, W) = n.get("blocksize"), x.shape
    D, depth_first = C // b**2, n.get("mode", "DCR") == "DCR"

    def move(p: Array) -> Array:
        y = np.empty((N, D, H * b, W * b), p.dtype)
        for d, i, j in product(range(D), range(b), range(b)):
            channel = (i * b + j) * D + d if depth_first else (d * b + i) * b + j
            y[:, d, i::b, j::b] = p[:, channel]
        return y

    return _moved(x, move)


def space_to_depth(n: Node, x: Array) -> tuple[Array, Vjp]:
    b, (N, C, H, W) = n.get("blocksize"), x.shape
    depth_first = n.get("mode", "DCR") == "DCR"

    def move(p: Array) -> Array:
        y = np.empty((N, C * b * b, H // b, W // b), p.dtype)
        for c, i, j in product(range(C), range(b), range(b)):
            channel = (i * b + j) * C + c if depth_first else (c * b + i) * b + j
            y[:, channel] = p[:, c, i::b, j::b]
        return y

    return _moved(x, move)


# --- Resize -------------------------------------------------------------------------------------------------


def _coordinate(how: str, o: int, size: int, outputs: int, scale: float) -> float:
    match how:
        case "asymmetric":
            return o / scale
        case "tf_half_pixel_for_nn":
            return (o + 0.5) / scale
        case "align_corners":
            return o * (size - 1) / (outputs - 1) if outputs > 1 else 0.0
        case "pytorch_half_pixel" if outputs == 1:
            return 0.0
        case "half_pixel_symmetric":
            return size / 2 * (1 - outputs / (scale * size)) + (o + 0.5) / scale - 0.5
    return (o + 0.5) / scale - 0.5


def _nearest(how: str, s: float) -> int:
    if how == "round_prefer_floor":
        return math.ceil(s - 0.5)
    if how == "round_prefer_ceil":
        return math.floor(s + 0.5)
    return math.floor(s) if how == "floor" else math.ceil(s)


def _influence(mode: str, a: float, d: float) -> float:
    """What a pixel at distance d gives to a point, before normalisation."""
    d = abs(d)
    if mode == "linear":
        return max(0.0, 1 - d)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _taps(n: Node, mode: str, o: int, size: int, outputs: int, scale: float) -> list[tuple[int, float]]:
    """The pixels that output o of an axis looks at, and how much of each it takes."""
    how = n.get("coordinate_transformation_mode", "half_pixel") if n.opset >= 11 else "asymmetric"
    s = _coordinate(how, o, size, outputs, scale)
    if mode == "nearest":
        way = n.get("nearest_mode", "round_prefer_floor")
        if n.opset < 11:
            way = "floor" if scale >= 1 else "ceil"
        return [(min(max(_nearest(way, s), 0), size - 1), 1.0)]
    shrink = min(1.0, scale) if n.get("antialias", 0) else 1.0
    around = range(math.floor(s - 2 / shrink) - 1, math.ceil(s + 2 / shrink) + 2)
    given = {i: _influence(mode, n.get("cubic_coeff_a", -0.75), shrink * (i - s)) for i in around}
    if n.get("exclude_outside", 0):
        given = {i: w for i, w in given.items() if 0 <= i < size}
    total = sum(given.values())
    return [(min(max(i, 0), size - 1), w / total) for i, w in given.items() if w]


def _interpolated(
    n: Node, x: Array, mode: str, sizes: Sequence[int], scales: Sequence[float]
) -> tuple[Array, Vjp]:
    """Every output is a sum over the products of the axes' taps."""
    taps = [
        [[(o, 1.0)] if scale == 1 else _taps(n, mode, o, size, outputs, scale) for o in range(outputs)]
        for size, outputs, scale in zip(x.shape, sizes, scales, strict=True)
    ]
    assert all(scale == 1 for scale in scales[:2])
    sums = [  # plane by plane
        (o, [(tuple(i for i, _ in cell), math.prod(w for _, w in cell)) for cell in product(*parts)])
        for o in product(*map(range, sizes[2:]))
        for parts in [[taps[2 + axis][at] for axis, at in enumerate(o)]]
    ]
    y = np.zeros((*x.shape[:2], *sizes[2:]))
    for o, cells in sums:
        for i, w in cells:
            y[(..., *o)] += w * x[(..., *i)]

    def vjp(gy: Array) -> list[Array]:
        gx = np.zeros(x.shape)
        for o, cells in sums:
            for i, w in cells:
                gx[(..., *i)] += w * gy[(..., *o)]
        return [gx]

    return y, vjp


def _scaled(size: int, scale: float) -> int:
    """As runtimes multiply: 10 by 0.7 are 7, though the float32 that is nearest to 0.7 is less."""
    return math.floor(np.float32(size) * np.float32(scale))


def resize(n: Node, x: Array, *operands: Operand) -> tuple[Array, Vjp]:
    _, scales, sizes = (None, *operands, None) if n.opset < 11 else (*operands, None)[:3]
    axes = [axis % x.ndim for axis in n.get("axes", range(x.ndim))]
    full_scales, full_sizes = [1.0] * x.ndim, list(x.shape)
    if sizes is None:
        for axis, scale in zip(axes, scales, strict=True):
            full_scales[axis], full_sizes[axis] = float(scale), _scaled(x.shape[axis], scale)
    else:
        ratios = [int(size) / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
        policy = n.get("keep_aspect_ratio_policy", "stretch")
        for axis, size, ratio in zip(axes, sizes, ratios, strict=True):
            scale = {"stretch": ratio, "not_larger": min(ratios), "not_smaller": max(ratios)}[policy]
            full_scales[axis] = scale
            full_sizes[axis] = int(size) if policy == "stretch" else math.floor(scale * x.shape[axis] + 0.5)
    return _interpolated(n, x, n.get("mode", "nearest"), full_sizes, full_scales)


def upsample(n: Node, x: Array, scales: Operand = None) -> tuple[Array, Vjp]:
    scales = [float(scale) for scale in n.moved("scales", 9, scales)]
    sizes = [_scaled(size, scale) for size, scale in zip(x.shape, scales, strict=True)]
    return _interpolated(n, x, n.get("mode", "nearest"), sizes, scales)


# --- Vectors ------------------------------------------------------------------------------------------------

Complex = Any


def _jacobian(f: Callable[[Complex], Complex], v: Array) -> Array:
    """df/dv, of f's shape and one axis more, by steps so small and imaginary that nothing is lost."""
    steps = 1e-150j * np.eye(len(v))
    return np.stack([np.imag(f(v + step)) / 1e-150 for step in steps], axis=-1)


def _on_vectors(x: Array, axes: Sequence[int], f: Callable[[Complex], Complex]) -> tuple[Array, Vjp]:
    """f of every vector along `axes`: a number, with those axes of size 1, or a vector as long."""
    axes = sorted(axis % x.ndim for axis in axes)
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    back = np.argsort([*kept, *axes])

    def rows(a: Array) -> Array:
        return a.transpose(*kept, *axes).reshape(math.prod(x.shape[axis] for axis in kept), -1)

    def unrowed(a: Array) -> Array:
        sizes = [x.shape[axis] for axis in axes] if a.ndim == 2 and a.shape[1] > 1 else [1] * len(axes)
        return a.reshape(*(x.shape[axis] for axis in kept), *sizes).transpose(back)

    @cache
    def jacobians() -> list[Array]:
        return [_jacobian(f, v) for v in rows(x)]

    def vjp(gy: Array) -> list[Array]:
        gx = [
            np.tensordot(g if J.ndim > 1 else g[0], J, axes=J.ndim - 1)
            for g, J in zip(rows(gy), jacobians(), strict=True)
        ]
        return [np.reshape(gx, [x.shape[axis] for axis in (*kept, *axes)]).transpose(back)]

    return unrowed(np.array([np.real(f(v)) for v in rows(x)]).reshape(len(rows(x)), -1)), vjp


def _magnitude(v: Complex) -> Complex:
    """|v|, whose derivative is 0 at 0."""
    return v * np.sign(np.real(v))


def _root(v: Complex) -> Complex:
    """√v, whose derivative is taken to be 0 at 0."""
    return np.sqrt(v) if np.real(v) > 0 else 0.0


def _reduction(f: Callable[[Complex], Complex], since: int = 18) -> Operator:
    def operator(n: Node, x: Array, axes: Operand = None) -> tuple[Array, Vjp]:
        given = n.moved("axes", since, axes)
        if given is None and n.get("noop_with_empty_axes", 0):
            return x, lambda gy: [gy]
        along = range(x.ndim) if given is None else [int(axis) % x.ndim for axis in given]
        y, vjp = _on_vectors(x, along, f)
        reduced = y.shape
        y = y if n.get("keepdims", 1) else y.squeeze(tuple(along))
        return y, lambda gy: vjp(gy.reshape(reduced))

    return operator


def _extremum(sign: int) -> Operator:
    """The first maximum of sign · x, row-major."""

    def operator(n: Node, x: Array, axes: Operand = None) -> tuple[Array, Kinked]:
        along = sorted(int(axis) % x.ndim for axis in n.moved("axes", 18, axes))
        kept = [axis for axis in range(x.ndim) if axis not in along]
        moved = x.transpose(*kept, *along)
        rows = moved.reshape(-1, math.prod(moved.shape[len(kept) :]))
        first = (sign * rows).argmax(axis=1)
        y = rows[np.arange(len(rows)), first].reshape(moved.shape[: len(kept)])
        y = np.expand_dims(y, tuple(along)) if n.get("keepdims", 1) else y

        def vjp(gy: Array) -> list[Array]:
            gx = np.zeros(rows.shape)
            gx[np.arange(len(rows)), first] = gy.reshape(-1)
            return [gx.reshape(moved.shape).transpose(np.argsort([*kept, *along]))]

        ordered = np.sort(sign * rows, axis=1)
        return y, Kinked(vjp, lambda: margin((ordered[:, 1:] - ordered[:, :-1])[:, -1:], x))

    return operator


def cumsum(n: Node, x: Array, axis: Array) -> tuple[Array, Vjp]:
    sizes = range(x.shape[int(axis)])

    def f(v: Complex) -> Complex:
        v = v[::-1] if n.get("reverse", 0) else v
        sums = np.array([v[: i if n.get("exclusive", 0) else i + 1].sum() for i in sizes])
        return sums[::-1] if n.get("reverse", 0) else sums

    return _on_vectors(x, [int(axis)], f)


# --- Normalisation ------------------------------------------------------------------------------------------


def _standard(epsilon: float) -> Callable[[Complex], Complex]:
    def f(v: Complex) -> Complex:
        centred = v - v.sum() / len(v)
        return centred / np.sqrt((centred**2).sum() / len(v) + epsilon)

    return f


def _normalized(
    x: Array, axes: Sequence[int], f: Callable[[Complex], Complex], scale: Array, bias: Array
) -> tuple[Array, Vjp]:
    y, vjp = _on_vectors(x, axes, f)
    return scale * y + bias, lambda gy: vjp(scale * gy)


def instance_normalization(n: Node, x: Array, scale: Array, bias: Array) -> tuple[Array, Vjp]:
    scale, bias = (naive.per_channel(v, x.ndim) for v in (scale, bias))
    return _normalized(x, range(2, x.ndim), _standard(n.get("epsilon", 1e-5)), scale, bias)


def group_normalization(n: Node, x: Array, scale: Array, bias: Array) -> tuple[Array, Vjp]:
    groups = n.get("num_groups")
    share = x.shape[1] // groups
    if n.opset < 21:
        scale, bias = scale.repeat(share), bias.repeat(share)
    parted = x.reshape(len(x), groups, share, -1)
    scale, bias = (v.reshape(groups, share, 1) for v in (scale, bias))
    y, vjp = _normalized(parted, [2, 3], _standard(n.get("epsilon", 1e-5)), scale, bias)
    return y.reshape(x.shape), lambda gy: [vjp(gy.reshape(parted.shape))[0].reshape(x.shape)]


def layer_normalization(n: Node, x: Array, scale: Array, bias: Operand = None) -> tuple[Array, Vjp]:
    axes = range(n.get("axis", -1) % x.ndim, x.ndim)
    bias = np.zeros(()) if bias is None else bias
    return _normalized(x, axes, _standard(n.get("epsilon", 1e-5)), scale, bias)


def rms_normalization(n: Node, x: Array, scale: Array) -> tuple[Array, Vjp]:
    axes, epsilon = range(n.get("axis", -1) % x.ndim, x.ndim), n.get("epsilon", 1e-5)
    return _normalized(x, axes, lambda v: v / np.sqrt((v**2).sum() / len(v) + epsilon), scale, np.zeros(()))


def mean_variance_normalization(n: Node, x: Array) -> tuple[Array, Vjp]:
    def f(v: Complex) -> Complex:
        mean = v.sum() / len(v)
        return (v - mean) / (np.sqrt((v * v).sum() / len(v) - mean**2) + 1e-9)

    return _on_vectors(x, n.get("axes", [0, 2, 3]), f)


def lp_normalization(n: Node, x: Array) -> tuple[Array, Vjp]:
    def f(v: Complex) -> Complex:
        if not np.real(v).any():
            return np.zeros(len(v))
        return v / (_magnitude(v).sum() if n.get("p", 2) == 1 else np.sqrt((v**2).sum()))

    return _on_vectors(x, [n.get("axis", -1)], f)


# --- Sampling by a grid -------------------------------------------------------------------------------------


def _position(n: Node, g: float, size: int) -> float:
    """Where coordinate g of a grid stands, in pixels, without padding."""
    return (g + 1) / 2 * (size - 1) if n.get("align_corners", 0) else ((g + 1) * size - 1) / 2


def _mirrored(n: Node, s: float, size: int) -> float:
    lo, hi = (0, size - 1) if n.get("align_corners", 0) else (-0.5, size - 0.5)
    while lo < hi and not lo <= s <= hi:
        s = 2 * lo - s if s < lo else 2 * hi - s
    return s if lo < hi else lo


def _pixels(n: Node, g: float, size: int) -> dict[int, float]:
    """How much of each pixel of an axis coordinate g takes."""
    mode, padding = n.get("mode", "bilinear").removeprefix("bi"), n.get("padding_mode", "zeros")
    s = _position(n, g, size)
    if padding == "border":
        s = min(max(s, 0), size - 1)
    taken: dict[int, float] = {}
    s = round(s) if mode == "nearest" else s
    s = _mirrored(n, s, size) if padding == "reflection" else s
    for i in range(math.floor(s) - 1, math.floor(s) + 3):
        w = float(i == s) if mode == "nearest" else _influence(mode, -0.75, s - i)
        pixel = int(_mirrored(n, i, size)) if padding == "reflection" else i
        pixel = min(max(pixel, 0), size - 1) if padding == "border" else pixel
        if 0 <= pixel < size:
            taken[pixel] = taken.get(pixel, 0) + w
    return taken


def _slopes(n: Node, g: float, size: int, h: float = 1e-6) -> dict[int, float]:
    above, below = _pixels(n, g + h, size), _pixels(n, g - h, size)
    return {i: (above.get(i, 0) - below.get(i, 0)) / (2 * h) for i in {*above, *below}}


def _cells(axes: Sequence[dict[int, float]]) -> list[tuple[tuple[int, ...], float]]:
    """The pixels that all axes take together, and how much."""
    return [
        (tuple(i for i, _ in cell), math.prod(w for _, w in cell))
        for cell in product(*(a.items() for a in axes))
    ]


def grid_sample(n: Node, x: Array, grid: Array) -> tuple[Array, Kinked]:
    sizes = x.shape[2:]
    grid = np.broadcast_to(grid, (len(x), *grid.shape[1:]))
    outputs = list(product(*map(range, grid.shape[:-1])))
    taken = {
        (m, *o): [_pixels(n, *each) for each in zip(grid[(m, *o)][::-1], sizes, strict=True)]
        for m, *o in outputs
    }
    y = np.zeros((len(x), x.shape[1], *grid.shape[1:-1]))
    for m, *o in outputs:
        for i, w in _cells(taken[(m, *o)]):
            y[(m, slice(None), *o)] += w * x[(m, slice(None), *i)]

    @cache
    def slopes(m: int, *o: int) -> list[list[tuple[tuple[int, ...], float]]]:
        """By axis: the pixels that an output takes more of where its coordinate grows, and how much."""
        axes = taken[(m, *o)]
        return [
            _cells([*axes[:d], _slopes(n, c, size), *axes[d + 1 :]])
            for d, (c, size) in enumerate(zip(grid[(m, *o)][::-1], sizes, strict=True))
        ]

    def vjp(gy: Array) -> list[Array]:
        gx, ggrid = np.zeros(x.shape), np.zeros(grid.shape)
        for m, *o in outputs:
            g = gy[(m, slice(None), *o)]
            for i, w in _cells(taken[(m, *o)]):
                gx[(m, slice(None), *i)] += w * g
            for d, cells in enumerate(slopes(m, *o)):
                for i, w in cells:
                    ggrid[(m, *o, len(sizes) - 1 - d)] += w * (g @ x[(m, slice(None), *i)])
        return [gx, ggrid]

    # What is nearest changes between pixels; kinks are at pixels and at the edges.
    at = np.array(
        [
            _position(n, *each)
            for row in grid.reshape(-1, len(sizes))
            for each in zip(row, sizes[::-1], strict=True)
        ]
    )
    return y, Kinked(vjp, lambda: margin(np.abs(2 * at - np.rint(2 * at)), at))


def trilu(n: Node, x: Array, k: Operand = None) -> tuple[Array, Vjp]:
    above = np.subtract.outer(-np.arange(x.shape[-2]), -np.arange(x.shape[-1])) - int(0 if k is None else k)
    kept = above >= 0 if n.get("upper", 1) else above <= 0
    return np.where(kept, x, 0), lambda gy: [gy * kept]


OPERATORS: dict[str, Operator] = {
    "CumSum": cumsum,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Gather": gather,
    "GridSample": grid_sample,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "Pad": pad,
    "RMSNormalization": rms_normalization,
    "ReduceL1": _reduction(lambda v: _magnitude(v).sum()),
    "ReduceL2": _reduction(lambda v: _root((v**2).sum())),
    "ReduceLogSum": _reduction(lambda v: np.log(v.sum())),
    "ReduceLogSumExp": _reduction(lambda v: np.log(np.exp(v).sum())),
    "ReduceMax": _extremum(1),
    "ReduceMin": _extremum(-1),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum, since=13),
    "ReduceSumSquare": _reduction(lambda v: (v**2).sum()),
    "Resize": resize,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Tile": tile,
    "Upsample": upsample,
    "Trilu": trilu,
}
