"""Classic architectures with seeded weights: nine of the ONNX package, and thirteen of our own building.

The installed `onnx` package ships AlexNet, ZFNet, VGG-19, Inception v1 and v2, ResNet-50, DenseNet-121,
ShuffleNet and SqueezeNet as graphs of a few kilobytes whose weights are `ConstantOfShape` nodes. `build`
turns one of them into a network that computes something: every parameter becomes an initializer drawn from a
seed. It does the same with the networks that the package lacks, whose graphs are made in `architectures`.
Nothing is downloaded or trained; what tests and benchmarks need is the structure and a sane scale.

    python models/zoo.py vgg19 -o vgg19.onnx
    python models/zoo.py yolov5n --size 320

The same seed gives the same bits on every platform, so that a stored result can be held against them. Hence
weights are He *uniform* and the picture is summed noise: a normal sampler calls the platform's `log` and
`exp`, an FFT rounds as its compiler pleases, but PCG64's uniform floats are exact, and + and × round alike
everywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import architectures
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

#: Those of the onnx package, which have golden maps.
ARCHITECTURES: tuple[str, ...] = (
    "alexnet",
    "zfnet512",
    "vgg19",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "densenet121",
    "shufflenet",
    "squeezenet",
)
#: Those that `architectures` makes.
BUILT: tuple[str, ...] = tuple(architectures.BUILT)

#: Sides of the pictures that the models of the onnx package take, in pixels.
SIZE = 224
# Before version 4 every initializer had to be a graph input too.
IR_VERSION = 8


class Uniform(NamedTuple):
    """The distribution of one parameter: [centre - half_width, centre + half_width)."""

    centre: float
    half_width: float


OFFSET = Uniform(0.0, 0.1)
SCALE = Uniform(1.0, 0.2)
# Centred so that the mean of 1 / variance is 1 and BatchNormalization leaves the scale of its input alone.
VARIANCE = Uniform(1.1, 0.5)
# BatchNormalization does not normalise here, its statistics being drawn and not measured. So at the end of a
# residual branch (in Xception before a MaxPool) it shrinks, or 16 blocks would each double the variance; and
# where no rectifier follows, it makes up for the half that He's gain expects a rectifier to remove. SiLU,
# whose first op is Sigmoid, and HardSwish remove more than half.
SCALE_BEFORE = {
    "Sum": Uniform(0.45, 0.09),
    "Add": Uniform(0.45, 0.09),
    "MaxPool": Uniform(0.45, 0.09),
    "Conv": Uniform(0.7, 0.14),
    "Sigmoid": Uniform(1.06, 0.2),
    "HardSwish": Uniform(1.06, 0.2),
}
# Opens the gates of a squeeze-excitation: half open, each would quarter the variance.
GATE = Uniform(2.0, 1.0)

# A node that reads a tensor, and as which of its inputs.
Reader = tuple[onnx.NodeProto, int]


def build(name: str, seed: int = 0, size: int | None = None) -> onnx.ModelProto:
    """Architecture `name` with weights drawn from `seed`.

    The model takes one float32 (1, 3, size, size) input and gives 1000 scores (YOLOv5n: 80). By default size
    is what the network is known for, mostly 224; those in `BUILT` can be had at others, as
    `architectures.skeleton` says. Its opset is 9, as in the package's files, where its ops allow; the picture
    is its only graph input; its initializers stand in the order in which the nodes read them.

    Raises ValueError if `name` is neither in `ARCHITECTURES` nor in `BUILT`, or not to be had at that size.
    """
    model = _skeleton(name, size)
    graph = model.graph
    integers, shapes, readers = _integers(graph), _parameter_shapes(graph), _readers(graph)
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    for field, items in ((graph.input, inputs), (graph.node, nodes), (graph.initializer, ())):
        del field[:]
        field.extend(items)
    for tensor in readers:
        if tensor in integers:
            graph.initializer.append(integers[tensor])
        elif tensor in shapes:
            values = _draw(tensor, shapes[tensor], _distribution(tensor, shapes[tensor], readers), seed)
            kind, raw = onnx.TensorProto.FLOAT, values.astype("<f4", copy=False).tobytes()
            # Written where it stays: another copy of VGG's weights takes as long as drawing them.
            graph.initializer.add(name=tensor, data_type=kind, dims=values.shape, raw_data=raw)
    model.ir_version = IR_VERSION
    return model


def picture(seed: int = 0, size: int = SIZE) -> NDArray[np.float32]:
    """A stand-in for a photograph: float32 (1, 3, size, size), mean 0, variance 1 over the whole picture.

    Octaves of bilinear noise of equal variance, which is the 1/f amplitude spectrum of natural images, mostly
    shared by the three channels. Values are multiples of 2⁻¹², which absorbs the platform's rounding of the
    mean and the variance.
    """
    rng = np.random.default_rng([zlib.crc32(b"picture"), seed])
    luminance = _octaves(rng, 1, size)
    chrominance = _octaves(rng, 3, size)
    x = luminance + 0.4 * chrominance
    x = (x - x.mean()) / x.std()
    x32: NDArray[np.float32] = (np.rint(x * 4096) / 4096).astype(np.float32)[None]
    return x32


def flat_picture(seed: int = 0, size: int = SIZE) -> NDArray[np.float32]:
    """`picture` within a disc, and flat areas around it: white, black, and a saturated colour.

    Max-pools meet ties there, whose first pixel must win.
    """
    x = picture(seed, size)
    down, across = np.mgrid[:size, :size] / size
    around = (down - 0.5) ** 2 + (across - 0.5) ** 2 > 0.3**2
    for colour, where in (
        ((2.25, 2.25, 2.25), down < 0.5),
        ((-2.0, -2.0, -2.0), (down >= 0.5) & (across < 0.5)),
        ((2.25, -2.0, -2.0), (down >= 0.5) & (across >= 0.5)),
    ):
        x[0, :, around & where] = colour
    return x


def fingerprint(model: onnx.ModelProto) -> str:
    """SHA-256 in hexadecimal over the raw little-endian bytes of all initializers, in the model's order."""
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.raw_data)
    return digest.hexdigest()


