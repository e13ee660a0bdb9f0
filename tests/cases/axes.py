"""Ops along axes: resizing, selecting, reducing, normalising, products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from builder import Builder

from .case import Case, Net, chain, conv, gemm, node, pool, relu, with_noise


def resize(scales: Sequence[float] = (), sizes: Sequence[int] = (), **attributes: Any) -> Net:
    def net(b: Builder, x: str) -> str:
        nothing = "" if b.opset >= 13 else b.constant(np.empty(0))
        target = (b.constant(list(map(float, scales))),) if scales else (nothing, b.constant(list(sizes)))
        return b.node("Resize", x, nothing, *target, **attributes)

    return net


def reduce(op: str, *axes: int, **attributes: Any) -> Net:
    """Axes are an attribute before opset 18 (ReduceSum: 13)."""

    def net(b: Builder, x: str) -> str:
        if b.opset < (13 if op == "ReduceSum" else 18):
            return b.node(op, x, axes=axes, **attributes)
        return b.node(op, x, b.constant(axes), **attributes)

    return net


def squared(net: Net) -> Net:
    return lambda b, x: net(b, b.mul(x, x))


def normalized(op: str, *shapes: tuple[int, ...], **attributes: Any) -> Net:
    """The op with noise of these shapes behind x."""
    return lambda b, x: b.node(op, x, *(b.constant(b.noise(*shape)) for shape in shapes), **attributes)


def attention(b: Builder, x: str) -> str:
    """Softmax(q kᵀ) v over the pixels, in two heads."""
    _, C, H, W = b.shapes[x]
    heads = [b.reshape(b.conv(x, C, 1), 0, 2, C // 2, H * W) for _ in range(3)]
    q, k, v = (b.transpose(head, 0, 1, 3, 2) for head in heads)
    return b.node("MatMul", b.node("Softmax", b.node("MatMul", q, b.transpose(k, 0, 1, 3, 2))), v)


def broadcast_product(b: Builder, x: str) -> str:
    """(N, 5, 7, 9) @ (N, 1, 9, 7): one matrix for all channels, of either side."""
    one = b.transpose(b.conv(x, 1, 1), 0, 1, 3, 2)
    return b.node("MatMul", b.node("MatMul", x, one), b.conv(x, 1, 1))


def grid_sample(*size: int, computed: bool = False, **attributes: Any) -> Net:
    """At `size` positions in and around x: constant ones, or what a dense layer says of x."""

    def net(b: Builder, x: str) -> str:
        spread = 1.1 * b.noise(1, *size, len(size))
        if not computed:
            grid = b.constant(np.repeat(spread, b.shapes[x][0], axis=0))
            return b.node("GridSample", x, grid, **attributes)
        moved = b.mul(b.gemm(b.flatten(x), spread.size), b.constant(0.2))
        return b.node(
            "GridSample", x, b.add(b.reshape(moved, 0, *size, len(size)), b.constant(spread)), **attributes
        )

    return net


PLANE = (2, 3, 5, 6)
LINEAR = {"mode": "linear"}
CUBIC = {"mode": "cubic"}

ALIGNS = "aligns with where the output would end before its size is a whole number"

RESIZES = {
    "resize by 2": Case(resize((1, 1, 2, 2)), PLANE),
    "resize behind conv": Case(chain(conv(6), resize((1, 1, 2, 3)), conv(4)), PLANE),
    "resize, then concat": Case(
        lambda b, x: b.concat(
            b.conv(x, 8, 3, auto_pad="SAME_UPPER"),
            resize((1, 1, 2, 2))(b, b.node("MaxPool", b.conv(x, 8, 1), kernel_shape=[2, 2], strides=[2, 2])),
        ),
        (2, 3, 4, 6),
    ),
    **{
        f"resize nearest {mode}, {coordinates}, by {scales}": Case(
            resize(
                (1, 1, *scales), mode="nearest", nearest_mode=mode, coordinate_transformation_mode=coordinates
            ),
            PLANE,
        )
        for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for coordinates, scales in (
            ("half_pixel", (2, 1.5)),
            ("asymmetric", (1.3, 0.7)),
            ("align_corners", (2, 1.5)),
        )
    },
    "resize nearest, tf_half_pixel_for_nn": Case(
        resize((1, 1, 2, 1.5), nearest_mode="floor", coordinate_transformation_mode="tf_half_pixel_for_nn"),
        PLANE,
        opset=11,
        reference="knows no tf_half_pixel_for_nn",
    ),
    **{
        f"resize {way} {coordinates} by {scales}": Case(
            resize((1, 1, *scales), coordinate_transformation_mode=coordinates, mode=way),
            PLANE,
            reference=ALIGNS if coordinates == "align_corners" and 0.65 in scales else None,
        )
        for way in ("linear", "cubic")
        for coordinates in ("half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric")
        for scales in ((2, 1.5), (0.65, 1.0))
    },
    "resize linear to one pixel, pytorch_half_pixel": Case(
        resize(sizes=(1, 9), axes=(2, 3), coordinate_transformation_mode="pytorch_half_pixel", **LINEAR),
        PLANE,
    ),
    "resize cubic to one pixel, pytorch_half_pixel": Case(
        resize(sizes=(1, 9), axes=(2, 3), coordinate_transformation_mode="pytorch_half_pixel", **CUBIC),
        PLANE,
        reference="takes the pixel at -0.5, not at 0",
    ),
    "resize cubic, a = -0.5": Case(resize((1, 1, 2, 1.5), cubic_coeff_a=-0.5, **CUBIC), PLANE),
    "resize cubic, exclude_outside": Case(resize((1, 1, 2, 0.7), exclude_outside=1, **CUBIC), PLANE),
    "resize linear, antialias": Case(resize((1, 1, 0.65, 0.4), antialias=1, **LINEAR), PLANE),
    "resize linear up, antialias": Case(resize((1, 1, 2, 0.4), antialias=1, **LINEAR), PLANE),
    "resize cubic, antialias": Case(resize((1, 1, 0.65, 0.4), antialias=1, **CUBIC), PLANE),
    "resize cubic, antialias, exclude_outside": Case(
        resize((1, 1, 0.65, 0.4), antialias=1, exclude_outside=1, **CUBIC), PLANE
    ),
    "resize to sizes, opset 13": Case(resize(sizes=(1, 3, 7, 4), **LINEAR), (1, 3, 5, 6), opset=13),
    "resize to sizes, opset 11": Case(resize(sizes=(1, 3, 7, 4), **CUBIC), (1, 3, 5, 6), opset=11),
    "resize of two axes": Case(resize(sizes=(7, 4), axes=[3, 2], **LINEAR), PLANE, opset=18),
    "resize not larger": Case(
        resize(sizes=(7, 12), axes=[2, 3], keep_aspect_ratio_policy="not_larger", **LINEAR), PLANE
    ),
    "resize not smaller": Case(
        resize(sizes=(7, 12), axes=[2, 3], keep_aspect_ratio_policy="not_smaller", **LINEAR), PLANE
    ),
    "resize by 1": Case(resize((1, 1, 1, 1), **LINEAR), PLANE),
    "resize of (N, C, L)": Case(
        chain(lambda b, x: b.reshape(x, 0, 3, -1), resize((1, 1, 1.5), **CUBIC)), PLANE
    ),
    "resize, opset 10": Case(
        node("Resize", (1.0, 1.0, 2.0, 0.7)), PLANE, opset=10, reference="takes the scales for the roi"
    ),
    "resize linear, opset 10": Case(
        node("Resize", (1.0, 1.0, 2.0, 0.7), mode="linear"),
        PLANE,
        opset=10,
        reference="takes the scales for the roi",
    ),
    "upsample, opset 9": Case(node("Upsample", (1.0, 1.0, 2.0, 3.0)), PLANE, opset=9),
    "upsample linear, opset 9": Case(
        node("Upsample", (1.0, 1.0, 2.0, 1.5), mode="linear"), PLANE, opset=9, reference="knows nearest only"
    ),
    "upsample, opset 7": Case(
        node("Upsample", scales=(1.0, 1.0, 2.0, 3.0)), PLANE, opset=7, reference="has no attribute scales"
    ),
}

SELECTIONS = {
    "slice": Case(node("Slice", (1, -5), (4, 8), (1, 3))),
    "slice of channels behind conv": Case(chain(conv(24), node("Slice", (8,), (16,), (1,)), conv(4))),
    "slice with steps": Case(node("Slice", (0, 6), (5, -100), (1, 2), (2, -3))),
    "slice with steps behind conv": Case(chain(conv(6), node("Slice", (0, 0), (99, 99), (2, 3), (2, 2)))),
    "slice, attributes": Case(node("Slice", starts=(1, 2), ends=(2**40, -1), axes=(2, 3)), opset=7),
    "slice of all": Case(node("Slice", (0, 0), (2**62, 2**62), (0, 2))),
    "flip": Case(node("Slice", (-1,), (-(2**62),), (3,), (-1,))),
    "focus": Case(
        lambda b, x: b.conv(
            b.concat(
                *(
                    b.node("Slice", x, *map(b.constant, ((i, j), (2**31, 2**31), (2, 3), (2, 2))))
                    for i in (0, 1)
                    for j in (0, 1)
                )
            ),
            4,
        ),
        (2, 3, 6, 8),
    ),
    "gather": Case(node("Gather", (3, 0, -1, 3), axis=1)),
    "gather rows behind conv": Case(chain(conv(8), node("Gather", (3, 0, -1, 3), axis=2), conv(4, 1))),
    "gather a run": Case(node("Gather", (1, 2, 3), axis=1)),
    "gather a scalar": Case(node("Gather", -2, axis=2)),
    "gather a matrix": Case(node("Gather", ((0, 1), (4, -1)), axis=-1)),
    "gather of (N, C)": Case(node("Gather", (6, 0, 0), axis=1), (3, 7)),
    "tile": Case(node("Tile", (1, 2, 1, 3))),
    "expand": Case(chain(pool("MaxPool", 7, 1), node("Expand", (1, 1, 4, 1))), (2, 5, 7, 3)),
    "expand of pixels": Case(chain(node("GlobalMaxPool"), node("Expand", (5, 3, 4)))),
    "expand to itself": Case(node("Expand", (7, 9))),
    **{
        f"pad {mode}": Case(
            lambda b, x, mode=mode: b.node("Pad", x, b.constant((0, 0, 2, 0, 0, 0, 1, 3)), mode=mode)
        )
        for mode in ("reflect", "edge", "wrap")
    },
    "pad reflect before conv": Case(
        chain(lambda b, x: b.node("Pad", x, b.constant([0, 0, 1, 1] * 2), mode="reflect"), conv(6))
    ),
    "pad edge, opset 7": Case(node("Pad", pads=(0, 1, 2, 0, 0, 0, 1, 3), mode="edge"), opset=7),
    "pad that crops": Case(
        lambda b, x: b.pad(x, (0, -1, -2, 3, 0, 0, 1, -4), 0.5), reference="knows no negative pads"
    ),
    "pad reflect that crops": Case(
        lambda b, x: b.node("Pad", x, b.constant((0, 0, 2, 0, 0, 0, -3, 3)), mode="reflect"),
        reference="knows no negative pads",
    ),
    "crop": Case(lambda b, x: b.pad(x, (0, 0, -1, -1) * 2), reference="knows no negative pads"),
    "depth to space": Case(node("DepthToSpace", blocksize=2), (2, 12, 3, 4)),
    "depth to space CRD": Case(
        chain(conv(12), node("DepthToSpace", blocksize=2, mode="CRD"), conv(4)), PLANE
    ),
    "depth to space, opset 7": Case(node("DepthToSpace", blocksize=3), (2, 9, 3, 4), opset=7),
    "space to depth": Case(chain(node("SpaceToDepth", blocksize=2), conv(4, 1)), (2, 3, 4, 6)),
    "space to depth CRD": Case(node("SpaceToDepth", blocksize=2, mode="CRD"), (2, 3, 4, 6)),
    **{
        f"cumsum {attributes}": Case(node("CumSum", axis, **attributes))
        for axis, attributes in ((2, {}), (-1, {"exclusive": 1}), (1, {"reverse": 1, "exclusive": 1}))
    },
}

SAMPLES = {
    **{
        f"gridsample {mode}, {padding}, align {align}, {'computed' if computed else 'constant'}": Case(
            grid_sample(4, 3, computed=computed, mode=mode, padding_mode=padding, align_corners=align), PLANE
        )
        for mode in ("linear", "nearest", "cubic")
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
        for computed in (False, True)
        if (mode, padding) != ("cubic", "border")
    },
    "gridsample, opset 16": Case(
        chain(conv(6), grid_sample(3, 5, mode="bilinear"), conv(4)),
        PLANE,
        16,
        reference="knows newer names only",
    ),
    "gridsample between convolutions": Case(
        chain(conv(12), relu, grid_sample(4, 4, computed=True), relu, conv(4)),
        PLANE,
        reference="knows newer names only",
    ),
    "gridsample of volumes": Case(grid_sample(2, 3, 4, mode="linear"), (2, 3, 3, 4, 2)),
    "gridsample of volumes, computed": Case(
        grid_sample(2, 1, 3, computed=True, mode="linear"), (2, 3, 3, 4, 2)
    ),
    "gridsample of one row of pixels": Case(
        grid_sample(3, 4, mode="linear", padding_mode="reflection", align_corners=1),
        (2, 3, 1, 6),
        reference="divides by 0",
    ),
}

REDUCTIONS = {
    **{
        f"{op} over {axes}{' behind conv' if behind else ''}".lower(): Case(
            chain(*([conv(6)] if behind else []), reduce(op, *axes))
        )
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
        for axes in ((1,), (2, 3), (-1, 1), (1, 2, 3))
        for behind in (False, True)
    },
    **{
        f"{op} over {axes}".lower(): Case(chain(*before, reduce(op, *axes, keepdims=0)))
        for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
        for axes, before in (((1,), ()), ((2,), (conv(20),)), ((3, 1), ()))
    },
    # Of few numbers: a product of many is near 0, where rounding flips rectifiers.
    "reduceprod of channels": Case(reduce("ReduceProd", 1), (2, 2, 3, 4)),
    "reduceprod behind conv": Case(chain(conv(6, 1), reduce("ReduceProd", -2, keepdims=0)), (2, 3, 2, 4)),
    "reducelogsum": Case(squared(reduce("ReduceLogSum", 1, 2))),
    "reducesum, opset 11": Case(reduce("ReduceSum", 2, keepdims=0), opset=11),
    "reducemax, opset 13": Case(reduce("ReduceMax", -1), opset=13),
    "reducesum of no axes": Case(node("ReduceSum", noop_with_empty_axes=1)),
    "channel attention": Case(
        lambda b, x: b.mul(
            b.conv(b.concat(reduce("ReduceMax", 1)(b, x), reduce("ReduceMean", 1)(b, x)), 1, 1), x
        )
    ),
}

NORMALIZATIONS = {
    "instancenorm": Case(normalized("InstanceNormalization", (5,), (5,))),
    "instancenorm behind conv": Case(
        chain(conv(20), normalized("InstanceNormalization", (20,), (20,), epsilon=0.1), relu, conv(4))
    ),
    "instancenorm of (N, C, L)": Case(
        chain(lambda b, x: b.reshape(x, 0, 5, -1), normalized("InstanceNormalization", (5,), (5,)))
    ),
    "groupnorm": Case(
        chain(conv(6), normalized("GroupNormalization", (6,), (6,), num_groups=2), relu), opset=21
    ),
    "groupnorm of 34 groups": Case(
        chain(conv(68, 1), normalized("GroupNormalization", (68,), (68,), num_groups=34)), (2, 3, 3, 2)
    ),
    "layernorm": Case(normalized("LayerNormalization", (9,), (9,))),
    "layernorm of (N, C)": Case(normalized("LayerNormalization", (7,), (7,)), (3, 7)),
    "layernorm without bias": Case(normalized("LayerNormalization", (9,), epsilon=0.1)),
    "layernorm of planes": Case(normalized("LayerNormalization", (7, 9), (9,), axis=2)),
    "layernorm of samples behind conv": Case(
        chain(conv(4), normalized("LayerNormalization", (4, 5, 7), (4, 1, 1), axis=1))
    ),
    "layernorm of channels last": Case(
        chain(
            conv(6),
            lambda b, x: b.transpose(x, 0, 2, 3, 1),
            normalized("LayerNormalization", (6,), (6,)),
            lambda b, x: b.transpose(x, 0, 3, 1, 2),
            conv(4),
        )
    ),
    "layernorm with one scale": Case(normalized("LayerNormalization", (1,), (9,))),
    "rmsnorm": Case(normalized("RMSNormalization", (9,))),
    "rmsnorm of planes": Case(normalized("RMSNormalization", (7, 9), axis=-2, epsilon=0.1)),
    "mvn of planes": Case(node("MeanVarianceNormalization", axes=(2, 3))),
    "mvn of channels": Case(node("MeanVarianceNormalization", axes=(1, 3)), opset=9),
    "lp of channels": Case(node("LpNormalization", axis=1)),
    "lp of rows": Case(node("LpNormalization", p=1), reference="sums x, not its magnitude"),
    "lp behind conv": Case(chain(conv(20), node("LpNormalization", axis=1, p=2))),
}

PRODUCTS = {
    "matmul of rows": Case(with_noise("MatMul", 9, 6)),
    "matmul of rows behind a transpose": Case(
        chain(conv(6), lambda b, x: b.transpose(x, 0, 2, 3, 1), with_noise("MatMul", 6, 20), relu)
    ),
    "matmul of tokens": Case(
        chain(lambda b, x: b.reshape(x, 0, 5, -1), with_noise("MatMul", 63, 20)), (2, 5, 7, 9)
    ),
    "matmul from the left": Case(with_noise("MatMul", 6, 7, first=True)),
    "matmul by a vector": Case(with_noise("MatMul", 9)),
    "matmul of (N, C) by a vector": Case(
        chain(with_noise("MatMul", 7), lambda b, x: b.reshape(x, 0, 1)), (3, 7)
    ),
    "matmul from the left by a vector": Case(with_noise("MatMul", 7, first=True)),
    "matmul by a matrix a channel": Case(with_noise("MatMul", 5, 9, 3)),
    "matmul from the left by a matrix a channel": Case(with_noise("MatMul", 1, 5, 3, 7, first=True)),
    "matmul of one channel by a matrix each": Case(
        chain(lambda b, x: b.conv(x, 1, 1), with_noise("MatMul", 4, 9, 3))
    ),
    "attention": Case(attention, (2, 6, 4, 5)),
    "upper triangle": Case(node("Trilu")),
    "lower triangle and more": Case(node("Trilu", 1, upper=0)),
    "product of rows": Case(lambda b, x: b.node("MatMul", x, b.transpose(x, 0, 1, 3, 2))),
    "product, broadcast": Case(broadcast_product),
    "gemm with computed C": Case(
        lambda b, x: b.node("Gemm", x, b.constant(b.noise(7, 6)), b.gemm(x, 6)), (3, 7)
    ),
    "gemm with itself as C": Case(
        chain(gemm(7), lambda b, x: b.relu(b.node("Gemm", x, b.constant(b.noise(7, 7)), x, alpha=0.5))),
        (3, 7),
    ),
}

CASES: dict[str, Case] = {**RESIZES, **SELECTIONS, **SAMPLES, **REDUCTIONS, **NORMALIZATIONS, **PRODUCTS}
