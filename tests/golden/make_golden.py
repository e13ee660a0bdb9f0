"""Make the golden maps: whole networks explained in float64 by torch autograd.

    python tests/golden/make_golden.py [ARCHITECTURE ...]

Needs torch, numpy and onnx; the tests need only the files that this writes, for each architecture
`<architecture>.npz` of a picture without flat areas and `<architecture>_flat.npz` of one with them. The
networks and the pictures are those of `models/zoo.py` at seed 0. The same versions on the same machine write
the same numbers again.

What a file holds, m being the float64 map (1, 3, 224, 224) of a rule, flattened in C order to 150528 values:

    weights_sha256       str; `zoo.fingerprint` of the model, so that a test notices when the builder drifts
    picture_sha256       str; SHA-256 of the picture's raw bytes
    logits               float64 (1000,); what feeds the final Softmax, or the output where there is none
    logits_float32_error float64; relative L2 error of the logits of a float32 run of this script
    target               int64; argmax of the logits, the class that every map explains
    positions            int32 (2048,); where the maps are sampled, ascending
    <rule>_values        float64 (2048,); m[positions]
    <rule>_norm          float64; ‖m‖₂
    <rule>_projections   float64 (8,); ⟨sᵢ, m⟩, the signs being
                         sᵢ = np.random.default_rng(1234 + i).integers(0, 2, m.size) * 2 - 1
    <rule>_float32_error float64; ‖m₃₂ − m‖₂ / ‖m‖₂ of the whole map m₃₂ of a float32 run of this script
    <rule>_yardstick     float64; the largest error of that run and of `TRIALS` runs under noise, see below

What error may an engine make that computes in float32? A gate flips wherever a pre-activation lies within
rounding of 0, and a max-pool's winner wherever two entries lie within rounding of one another; among ten
million of them a few always do. Which ones is a coin toss of the order of summation: torch's own float32 map
of VGG-19 (vanilla) is 1e-6 off in one memory layout and 6e-3 in another, that of Inception v2 6e-7 on one
thread and 8e-3 on two. So one float32 run says little. The yardstick adds float64 runs in which the input of
every rectifier is disturbed by noise of the size of accumulated float32 rounding: what any engine amounts to.
In a flat area whole regions of a tensor are equal, and max-pools meet ties whose first pixel wins. An engine
that gives equal windows unequal values breaks them, which is no rounding that has to be: there equal values
get equal noise.

This is a second implementation of the rules, written to be obvious: ONNX nodes one by one in torch's plain
functions, differentiated by autograd, with one custom function, the rectifier.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent
sys.path.insert(0, str(GOLDEN.parents[1] / "models"))
import zoo  # noqa: E402

SEED = 0
POSITIONS = 2048
PROJECTIONS = 8
PROJECTION_SEED = 1234
TRIALS = 8
# Standard deviation of the noise, relative to the RMS of the tensor. The logits, which have gathered the
# rounding of a whole network, are off by 1e-7 to 1.5e-6 in float32.
NOISE = 1e-6


#: From a tensor in units of its RMS to noise of variance 1.
Noise = Callable[[Tensor], Tensor]


class Rule(NamedTuple):
    """What a rectifier with input x lets pass of the gradient g that arrives at its output."""

    forward_gate: bool  # only where x > 0
    gradient_gate: bool  # only where g > 0


RULES = {
    "vanilla": Rule(forward_gate=True, gradient_gate=False),  # Simonyan et al. 2013
    "deconvnet": Rule(forward_gate=False, gradient_gate=True),  # Zeiler & Fergus 2013
    "guided": Rule(forward_gate=True, gradient_gate=True),  # Springenberg et al. 2014
}


class Rectify(torch.autograd.Function):
    """max(x, 0), and backward the rule. At x = 0 the forward gate is shut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = rule
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        shut = torch.zeros_like(g, dtype=torch.bool)
        if ctx.rule.forward_gate:
            shut |= x <= 0
        if ctx.rule.gradient_gate:
            shut |= g <= 0
        return g.masked_fill(shut, 0), None


# --- the operators, each f(*inputs, **attributes) → output: an attribute unheard of is a TypeError --------


def _spatial_pad(x: Tensor, pads: list[int] | None, value: float) -> Tensor:
    """Pad the two spatial axes; ONNX gives [top, left, bottom, right], torch takes the last axis first."""
    top, left, bottom, right = pads or (0, 0, 0, 0)
    return F.pad(x, (left, right, top, bottom), value=value)


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    kernel_shape: list[int],
    strides: list[int],
    pads: list[int] | None = None,
    group: int = 1,
) -> Tensor:
    assert list(w.shape[2:]) == kernel_shape
    return F.conv2d(_spatial_pad(x, pads, 0.0), w, b, stride=strides, groups=group)


