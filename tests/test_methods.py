"""gbp.methods: against Captum's float64 results, by their definitions, and what they refuse.

The stored results come from `golden/make_methods.py`, which also says what the files hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import zoo
from builder import Builder
from numpy.typing import NDArray
from PIL import Image

from gbp import Attribution, Channel, Contrast, Explainer, Preprocess, Several, Top, Unit, methods
from gbp.errors import InputError
from gbp.inputs import Batch
from gbp.methods.interpolation import interpolated
from gbp.methods.noise import smoothgrad, smoothgrad_squared, vargrad
from gbp.methods.path import QUADRATURES, integrated_gradients
from gbp.runtime.session import Session

ROOT = Path(__file__).resolve().parent.parent
SCENES = [ROOT / "models" / "scenes" / name for name in ("02_fish.png", "08_mushroom.png")]
#: A map may be off by the bar, or by as much as the reference itself changes where the inputs of its
#: rectifiers are disturbed by 1e-6 of their size: a single gate that tips moves a map more than all rounding.
BOUND = 1e-4
#: The projection of an error of norm e on random signs has mean 0 and standard deviation e.
DEVIATIONS = 6
PROJECTION_SEED = 1234
STEPS, SHARE, NOISE_SEED, SAMPLES = 20, 0.15, 7, 6

Method = Callable[..., Attribution]


def noise_of(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The noise of the stored results."""
    drawn = np.random.default_rng(NOISE_SEED).standard_normal((SAMPLES, *x.shape), np.float32)
    flat = x.reshape(len(x), -1)
    deviation = np.float32(SHARE) * (flat.max(axis=1) - flat.min(axis=1))
    noise: NDArray[np.float32] = drawn * deviation.reshape(1, -1, *(1,) * (x.ndim - 1))
    return noise


class Case:
    """One network with its samples, and what is stored of it."""

    def __init__(self, name: str) -> None:
        with np.load(ROOT / "tests" / "golden" / f"methods_{name}.npz") as file:
            self.stored = dict(file)
        if name == "demo":
            self.explainer = Explainer(ROOT / "models" / "demo.onnx")
            self.x = self.explainer.prepare(SCENES)
        else:
            self.explainer, self.x = Explainer(zoo.build(name)), zoo.picture()
        self.target = self.stored["target"]

    def maps(self) -> dict[str, Attribution]:
        """The map of every stored method."""
        noise, layer, inner = noise_of(self.x), str(self.stored["layer"]), str(self.stored["inner_layer"])
        arguments: dict[str, tuple[Method, dict[str, Any]]] = {
            "saliency": (methods.saliency, {}),
            "smoothgrad": (smoothgrad, {"noise": noise}),
            "smoothgrad_squared": (smoothgrad_squared, {"noise": noise}),
            "vargrad": (vargrad, {"noise": noise}),
            "smoothgrad_guided": (smoothgrad, {"noise": noise, "rule": "guided"}),
            "grad_cam": (methods.grad_cam, {"layer": layer}),
            "layer_grad_cam": (methods.layer_grad_cam, {"layer": layer}),
            "guided_grad_cam": (methods.guided_grad_cam, {"layer": layer}),
            "layer_gradient_x_activation": (
                methods.layer_gradient,
                {"layer": inner, "times_activation": True},
            ),
        }
        for quadrature in QUADRATURES:
            for baseline, suffix in ((0.0, ""), (0.25, "_grey")):
                arguments[f"integrated_{quadrature.replace('-', '_')}{suffix}"] = (
                    integrated_gradients,
                    {"steps": STEPS, "baseline": baseline, "quadrature": quadrature},
                )
        arguments["input_x_gradient"] = Explainer.explain, {"rule": "input-x-gradient"}
        found = {
            name: method(self.explainer, self.x, target=self.target, **options)
            for name, (method, options) in arguments.items()
        }
        with self.explainer.run(self.x, keep=[inner]) as run:
            seed = np.zeros_like(run.value(inner))
            seed[:, *self.stored["unit"]] = 1
            for name, rule in (("neuron_gradient", "vanilla"), ("neuron_guided", "guided")):
                found[name] = run.attribution(run.vjp(seed, rule, of=inner), self.target, rule)
        return found


@pytest.fixture(scope="module", params=("demo", "squeezenet"))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_captum_agrees(case: Case, report: Callable[[str], None]) -> None:
    """Every method, by sampled values, norm and projections; and the completeness error."""
    assert hashlib.sha256(case.x.tobytes()).hexdigest() == str(case.stored["x_sha256"])
    assert hashlib.sha256(noise_of(case.x).tobytes()).hexdigest() == str(case.stored["noise_sha256"])
    worst = 0.0
    for name, found in case.maps().items():
        stored = {
            key: case.stored[f"{name}_{key}"]
            for key in ("values", "positions", "norm", "projections", "yardstick")
        }
        m, norm = found.map.astype(np.float64).ravel(), float(stored["norm"])
        bound = max(BOUND, float(stored["yardstick"]))
        got = m[stored["positions"]]
        error = np.linalg.norm(got - stored["values"]) / np.linalg.norm(stored["values"])
        assert error <= bound, name
        assert abs(np.linalg.norm(m) / norm - 1) <= bound, name
        rngs = [np.random.default_rng(PROJECTION_SEED + i) for i in range(len(stored["projections"]))]
        projected = np.array([(rng.integers(0, 2, m.size) * 2 - 1) @ m for rng in rngs])
        assert np.abs(projected - stored["projections"]).max() <= DEVIATIONS * bound * norm, name
        worst = max(worst, float(error))
        if f"{name}_delta" in case.stored:
            delta, difference = case.stored[f"{name}_delta"], found.details["score_difference"]
            off = np.abs(found.details["completeness_error"] - delta) / np.abs(difference)
            assert off.max() <= bound, name
    report(f"methods against Captum's float64 results: worst relative error {worst:.1e}")


