"""The calls of Xplique, keras-explainable and PAIR's saliency, held to stored results of the originals.

tests/golden/make_keras.py made them.  keras-explainable does not start with today's Keras: its formula is
written out here.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from numpy.typing import NDArray
from onnx import helper
from PIL import Image
from test_compat_captum import network

from gbp import PROBABILITY, Explainer, InputError
from gbp.compat import keras_explainable as ke
from gbp.compat import saliency, xplique
from gbp.compat.operators import gradient_of
from gbp.methods.interpolation import interpolated

GOLDEN = Path(__file__).parent / "golden"
STORED = dict(np.load(GOLDEN / "keras.npz"))
CAPTUM = dict(np.load(GOLDEN / "captum.npz"))
X = np.ascontiguousarray(np.moveaxis(CAPTUM["x"], 1, -1))
ONEHOT = np.eye(5, dtype=np.float32)[CAPTUM["target"]]


def with_softmax() -> onnx.ModelProto:
    model = network()
    model.graph.node.append(helper.make_node("Softmax", ["fc2"], ["probabilities"]))
    model.graph.output[0].name = "probabilities"
    return model


def channels_last() -> onnx.ModelProto:
    """The network as TensorFlow's exporters write it: its input channels last."""
    model = network()
    model.graph.node[0].input[0] = "planes"
    model.graph.node.insert(0, helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2]))
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], (10, 10, 3), strict=True):
        dim.dim_value = size
    return model


LOGITS, SOFTMAX = Explainer(network()), Explainer(with_softmax(), output=PROBABILITY)


def rows() -> onnx.ModelProto:
    """A network on rows of numbers."""
    b = Builder()
    return b.model(b.gemm(b.relu(b.gemm(b.input(1, 9), 6)), 3))


def margin(f: Any, x: Any, y: Any) -> Any:
    out = f(x)
    return (out * y).sum(-1) - (out * (1 - y)).mean(-1)


def entropy(f: Any, x: Any, y: Any) -> Any:
    p = np.exp(f(x) - f(x).max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -(p * np.log(p)).sum(-1)


def entropy_with_gradient(f: Any, x: Any, y: Any) -> Any:
    h = entropy(f, x, y)
    p = np.exp(f(x) - f(x).max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return h, -p * (np.log(p) + h[:, None])


def close(found: NDArray[Any], true: NDArray[Any], tolerance: float = 2e-5) -> None:
    assert found.shape == true.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, true, rtol=1e-4, atol=tolerance * np.abs(true).max())


METHODS = {
    name: getattr(xplique, name) for name in ("Saliency", "GuidedBackprop", "DeconvNet", "GradientInput")
}


@pytest.mark.parametrize("name", METHODS)
def test_equals_xplique(name: str) -> None:
    method = METHODS[name]
    close(method(with_softmax()).explain(X, ONEHOT), STORED[f"{name} softmax"], 1e-4)
    close(method(network(), reducer=None, batch_size=2)(X, ONEHOT), STORED[f"{name} logits"])
    close(method(LOGITS).explain(X, STORED["weights"]), STORED[f"{name} weights"])
    close(method(LOGITS, operator=margin).explain(X, ONEHOT), STORED[f"{name} margin"])
    close(method(LOGITS, operator=entropy).explain(X, ONEHOT), STORED[f"{name} entropy"], 1e-4)
    close(method(LOGITS, operator=entropy_with_gradient)(X, ONEHOT), STORED[f"{name} entropy"], 1e-4)


def segmenter() -> onnx.ModelProto:
    """The two convolutions alone."""
    model = network()
    kept = [node for node in model.graph.node if node.op_type in ("Conv", "Relu")][:3]
    del model.graph.node[:]
    kept[2].input[0] = "relu1"
    model.graph.node.extend(kept)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("conv2", 1, ["N", 8, 8, 8]))
    return model


