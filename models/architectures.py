"""Skeletons of the networks that the field names and the onnx package lacks, as exporters write them.

They are torchvision's node for node, and where torchvision has none, their authors'.  BatchNormalization
stands unfolded; each network is of the lowest opset that has its ops, but not below 9, the package's own.

    VGG16            13 convolutions 3×3 in five blocks, three dense layers   (Simonyan & Zisserman 2014)
    ResNet-18        v1: the strided 3×3 first, BatchNormalization, skips     (He et al. 2015)
    Inception v3     1×7 and 7×1 convolutions; no auxiliary head              (Szegedy et al. 2015)
    DenseNet-201     each layer reads all before it                           (Huang et al. 2016)
    Xception         depthwise then pointwise, no rectifier between           (Chollet 2016)
    MobileNet v1     width 1.0: depthwise and pointwise, a ReLU6 after each   (Howard et al. 2017)
    MobileNet v2     width 1.0: inverted residuals, ReLU6, linear bottlenecks (Sandler et al. 2018)
    ShuffleNet v2    width 1.0: half of the channels pass, then a shuffle     (Ma et al. 2018)
    MobileNet v3     large: squeeze-excitation, HardSwish                     (Howard et al. 2019)
    EfficientNet-B0  inverted residuals, squeeze-excitation, SiLU             (Tan & Le 2019)
    RegNetY-400MF    groups of 8 channels, squeeze-excitation                 (Radosavovic et al. 2020)
    YOLOv5n          v6's backbone and neck; a dense layer for the detectors  (Jocher et al. 2021)
    ConvNeXt-Tiny    7×7 depthwise, LayerNormalization, GELU, layer scale     (Liu et al. 2022)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import onnx
from skeleton import IMAGE, Kernel, Skeleton

CLASSES = 1000

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RESNET18_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, first stride; two blocks each
DENSENET201_BLOCKS = (6, 12, 48, 32)  # layers
DENSENET_GROWTH = 32
#: Channels and stride of each pointwise convolution and the depthwise one before it: Table 1 of the paper.
MOBILENET_V1_LAYERS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip
#: Expansion, channels, blocks, first stride: Table 2 of the paper.
MOBILENET_V2_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
#: Kernel, expanded channels, channels, squeezed channels or 0, activation, stride: Table 1 of the paper.
MOBILENET_V3_BLOCKS = (
    (3, 16, 16, 0, "Relu", 1),
    (3, 64, 24, 0, "Relu", 2), (3, 72, 24, 0, "Relu", 1),
    (5, 72, 40, 24, "Relu", 2), (5, 120, 40, 32, "Relu", 1), (5, 120, 40, 32, "Relu", 1),
    (3, 240, 80, 0, "HardSwish", 2), (3, 200, 80, 0, "HardSwish", 1), (3, 184, 80, 0, "HardSwish", 1),
    (3, 184, 80, 0, "HardSwish", 1),
    (3, 480, 112, 120, "HardSwish", 1), (3, 672, 112, 168, "HardSwish", 1),
    (5, 672, 160, 168, "HardSwish", 2),
    (5, 960, 160, 240, "HardSwish", 1), (5, 960, 160, 240, "HardSwish", 1),
)  # fmt: skip
SHUFFLENET_V2_STAGES = ((116, 4), (232, 8), (464, 4))  # channels, units
#: Kernel, expansion, channels, blocks, first stride: Table 1 of the paper.
EFFICIENTNET_B0_STAGES = (
    (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2), (5, 6, 112, 3, 1),
    (5, 6, 192, 4, 2), (3, 6, 320, 1, 1),
)  # fmt: skip
REGNET_Y_400MF_STAGES = ((48, 1), (104, 3), (208, 6), (440, 6))  # channels, blocks
REGNET_GROUP = 8
CONVNEXT_TINY_STAGES = ((96, 3), (192, 3), (384, 9), (768, 3))  # channels, blocks
YOLO_CLASSES = 80


def _vgg16(net: Skeleton) -> str:
    x = IMAGE
    for block in VGG16_BLOCKS:
        for C in block:
            x = net.node("Relu", net.conv(x, C, 3, bias=True))
        x = net.max_pool(x, 2)
    x = net.node("Flatten", x)
    net.channels[x] *= (net.size // 32) ** 2
    x = net.node("Relu", net.dense(x, 4096))
    x = net.node("Relu", net.dense(x, 4096))
    return net.dense(x, CLASSES)


def _resnet18(net: Skeleton) -> str:
    x = net.max_pool(net.node("Relu", net.normalized(IMAGE, 64, 7, 2)), 3, pad=1)
    for C, first_stride in RESNET18_STAGES:
        for stride in (first_stride, 1):
            y = net.node("Relu", net.normalized(x, C, 3, stride))
            y = net.normalized(y, C, 3)
            x = net.node("Relu", net.node("Add", y, _skip(net, x, C, stride)))
    return net.dense(net.pooled(x), CLASSES)


def _skip(net: Skeleton, x: str, C: int, stride: int) -> str:
    """x itself where it has the residual's shape, or else a projection."""
    return x if (net.channels[x], stride) == (C, 1) else net.normalized(x, C, 1, stride)