# ------------------------------------------------------------------------------------------- one by one


@pytest.fixture(scope="module")
def demo() -> Explainer:
    return Explainer(ROOT / "models" / "demo.onnx")


@pytest.fixture(scope="module")
def tiny() -> Explainer:
    """Two convolutions on 3 × 8 × 9 pixels, and 4 classes."""
    b = Builder()
    y = b.relu(b.conv(b.input(1, 3, 8, 9), 6, pads=[1, 1, 1, 1]))
    y = b.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return Explainer(b.model(b.head(b.relu(b.conv(y, 5, pads=[1, 1, 1, 1])))))


def samples_of(n: int, seed: int = 0, shape: tuple[int, ...] = (3, 8, 9)) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, *shape), np.float32)


NOISY = {"smoothgrad": smoothgrad, "smoothgrad-squared": smoothgrad_squared, "vargrad": vargrad}


@pytest.mark.parametrize("rule", ["vanilla", "guided", "input-x-gradient", "lrp-epsilon-plus"])
def test_noisy_methods_are_moments_of_the_maps_of_copies(tiny: Explainer, rule: str) -> None:
    x, noise = samples_of(2), samples_of(10, 1).reshape(5, 2, 3, 8, 9)
    best = tiny.predict(x).argmax(axis=1)
    maps = np.stack([tiny.explain(x + n, rule=rule, target=best).map for n in noise]).astype(float)
    want = {
        "smoothgrad": maps.mean(0),
        "smoothgrad-squared": (maps**2).mean(0),
        "vargrad": maps.var(0),
    }
    for name, method in NOISY.items():
        found = method(tiny, x, rule=rule, noise=noise)
        np.testing.assert_allclose(found.map, want[name], rtol=1e-5, atol=1e-6 * np.abs(want[name]).max())
        assert (found.method, found.rule, found[1].title) == (name, rule, f"{name}, {rule}")
        assert (found.target == best).all()
        assert found.details["samples"] == 5
        assert found.details["noise"] is None
    kept = np.mean([tiny.predict(x + n).argmax(axis=1) == best for n in noise], axis=0)
    assert found.details["same_class"].tolist() == kept.tolist()


def test_a_single_copy_is_named_so(tiny: Explainer) -> None:
    (note,) = (note for note in smoothgrad(tiny, samples_of(1), samples=1).notes if "SmoothGrad" in note)
    assert " 1 copy, noise of 0.15 " in note


def test_the_class_is_fixed_before_noise_is_added(tiny: Explainer) -> None:
    x = samples_of(1)
    best = tiny.predict(x).argmax(axis=1)
    noise = 5 * samples_of(8, 3)
    assert len({*tiny.predict(x + noise).argmax(axis=1)}) > 1
    want = tiny.explain(x + noise, rule="vanilla", target=np.repeat(best, 8)).map.mean(axis=0)
    np.testing.assert_allclose(smoothgrad(tiny, x, noise=noise).map[0], want, rtol=1e-4, atol=1e-6)


def test_noise_is_a_share_of_the_range_and_is_seeded(tiny: Explainer) -> None:
    x = samples_of(2) * np.float32([[[[1]]], [[[20]]]])
    with mock.patch.object(Session, "run", autospec=True, side_effect=Session.run) as run:
        found = smoothgrad(tiny, x, samples=200, noise=0.3, seed=4)
    copies = np.concatenate([call.args[1] for call in run.call_args_list[1:]]).reshape(2, 200, -1)
    share = (copies - x.reshape(2, 1, -1)).std(axis=(1, 2)) / np.ptp(x.reshape(2, -1), axis=1)
    np.testing.assert_allclose(share, 0.3, rtol=0.02)
    assert smoothgrad(tiny, x, samples=3, seed=4).map.tobytes() != found.map.tobytes()
    again = [smoothgrad(tiny, x, samples=3, seed=seed).map.tobytes() for seed in (4, 4, 5)]
    assert again[0] == again[1] != again[2]


def test_a_sample_has_the_same_bits_in_any_batch_and_any_slices(tiny: Explainer) -> None:
    x, small = samples_of(3), Explainer(tiny._arguments["model"], memory=1)
    for method in (*NOISY.values(), integrated_gradients, methods.grad_cam, methods.guided_grad_cam):
        whole = method(tiny, x).map
        assert whole[2:].tobytes() == method(tiny, x[2:]).map.tobytes()
        assert whole.tobytes() == method(small, x).map.tobytes()


def test_there_is_one_forward_run_for_each_copy(tiny: Explainer) -> None:
    for method, options, count in (
        (smoothgrad, {"samples": 7}, 1 + 7),
        (vargrad, {"samples": 7}, 1 + 7),
        (smoothgrad, {"samples": 7, "rule": "lrp-epsilon"}, 1 + 7),
        (integrated_gradients, {"steps": 7}, 2 + 7),
        (methods.saliency, {}, 1),
        (methods.grad_cam, {}, 1),
        (methods.guided_grad_cam, {}, 1),
        (methods.layer_gradient, {"layer": "flatten"}, 1),
    ):
        with mock.patch.object(Session, "run", autospec=True, side_effect=Session.run) as run:
            method(tiny, samples_of(2), target=Top(3), **options)
        assert sum(len(call.args[1]) for call in run.call_args_list) == 2 * count, method


