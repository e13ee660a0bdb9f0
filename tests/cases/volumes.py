"""Windows over one and three axes; transposed convolution, norms and unpooling over one to three."""

from __future__ import annotations

from typing import Any

import numpy as np
from builder import Builder

from .case import Case, Net, batchnorm, chain, conv, conv_transpose, node, pool, relu

LINE = (2, 5, 19)
VOLUME = (2, 3, 5, 4, 6)
UPPER = {"auto_pad": "SAME_UPPER"}
LOWER = {"auto_pad": "SAME_LOWER"}


def pad(*pads: int) -> Net:
    return lambda b, x: b.pad(x, pads)


def with_itself(net: Net) -> Net:
    return lambda b, x: b.add(net(b, x), x)


CONVOLUTIONS = {
    "conv 1-D": Case(conv(6, pads=(1, 1)), LINE),
    "conv 1-D strided": Case(conv(6, 4, strides=(3,)), LINE),
    "conv 1-D dilated": Case(conv(6, dilations=(4,), pads=(3, 1)), LINE),
    "conv 1-D SAME_LOWER": Case(conv(6, 4, **LOWER), LINE),
    "conv 1-D of the whole": Case(conv(6, 19), LINE),
    "conv 1-D 1": Case(conv(17, 1), LINE),
    "conv 1-D in groups": Case(conv(16, group=2), (2, 16, 9)),
    "conv 1-D of 1 channel": Case(conv(17, 7, pads=(3, 3), strides=(2,)), (2, 1, 40)),
    "conv 1-D, batchnorm": Case(chain(conv(6), batchnorm), LINE),
    "conv 1-D behind batchnorm and pad": Case(chain(batchnorm, pad(0, 0, 2, 0, 0, 1), conv(6)), LINE),
    "conv 1-D + x": Case(with_itself(conv(5, pads=(1, 1))), LINE),
    "conv 1-D depthwise": Case(conv(5, group=5, pads=(1, 0), strides=(2,)), LINE),
    "conv 3-D": Case(conv(6, pads=(1,) * 6), VOLUME),
    "conv 3-D unpadded": Case(conv(6, (2, 3, 3), bias=False), VOLUME),
    "conv 3-D strided": Case(conv(6, strides=(2, 2, 2), pads=(1,) * 6), VOLUME),
    "conv 3-D dilated": Case(conv(6, 2, dilations=(2, 3, 2), pads=(1, 2, 0, 2, 1, 1)), VOLUME),
    "conv 3-D SAME_UPPER": Case(conv(6, (4, 2, 3), strides=(2, 1, 2), **UPPER), VOLUME),
    "conv 3-D SAME_LOWER": Case(conv(6, (4, 2, 3), strides=(3, 1, 2), **LOWER), VOLUME),
    "conv 3-D 1x3x3": Case(conv(6, (1, 3, 3), pads=(0, 1, 1, 0, 1, 1)), VOLUME),
    "conv 3-D 1x3x3, other planes": Case(
        conv(6, (1, 3, 3), strides=(2, 1, 1), pads=(1, 0, 0, 1, 0, 0)), VOLUME
    ),
    "conv 3-D 3x1x1": Case(conv(6, (3, 1, 1), pads=(1, 0, 0, 1, 0, 0)), VOLUME),
    "conv 3-D 1x1x1": Case(conv(17, 1), VOLUME),
    "conv 3-D 1x1x1 strided": Case(conv(6, 1, strides=(2, 2, 3)), VOLUME),
    "conv 3-D strided beyond its kernel": Case(conv(6, 2, strides=(3, 3, 4)), VOLUME),
    "conv 3-D padded by more than its kernel": Case(conv(6, 2, pads=(3, 0, 1, 2, 1, 0)), VOLUME),
    "conv 3-D of the whole": Case(conv(6, (5, 4, 6)), VOLUME),
    "conv 3-D of 17 channels": Case(conv(33, pads=(1,) * 6), (1, 17, 3, 5, 5)),
    "conv 3-D in 2 groups": Case(conv(8, group=2, pads=(1,) * 6), (2, 6, 3, 4, 5)),
    "conv 3-D in groups of 8 channels": Case(conv(16, 2, group=2), (1, 16, 3, 4, 5)),
    "conv 3-D depthwise": Case(conv(3, group=3, pads=(1,) * 6), VOLUME),
    "conv 3-D depthwise, strided": Case(conv(3, 2, group=3, strides=(2, 1, 2), pads=(1,) * 6), VOLUME),
    "conv 3-D, batchnorm": Case(chain(conv(6, pads=(1,) * 6), batchnorm), VOLUME),
    "conv 3-D behind batchnorm": Case(chain(batchnorm, conv(6, 2)), VOLUME),
    "conv 3-D behind pad": Case(chain(pad(0, 0, 1, 2, 0, 0, 0, 1, 0, 1), conv(6, 2)), VOLUME),
    "conv 3-D 1x3x3 behind pad": Case(chain(pad(0, 0, 1, 1, 1, 0, 0, 1, 1, 1), conv(6, (1, 3, 3))), VOLUME),
    "conv 3-D + x": Case(with_itself(conv(3, pads=(1,) * 6)), VOLUME),
    "conv 3-D 1x1x1 + x": Case(with_itself(conv(3, 1)), VOLUME),
    "conv 3-D depthwise + x": Case(with_itself(conv(3, group=3, pads=(1,) * 6)), VOLUME),
    "conv 3-D twice": Case(chain(conv(6, pads=(1,) * 6), relu, conv(5, (3, 1, 1))), VOLUME),
}

