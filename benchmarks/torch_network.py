"""An ONNX graph as a torch module, for the comparison only: as fast as torch gets it, and open to Captum.

Each node is a module of torch's own, because Captum hooks modules.  It hooks `nn.ReLU` and nothing else: a
ReLU6 is therefore an `nn.ReLU` with a clamp at 6 behind it, which has the same value and the same gradient;
`nn.ReLU6` would silently get the plain gradient.  It supports the part of ONNX that the workloads use.

Nothing but torch is imported, so that a process which loads a saved `Network` pays for nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Clamp(nn.Module):
    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=self.most)


class Concat(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, self.axis)


class Sum(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        total = xs[0]
        for x in xs[1:]:
            total = total + x
        return total


class Product(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


class Constant(nn.Module):
    """The sum or product with a constant."""

    def __init__(self, op: str, value: Tensor) -> None:
        super().__init__()
        self.multiplies = op == "Mul"
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.value
        return x * value if self.multiplies else x + value


class Reshape(nn.Module):
    """To `sizes` behind the batch."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.sizes)


class Permute(nn.Module):
    def __init__(self, axes: list[int]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


class PaddedMean(nn.Module):
    """AveragePool whose padding is one-sided and does not count."""

    def __init__(self, kernel: list[int], strides: list[int], pads: list[int]) -> None:
        super().__init__()
        top, left, bottom, right = pads
        self.pad = nn.ZeroPad2d((left, right, top, bottom))
        self.pool = nn.AvgPool2d(kernel, strides)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.pad(x)) / self.pool(self.pad(torch.ones_like(x[:1, :1])))


# Node attributes, with their defaults, and constant inputs by position → module of the other inputs.
Attributes = dict[str, Any]
Constants = dict[int, Tensor]


def _sides(attributes: Attributes) -> tuple[list[int], list[int]]:
    """Pads before and after, (height, width) each."""
    pads = attributes.get("pads", [0, 0, 0, 0])
    return pads[:2], pads[2:]


def _conv(attributes: Attributes, constants: Constants) -> nn.Module:
    w, bias = constants[1], constants.get(2)
    begin, end = _sides(attributes)
    if begin != end:
        raise NotImplementedError("a convolution with one-sided padding")
    group = attributes.get("group", 1)
    conv = nn.Conv2d(
        w.shape[1] * group,
        w.shape[0],
        tuple(w.shape[2:]),
        tuple(attributes.get("strides", (1, 1))),
        tuple(begin),
        tuple(attributes.get("dilations", (1, 1))),
        group,
        bias is not None,
    )
    return _with(conv, weight=w, bias=bias)


def _gemm(attributes: Attributes, constants: Constants) -> nn.Module:
    w = constants[1] if attributes.get("transB", 0) else constants[1].T
    return _with(nn.Linear(w.shape[1], w.shape[0]), weight=w, bias=constants[2])


def _batch_norm(attributes: Attributes, constants: Constants) -> nn.Module:
    norm = nn.BatchNorm2d(len(constants[1]), eps=attributes.get("epsilon", 1e-5))
    names = ("weight", "bias", "running_mean", "running_var")
    return _with(norm, **{name: constants[i] for i, name in enumerate(names, 1)})


def _with(module: nn.Module, **values: Tensor | None) -> nn.Module:
    state = module.state_dict()
    module.load_state_dict(state | {name: value for name, value in values.items() if value is not None})
    return module


def _max_pool(attributes: Attributes, constants: Constants) -> nn.Module:
    begin, end = _sides(attributes)
    strides = attributes["strides"]
    # With stride - 1 more padding at the end, the last window is the one that ceil_mode adds.
    ceil = [b + s - 1 for b, s in zip(begin, strides, strict=True)] == end
    if not ceil and begin != end:
        raise NotImplementedError("a max-pool with one-sided padding")
    return nn.MaxPool2d(attributes["kernel_shape"], strides, begin, ceil_mode=ceil and begin != end)


def _average_pool(attributes: Attributes, constants: Constants) -> nn.Module:
    begin, end = _sides(attributes)
    kernel, strides = attributes["kernel_shape"], attributes["strides"]
    if begin != end:
        return PaddedMean(kernel, strides, attributes["pads"])
    return nn.AvgPool2d(kernel, strides, begin, count_include_pad=False)