def test_each_of_several_targets_is_as_alone(tiny: Explainer) -> None:
    x = samples_of(2)
    for method in (
        *(methods.saliency, smoothgrad, vargrad, integrated_gradients, methods.grad_cam),
        *(methods.guided_grad_cam, methods.layer_grad_cam, partial(methods.layer_gradient, layer="maxpool")),
    ):
        many = method(tiny, x, target=[[2, 0], [1, 3]])
        for k, classes in enumerate(([2, 1], [0, 3])):
            one = method(tiny, x, target=classes)
            assert one.map.shape == (2, *many.map.shape[2:])
            np.testing.assert_allclose(many.map[:, k], one.map, rtol=1e-5, atol=1e-7)
    assert integrated_gradients(tiny, x, target=Top(3)).details["completeness_error"].shape == (2, 3)


def test_hidden_units_and_contrasts_have_methods_too(tiny: Explainer) -> None:
    x, noise = samples_of(2), samples_of(6, 1).reshape(3, 2, 3, 8, 9)
    hidden = next(tensor for tensor in reversed(tiny.tensors) if tensor.op == "Relu").name
    unit, contrast = Unit(hidden, 2, 1, 3), Contrast(1, 3)
    for target in (unit, Channel(hidden, 1, "sum"), contrast):
        maps = np.stack([tiny.explain(x + n, rule="guided", target=target).map for n in noise])
        found = smoothgrad(tiny, x, noise=noise, rule="guided", target=target)
        np.testing.assert_allclose(found.map, maps.mean(0), rtol=1e-4, atol=1e-5 * np.abs(maps).max())
        assert found.details["question"].shape == (2,)
        path = integrated_gradients(tiny, x, target=target, steps=80)
        value = tiny.explain(x, rule="vanilla", target=target).details["value"]
        before = tiny.explain(np.zeros_like(x), rule="vanilla", target=target).details["value"]
        np.testing.assert_allclose(path.details["score_difference"], value - before, rtol=1e-4, atol=1e-5)
        assert np.abs(path.details["completeness_error"]).max() < 0.05
    strongest = smoothgrad(tiny, x, noise=noise, target=Unit(hidden))
    assert strongest.map.tobytes() != smoothgrad(tiny, x, noise=noise, target=unit).map.tobytes()
    many = methods.saliency(tiny, x, target=Several(unit, Unit(hidden, 0, 0, 0)))
    assert many.map.shape == (2, 2, 3, 8, 9)
    assert many.map[:, 0].tobytes() == methods.saliency(tiny, x, target=unit).map.tobytes()
    with pytest.raises(InputError, match="units of one tensor at a time"):
        methods.saliency(tiny, x, target=Several(unit, 1))


def test_grad_cam_of_a_hidden_unit_looks_before_it(demo: Explainer) -> None:
    found = methods.grad_cam(demo, SCENES, target=Unit("relu2"))
    assert found.details["layer"] == "relu2"
    found = methods.grad_cam(demo, SCENES, target=Channel("bn3", 4), layer="relu2")
    assert found.map.any()
    with pytest.raises(InputError, match="layer 'relu3' is computed after the hidden tensor"):
        methods.grad_cam(demo, SCENES, target=Unit("relu2"), layer="relu3")


# ---------------------------------------------------------------------------------- integrated gradients


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_quadratures_integrate_straight_lines(quadrature: str) -> None:
    for steps in (2, 3, 50):
        points, weights = QUADRATURES[quadrature](steps)
        assert len(points) == len(weights) == steps
        np.testing.assert_allclose([weights.sum(), weights @ points], [1, 0.5], rtol=1e-12)
        assert points.min() >= 0
        assert points.max() <= 1


def test_so_many_points_are_refused_before_they_are_computed(tiny: Explainer) -> None:
    with pytest.raises(InputError, match=r"steps is 60000\. Supported: up to 1000 for gauss"):
        integrated_gradients(tiny, samples_of(1), steps=60_000)
    for quadrature in ("midpoint", "trapezoid"):
        with pytest.raises(InputError, match=rf"Supported: up to 1000000 for {quadrature}"):
            integrated_gradients(tiny, samples_of(1), steps=10**13, quadrature=quadrature)
    with pytest.raises(InputError, match=r"baseline is an array \[2\] of float64"):
        integrated_gradients(tiny, samples_of(1), baseline=np.zeros(2))


def test_the_map_adds_up_to_the_difference_of_the_scores(demo: Explainer) -> None:
    for baseline in ("zero", "mean", "blur", 0.3):
        found = integrated_gradients(demo, SCENES, steps=100, baseline=baseline)
        error, difference = found.details["completeness_error"], found.details["score_difference"]
        total = found.map.reshape(2, -1).sum(axis=1, dtype=np.float64)
        np.testing.assert_allclose(total - difference, error, atol=1e-4)
        assert (np.abs(error) < 0.05 * np.abs(difference)).all(), baseline
        assert f"{found.details['baseline']!r}" in found.notes[-1]
        assert found[0].to_dict()["details"]["completeness_error"] == error[0]


def test_baselines(tiny: Explainer) -> None:
    x = samples_of(2)
    given = np.broadcast_to(x.mean(axis=(2, 3), keepdims=True), x.shape)
    by_name = integrated_gradients(tiny, x, baseline="mean")
    np.testing.assert_allclose(integrated_gradients(tiny, x, baseline=given).map, by_name.map, atol=1e-6)
    zeros = integrated_gradients(tiny, x, baseline=np.zeros((3, 8, 9))).map
    assert integrated_gradients(tiny, x).map.tobytes() == zeros.tobytes()
    assert not integrated_gradients(tiny, x, baseline=x).map.any()
    with mock.patch.object(tiny, "runs", wraps=tiny.runs) as runs:
        integrated_gradients(tiny, x, baseline="blur", steps=1)
    blurred = runs.call_args_list[1].args[0]
    assert (blurred.std(axis=(2, 3)) < 0.7 * x.std(axis=(2, 3))).all()
    flat = np.full((1, 3, 8, 9), 0.7, np.float32)
    assert np.abs(integrated_gradients(tiny, flat, baseline="blur").map).max() < 1e-5