def _skeleton(name: str, size: int | None) -> onnx.ModelProto:
    """An architecture without weights: made here, or a file of the installed `onnx` package."""
    if name in BUILT:
        return architectures.skeleton(name, size)
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; there are {', '.join(ARCHITECTURES + BUILT)}")
    if size not in (None, SIZE):
        raise ValueError(f"{name} is a file for pictures of {SIZE} pixels, not {size}")
    file = "bvlc_alexnet" if name == "alexnet" else name
    return onnx.load(
        Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{file}.onnx"
    )


def _integers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Copies of the initializers that are no parameters and stay as they are: the shapes for Reshape."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {name: numpy_helper.from_array(a, name) for name, a in arrays.items() if a.dtype == np.int64}


def _parameter_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """The shape of every float parameter.

    The files keep a few small ones of the trained network (some biases, some batch statistics) and leave the
    rest to ConstantOfShape. All are drawn anew: statistics of trained weights do not fit random ones.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {name: tuple(t.dims) for name, t in stored.items() if t.data_type == onnx.TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = tuple(numpy_helper.to_array(stored[node.input[0]]).tolist())
    return shapes


def _readers(graph: onnx.GraphProto) -> dict[str, Reader]:
    """The first computing node to read each tensor, in the order of reading."""
    readers: dict[str, Reader] = {}
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            for position, tensor in enumerate(node.input):
                readers.setdefault(tensor, (node, position))
    return readers


def _distribution(tensor: str, shape: tuple[int, ...], readers: dict[str, Reader]) -> Uniform:
    """The distribution of a parameter, given what its reader uses it for."""
    node, position = readers[tensor]
    match node.op_type, position:
        case (("Unsqueeze" | "Reshape"), 0):
            return _distribution(node.output[0], shape, readers)
        case "Conv", 1:  # (M, C / group, kH, kW)
            fan_in = math.prod(shape[1:])
            # Nothing stands between the two convolutions of Xception's separable ones.
            return _he(2 * fan_in if _follower(node.output[0], readers) == "Conv" else fan_in)
        case "Conv", 2 if _decides_a_gate(node, readers):
            return GATE
        case "Gemm", 1:  # (out, in), in all of them
            return _he(shape[-1])
        case "MatMul", 1:  # (in, out)
            return _he(shape[0])
        case "BatchNormalization", 1:
            return SCALE_BEFORE.get(_follower(node.output[0], readers), SCALE)
        case "BatchNormalization", 4:
            return VARIANCE
        case (("Mul" | "LayerNormalization"), 1):
            return SCALE
        case "Mul", 0:  # ConvNeXt's layer scale, at the end of a residual branch
            return SCALE_BEFORE["Add"]
        case (("Conv" | "Gemm" | "LayerNormalization"), 2) | ("BatchNormalization", 2 | 3) | ("Add", 0 | 1):
            return OFFSET
    raise ValueError(f"{tensor!r} is input {position} of {node.op_type}, which this builder does not know")


def _follower(tensor: str, readers: dict[str, Reader]) -> str:
    """The op that reads the tensor, "" for the scores; Add also where a SiLU stands between."""
    if tensor not in readers:
        return ""
    follower, _ = readers[tensor]
    if follower.op_type == "Sigmoid":
        product, _ = readers[follower.output[0]]
        if _follower(product.output[0], readers) == "Add":
            return "Add"
    return follower.op_type


def _decides_a_gate(node: onnx.NodeProto, readers: dict[str, Reader]) -> bool:
    """Whether a sigmoid of what the node gives multiplies another tensor; SiLU's multiplies the same."""
    if _follower(node.output[0], readers) not in ("Sigmoid", "HardSigmoid"):
        return False
    sigmoid, _ = readers[node.output[0]]
    product, _ = readers[sigmoid.output[0]]
    return node.output[0] not in product.input


