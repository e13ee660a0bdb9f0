"""The networks that `models/architectures.py` builds."""

from __future__ import annotations

import architectures
import numpy as np
import onnx
import pytest
import zoo

from gbp import Explainer

#: Pixels across, where weights are drawn: the planes are small, and VGG-16 is not 553 MB.
SIZE = 96
#: YOLOv5n as published, without its three detectors of 255 outputs and with our dense layer instead.
YOLOV5N = 1_872_157 - 255 * (64 + 128 + 256 + 3) + 80 * (64 + 128 + 256 + 1)
#: Weights, biases, scales and shifts: torchvision's documented `num_params`; of MobileNet v1 and Xception,
#: which torchvision lacks, what Keras counts as trainable; of YOLOv5n the summary that its repository prints.
PARAMETERS = {
    "vgg16": 138_357_544,
    "resnet18": 11_689_512,
    "mobilenet_v2": 3_504_872,
    "inception_v3": 27_161_264 - 3_326_696,  # without its auxiliary head
    "densenet201": 20_013_928,
    "xception": 22_855_952,
    "mobilenet_v1": 4_231_976,
    "shufflenet_v2": 2_278_604,
    "mobilenet_v3": 5_483_032,
    "efficientnet_b0": 5_288_548,
    "regnet_y_400mf": 4_344_144,
    "yolov5n": YOLOV5N,
    "convnext_tiny": 28_589_128,
}
#: The first 64 bits, at that size.
FINGERPRINTS = {
    "vgg16": "a54c5eafb2bca64b",
    "resnet18": "7c84fd1995bad85a",
    "mobilenet_v2": "5191aba013e78807",
    "inception_v3": "178d8314aee008be",
    "densenet201": "71f575b0ff2c82b2",
    "xception": "112347e452dd0b57",
    "mobilenet_v1": "b61e638c962971a5",
    "shufflenet_v2": "e6b22ac9bef04ab9",
    "mobilenet_v3": "907cb30332136221",
    "efficientnet_b0": "6ed4f3111c52a7f9",
    "regnet_y_400mf": "3081ffcfcf2b8d80",
    "yolov5n": "7b7e0d72883081b1",
    "convnext_tiny": "5fbb76ab6468dd22",
}
#: Ops at which rules differ.
RECTIFIERS = {"Relu", "Clip"}


@pytest.mark.parametrize("name", zoo.BUILT)
def test_skeleton(name: str) -> None:
    skeleton = architectures.skeleton(name)
    assert _scores_shape(skeleton) == [1, 80 if name == "yolov5n" else 1000]
    statistics = {tensor for node in skeleton.graph.node for tensor in _statistics(node)}
    shapes = {
        t.name.removesuffix(".shape"): onnx.numpy_helper.to_array(t)
        for t in skeleton.graph.initializer
        if t.name.endswith(".shape")
    }
    assert statistics <= set(shapes)
    assert PARAMETERS[name] == sum(int(s.prod()) for tensor, s in shapes.items() if tensor not in statistics)


def _scores_shape(model: onnx.ModelProto) -> list[int]:
    """As inferred from the picture's; the checker refuses the model where that is not as it declares."""
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    (scores,) = inferred.graph.output
    return [d.dim_value for d in scores.type.tensor_type.shape.dim]


def _statistics(node: onnx.NodeProto) -> list[str]:
    """The running mean and variance, which are not learned."""
    return list(node.input[3:]) if node.op_type == "BatchNormalization" else []


# Fixtures of modules: pytest lets the tests of one network follow each other, so it is built and loaded once.
@pytest.fixture(scope="module", params=zoo.BUILT)
def drawn(request: pytest.FixtureRequest) -> str:
    """The name of a network whose weights are drawn."""
    return request.param


@pytest.fixture(scope="module")
def model(drawn: str) -> onnx.ModelProto:
    return zoo.build(drawn, size=SIZE)


@pytest.fixture(scope="module")
def explainer(model: onnx.ModelProto) -> Explainer:
    return Explainer(model)


def test_drawn(drawn: str, model: onnx.ModelProto) -> None:
    (image,) = model.graph.input
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 3, SIZE, SIZE]
    assert _scores_shape(model) == [1, 80 if drawn == "yolov5n" else 1000]
    assert zoo.fingerprint(model).startswith(FINGERPRINTS[drawn])


def test_explained(model: onnx.ModelProto, explainer: Explainer) -> None:
    has_rectifiers = any(node.op_type in RECTIFIERS for node in model.graph.node)
    a = explainer.explain(zoo.picture(size=SIZE), rule="guided" if has_rectifiers else "vanilla")
    assert np.isfinite(a.scores).all()
    assert 0.1 < a.scores.std() < 10
    assert a.map.shape == (1, 3, SIZE, SIZE)
    assert np.isfinite(a.map).all()
    assert np.abs(a.map).max() > 1e-3


def test_scores_of_onnxruntime(model: onnx.ModelProto, explainer: Explainer) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x = zoo.picture(size=SIZE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # two would spin while they wait
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    (expected,) = session.run(None, {model.graph.input[0].name: x})
    found = explainer.predict(x)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"unknown architecture 'vgg61'; there are .*vgg19.*vgg16"):
        zoo.build("vgg61")


@pytest.mark.parametrize("size", [64, 100])
def test_no_such_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 32 from 96 on, not {size}"):
        zoo.build("vgg16", size=size)


def test_files_of_the_package_have_one_size() -> None:
    with pytest.raises(ValueError, match="vgg19 is a file for pictures of 224 pixels, not 96"):
        zoo.build("vgg19", size=96)