# ------------------------------------------------------------------------------------ layers and planes


def test_enlarging_is_linear_between_the_centres_of_pixels() -> None:
    image = np.arange(6.0).reshape(1, 2, 3)
    assert interpolated(image, (2, 3), "bilinear").tolist() == image.tolist()
    assert interpolated(np.array([0.0, 1.0]), (4,), "bilinear").tolist() == [0, 0.25, 0.75, 1]
    assert interpolated(np.array([3.0]), (2,), "bilinear").tolist() == [3, 3]
    shrunk = Image.fromarray(image[0].astype(np.float32)).resize((7, 5), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(interpolated(image, (5, 7), "bilinear")[0], np.asarray(shrunk), atol=1e-5)


def test_grad_cam_says_which_layer(demo: Explainer) -> None:
    found = methods.grad_cam(demo, SCENES)
    assert found.details == {"layer": "relu4", "layer_shape": [128, 12, 12]}
    assert found[0].title == "grad-cam at relu4"
    assert "'relu4' (12 × 12)" in found.notes[-1]
    assert found.map.shape == (2, 1, 96, 96)
    assert found.map.min() == 0
    assert methods.grad_cam(demo, SCENES, layer="bn3").details["layer_shape"] == [64, 24, 24]
    assert found[0].overlay().size == (96, 96)


def plane_network(layout: str) -> onnx.ModelProto:
    """The same weights for NCHW and NHWC input; the last plane is in the file's order of the layout."""
    b = Builder()
    x = b.input(1, 3, 8, 9) if layout == "NCHW" else b.input(1, 8, 9, 3)
    y = x if layout == "NCHW" else b.transpose(x, 0, 3, 1, 2)
    y = b.relu(b.conv(y, 5, pads=[1, 1, 1, 1], strides=[2, 2]))
    if layout == "NHWC":
        y = b.node("Mul", b.transpose(y, 0, 2, 3, 1), b.constant(np.ones(1)))
        y = b.transpose(y, 0, 3, 1, 2)
    return b.model(b.head(y))


def test_channels_are_found_wherever_the_file_has_them() -> None:
    x, target = samples_of(2), [1, 2]
    first, last = Explainer(plane_network("NCHW")), Explainer(plane_network("NHWC"))
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(first.predict(x), last.predict(nhwc), rtol=1e-5, atol=1e-6)
    mul = next(tensor.name for tensor in last.tensors if tensor.op == "Mul")
    want = methods.grad_cam(first, x, target=target)
    for layer in (None, mul):
        found = methods.grad_cam(last, nhwc, target=target, layer=layer)
        assert found.map.shape == (2, 8, 9, 1)
        np.testing.assert_allclose(found.map[..., 0], want.map[:, 0], rtol=1e-4, atol=1e-6)
    small = methods.layer_grad_cam(last, nhwc, target=target, layer=mul)
    assert small.map.shape == (2, 1, 4, 5)
    assert small.layout == "NCHW"
    assert methods.layer_gradient(last, nhwc, layer=mul).layout == "NHWC"


def test_the_last_plane_is_not_a_pool_and_follows_what_is_pointwise() -> None:
    b = Builder()
    y = b.conv(b.input(1, 3, 8, 8), 6, pads=[1, 1, 1, 1])
    gate = b.node("Sigmoid", b.conv(b.node("GlobalAveragePool", y), 6, 1))
    scaled = b.relu(b.mul(y, gate))
    pooled = b.node("MaxPool", scaled, kernel_shape=[2, 2], strides=[2, 2])
    assert (
        methods.grad_cam(Explainer(b.model(b.head(pooled))), samples_of(1, shape=(3, 8, 8))).details["layer"]
        == scaled
    )


def test_a_convolution_with_its_activation_in_one_node_has_the_last_planes() -> None:
    b = Builder()
    operands = b.input(1, 3, 8, 8), b.constant(b.noise(4, 3, 3, 3))
    y = b.foreign("FusedConv", (1, 4, 6, 6), *operands, domain="com.microsoft", activation="Relu")
    model = b.model(b.head(b.node("GlobalAveragePool", y)))
    assert methods.grad_cam(Explainer(model), samples_of(1, shape=(3, 8, 8))).details["layer"] == y


def test_a_convolution_of_integers_has_the_last_planes() -> None:
    """As quantize_dynamic writes it: its numbers are the file's behind a Cast and a Mul by the scales."""
    b = Builder()
    q, scale, zero = b.nodes("DynamicQuantizeLinear", b.input(1, 3, 8, 8), outputs=3)
    made = b.node("ConvInteger", q, b.constant(b.rng.integers(-9, 9, (4, 3, 3, 3)), np.int8), zero)
    y = b.mul(b.node("Cast", made, to=1), b.mul(scale, b.constant(0.02)))
    model = b.model(b.head(b.node("GlobalAveragePool", y)))
    assert methods.grad_cam(Explainer(model), samples_of(1, shape=(3, 8, 8))).details["layer"] == y


def dense_of_integers(b: Builder, x: str) -> str:
    q, scale, zero = b.nodes("DynamicQuantizeLinear", x, outputs=3)
    made = b.node("MatMulInteger", q, b.constant(b.rng.integers(-9, 9, (144, 4)), np.int8), zero)
    return b.mul(b.node("Cast", made, to=1), scale)


def dense_of_constant_scales(b: Builder, x: str) -> str:
    scale, zero = b.constant(0.02), b.constant(3, np.uint8)
    q, weights = (
        b.node("QuantizeLinear", x, scale, zero),
        b.constant(b.rng.integers(0, 9, (144, 4)), np.uint8),
    )
    made = b.node("QLinearMatMul", q, scale, zero, weights, scale, zero, scale, zero)
    return b.node("DequantizeLinear", made, scale, zero)


@pytest.mark.parametrize("dense", [dense_of_integers, dense_of_constant_scales])
def test_a_dense_layer_of_integers_reads_the_last_planes(dense: Callable[[Builder, str], str]) -> None:
    """As quantize_dynamic writes it, and as quantize_static."""
    b = Builder()
    y = b.relu(b.conv(b.input(1, 3, 8, 8), 4))
    model = b.model(dense(b, b.flatten(y)))
    assert methods.grad_cam(Explainer(model), samples_of(1, shape=(3, 8, 8))).details["layer"] == y


def test_a_quantized_rectifier_has_the_last_planes() -> None:
    """As quantizers write Conv and Relu: numbers below 0 are less than the least integer."""
    b = Builder()
    operands = b.constant(0.05), b.constant(0, np.uint8)
    y = b.node("QuantizeLinear", b.conv(b.input(1, 3, 8, 8), 4), *operands)
    y = b.node("DequantizeLinear", y, *operands)
    model = b.model(b.head(b.node("GlobalAveragePool", y)))
    assert methods.grad_cam(Explainer(model), samples_of(1, shape=(3, 8, 8))).details["layer"] == y


def test_an_activation_in_parts_has_the_last_planes() -> None:
    """As PyTorch writes SiLU, which has no name in ONNX."""
    b = Builder()
    x = b.conv(b.input(1, 3, 8, 8), 4, 3)
    x = b.mul(x, b.node("Sigmoid", x))
    model = b.model(b.head(b.node("GlobalAveragePool", x)))
    assert methods.grad_cam(Explainer(model), samples_of(1, shape=(3, 8, 8))).details["layer"] == x


@pytest.mark.parametrize("reading", ["Conv", "MaxPool", "GlobalLpPool", "LpPool"])
def test_scores_of_several_rows_behind_whole_planes_have_a_default_layer(reading: str) -> None:
    """As of a reader of plates: 4 digits of 11 classes, and no place in the planes for each."""
    b = Builder()
    last = b.relu(b.conv(b.input(1, 3, 8, 8), 4, pads=[1, 1, 1, 1]))
    if reading == "Conv":
        rows = b.conv(last, 44, 8)
    else:
        whole = {} if reading == "GlobalLpPool" else {"kernel_shape": [8, 8]}
        rows = b.conv(b.node(reading, last, **whole), 44, 1)
    explainer = Explainer(b.model(b.reshape(rows, 0, 4, 11)))
    assert methods.grad_cam(explainer, samples_of(1, shape=(3, 8, 8)), target=3).details["layer"] == last


@pytest.mark.parametrize(
    "kind", ["a decoder", "scores that are enlarged", "two heads", "a vector", "dense scores"]
)
def test_the_layer_is_named_where_the_last_planes_are_scores(kind: str) -> None:
    b = Builder()
    large = b.relu(b.conv(b.input(1, 3, 16, 16), 4, pads=[1, 1, 1, 1]))
    small = b.relu(b.conv(b.node("MaxPool", large, kernel_shape=[2, 2], strides=[2, 2]), 6))
    if kind == "a decoder":
        up = b.conv_transpose(small, 4, kernel=(6, 6), strides=[2, 2])
        scores = b.conv(b.relu(b.add(b.conv(up, 4, 1), large)), 5, 1)
    elif kind == "scores that are enlarged":
        enlarged = b.constant(np.array([1, 1, 2, 2], np.float32))
        scores = b.node("Resize", b.conv(small, 5, 1), "", enlarged)
    elif kind == "a vector":  # a mask of one class, flattened
        scores = b.flatten(b.node("Sigmoid", b.conv(small, 1, 1)))
    elif kind == "two heads":
        heads = [b.reshape(b.conv(planes, 7, 1), 0, 7, -1) for planes in (large, small)]
        scores = b.concat(*heads, axis=2)
    else:
        scores = b.reshape(b.gemm(b.flatten(small), 10), 0, 2, 5)
    explainer, x = Explainer(b.model(scores)), samples_of(1, shape=(3, 16, 16))
    if kind == "dense scores":
        assert methods.grad_cam(explainer, x).details["layer"] == small
        return
    with pytest.raises(
        InputError, match=rf"make the scores of places.* before the heads: layer='{small}' \(6 × 6\)"
    ):
        methods.grad_cam(explainer, x)
    assert methods.grad_cam(explainer, x, layer=small).map.shape == (1, 1, 16, 16)


def means_of(b: Builder, y: str, op: str) -> str:
    if op == "GlobalAveragePool":
        return b.node(op, y)
    if op == "AveragePool":
        return b.node(op, y, kernel_shape=list(b.shapes[y][2:]))
    return b.node("ReduceMean", y, b.constant(np.array([2, 3])), keepdims=0)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "AveragePool", "ReduceMean"])