def _he(fan_in: int) -> Uniform:
    """Variance 2 / fan_in (He et al. 2015): a ReLU network keeps the scale of what it is given."""
    return Uniform(0.0, math.sqrt(6 / fan_in))


def _draw(name: str, shape: tuple[int, ...], distribution: Uniform, seed: int) -> NDArray[np.float32]:
    """An initializer's values, from a generator of its own: they depend on its name and the seed only."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    values = rng.random(shape, dtype=np.float32)
    values *= np.float32(2 * distribution.half_width)
    values += np.float32(distribution.centre - distribution.half_width)
    return values


def _octaves(rng: np.random.Generator, channels: int, size: int) -> NDArray[np.float64]:
    """Noise (channels, size, size): bilinear noise on grids of 2, 4, … cells across, summed."""
    total = np.zeros((channels, size, size))
    cells = 2
    while cells < size:
        total += _bilinear(rng.random((channels, cells + 1, cells + 1)) - 0.5, size)
        cells *= 2
    return total


def _bilinear(grid: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """A grid (channels, k + 1, k + 1), stretched to (channels, size, size)."""
    at = (np.arange(size) + 0.5) * ((grid.shape[-1] - 1) / size)
    low = at.astype(np.intp)
    weight = at - low
    rows = grid[:, low] * (1 - weight)[:, None] + grid[:, low + 1] * weight[:, None]
    stretched: NDArray[np.float64] = rows[..., low] * (1 - weight) + rows[..., low + 1] * weight
    return stretched


def main() -> None:
    """Write one architecture to a file."""
    parser = argparse.ArgumentParser(description="Write a classic architecture with seeded weights as ONNX.")
    parser.add_argument("name", choices=ARCHITECTURES + BUILT)
    parser.add_argument("-o", "--output", type=Path, help="default: NAME.onnx")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="of the picture, in pixels; default: the network's own")
    arguments = parser.parse_args()
    output = arguments.output or Path(f"{arguments.name}.onnx")
    onnx.save(build(arguments.name, arguments.seed, arguments.size), output)


if __name__ == "__main__":
    main()
