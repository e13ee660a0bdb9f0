"""The ops of classic networks."""

from __future__ import annotations

from builder import NEWEST, Builder

from .case import Case, Net, batchnorm, chain, conv, gemm, node, pool, relu, with_noise


def squeeze_excite(b: Builder, x: str) -> str:
    squeezed = b.node("GlobalAveragePool", x)
    return b.mul(b.clip(b.conv(squeezed, b.shapes[x][1], 1), 0, 6), x)


def plane_attention(b: Builder, x: str) -> str:
    return b.mul(x, b.conv(x, 1, 1))


def five_axes(op: str) -> Net:
    """A tensor of five axes and one that is 1 along two of them."""
    return lambda b, x: b.node(
        op, b.reshape(x, 0, 2, 3, 4, 5), b.reshape(b.node("GlobalMaxPool", x), 0, 2, 3, 1, 1)
    )


def channel_shuffle(b: Builder, x: str) -> str:
    _, C, H, W = b.shapes[x]
    grouped = b.transpose(b.reshape(x, 0, 2, C // 2, H, W), 0, 2, 1, 3, 4)
    return b.reshape(grouped, 0, C, H, W)


def channels_last(net: Net) -> Net:
    """`net`, which works on (N, C, H, W), in a network that is (N, H, W, C) outside."""
    return lambda b, x: b.transpose(net(b, b.transpose(x, 0, 3, 1, 2)), 0, 2, 3, 1)


def one_part(*sizes: int, axis: int = 1) -> Net:
    return lambda b, x: b.split(x, sizes, axis)[1]


def parts_again(b: Builder, x: str) -> str:
    """Two parts of three, one of them twice."""
    first, _, last = b.nodes("Split", x, outputs=3, axis=3)
    return b.concat(last, first, last, axis=2)


def _around(b: Builder, x: str, c: str) -> list[str]:
    return [c, b.conv(x, 8, 1), b.relu(x), c]


SAME = {"auto_pad": "SAME_UPPER"}
LOWER = {"auto_pad": "SAME_LOWER"}

CONVOLUTIONS = {
    "conv": Case(conv(6)),
    "conv without bias": Case(conv(6, bias=False)),
    "conv padded": Case(conv(6, pads=(1, 1, 1, 1))),
    "conv padded on one side": Case(conv(6, pads=(0, 2, 1, 0))),
    "conv padded by more than its kernel": Case(conv(6, 2, pads=(3, 0, 1, 2))),
    "conv with more columns than the image": Case(conv(6, (3, 11), pads=(0, 2, 0, 1))),
    "conv of the whole image": Case(conv(6, (7, 9))),
    "conv larger than the image": Case(conv(6, (9, 11), pads=(1, 1, 1, 1))),
    "conv SAME_UPPER": Case(conv(6, 4, strides=(2, 3), **SAME)),
    "conv SAME_LOWER": Case(conv(6, 4, strides=(2, 3), **LOWER), reference="pads SAME_LOWER as SAME_UPPER"),
    "conv VALID": Case(conv(6, 3, auto_pad="VALID")),
    "conv NOTSET": Case(conv(6, 3, auto_pad="NOTSET", pads=(1, 0, 0, 1))),
    "conv SAME, dilated": Case(conv(6, 3, dilations=(2, 1), **SAME)),
    "conv strided": Case(conv(6, 3, strides=(2, 2), pads=(1, 1, 1, 1))),
    "conv strided beyond its kernel": Case(conv(6, 2, strides=(3, 4))),
    "conv dilated": Case(conv(6, 3, dilations=(2, 3), pads=(2, 3, 2, 3))),
    "conv dilated and strided": Case(conv(6, 3, dilations=(3, 2), strides=(2, 3), pads=(3, 2, 3, 2))),
    "conv 1x7": Case(conv(6, (1, 7), pads=(0, 3, 0, 3))),
    "conv 5x1": Case(conv(6, (5, 1), pads=(2, 0, 2, 0))),
    "conv 1x1": Case(conv(6, 1)),
    "conv 1x1 strided": Case(conv(6, 1, strides=(2, 2))),
    "conv 1x1 padded": Case(conv(6, 1, pads=(1, 1, 1, 1))),
    "conv 1x1 of one pixel": Case(conv(6, 1), (2, 5, 1, 1)),
    "conv of 1 channel": Case(conv(1), (2, 1, 7, 9)),
    "conv of 3 channels": Case(conv(16, 5, strides=(2, 2), pads=(2, 2, 2, 2)), (2, 3, 9, 11)),
    "conv of 17 channels": Case(conv(33), (1, 17, 5, 5)),
    "conv 1x1 of 33 channels": Case(conv(65, 1), (1, 33, 5, 5)),
    "conv in 2 groups": Case(conv(8, group=2), (2, 6, 7, 9)),
    "conv in groups of odd channels": Case(conv(9, group=3, pads=(1, 1, 1, 1)), (2, 15, 7, 9)),
    "conv in groups from 8 to 3 channels": Case(conv(6, group=2), (1, 16, 5, 7)),
    "conv in groups from 3 to 8 channels": Case(conv(16, group=2), (1, 6, 5, 7)),
    "conv in groups of 8 channels": Case(conv(16, group=2, strides=(2, 2)), (1, 16, 7, 7)),
    "conv 1x1 in groups": Case(conv(12, 1, group=3), (2, 6, 7, 9)),
    "conv in groups, strided": Case(conv(10, group=2, strides=(2, 2)), (2, 6, 7, 9)),
    "depthwise": Case(conv(5, group=5, pads=(1, 1, 1, 1))),
    "depthwise strided": Case(conv(5, 4, group=5, strides=(2, 3), **SAME)),
    "depthwise dilated": Case(conv(5, group=5, dilations=(2, 2), pads=(2, 0, 0, 2))),
    "depthwise 1x1": Case(conv(5, 1, group=5)),
    "depthwise larger than the image": Case(conv(5, (9, 11), group=5, pads=(1, 1, 1, 1))),
    "depthwise of 33 channels": Case(conv(33, group=33), (1, 33, 5, 9)),
    "depthwise, 2 filters a channel": Case(conv(10, group=5, pads=(1, 1, 1, 1))),
    "depthwise, 8 filters a channel": Case(conv(24, group=3, strides=(2, 2)), (2, 3, 7, 9)),
}

POOLS = {
    "max": Case(pool("MaxPool", 2, 3, strides=(2, 3))),
    "max overlapping": Case(pool("MaxPool", 3, 3, strides=(2, 2))),
    "max, stride 1": Case(pool("MaxPool", 3, 2)),
    "max padded": Case(pool("MaxPool", 3, 3, strides=(2, 2), pads=(1, 1, 1, 1))),
    "max padded at the end": Case(pool("MaxPool", 3, 3, strides=(2, 2), pads=(0, 0, 1, 1))),
    "max behind a strided conv": Case(
        lambda b, x: pool("MaxPool", 3, 2, strides=(2, 1))(b, b.relu(conv(6, 3, strides=(2, 2))(b, x))),
        (2, 3, 13, 11),
    ),
    "max SAME_UPPER": Case(pool("MaxPool", 3, 4, strides=(2, 3), **SAME)),
    "max SAME_LOWER": Case(pool("MaxPool", 3, 4, strides=(2, 3), **LOWER), reference="loses windows"),
    "max VALID": Case(pool("MaxPool", 3, 3, auto_pad="VALID")),
    "max in ceil mode": Case(pool("MaxPool", 3, 2, strides=(3, 2), ceil_mode=1)),
    "max in ceil mode of a window larger than the image": Case(
        pool("MaxPool", 8, 4, strides=(3, 2), ceil_mode=1)
    ),
    "max in ceil mode without the window in the padding": Case(
        pool("MaxPool", 2, 2, strides=(3, 2), pads=(1, 1, 1, 1), ceil_mode=1)
    ),
    "max dilated": Case(pool("MaxPool", 2, 3, dilations=(3, 2), pads=(1, 2, 0, 1))),
    "max of more than 256 pixels": Case(pool("MaxPool", 17, 17, strides=(2, 2)), (1, 2, 18, 19)),
    "max, opset 8": Case(pool("MaxPool", 3, 3, strides=(2, 2), pads=(0, 0, 1, 1)), opset=8),
    "average": Case(pool("AveragePool", 2, 3, strides=(2, 3))),
    "average padded": Case(pool("AveragePool", 3, 3, strides=(2, 2), pads=(1, 1, 1, 1))),
    "average of padding too": Case(
        pool("AveragePool", 3, 3, strides=(2, 2), pads=(1, 1, 1, 1), count_include_pad=1)
    ),
    "average SAME_UPPER": Case(pool("AveragePool", 3, 4, strides=(2, 3), **SAME)),
    "average SAME_LOWER": Case(pool("AveragePool", 3, 4, strides=(2, 3), **LOWER)),
    "average in ceil mode": Case(
        pool("AveragePool", 3, 2, strides=(3, 2), ceil_mode=1), reference="counts cells beyond the image"
    ),
    "average in ceil mode of a window larger than the image": Case(
        pool("AveragePool", 8, 10, strides=(2, 3), ceil_mode=1), reference="counts cells beyond the image"
    ),
    "average in ceil mode of padding too": Case(
        pool("AveragePool", 3, 2, strides=(3, 2), pads=(1, 1, 0, 1), ceil_mode=1, count_include_pad=1)
    ),
    "average dilated": Case(pool("AveragePool", 2, 3, dilations=(3, 2), pads=(1, 2, 0, 1))),
    "average, opset 7": Case(pool("AveragePool", 3, 3, pads=(1, 0, 0, 1), count_include_pad=1), opset=7),
    "global average": Case(node("GlobalAveragePool")),
    "global average behind conv": Case(chain(conv(40, 1), relu, node("GlobalAveragePool"))),
    "few of a global average behind conv": Case(
        chain(conv(40, 1), relu, node("GlobalAveragePool"), node("Slice", (7,), (9,), (1,)))
    ),
    "global max": Case(node("GlobalMaxPool")),
    "global max of more than 256 pixels": Case(node("GlobalMaxPool"), (1, 2, 17, 18)),
    "mean of the plane": Case(lambda b, x: b.reduce_mean(x, (2, 3))),
    "mean of the plane, axes dropped": Case(lambda b, x: b.reduce_mean(x, (-1, 2), keepdims=0)),
    "mean of the plane, opset 13": Case(lambda b, x: b.reduce_mean(x, (2, 3), keepdims=0), opset=13),
}

LRN_OF_BATCH = "normalizes only as many channels as there are samples"

NORMALIZATIONS = {
    "batchnorm": Case(batchnorm),
    "batchnorm, epsilon": Case(lambda b, x: b.batchnorm(x, epsilon=0.3, momentum=0.5)),
    "batchnorm of (N, C)": Case(batchnorm, (3, 7)),
    "batchnorm, opset 7": Case(lambda b, x: b.batchnorm(x, spatial=1), opset=7, reference="crashes"),
    "batchnorm, opset 14": Case(lambda b, x: b.batchnorm(x, training_mode=0), opset=14),
    "batchnorm after conv": Case(chain(conv(6), batchnorm)),
    "batchnorm after grouped conv": Case(chain(conv(6, group=3), batchnorm), (2, 9, 5, 5)),
    "batchnorm after depthwise": Case(chain(conv(5, group=5), batchnorm)),
    "batchnorm after dense": Case(chain(gemm(), batchnorm), (3, 7)),
    "batchnorm before conv": Case(chain(batchnorm, conv(6))),
    "batchnorm before padded conv": Case(chain(batchnorm, conv(6, pads=(1, 1, 1, 1)))),
    "batchnorm before grouped conv": Case(chain(batchnorm, conv(6, group=3)), (2, 9, 5, 5)),
    "batchnorm before depthwise": Case(chain(batchnorm, conv(5, group=5))),
    "batchnorm before dense": Case(chain(batchnorm, gemm()), (3, 7)),
    "batchnorm twice": Case(chain(batchnorm, batchnorm)),
    "batchnorm behind a rectifier": Case(chain(conv(6), relu, batchnorm, relu)),
    "batchnorm between convs": Case(chain(conv(6), batchnorm, conv(5))),
    "lrn": Case(node("LRN", size=3), reference=LRN_OF_BATCH),
    "lrn, strong": Case(node("LRN", size=5, alpha=0.9, beta=0.6, bias=1.5), (5, 5, 2, 3)),
    "lrn of even size": Case(node("LRN", size=4, alpha=0.9), (5, 5, 2, 3)),
    "lrn wider than the channels": Case(node("LRN", size=9, alpha=0.9), (3, 3, 3, 4)),
    "lrn of 33 channels": Case(node("LRN", size=5, alpha=0.9), (1, 33, 2, 3), reference=LRN_OF_BATCH),
}

DENSE = {
    "gemm": Case(gemm(), (3, 7)),
    "gemm transB": Case(gemm(transB=1), (3, 7)),
    "gemm alpha beta": Case(gemm(alpha=0.5, beta=-2.0), (3, 7)),
    "gemm alpha beta transB": Case(gemm(alpha=-0.5, beta=2.0, transB=1), (3, 7)),
    "gemm without C": Case(lambda b, x: b.node("Gemm", x, b.constant(b.noise(7, 6))), (3, 7)),
    "gemm with a scalar C": Case(gemm(c_shape=()), (3, 7)),
    "gemm with C (1,)": Case(gemm(c_shape=(1,)), (3, 7)),
    "gemm with C (1, M)": Case(gemm(c_shape=(1, 6)), (3, 7)),
    "gemm of one output": Case(gemm(1), (3, 7)),
    "gemm of 33 to 65": Case(gemm(65), (2, 33)),
    "gemm, opset 7": Case(gemm(transB=1), (3, 7), opset=7),
    "matmul": Case(lambda b, x: b.matmul(x, 6), (3, 7)),
    "matmul add": Case(chain(lambda b, x: b.matmul(x, 6), with_noise("Add", 6)), (3, 7)),
    "add matmul": Case(chain(lambda b, x: b.matmul(x, 6), with_noise("Add", 6, first=True)), (3, 7)),
}

CONSTANT_SHAPES = (
    (),
    (1,),
    (9,),
    (7, 1),
    (7, 9),
    (5, 1, 1),
    (1, 5, 1, 1),
    (1, 1, 1, 9),
    (5, 7, 9),
    (1, 5, 1, 9),
)

ELEMENTWISE = {
    **{
        f"{op} constant {list(shape)}{' first' if first else ''}".lower(): Case(
            with_noise(op, *shape, first=first)
        )
        for op in ("Add", "Mul")
        for shape in CONSTANT_SHAPES
        for first in (False, True)
    },
    "mul constant after conv": Case(
        chain(conv(6), with_noise("Mul", 6, 1, 1), with_noise("Add", 1, 6, 1, 1))
    ),
    "row constants before conv": Case(
        chain(with_noise("Mul", 5), with_noise("Add", 5), conv(6)), (2, 5, 5, 5)
    ),
    "row constants after conv": Case(
        chain(conv(5, 1), with_noise("Mul", 5), with_noise("Add", 5)), (2, 5, 5, 5)
    ),
    "row, then channel constants": Case(
        chain(with_noise("Mul", 5), with_noise("Mul", 5, 1, 1)), (2, 5, 5, 5)
    ),
    "x + x": Case(lambda b, x: b.add(x, x)),
    "x · x": Case(lambda b, x: b.mul(x, x)),
    "conv + x": Case(lambda b, x: b.add(b.conv(x, 5, 1), x)),
    "x + conv": Case(lambda b, x: b.add(x, b.conv(x, 5, pads=(1, 1, 1, 1)))),
    "conv + conv": Case(lambda b, x: b.add(b.conv(x, 5, 1), b.conv(x, 5, 1))),
    "conv + x + x": Case(lambda b, x: b.add(b.add(b.conv(x, 5, 1), x), x)),
    "relu(conv + x) + x": Case(lambda b, x: b.add(b.relu(b.add(b.conv(x, 5, 1), x)), x)),
    "relu(conv) + x": Case(lambda b, x: b.add(b.relu(b.conv(x, 5, 1)), x)),
    "conv in odd groups + x": Case(lambda b, x: b.add(b.conv(x, 6, 1, group=2), x), (2, 6, 5, 5)),
    "depthwise + x": Case(lambda b, x: b.add(b.conv(x, 5, 1, group=5), x)),
    "gemm + x": Case(lambda b, x: b.add(b.gemm(x, 7), x), (3, 7)),
    "batchnorm + x": Case(lambda b, x: b.add(b.batchnorm(x), x)),
    "conv · x": Case(lambda b, x: b.mul(b.conv(x, 5, 1), x)),
    "plane + x": Case(lambda b, x: b.add(b.conv(x, 1, 1), x)),
    "x + pooled": Case(lambda b, x: b.add(x, b.node("GlobalAveragePool", x))),
    "row + column": Case(
        lambda b, x: b.add(b.conv(x, 4, (7, 1)), b.conv(x, 4, (1, 9))),
    ),
    "row · column": Case(lambda b, x: b.mul(b.conv(x, 4, (7, 1)), b.conv(x, 4, (1, 9)))),
    "squeeze-excite": Case(squeeze_excite),
    "plane attention": Case(plane_attention),
    "sum of one": Case(node("Sum")),
    "sum of three": Case(lambda b, x: b.node("Sum", x, b.conv(x, 5, 1), b.batchnorm(x))),
    "sum of four, broadcast": Case(
        lambda b, x: b.node("Sum", b.node("GlobalMaxPool", x), b.conv(x, 5, 1), b.conv(x, 1, 1), x)
    ),
    "sum with a constant": Case(lambda b, x: b.node("Sum", x, b.constant(b.noise(5, 1, 1)), b.conv(x, 5, 1))),
    "5 axes + pooled": Case(five_axes("Add"), (2, 6, 4, 5)),
    "5 axes · pooled": Case(five_axes("Mul"), (2, 6, 4, 5)),
    "(N, C) + (N, 1)": Case(lambda b, x: b.add(x, b.gemm(x, 1)), (3, 7)),
    "(N, 1) · (N, C)": Case(lambda b, x: b.mul(b.gemm(x, 1), x), (3, 7)),
}

RECTIFIERS = {
    "relu": Case(relu),
    "relu of (N, C)": Case(relu, (3, 17)),
    "relu of (N, C, L)": Case(lambda b, x: b.relu(b.reshape(x, 0, 5, -1))),
    "relu of 5 axes": Case(lambda b, x: b.relu(b.reshape(x, 0, 5, 7, 3, 3))),
    "relu twice": Case(chain(relu, conv(6), relu, relu)),
    "two relus of one tensor": Case(lambda b, x: b.add(b.relu(x), b.conv(b.relu(x), 5, 1))),
    "relu6": Case(lambda b, x: b.clip(x, 0, 0.7)),
    "relu6, opset 7": Case(lambda b, x: b.clip(x, 0, 0.7), opset=7),
    "relu6, opset 11": Case(lambda b, x: b.clip(x, 0, 0.7), opset=11),
    "relu6 after conv": Case(chain(conv(6), lambda b, x: b.clip(x, 0, 0.7))),
    "clip from 0": Case(chain(conv(6), lambda b, x: b.clip(x, 0))),
    "clip to -1..1": Case(lambda b, x: b.clip(x, -1, 1)),
    "clip to -1..1 after conv": Case(chain(conv(6), lambda b, x: b.clip(x, -1, 1))),
    "clip to 0.1..1, opset 7": Case(lambda b, x: b.clip(x, 0.1, 1), opset=7),
    "clip to ..1": Case(lambda b, x: b.clip(x, hi=1)),
    "clip without bounds": Case(lambda b, x: b.clip(x)),
    "clip, then relu": Case(chain(conv(6), lambda b, x: b.clip(x, -1, 1), relu)),
    "relu, then clip": Case(chain(conv(6), relu, lambda b, x: b.clip(x, 0, 0.7))),
}

SHAPES = {
    "concat": Case(lambda b, x: b.concat(x, b.conv(x, 3, 1))),
    "concat along W": Case(lambda b, x: b.concat(b.conv(x, 5, (1, 3)), x, axis=3)),
    "concat along H, counted from the end": Case(lambda b, x: b.concat(x, b.conv(x, 5, (3, 1)), axis=-2)),
    "concat with itself": Case(lambda b, x: b.concat(x, x)),
    "concat of (N, C)": Case(lambda b, x: b.concat(x, b.gemm(x, 3)), (3, 7)),
    "concat with a constant": Case(lambda b, x: b.concat(x, b.constant(b.noise(1, 3, 7, 9))), (1, 5, 7, 9)),
    "concat of a constant, two, a constant": Case(
        lambda b, x: b.concat(*_around(b, x, b.constant(b.noise(1, 8, 7, 9)))), (1, 8, 7, 9)
    ),
    "concat with a constant along W": Case(
        lambda b, x: b.concat(b.constant(b.noise(1, 5, 7, 2)), x, axis=3), (1, 5, 7, 9)
    ),
    "concat of one": Case(lambda b, x: b.concat(x)),
    "concat of softmaxes, opset 12": Case(
        lambda b, x: b.concat(b.node("Softmax", x, axis=1), b.node("Softmax", x, axis=3), axis=3),
        opset=12,
        reference="sums along one axis at any opset",
    ),
    "split": Case(one_part(2, 3)),
    "split along W": Case(one_part(1, 4, 4, axis=3)),
    "split, opset 7": Case(one_part(2, 3), opset=7),
    "split, opset 13": Case(one_part(2, 3), opset=13),
    "split in equal parts, opset 11": Case(parts_again, opset=11),
    "split in equal parts, num_outputs": Case(
        lambda b, x: b.concat(*b.nodes("Split", x, outputs=2, axis=3, num_outputs=2)[::-1], axis=3)
    ),
    "flatten": Case(node("Flatten", axis=1)),
    "flatten behind conv": Case(chain(conv(6), node("Flatten"))),
    "flatten from the end": Case(node("Flatten", axis=-3)),
    "flatten of the end": Case(lambda b, x: b.flatten(b.reshape(x, 0, 1, -1), axis=1)),
    "reshape": Case(lambda b, x: b.reshape(x, 0, 0, -1)),
    "reshape of the whole": Case(lambda b, x: b.reshape(x, -1, 5 * 7 * 9)),
    "reshape across channels": Case(lambda b, x: b.reshape(x, 0, 9, 5, 7)),
    "reshape behind conv, across channels": Case(
        chain(conv(6), lambda b, x: b.reshape(x, 0, 7, 10, 3), conv(3, 1))
    ),
    "reshape with ones": Case(lambda b, x: b.reshape(x, 0, 1, 5, 1, 63, 1)),
    "channel shuffle": Case(channel_shuffle, (2, 6, 5, 4)),
    "channel shuffle between convs": Case(chain(conv(6), channel_shuffle, conv(5))),
    "transpose": Case(lambda b, x: b.transpose(x, 0, 3, 1, 2)),
    "transpose behind conv": Case(chain(conv(6), lambda b, x: b.transpose(x, 0, 3, 2, 1), conv(4))),
    "rows as columns, reshaped": Case(lambda b, x: b.reshape(b.transpose(x, 0, 2, 3, 1), 0, 5, 7, 9)),
    "channels last": Case(channels_last(conv(6)), (2, 7, 9, 5)),
    "channels last, bias apart": Case(chain(channels_last(conv(6)), with_noise("Add", 6)), (2, 7, 9, 5)),
    "channels last, several": Case(
        chain(channels_last(chain(batchnorm, conv(6))), relu, channels_last(pool("MaxPool", 2, 2))),
        (2, 7, 9, 5),
    ),
    "flatten from channels last": Case(
        chain(channels_last(conv(6)), node("Flatten"), gemm(5), batchnorm), (2, 7, 9, 5)
    ),
    "squeeze": Case(chain(node("GlobalAveragePool"), lambda b, x: b.squeeze(x, 2, 3))),
    "squeeze, opset 7": Case(chain(node("GlobalAveragePool"), lambda b, x: b.squeeze(x, 2, 3)), opset=7),
    "unsqueeze": Case(lambda b, x: b.unsqueeze(x, 1, -1)),
    "unsqueeze, opset 11": Case(lambda b, x: b.unsqueeze(x, 2, 4), opset=11),
    "unsqueezed and pooled": Case(chain(lambda b, x: b.unsqueeze(x, 2, 3), conv(4, 1)), (3, 7)),
    "identity": Case(node("Identity")),
    "identity beside itself": Case(lambda b, x: b.add(x, b.node("Identity", x))),
    "reshape, then itself": Case(
        lambda b, x: b.concat(b.flatten(b.relu(b.reshape(x, 0, 2, 4))), x, b.flatten(b.reshape(x, 0, 4, 2))),
        (3, 8),
    ),
    "reshape beside itself": Case(
        lambda b, x: b.concat(b.flatten(x), b.flatten(b.relu(x)), b.flatten(b.conv(x, 6)))
    ),
    "dropout": Case(lambda b, x: b.dropout(x)),
    "dropout, opset 7": Case(lambda b, x: b.dropout(x), opset=7),
    "dropout with a mask, opset 10": Case(lambda b, x: b.nodes("Dropout", x, outputs=2)[0], opset=10),
    "pad": Case(lambda b, x: b.pad(x, (0, 0, 1, 2, 0, 0, 3, 0))),
    "pad with a value": Case(lambda b, x: b.pad(x, (0, 0, 1, 2, 0, 0, 3, 0), 0.5)),
    "pad of channels": Case(lambda b, x: b.pad(x, (0, 2, 0, 0, 0, 1, 0, 0))),
    "pad, opset 7": Case(lambda b, x: b.pad(x, (0, 0, 1, 2, 0, 0, 3, 0), 0.5), opset=7),
    "pad of two axes": Case(
        lambda b, x: b.node("Pad", x, b.constant((1, 2, 3, 0)), "", b.constant((2, -1))), opset=18
    ),
    "pad before conv": Case(chain(lambda b, x: b.pad(x, (0, 0, 1, 2, 0, 0, 3, 0)), conv(6))),
    "pad before padded conv": Case(
        chain(lambda b, x: b.pad(x, (0, 0, 1, 2, 0, 0, 3, 0)), conv(6, 4, strides=(2, 2), **SAME))
    ),
    "pad with a value before conv": Case(chain(lambda b, x: b.pad(x, [0, 0, 1, 1] * 2, 0.5), conv(6))),
    "pad before depthwise": Case(chain(lambda b, x: b.pad(x, (0, 0, 1, 2, 0, 0, 3, 0)), conv(5, group=5))),
    "pad between batchnorm and conv": Case(
        chain(batchnorm, lambda b, x: b.pad(x, (0, 0, 1, 1, 0, 0, 1, 1)), conv(6))
    ),
    "pad twice before conv": Case(chain(*[lambda b, x: b.pad(x, [0, 0, 1, 1] * 2)] * 2, conv(6))),
    "pad with another reader": Case(
        chain(lambda b, x: b.pad(x, [0, 0, 1, 1] * 2), lambda b, x: b.concat(b.conv(x, 2, **SAME), x))
    ),
    "pad before pool": Case(chain(lambda b, x: b.pad(x, [0, 0, 1, 1] * 2, -1e3), pool("MaxPool", 3, 3))),
}

SOFTMAXES = {
    f"{op} {name}": Case(node(op, **attributes), shape, opset, ends=True, reference=reference)
    for op in ("Softmax", "LogSoftmax")
    for name, attributes, shape, opset, reference in (
        ("of (N, C)", {}, (3, 7), NEWEST, None),
        ("along channels", {"axis": 1}, (2, 5, 3, 4), NEWEST, None),
        ("along the last axis", {}, (2, 5, 3, 4), NEWEST, None),
        ("along H, counted from the end", {"axis": -2}, (2, 5, 3, 4), 13, None),
        ("of (N, C), opset 7", {"axis": 1}, (3, 7), 7, None),
        ("of a sample, opset 12", {}, (2, 5, 3, 4), 12, "sums along one axis at any opset"),
        ("of planes, opset 11", {"axis": 2}, (2, 5, 3, 4), 11, "sums along one axis at any opset"),
        ("of rows, opset 11", {"axis": -1}, (2, 5, 3, 4), 11, None),
        ("of one pixel, opset 9", {}, (2, 5, 1, 1), 9, "sums along one axis at any opset"),
    )
}

CASES: dict[str, Case] = {
    **CONVOLUTIONS,
    **POOLS,
    **NORMALIZATIONS,
    **DENSE,
    **ELEMENTWISE,
    **RECTIFIERS,
    **SHAPES,
    **SOFTMAXES,
}