@pytest.mark.parametrize("readers", ["alone", "beside another", "are the scores"])
def test_grad_cam_of_planes_that_are_averaged(op: str, readers: str) -> None:
    """The gradient of the mean tells that of each pixel, where nothing else reads the planes."""
    b = Builder()
    y = b.relu(b.conv(b.input(1, 3, 8, 9), 5))
    means = b.flatten(means_of(b, y, op))
    if readers == "alone":
        means = b.gemm(means, 4)
    elif readers == "beside another":
        means = b.gemm(b.add(means, b.flatten(b.node("GlobalMaxPool", y))), 4)
    explainer, x = Explainer(b.model(means)), samples_of(2)
    (tensor,) = (tensor for tensor in explainer.tensors if tensor.name == y)
    assert (tensor.means is None) == (readers == "beside another")
    assert (tensor.means == means) == (readers == "are the scores")
    check_cam(explainer, x, y)


def check_cam(explainer: Explainer, x: NDArray[np.float32], layer: str) -> None:
    """Compare Grad-CAM with its definition, by the whole gradient of the layer."""
    (axis,) = (tensor.channels for tensor in explainer.tensors_for(x) if tensor.name == layer)
    assert axis is not None
    with explainer.run(x, keep=[layer]) as run:
        seeds = np.eye(run.scores.shape[1], dtype=np.float32)[[[0, 2], [1, 3]]]
        gradient = np.moveaxis(run.vjp(seeds, wrt=layer), 2 + axis, 2)
        planes = np.moveaxis(run.value(layer), 1 + axis, 1)
    weights = gradient.reshape(*gradient.shape[:3], -1).mean(axis=3)
    found = methods.layer_grad_cam(explainer, x, target=[[0, 2], [1, 3]], layer=layer)
    assert found.map.any()
    want = np.einsum("nkc,nc...->nk...", weights, planes)[:, :, None]
    np.testing.assert_allclose(found.map, want, rtol=1e-4, atol=1e-6)