@pytest.mark.parametrize("shape", [(9,), (5, 8)], ids=["rows", "series"])
def test_rows_and_series_keep_their_shape(shape: tuple[int, ...]) -> None:
    """(N, W) and (N, T, W), whose maps have the inputs' shape."""
    b = Builder()
    h = b.input(1, *shape)
    h = b.gemm(h, 6) if len(shape) == 1 else b.conv(b.transpose(h, 0, 2, 1), 6)
    explainer = Explainer(b.model(b.head(b.relu(h), 3)))
    x = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    y = np.eye(3)[[0, 2, 1, 0]]
    true = explainer.explain(x, rule="guided", target=y.astype(np.float32)).map
    close(xplique.GuidedBackprop(explainer, batch_size=3)(x, y), true)
    close(
        xplique.GradientInput(explainer)(x, y),
        explainer.explain(x, rule="vanilla", target=[0, 2, 1, 0]).map * x,
    )
    assert xplique.IntegratedGradients(explainer, steps=3)(x, y).shape == x.shape
    assert xplique.SmoothGrad(explainer, nb_samples=2)(x, y).shape == x.shape


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_of_a_segmenter_is_a_target(name: str) -> None:
    method = METHODS[name](segmenter(), operator="semantic segmentation")
    close(method.explain(X, STORED["mask"]), STORED[f"{name} mask"])

    def mean(f: Any, x: Any, y: Any) -> Any:
        return (f(x) * y).sum((1, 2, 3)) / (y != 0).sum((1, 2, 3))

    close(METHODS[name](segmenter(), operator=mean).explain(X, STORED["mask"]), STORED[f"{name} mask"], 1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("IntegratedGradients", {"steps": 6, "baseline_value": 0.25}),
        ("SmoothGrad", {"nb_samples": 4, "noise": 0.3}),
        ("SquareGrad", {"nb_samples": 4, "noise": 0.3}),
        ("VarGrad", {"nb_samples": 4, "noise": 0.3}),
    ],
)
def test_equals_xplique_where_samples_are_copied(name: str, options: dict[str, Any]) -> None:
    method = getattr(xplique, name)
    close(method(LOGITS, **options).explain(X, ONEHOT), STORED[name], 1e-4)


def test_equals_xplique_grad_cam() -> None:
    # TensorFlow has the cubic kernel in a table of 1024 entries.
    close(xplique.GradCAM(LOGITS, conv_layer="conv2").explain(X, ONEHOT), STORED["GradCAM"], 5e-4)
    relu = xplique.GradCAM(LOGITS, conv_layer="relu2").explain(X, ONEHOT)
    close(relu, STORED["GradCAM relu"], 5e-4)
    assert np.array_equal(xplique.GradCAM(LOGITS).explain(X, ONEHOT), relu)
    assert np.array_equal(xplique.GradCAM(LOGITS, conv_layer=4).explain(X, ONEHOT), relu)
    with pytest.raises(InputError, match="no planes"):
        xplique.GradCAM(LOGITS, conv_layer="fc1").explain(X, ONEHOT)


def test_a_model_with_channels_last_is_the_same() -> None:
    for method in METHODS.values():
        close(method(channels_last())(X, ONEHOT), method(LOGITS)(X, ONEHOT))


def test_any_iterable_of_samples_or_batches_is_read_once() -> None:
    whole = xplique.GuidedBackprop(LOGITS).explain(X, ONEHOT)
    for batch_size in (2, 32, None):
        method = xplique.GuidedBackprop(LOGITS, batch_size=batch_size)
        assert np.array_equal(method.explain(zip(X, ONEHOT, strict=True)), whole)
        batches = ((X[i : i + 2], ONEHOT[i : i + 2]) for i in (0, 2))
        assert np.array_equal(method.explain(batches), whole)
    with pytest.raises(InputError, match="no samples"):
        method.explain(iter(()))
    with pytest.raises(InputError, match="targets is None"):
        method.explain(X)
    with pytest.raises(InputError, match="targets is None"):
        method.explain(list(X))


def test_output_layer_names_what_is_explained() -> None:
    def saliency(layer: Any, y: NDArray[Any] = ONEHOT) -> NDArray[Any]:
        return xplique.Saliency(with_softmax(), layer)(X, y)

    close(saliency(None), STORED["Saliency softmax"], 1e-4)
    assert np.array_equal(saliency(-1), saliency(None))
    for layer in ("logits", "fc2", -2):
        assert np.array_equal(saliency(layer), xplique.Saliency(LOGITS)(X, ONEHOT)), layer
    hidden = np.zeros((3, 10), np.float32)
    hidden[:, 4] = 1
    found = xplique.GuidedBackprop(with_softmax(), "fc1", reducer=None)(X, hidden)
    close(np.moveaxis(found, -1, 1), CAPTUM["neuron_fc"])
    with pytest.raises(InputError, match="no tensor between"):
        xplique.Saliency(LOGITS, "nothing")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xplique.Saliency(LOGITS, reducer="median"), "reducer is 'median'"),
        (lambda: xplique.Saliency(LOGITS, operator="object detection"), "operator='object detection'"),
        (lambda: xplique.Saliency(LOGITS, batch_size=0), "batch_size is 0"),
        (lambda: xplique.Saliency(LOGITS)(CAPTUM["x"], ONEHOT), r"shape \[3, 3, 10, 10\].*\[N, 10, 10, 3\]"),
        (lambda: xplique.Saliency(LOGITS)(X, ONEHOT[:2]), "3 inputs and 2 targets"),
        (lambda: xplique.Saliency(LOGITS)(X, ONEHOT[:, :4]), r"targets have shape \[3, 4\] for 5"),
        (lambda: xplique.Saliency(LOGITS, operator=lambda f, x, y: f(x))(X, ONEHOT), "the operator returned"),
        (lambda: xplique.Saliency(LOGITS, operator=lambda f, x, y: f(x + 1))(X, ONEHOT), "another point"),
        (lambda: xplique.IntegratedGradients(LOGITS, steps=1), "steps is 1"),
        (lambda: xplique.SmoothGrad(LOGITS, noise="much"), "noise is 'much'"),
        (lambda: xplique.VarGrad(LOGITS, nb_samples=1)(X, ONEHOT), "nb_samples is 1"),
    ],
)
def test_what_xplique_would_do_and_gbp_does_not_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_an_operator_of_many_outputs_must_give_its_gradient() -> None:
    outputs = np.zeros((1, 2**14 + 1), np.float32)
    with pytest.raises(InputError, match="return \\(scores, gradient"):
        gradient_of(lambda f, x, y: f(x).sum(-1), outputs, X, ONEHOT)
    found = gradient_of(lambda f, x, y: (f(x).sum(-1), np.ones_like(f(x))), outputs, X, ONEHOT)
    assert (found == 1).all()
    with pytest.raises(InputError, match="the operator's gradient is float64 of shape"):
        gradient_of(lambda f, x, y: (f(x).sum(-1), np.ones(3)), outputs, X, ONEHOT)
    with pytest.raises(InputError, match="the operator failed: IndexError: index 99999"):
        gradient_of(lambda f, x, y: f(x)[:, 99999], outputs, X, ONEHOT)


