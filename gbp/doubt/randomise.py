"""A model whose weights are drawn anew, layer by layer (Adebayo et al. 2018).

A layer is a node that multiplies by stored weights.  Its weights, and its bias where it has one, are replaced
by draws from a normal distribution, truncated at two standard deviations, as networks are initialised.  The
draws have mean 0, and their deviation is the root mean square of the replaced tensor.  For a tensor of
integers, whose zero point may be elsewhere, they have its own mean and deviation.
The draws of a layer depend on the seed and on the layer, not on the order in which layers are randomised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from .. import InputError, Model, ModelError
from ..arguments import whole_number
from ..importer.load import open_model
from ..importer.proto import label, tensor_values
from ..importer.subgraph import Choice

#: Ops that multiply by weights.  Their constant operands are the layer's parameters.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "FC", "FusedConv", "FusedGemm", "FusedMatMul")
#: Such ops on integers, and the operands that are weights or a bias; others are scales and zero points.
_OF_INTEGERS = {
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "QGemm": (3, 6),
    "DynamicQuantizeMatMul": (1, 4),
    "MatMulIntegerToFloat": (0, 1, 6),
    "QAttention": (1, 2),
}
#: Where the normal distribution is cut off, in standard deviations.
_CUT = 2.0


@dataclass(frozen=True)
class WeightLayer:
    """A node with weights.

    Parameters
    ----------
    name, op
        The node's name and op.
    tensors
        The names of the tensors that hold its parameters.
    """

    name: str
    op: str
    tensors: tuple[str, ...]


class Randomised:
    """A copy of a model whose layers can be randomised and restored.

    Parameters
    ----------
    model
        A path, the bytes of a file, or a ModelProto.
    choice
        The explained tensor, as for `Explainer`.
    seed
        The seed of all draws.

    Raises
    ------
    InputError
        Where the model has no layer with weights, and for a seed that is none.
    GbpError
        Where the model cannot be read.
    """

    def __init__(self, model: Model, choice: Choice, seed: int = 0) -> None:
        self._seed = whole_number("seed", seed, 0)
        source = open_model(model, choice)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(source.model)
        self._tensors: dict[str, onnx.TensorProto] = {}
        for tensor in self.model.graph.initializer:
            if tensor.name in source.weights.pieces:  # they were left in the file
                try:
                    values = source.weights.read(tensor.name, tuple(tensor.dims))
                except (OSError, ValueError):
                    raise ModelError(f"tensor {tensor.name!r} cannot be read.") from None
                tensor.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
            self._tensors[tensor.name] = tensor
        for node in self.model.graph.node:
            if node.op_type == "Constant":
                self._tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
        self.layers: tuple[WeightLayer, ...] = self._find(source.nodes, source.input)
        if not self.layers:
            raise InputError(
                "the model has no layer with weights to randomise.",
                supported=", ".join((*_WEIGHTED, *_OF_INTEGERS)),
            )
        names = {name for layer in self.layers for name in layer.tensors}
        self._originals = {name: self._tensors[name].SerializeToString() for name in names}

    def randomise(self, index: int, draw: int = 0) -> None:
        """Draw the parameters of a layer anew.

        Parameters
        ----------
        index
            The layer: an index into `layers`.
        draw
            Another number gives other draws.
        """
        layer = self.layers[index]
        node = onnx.NodeProto(name=layer.name, op_type=layer.op)
        for k, name in enumerate(layer.tensors):
            tensor = self._tensors[name]
            rng = np.random.default_rng([self._seed, index, k, draw])
            tensor.ParseFromString(self._originals[name])
            values = drawn_like(tensor_values(tensor, name, node), rng)
            if tensor.data_type == TensorProto.BFLOAT16:  # whose values come as float32
                values = (values.view(np.uint32) >> 16).astype(np.uint16)
            fresh = numpy_helper.from_array(values, tensor.name)
            fresh.data_type = tensor.data_type
            tensor.CopyFrom(fresh)

    def restore(self, index: int) -> None:
        """Give a layer its own parameters again.

        Parameters
        ----------
        index
            The layer: an index into `layers`.
        """
        for name in self.layers[index].tensors:
            self._tensors[name].ParseFromString(self._originals[name])

    def _find(self, nodes: Sequence[onnx.NodeProto], image: str) -> tuple[WeightLayer, ...]:
        """The layers in order of computation."""
        depends = {image}
        producers: dict[str, onnx.NodeProto] = {}
        layers = []
        for node in nodes:
            producers.update((name, node) for name in node.output)
            if depends.isdisjoint(node.input):
                continue
            depends.update(node.output)
            if node.op_type not in (*_WEIGHTED, *_OF_INTEGERS):
                continue
            may_be = _OF_INTEGERS.get(node.op_type, range(len(node.input)))
            operands = [name for i, name in enumerate(node.input) if i in may_be]
            constant = [name for name in operands if name and name not in depends]
            found = [self._stored(name, producers) for name in constant]
            tensors = tuple(dict.fromkeys(name for name in found if name is not None))
            if any(len(self._tensors[name].dims) > 1 for name in tensors):
                layers.append(WeightLayer(label(node), node.op_type, tensors))
        return tuple(layers)

    def _stored(self, name: str, producers: dict[str, onnx.NodeProto]) -> str | None:
        """The stored tensor that a constant is made of, through a DequantizeLinear for example."""
        for _ in range(len(producers) + 1):
            if name in self._tensors:
                return name
            if name not in producers or not producers[name].input:
                return None
            name = producers[name].input[0]
        return None


def drawn_like(values: NDArray[np.generic], rng: np.random.Generator) -> NDArray[np.generic]:
    """Draws from a truncated normal distribution of the size of `values`, in their dtype."""
    exact = values.astype(np.float64)
    drawn = rng.standard_normal(exact.shape)
    while (outside := np.abs(drawn) > _CUT).any():
        drawn[outside] = rng.standard_normal(int(outside.sum()))
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)  # type: ignore[type-var]  # integers alone come here
        drawn = np.clip(np.rint(exact.mean() + exact.std() * drawn), info.min, info.max)
        return np.asarray(drawn, values.dtype)
    return (math.sqrt(float(np.mean(exact * exact))) * drawn).astype(values.dtype)
