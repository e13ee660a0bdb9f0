"""A Keras network with seeded weights: exported to ONNX, and explained by Xplique when told to.

    python benchmarks/keras_peer.py xception FOLDER THREADS

The Python that runs this needs tensorflow, keras, tf2onnx and xplique, and nothing of gbp: these libraries
and torch rarely fit one environment.  It writes FOLDER/model.onnx and says "ready".  Then it reads commands,
a line each, and answers each with a line: "load" reads pictures from FOLDER/x.npy and explains them once,
with the scores in FOLDER/scores.npy and the guided map in FOLDER/map.npy; "explain" explains them again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
SEED = 0

#: Names of `models/zoo.py`: names in keras.applications.
APPLICATIONS = {
    "xception": "Xception",
    "densenet201": "DenseNet201",
    "resnet50": "ResNet50",
    "densenet121": "DenseNet121",
    "mobilenet_v2": "MobileNetV2",
}


def network(name: str) -> Any:
    """The application without its softmax.  Weights are drawn so that activations keep their size (He)."""
    import keras
    import numpy as np

    model = getattr(keras.applications, APPLICATIONS[name])(weights=None, classifier_activation=None)
    rng = np.random.default_rng(SEED)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            continue  # its constants are the application's own
        values = []
        for variable in layer.weights:
            shape, kind = tuple(variable.shape), variable.name
            if kind == "gamma":
                value = rng.uniform(0.8, 1.2, shape)
            elif kind == "moving_variance":
                value = rng.uniform(0.6, 1.6, shape)
            elif kind == "depthwise_kernel" or (kind == "kernel" and "Depthwise" in type(layer).__name__):
                value = rng.standard_normal(shape) / np.sqrt(shape[0] * shape[1])
            elif kind.endswith("kernel"):
                value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
            else:
                value = rng.uniform(-0.1, 0.1, shape)
            values.append(value.astype(np.float32))
        layer.set_weights(values)
    return model


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print goes to the standard error

    import numpy as np
    import tensorflow as tf
    from xplique.attributions import GuidedBackprop

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = network(name)
    model(np.zeros((1, *model.input_shape[1:]), np.float32))
    model.export(folder / "model.onnx", format="onnx", verbose=False)
    print("ready", file=answers)
    method = GuidedBackprop(model, reducer=None)
    x: Any = None
    targets: Any = None
    for command in sys.stdin:
        if command.strip() == "load":
            x = tf.constant(np.load(folder / "x.npy"))
            scores = np.asarray(model(x))
            np.save(folder / "scores.npy", scores)
            targets = tf.one_hot(scores.argmax(axis=1), scores.shape[1])
            np.save(folder / "map.npy", np.asarray(method.explain(x, targets)))
        else:
            method.explain(x, targets)
        print("done", file=answers)


if __name__ == "__main__":
    main()