@pytest.mark.parametrize("wrong", [None, "x", [[1], [1, 2]], [1j, 1j, 1j]])
def test_what_an_operator_returns_is_checked(wrong: Any) -> None:
    outputs = np.zeros((3, 5), np.float32)
    with pytest.raises(InputError, match=r"^the operator returned .* Supported: numbers of shape \[3\]"):
        gradient_of(lambda f, x, y: wrong, outputs, X, ONEHOT)
    with pytest.raises(InputError, match=r"^the operator's gradient is .* numbers of shape \[3, 5\]"):
        gradient_of(lambda f, x, y: (f(x).sum(-1), wrong), outputs, X, ONEHOT)
    with pytest.raises(InputError, match=r"^the operator returned .* numbers of shape \[3\]"):
        gradient_of(lambda f, x, y: f(x).sum(-1) if not f(x).any() else wrong, outputs, X, ONEHOT)


# --------------------------------------------------------------------------------------- keras-explainable


def formula(units: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """|gradient|, its mean over the channels, and that normalised: keras-explainable 0.0.2."""
    found = LOGITS.explain(CAPTUM["x"], rule="vanilla", target=units)
    maps = np.moveaxis(np.abs(found.map).mean(axis=2), 1, -1)
    maps = maps - maps.min((1, 2), keepdims=True)
    return np.take_along_axis(found.scores, units, 1), maps / maps.max((1, 2), keepdims=True)


def test_gradients_are_those_of_the_formula() -> None:
    units = np.array([[3, 0], [1, 1], [4, 2]])
    true_logits, true_maps = formula(units)
    for batch_size in (1, 32, None):
        logits, maps = ke.gradients(with_softmax(), X, units, batch_size=batch_size)
        close(maps, true_maps)
        np.testing.assert_allclose(logits, true_logits, rtol=1e-5)
    method = ke.methods.gradient.gradients
    same = ke.explain(method, network(), X, units, postprocessing=ke.filters.absolute_normalize)
    assert np.array_equal(same[1], maps)
    assert np.array_equal(
        ke.partial_explain(method, postprocessing=ke.filters.normalize)(LOGITS, X, units)[1], maps
    )
    signed = ke.methods.gradient.gradients(LOGITS, X, units, gradient_filter=lambda g: g)[1]
    assert (signed < 0).any()
    strongest = ke.methods.gradient.gradients(LOGITS, X, units, gradient_filter=strongest_channel)[1]
    assert strongest.shape == signed.shape


def strongest_channel(gradient: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(gradient.max(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", ["gradient_filter", "postprocessing"])
def test_functions_that_fail_or_return_something_else_are_named(name: str) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(InputError, match=rf"^{name} failed: KeyError: 'mine'\.$"):
        ke.gradients(LOGITS, X, **{name: fails})
    for wrong in (None, "x", [[1], [1, 2]], np.zeros((3, 4))):
        with pytest.raises(InputError, match=rf"^{name} returned .* Supported: numbers of shape \[3, "):
            ke.gradients(LOGITS, X, **{name: lambda *a, wrong=wrong, **k: wrong})


def test_without_units_all_are_explained() -> None:
    logits, maps = ke.gradients(channels_last(), X)
    true_logits, true_maps = formula(np.tile(np.arange(5), (3, 1)))
    close(maps, true_maps)
    np.testing.assert_allclose(logits, true_logits, rtol=1e-5, atol=1e-6)


def test_maps_are_resized_without_antialiasing() -> None:
    _, maps = ke.gradients(LOGITS, X, [[1]] * 3, resizing=(5, 20))
    assert maps.shape == (3, 5, 20, 1)
    _, full = ke.gradients(LOGITS, X, [[1]] * 3)
    halves = (full[:, 0::2] + full[:, 1::2]) / 2
    np.testing.assert_allclose(maps[:, :, 1], 0.75 * halves[:, :, 0] + 0.25 * halves[:, :, 1], atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(7, 5), (13, 11), (20, 3)])
def test_enlarging_is_that_of_pillow_where_nothing_shrinks(mode: str, size: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).standard_normal((5, 3))
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    true = np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size[::-1], filters[mode]))
    np.testing.assert_allclose(interpolated(plane, size, mode), true, atol=1e-5)


def test_a_grid_of_images_and_maps(tmp_path: Path) -> None:
    _, maps = ke.gradients(LOGITS, X, [[0, 1]] * 3)
    images = (X - X.min()) / np.ptp(X)
    grid = ke.utils.visualize([*images, *maps], cols=3, to_file=tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as written:
        assert written.size == grid.size
    wide = ke.utils.visualize([*images, None], titles=["a"], overlays=[maps[0, ..., 0]], rows=1)
    assert wide.width > grid.width
    buffer = io.BytesIO()
    ke.utils.visualize(images[0], to_buffer=buffer)
    assert buffer.getvalue().startswith(b"\x89PNG")
    for options in ({"cmap": "jet"}, {"figsize": (3, 3)}):
        with pytest.raises(InputError, match=next(iter(options))):
            ke.utils.visualize([*images], **options)
    with pytest.raises(InputError, match="no images"):
        ke.utils.visualize([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ke.explain(print, LOGITS, X), "method 'print'"),
        (lambda: ke.gradients(LOGITS, X, [[9]] * 3), "no unit"),
        (lambda: ke.gradients(LOGITS, X, [1, 2, 3]), r"y has shape \[3\]"),
        (lambda: ke.gradients(LOGITS, X, [[1], [1, 2], [1]]), "y has shape"),
        (lambda: ke.gradients(LOGITS, X, callbacks=[1]), "callbacks"),
        (lambda: ke.gradients(LOGITS, X, [[1]] * 3, resizing=(0, 5)), "are empty"),
        (lambda: ke.gradients(rows(), np.zeros((2, 9))), "takes 2 axes"),
        (lambda: ke.gradients(LOGITS, X, spatial_axis=(1,)), "spatial_axis"),
        (lambda: ke.methods.gradient.gradients(LOGITS, X, indices_axis=1), "indices_axis=1"),
    ],
)
def test_what_keras_explainable_would_do_and_gbp_does_not_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# ----------------------------------------------------------------------------------------- PAIR's saliency


@pytest.mark.parametrize("model", [network, channels_last])
def test_pair_gets_what_its_methods_are_made_of(model: Any) -> None:
    call = saliency.call_model_function(model(), layer="relu2")
    found = call(X, call_model_args={"class_idx_str": 3})
    stored = {name[5:] for name in STORED if name.startswith("pair ")}
    assert {*found} == {key for key in stored if key.isupper()}
    for key, value in found.items():
        close(value, STORED[f"pair {key}"])
    (only,) = call(X[:1], {"any": np.int64(3)}, [saliency.INPUT_OUTPUT_GRADIENTS]).values()
    close(only[0], STORED["pair mask"])
    points = np.stack([alpha * X[0] for alpha in np.linspace(0, 1, 5)])
    on_the_way = call(points, {"class_idx_str": 3}, [saliency.INPUT_OUTPUT_GRADIENTS])
    close(on_the_way[saliency.INPUT_OUTPUT_GRADIENTS].sum(0) * X[0] / 5, STORED["pair ig"])
    weights = found[saliency.CONVOLUTION_OUTPUT_GRADIENTS][0].mean((0, 1))
    close(np.maximum(found[saliency.CONVOLUTION_LAYER_VALUES][0] @ weights, 0), STORED["pair cam"])


def test_pair_is_refused_by_name() -> None:
    call = saliency.call_model_function(LOGITS, target=1)
    assert {*call(X)} == {saliency.INPUT_OUTPUT_GRADIENTS, saliency.OUTPUT_LAYER_VALUES}
    with pytest.raises(InputError, match="layer='…'"):
        call(X, None, [saliency.CONVOLUTION_LAYER_VALUES])
    with pytest.raises(InputError, match="'NOTHING'"):
        call(X, None, ["NOTHING"])
    with pytest.raises(InputError, match="class 9"):
        call(X, {"class_idx_str": 9})
    with pytest.raises(InputError, match="holds a class index"):
        saliency.call_model_function(LOGITS)(X)