def averaged_over(*axes: int) -> Callable[[Builder, str], tuple[str, str]]:
    """Means over axes of planes with channels last."""

    def net(b: Builder, x: str) -> tuple[str, str]:
        y = b.relu(b.transpose(x, 0, 2, 3, 1))
        return y, b.gemm(b.flatten(b.node("ReduceMean", y, b.constant(np.array(axes)), keepdims=0)), 4)

    return net


def averaged_by_parts(**window: Any) -> Callable[[Builder, str], tuple[str, str]]:
    def net(b: Builder, x: str) -> tuple[str, str]:
        y = b.relu(x)
        return y, b.gemm(b.flatten(b.node("AveragePool", y, **window)), 4)

    return net


def bare_means(b: Builder, x: str) -> tuple[str, str]:
    y = b.relu(x)
    return y, b.node("ReduceMean", y, b.constant(np.array([2, 3])), keepdims=0)


#: From planes to (planes that are averaged, scores): by no mean of each channel, or the means are the scores.
AVERAGED = {
    "columns and channels, channels last": averaged_over(2, 3),
    "rows and columns, channels last": averaged_over(1, 2),
    "rows and channels, channels last": averaged_over(1, 3),
    "columns": averaged_over(2),
    "parts": averaged_by_parts(kernel_shape=[3, 4], strides=[2, 3]),
    "one part": averaged_by_parts(kernel_shape=[5, 6], strides=[8, 9]),
    "with a border": averaged_by_parts(
        kernel_shape=[8, 9], pads=[1, 2, 3, 4], strides=[2, 3], count_include_pad=1
    ),
    "scores": bare_means,
}


@pytest.mark.parametrize("channels", [5, 8, 9])
@pytest.mark.parametrize("name", AVERAGED)
def test_grad_cam_of_planes_that_are_averaged_otherwise(name: str, channels: int) -> None:
    """Also with as many channels as rows or columns, where a shape tells no axis from another."""
    b = Builder()
    y, scores = AVERAGED[name](b, b.conv(b.input(1, 3, 8, 9), channels, 3, pads=(1,) * 4))
    explainer, x = Explainer(b.model(scores)), samples_of(2)
    (tensor,) = (tensor for tensor in explainer.tensors if tensor.name == y)
    assert tensor.means == (scores if name == "scores" else None)
    check_cam(explainer, x, y)


@pytest.mark.parametrize("depth", [1, 4])
def test_grad_cam_of_volumes_of_which_each_slice_is_averaged(depth: int) -> None:
    b = Builder()
    y = b.relu(b.conv(b.input(1, 2, 4, 6, 5), 3, 3, pads=(1,) * 6))
    means = b.node("AveragePool", y, kernel_shape=[depth, 6, 5])
    check_cam(Explainer(b.model(b.gemm(b.flatten(means), 4))), samples_of(2, shape=(2, 4, 6, 5)), y)


def test_grad_cam_of_a_hidden_unit_of_planes_that_are_averaged() -> None:
    """A unit of the planes themselves does not depend on their means."""
    b = Builder()
    y = b.relu(b.conv(b.input(1, 3, 8, 9), 5))
    explainer, x = Explainer(b.model(b.gemm(b.flatten(b.node("GlobalAveragePool", y)), 4))), samples_of(2)
    found = methods.layer_grad_cam(explainer, x, layer=y, target=Unit(y, 1, 2, 3))
    with explainer.run(x, keep=[y]) as run:
        planes = run.value(y)
    np.testing.assert_allclose(found.map[:, 0], planes[:, 1] / planes[0, 0].size, rtol=1e-5)
    assert found.map.any()


def open_planes() -> tuple[onnx.ModelProto, str]:
    """A network of open size, whose pool averages whole planes of 6 x 6 and only a part of larger ones."""
    b = Builder()
    y = b.relu(b.conv(b.input(1, 3, 6, 6), 5, 3, pads=(1,) * 4))
    z = b.conv(b.node("AveragePool", y, kernel_shape=[6, 6]), 4, 1)
    model = b.model(b.flatten(b.node("GlobalAveragePool", z)))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].ClearField("dim_value")
    return model, y


def test_a_layer_is_that_of_the_images_whatever_size_was_used_last() -> None:
    """Another thread may use another size at any time: here, just before tensors are looked up."""
    model, layer = open_planes()
    explainer = Explainer(model)
    sizes = {size: samples_of(2, shape=(3, size, size)) for size in (6, 8)}
    for size, x in sizes.items():
        other = sizes[14 - size]
        for images in (x, Batch(x, lambda: None)):
            explainer.predict(other)
            check_cam(explainer, x, layer)
            explainer.predict(other)
            found = methods.layer_grad_cam(explainer, images, layer=layer)
            assert found.details["layer_shape"] == [5, size, size]
            assert any(f"({size} × {size})" in note for note in found.notes)
            explainer.predict(other)
            assert methods.layer_gradient(explainer, images, layer=layer).map.shape == (2, 5, size, size)


