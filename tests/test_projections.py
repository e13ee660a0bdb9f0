"""Every op's vjp along random directions, over shapes, attributes and opsets that hypothesis draws.

For scores f(x) = ⟨v, op(x)⟩ with random v the map is the gradient of f, so ⟨map, u⟩ is the slope of f along
u: (f(x + hu) − f(x − hu)) / 2h, taken in float64 by ONNX's reference implementation.  x keeps away from
kinks: its values are distinct, and none is near 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from agreement import BOUND
from builder import NEWEST, Builder, versions_of_ops
from cases import chain, node
from cases.axes import grid_sample, reduce, resize
from cases.picks import einsum, put
from cases.volumes import unpooled
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from gbp import Explainer
from gbp.ops import PARSERS, REWRITERS

Array = NDArray[Any]
Shape = tuple[int, ...]
Net = Callable[[Builder, str], str]
Draw = Callable[[st.SearchStrategy[Any]], Any]

#: Half the distance over which a slope is taken; values of x lie some hundred times as far apart.
STEP = 1e-6
DIRECTIONS = 3


@dataclass(frozen=True)
class Drawn:
    """`net` appends the op to a tensor of `shape`.

    `reference`: why onnx's reference implementation is none here; the oracle takes its place.
    `slope_of`: the net whose slope the map is, where onnx knows no such op, or rounding lets gradients pass.
    """

    shape: Shape
    net: Net
    opset: int = NEWEST
    reference: str | None = None
    slope_of: Net | None = None


# --- Shapes and attributes ----------------------------------------------------------------------------------

batches, sizes = st.integers(1, 3), st.integers(1, 7)
channels = st.sampled_from((1, 2, 3, 5, 6, 8, 17))
rows = st.tuples(batches, st.integers(1, 19))
lines = st.tuples(batches, channels, sizes)
planes = st.tuples(batches, channels, sizes, sizes)
volumes = st.tuples(batches, st.integers(1, 5), *[st.integers(1, 4)] * 3)
images = lines | planes | volumes
shapes = rows | images


def drawn(build: Callable[[Draw], Drawn]) -> st.SearchStrategy[Drawn]:
    """The strategy of a function that draws."""
    return st.composite(build)()


def since(op: str, oldest: int = 7) -> st.SearchStrategy[int]:
    """`oldest` or the op's first opset, whichever is later, and all since then at which it changed."""
    return st.sampled_from(sorted({max(oldest, version) for version in versions_of_ops()[op]}))


def plain(
    op: str,
    of: st.SearchStrategy[Shape] = shapes,
    before: Net | None = None,
    reference: str | None = None,
    **attributes: st.SearchStrategy[Any],
) -> st.SearchStrategy[Drawn]:
    """The op of one input, behind another net or not, and attributes each drawn on its own."""

    def build(draw: Draw) -> Drawn:
        op_itself = node(op, **{name: draw(strategy) for name, strategy in attributes.items()})
        net = chain(before, op_itself) if before else op_itself
        return Drawn(draw(of), net, draw(since(op)), reference)

    return drawn(build)


def built(
    method: Callable[..., str],
    of: st.SearchStrategy[Shape] = shapes,
    opsets: Sequence[int] = (NEWEST,),
    reference_since: int = 0,
    **options: st.SearchStrategy[Any],
) -> st.SearchStrategy[Drawn]:
    """What a method of Builder appends, with options each drawn on its own.

    `reference_since`: the opset since which onnx's reference implementation is right.
    """

    def build(draw: Draw) -> Drawn:
        values = {name: draw(strategy) for name, strategy in options.items()}
        opset = draw(st.sampled_from(opsets))
        reference = "is younger" if opset < reference_since else None
        return Drawn(draw(of), lambda b, x: method(b, x, **values), opset, reference)

    return drawn(build)


def wide(b: Builder, x: str) -> str:
    """Values on both sides of all kinks."""
    return b.mul(x, b.constant(4.37))


def inside(b: Builder, x: str) -> str:
    """Values between -1 and 1, of either sign."""
    return b.mul(x, b.constant(0.9))


def positive(b: Builder, x: str) -> str:
    return b.add(b.mul(x, x), b.constant(0.3))


def above_one(b: Builder, x: str) -> str:
    return b.add(b.mul(x, x), b.constant(1.1))


def window(draw: Draw, size: Sequence[int], *, pool: bool) -> dict[str, Any]:
    """Attributes of a window that fits the spatial axes; a pool's is never in the padding alone."""
    rank = len(size)
    kernel, strides, dilations = (draw(st.tuples(*[st.integers(1, most)] * rank)) for most in (4, 3, 2))
    attributes = {"kernel_shape": kernel, "strides": strides}
    auto_pad = draw(st.sampled_from(("NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")))
    pads = [0] * 2 * rank
    if auto_pad == "NOTSET":
        pads = [draw(st.integers(0, kernel[i % rank] - 1 if pool else 3)) for i in range(2 * rank)]
        attributes["pads"] = pads
    else:
        attributes["auto_pad"] = auto_pad
    if not pool or not (any(pads) or auto_pad.startswith("SAME")):
        attributes["dilations"] = dilations
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, attributes.get("dilations", (1,) * rank), strict=True)]
    fits = (n + pads[i] + pads[i + rank] >= extents[i] for i, n in enumerate(size))
    assume(auto_pad.startswith("SAME") or all(fits))
    return attributes


def grouped(draw: Draw) -> tuple[Shape, int, int]:
    """(shape of x, channels of the output, groups) of a convolution."""
    group, (N, each, *size), filters = draw(st.integers(1, 3)), draw(images), draw(st.integers(1, 9))
    if draw(st.booleans()):  # depthwise
        group, each = group * each, 1
    return (N, group * each, *size), group * filters, group


def _conv(draw: Draw) -> Drawn:
    shape, outputs, group = grouped(draw)
    attributes = window(draw, shape[2:], pool=False)
    kernel, bias = attributes.pop("kernel_shape"), draw(st.booleans())
    strays = "pads at the end" if attributes.get("auto_pad") == "SAME_LOWER" else None
    return Drawn(
        shape,
        lambda b, x: b.conv(x, outputs, kernel, group=group, bias=bias, **attributes),
        draw(since("Conv")),
        strays,
    )


def _conv_transpose(draw: Draw) -> Drawn:
    shape, outputs, group = grouped(draw)
    rank = len(shape) - 2
    axes = [draw(st.tuples(*[st.integers(1, most)] * rank)) for most in (4, 3, 2)]
    kernel, strides, dilations = axes
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    made = [(n - 1) * s + e for n, s, e in zip(shape[2:], strides, extents, strict=True)]
    attributes = {"strides": strides, "dilations": dilations}
    match draw(st.sampled_from(("pads", "output_shape", "SAME_UPPER", "SAME_LOWER", "VALID"))):
        case "pads":
            attributes["pads"] = pads = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
            extra = [draw(st.integers(0, s - 1)) for s in strides]
            attributes["output_padding"] = extra
            assume(all(m + extra[i] > pads[i] + pads[i + rank] for i, m in enumerate(made)))
        case "output_shape":
            attributes["output_shape"] = [
                draw(st.integers(n, m)) for n, m in zip(shape[2:], made, strict=True)
            ]
        case auto_pad:
            attributes["auto_pad"] = auto_pad
            # onnx infers the shape without what no window fills.
            assume(auto_pad == "VALID" or all(e >= s for e, s in zip(extents, strides, strict=True)))
    bias = draw(st.booleans())
    return Drawn(
        shape,
        lambda b, x: b.conv_transpose(x, outputs, kernel, group=group, bias=bias, **attributes),
        draw(since("ConvTranspose")),
        "confuses the channels of groups"
        if group > 1
        else "crashes"
        if "output_shape" in attributes
        else None,
    )


def pools(op: str, oldest: int, **options: st.SearchStrategy[Any]) -> st.SearchStrategy[Drawn]:
    """`oldest`: the opset that has all attributes drawn, of whose outputs onnx infers the shape rightly."""

    def build(draw: Draw) -> Drawn:
        shape = draw(images)
        attributes = window(draw, shape[2:], pool=True)
        attributes |= {name: draw(strategy) for name, strategy in options.items()}
        rank, pads = len(shape) - 2, attributes.get("pads", [])
        strays = "auto_pad" in attributes or pads[:rank] != pads[rank:] or attributes.get("ceil_mode")
        reference = "makes other windows" if strays else None
        return Drawn(shape, node(op, **attributes), draw(since(op, oldest)), reference)

    return drawn(build)


def other(draw: Draw, shape: Shape) -> Net:
    """Another operand than x of this shape: a constant, or a tensor computed from x."""
    match draw(st.sampled_from(("constant", "itself", "scaled", "pooled", "plane"))):
        case "pooled" if len(shape) > 2:
            return node("GlobalAveragePool")
        case "plane" if len(shape) > 2:
            return lambda b, x: b.conv(x, 1, 1)
        case "itself":
            return lambda b, x: x
        case "scaled":
            return lambda b, x: b.mul(x, b.constant(b.noise(*shape[-1:])))
        case _:
            sides = [draw(st.sampled_from((1, n))) for n in shape[1:]]
            sides = sides[draw(st.integers(0, len(sides))) :]
            return lambda b, x: b.constant(b.noise(*sides))


