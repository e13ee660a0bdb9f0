"""Captum's calls on an ONNX file, held to what Captum computed (tests/golden/make_captum.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gbp import Explainer, InputError
from gbp.compat import captum
from gbp.doubt.faithful import infidelity, max_sensitivity

STORED = dict(np.load(Path(__file__).parent / "golden" / "captum.npz"))
X, TARGET = STORED["x"], STORED["target"]


def network() -> onnx.ModelProto:
    """The network of the golden file."""
    nodes = [
        helper.make_node("Conv", ["x", "conv1.weight", "conv1.bias"], ["conv1"], pads=[1] * 4),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        helper.make_node("MaxPool", ["relu1"], ["pool1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pool1", "conv2.weight", "conv2.bias"], ["conv2"]),
        helper.make_node("Relu", ["conv2"], ["relu2"]),
        helper.make_node("Flatten", ["relu2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["fc1"], transB=1),
        helper.make_node("Relu", ["fc1"], ["relu3"]),
        helper.make_node("Gemm", ["relu3", "fc2.weight", "fc2.bias"], ["fc2"], transB=1),
    ]
    weights = [
        numpy_helper.from_array(value, name.removeprefix("weight_"))
        for name, value in STORED.items()
        if name.startswith("weight_")
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 10, 10])
    y = helper.make_tensor_value_info("fc2", TensorProto.FLOAT, ["N", 5])
    return helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)]
    )


MODEL = Explainer(network())


def gradient_steps(method: str) -> Any:
    return captum.IntegratedGradients(MODEL).attribute(
        X, STORED["baseline"], TARGET, n_steps=7, method=method, internal_batch_size=2
    )


CALLS: dict[str, Any] = {
    "saliency": lambda: captum.Saliency(network()).attribute(X, TARGET),
    "saliency_signed": lambda: captum.Saliency(MODEL).attribute(X, target=TARGET.tolist(), abs=False),
    "guided": lambda: captum.GuidedBackprop(MODEL).attribute(X, TARGET),
    "deconvolution": lambda: captum.Deconvolution(MODEL).attribute(X, [(4,), (0,), (2,)]),
    "input_x_gradient": lambda: captum.InputXGradient(MODEL).attribute((X,), TARGET)[0],
    **{
        f"ig_{kind}": lambda kind=kind: gradient_steps(kind)
        for kind in (
            "gausslegendre",
            "riemann_left",
            "riemann_right",
            "riemann_middle",
            "riemann_trapezoid",
        )
    },
    "ig_plain": lambda: captum.IntegratedGradients(MODEL, False).attribute(X, target=1, n_steps=7),
    "ig_delta": lambda: captum.IntegratedGradients(MODEL).attribute(
        X, 0, TARGET, n_steps=7, return_convergence_delta=True
    )[1],
    **{
        kind: lambda kind=kind: captum.NoiseTunnel(captum.Saliency(MODEL)).attribute(
            X, kind, 4, nt_samples_batch_size=4, stdevs=0.3, target=TARGET, abs=False
        )
        for kind in ("smoothgrad", "smoothgrad_sq", "vargrad")
    },
    "layer_activation": lambda: captum.LayerActivation(MODEL, "relu2").attribute(X),
    "layer_gradient": lambda: captum.LayerGradientXActivation(MODEL, "relu2").attribute(X, TARGET),
    "grad_cam": lambda: captum.LayerGradCam(MODEL, "relu2").attribute(X, TARGET),
    "grad_cam_channels": lambda: captum.LayerGradCam(MODEL, 0).attribute(
        X, TARGET, attr_dim_summation=False, relu_attributions=True
    ),
    "guided_grad_cam": lambda: captum.GuidedGradCam(MODEL, "relu2").attribute(X, TARGET),
    "guided_grad_cam_bilinear": lambda: captum.GuidedGradCam(MODEL, "relu2").attribute(
        X, TARGET, interpolate_mode="bilinear"
    ),
    "neuron_gradient": lambda: captum.NeuronGradient(MODEL, "conv2").attribute(X, (3, 1, 2)),
    "neuron_slice": lambda: captum.NeuronGradient(MODEL, "conv2").attribute(X, (3, slice(0, 2), 1)),
    "neuron_guided": lambda: captum.NeuronGuidedBackprop(MODEL, "relu2").attribute(X, (3, 1, 2)),
    "neuron_deconvolution": lambda: captum.NeuronDeconvolution(MODEL, "relu2").attribute(X, (3, 1, 2)),
    "neuron_fc": lambda: captum.NeuronGuidedBackprop(MODEL, "fc1").attribute(X, 4),
    "neuron_ig": lambda: captum.NeuronIntegratedGradients(MODEL, "conv2").attribute(X, (3, 1, 2), n_steps=7),
    "infidelity_False": lambda: infidelity(MODEL, X, signed(), TARGET, STORED["moves"]),
    "infidelity_True": lambda: infidelity(MODEL, X, signed(), TARGET, STORED["moves"], normalize=True),
    "sensitivity": lambda: max_sensitivity(
        lambda x, of: captum.Saliency(MODEL).attribute(x, TARGET[of], abs=False), X
    ),
}


def signed() -> Any:
    return captum.Saliency(MODEL).attribute(X, TARGET, abs=False)


def test_an_array_of_one_number_is_the_target_of_all_samples() -> None:
    saliency, tunnel = captum.Saliency(MODEL), captum.NoiseTunnel(captum.Saliency(MODEL))
    np.testing.assert_array_equal(saliency.attribute(X, np.array([1])), saliency.attribute(X, 1))
    options = {"nt_samples": 2, "seed": 1}
    np.testing.assert_array_equal(
        tunnel.attribute(X, target=np.array([1]), **options), tunnel.attribute(X, target=1, **options)
    )
    with pytest.raises(InputError, match="1 entry for 3 samples"):
        saliency.attribute(X, [1])


def test_every_stored_result_has_a_call() -> None:
    inputs = {"x", "baseline", "target", "moves", "version"}
    assert {*CALLS} == {name for name in STORED if not name.startswith("weight_")} - inputs


@pytest.mark.parametrize("name", CALLS)
def test_equals_captum(name: str) -> None:
    found, true = CALLS[name](), STORED[name]
    assert found.shape == true.shape
    # What is a small difference of large numbers has their rounding.
    atol = 2e-5 if name in ("ig_delta", "vargrad", "infidelity_False", "infidelity_True") else 1e-6
    np.testing.assert_allclose(found, true, rtol=1e-4, atol=atol * np.abs(true).max() + 1e-7)


def test_noise_is_the_same_in_any_batch_of_copies() -> None:
    tunnel = captum.NoiseTunnel(captum.GuidedBackprop(MODEL))
    one, four = (tunnel.attribute(X, nt_samples=4, nt_samples_batch_size=k, target=1) for k in (1, 4))
    np.testing.assert_allclose(one, four, atol=1e-6)
    assert np.abs(one - tunnel.attribute(X, nt_samples=4, target=1, seed=1)).max() > 1e-3


def test_scores_of_several_axes_and_of_one() -> None:
    hidden = MODEL.with_output("conv2")
    one = captum.Saliency(hidden).attribute(X, (3, 1, 2), abs=False)
    np.testing.assert_allclose(one, STORED["neuron_gradient"], atol=1e-5)
    several = captum.Saliency(hidden).attribute(X, [(3, 1, 2), (0, 0, 0), (3, 1, 2)], abs=False)
    assert np.array_equal(several[[0, 2]], one[[0, 2]])
    assert not np.array_equal(several[1], one[1])
    with pytest.raises(InputError, match="target is None"):
        captum.Saliency(hidden).attribute(X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: captum.Saliency(MODEL).attribute(X, 7), "target 7 is no output"),
        (lambda: captum.Saliency(MODEL).attribute(X, [1, 2]), "2 entries for 3 samples"),
        (lambda: captum.Saliency(MODEL).attribute(X, "cat"), "target holds 'cat'"),
        (lambda: captum.Saliency(MODEL).attribute(X, 1.5), r"target holds 1\.5"),
        (lambda: captum.Saliency(MODEL).attribute(X, (1, (2, 3))), "target holds"),
        (lambda: captum.Saliency(MODEL).attribute((X, X), 1), "inputs holds 2 arrays"),
        (lambda: captum.Saliency(MODEL).attribute("cat", 1), "inputs holds"),
        (lambda: captum.GuidedBackprop(MODEL).attribute(X, 1, X), "additional_forward_args.*given="),
        (lambda: captum.IntegratedGradients(MODEL).attribute(X, target=1, method="simpson"), "'simpson'"),
        (lambda: captum.IntegratedGradients(MODEL).attribute(X, np.ones(7), 1), "baselines have shape"),
        (lambda: captum.IntegratedGradients(MODEL).attribute(X, 1e300, 1), "not finite in float32"),
        (lambda: captum.LayerGradCam(MODEL, "relu").attribute(X, 1), "part of 3 tensors"),
        (lambda: captum.LayerGradCam(MODEL, 99).attribute(X, 1), "no layer 99"),
        (
            lambda: captum.LayerGradCam(MODEL, "relu2").attribute(X, 1, attribute_to_layer_input=True),
            "attribute_to_layer_input=True.*before the layer",
        ),
        (lambda: captum.LayerGradCam(MODEL, "relu2", [0]), "device_ids"),
        (lambda: captum.GuidedGradCam(MODEL, "fc1").attribute(X, 1), "planes"),
        (
            lambda: captum.GuidedGradCam(MODEL, "relu2").attribute(X, 1, interpolate_mode="area"),
            "interpolate_mode='area'",
        ),
        (lambda: captum.NeuronGradient(MODEL, "conv2").attribute(X, (9, 0, 0)), r"no neuron of 'conv2'"),
        (lambda: captum.NeuronGradient(MODEL, "conv2").attribute(X, 1), r"no neuron of 'conv2'"),
        (lambda: captum.NeuronGradient(MODEL, "conv2").attribute(X, lambda t: t), "neuron_selector"),
        (lambda: captum.NoiseTunnel(captum.Saliency(MODEL)).attribute(X, "median"), "nt_type is 'median'"),
        (lambda: captum.NoiseTunnel(captum.Saliency(MODEL)).attribute(X, stdevs=-1.0), "stdevs is -1.0"),
        (lambda: captum.IntegratedGradients(MODEL).attribute(X, target=1, n_steps=0), "n_steps is 0"),
        (
            lambda: captum.NoiseTunnel(captum.Saliency(MODEL)).attribute(X, draw_baseline_from_distrib=True),
            "draw_baseline_from_distrib=True",
        ),
    ],
)
def test_what_cannot_be_done_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
