"""Stores what Xplique and PAIR's saliency compute with TensorFlow, for the drop-ins of `gbp.compat`.

    python tests/golden/make_keras.py    # needs tensorflow, xplique and saliency; the package does not

The network is that of captum.npz, with a Softmax, as a Keras model: channels last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import saliency.core as pair
import tensorflow as tf
import xplique
from xplique import attributions as xp
from xplique.attributions.gradient_statistics.gradient_statistic import GradientStatistic

FOLDER = Path(__file__).parent
STORED = dict(np.load(FOLDER / "captum.npz"))
OUT = FOLDER / "keras.npz"
layers = tf.keras.layers


def models() -> tuple[Any, Any, Any]:
    """Logits, probabilities, and a segmenter of the two convolutions."""
    x = layers.Input((10, 10, 3))
    relus = [layers.ReLU(name=f"relu{k}") for k in (1, 2, 3)]
    conv1, conv2 = layers.Conv2D(6, 3, padding="same", name="conv1"), layers.Conv2D(8, 3, name="conv2")
    fc1, fc2 = layers.Dense(10, name="fc1"), layers.Dense(5, name="fc2")
    h = relus[0](conv1(x))
    segmenter = tf.keras.Model(x, conv2(h))
    h = relus[1](conv2(layers.MaxPooling2D(2)(h)))
    logits = fc2(relus[2](fc1(layers.Flatten()(h))))
    model = tf.keras.Model(x, logits)
    for layer in (conv1, conv2, fc1, fc2):
        w, b = (STORED[f"weight_{layer.name}.{part}"] for part in ("weight", "bias"))
        if layer is fc1:  # its rows are flattened channels last here
            w = w.reshape(10, 8, 3, 3).transpose(0, 2, 3, 1).reshape(10, -1)
        layer.set_weights([w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T, b])
    return model, tf.keras.Model(x, layers.Softmax()(logits)), segmenter


def margin(f: Any, x: Any, y: Any) -> Any:
    out = f(x)
    return tf.reduce_sum(out * y, -1) - tf.reduce_mean(out * (1 - y), -1)


def entropy(f: Any, x: Any, y: Any) -> Any:
    p = tf.nn.softmax(f(x))
    return -tf.reduce_sum(p * tf.math.log(p), -1)


def perturbed(inputs: Any, count: int, noise: float) -> Any:
    """The noise of `gbp.compat.xplique` with seed 0."""
    rng, n = np.random.default_rng(0), int(inputs.shape[0])
    drawn = rng.normal(0, noise, (n, int(count), 3, 10, 10)).astype(np.float32)
    made = np.repeat(inputs.numpy()[:, None], count, axis=1) + np.moveaxis(drawn, 2, -1)
    return tf.constant(made.reshape(-1, *inputs.shape[1:]))


def main() -> None:
    x = np.ascontiguousarray(np.moveaxis(STORED["x"], 1, -1))
    onehot = np.eye(5, dtype=np.float32)[STORED["target"]]
    weights = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    logits, softmax, segmenter = models()
    tf.config.run_functions_eagerly(True)
    GradientStatistic._perturb_samples = staticmethod(perturbed)
    mask = np.zeros((3, 8, 8, 8), np.float32)
    mask[:, 2:5, 3:7, 4] = 1
    results: dict[str, Any] = {"weights": weights, "mask": mask}
    for name in ("Saliency", "GuidedBackprop", "DeconvNet", "GradientInput"):
        method = getattr(xp, name)
        results[f"{name} softmax"] = method(softmax).explain(x, onehot)
        results[f"{name} logits"] = method(logits, reducer=None).explain(x, onehot)
        results[f"{name} weights"] = method(logits).explain(x, weights)
        results[f"{name} margin"] = method(logits, operator=margin).explain(x, onehot)
        results[f"{name} entropy"] = method(logits, operator=entropy).explain(x, onehot)
        results[f"{name} mask"] = method(segmenter, operator="semantic segmentation").explain(x, mask)
    results["IntegratedGradients"] = xp.IntegratedGradients(logits, steps=6, baseline_value=0.25).explain(
        x, onehot
    )
    for name in ("SmoothGrad", "SquareGrad", "VarGrad"):
        results[name] = getattr(xp, name)(logits, nb_samples=4, noise=0.3).explain(x, onehot)
    results["GradCAM"] = xp.GradCAM(logits, conv_layer="conv2").explain(x, onehot)
    results["GradCAM relu"] = xp.GradCAM(logits, conv_layer="relu2").explain(x, onehot)

    inner = tf.keras.Model(logits.input, [logits.get_layer("relu2").output, logits.output])

    def call(batch: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, Any]:
        batch = tf.constant(batch, tf.float32)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(batch)
            planes, out = inner(batch)
            score = out[:, call_model_args["class_idx_str"]]
        return {
            pair.base.INPUT_OUTPUT_GRADIENTS: tape.gradient(score, batch).numpy(),
            pair.base.CONVOLUTION_LAYER_VALUES: planes.numpy(),
            pair.base.CONVOLUTION_OUTPUT_GRADIENTS: tape.gradient(score, planes).numpy(),
            pair.base.OUTPUT_LAYER_VALUES: score.numpy(),
        }

    results |= {f"pair {key}": value for key, value in call(x, {"class_idx_str": 3}).items()}
    arguments = {"class_idx_str": 3}
    results["pair mask"] = pair.GradientSaliency().GetMask(x[0], call, arguments)
    results["pair ig"] = pair.IntegratedGradients().GetMask(x[0], call, arguments, x_steps=5)
    results["pair cam"] = pair.GradCam().GetMask(x[0], call, arguments, should_resize=False, three_dims=False)
    arrays = {name: np.asarray(value) for name, value in results.items()}
    np.savez_compressed(OUT, version=xplique.__version__, **arrays)
    print(OUT, OUT.stat().st_size, {name: value.shape for name, value in arrays.items()})


if __name__ == "__main__":
    main()