GROUPS = "confuses the channels of groups"

TRANSPOSED = {
    "transposed conv": Case(conv_transpose(6), (2, 5, 4, 5)),
    "transposed conv strided": Case(conv_transpose(6, strides=(2, 3)), (2, 5, 4, 5)),
    "transposed conv padded": Case(conv_transpose(6, 4, strides=(2, 2), pads=(1, 1, 1, 1)), (2, 5, 4, 5)),
    "transposed conv padded, stride 1": Case(conv_transpose(6, pads=(1, 0, 2, 1)), (2, 5, 4, 5)),
    "transposed conv padded by more than its kernel": Case(
        conv_transpose(6, 2, strides=(2, 2), pads=(3, 0, 0, 4)), (2, 5, 4, 5)
    ),
    "transposed conv, stride 1, padded by more than its kernel": Case(
        conv_transpose(6, 2, pads=(0, 2, 1, 0)), (2, 5, 4, 5)
    ),
    "transposed conv with output_padding": Case(
        conv_transpose(6, strides=(2, 3), pads=(1, 1, 1, 1), output_padding=(1, 2)), (2, 5, 4, 5)
    ),
    "transposed conv dilated": Case(conv_transpose(6, dilations=(2, 3), strides=(2, 1)), (2, 5, 4, 5)),
    "transposed conv strided beyond its kernel": Case(conv_transpose(6, 1, strides=(2, 3)), (2, 5, 4, 5)),
    "transposed conv of as many taps as steps": Case(conv_transpose(6, 2, strides=(2, 2)), (2, 5, 4, 5)),
    "transposed conv SAME_UPPER": Case(conv_transpose(6, 4, strides=(2, 3), **UPPER), (2, 5, 4, 5)),
    "transposed conv SAME_LOWER": Case(conv_transpose(6, 3, strides=(2, 2), **LOWER), (2, 5, 4, 5)),
    "transposed conv SAME_UPPER, strided beyond its kernel": Case(
        # onnx infers the shape without the rows and columns that no window fills.
        chain(conv_transpose(6, 1, strides=(2, 2), **UPPER), lambda b, x: b.reshape(x, 1, 6, 8, 10)),
        (1, 5, 4, 5),
        reference="fills at the begin",
    ),
    "transposed conv VALID": Case(conv_transpose(6, strides=(2, 2), auto_pad="VALID"), (2, 5, 4, 5)),
    "transposed conv with output_shape": Case(
        conv_transpose(6, strides=(3, 2), output_shape=(10, 8)), (2, 5, 3, 3)
    ),
    "transposed conv with a small output_shape": Case(
        conv_transpose(6, 4, strides=(2, 2), output_shape=(7, 9)), (2, 5, 4, 5), reference="crashes"
    ),
    "transposed conv with output_shape, SAME_UPPER": Case(
        conv_transpose(6, 4, strides=(2, 2), output_shape=(7, 9), **UPPER), (2, 5, 4, 5)
    ),
    "transposed conv without bias": Case(conv_transpose(6, bias=False, strides=(2, 2)), (2, 5, 4, 5)),
    "transposed conv in groups": Case(
        conv_transpose(6, group=2, strides=(2, 2)), (2, 4, 4, 5), reference=GROUPS
    ),
    "transposed conv depthwise": Case(
        conv_transpose(5, group=5, strides=(2, 2)), (2, 5, 4, 5), reference=GROUPS
    ),
    "transposed conv, batchnorm": Case(chain(conv_transpose(6, strides=(2, 2)), batchnorm), (2, 5, 4, 5)),
    "transposed conv 1-D": Case(conv_transpose(6, 4, strides=(2,), pads=(1, 1)), (2, 5, 9)),
    "transposed conv 1-D, stride 1": Case(conv_transpose(6), (2, 5, 9)),
    "transposed conv 3-D": Case(
        conv_transpose(4, strides=(2, 2, 2), pads=(1,) * 6, output_padding=(1, 0, 1)), (2, 3, 2, 3, 3)
    ),
    "transposed conv 3-D, flat": Case(conv_transpose(4, (1, 2, 2), strides=(1, 2, 2)), (2, 3, 3, 2, 3)),
    "transposed conv 3-D, stride 1": Case(conv_transpose(4, 2), (2, 3, 3, 2, 3)),
}