def _inception_v3(net: Skeleton) -> str:
    def unit(x: str, C: int, kernel: Kernel, stride: int = 1) -> str:
        return net.node("Relu", net.normalized(x, C, kernel, stride, padded=stride == 1))

    def chain(x: str, *units: tuple[int, Kernel]) -> str:
        for C, kernel in units:
            x = unit(x, C, kernel)
        return x

    def smoothed(x: str, C: int) -> str:
        mean = net.node(
            "AveragePool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4, count_include_pad=1
        )
        return unit(mean, C, 1)

    def both_ways(x: str) -> str:
        return net.concat(unit(x, 384, (1, 3)), unit(x, 384, (3, 1)))

    x = unit(IMAGE, 32, 3, 2)
    x = net.node("Relu", net.normalized(x, 32, 3, padded=False))
    x = net.max_pool(unit(x, 64, 3), 3)
    x = unit(x, 80, 1)
    x = net.max_pool(net.node("Relu", net.normalized(x, 192, 3, padded=False)), 3)
    for pooled in (32, 64, 64):
        x = net.concat(
            unit(x, 64, 1),
            chain(x, (48, 1), (64, 5)),
            chain(x, (64, 1), (96, 3), (96, 3)),
            smoothed(x, pooled),
        )
    x = net.concat(
        unit(x, 384, 3, 2),
        unit(chain(x, (64, 1), (96, 3)), 96, 3, 2),
        net.max_pool(x, 3),
    )
    for C in (128, 160, 160, 192):
        x = net.concat(
            unit(x, 192, 1),
            chain(x, (C, 1), (C, (1, 7)), (192, (7, 1))),
            chain(x, (C, 1), (C, (7, 1)), (C, (1, 7)), (C, (7, 1)), (192, (1, 7))),
            smoothed(x, 192),
        )
    x = net.concat(
        unit(unit(x, 192, 1), 320, 3, 2),
        unit(chain(x, (192, 1), (192, (1, 7)), (192, (7, 1))), 192, 3, 2),
        net.max_pool(x, 3),
    )
    for _ in range(2):
        x = net.concat(
            unit(x, 320, 1),
            both_ways(unit(x, 384, 1)),
            both_ways(chain(x, (448, 1), (384, 3))),
            smoothed(x, 192),
        )
    return net.dense(net.pooled(x), CLASSES)