def test_tensors_for_images_of_any_kind_have_their_sizes(tmp_path: Path) -> None:
    model, layer = open_planes()
    explainer = Explainer(model, preprocess=Preprocess(size=(7, 8)))
    x, path = samples_of(2, shape=(3, 6, 9)), tmp_path / "sample.npy"
    np.save(path, x[0])
    picture = Image.new("RGB", (20, 20))
    for images, sides in ((x, (6, 9)), (Batch(x, lambda: None), (6, 9)), (path, (6, 9)), (picture, (7, 8))):
        explainer.predict(np.zeros((1, 3, 10, 10), np.float32))
        shapes = {tensor.name: tensor.shape for tensor in explainer.tensors_for(images)}
        assert shapes[layer] == (5, *sides)
    with pytest.raises(InputError, match="there are no images"):
        explainer.tensors_for([])


def test_a_layer_is_that_of_the_images_while_another_size_is_used() -> None:
    """A look at whatever was used last would find the other size."""
    model, layer = open_planes()
    explainer = Explainer(model)
    sizes = {size: samples_of(1, shape=(3, size, size)) for size in (6, 8)}
    of = explainer._engine.sessions.of

    def interrupted(shape: tuple[int, ...], *rest: Any) -> Session:
        found = of(shape, *rest)
        of((3, 14 - shape[1], 14 - shape[2]))  # what another thread uses right after
        return found

    with mock.patch.object(explainer._engine.sessions, "of", interrupted):
        for x in sizes.values():
            for method in (methods.grad_cam, methods.layer_grad_cam, methods.guided_grad_cam):
                found = method(explainer, x, layer=layer)
                assert found.details["layer_shape"] == [5, *x.shape[2:]]


def test_a_gradient_that_is_the_same_in_each_pixel_says_so() -> None:
    b = Builder()
    y = b.relu(b.conv(b.input(1, 3, 8, 9), 5))
    z = b.relu(b.conv(y, 4))
    explainer = Explainer(b.model(b.gemm(b.flatten(b.node("GlobalAveragePool", z)), 4)))
    for layer, is_flat in ((z, True), (y, False)):
        notes = methods.layer_gradient(explainer, samples_of(2), layer=layer).notes
        assert any("the same in each pixel" in note for note in notes) == is_flat


def test_a_gradient_that_is_0_everywhere_says_nothing_of_channels() -> None:
    b = Builder()
    y = b.relu(b.conv(b.input(1, 3, 8, 9), 5))
    means = b.flatten(b.node("GlobalAveragePool", y))
    explainer = Explainer(b.model(b.gemm(b.mul(means, b.constant(np.zeros(1))), 4)))
    notes = methods.layer_gradient(explainer, samples_of(2), layer=y).notes
    assert any("0 everywhere" in note for note in notes)
    assert not any("which channels count" in note for note in notes)


@pytest.mark.parametrize("rule", ["vanilla", "guided", "input-x-gradient", "lrp-epsilon"])
def test_integrated_gradients_are_complete_for_the_gradient_alone(tiny: Explainer, rule: str) -> None:
    notes = integrated_gradients(tiny, samples_of(1), steps=2, rule=rule).notes
    assert any("is not complete" in note for note in notes) == (rule != "vanilla")


def test_series_and_volumes_have_planes_too() -> None:
    for shape in ((4, 12), (2, 4, 6, 5)):
        b = Builder()
        y = b.relu(b.conv(b.input(1, *shape), 5, pads=[1, 1] * (len(shape) - 1)))
        found = methods.grad_cam(Explainer(b.model(b.head(y))), samples_of(2, shape=shape), target=Top(4))
        assert found.map.shape == (2, 4, 1, *shape[1:])
        assert found.map.any()


def test_layer_gradients_have_the_shape_of_the_layer(demo: Explainer) -> None:
    with demo.run(SCENES, keep=["relu3", "fc1"]) as run:
        seed = np.eye(12, dtype=np.float32)[run.scores.argmax(axis=1)]
        want, values = run.vjp(seed, "guided", wrt="relu3"), run.value("relu3")
        dense = run.vjp(seed, wrt="fc1")
    found = methods.layer_gradient(demo, SCENES, layer="relu3", rule="guided")
    assert found.map.tobytes() == want.tobytes()
    assert found.layout == "NCHW"
    assert found[0].overlay().size == (96, 96)
    assert found.details == {"layer": "relu3", "times_activation": False}
    both = methods.layer_gradient(demo, SCENES, layer="relu3", rule="guided", times_activation=True)
    assert both.map.tobytes() == (want * values).tobytes()
    row = methods.layer_gradient(demo, SCENES, layer="fc1")
    assert row.map.tobytes() == dense.tobytes()
    assert (row.layout, row.images, row.photos) == ("NC", None, None)
    assert row[0].strip().width > 0


def test_a_map_of_nothing_says_so(tiny: Explainer) -> None:
    found = methods.grad_cam(tiny, np.zeros((1, 3, 8, 9), np.float32), target=0)
    is_empty = not found.map.any()
    assert any("nothing in the layer speaks for the class" in note for note in found.notes) == is_empty
    x = samples_of(1)
    assert "The map is 0 everywhere." in integrated_gradients(tiny, x, steps=2, baseline=x).notes