def pools(op: str, **options: Any) -> dict[str, Case]:
    return {
        f"{op} 1-D": Case(pool(op, 3, strides=(2,), pads=(1, 1), **options), LINE),
        f"{op} 1-D SAME_UPPER": Case(pool(op, 4, strides=(3,), **UPPER, **options), LINE),
        f"{op} 3-D": Case(pool(op, 2, 2, 2, strides=(2, 2, 2), **options), VOLUME),
        f"{op} 3-D overlapping": Case(
            pool(op, 3, 3, 2, strides=(1, 2, 2), pads=(1, 1, 0, 1, 1, 1), **options), VOLUME
        ),
        f"{op} 3-D flat": Case(pool(op, 1, 2, 2, strides=(1, 2, 2), **options), VOLUME),
        f"{op} 3-D deep": Case(pool(op, 3, 1, 1, strides=(2, 1, 1), **options), VOLUME),
        f"{op} 3-D every other plane": Case(pool(op, 1, 2, 2, strides=(2, 1, 1), **options), VOLUME),
    }


OTHER_AXES = "takes the maximum over other axes"

POOLS = {
    **pools("MaxPool"),
    **pools("AveragePool"),
    **{f"{name} of padding too": case for name, case in pools("AveragePool", count_include_pad=1).items()},
    **{
        f"{name} in ceil mode": case
        for name, case in pools("MaxPool", ceil_mode=1).items()
        if "SAME" not in name
    },
    "MaxPool 3-D dilated": Case(
        pool("MaxPool", 2, 2, 3, dilations=(3, 2, 2), pads=(1, 0, 1, 1, 1, 0)), VOLUME
    ),
    "AveragePool 3-D dilated": Case(pool("AveragePool", 2, 2, 3, dilations=(3, 2, 2)), VOLUME),
    "AveragePool 3-D in ceil mode": Case(
        pool("AveragePool", 2, 3, 3, strides=(2, 2, 2), ceil_mode=1), VOLUME
    ),
    "MaxPool 1-D of more than 256 pixels": Case(pool("MaxPool", 257, strides=(2,)), (1, 2, 270)),
    "GlobalMaxPool 1-D": Case(node("GlobalMaxPool"), (2, 5, 12), reference=OTHER_AXES),
    "GlobalMaxPool 3-D": Case(node("GlobalMaxPool"), VOLUME, reference=OTHER_AXES),
    "GlobalAveragePool 1-D": Case(node("GlobalAveragePool"), LINE),
    "GlobalAveragePool 3-D": Case(node("GlobalAveragePool"), VOLUME),
    "GlobalAveragePool 3-D behind conv": Case(
        chain(conv(6, pads=(1,) * 6), relu, node("GlobalAveragePool")), VOLUME
    ),
}

PLANES = "takes planes only"

NORMALIZATIONS = {
    "batchnorm 1-D": Case(batchnorm, LINE),
    "batchnorm 3-D": Case(batchnorm, VOLUME),
    "lrn 1-D": Case(node("LRN", size=3, alpha=0.9), (5, 5, 4), reference=PLANES),
    "lrn 3-D": Case(node("LRN", size=3, alpha=0.9), (5, 5, 2, 3, 2), reference=PLANES),
}