def _lrn(attributes: Attributes, constants: Constants) -> nn.Module:
    a = attributes
    return nn.LocalResponseNorm(a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0))


def _relu6(attributes: Attributes, constants: Constants) -> nn.Module:
    if attributes["min"] != 0:
        raise NotImplementedError("a Clip that is no rectifier")
    return nn.Sequential(nn.ReLU(inplace=False), Clamp(attributes["max"]))


MODULES: dict[str, Any] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LRN": _lrn,
    "Clip": _relu6,
    "Relu": lambda a, c: nn.ReLU(inplace=False),
    "GlobalAveragePool": lambda a, c: nn.AdaptiveAvgPool2d(1),
    "Concat": lambda a, c: Concat(a["axis"]),
    "Sum": lambda a, c: Sum(),
    "Add": lambda a, c: Constant("Add", c[1]) if c else Sum(),
    "Mul": lambda a, c: Constant("Mul", c[1]) if c else Product(),
    "Sigmoid": lambda a, c: nn.Sigmoid(),
    "SiLU": lambda a, c: nn.SiLU(inplace=False),
    "Flatten": lambda a, c: nn.Flatten(a.get("axis", 1)),
    "Reshape": lambda a, c: Reshape(c[1].tolist()[1:]),
    "Transpose": lambda a, c: Permute(a["perm"]),
    "Dropout": lambda a, c: nn.Identity(),
}

# Nodes on parameters alone, computed while converting.
FOLDED: dict[str, Any] = {
    "Unsqueeze": lambda a, c: c[0].reshape(*c[0].shape, *[1] * len(a["axes"])),  # behind the others, always
    "Reshape": lambda a, c: c[0].reshape(c[1].tolist()),
}


Nodes = list[tuple[str, list[str], str, Attributes]]


def _with_silu(nodes: Nodes) -> Nodes:
    """The same with x · Sigmoid(x) as one node, which torch computes at once."""
    readers: dict[str, list[str]] = {}
    for _, inputs, output, _ in nodes:
        for name in inputs:
            readers.setdefault(name, []).append(output)
    of = {output: inputs[0] for op, inputs, output, _ in nodes if op == "Sigmoid"}
    products = {
        output: x
        for op, inputs, output, _ in nodes
        if op == "Mul"
        for s, x in of.items()
        if sorted(inputs) == sorted((s, x)) and readers[s] == [output]
    }
    gone = {s for s, x in of.items() if any(products.get(y) == x for y in readers[s])}
    return [
        ("SiLU", [products[output]], output, {}) if output in products else (op, inputs, output, attributes)
        for op, inputs, output, attributes in nodes
        if output not in gone
    ]


class Network(nn.Module):
    """One module a node, run in order; a tensor is let go after its last reader.

    `nodes`: (op, inputs, output, attributes) in order of computation.  `constants`: the initializers.
    x (N, …) → scores (N, classes).
    """

    def __init__(
        self,
        nodes: Nodes,
        constants: dict[str, Tensor],
        picture: str,
        scores: str,
    ) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.wiring: list[tuple[list[str], str, list[str]]] = []
        self.picture, self.scores = picture, scores
        constants = dict(constants)
        for op, inputs, output, attributes in _with_silu(nodes):
            known = {i: constants[name] for i, name in enumerate(inputs) if name in constants}
            if len(known) == len(inputs):
                constants[output] = FOLDED[op](attributes, known)
            else:
                self.steps.append(MODULES[op](attributes, known))
                self.wiring.append(([name for name in inputs if name not in constants], output, []))
        done: set[str] = {scores}
        for inputs, _, last_read in reversed(self.wiring):
            last_read.extend(set(inputs) - done)
            done.update(inputs)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        tensors = {self.picture: x}
        del x
        for step, (inputs, output, last_read) in zip(self.steps, self.wiring, strict=True):
            tensors[output] = step(*(tensors[name] for name in inputs))
            for name in last_read:
                del tensors[name]
        return tensors[self.scores].flatten(1)
