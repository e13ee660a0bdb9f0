"""Make the golden maps of the methods: what Captum makes of two networks in float64.

    python tests/golden/make_methods.py            writes the files
    python tests/golden/make_methods.py --gates    tells which part of SqueezeNet's error is tipped gates

Needs torch and Captum (0.9.0 wrote the files), numpy, onnx and pillow; the tests need only the files that
this writes: `methods_demo.npz`, of the trained demo model on two of its scenes, and `methods_squeezenet.npz`,
of the seeded SqueezeNet of `models/zoo.py` on a picture of noise.

The networks are those of `make_golden.py`, as torch modules: one `nn.ReLU` for each Relu node, which
Captum's guided backpropagation and layer methods hook.  The noise of SmoothGrad is drawn by NumPy and put
into Captum's `NoiseTunnel` in the place of torch's, so that the tests can draw the same.

What a file holds, the maps being float64 and flattened in C order:

    x_sha256             str; SHA-256 of the samples, float32 (N, 3, H, W)
    noise_sha256         str; SHA-256 of the noise, float32 (SAMPLES, N, 3, H, W), see `noise_of`
    target               int64 (N,); argmax of the logits, the class that every map explains
    layer                str; the tensor of Grad-CAM
    inner_layer          str; the tensor of `layer_gradient_x_activation` and of `neuron_*`
    unit                 int64 (3,); of `neuron_*`, the strongest unit of the first sample
    <method>_values      float64 (1024,), or the whole map where it is smaller
    <method>_positions   int32; where the map is sampled, ascending
    <method>_norm        float64; ‖m‖₂
    <method>_projections float64 (4,); ⟨sᵢ, m⟩, sᵢ = default_rng(1234 + i).integers(0, 2, m.size) * 2 - 1
    <method>_yardstick   float64; the largest relative L2 error of `TRIALS` runs in which the inputs of
                         rectifiers are disturbed as float32 disturbs them, but ties stay ties: what rounding
                         may do to the map, see `make_golden.py`
    <method>_delta       float64 (N,); of Integrated Gradients, Σ m minus the difference of the scores; the
                         trapezoid has none
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import captum.attr as captum
import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from make_golden import GOLDEN, OPERATORS, Noise, disturbed, of_values, relative_error, zoo
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

MODELS = GOLDEN.parents[1] / "models"
SCENES = ("02_fish.png", "08_mushroom.png")
POSITIONS = 1024
PROJECTIONS = 4
PROJECTION_SEED = 1234
TRIALS = 2
SAMPLES = 6
NOISE = 0.15
NOISE_SEED = 7
STEPS = 20
BASELINE = 0.25
#: The layers of Grad-CAM, and of `layer_gradient_x_activation` and `neuron_*`.
LAYERS = {"demo": ("relu4", "relu2"), "squeezenet": ("r59", "r43")}


class Network(nn.Module):
    """An ONNX model up to its logits, in float64, with a module for each Relu.

    `noise` disturbs the input of each Relu, as in `make_golden.py`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.noise: Noise | None = None
        self.nodes = list(model.graph.node)
        output = model.graph.output[0].name
        if self.nodes[-1].op_type == "Softmax":
            output = self.nodes.pop().input[0]
        self.image, self.scores = model.graph.input[0].name, output
        self.constants = {t.name: _tensor(t) for t in model.graph.initializer}
        self.relus = nn.ModuleDict(
            {node.output[0]: nn.ReLU() for node in self.nodes if node.op_type == "Relu"}
        )

    def forward(self, x: Tensor) -> Tensor:
        tensors = {**self.constants, self.image: x}
        for node in self.nodes:
            inputs = [tensors[name] for name in node.input]
            if node.op_type == "Relu":
                made = self.relus[node.output[0]](disturbed(*inputs, self.noise))
            else:
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                made = OPERATORS[node.op_type](*inputs, **_known(node, attributes))
            tensors[node.output[0]] = made
        return tensors[self.scores].flatten(1)


def _tensor(proto: onnx.TensorProto) -> Tensor:
    tensor = torch.from_numpy(numpy_helper.to_array(proto).copy())
    return tensor.double() if tensor.is_floating_point() else tensor


def _known(node: onnx.NodeProto, attributes: dict[str, Any]) -> dict[str, Any]:
    """Without attributes that say what is so anyway, which torch's exporter writes."""
    usual = {
        "dilations": [1, 1], "ceil_mode": 0, "storage_order": 0, "alpha": 1.0, "beta": 1.0, "momentum": None,
        "auto_pad": b"NOTSET", "training_mode": 0,
    }  # fmt: skip
    if node.op_type == "Conv":
        attributes.setdefault("strides", [1, 1])
    for name, value in usual.items():
        found = attributes.pop(name, value) if not (name == "alpha" and node.op_type == "LRN") else value
        assert value is None or found == value, (node.op_type, name, found)
    return attributes