def _densenet201(net: Skeleton) -> str:
    def rectified(x: str) -> str:
        return net.node("Relu", net.norm(x))

    x = net.max_pool(net.node("Relu", net.normalized(IMAGE, 64, 7, 2)), 3, pad=1)
    for block, layers in enumerate(DENSENET201_BLOCKS):
        if block > 0:
            x = net.conv(rectified(x), net.channels[x] // 2, 1)
            x = net.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        features = [x]
        for _ in range(layers):
            y = net.conv(rectified(net.concat(*features)), 4 * DENSENET_GROWTH, 1)
            features.append(net.conv(rectified(y), DENSENET_GROWTH, 3))
        x = net.concat(*features)
    return net.dense(net.pooled(rectified(x)), CLASSES)


def _xception(net: Skeleton) -> str:
    def unit(x: str, C: int, stride: int = 1) -> str:
        return net.node("Relu", net.normalized(x, C, 3, stride, padded=False))

    def separable(x: str, C: int) -> str:
        spatial = net.conv(x, net.channels[x], 3, group=net.channels[x])
        return net.normalized(spatial, C, 1)

    def halved(x: str, y: str) -> str:
        """y, pooled, on a strided projection of x."""
        skip = net.normalized(x, net.channels[y], 1, 2)
        return net.node("Add", net.max_pool(y, 3, pad=1), skip)

    x = unit(unit(IMAGE, 32, 2), 64)
    x = halved(x, separable(net.node("Relu", separable(x, 128)), 128))
    for channels in ((256, 256), (728, 728), *[(728, 728, 728)] * 8, (728, 1024)):
        y = x
        for C in channels:
            y = separable(net.node("Relu", y), C)
        x = net.node("Add", y, x) if len(channels) == 3 else halved(x, y)
    for C in (1536, 2048):
        x = net.node("Relu", separable(x, C))
    return net.dense(net.pooled(x), CLASSES)


def _mobilenet_v1(net: Skeleton) -> str:
    x = net.activation("Relu6", net.normalized(IMAGE, 32, 3, 2))
    for C, stride in MOBILENET_V1_LAYERS:
        x = net.activation("Relu6", net.depthwise(x, 3, stride))
        x = net.activation("Relu6", net.normalized(x, C, 1))
    return net.dense(net.pooled(x), CLASSES)


def _inverted_residual(
    net: Skeleton,
    x: str,
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    activation: str,
    squeezed: int = 0,
    gate: str = "Sigmoid",
) -> str:
    """channels: expanded, out; squeezed: the channels between squeeze and excitation, 0 for neither."""
    expanded, C = channels
    y = x if expanded == net.channels[x] else net.activation(activation, net.normalized(x, expanded, 1))
    y = net.activation(activation, net.depthwise(y, kernel, stride))
    if squeezed:
        y = net.squeeze_excite(y, squeezed, "Silu" if activation == "Silu" else "Relu", gate)
    y = net.normalized(y, C, 1)
    return net.node("Add", x, y) if (net.channels[x], stride) == (C, 1) else y


def _mobilenet_v2(net: Skeleton) -> str:
    x = net.activation("Relu6", net.normalized(IMAGE, 32, 3, 2))
    for expansion, C, blocks, first_stride in MOBILENET_V2_STAGES:
        for stride in _strides(first_stride, blocks):
            x = _inverted_residual(net, x, (net.channels[x] * expansion, C), 3, stride, "Relu6")
    x = net.activation("Relu6", net.normalized(x, 1280, 1))
    return net.dense(net.pooled(x), CLASSES)


def _strides(first: int, blocks: int) -> Sequence[int]:
    return (first, *[1] * (blocks - 1))


def _mobilenet_v3(net: Skeleton) -> str:
    x = net.activation("HardSwish", net.normalized(IMAGE, 16, 3, 2))
    for kernel, expanded, C, squeezed, activation, stride in MOBILENET_V3_BLOCKS:
        x = _inverted_residual(net, x, (expanded, C), kernel, stride, activation, squeezed, "HardSigmoid")
    x = net.activation("HardSwish", net.normalized(x, 960, 1))
    x = net.activation("HardSwish", net.dense(net.pooled(x), 1280))
    return net.dense(x, CLASSES)


def _efficientnet_b0(net: Skeleton) -> str:
    x = net.activation("Silu", net.normalized(IMAGE, 32, 3, 2))
    for kernel, expansion, C, blocks, first_stride in EFFICIENTNET_B0_STAGES:
        for stride in _strides(first_stride, blocks):
            I = net.channels[x]
            x = _inverted_residual(net, x, (I * expansion, C), kernel, stride, "Silu", squeezed=I // 4)
    x = net.activation("Silu", net.normalized(x, 1280, 1))
    return net.dense(net.pooled(x), CLASSES)


def _shufflenet_v2(net: Skeleton) -> str:
    def pointwise(x: str, C: int) -> str:
        return net.node("Relu", net.normalized(x, C, 1))

    x = net.max_pool(net.node("Relu", net.normalized(IMAGE, 24, 3, 2)), 3, pad=1)
    plane = net.size // 4
    for C, units in SHUFFLENET_V2_STAGES:
        plane //= 2
        for stride in _strides(2, units):
            if stride == 1:
                passed, y = net.halves(x)
            else:
                passed, y = pointwise(net.depthwise(x, 3, 2), C // 2), x
            y = pointwise(net.depthwise(pointwise(y, C // 2), 3, stride), C // 2)
            x = net.shuffled(net.concat(passed, y), 2, plane)
    x = net.node("ReduceMean", pointwise(x, 1024), axes=[2, 3], keepdims=0)
    return net.dense(x, CLASSES)


def _regnet_y_400mf(net: Skeleton) -> str:
    x = net.node("Relu", net.normalized(IMAGE, 32, 3, 2))
    for C, blocks in REGNET_Y_400MF_STAGES:
        for stride in _strides(2, blocks):
            skip = _skip(net, x, C, stride)
            y = net.node("Relu", net.normalized(x, C, 1))
            y = net.node("Relu", net.normalized(y, C, 3, stride, group=C // REGNET_GROUP))
            y = net.squeeze_excite(y, net.channels[x] // 4, "Relu", "Sigmoid")
            x = net.node("Relu", net.node("Add", skip, net.normalized(y, C, 1)))
    return net.dense(net.pooled(x), CLASSES)


def _convnext_tiny(net: Skeleton) -> str:
    def channels_last(x: str) -> str:
        return net.node("Transpose", x, perm=[0, 2, 3, 1])

    def channels_first(x: str) -> str:
        return net.node("Transpose", x, perm=[0, 3, 1, 2])

    def norm(x: str) -> str:
        return channels_first(net.layer_norm(channels_last(x)))

    x = norm(net.conv(IMAGE, CONVNEXT_TINY_STAGES[0][0], 4, 4, bias=True))
    for C, blocks in CONVNEXT_TINY_STAGES:
        if net.channels[x] != C:
            x = net.conv(norm(x), C, 2, 2, bias=True)
        for _ in range(blocks):
            y = net.layer_norm(channels_last(net.conv(x, C, 7, group=C, bias=True)))
            y = net.activation("Gelu", net.dense_of_last_axis(y, 4 * C))
            y = channels_first(net.dense_of_last_axis(y, C))
            layer_scale = net.parameter(f"block_{len(net.nodes)}", "scale", C, 1, 1)
            x = net.node("Add", net.node("Mul", layer_scale, y), x)
    return net.dense(net.node("Flatten", norm(net.node("GlobalAveragePool", x))), CLASSES)


def _yolov5n(net: Skeleton) -> str:
    """Scores of 80 classes from the means of what the three detectors read: strides 8, 16 and 32."""

    def unit(x: str, C: int, kernel: int = 1, stride: int = 1) -> str:
        return net.activation("Silu", net.normalized(x, C, kernel, stride))

    def c3(x: str, C: int, bottlenecks: int = 1, *, residual: bool = False) -> str:
        y = unit(x, C // 2)
        for _ in range(bottlenecks):
            z = unit(unit(y, C // 2), C // 2, 3)
            y = net.node("Add", y, z) if residual else z
        return unit(net.concat(y, unit(x, C // 2)), C)

    def sppf(x: str) -> str:
        """Maxima of 5×5, 9×9 and 13×13, each the 5×5 of the one before."""
        scales = [unit(x, net.channels[x] // 2)]
        for _ in range(3):
            scales.append(net.max_pool(scales[-1], 5, stride=1, pad=2))
        return unit(net.concat(*scales), net.channels[x])

    def doubled(x: str) -> str:
        nearest = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}
        return net.node("Resize", x, "", net.constant([1, 1, 2, 2]), **nearest)

    x = c3(unit(unit(IMAGE, 16, 6, 2), 32, 3, 2), 32, 1, residual=True)
    fine = c3(unit(x, 64, 3, 2), 64, 2, residual=True)
    middle = c3(unit(fine, 128, 3, 2), 128, 3, residual=True)
    coarse = unit(sppf(c3(unit(middle, 256, 3, 2), 256, 1, residual=True)), 128)
    middle = unit(c3(net.concat(doubled(coarse), middle), 128), 64)
    fine = c3(net.concat(doubled(middle), fine), 64)
    middle = c3(net.concat(unit(fine, 64, 3, 2), middle), 128)
    coarse = c3(net.concat(unit(middle, 128, 3, 2), coarse), 256)
    means = [net.pooled(x) for x in (fine, middle, coarse)]
    return net.dense(net.concat(*means), YOLO_CLASSES)


class Architecture(NamedTuple):
    """`grow` appends the whole network to a skeleton and returns its scores; `size` is the picture's."""

    grow: Callable[[Skeleton], str]
    size: int = 224
    opset: int = 9


BUILT: dict[str, Architecture] = {
    "vgg16": Architecture(_vgg16),
    "resnet18": Architecture(_resnet18),
    "mobilenet_v2": Architecture(_mobilenet_v2),
    "inception_v3": Architecture(_inception_v3, size=299),
    "densenet201": Architecture(_densenet201),
    "xception": Architecture(_xception, size=299),
    "mobilenet_v1": Architecture(_mobilenet_v1),
    "shufflenet_v2": Architecture(_shufflenet_v2),
    "mobilenet_v3": Architecture(_mobilenet_v3, opset=14),
    "efficientnet_b0": Architecture(_efficientnet_b0),
    "regnet_y_400mf": Architecture(_regnet_y_400mf),
    "yolov5n": Architecture(_yolov5n, size=640, opset=13),
    "convnext_tiny": Architecture(_convnext_tiny, opset=17),
}


def skeleton(name: str, size: int | None = None) -> onnx.ModelProto:
    """The network `BUILT[name]` without weights.

    One float32 (1, 3, size, size) input.  By default size is what the network is known for; others must be
    multiples of 32, which halve five times, from 96 on: Inception v3 leaves one pixel of that.

    Raises ValueError for a size that is neither.
    """
    grow, usual_size, opset = BUILT[name]
    if size not in (None, usual_size) and (size < 96 or size % 32):
        raise ValueError(
            f"{name} is to be had for {usual_size} pixels or multiples of 32 from 96 on, not {size}"
        )
    net = Skeleton(name, size or usual_size, opset)
    return net.model(grow(net))
