"""Make relevance.npz: relevance of the networks of `relevance_networks.py`, in float64 by zennit.

    python tests/golden/make_relevance.py

Needs torch and zennit (0.5.1); the tests need only the file.  For each network it holds `scores`, float64
(N, classes), and the relevance of each sample's best class, float64 (N, 3, H, W), where the relevance of that
class is its score: `<network>/epsilon` and `<network>/epsilon-plus`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus, LayerMapComposite, layer_map_base
from zennit.layer import Sum
from zennit.rules import Epsilon
from zennit.types import Linear

GOLDEN = Path(__file__).resolve().parent
sys.path.insert(0, str(GOLDEN.parent))
import relevance_networks as networks  # noqa: E402


class Network(nn.Module):
    """An ONNX model of a few ops as modules that zennit knows."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.nodes = list(model.graph.node)
        self.input, self.output = model.graph.input[0].name, model.graph.output[0].name
        constants = {
            t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in model.graph.initializer
        }
        self.layers = nn.ModuleDict({node.output[0]: module_of(node, constants) for node in self.nodes})

    def forward(self, x: Tensor) -> Tensor:
        values = {self.input: x}
        for node in self.nodes:
            module, given = (
                self.layers[node.output[0]],
                [values[name] for name in node.input if name in values],
            )
            values[node.output[0]] = module(
                torch.stack(given, dim=-1) if isinstance(module, Sum) else given[0]
            )
        return values[self.output]


def module_of(node: onnx.NodeProto, constants: dict[str, Tensor]) -> nn.Module:
    """The module of one node, with its weights."""
    given: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    weights = [constants[name] for name in node.input if name in constants]
    module: nn.Module
    if node.op_type == "Conv":
        w, b = weights
        module = nn.Conv2d(w.shape[1], w.shape[0], tuple(w.shape[2:]), padding=given.get("pads", [0])[0])
        module.weight.data, module.bias.data = w, b
    elif node.op_type == "Gemm":
        w, b = weights
        w = w if given.get("transB") else w.T
        module = nn.Linear(w.shape[1], w.shape[0])
        module.weight.data, module.bias.data = w.contiguous(), b
    elif node.op_type == "BatchNormalization":
        module = nn.BatchNorm2d(len(weights[0]), eps=given.get("epsilon", 1e-5))
        module.weight.data, module.bias.data, module.running_mean, module.running_var = weights
    else:
        low, high = (float(weights[0]), float(weights[1])) if node.op_type == "Clip" else (0.0, 0.0)
        sizes = given.get("kernel_shape"), given.get("strides")
        module = {
            "Relu": nn.ReLU,
            "Clip": lambda: nn.Hardtanh(low, high),
            "MaxPool": lambda: nn.MaxPool2d(*sizes),
            "AveragePool": lambda: nn.AvgPool2d(*sizes),
            "GlobalAveragePool": lambda: nn.AdaptiveAvgPool2d(1),
            "Flatten": nn.Flatten,
            "Add": Sum,
        }[node.op_type]()
    return module.double().eval()


def composites() -> dict[str, LayerMapComposite]:
    merge = [SequentialMergeBatchNorm()]
    epsilon = LayerMapComposite([*layer_map_base(), (Linear, Epsilon())], canonizers=merge)
    return {"epsilon": epsilon, "epsilon-plus": EpsilonPlus(canonizers=merge)}


def main() -> None:
    entries: dict[str, Any] = {}
    x = torch.from_numpy(networks.samples()).double()
    for name in networks.NETWORKS:
        network = Network(networks.model_of(name))
        scores = network(x).detach()
        best = nn.functional.one_hot(scores.argmax(dim=1), scores.shape[1])
        entries[f"{name}/scores"] = scores.numpy()
        for rule, composite in composites().items():
            with Gradient(network, composite) as attributor:
                _, relevance = attributor(x, scores * best)
            entries[f"{name}/{rule}"] = relevance.numpy()
            print(name, rule, relevance.sum(dim=(1, 2, 3)).tolist(), (scores * best).sum(dim=1).tolist())
    np.savez_compressed(GOLDEN / "relevance.npz", **entries)


if __name__ == "__main__":
    main()