def broadcasts(
    op: str, before: tuple[Net | None, Net | None] = (None, None), reference: str | None = None
) -> st.SearchStrategy[Drawn]:
    """The op of x and another operand, on either side, each behind another net or not."""

    def build(draw: Draw) -> Drawn:
        shape = draw(shapes)
        second, swapped = other(draw, shape), draw(st.booleans())

        def net(b: Builder, x: str) -> str:
            operands = [x, second(b, x)][:: -1 if swapped else 1]
            return b.node(op, *(f(b, y) if f else y for f, y in zip(before, operands, strict=True)))

        return Drawn(shape, net, draw(since(op, 8)), reference)

    return drawn(build)


def conditions(op: str, oldest: int = 11) -> st.SearchStrategy[Drawn]:
    """Which of two tensors passes, or nothing but 0 and 1, of which no gradient comes."""

    def build(draw: Draw) -> Drawn:
        shape = draw(shapes)
        second, third, chooses = other(draw, shape), other(draw, shape), draw(st.booleans())
        truths = ("And", "Or", "Xor")

        def net(b: Builder, x: str) -> str:
            y = second(b, x)
            if op in truths:
                x_, y_ = b.node("Greater", x, b.constant(-0.31)), b.node("Less", y, b.constant(0.29))
                truth = b.node(op, x_, y_)
            elif op == "Not":
                truth = b.node(op, b.node("Less", x, y))
            elif op in ("IsInf", "IsNaN"):
                truth = b.node(op, b.node("Log", b.node("Max", x, b.constant(0.0)) if op == "IsInf" else x))
            else:
                truth = b.node("Less" if op == "Where" else op, x, y)
            if chooses or op == "Where":
                return b.node("Where", truth, x, third(b, x))
            return b.node("Cast", truth, to=TensorProto.FLOAT)

        return Drawn(shape, net, draw(since(op, oldest)))

    return drawn(build)


def _axes(draw: Draw, shape: Shape, opset: int = NEWEST, most: int | None = None) -> list[int]:
    """Some, none the batch; counted from either end where the opset knows of that."""
    axes = draw(st.lists(st.integers(1, len(shape) - 1), min_size=1, max_size=most, unique=True))
    return [axis - len(shape) if opset >= 11 and draw(st.booleans()) else axis for axis in axes]


def _axis(draw: Draw, shape: Shape, opset: int = NEWEST) -> int:
    return _axes(draw, shape, opset, most=1)[0]


def softmaxes(op: str) -> st.SearchStrategy[Drawn]:
    def build(draw: Draw) -> Drawn:
        shape, opset = draw(shapes), draw(st.sampled_from((12, NEWEST)))
        reference = "sums over `axis` alone" if opset < 13 else None  # before: over all from this one on
        return Drawn(shape, node(op, axis=_axis(draw, shape)), opset, reference)

    return drawn(build)


def _clip(draw: Draw) -> Drawn:
    lo, hi = draw(st.sampled_from((None, -0.513, 0.0))), draw(st.sampled_from((None, 0.487, 6.0)))
    return Drawn(draw(shapes), lambda b, x: b.clip(x, lo, hi), draw(since("Clip")))


def _prelu(draw: Draw) -> Drawn:
    shape = draw(shapes)
    sides = [draw(st.sampled_from((1, n))) for n in shape[1:]][draw(st.integers(0, len(shape) - 1)) :]
    return Drawn(shape, lambda b, x: b.node("PRelu", x, b.constant(b.noise(*sides))), draw(since("PRelu")))


def _pow(draw: Draw) -> Drawn:
    """To a number, whole or not, written as either type."""
    exponent = draw(st.sampled_from((2.0, 3.0, 0.5, -1.0, 1.3, 2, -2, 1, 0)))
    net = node("Pow", exponent)
    return Drawn(draw(shapes), chain(positive, net) if exponent % 1 else net, draw(since("Pow", 12)))


# --- Parts and places ---------------------------------------------------------------------------------------


def _concat(draw: Draw) -> Drawn:
    shape, opset = draw(shapes), draw(since("Concat"))
    # A constant has as many samples as x: such a model does no others.
    kinds = ("x", "scaled", "constant") if shape[0] == 1 else ("x", "scaled")
    axis, parts = _axis(draw, shape, opset), draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
    assume({*parts} != {"constant"})

    def net(b: Builder, x: str) -> str:
        made = {"x": x, "scaled": b.mul(x, b.constant(b.noise(*shape[-1:])))}
        made["constant"] = b.constant(b.noise(*shape))
        return b.concat(*(made[part] for part in parts), axis=axis)

    return Drawn(shape, net, opset)


def _split(draw: Draw) -> Drawn:
    """Some of the parts, which are of one rank, one after another."""
    shape = draw(shapes)
    axis = draw(st.integers(1, len(shape) - 1))
    cut = draw(st.integers(1, max(1, shape[axis] - 1)))
    parts = [cut, shape[axis] - cut] if cut < shape[axis] else [cut]
    picked = draw(st.lists(st.integers(0, len(parts) - 1), min_size=1, max_size=3))

    def net(b: Builder, x: str) -> str:
        pieces = b.split(x, parts, axis)
        return b.concat(*(pieces[i] for i in picked), axis=axis)

    return Drawn(shape, net, draw(since("Split")))


def _slice(draw: Draw) -> Drawn:
    shape, opset = draw(shapes), draw(since("Slice"))
    axes = _axes(draw, shape, opset)
    starts, ends, steps = [], [], []
    for axis in axes:
        n = shape[axis]
        a, z = sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
        step = draw(st.sampled_from((1, 1, 2, 3, -1, -2) if opset >= 10 else (1,)))
        far = draw(st.booleans())
        if step > 0:
            start, end = a, 2**40 if z == n and far else z
        else:
            start, end = z - 1, -(2**40) if a == 0 and far else a - n - 1
        starts.append(start - n if draw(st.booleans()) else start)
        ends.append(end)
        steps.append(step)
    if opset < 10:
        return Drawn(shape, node("Slice", starts=starts, ends=ends, axes=axes), opset)
    return Drawn(shape, node("Slice", starts, ends, axes, steps), opset)


def _gather(draw: Draw) -> Drawn:
    shape, opset = draw(shapes), draw(since("Gather"))
    axis = _axis(draw, shape, opset)
    n, of = shape[axis], draw(st.sampled_from(((), (1,), (3,), (2, 2))))
    lowest = 0 if opset < 11 else -n
    indices = [draw(st.integers(lowest, n - 1)) for _ in range(math.prod(of))]
    return Drawn(shape, node("Gather", np.reshape(indices, of), axis=axis), opset)


def _tile(draw: Draw) -> Drawn:
    shape = draw(shapes)
    return Drawn(shape, node("Tile", (1, *(draw(st.integers(1, 3)) for _ in shape[1:]))), draw(since("Tile")))


def _expand(draw: Draw) -> Drawn:
    target = draw(shapes)
    shape = (target[0], *(draw(st.sampled_from((1, n))) for n in target[1:]))
    given = [
        1,
        *(n if m == 1 else draw(st.sampled_from((1, n))) for m, n in zip(shape[1:], target[1:], strict=True)),
    ]
    return Drawn(shape, node("Expand", given[draw(st.integers(0, 1)) :]), draw(since("Expand")))


