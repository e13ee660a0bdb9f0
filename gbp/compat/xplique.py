"""Xplique's attribution methods: `GuidedBackprop(model).explain(inputs, targets)`, and the like.

Inputs are (N, W), (N, T, W) or (N, H, W, C), whatever the layout of the ONNX file.  Maps of images are
(N, H, W, 1), the channels reduced as `reducer` says.  Targets are one-hot, or any weights of the outputs, and
are the seed of the backward pass.  Checked against Xplique 2.0.

Two things differ on purpose.  Every rectifier is found, wherever it is and however it is written; Xplique
misses those in nested models, in functions, and relu6.  And `output_layer` is obeyed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import Explainer, InputError, Run
from ..arguments import at_least_one, whole_number
from ..errors import counted
from ..methods.interpolation import interpolated
from ..methods.path import QUADRATURES
from .core import AnyModel, ChannelsLast, Floats, deviation, floats, last_output, layer_of, vjps
from .operators import Operator, gradient_of

Reducer = Literal["min", "mean", "max", "sum"]

_TASKS = ("classification", "regression", "semantic segmentation")


class WhiteBox:
    """The base of Xplique's gradient methods.

    Parameters
    ----------
    model
        An ONNX file, its bytes, a ModelProto, or an `Explainer`.
    output_layer
        The output to explain: None for the model's last one, or that of the `Explainer`; "logits" for what
        feeds a final Softmax or Sigmoid; the name of a tensor or a node; or an index among
        `Explainer.tensors`, of which -1 is the last output.
    batch_size
        How many samples are computed at once; None for as many as memory holds.  Results do not depend on it.
    operator
        g(f, x, y): the score of each sample, a NumPy function; f(x) is the model's output, y the targets.
        None or "classification" is Σ f(x)·y; "regression" the same; "semantic segmentation" its mean where y
        is not 0.  The gradient of another function by f(x) is found by central differences; a function that
        returns (scores, gradient) spares them.
    reducer
        How the channels of an image are reduced: "min", "mean", "max", "sum", or None.

    Raises
    ------
    InputError
        For arguments that cannot be used.
    """

    _rule = "vanilla"

    def __init__(
        self,
        model: AnyModel,
        output_layer: str | int | None = None,
        batch_size: int | None = 32,
        operator: str | Operator | None = None,
        reducer: Reducer | None = "mean",
    ) -> None:
        if reducer not in (None, "min", "mean", "max", "sum"):
            raise InputError(f"reducer is {reducer!r}.", supported="min, mean, max, sum, None")
        if not callable(operator) and operator not in (None, *_TASKS):
            raise InputError(
                f"gbp does not support operator={operator!r}.",
                supported=f"{', '.join(_TASKS)}, or a function",
            )
        self.model = _output(model, output_layer)
        self.batch_size = at_least_one("batch_size", batch_size)
        self.operator, self.reducer = operator, reducer
        self._layout = ChannelsLast(self.model)

    def explain(self, inputs: Any, targets: ArrayLike | None = None) -> Floats:
        """Explain samples.

        Parameters
        ----------
        inputs
            (N, W), (N, T, W) or (N, H, W, C); or an iterable of (inputs, targets), of batches or of single
            samples, such as a `tf.data.Dataset`, which is read once and never held as a whole.
        targets
            (N, outputs): one-hot, or any weights; of a segmenter (N, H, W, classes).  None for an iterable.

        Returns
        -------
        float32 (N, H, W, 1) for images, or with all channels where `reducer` is None; else as the inputs.

        Raises
        ------
        InputError
            For what does not fit the model.
        """
        return np.concatenate([self._reduced(self._explain(x, y)) for x, y in self._batches(inputs, targets)])

    def __call__(self, inputs: Any, labels: ArrayLike | None = None) -> Floats:
        """The same as `explain`."""
        return self.explain(inputs, labels)

    def _explain(self, x: Floats, targets: Floats) -> Floats:
        """The maps of samples in the model's layout."""
        return self._gradient(x, targets)

    def _gradient(
        self, x: Floats, targets: Floats, repeat: int = 1, wrt: str | None = None, rule: str | None = None
    ) -> Floats:
        """The gradient for samples of which `repeat` after one another have the same target."""

        def seeds(run: Run) -> NDArray[Any]:
            of = np.arange(run.samples.start, run.samples.stop) // repeat
            return self._seeds(run.scores, run.x, targets[of])

        return vjps(self.model, x, seeds, rule or self._rule, batch_size=self.batch_size, wrt=wrt)

    def _seeds(self, scores: Floats, x: Floats, targets: Floats) -> NDArray[Any]:
        """The gradient of the operator by the model's outputs, (n, outputs)."""
        flat = self._flat(targets)
        if flat.shape != scores.shape:
            raise InputError(
                f"targets have shape {list(targets.shape)} for {scores.shape[1]} outputs a sample.",
                supported=f"[N, {scores.shape[1]}], or the shape of the model's output",
            )
        if self.operator in (None, "classification", "regression"):
            return flat
        if isinstance(self.operator, str):
            counts = np.maximum(1, np.count_nonzero(flat, axis=1))
            return np.asarray(flat / counts[:, None])
        assert callable(self.operator)
        outputs = scores if targets.ndim == 2 else self._as_targets(scores, targets)
        return self._flat(gradient_of(self.operator, outputs, self._layout.back(x), targets))

    def _flat(self, targets: NDArray[Any]) -> NDArray[Any]:
        """Targets, or their gradient, as the model has its outputs: (n, outputs)."""
        if targets.ndim == 4 and self._layout.moves:
            targets = np.moveaxis(targets, -1, 1)
        return targets.reshape(len(targets), -1)

    def _as_targets(self, scores: Floats, targets: Floats) -> Floats:
        """Scores in the shape of the targets: the inverse of `_flat`."""
        n, *sides, classes = targets.shape
        if targets.ndim == 4 and self._layout.moves:
            return np.moveaxis(scores.reshape(n, classes, *sides), 1, -1)
        return scores.reshape(targets.shape)

    def _reduced(self, maps: Floats) -> Floats:
        maps = self._layout.back(maps)
        if self.reducer is None or maps.ndim != 4 or maps.shape[-1] == 1:
            return maps
        reduced: Floats = getattr(maps, self.reducer)(axis=-1, keepdims=True)
        return reduced

    def _batches(self, inputs: Any, targets: ArrayLike | None) -> Iterator[tuple[Floats, Floats]]:
        """The samples in the model's layout, with their targets."""
        if targets is not None:
            x, y = self._layout.into(floats(inputs)), floats(targets, "targets")
            if len(x) != len(y) or not len(x):
                raise InputError(f"there are {counted(len(x), 'input')} and {counted(len(y), 'target')}.")
            yield x, y
            return
        if isinstance(inputs, np.ndarray) or not isinstance(inputs, Iterable):
            raise InputError("targets is None.", supported="targets, or an iterable of (inputs, targets)")
        pairs, empty = map(_pair, inputs), True
        for x, y in pairs:
            empty = False
            if x.ndim == len(self.model.input_shape):  # a batch
                yield self._layout.into(x), y
                continue
            samples = [(x, y), *islice(pairs, (self.batch_size or 32) - 1)]
            yield self._layout.into(np.stack([x for x, _ in samples])), np.stack([y for _, y in samples])
        if empty:
            raise InputError("the iterable holds no samples.")