def noise_of(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normal noise, float32 (SAMPLES, N, …): its deviation is `NOISE` times the range of each sample."""
    drawn = np.random.default_rng(NOISE_SEED).standard_normal((SAMPLES, *x.shape), np.float32)
    flat = x.reshape(len(x), -1)
    deviation = np.float32(NOISE) * (flat.max(axis=1) - flat.min(axis=1))
    noise: NDArray[np.float32] = drawn * deviation.reshape(1, -1, *(1,) * (x.ndim - 1))
    return noise


def tunnel(method: Any, kind: str, x: Tensor, noise: NDArray[np.float32], **options: Any) -> Tensor:
    """`NoiseTunnel` over a method of Captum, with the given noise."""
    drawn = torch.from_numpy(np.ascontiguousarray(np.swapaxes(noise, 0, 1)).reshape(-1, *x.shape[1:]))
    with mock.patch.object(torch, "normal", return_value=drawn.double()):
        made: Tensor = captum.NoiseTunnel(method).attribute(
            x, nt_type=kind, nt_samples=len(noise), stdevs=1.0, **options
        )
    return made


def maps_of(
    network: Network, x: NDArray[np.float32], last: str, middle: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The maps by method, and the other entries of the file."""
    t = torch.from_numpy(x).double()
    with torch.no_grad():
        target = network(t).argmax(dim=1)
    noise = noise_of(x)
    saliency, guided = captum.Saliency(network), captum.GuidedBackprop(network)
    signed = {"target": target, "abs": False}
    maps: dict[str, Tensor] = {
        "saliency": saliency.attribute(t.clone(), target=target),
        "input_x_gradient": captum.InputXGradient(network).attribute(t.clone(), target=target),
        "smoothgrad": tunnel(saliency, "smoothgrad", t, noise, **signed),
        "smoothgrad_squared": tunnel(saliency, "smoothgrad_sq", t, noise, **signed),
        "vargrad": tunnel(saliency, "vargrad", t, noise, **signed),
        "smoothgrad_guided": tunnel(guided, "smoothgrad", t, noise, target=target),
        "guided_grad_cam": captum.GuidedGradCam(network, network.relus[last]).attribute(
            t.clone(), target=target, interpolate_mode="bilinear"
        ),
        "layer_gradient_x_activation": captum.LayerGradientXActivation(
            network, network.relus[middle]
        ).attribute(t.clone(), target=target),
    }
    deltas: dict[str, Any] = {}
    # Captum's trapezoid has weights 1/n, halved at both ends, at n points: they add up to (n - 1) / n.
    whole = {"trapezoid": STEPS / (STEPS - 1)}
    for name, rule in (
        ("gauss_legendre", "gausslegendre"),
        ("trapezoid", "riemann_trapezoid"),
        ("midpoint", "riemann_middle"),
    ):
        for baseline in (0.0, BASELINE):
            key = f"integrated_{name}" + ("_grey" if baseline else "")
            m, delta = captum.IntegratedGradients(network).attribute(
                t.clone(),
                baselines=torch.full_like(t, baseline),
                target=target,
                n_steps=STEPS,
                method=rule,
                return_convergence_delta=True,
            )
            maps[key] = m * whole.get(name, 1.0)
            if name not in whole:
                deltas[f"{key}_delta"] = delta.detach().numpy()
    cam = captum.LayerGradCam(network, network.relus[last])
    maps["layer_grad_cam"] = cam.attribute(t.clone(), target=target)
    maps["grad_cam"] = F.interpolate(
        cam.attribute(t.clone(), target=target, relu_attributions=True),
        x.shape[2:],
        mode="bilinear",
        align_corners=False,
    )
    activation = captum.LayerActivation(network, network.relus[middle]).attribute(t.clone())
    unit = tuple(int(i) for i in np.unravel_index(int(activation[0].argmax()), activation.shape[1:]))
    neuron = (network, network.relus[middle])
    maps["neuron_gradient"] = captum.NeuronGradient(*neuron).attribute(t.clone(), unit)
    maps["neuron_guided"] = captum.NeuronGuidedBackprop(*neuron).attribute(t.clone(), unit)
    entries = {
        "x_sha256": hashlib.sha256(x.tobytes()).hexdigest(),
        "noise_sha256": hashlib.sha256(noise.tobytes()).hexdigest(),
        "target": target.numpy(),
        "layer": last,
        "inner_layer": middle,
        "unit": np.array(unit),
    }
    return maps, entries | deltas


def digest_of(name: str, m: NDArray[np.float64]) -> dict[str, Any]:
    """What is stored of one map."""
    m = m.ravel()
    rngs = [np.random.default_rng(PROJECTION_SEED + i) for i in range(PROJECTIONS)]
    positions = np.arange(m.size)
    if m.size > POSITIONS:
        positions = np.sort(np.random.default_rng(0).choice(m.size, POSITIONS, replace=False))
    return {
        f"{name}_values": m[positions],
        f"{name}_positions": positions.astype(np.int32),
        f"{name}_norm": np.linalg.norm(m),
        f"{name}_projections": np.array([(rng.integers(0, 2, m.size) * 2 - 1) @ m for rng in rngs]),
    }


def demo() -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """The demo model, and scenes as it wants them: (x / 255 - 0.5) / 0.25."""
    scenes = [np.asarray(Image.open(MODELS / "scenes" / scene).convert("RGB"), float) for scene in SCENES]
    x = ((np.stack(scenes) / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)
    return onnx.load(MODELS / "demo.onnx"), np.ascontiguousarray(x, np.float32)


def squeezenet() -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """The seeded SqueezeNet of the zoo, and the zoo's picture."""
    return zoo.build("squeezenet", 0), zoo.picture(0)


NETWORKS: dict[str, Callable[[], tuple[onnx.ModelProto, NDArray[np.float32]]]] = {
    "demo": demo,
    "squeezenet": squeezenet,
}


class Gated(Network):
    """A network in float64 that takes the gates and the switches of gbp's forward run from `values`.

    `differ`: in how many gates and switches its own would be others.
    """

    values: Mapping[str, Tensor]
    differ = 0

    def forward(self, x: Tensor) -> Tensor:
        tensors = {**self.constants, self.image: x}
        for node in self.nodes:
            inputs = [tensors[name] for name in node.input]
            attributes = _known(node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
            if node.op_type == "Relu":
                gate = self.values[node.output[0]] > 0
                self.differ += int((gate != (inputs[0] > 0)).sum())
                made = inputs[0] * gate
            elif node.op_type == "MaxPool":
                top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
                size = attributes["kernel_shape"], attributes["strides"]
                frame, read = (left, right, top, bottom), (*inputs, self.values[node.input[0]])
                own, seen = (F.pad(t, frame, value=-np.inf) for t in read)
                _, switches = F.max_pool2d(seen, *size, return_indices=True)
                made = own.flatten(2).gather(2, switches.flatten(2)).reshape(switches.shape)
                self.differ += int((made != F.max_pool2d(own, *size)).sum())
            else:
                made = OPERATORS[node.op_type](*inputs, **attributes)
            tensors[node.output[0]] = made
        return tensors[self.scores].flatten(1)


def gates() -> None:
    """Compare SmoothGrad on SqueezeNet with float64 as it is, and with gbp's own gates and switches."""
    from gbp import Explainer

    model, x = squeezenet()
    network, gated, explainer = Network(model).eval(), Gated(model).eval(), Explainer(model)
    target = int(network(torch.from_numpy(x).double()).argmax())
    pooled = [node.input[0] for node in network.nodes if node.op_type == "MaxPool"]
    keep = list(dict.fromkeys([*network.relus, *pooled]))
    sums = [torch.zeros(x.shape, dtype=torch.float64) for _ in range(3)]
    for copy in x + noise_of(x):
        with explainer.run(copy, keep) as run:
            gated.values = {name: torch.from_numpy(run.value(name).copy()) for name in keep}
            maps = [torch.from_numpy(run.vjp(np.eye(run.scores.shape[1])[[target]])).double()]
        gated.differ = 0
        for one in (network, gated):
            t = torch.from_numpy(copy).double().requires_grad_()
            maps += torch.autograd.grad(one(t)[0, target], t)
        _tell(f"a copy, {gated.differ} gates and switches differ", maps)
        sums = [total + m for total, m in zip(sums, maps, strict=True)]
    _tell("SmoothGrad", sums)


def _tell(what: str, maps: list[Tensor]) -> None:
    off, off_gated = (relative_error(maps[0], exact) for exact in maps[1:])
    print(f"{what}: gbp is {off:.1e} off float64, and {off_gated:.1e} where that has gbp's", flush=True)


def main() -> None:
    """Write the file of each network."""
    torch.set_num_threads(1)  # the order of a sum may depend on the number of threads
    for name, make in NETWORKS.items():
        model, x = make()
        network = Network(model).eval()
        maps, entries = maps_of(network, x, *LAYERS[name])
        errors: dict[str, list[float]] = {key: [] for key in maps}
        for trial in range(TRIALS):
            network.noise = of_values(trial)
            for key, m in maps_of(network, x, *LAYERS[name])[0].items():
                errors[key].append(relative_error(m, maps[key]))
        for key, m in maps.items():
            entries |= digest_of(key, m.detach().numpy()) | {f"{key}_yardstick": max(errors[key])}
        print({key: f"{max(found):.0e}" for key, found in errors.items()})
        np.savez_compressed(GOLDEN / f"methods_{name}.npz", **entries)
        print(name, entries["target"], entries["layer"], entries["inner_layer"], entries["unit"])


if __name__ == "__main__":
    gates() if sys.argv[1:] == ["--gates"] else main()
