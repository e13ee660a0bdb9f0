"""The workloads: networks with seeded weights, and pictures for them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import zoo

#: Those of the bars, which `torch_network` knows as well.
NETWORKS: tuple[str, ...] = (
    "vgg16", "resnet18", "mobilenet_v2", "efficientnet_b0", "densenet201", *zoo.ARCHITECTURES,
)  # fmt: skip
#: Those that have no rectifier: there the plain gradient is measured, because a guided map would be the same.
WITHOUT_RECTIFIERS = ("efficientnet_b0",)
SEED = 0
SIZE = 224


def rule_of(name: str) -> str:
    """The rule that is measured on a network."""
    return "vanilla" if name in WITHOUT_RECTIFIERS else "guided"


def network(name: str, size: int = SIZE) -> onnx.ModelProto:
    """The network up to its logits: a final Softmax is cut off, for all libraries alike."""
    model = zoo.build(name, SEED, size)
    graph = model.graph
    if graph.node[-1].op_type == "Softmax":
        graph.output[0].name = graph.node.pop().input[0]
    return model


def for_batch(model: onnx.ModelProto, n: int) -> bytes:
    """The file of the same network for n samples at a time, for libraries that obey the file's batch of 1."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    graph = other.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for value in (*graph.input, *graph.output):
        if value.name not in stored:  # old files list their weights among the inputs
            value.type.tensor_type.shape.dim[0].dim_value = n
    del graph.value_info[:]
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[0] not in stored:
            sizes = numpy_helper.to_array(stored[node.input[1]]).copy()
            sizes[0] = n
            stored[node.input[1]].CopyFrom(numpy_helper.from_array(sizes, node.input[1]))
    file: bytes = other.SerializeToString()
    return file


def pictures(n: int, size: int = SIZE) -> NDArray[np.float32]:
    """float32 (n, 3, size, size), each another."""
    return np.concatenate([zoo.picture(seed, size) for seed in range(n)])


def picture_file(folder: Path) -> Path:
    """A PNG of 224 × 224 pixels."""
    x = zoo.picture(SEED)[0].transpose(1, 2, 0)
    file = folder / "picture.png"
    Image.fromarray(np.uint8(np.clip(128 + 48 * x, 0, 255))).save(file)
    return file