class GuidedBackprop(WhiteBox):
    """Guided backpropagation (Springenberg et al. 2014).  Parameters as `WhiteBox`."""

    _rule = "guided"


class DeconvNet(WhiteBox):
    """A DeconvNet with the switches of max-pools (Zeiler & Fergus 2013).  Parameters as `WhiteBox`."""

    _rule = "deconvnet"


class Saliency(WhiteBox):
    """The magnitude of the gradient, and its maximum over the channels (Simonyan et al. 2013).

    Parameters as `WhiteBox`.
    """

    def __init__(
        self,
        model: AnyModel,
        output_layer: str | int | None = None,
        batch_size: int | None = 32,
        operator: str | Operator | None = None,
        reducer: Reducer | None = "max",
    ) -> None:
        super().__init__(model, output_layer, batch_size, operator, reducer)

    def _explain(self, x: Floats, targets: Floats) -> Floats:
        return np.abs(self._gradient(x, targets))


class GradientInput(WhiteBox):
    """The gradient times the input.  Parameters as `WhiteBox`."""

    def _explain(self, x: Floats, targets: Floats) -> Floats:
        return self._gradient(x, targets) * x


class IntegratedGradients(WhiteBox):
    """Integrated Gradients by trapezoids (Sundararajan et al. 2017).

    Parameters
    ----------
    model, output_layer, batch_size, operator, reducer
        As `WhiteBox`.
    steps
        Points on the way from the baseline to the sample, both included.
    baseline_value
        The number that fills the baseline.
    """

    def __init__(
        self,
        model: AnyModel,
        output_layer: str | int | None = None,
        batch_size: int | None = 32,
        operator: str | Operator | None = None,
        reducer: Reducer | None = "mean",
        steps: int = 50,
        baseline_value: float = 0.0,
    ) -> None:
        super().__init__(model, output_layer, batch_size, operator, reducer)
        if whole_number("steps", steps) < 2:
            raise InputError(f"steps is {steps}.", supported="at least 2, for the trapezoid")
        self.steps, self.baseline_value = steps, float(baseline_value)

    def _explain(self, x: Floats, targets: Floats) -> Floats:
        maps, (alpha, weight) = [], QUADRATURES["trapezoid"](self.steps)
        for sample, target in zip(x, targets, strict=True):
            way = sample - np.float32(self.baseline_value)
            along = alpha.astype(np.float32).reshape(-1, *(1,) * sample.ndim)
            points = np.float32(self.baseline_value) + along * way
            gradients = self._gradient(points, target[None], self.steps)
            maps.append(way * np.tensordot(weight, gradients.astype(np.float64), 1))
        return np.array(maps, np.float32)