def test_a_model_of_open_size_is_planned_for_the_array() -> None:
    b = Builder()
    y = b.node("GlobalAveragePool", b.relu(b.conv(b.input(1, 3, 8, 9), 5)))
    model = b.model(b.flatten(y))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].ClearField("dim_value")
    found = methods.grad_cam(Explainer(model), samples_of(2, shape=(3, 7, 6)))
    assert found.map.shape == (2, 1, 7, 6)
    assert found.details["layer_shape"] == [5, 5, 4]


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        (smoothgrad, {"samples": 0}, "samples is 0"),
        (smoothgrad, {"samples": 2.5}, "samples is 2.5"),
        (smoothgrad, {"samples": None}, "samples is None"),
        (smoothgrad, {"noise": -1}, "noise is -1"),
        (smoothgrad, {"noise": float("nan")}, "noise is nan"),
        (smoothgrad, {"noise": "much"}, "noise is 'much'"),
        (smoothgrad, {"noise": True}, "noise is True"),
        (smoothgrad, {"noise": np.ones((4, 3, 8, 8))}, r"\[S, 3, 8, 9\] or \[S, N, 3, 8, 9\]"),
        (smoothgrad, {"noise": np.ones((4, 3, 3, 8, 9))}, r"\[S, 3, 8, 9\] or \[S, N, 3, 8, 9\]"),
        (smoothgrad, {"noise": np.full((4, 3, 8, 9), np.inf)}, "noise is"),
        (smoothgrad, {"seed": -1}, "seed is -1"),
        (smoothgrad, {"seed": 0.5}, "seed is 0.5"),
        (smoothgrad, {"rule": "best"}, "no rule is called 'best'"),
        (smoothgrad, {"target": 9}, "target 9 is no class"),
        (vargrad, {"samples": 1}, "samples is 1.*at least 2"),
        (integrated_gradients, {"steps": 0}, "steps is 0"),
        (integrated_gradients, {"steps": None}, "steps is None"),
        (integrated_gradients, {"steps": 1, "quadrature": "trapezoid"}, "at least 2 for the trapezoid"),
        (integrated_gradients, {"quadrature": "simpson"}, "'simpson'.*gauss-legendre, trapezoid, midpoint"),
        (integrated_gradients, {"baseline": "black"}, "'black'.*zero, mean, blur, or an array"),
        (integrated_gradients, {"baseline": np.ones((3, 9, 9))}, r"array \[3, 8, 9\] or \[N, 3, 8, 9\]"),
        (integrated_gradients, {"baseline": np.ones((3, 3, 8, 9))}, r"array \[3, 8, 9\] or \[N, 3, 8, 9\]"),
        (integrated_gradients, {"baseline": [np.nan]}, "finite"),
        (integrated_gradients, {"baseline": [[1], [1, 2]]}, "finite"),
        (integrated_gradients, {"baseline": np.zeros((2, 1, 1, 3, 8, 9))}, "finite"),
        (methods.grad_cam, {"layer": "gemm9"}, "no tensor .* is called 'gemm9'"),
        (methods.grad_cam, {"layer": "flatten"}, r"has no plane, its shape is \[80\].*layer='relu"),
        (methods.layer_gradient, {"layer": "nowhere"}, "is called 'nowhere'"),
    ],
)
def test_bad_arguments_are_refused(
    tiny: Explainer, method: Method, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        method(tiny, samples_of(2), **options)


def test_networks_without_planes_or_rectifiers_are_refused() -> None:
    b = Builder()
    rows = Explainer(b.model(b.gemm(b.relu(b.gemm(b.input(1, 6), 8)), 4)))
    with pytest.raises(InputError, match="no convolution with a plane"):
        methods.grad_cam(rows, samples_of(1, shape=(6,)))
    assert methods.saliency(rows, samples_of(1, shape=(6,))).map.shape == (1, 6)
    assert smoothgrad(rows, samples_of(1, shape=(6,))).map.shape == (1, 6)
    assert integrated_gradients(rows, samples_of(1, shape=(6,)), baseline="mean").map.shape == (1, 6)
    b = Builder()
    plain = Explainer(b.model(b.head(b.conv(b.input(1, 3, 8, 9), 5))))
    with pytest.raises(InputError, match="no rectifier"):
        methods.guided_grad_cam(plain, samples_of(1))
    with pytest.raises(InputError, match="no rectifier"):
        smoothgrad(plain, samples_of(1), rule="guided")


def test_the_table_is_what_is_exported() -> None:
    for method in methods.METHODS.values():
        function = getattr(methods, method.function)
        assert {*method.options} - {method.needs} <= {*function.__kwdefaults__}
        assert method.needs not in function.__kwdefaults__
        assert ("rule" in function.__kwdefaults__) == (method.rule is not None)
        assert function.__kwdefaults__.get("rule", method.rule) == method.rule
        assert function.__name__ in methods.__all__
    assert dir(methods) == sorted(methods.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lime'"):
        _ = methods.lime


def test_results_are_saved_with_their_method(demo: Explainer, tmp_path: Path) -> None:
    found = smoothgrad(demo, SCENES, samples=2)
    found.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["method"].item() == "smoothgrad"
    found[0].save(tmp_path / "a.png")
    assert min(Image.open(tmp_path / "a.png").size) >= 96


def test_samples_join_as_they_were(demo: Explainer) -> None:
    sliced = Explainer(ROOT / "models" / "demo.onnx", memory=1)
    whole, parts = (methods.grad_cam(explainer, SCENES).__dict__ for explainer in (demo, sliced))
    for name, value in whole.items():
        if isinstance(value, np.ndarray):
            assert value.tobytes() == parts[name].tobytes(), name
        elif name == "photos":
            assert [photo.source for photo in value] == [photo.source for photo in parts[name]]
        elif name != "images":
            assert value == parts[name], name
    assert [image.tobytes() for image in whole["images"]] == [image.tobytes() for image in parts["images"]]