def max_pool(
    x: Tensor, *, kernel_shape: list[int], strides: list[int], pads: list[int] | None = None
) -> Tensor:
    """Padding is −∞ and never wins; torch gives a tie to the first maximum of the window, row-major."""
    return F.max_pool2d(_spatial_pad(x, pads, -torch.inf), kernel_shape, strides)


def average_pool(
    x: Tensor, *, kernel_shape: list[int], strides: list[int], pads: list[int] | None = None
) -> Tensor:
    """The mean over what lies inside the picture: count_include_pad is 0, the default, in all nine."""

    def window_mean(t: Tensor) -> Tensor:
        return F.avg_pool2d(_spatial_pad(t, pads, 0.0), kernel_shape, strides)

    return window_mean(x) / window_mean(torch.ones_like(x[:1, :1]))


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3), keepdim=True)


def lrn(x: Tensor, *, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Return x / (bias + alpha / size · Σ x²)^beta, the sum over the `size` channels around each."""
    below, above = (size - 1) // 2, size // 2
    squares = F.pad(x * x, (0, 0, 0, 0, below, above))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return x / (bias + alpha / size * total) ** beta


def batch_normalization(
    x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    scale, b, mean, var = (t[:, None, None] for t in (scale, b, mean, var))
    return (x - mean) / torch.sqrt(var + epsilon) * scale + b


def gemm(x: Tensor, w: Tensor, b: Tensor, *, transB: int = 0) -> Tensor:
    return x @ (w.T if transB else w) + b


def dropout(x: Tensor, *, ratio: float = 0.5) -> Tensor:
    """Inference: the identity, whatever the ratio."""
    del ratio
    return x


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x.flatten(1), dim=1).reshape(x.shape)  # before opset 13 over all axes from 1 on


def unsqueeze(x: Tensor, *, axes: list[int]) -> Tensor:
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())]
    return x.reshape(sizes)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Conv": conv,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "LRN": lrn,
    "BatchNormalization": batch_normalization,
    "Gemm": gemm,
    "Dropout": dropout,
    "Softmax": softmax,
    "Concat": lambda *xs, axis: torch.cat(xs, dim=axis),
    "Sum": lambda *xs: sum(xs),
    "Add": lambda a, b: a + b,
    "Mul": lambda a, b: a * b,
    "Unsqueeze": unsqueeze,
    "Reshape": reshape,
    "Transpose": lambda x, perm: x.permute(perm),
    "Flatten": lambda x, axis=1: x.flatten(axis) if axis == 1 else x.flatten(0, axis - 1).flatten(1),
}


# --- whole networks -----------------------------------------------------------------------------------------


class Network:
    """An ONNX model, run node by node in one precision, with or without noise at its rectifiers."""

    def __init__(self, model: onnx.ModelProto, dtype: torch.dtype) -> None:
        self._graph = model.graph
        self._constants = {t.name: self._tensor(t, dtype) for t in model.graph.initializer}

    def logits(self, x: Tensor) -> Tensor:
        """What the network says of x (1, 3, 224, 224): (1000,)."""
        return self._run(x, RULES["vanilla"]).flatten()

    def map(self, x: Tensor, rule: Rule, target: int, noise: Noise | None = None) -> Tensor:
        """The map (1, 3, 224, 224) of one logit."""
        x = x.detach().requires_grad_()
        (gx,) = torch.autograd.grad(self._run(x, rule, noise).flatten()[target], x)
        return gx

    def _run(
        self, x: Tensor, rule: Rule, noise: Noise | None = None, table: type[dict[str, Tensor]] = dict
    ) -> Tensor:
        """What feeds the final Softmax, or the output where there is none; `table` holds the tensors."""
        (picture,), (output,) = self._graph.input, self._graph.output
        tensors = table({**self._constants, picture.name: x})
        for node in self._graph.node:
            inputs = [tensors[name] for name in node.input]
            if node.op_type == "Softmax" and node.output[0] == output.name:
                return inputs[0]
            if node.op_type == "Relu":
                tensors[node.output[0]] = Rectify.apply(disturbed(*inputs, noise), rule)
            else:
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                tensors[node.output[0]] = OPERATORS[node.op_type](*inputs, **attributes)
        return tensors[output.name]

    @staticmethod
    def _tensor(proto: onnx.TensorProto, dtype: torch.dtype) -> Tensor:
        tensor = torch.from_numpy(numpy_helper.to_array(proto).copy())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor


def disturbed(x: Tensor, noise: Noise | None) -> Tensor:
    """Return x plus noise of `NOISE` times its RMS, if there is a source of noise."""
    if noise is None:
        return x
    rms = x.detach().square().mean().sqrt()
    return x + NOISE * rms * noise(x.detach() / rms)


def gaussian(seed: int) -> Noise:
    """Normal noise, drawn anew for each element."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def of_values(seed: int) -> Noise:
    """Uniform noise of variance 1 that is a function of the value and its channel, so that ties stay ties."""

    def noise(x: Tensor) -> Tensor:
        channel = torch.arange(x.shape[1], dtype=x.dtype).reshape(1, -1, *(1,) * (x.ndim - 2))
        scrambled = torch.sin(1e9 * x + 78.233 * channel + 12.9898 * (seed + 1)) * 43758.5453
        return math.sqrt(12) * (scrambled - scrambled.floor() - 0.5)

    return noise


def relative_error(got: Tensor, truth: Tensor) -> float:
    """‖got − truth‖₂ / ‖truth‖₂ in float64."""
    return float((got.double() - truth).norm() / truth.norm())


def digest_of(m: NDArray[np.float64], positions: NDArray[np.int32], rule: str) -> dict[str, Any]:
    """What is stored of the flat map m (150528,) of one rule."""
    rngs = [np.random.default_rng(PROJECTION_SEED + i) for i in range(PROJECTIONS)]
    return {
        f"{rule}_values": m[positions],
        f"{rule}_norm": np.linalg.norm(m),
        f"{rule}_projections": np.array([(rng.integers(0, 2, m.size) * 2 - 1) @ m for rng in rngs]),
    }


#: By what is appended to the file's name: the picture, and what noise it is explained under.
PICTURES: dict[str, tuple[Callable[[int], NDArray[np.float32]], Callable[[int], Noise]]] = {
    "": (zoo.picture, gaussian),
    "_flat": (zoo.flat_picture, of_values),
}


def golden(name: str, kind: str) -> dict[str, Any]:
    """Everything that is stored about one architecture and one of `PICTURES`."""
    picture, noise = PICTURES[kind]
    model, x = zoo.build(name, SEED), picture(SEED)
    exact, single = Network(model, torch.float64), Network(model, torch.float32)
    positions = np.sort(np.random.default_rng(SEED).choice(x.size, POSITIONS, replace=False)).astype(np.int32)
    x32, x64 = torch.from_numpy(x), torch.from_numpy(x).double()
    logits32, logits = single.logits(x32), exact.logits(x64)
    target = int(logits.argmax())
    if int(logits32.argmax()) != target:
        raise RuntimeError(f"{name}: float32 and float64 decide for different classes; take another seed")
    entries: dict[str, Any] = {
        "weights_sha256": zoo.fingerprint(model),
        "picture_sha256": hashlib.sha256(x.tobytes()).hexdigest(),
        "logits": logits.numpy(),
        "logits_float32_error": relative_error(logits32, logits),
        "target": target,
        "positions": positions,
    }
    for rule, gates in RULES.items():
        m = exact.map(x64, gates, target)
        error = relative_error(single.map(x32, gates, target), m)
        noises = [noise(SEED + trial) for trial in range(TRIALS)]
        trials = [relative_error(exact.map(x64, gates, target, each), m) for each in noises]
        entries |= digest_of(m.numpy().ravel(), positions, rule)
        entries |= {f"{rule}_float32_error": error, f"{rule}_yardstick": max(error, *trials)}
    return entries


def report(name: str, entries: dict[str, Any]) -> str:
    """One line: class, error of the logits, and for every rule the float32 error and the yardstick."""
    pairs = {rule: (entries[f"{rule}_float32_error"], entries[f"{rule}_yardstick"]) for rule in RULES}
    errors = (f"{rule} {error:.1e} {yardstick:.1e}" for rule, (error, yardstick) in pairs.items())
    head = f"{name:17} class {entries['target']:4}  logits {entries['logits_float32_error']:.1e}"
    return "  ".join([head, *errors])


def main() -> None:
    """Write the files of the architectures on the command line, or of all nine."""
    torch.set_num_threads(1)  # the order of a float32 sum may depend on the number of threads
    for name in sys.argv[1:] or zoo.ARCHITECTURES:
        for kind in PICTURES:
            entries = golden(name, kind)
            np.savez_compressed(GOLDEN / f"{name}{kind}.npz", **entries)
            print(report(name + kind, entries), flush=True)


if __name__ == "__main__":
    main()
