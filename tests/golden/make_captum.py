"""Stores what Captum computes for a small network, for the drop-ins of `gbp.compat.captum` and `gbp.doubt`.

    python tests/golden/make_captum.py      # needs torch and captum, which the package does not

The network is conv1 → relu1 → pool1 → conv2 → relu2 → flatten → fc1 → relu3 → fc2.  Its weights and inputs
are in the file.  Noise is NumPy's, as that of the drop-in, put in the place of torch's.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import captum
import numpy as np
import torch
from captum import attr, metrics

warnings.filterwarnings("ignore")
OUT = Path(__file__).with_name("captum.npz")
N, CLASSES = 3, 5


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Conv2d(6, 8, 3)
        self.relu1, self.relu2, self.relu3 = (torch.nn.ReLU() for _ in range(3))
        self.pool1 = torch.nn.MaxPool2d(2)
        self.fc1, self.fc2 = torch.nn.Linear(8 * 9, 10), torch.nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu2(self.conv2(self.pool1(self.relu1(self.conv1(x)))))
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))


def noisy(input: torch.Tensor, stdev: float, copies: int) -> torch.Tensor:
    """The noise of `gbp.compat.captum.NoiseTunnel` with seed 0."""
    rng = np.random.default_rng(0)
    noise = np.stack([rng.normal(0, stdev, tuple(input.shape)) for _ in range(copies)], axis=1)
    made = input.detach().numpy()[:, None] + noise
    return torch.from_numpy(made.reshape(-1, *input.shape[1:]))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    net = Net().eval()
    for parameter in net.parameters():  # as float32 has them
        parameter.data = parameter.data.float().double()
    x = torch.randn(N, 3, 10, 10).float().double()
    baseline = torch.randn(1, 3, 10, 10).float().double()
    target = torch.tensor([4, 0, 2])
    attr.NoiseTunnel._add_noise_to_input = staticmethod(noisy)
    approximations = (
        "gausslegendre",
        *(f"riemann_{kind}" for kind in ("left", "right", "middle", "trapezoid")),
    )
    results = {
        "saliency": attr.Saliency(net).attribute(x, target),
        "saliency_signed": attr.Saliency(net).attribute(x, target, abs=False),
        "guided": attr.GuidedBackprop(net).attribute(x, target),
        "deconvolution": attr.Deconvolution(net).attribute(x, target),
        "input_x_gradient": attr.InputXGradient(net).attribute(x, target),
        **{
            f"ig_{kind}": attr.IntegratedGradients(net).attribute(x, baseline, target, n_steps=7, method=kind)
            for kind in approximations
        },
        "ig_plain": attr.IntegratedGradients(net, multiply_by_inputs=False).attribute(x, target=1, n_steps=7),
        "ig_delta": attr.IntegratedGradients(net).attribute(
            x, target=target, n_steps=7, return_convergence_delta=True
        )[1],
        **{
            kind: attr.NoiseTunnel(attr.Saliency(net)).attribute(
                x, nt_type=kind, nt_samples=4, stdevs=0.3, target=target, abs=False
            )
            for kind in ("smoothgrad", "smoothgrad_sq", "vargrad")
        },
        "layer_activation": attr.LayerActivation(net, net.relu2).attribute(x),
        "layer_gradient": attr.LayerGradientXActivation(net, net.relu2).attribute(x, target),
        "grad_cam": attr.LayerGradCam(net, net.relu2).attribute(x, target),
        "grad_cam_channels": attr.LayerGradCam(net, net.conv1).attribute(
            x, target, attr_dim_summation=False, relu_attributions=True
        ),
        "guided_grad_cam": attr.GuidedGradCam(net, net.relu2).attribute(x, target),
        "guided_grad_cam_bilinear": attr.GuidedGradCam(net, net.relu2).attribute(
            x, target, interpolate_mode="bilinear"
        ),
        "neuron_gradient": attr.NeuronGradient(net, net.conv2).attribute(x, (3, 1, 2)),
        "neuron_slice": attr.NeuronGradient(net, net.conv2).attribute(x, (3, slice(0, 2), 1)),
        "neuron_guided": attr.NeuronGuidedBackprop(net, net.relu2).attribute(x, (3, 1, 2)),
        "neuron_deconvolution": attr.NeuronDeconvolution(net, net.relu2).attribute(x, (3, 1, 2)),
        "neuron_fc": attr.NeuronGuidedBackprop(net, net.fc1).attribute(x, 4),
        "neuron_ig": attr.NeuronIntegratedGradients(net, net.conv2).attribute(x, (3, 1, 2), n_steps=7),
    }
    moves = torch.randn(N, 6, 3, 10, 10).float().double()
    shifts = torch.from_numpy(np.random.default_rng(0).uniform(-0.02, 0.02, (N, 10, 3, 10, 10)))
    maps = results["saliency_signed"]

    def perturbed(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = moves.reshape(-1, *x.shape[1:])
        return flat, inputs - flat

    for normalize in (False, True):
        results[f"infidelity_{normalize}"] = metrics.infidelity(
            net, perturbed, x, maps, target=target, n_perturb_samples=6, normalize=normalize
        )
    results["sensitivity"] = metrics.sensitivity_max(
        attr.Saliency(net).attribute,
        x,
        perturb_func=lambda inputs: inputs + shifts.reshape(-1, *x.shape[1:]).float().double(),
        target=target,
        abs=False,
    )
    arrays = {
        f"weight_{name}": value.detach().numpy().astype(np.float32) for name, value in net.named_parameters()
    }
    arrays |= {name: value.detach().numpy() for name, value in results.items()}
    arrays |= {"x": x.numpy().astype(np.float32), "baseline": baseline.numpy().astype(np.float32)}
    arrays |= {"target": target.numpy(), "moves": moves.numpy().astype(np.float32)}
    np.savez_compressed(OUT, version=captum.__version__, **arrays)
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