class Statistic(WhiteBox, ABC):
    """A statistic of the gradients of noisy copies.

    Parameters
    ----------
    model, output_layer, batch_size, operator, reducer
        As `WhiteBox`.
    nb_samples
        How many noisy copies of each sample.
    noise
        The standard deviation of the noise, in units of the input.
    seed
        The seed of the noise, which Xplique does not have.
    """

    def __init__(
        self,
        model: AnyModel,
        output_layer: str | int | None = None,
        batch_size: int | None = 32,
        operator: str | Operator | None = None,
        reducer: Reducer | None = "mean",
        nb_samples: int = 50,
        noise: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(model, output_layer, batch_size, operator, reducer)
        self.nb_samples, self.seed = whole_number("nb_samples", nb_samples), whole_number("seed", seed, 0)
        self.noise = deviation("noise", noise)

    def _explain(self, x: Floats, targets: Floats) -> Floats:
        rng, maps = np.random.default_rng(self.seed), []
        for sample, target in zip(x, targets, strict=True):
            total, squares = np.zeros((2, *sample.shape))
            for start in range(0, self.nb_samples, self.batch_size or 32):
                count = min(self.batch_size or 32, self.nb_samples - start)
                noisy = sample + rng.normal(0, self.noise, (count, *sample.shape)).astype(np.float32)
                gradients = self._gradient(noisy, target[None], count).astype(np.float64)
                total += gradients.sum(axis=0)
                squares += (gradients * gradients).sum(axis=0)
            maps.append(self._statistic(total / self.nb_samples, squares / self.nb_samples))
        return np.array(maps, np.float32)

    @abstractmethod
    def _statistic(self, mean: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        """The statistic, of the mean of the gradients and the mean of their squares."""


class SmoothGrad(Statistic):
    """The mean of the gradients of noisy copies (Smilkov et al. 2017).  Parameters as `Statistic`."""

    def _statistic(self, mean: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        return mean


class SquareGrad(Statistic):
    """The mean of the squared gradients of noisy copies (Hooker et al. 2018).  Parameters as `Statistic`."""

    def _statistic(self, mean: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        return square


class VarGrad(Statistic):
    """The unbiased variance of the gradients of noisy copies (Adebayo et al. 2018).  As `Statistic`."""

    def _statistic(self, mean: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.nb_samples < 2:
            raise InputError("nb_samples is 1.", supported="at least 2, for a variance")
        return self.nb_samples / (self.nb_samples - 1) * (square - mean * mean)


class GradCAM(WhiteBox):
    """Grad-CAM (Selvaraju et al. 2016), enlarged to the input by cubic interpolation.

    Parameters
    ----------
    model, output_layer, batch_size, operator
        As `WhiteBox`.
    conv_layer
        The layer, as `output_layer` names one; by default the last convolution, with the rectifier that
        follows it at once.
    """

    def __init__(
        self,
        model: AnyModel,
        output_layer: str | int | None = None,
        batch_size: int | None = 32,
        operator: str | Operator | None = None,
        conv_layer: str | int | None = None,
    ) -> None:
        super().__init__(model, output_layer, batch_size, operator, None)
        self.conv_layer = (
            _last_conv(self.model) if conv_layer is None else layer_of(self.model, conv_layer).name
        )

    def _explain(self, x: Floats, targets: Floats) -> Floats:
        cams = []
        size = x.shape[2:] if self._layout.moves else x.shape[1:-1]
        for run in self.model.runs(x, [self.conv_layer], batch_size=self.batch_size):
            seeds = self._seeds(run.scores, run.x, targets[run.samples])
            planes = run.value(self.conv_layer).astype(np.float64)
            gradient = run.vjp(seeds, wrt=self.conv_layer).astype(np.float64)
            if planes.ndim != 4 or x.ndim != 4:
                raise InputError(f"layer {self.conv_layer!r} has no planes.")
            cam = (gradient.mean(axis=(2, 3), keepdims=True) * planes).sum(axis=1)
            cams.append(interpolated(np.maximum(cam, 0), size, "bicubic"))
        found = np.concatenate(cams).astype(np.float32)
        return found[:, None] if self._layout.moves else found[..., None]


def _output(model: AnyModel, layer: str | int | None) -> Explainer:
    """The Explainer of the output that `output_layer` means."""
    explainer = last_output(model)
    if layer is None or layer == -1:
        return explainer
    if layer == "logits" and not any("logits" in (t.name, t.node) for t in explainer.tensors):
        return explainer.with_output(None)
    return explainer.with_output(layer_of(explainer, layer).name)


def _last_conv(explainer: Explainer) -> str:
    tensors = explainer.tensors
    for k in range(len(tensors) - 1, -1, -1):
        if tensors[k].op in ("Conv", "FusedConv", "ConvTranspose") and len(tensors[k].shape) == 3:
            follows = k + 1 < len(tensors) and tensors[k + 1].op in ("Relu", "Clip")
            return tensors[k + 1 if follows else k].name
    raise InputError("the network has no convolution.", hint="Name a tensor with planes: conv_layer='…'.")


def _pair(item: Any) -> tuple[Floats, Floats]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InputError("targets is None.", supported="targets, or an iterable of (inputs, targets)")
    return floats(item[0]), floats(item[1], "targets")