def _pad(draw: Draw) -> Drawn:
    """At least one number of every axis is left, and of a reflection as many as are added and one."""
    shape, opset = draw(shapes), draw(since("Pad"))
    modes = {"constant": 7, "edge": 7, "reflect": 7, "wrap": 19}
    mode = draw(st.sampled_from([mode for mode, first in modes.items() if opset >= first]))
    crops = draw(st.booleans())
    before, after = [0], [0]
    for n in shape[1:]:
        lost = draw(st.integers(0, (n - 1) // 2)) if crops else 0
        most = {"reflect": n - lost - 1, "wrap": n - lost}.get(mode, 3)
        sides = [-lost, draw(st.integers(0, min(3, most)))]
        for side, pads in zip(draw(st.permutations(sides)), (before, after), strict=True):
            pads.append(side)
    reference = "knows no negative pads" if min(before + after) < 0 else None
    some_axes = opset >= 18 and draw(st.booleans())

    def net(b: Builder, x: str) -> str:
        if not some_axes:
            return b.pad(x, before + after, 0.5, mode)
        axes = np.arange(1, len(shape)) - len(shape)
        return b.node("Pad", x, *map(b.constant, (before[1:] + after[1:], 0.5, axes)), mode=mode)

    return Drawn(shape, net, opset, reference)


def _reshape(draw: Draw) -> Drawn:
    shape = draw(shapes)
    first = draw(st.sampled_from([n for n in range(1, 20) if math.prod(shape[1:]) % n == 0]))
    target = draw(st.sampled_from(((0, -1), (0, first, -1), (0, -1, first), (0, 0, -1), (0, first, 1, -1))))
    return Drawn(shape, lambda b, x: b.reshape(x, *target), draw(since("Reshape")))


def _squeeze(draw: Draw) -> Drawn:
    shape = list(draw(planes | volumes))
    axes = draw(st.lists(st.integers(1, 3), unique=True, min_size=1, max_size=2))
    for axis in axes:
        shape[axis] = 1
    return Drawn(tuple(shape), lambda b, x: b.squeeze(x, *axes), draw(since("Squeeze")))


def _transpose(draw: Draw) -> Drawn:
    shape = draw(shapes)
    perm = (0, *draw(st.permutations(range(1, len(shape)))))
    return Drawn(shape, lambda b, x: b.transpose(x, *perm), draw(since("Transpose")))


def blocks(op: str) -> st.SearchStrategy[Drawn]:
    def build(draw: Draw) -> Drawn:
        (N, C, H, W), side = draw(planes), draw(st.integers(1, 3))
        opset = draw(since(op))
        has_mode = opset >= (11 if op == "DepthToSpace" else 28)
        mode = {"mode": draw(st.sampled_from(("DCR", "CRD")))} if has_mode else {}
        shape = (N, C * side**2, H, W) if op == "DepthToSpace" else (N, C, H * side, W * side)
        return Drawn(shape, node(op, blocksize=side, **mode), opset)

    return drawn(build)


def _cast(draw: Draw) -> Drawn:
    """There and back."""
    to = draw(st.sampled_from((TensorProto.FLOAT, TensorProto.DOUBLE)))
    net = chain(node("Cast", to=to), node("Cast", to=TensorProto.FLOAT))
    return Drawn(draw(shapes), net, draw(since("Cast")))


def _trilu(draw: Draw) -> Drawn:
    attributes = draw(st.fixed_dictionaries({}, optional={"upper": st.integers(0, 1)}))
    return Drawn(draw(planes), node("Trilu", draw(st.integers(-3, 3)), **attributes), draw(since("Trilu")))


def _col2im(draw: Draw) -> Drawn:
    rank = draw(st.integers(1, 2))
    axes = [draw(st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(0, 1)] * 2)) for _ in range(rank)]
    kernel, strides, dilations, begin, end = map(list, zip(*axes, strict=True))
    places = [draw(st.integers(1, 4)) for _ in range(rank)]
    image = [
        max(1, (n - 1) * s + d * (k - 1) + 1 - b - e) for n, (k, s, d, b, e) in zip(places, axes, strict=True)
    ]
    room = zip(image, axes, strict=True)
    windows = math.prod((n + b + e - d * (k - 1) - 1) // s + 1 for n, (k, s, d, b, e) in room)
    net = node("Col2Im", image, kernel, strides=strides, dilations=dilations, pads=begin + end)
    return Drawn((draw(batches), draw(channels) * math.prod(kernel), windows), net, draw(since("Col2Im")))


def _affine_grid(draw: Draw) -> Drawn:
    spatial = draw(st.tuples(*[st.integers(2, 4)] * draw(st.integers(2, 3))))
    rank, corners = len(spatial), draw(st.integers(0, 1))

    def net(b: Builder, x: str) -> str:
        theta = b.reshape(x, 1, rank, rank + 1)
        return b.node("AffineGrid", theta, b.constant([1, 3, *spatial]), align_corners=corners)

    def product(b: Builder, x: str) -> str:
        lines = [(np.arange(n) * 2 + 1 - corners) / (n - corners) - 1 for n in spatial]
        places = [*reversed(np.meshgrid(*lines, indexing="ij")), np.ones(spatial)]
        by = b.constant(np.stack([place.reshape(-1) for place in places]))
        made = b.node("MatMul", b.reshape(x, 1, rank, rank + 1), by)
        return b.transpose(made, 0, 2, 1)

    return Drawn((1, rank * (rank + 1)), net, draw(since("AffineGrid")), slope_of=product)


def _deform_conv(draw: Draw) -> Drawn:
    """Where nothing is moved it is a convolution; `test_written_out.py` moves it."""
    group, parts = draw(st.sampled_from(((1, 1), (2, 1), (1, 2), (2, 2))))
    kernel, strides, dilations = ([draw(st.integers(1, 2)) for _ in range(2)] for _ in range(3))
    pads = [draw(st.integers(0, 1)) for _ in range(4)]
    shape, window = (draw(batches), 4, 5, 4), {"strides": strides, "dilations": dilations, "pads": pads}

    def conv(b: Builder, x: str) -> str:
        return b.node("Conv", x, b.constant(b.noise(6, 4 // group, *kernel)), group=group, **window)

    def net(b: Builder, x: str) -> str:
        w = b.constant(b.noise(6, 4 // group, *kernel))
        plane = b.shapes[b.node("Conv", x, w, group=group, **window)][2:]
        still = b.mul(b.node("ReduceMean", x, b.constant([1, 2, 3])), b.constant(0.0))
        moved = b.node("Expand", still, b.constant([1, 2 * parts * math.prod(kernel), *plane]))
        return b.node("DeformConv", x, w, moved, group=group, offset_group=parts, **window)

    return Drawn(shape, net, draw(since("DeformConv")), slope_of=conv)


def _cast_like(draw: Draw) -> Drawn:
    def net(b: Builder, x: str) -> str:
        y = b.node("CastLike", x, b.constant(0.0, np.float64))
        return b.node("CastLike", y, draw_like(b, x))

    draw_like = draw(st.sampled_from((lambda b, x: x, lambda b, x: b.constant(0.0))))
    return Drawn(draw(shapes), net, draw(since("CastLike")))


# --- Resampling ---------------------------------------------------------------------------------------------


def _cumsum(draw: Draw) -> Drawn:
    shape = draw(shapes)
    attributes = {name: draw(st.integers(0, 1)) for name in ("exclusive", "reverse")}
    return Drawn(shape, node("CumSum", _axis(draw, shape), **attributes), draw(since("CumSum")))


def _resize(draw: Draw) -> Drawn:
    """By factors that leave no doubt about which pixel is the nearest."""
    shape, opset = draw(images), draw(since("Resize"))
    mode = draw(st.sampled_from(("nearest", "linear") if opset < 11 else ("nearest", "linear", "cubic")))
    factors = [draw(st.sampled_from((1, 2, 3, 0.5, 1.5, 0.7))) for _ in shape[2:]]
    factors = [f if n * f >= 1 else 1 for n, f in zip(shape[2:], factors, strict=True)]
    if opset < 11:
        return Drawn(shape, node("Resize", (1.0, 1.0, *map(float, factors)), mode=mode), opset, "is younger")
    attributes: dict[str, Any] = {"mode": mode}
    coordinates = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    coordinates += ["half_pixel_symmetric"] if opset >= 19 else []
    attributes["coordinate_transformation_mode"] = draw(st.sampled_from(coordinates))
    if mode == "nearest":
        nearest = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        attributes["nearest_mode"] = draw(st.sampled_from(nearest))
    else:
        attributes["exclude_outside"] = draw(st.integers(0, 1)) if mode == "cubic" else 0
        attributes |= {"antialias": draw(st.integers(0, 1))} if opset >= 18 else {}
    scales, target = [1.0, 1.0, *map(float, factors)], [*shape[:2]]
    target += [math.floor(n * f) for n, f in zip(shape[2:], factors, strict=True)]
    if opset >= 18 and draw(st.booleans()):
        attributes["axes"] = axes = draw(st.permutations(range(2, len(shape))))
        scales, target = ([each[axis] for axis in axes] for each in (scales, target))
    by_axes = "axes" in attributes
    whole = mode != "nearest" or all(f in (1, 2, 3) for f in factors)
    if not (whole and (by_axes or shape[0] == 1) and draw(st.booleans())):
        return Drawn(shape, resize(scales, **attributes), opset, "interpolates edges in its own way")
    if by_axes and mode != "nearest":
        policies = ("stretch", "not_larger", "not_smaller")
        attributes["keep_aspect_ratio_policy"] = draw(st.sampled_from(policies))
    return Drawn(shape, resize(sizes=target, **attributes), opset, "interpolates edges in its own way")


def _grid_sample(draw: Draw) -> Drawn:
    """Constant or computed, and then of x twice over."""
    shape, opset = draw(images), draw(since("GridSample"))
    assume(opset >= 20 or len(shape) == 4)
    modes = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}
    mode, padding = (
        draw(st.sampled_from(list(modes))),
        draw(st.sampled_from(("zeros", "border", "reflection"))),
    )
    assume((mode, padding) != ("cubic", "border"))
    size = [draw(st.integers(1, 4)) for _ in shape[2:]]
    options = {"align_corners": draw(st.integers(0, 1)), "padding_mode": padding}
    options["mode"] = modes[mode] if opset < 20 else mode
    net = grid_sample(*size, computed=draw(st.booleans()), **options)
    return Drawn(shape, net, opset, "rounds positions to float32")


def _upsample(draw: Draw) -> Drawn:
    shape, opset = draw(images), draw(since("Upsample"))
    scales = (1.0, 1.0, *(draw(st.sampled_from((1.0, 2.0, 3.0, 1.5))) for _ in shape[2:]))
    given, mode = ((scales,), {}) if opset >= 9 else ((), {"scales": scales})
    mode["mode"] = draw(st.sampled_from(("nearest", "linear")))
    return Drawn(shape, node("Upsample", *given, **mode), opset, "knows nearest only, and no attribute")


def _max_unpool(draw: Draw) -> Drawn:
    """To what windows that lie side by side fill, or with a rest to what was pooled."""
    (N, C, *windows), by_columns = draw(images), draw(st.integers(0, 1))
    kernel = tuple(draw(st.integers(1, 3)) for _ in windows)
    filled = [n * k for n, k in zip(windows, kernel, strict=True)]
    rest = [draw(st.integers(0, k - 1)) for k in kernel]
    plane = tuple(n + extra for n, extra in zip(filled, rest, strict=True))
    assume(math.prod(plane) * C < 2000)
    net = unpooled(*kernel, strides=kernel, storage_order=by_columns, plane=plane if any(rest) else None)
    return Drawn(
        (1 if any(rest) else N, C, *plane), net, draw(since("MaxUnpool", 12)), "counts places otherwise"
    )


# --- Reductions and norms -----------------------------------------------------------------------------------


def reduces(
    op: str, of: st.SearchStrategy[Shape] = shapes, before: Net | None = None
) -> st.SearchStrategy[Drawn]:
    def build(draw: Draw) -> Drawn:
        shape, opset = draw(of), draw(since(op))
        axes, keepdims = _axes(draw, shape, opset), draw(st.integers(0, 1))
        net = reduce(op, *axes, keepdims=keepdims)
        return Drawn(shape, chain(before, net) if before else net, opset)

    return drawn(build)


#: Of few numbers along an axis the normal ones hardly depend on x; so much keeps float32 from seeing that.
epsilons = st.floats(0.125, 1, width=16)


def normalizes(
    op: str,
    reference: str | None = None,
    **attributes: st.SearchStrategy[Any],
) -> st.SearchStrategy[Drawn]:
    """The op with a scale and a bias for each channel."""

    def build(draw: Draw) -> Drawn:
        shape = draw(images)
        values = {name: draw(strategy) for name, strategy in attributes.items()}
        if "num_groups" in values:
            shape = (shape[0], shape[1] * values["num_groups"], *shape[2:])
        net = lambda b, x: b.node(op, x, *(b.constant(b.noise(shape[1])) for _ in range(2)), **values)  # noqa: E731
        return Drawn(shape, net, draw(since(op)), reference)

    return drawn(build)


def normalizes_last(op: str, parameters: int) -> st.SearchStrategy[Drawn]:
    """Over the axes from one on, with parameters that broadcast to them."""

    def build(draw: Draw) -> Drawn:
        shape = draw(shapes)
        axis, epsilon = _axis(draw, shape), draw(epsilons)
        sides = [[draw(st.sampled_from((1, n))) for n in shape[axis:]] for _ in range(parameters)]
        given = sides[: draw(st.integers(1, parameters))]
        net = lambda b, x: b.node(  # noqa: E731
            op, x, *(b.constant(b.noise(*each)) for each in given), axis=axis, epsilon=epsilon
        )
        return Drawn(shape, net, draw(since(op)))

    return drawn(build)


def _mean_variance(draw: Draw) -> Drawn:
    shape, opset = draw(images), draw(since("MeanVarianceNormalization"))
    axes = _axes(draw, shape, opset)
    assume(math.prod(shape[axis] for axis in axes) > 2)
    return Drawn(shape, node("MeanVarianceNormalization", axes=axes), opset, "takes float32 alone")


def _lp_normalization(draw: Draw) -> Drawn:
    shape, p, opset = draw(shapes), draw(st.sampled_from((1, 2))), draw(since("LpNormalization"))
    axis = _axis(draw, shape, opset)
    assume(shape[axis] > 1)
    reference = "sums x, not its magnitude" if p == 1 else None
    return Drawn(shape, node("LpNormalization", axis=axis, p=p), opset, reference)


def _lrn(draw: Draw) -> Drawn:
    numbers = {name: draw(st.floats(0.25, 2, width=16)) for name in ("alpha", "beta", "bias")}
    net = node("LRN", size=draw(st.integers(1, 7)), **numbers)
    return Drawn(draw(images), net, draw(since("LRN")), "takes planes only, and other channels")


# --- Products -----------------------------------------------------------------------------------------------


def _gemm(draw: Draw) -> Drawn:
    outputs = draw(st.integers(1, 19))
    c_shape = draw(st.sampled_from(((), (1,), (outputs,), (1, outputs))))
    computed = draw(st.booleans())
    attributes = {name: draw(st.floats(-2, 2, width=16)) for name in ("alpha", "beta")}
    attributes |= {"beta": 1.0} if computed else {}
    attributes["transB"] = draw(st.integers(0, 1))

    def net(b: Builder, x: str) -> str:
        if not computed:
            return b.gemm(x, outputs, c_shape, **attributes)
        K = b.shapes[x][1]
        w = b.noise(outputs, K) if attributes["transB"] else b.noise(K, outputs)
        return b.node("Gemm", x, b.constant(w), b.matmul(x, outputs), **attributes)

    return Drawn(draw(rows), net, draw(since("Gemm")))


def _matmul(draw: Draw) -> Drawn:
    """A tensor and a constant matrix, vector or stack of matrices, on either side; or two tensors."""
    shape = draw(shapes)
    P = draw(st.integers(1, 9))
    first = len(shape) > 2 and draw(st.booleans())
    K = shape[-2 if first else -1]
    how = draw(st.sampled_from(("matrix", "vector", "stack", "square", "conv")))
    if how == "vector" and len(shape) > 2:
        sides: tuple[int, ...] = (K,)
    elif how == "stack" and len(shape) > 3:
        lead = [draw(st.sampled_from((1, n))) for n in shape[1:-2]]
        sides = (*lead, P, K) if first else (*lead, K, P)
    else:
        sides = (P, K) if first else (K, P)

    def net(b: Builder, x: str) -> str:
        swap = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        if how == "square" and len(shape) > 2:
            return b.node("MatMul", *[x, b.transpose(x, *swap)][:: -1 if first else 1])
        if how == "conv" and len(shape) > 3:  # one matrix for all channels
            return b.node("MatMul", *[x, b.transpose(b.conv(x, 1, 1), *swap)][:: -1 if first else 1])
        return b.node("MatMul", *[x, b.constant(b.noise(*sides))][:: -1 if first else 1])

    return Drawn(shape, net, draw(since("MatMul")))


def _einsum(draw: Draw) -> Drawn:
    """The letters of x, of a constant and of the result; the batch is first in x and in the result."""
    shape = draw(st.tuples(batches, *[st.integers(1, 4)] * draw(st.integers(1, 3))))
    letters = "abcd"[: len(shape)]
    sizes = dict(zip(letters, shape, strict=True), y=draw(st.integers(1, 4)), z=draw(st.integers(1, 3)))
    other = "".join(draw(st.permutations([*draw(st.sets(st.sampled_from(letters[1:]))), "y"])))
    other += "z" if draw(st.booleans()) else ""
    kept = draw(st.permutations(sorted(draw(st.sets(st.sampled_from(letters[1:] + other))))))
    side, opset = tuple(sizes[c] for c in other), draw(since("Einsum"))
    if draw(st.booleans()):
        return Drawn(shape, einsum(f"{other},{letters}->a{''.join(kept)}", side, first=True), opset)
    return Drawn(shape, einsum(f"{letters},{other}->a{''.join(kept)}", side), opset)


# --- Picks by constant indices ------------------------------------------------------------------------------


def _places(draw: Draw, op: str) -> tuple[Shape, Array, Shape, dict[str, int]]:
    """The shape of x, the indices, that of what they name, and attributes; no place twice."""
    shape = (1, *draw(st.tuples(*[st.integers(1, 5)] * draw(st.integers(1, 3)))))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if op.endswith("ND"):
        last = draw(st.integers(1, len(shape) - 1))  # of the axes behind the batch
        inside = shape[1 : 1 + last]
        count = draw(st.integers(1, math.prod(inside)))
        numbers = rng.permutation(math.prod(inside))[:count]
        rows = np.stack(np.unravel_index(numbers, inside), axis=1)
        rows -= np.array(inside) * rng.integers(0, 2, rows.shape)  # also from the end
        if op == "GatherND" and draw(st.booleans()):
            return shape, rows[None], (1, count, *shape[1 + last :]), {"batch_dims": 1}
        rows = np.concatenate([np.zeros((count, 1), np.int64), rows], axis=1)
        return shape, rows[None], (1, count, *shape[1 + last :]), {}
    axis = draw(st.integers(1, len(shape) - 1))
    count = draw(st.integers(1, shape[axis]))
    sides = tuple(count if i == axis else n for i, n in enumerate(shape))
    order = np.argsort(rng.random(shape), axis=axis)
    return shape, order[tuple(map(slice, sides))], sides, {"axis": axis}


def picked(op: str) -> st.SearchStrategy[Drawn]:
    def build(draw: Draw) -> Drawn:
        shape, indices, _, attributes = _places(draw, op)
        return Drawn(shape, node(op, indices, **attributes), draw(since(op, 12)))

    return drawn(build)


def scattered(op: str) -> st.SearchStrategy[Drawn]:
    def build(draw: Draw) -> Drawn:
        shape, indices, sides, attributes = _places(draw, op)
        how = draw(st.sampled_from(("computed", "constant", "of a constant")))
        if op == "Scatter":
            return Drawn(shape, put(op, indices, sides, how, **attributes), 9, "knows no Scatter")
        return Drawn(shape, put(op, indices, sides, how, **attributes), draw(since(op, 11)))

    return drawn(build)


# --- Quantized ----------------------------------------------------------------------------------------------


def _quantized(draw: Draw) -> Drawn:
    """Rounding passes gradients, clipping does not."""
    shape, opset = draw(shapes), draw(since("QuantizeLinear"))
    kind = draw(
        st.sampled_from((np.uint8, np.int8, np.uint16, np.int16) if opset >= 21 else (np.uint8, np.int8))
    )
    lo, hi = np.iinfo(kind).min, np.iinfo(kind).max
    axis = draw(st.sampled_from((None, *range(1, len(shape))))) if opset >= 13 else None
    size = () if axis is None else (shape[axis],)
    options = {} if axis is None else {"axis": axis}
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    # Some of x does not fit.
    scale = np.float32(rng.uniform(1.1, 3, size) / (hi - lo))
    zero = rng.integers(lo // 2, lo // 2 + (hi - lo), size, endpoint=True).clip(lo, hi)

    def net(b: Builder, x: str) -> str:
        operands = b.constant(scale), b.constant(zero, kind)
        return b.node(
            "DequantizeLinear", b.node("QuantizeLinear", x, *operands, **options), *operands, **options
        )

    def clipped(b: Builder, x: str) -> str:
        a = np.reshape(scale.astype(float), [-1 if i == axis else 1 for i in range(len(shape))])
        z = np.reshape(zero, a.shape)
        y = b.node("Max", x, b.constant((lo - 0.5 - z) * a))
        return b.node("Min", y, b.constant((hi + 0.5 - z) * a))

    return Drawn(shape, net, opset, slope_of=clipped)


# --- Of old exporters ---------------------------------------------------------------------------------------


def scaled_and_shifted(
    op: str, of: st.SearchStrategy[Shape] = images, **names: str
) -> st.SearchStrategy[Drawn]:
    """`names` of the attributes: scale, shift, and shifts by channel."""

    def build(draw: Draw) -> Drawn:
        shape = draw(of)
        a, *b_ = (draw(st.floats(0.25, 2, width=16)) for _ in range(1 + shape[1]))
        given: dict[str, Any] = {names["scale"]: a}
        if "shift" in names:
            given[names["shift"]] = b_[0]
            b_ = b_[:1] * shape[1]
        elif "shifts" in names:
            given[names["shifts"]] = b_
        else:
            b_ = [0.0] * shape[1]

        def modern(b: Builder, x: str) -> str:
            shifts = np.reshape(b_, (-1, *[1] * (len(shape) - 2)))
            return b.add(b.mul(x, b.constant(a)), b.constant(shifts))

        return Drawn(shape, lambda b, x: b.foreign(op, shape, x, **given), slope_of=modern)

    return drawn(build)


def _fc(draw: Draw) -> Drawn:
    shape, outputs = draw(shapes), draw(st.integers(1, 9))

    def net(b: Builder, x: str, legacy: bool) -> str:
        K = math.prod(shape[1:])
        operands = b.constant(b.noise(outputs, K)), b.constant(b.noise(outputs))
        if legacy:
            return b.foreign("FC", (shape[0], outputs), x, *operands)
        return b.node("Gemm", b.flatten(x), *operands, transB=1)

    return Drawn(shape, partial(net, legacy=True), slope_of=partial(net, legacy=False))


def _legacy_padding(draw: Draw) -> Drawn:
    """Caffe's pool: as many windows as reach over the end, which MaxPool's ceil_mode means."""
    shape = draw(planes)
    kernel = [draw(st.integers(1, min(4, n))) for n in shape[2:]]
    strides = [draw(st.integers(1, k)) for k in kernel]
    pads = [draw(st.integers(0, k - 1)) for k in kernel]
    sliding = {"kernel_shape": kernel, "strides": strides}
    windows = oracle.volumes.Window(shape[2:], kernel, strides, (1, 1), pads, pads, ceil_mode=True).outputs
    axes = zip(shape[2:], windows, kernel, strides, pads, strict=True)
    padded = (*shape[:2], *(max(n + 2 * p, (o - 1) * s + k) for n, o, k, s, p in axes))

    def legacy(b: Builder, x: str) -> str:
        op = {"domain": "com.microsoft", "pads": pads, "value": -1e38}
        return b.node("MaxPool", b.foreign("LegacyPadding", padded, x, **op, **sliding), **sliding)

    def modern(b: Builder, x: str) -> str:
        return b.node("MaxPool", x, pads=pads * 2, ceil_mode=1, **sliding)

    return Drawn(shape, legacy, reference="makes other windows", slope_of=modern)


# --- Several ops in one -------------------------------------------------------------------------------------


def fused(
    op: str,
    foreign: Callable[[Builder, str, str, dict[str, Any]], str],
    modern: Net,
    of: st.SearchStrategy[Shape] = images,
    domain: str = "com.microsoft",
    reference: str | None = None,
) -> st.SearchStrategy[Drawn]:
    """What `foreign` appends, given the op and its domain, means what `modern` appends."""

    def build(draw: Draw) -> Drawn:
        old: Net = lambda b, x: foreign(b, x, op.rpartition(".")[2], {"domain": domain} if domain else {})  # noqa: E731
        return Drawn(draw(of), old, NEWEST, reference, modern)

    return drawn(build)


def _fused_conv(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    C = b.shapes[x][1]
    operands = (b.constant(b.noise(C, C, 1, 1)), b.constant(b.noise(C)), x)
    given = {"activation": "LeakyRelu", "activation_params": [0.25]}
    return b.foreign(op, b.shapes[x], x, *operands, **domain, **given)


def _conv_and_leaky(b: Builder, x: str) -> str:
    C = b.shapes[x][1]
    made = b.node("Conv", x, b.constant(b.noise(C, C, 1, 1)), b.constant(b.noise(C)))
    return b.node("LeakyRelu", b.add(made, x), alpha=0.25)


def _fused_gemm(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    w, c = b.constant(b.noise(b.shapes[x][1], 6)), b.constant(b.noise(6))
    given = {"alpha": 2.0, "activation": "Tanh"}
    return b.foreign(op, (b.shapes[x][0], 6), x, w, c, **domain, **given)


def _gemm_and_tanh(b: Builder, x: str) -> str:
    w, c = b.constant(b.noise(b.shapes[x][1], 6)), b.constant(b.noise(6))
    return b.node("Tanh", b.node("Gemm", x, w, c, alpha=2.0))


def _fused_matmul(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    shape = (*b.shapes[x][:-2], b.shapes[x][-1], 4)
    w = b.constant(b.noise(4, b.shapes[x][-2]))
    return b.foreign(op, shape, x, w, **domain, transA=1, transB=1, alpha=0.5)


def _matmul_of_transposed(b: Builder, x: str) -> str:
    rank = len(b.shapes[x])
    w = b.constant(b.noise(4, b.shapes[x][-2]).T)
    turned = b.transpose(x, *range(rank - 2), rank - 1, rank - 2)
    return b.mul(b.node("MatMul", turned, w), b.constant(0.5))


def foreign_with(*shapes: Callable[[Shape], Shape], **given: Any) -> Callable[..., str]:
    """A foreign op of x's shape with noise of these shapes, which are functions of x's."""

    def net(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
        constants = [b.constant(b.noise(*shape(b.shapes[x]))) for shape in shapes]
        return b.foreign(op, b.shapes[x], x, *constants, **domain, **given)

    return net


def _channels(shape: Shape) -> Shape:
    return shape[-1:]


def biased(net: Net) -> Net:
    return lambda b, x: net(b, b.add(x, b.constant(b.noise(b.shapes[x][-1]))))


def _quick_gelu(b: Builder, x: str) -> str:
    return b.mul(x, b.node("Sigmoid", b.mul(x, b.constant(1.5))))


def _skip_norm(b: Builder, x: str) -> str:
    """The constants in the order of the fused op's."""
    skip, gamma, beta = (b.constant(b.noise(*s)) for s in (b.shapes[x][1:], *[b.shapes[x][-1:]] * 2))
    return b.node("LayerNormalization", b.add(x, skip), gamma, beta, axis=-1, epsilon=0.125)


def _skip_rms(b: Builder, x: str) -> str:
    skip, gamma, bias = (b.constant(b.noise(*s)) for s in (b.shapes[x][1:], *[b.shapes[x][-1:]] * 2))
    return b.node("RMSNormalization", b.add(b.add(x, skip), bias), gamma, axis=-1, epsilon=0.125)


def quantizes(op: str) -> st.SearchStrategy[Drawn]:
    """Before opset 21 ONNX has no 16 bits; within their range the gradient of both together is one."""

    def net(b: Builder, x: str, _: str, domain: dict[str, Any]) -> str:
        operands = b.constant(1e-4), b.constant(3, np.int16)
        y = b.foreign("QuantizeLinear", b.shapes[x], x, *operands, **domain)
        return b.foreign("DequantizeLinear", b.shapes[x], y, *operands, **domain)

    return fused(op, net, lambda b, x: b.node("Identity", x))


def _scaled(b: Builder, x: str) -> str:
    shift, by = np.arange(b.shapes[x][1]) / 8, 0.5
    return b.mul(b.node("Sub", x, b.constant(np.float32(shift))), b.constant(by))


def _scaler(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    offset = [float(i) / 8 for i in range(b.shapes[x][1])]
    return b.foreign(op, b.shapes[x], x, **domain, offset=offset, scale=[0.5])


def _crop(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    N, C, H, W = b.shapes[x]
    return b.foreign(op, (N, C, H - 3, W - 2), x, **domain, border=[0, 1, 2, 2])


def _dynamic_slice(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    N, C, H, W = b.shapes[x]
    bounds = b.constant([1, 0]), b.constant([H - 2, W - 2]), b.constant([2, 3])
    return b.foreign(op, (N, C, H - 3, W - 2), x, *bounds, **domain)


def _cropped(b: Builder, x: str) -> str:
    H, W = b.shapes[x][2:]
    return b.node("Slice", x, b.constant([1, 0]), b.constant([H - 2, W - 2]), b.constant([2, 3]))


def _curve(op: str) -> Net:
    return lambda b, x: b.mul(b.node(op, b.mul(x, b.constant(0.75))), b.constant(1.5))


def _behind(op: str, factor: float, more: float) -> Net:
    return lambda b, x: b.add(
        b.mul(b.node(op, x), b.constant(factor, np.float32)), b.constant(more, np.float32)
    )


def _attention(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    length = b.shapes[x][2]
    mask = b.constant(np.eye(length) + np.eye(length, k=2) > 0, np.bool_)
    return b.foreign(op, b.shapes[x], x, x, x, mask, is_causal=length % 2)


def _attention_in_parts(b: Builder, x: str) -> str:
    length, size = b.shapes[x][2:]
    mask = np.eye(length) + np.eye(length, k=2) > 0
    mask = np.where(np.tril(mask) if length % 2 else mask, 0, -1e30)
    scores = b.node("MatMul", x, b.transpose(x, 0, 1, 3, 2))
    scores = b.add(b.mul(scores, b.constant(size**-0.5, np.float32)), b.constant(mask, np.float32))
    return b.node("MatMul", b.node("Softmax", scores, axis=-1), x)


def _rows_apart(b: Builder, x: str) -> str:
    """(N, length, 2 · size) by two heads."""
    length, size = b.shapes[x][1:]
    return b.transpose(b.reshape(x, 0, length, 2, size // 2), 0, 2, 1, 3)


def _rows_together(b: Builder, x: str) -> str:
    length, size = b.shapes[x][2:]
    return b.reshape(b.transpose(x, 0, 2, 1, 3), 0, length, 2 * size)


def _of_weights(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    size = b.shapes[x][2]
    w, c = b.constant(b.noise(size, 18) / size**0.5), b.constant(b.noise(18))
    return b.foreign(op, (*b.shapes[x][:2], 6), x, w, c, **domain, num_heads=2)


def _of_weights_in_parts(b: Builder, x: str) -> str:
    size = b.shapes[x][2]
    w, c = b.noise(size, 18) / size**0.5, b.noise(18)
    parts = zip(np.split(w, 3, axis=1), np.split(c, 3), strict=True)
    return _of_heads(b, [b.add(b.node("MatMul", x, b.constant(v)), b.constant(d)) for v, d in parts])


def _multi_head(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    made = b.matmul(x, 6)
    return b.foreign(op, b.shapes[made], made, made, made, **domain, num_heads=2)


def _of_heads(b: Builder, qkv: Sequence[str]) -> str:
    q, k, v = (_rows_apart(b, each) for each in qkv)
    scores = b.node("MatMul", b.mul(q, b.constant(3**-0.5)), b.transpose(k, 0, 1, 3, 2))
    return _rows_together(b, b.node("MatMul", b.node("Softmax", scores, axis=-1), v))


def _table(b: Builder, half: int) -> list[str]:
    """Cosines and sines, at more positions than are read."""
    angles = b.rng.uniform(0, 6, (9, half))
    return [b.constant(np.cos(angles)), b.constant(np.sin(angles))]


def _rotary(draw: Draw) -> Drawn:
    """Of heads apart or together, of some features or all, as halves or pairs."""
    (N, length, heads), half = draw(st.tuples(batches, st.integers(1, 4), st.integers(1, 3))), 2
    size, apart = 2 * half + draw(st.integers(0, 2)), draw(st.booleans())
    given = {"interleaved": draw(st.integers(0, 1)), "num_heads": heads}
    given |= {"rotary_embedding_dim": 2 * half} if size > 2 * half else {}
    at = np.tile((np.arange(length) * 2 + 1) % 9, (N, 1))
    shape = (N, heads, length, size) if apart else (N, length, heads * size)
    return Drawn(
        shape, lambda b, x: b.node("RotaryEmbedding", x, *_table(b, half), b.constant(at), **given), 23
    )


def _rotary_of_onnxruntime(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    """From a position on."""
    table = _table(b, b.shapes[x][2] // 2)
    return b.foreign(op, b.shapes[x], x, b.constant([1]), *table, **domain, interleaved=1)


def _rotary_of_onnx(b: Builder, x: str) -> str:
    N, length, size = b.shapes[x]
    table, at = _table(b, size // 2), b.constant(np.tile(np.arange(length) + 1, (N, 1)))
    return b.node("RotaryEmbedding", x, *table, at, interleaved=1, num_heads=1)


def _grid(b: Builder, x: str) -> list[str]:
    return [x, b.constant(np.tile(b.rng.uniform(-1, 1, (2, 3, 2)), (b.shapes[x][0], 1, 1, 1)))]


def _log1p(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    return b.foreign(op, b.shapes[x], b.node("Exp", x), **domain)


def _log_of_more(b: Builder, x: str) -> str:
    return b.node("Log", b.add(b.node("Exp", x), b.constant(1, np.float32)))


large = st.tuples(batches, channels, *[st.integers(4, 7)] * 2)
FUSED: dict[str, st.SearchStrategy[Drawn]] = {
    "com.microsoft.FusedConv": fused("com.microsoft.FusedConv", _fused_conv, _conv_and_leaky, planes),
    "com.microsoft.FusedGemm": fused("com.microsoft.FusedGemm", _fused_gemm, _gemm_and_tanh, rows),
    **{
        f"com.microsoft.{op}": fused(
            f"com.microsoft.{op}", _fused_matmul, _matmul_of_transposed, lines | planes
        )
        for op in ("FusedMatMul", "TransposeMatMul")
    },
    "com.microsoft.Gelu": fused(
        "com.microsoft.Gelu", foreign_with(), node("Gelu"), rows, reference="rounds to float32"
    ),
    "com.microsoft.BiasGelu": fused(
        "com.microsoft.BiasGelu",
        foreign_with(_channels),
        biased(node("Gelu")),
        rows,
        reference="rounds to float32",
    ),
    "com.microsoft.FastGelu": fused(
        "com.microsoft.FastGelu",
        foreign_with(_channels),
        biased(node("Gelu", approximate="tanh")),
        rows,
        reference="rounds to float32",
    ),
    "com.microsoft.QuickGelu": fused("com.microsoft.QuickGelu", foreign_with(alpha=1.5), _quick_gelu),
    "com.microsoft.SkipLayerNormalization": fused(
        "com.microsoft.SkipLayerNormalization",
        foreign_with(lambda s: s[1:], _channels, _channels, epsilon=0.125),
        _skip_norm,
    ),
    "com.microsoft.SkipSimplifiedLayerNormalization": fused(
        "com.microsoft.SkipSimplifiedLayerNormalization",
        foreign_with(lambda s: s[1:], _channels, _channels, epsilon=0.125),
        _skip_rms,
    ),
    "SimplifiedLayerNormalization": fused(
        "SimplifiedLayerNormalization",
        foreign_with(_channels, epsilon=0.125),
        lambda b, x: b.node("RMSNormalization", x, b.constant(b.noise(b.shapes[x][-1])), epsilon=0.125),
        domain="",
    ),
    **{
        f"com.microsoft.{op}": quantizes(f"com.microsoft.{op}")
        for op in ("QuantizeLinear", "DequantizeLinear")
    },
    "ai.onnx.ml.Scaler": fused("ai.onnx.ml.Scaler", _scaler, _scaled, rows, "ai.onnx.ml"),
    "Crop": fused("Crop", _crop, _cropped, large, ""),
    "DynamicSlice": fused("DynamicSlice", _dynamic_slice, _cropped, large, ""),
    "ScaledTanh": fused("ScaledTanh", foreign_with(alpha=1.5, beta=0.75), _curve("Tanh"), images, ""),
    "ParametricSoftplus": fused(
        "ParametricSoftplus", foreign_with(alpha=1.5, beta=0.75), _curve("Softplus"), images, ""
    ),
    "Attention": fused("Attention", _attention, _attention_in_parts, large, ""),
    "com.microsoft.Attention": fused("com.microsoft.Attention", _of_weights, _of_weights_in_parts, lines),
    "RotaryEmbedding": drawn(_rotary),
    "com.microsoft.RotaryEmbedding": fused(
        "com.microsoft.RotaryEmbedding",
        _rotary_of_onnxruntime,
        _rotary_of_onnx,
        st.tuples(batches, st.integers(1, 5), st.sampled_from((2, 4, 6))),
    ),
    "com.microsoft.GridSample": fused(
        "com.microsoft.GridSample",
        lambda b, x, op, domain: b.foreign(op, (*b.shapes[x][:2], 2, 3), *_grid(b, x), **domain),
        lambda b, x: b.node("GridSample", *_grid(b, x)),
        planes,
    ),
    "com.microsoft.Trilu": fused(
        "com.microsoft.Trilu", foreign_with(upper=0), node("Trilu", upper=0), planes
    ),
    "com.microsoft.MultiHeadAttention": fused(
        "com.microsoft.MultiHeadAttention",
        _multi_head,
        lambda b, x: _of_heads(b, [b.matmul(x, 6)] * 3),
        lines,
    ),
    "Erfc": fused("Erfc", foreign_with(), _behind("Erf", -1, 1), images, "", "rounds to float32"),
    "Expm1": fused("Expm1", foreign_with(), _behind("Exp", 1, -1), images, ""),
    "Log1p": fused("Log1p", _log1p, _log_of_more, images, ""),
}

#: A scale and a zero point of 16 bits, whose range none of the numbers below leaves.
_STEP, _ZERO = 2.0**-13, 3


def on_integers(
    op: str,
    modern: Net,
    operands: Callable[[Builder, Sequence[str]], Sequence[str]] = lambda b, x: (*x, *x[1:]),
    shape: Callable[[Shape], Shape] = lambda x: x,
    of: st.SearchStrategy[Shape] = images,
    domain: str = "com.microsoft",
    **attributes: Any,
) -> st.SearchStrategy[Drawn]:
    """An op between quantizers.  `operands`: its own, of x as integers, their scale and their zero point."""

    def net(b: Builder, x: str, name: str, where: dict[str, Any]) -> str:
        scale, zero = b.constant(_STEP), b.constant(_ZERO, np.int16)
        given = b.node("QuantizeLinear", x, scale, zero), scale, zero
        y = b.foreign(name, shape(b.shapes[x]), *operands(b, given), **where, **attributes)
        return b.foreign("DequantizeLinear", b.shapes[y], y, scale, zero)

    return fused(op, net, modern, of, domain)


def _whole(b: Builder, *shape: int) -> Array:
    return b.rng.integers(-9, 10, shape)


def with_weights(
    *shape: Callable[[Shape], Shape], axis: int, bias: bool = False
) -> Callable[[Builder, Sequence[str]], Sequence[str]]:
    """Weights with a scale for each index of `axis`, and a bias of 32 bits."""

    def operands(b: Builder, x: Sequence[str]) -> Sequence[str]:
        w = _whole(b, *shape[0](b.shapes[x[0]]))
        scales = b.rng.uniform(0.01, 0.02, w.shape[axis])
        weights = (b.constant(w, np.int8), b.constant(scales), b.constant(np.ones(len(scales)), np.int8))
        more = (b.constant(_whole(b, len(scales)), np.int32),) if bias else ()
        return *x, *weights, *x[1:], *more

    return operands


def _weights(b: Builder, *shape: int, axis: int) -> Array:
    """Those of `with_weights` as numbers."""
    w = _whole(b, *shape)
    scales = b.rng.uniform(0.01, 0.02, shape[axis]).astype(np.float32)
    return (w - 1) * np.reshape(scales, [-1 if i == axis % w.ndim else 1 for i in range(w.ndim)])


def _square(shape: Shape) -> Shape:
    return (shape[1], shape[1])


def _one_tap(shape: Shape) -> Shape:
    return (*_square(shape), *[1] * (len(shape) - 2))


def _conv_of_weights(b: Builder, x: str) -> str:
    w = _weights(b, *_one_tap(b.shapes[x]), axis=0)
    return b.node("Conv", x, b.constant(w), b.constant(_whole(b, len(w)), np.float32))


def _gemm_of_weights(b: Builder, x: str) -> str:
    w = _weights(b, *_square(b.shapes[x]), axis=0)
    bias = b.constant(_whole(b, len(w)), np.float32)
    return b.node("Gemm", x, b.constant(w), bias, transB=1, alpha=0.5)


def _matmul_of_weights(b: Builder, x: str) -> str:
    return b.node("MatMul", x, b.constant(_weights(b, *_square(b.shapes[x]), axis=-1)))


def of_two_with(op: str) -> Net:
    """The op of x and a constant as `with_weights` makes them."""
    return lambda b, x: b.node(op, x, b.constant(_weights(b, b.shapes[x][-1], axis=-1)))


def _matmul_of_bits(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    """Of four bits, the first of two in the lower ones, in blocks of sixteen."""
    K, blocks = b.shapes[x][-1], -(-b.shapes[x][-1] // 16)
    packed, scales = b.rng.integers(0, 256, (5, blocks, 8)), b.rng.uniform(0.1, 0.2, 5 * blocks)
    given = b.constant(packed, np.uint8), b.constant(scales)
    sizes = {"K": K, "N": 5, "block_size": 16}
    return b.foreign(op, (*b.shapes[x][:-1], 5), x, *given, **domain, **sizes)


def _matmul_of_unpacked(b: Builder, x: str) -> str:
    K, blocks = b.shapes[x][-1], -(-b.shapes[x][-1] // 16)
    packed, scales = b.rng.integers(0, 256, (5, blocks, 8)), b.rng.uniform(0.1, 0.2, 5 * blocks)
    values = np.stack([packed % 16, packed // 16], axis=-1).reshape(5, blocks, 16) - 8
    w = values * np.float32(scales).reshape(5, blocks, 1)
    return b.node("MatMul", x, b.constant(w.reshape(5, -1)[:, :K].T))


def by_range(
    op: str, modern: Net, of: st.SearchStrategy[Shape], operands: Callable[[Builder, str], Sequence[str]]
) -> st.SearchStrategy[Drawn]:
    """An op of integers behind DynamicQuantizeLinear, with a Cast and a Mul by the scales."""

    def net(b: Builder, x: str, name: str, where: dict[str, Any]) -> str:
        q, scale, zero = b.nodes("DynamicQuantizeLinear", x, outputs=3)
        w, zeros = operands(b, x)
        made = b.node("Cast", b.node(name, q, w, zero, zeros), to=1)
        return b.mul(made, b.mul(scale, b.constant(0.015)))

    return fused(op, net, modern, of, "")


def _integers(*shape: Callable[[Shape], Shape]) -> Callable[[Builder, str], Sequence[str]]:
    """Weights, and a zero point of 1."""
    return lambda b, x: (b.constant(_whole(b, *shape[0](b.shapes[x])), np.int8), b.constant(1, np.int8))


def _rounded(b: Builder, x: str) -> str:
    q, scale, zero = b.nodes("DynamicQuantizeLinear", x, outputs=3)
    return b.node("DequantizeLinear", q, scale, zero)


def _product_by_range(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    w = b.constant(_whole(b, *_square(b.shapes[x])), np.int8)
    scales = b.constant(b.rng.uniform(0.01, 0.02, b.shapes[x][-1]))
    zeros = b.constant(np.ones(b.shapes[x][-1]), np.int8)
    if op == "DynamicQuantizeMatMul":
        return b.foreign(op, b.shapes[x], x, w, scales, zeros, **domain)
    q, scale, zero = b.nodes("DynamicQuantizeLinear", x, outputs=3)
    return b.foreign(op, b.shapes[x], q, w, scale, scales, zero, zeros, **domain)


def _product_of(weights: Callable[[Shape], Shape], op: str) -> Net:
    return lambda b, x: b.node(op, x, b.constant((_whole(b, *weights(b.shapes[x])) - 1) * np.float32(0.015)))


def _attention_of_integers(b: Builder, x: str, op: str, domain: dict[str, Any]) -> str:
    """Of 16 bits, so that what is rounded does not matter."""
    scale, zero = b.constant(_STEP), b.constant(_ZERO, np.int16)
    w, bias = b.constant(_whole(b, b.shapes[x][2], 18), np.int8), b.constant(b.noise(18))
    operands = b.node("QuantizeLinear", x, scale, zero), w, bias, scale, b.constant(0.02), "", zero
    return b.foreign(op, (*b.shapes[x][:2], 6), *operands, **domain, num_heads=2)


def _attention_of_floats(b: Builder, x: str) -> str:
    w, bias = b.constant(_whole(b, b.shapes[x][2], 18) * np.float32(0.02)), b.constant(b.noise(18))
    return _of_heads(b, b.split(b.add(b.node("MatMul", x, w), bias), [6, 6, 6], axis=2))


def _chosen(b: Builder, x: str) -> str:
    return b.constant(np.arange(b.shapes[x][-1]) % 2 == 0, np.bool_)


_pooled = {"kernel_shape": [2, 2], "pads": [0, 1, 1, 0], "count_include_pad": 1}
ON_INTEGERS: dict[str, st.SearchStrategy[Drawn]] = {
    "DynamicQuantizeLinear": fused(
        "DynamicQuantizeLinear", lambda b, x, *_: _rounded(b, x), node("Identity"), domain=""
    ),
    "ConvInteger": by_range("ConvInteger", _product_of(_one_tap, "Conv"), planes, _integers(_one_tap)),
    "MatMulInteger": by_range("MatMulInteger", _product_of(_square, "MatMul"), rows, _integers(_square)),
    **{
        f"com.microsoft.{op}": fused(f"com.microsoft.{op}", _product_by_range, _matmul_of_weights, rows)
        for op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
    },
    "com.microsoft.MatMulNBits": fused("com.microsoft.MatMulNBits", _matmul_of_bits, _matmul_of_unpacked),
    "QLinearConv": on_integers(
        "QLinearConv", _conv_of_weights, with_weights(_one_tap, axis=0, bias=True), of=planes, domain=""
    ),
    "QLinearMatMul": on_integers(
        "QLinearMatMul", _matmul_of_weights, with_weights(_square, axis=-1), of=rows, domain=""
    ),
    "com.microsoft.QGemm": on_integers(
        "com.microsoft.QGemm",
        _gemm_of_weights,
        lambda b, x: [*(given := with_weights(_square, axis=0, bias=True)(b, x))[:6], given[8], *x[1:]],
        of=rows,
        transB=1,
        alpha=0.5,
    ),
    **{
        f"com.microsoft.QLinear{op}": on_integers(
            f"com.microsoft.QLinear{op}", of_two_with(op), with_weights(_channels, axis=-1)
        )
        for op in ("Add", "Mul")
    },
    "com.microsoft.QLinearWhere": on_integers(
        "com.microsoft.QLinearWhere",
        lambda b, x: b.node("Where", _chosen(b, x), x, b.constant(0.5)),
        lambda b, x: (_chosen(b, x[0]), *x, b.constant(9, np.int16), *x[1:], *x[1:]),
    ),
    "com.microsoft.QAttention": fused(
        "com.microsoft.QAttention", _attention_of_integers, _attention_of_floats, lines
    ),
    "com.microsoft.QLinearConcat": on_integers(
        "com.microsoft.QLinearConcat",
        lambda b, x: b.concat(x, x),
        lambda b, x: (*x[1:], *x, *x),
        lambda s: (s[0], 2 * s[1], *s[2:]),
        axis=1,
    ),
    "com.microsoft.QLinearAveragePool": on_integers(
        "com.microsoft.QLinearAveragePool", node("AveragePool", **_pooled), of=large, **_pooled
    ),
    "com.microsoft.QLinearGlobalAveragePool": on_integers(
        "com.microsoft.QLinearGlobalAveragePool",
        node("GlobalAveragePool"),
        shape=lambda s: (*s[:2], *[1] * (len(s) - 2)),
        of=planes,
    ),
    "com.microsoft.QLinearLeakyRelu": on_integers(
        "com.microsoft.QLinearLeakyRelu", node("LeakyRelu", alpha=0.25), alpha=0.25
    ),
}


#: A strategy for each op that gbp knows.
STRATEGIES: dict[str, st.SearchStrategy[Drawn]] = {
    # Of one number.
    **{op: plain(op) for op in ("Atan", "Asinh", "Cos", "Cosh", "Exp", "Identity", "Neg", "Sin", "Sinh")},
    **{op: plain(op, before=inside) for op in ("Acos", "Asin", "Atanh", "Tan")},
    **{op: plain(op, before=positive) for op in ("Log", "Reciprocal", "Sqrt")},
    **{op: plain(op, before=wide) for op in ("Abs", "Relu", "Sign")},
    **{op: plain(op, rows, before=wide) for op in ("Ceil", "Floor", "Round")},  # few, so that none jumps
    **{op: plain(op, before=wide) for op in ("HardSwish", "Mish", "Sigmoid", "Softplus", "Softsign", "Tanh")},
    **{
        op: plain(op, before=wide, alpha=st.floats(0.125, 2, width=16)) for op in ("Celu", "Elu", "LeakyRelu")
    },
    "Acosh": plain("Acosh", before=above_one),
    "Clip": drawn(_clip),
    "Dropout": built(Builder.dropout, opsets=(7, 10, 12, 13, 22, NEWEST)),
    "Erf": plain("Erf", reference="rounds to float32"),
    "Gelu": plain(
        "Gelu", reference="rounds to float32", before=wide, approximate=st.sampled_from(("none", "tanh"))
    ),
    "HardSigmoid": plain("HardSigmoid", before=wide, alpha=st.floats(0.1, 2), beta=st.floats(0, 1)),
    "PRelu": drawn(_prelu),
    "Selu": plain("Selu", before=wide, alpha=st.floats(0.5, 2), gamma=st.floats(0.5, 2)),
    "Shrink": plain("Shrink", before=wide, bias=st.floats(0, 1), lambd=st.floats(0, 2)),
    "Swish": plain("Swish", before=wide, alpha=st.floats(0.5, 2)),
    "ThresholdedRelu": plain("ThresholdedRelu", before=wide, alpha=st.floats(0.1, 2)),
    # Of several.
    **{op: broadcasts(op) for op in ("Add", "Max", "Min", "Mul", "Sub", "Sum")},
    **{op: conditions(op) for op in ("And", "Equal", "Greater", "Less", "Not", "Or", "Where", "Xor")},
    **{op: conditions(op) for op in ("IsInf", "IsNaN")},
    **{op: conditions(op, 16) for op in ("GreaterOrEqual", "LessOrEqual")},
    "Div": broadcasts("Div", before=(None, positive)),
    "Mean": broadcasts("Mean", reference="broadcasts to its first operand"),
    "Pow": drawn(_pow) | broadcasts("Pow", before=(positive, None)),
    # Windows.
    "AveragePool": pools("AveragePool", 22, ceil_mode=st.integers(0, 1), count_include_pad=st.integers(0, 1)),
    "Conv": drawn(_conv),
    "ConvTranspose": drawn(_conv_transpose),
    "GlobalAveragePool": plain("GlobalAveragePool", images),
    "GlobalLpPool": plain("GlobalLpPool", images, reference="is not there", p=st.integers(1, 4)),
    "GlobalMaxPool": plain("GlobalMaxPool", images, reference="takes the maximum over other axes"),
    "LpPool": pools("LpPool", 22, ceil_mode=st.integers(0, 1), p=st.integers(1, 4)),
    "MaxPool": pools("MaxPool", 22, ceil_mode=st.integers(0, 1)),
    "MaxUnpool": drawn(_max_unpool),
    # Parts and places.
    "Cast": drawn(_cast),
    "CastLike": drawn(_cast_like),
    "Col2Im": drawn(_col2im),
    "AffineGrid": drawn(_affine_grid),
    "DeformConv": drawn(_deform_conv),
    "Trilu": drawn(_trilu),
    "Concat": drawn(_concat),
    "DepthToSpace": blocks("DepthToSpace"),
    "Expand": drawn(_expand),
    "Flatten": plain("Flatten", axis=st.just(1)),
    "Gather": drawn(_gather),
    "Pad": drawn(_pad),
    "Reshape": drawn(_reshape),
    "Slice": drawn(_slice),
    "SpaceToDepth": blocks("SpaceToDepth"),
    "Split": drawn(_split),
    "Squeeze": drawn(_squeeze),
    "Tile": drawn(_tile),
    "Transpose": drawn(_transpose),
    "Unsqueeze": built(
        lambda b, x, axis: b.unsqueeze(x, axis), opsets=(7, 13, NEWEST), axis=st.integers(1, 2)
    ),
    "CumSum": drawn(_cumsum),
    "GridSample": drawn(_grid_sample),
    "Resize": drawn(_resize),
    "Upsample": drawn(_upsample),
    # Reductions and norms.
    **{op: reduces(op) for op in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean")},
    **{op: reduces(op) for op in ("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")},
    "ReduceLogSum": reduces("ReduceLogSum", before=positive),
    "BatchNormalization": built(
        Builder.batchnorm, opsets=(7, 9, 14, 15, NEWEST), reference_since=14, epsilon=st.floats(1e-5, 1)
    ),
    "GroupNormalization": normalizes(
        "GroupNormalization", reference="rounds to float32", epsilon=epsilons, num_groups=st.integers(1, 4)
    ),
    "InstanceNormalization": normalizes("InstanceNormalization", epsilon=epsilons),
    "LRN": drawn(_lrn),
    "LayerNormalization": normalizes_last("LayerNormalization", 2),
    "LogSoftmax": softmaxes("LogSoftmax"),
    "LpNormalization": drawn(_lp_normalization),
    "MeanVarianceNormalization": drawn(_mean_variance),
    "RMSNormalization": normalizes_last("RMSNormalization", 1),
    "Softmax": softmaxes("Softmax"),
    # Products.
    "Gemm": drawn(_gemm),
    "MatMul": drawn(_matmul),
    "Einsum": drawn(_einsum),
    # Picks by constant indices.
    **{op: picked(op) for op in ("GatherElements", "GatherND")},
    **{op: scattered(op) for op in ("Scatter", "ScatterElements", "ScatterND")},
    # Several in one.
    **FUSED,
    # Quantized.
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), drawn(_quantized)),
    **ON_INTEGERS,
    # Of old exporters.
    "Affine": scaled_and_shifted("Affine", scale="alpha", shift="beta"),
    "FC": drawn(_fc),
    "ImageScaler": scaled_and_shifted("ImageScaler", planes, scale="scale", shifts="bias"),
    "Scale": scaled_and_shifted("Scale", scale="scale"),
    "com.microsoft.LegacyPadding": drawn(_legacy_padding),
}


# --- The law ------------------------------------------------------------------------------------------------


def distinct(shape: Shape, rng: np.random.Generator) -> Array:
    """Values between 0.1 and 1 and their negatives, no two of one magnitude."""
    magnitudes = rng.permutation(np.linspace(0.1, 1, math.prod(shape)))
    return (magnitudes * rng.choice((-1, 1), magnitudes.size)).reshape(shape).astype(np.float32)


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float64 in place of float32."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(float), tensor.name))
    for cast in (made for made in model.graph.node if made.op_type == "Cast"):
        cast.attribute[0].i = TensorProto.DOUBLE
    return model


def forward(model: onnx.ModelProto, by_oracle: bool) -> Callable[[Array], float]:
    """The sum of all samples' scores in float64."""
    if by_oracle:
        output = model.graph.output[0].name
        return lambda x: float(oracle.Run(model, x).values[output].sum())
    evaluator = ReferenceEvaluator(in_double(model))
    return lambda x: float(evaluator.run(None, {"x": x})[0].sum())


def scores_of(net: Net, case: Drawn) -> onnx.ModelProto:
    """A model with one score, to which every output of the net contributes."""
    b = Builder(case.opset)
    return b.model(b.head(net(b, b.input(*case.shape)), 1))


def test_every_op_has_a_strategy() -> None:
    assert STRATEGIES.keys() == PARSERS.keys() | REWRITERS.keys()


@pytest.mark.filterwarnings("ignore:.* encountered in log")
@pytest.mark.parametrize("op", STRATEGIES)
@settings(max_examples=10)
@given(data=st.data())
def test_the_map_is_the_slope(op: str, data: st.DataObject) -> None:
    case: Drawn = data.draw(STRATEGIES[op])
    model = scores_of(case.net, case)
    assert op in {".".join(filter(None, (node.domain, node.op_type))) for node in model.graph.node}
    rng = np.random.default_rng(1)
    x = distinct(case.shape, rng)
    gradient = Explainer(model).explain(x, rule="vanilla").map
    x = x.astype(float)
    f = forward(scores_of(case.slope_of or case.net, case), case.reference is not None)
    for u in rng.standard_normal((DIRECTIONS, *case.shape)):
        slope = (f(x + STEP * u) - f(x - STEP * u)) / (2 * STEP)
        rounding = 1e-15 * (1 + abs(f(x))) / STEP
        error = abs(np.vdot(gradient, u) - slope)
        assert error <= BOUND * np.linalg.norm(gradient) * np.linalg.norm(u) + rounding
