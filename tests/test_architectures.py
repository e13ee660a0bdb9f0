"""The networks that `models/architectures.py` builds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import zoo
from architectures import BUILDERS

from gbp import Explainer

#: Weights, biases, scales and shifts; torchvision's documentation gives the same.
PARAMETERS = {"vgg16": 138_357_544, "resnet18": 11_689_512, "mobilenet_v2": 3_504_872}
#: Those that are drawn here: VGG-16 is 553 MB.
SMALL = {
    "resnet18": "7c84fd1995bad85a",
    "mobilenet_v2": "5191aba013e78807",
}


@pytest.mark.parametrize("name", zoo.BUILT)
def test_skeleton(name: str) -> None:
    skeleton = BUILDERS[name]()
    onnx.checker.check_model(skeleton)
    inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True)
    (scores,) = inferred.graph.output
    assert [d.dim_value for d in scores.type.tensor_type.shape.dim] == [1, 1000]
    statistics = {tensor for node in skeleton.graph.node for tensor in _statistics(node)}
    shapes = {
        t.name.removesuffix(".shape"): onnx.numpy_helper.to_array(t) for t in skeleton.graph.initializer
    }
    assert statistics <= set(shapes)
    assert PARAMETERS[name] == sum(int(s.prod()) for tensor, s in shapes.items() if tensor not in statistics)


def _statistics(node: onnx.NodeProto) -> list[str]:
    """The running mean and variance, which are not learned."""
    return list(node.input[3:]) if node.op_type == "BatchNormalization" else []


@pytest.mark.parametrize("name", SMALL)
def test_drawn(name: str) -> None:
    model = zoo.build(name)
    onnx.checker.check_model(model)
    assert zoo.fingerprint(model).startswith(SMALL[name])
    scores = Explainer(model).predict(zoo.picture())
    assert scores.shape == (1, 1000)
    assert np.isfinite(scores).all()
    assert scores.std() > 0.1


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"unknown architecture 'vgg61'; there are .*vgg19.*vgg16"):
        zoo.build("vgg61")