NORMS = {
    "lp": Case(pool("LpPool", 2, 3, strides=(2, 3))),
    "lp, overlapping": Case(pool("LpPool", 3, 3, strides=(2, 2))),
    "lp padded": Case(pool("LpPool", 3, 3, strides=(2, 2), pads=(1, 1, 1, 1))),
    "lp SAME_UPPER": Case(pool("LpPool", 3, 4, strides=(2, 3), **UPPER)),
    "lp in ceil mode": Case(
        pool("LpPool", 3, 2, strides=(3, 2), ceil_mode=1),
        reference="makes of windows that hang out what whole ones would be",
    ),
    "lp dilated": Case(pool("LpPool", 2, 3, dilations=(3, 2))),
    "lp, p = 1": Case(pool("LpPool", 3, 2, p=1)),
    "lp, p = 3": Case(pool("LpPool", 3, 2, p=3)),
    "lp, p = 100": Case(pool("LpPool", 3, 2, p=100), reference="overflows"),
    "lp, opset 11": Case(pool("LpPool", 3, 2, p=3), opset=11),
    "lp 1-D": Case(pool("LpPool", 3, strides=(2,)), LINE),
    "lp 3-D": Case(pool("LpPool", 2, 2, 3, strides=(1, 2, 2), p=3), VOLUME),
    "lp 3-D deep": Case(pool("LpPool", 2, 1, 1), VOLUME),
    "global lp": Case(node("GlobalLpPool"), reference="is not there"),
    "global lp, p = 1": Case(node("GlobalLpPool", p=1), reference="is not there"),
    "global lp 1-D, p = 3": Case(node("GlobalLpPool", p=3), LINE, reference="is not there"),
    "global lp 3-D": Case(node("GlobalLpPool"), VOLUME, reference="is not there"),
}


def unpooled(
    *kernel: int, plane: tuple[int, ...] | None = None, storage_order: int = 0, **window: Any
) -> Net:
    """MaxPool and MaxUnpool, to `plane` where the windows do not say; and something in between."""

    def net(b: Builder, x: str) -> str:
        window["kernel_shape"] = kernel
        pooled, indices = b.nodes("MaxPool", x, outputs=2, storage_order=storage_order, **window)
        C = b.shapes[x][1]
        between = b.add(pooled, b.conv(pooled, C, 1))
        if plane is None:
            return b.node("MaxUnpool", between, indices, **window)
        shape = (1, C, *plane)
        return b.reshape(b.node("MaxUnpool", between, indices, b.constant(shape), **window), *shape)

    return net


def placed(*indices: int) -> Net:
    """MaxUnpool by constant indices, as many as x has pixels a channel, in each channel the same."""

    def net(b: Builder, x: str) -> str:
        _, C, H, W = b.shapes[x]
        channels = 4 * H * W * np.arange(C).reshape(1, C, 1, 1)
        constant = b.constant(channels + np.reshape(indices, (1, 1, H, W)))
        return b.node("MaxUnpool", x, constant, kernel_shape=(2, 2), strides=(2, 2))

    return net


POSITIONS = "takes positions for those in the smallest output"

UNPOOLS = {
    "unpool": Case(unpooled(2, 2, strides=(2, 2)), (2, 3, 6, 8)),
    "unpool overlapping": Case(unpooled(3, 3, strides=(1, 2)), (2, 3, 6, 9)),
    "unpool padded": Case(unpooled(3, 3, strides=(2, 2), pads=(1, 1, 1, 1)), (2, 3, 7, 9)),
    "unpool to what was pooled": Case(
        unpooled(2, 2, strides=(2, 2), plane=(7, 9)), (1, 3, 7, 9), reference=POSITIONS
    ),
    "unpool by columns": Case(unpooled(2, 2, strides=(2, 2), storage_order=1), (2, 3, 6, 8)),
    "unpool 1-D": Case(unpooled(3, strides=(3,)), (2, 3, 12)),
    "unpool 3-D": Case(unpooled(2, 2, 2, strides=(2, 1, 2)), (2, 3, 4, 5, 6)),
    "unpool 3-D by columns": Case(unpooled(2, 3, 2, strides=(2, 3, 2), storage_order=1), (2, 3, 4, 6, 4)),
    "unpool to constant places": Case(placed(3, 0, 6, 23, 9, 17), (1, 3, 2, 3)),
    "unpool to places that coincide": Case(placed(3, 0, 3, 23, 0, 3), (1, 3, 2, 3)),
}

FOLDS = {
    "col2im": Case(node("Col2Im", [5, 6], [2, 2]), (2, 12, 20)),
    "col2im apart": Case(node("Col2Im", [10], [3], strides=[2]), (2, 6, 4)),
    "col2im padded": Case(
        node("Col2Im", [7, 8], [3, 2], strides=[2, 1], pads=[1, 0, 1, 1], dilations=[1, 2]), (2, 12, 28)
    ),
}

CASES: dict[str, Case] = {
    **FOLDS,
    **CONVOLUTIONS,
    **TRANSPOSED,
    **POOLS,
    **NORMALIZATIONS,
    **NORMS,
    **UNPOOLS,
}
