"""Guided backpropagation where rectifiers are written in several ways: Captum's, gbp's, and the true one.

    python benchmarks/rectifiers.py      # needs torch and captum

The networks are alike but for how their rectifiers are written.  Captum acts at `nn.ReLU` modules alone.  The
true map is torch's own reverse pass, in which the gradient of every rectifier is clamped, however it is
written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
import torch
from captum.attr import GuidedBackprop
from onnx import TensorProto, helper, numpy_helper

from gbp import Explainer
from gbp.result.similarity import cosine

warnings.filterwarnings("ignore")
CHANNELS, CLASSES, SIDE = (3, 8, 8, 8), 5, 16


class Guided(torch.autograd.Function):
    """A rectifier from 0 to `top` with the guided gradient."""

    @staticmethod
    def forward(context, x, top):  # type: ignore[no-untyped-def]
        context.save_for_backward((x > 0) & (x < top))
        return x.clamp(0, top)

    @staticmethod
    def backward(context, g):  # type: ignore[no-untyped-def]
        return g.clamp(min=0) * context.saved_tensors[0], None


def _guided(top: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda v: Guided.apply(v, top)


class Net(torch.nn.Module):
    """Three convolutions with rectifiers, and a dense layer."""

    def __init__(self, rectifiers: list[Callable[[torch.Tensor], torch.Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(CHANNELS))
        self.fc = torch.nn.Linear(CHANNELS[-1] * SIDE**2, CLASSES)
        modules = [r for r in rectifiers if isinstance(r, torch.nn.Module)]
        self.modules_of_rectifiers = torch.nn.ModuleList(modules)
        self.rectifiers = rectifiers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, rectify in zip(self.convs, self.rectifiers, strict=True):
            x = rectify(conv(x))
        return self.fc(x.flatten(1))


def exported(net: Net, top: float) -> onnx.ModelProto:
    """The network as an ONNX file, as an exporter writes it: Relu, or Clip for a bounded rectifier."""
    weights = [
        numpy_helper.from_array(value.detach().numpy(), name) for name, value in net.named_parameters()
    ]
    nodes, x = [], "x"
    for k in range(len(net.convs)):
        nodes.append(
            helper.make_node("Conv", [x, f"convs.{k}.weight", f"convs.{k}.bias"], [f"c{k}"], pads=[1] * 4)
        )
        bounded = np.isfinite(top)
        nodes.append(
            helper.make_node(
                "Clip" if bounded else "Relu", [f"c{k}", *(["zero", "top"] if bounded else [])], [f"r{k}"]
            )
        )
        x = f"r{k}"
    weights += [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("zero", 0), ("top", top))]
    nodes += [
        helper.make_node("Flatten", [x], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS[0], SIDE, SIDE]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES]),
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def main() -> None:
    relu = torch.nn.functional.relu
    cases: dict[str, tuple[list[Callable[[torch.Tensor], torch.Tensor]], float]] = {
        "nn.ReLU, one each": ([torch.nn.ReLU() for _ in range(3)], np.inf),
        "F.relu": ([relu] * 3, np.inf),
        "nn.ReLU, the last F.relu": ([torch.nn.ReLU(), torch.nn.ReLU(), relu], np.inf),
        "nn.ReLU6": ([torch.nn.ReLU6() for _ in range(3)], 6.0),
    }
    x = torch.randn(1, CHANNELS[0], SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    print("cosine with the true guided map:")
    print(f"{'rectifiers':28}{'Captum':>8}{'gbp':>8}")
    for name, (rectifiers, top) in cases.items():
        net = Net(rectifiers).eval()
        captum = GuidedBackprop(net).attribute(x.clone().requires_grad_(), target=2).detach().numpy()
        ours = Explainer(exported(net, top)).explain(x.numpy(), rule="guided", target=2).map
        true = Net([_guided(top)] * 3)
        inputs = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(true(inputs)[0, 2], inputs)
        print(f"{name:28}{cosine(captum, gradient.numpy()):8.4f}{cosine(ours, gradient.numpy()):8.4f}")


if __name__ == "__main__":
    main()
