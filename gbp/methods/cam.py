"""Grad-CAM and Guided Grad-CAM: where a class is seen in the last planes.

With planes A_c of a layer, and s the score (Selvaraju et al. 2016, arXiv:1610.02391, section 3):

w_c = mean over the plane of ∂s/∂A_c
Grad-CAM          m = max(Σ_c w_c · A_c, 0), enlarged to the input by linear interpolation
Guided Grad-CAM   m · (the map of guided backpropagation)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.run import Run
from ..errors import InputError
from ..explainer import Explainer
from ..graph.tensors import Tensor
from ..inputs import Images
from ..limits import elements
from ..questions.questions import Question
from ..result.attribution import Attribution
from .common import Questions, explained, with_details
from .interpolation import interpolated
from .planes import layer_named, of_layer, spatial

#: Channels that are summed at a time.  NumPy cuts sums of more than 8192 numbers where other axes say.
_CHANNELS = 4096


def grad_cam(
    explainer: Explainer, images: Images, *, target: Question = None, layer: str | None = None
) -> Attribution:
    """Grad-CAM: where a class is seen in a layer's planes (Selvaraju et al. 2016, arXiv:1610.02391).

    Parameters
    ----------
    explainer
        The model.
    images, target
        As for `Explainer.explain`.
    layer
        A tensor with planes, by a name that `Explainer.run` takes; by default the last convolution with more
        than one pixel, or the normalization, rectifier or sum that follows it.

    Returns
    -------
    An `Attribution` with a map of at least 0 and one channel, as large as the input.  Its details hold
    "layer" and "layer_shape".

    Raises
    ------
    InputError
        For arguments that cannot be used, where there is no plane, and without a layer where the last planes
        make the scores, as of a detector or a segmenter.
    """
    tensor = layer_named(explainer, images, layer, target)
    found = _explained(explainer, images, target, "vanilla", "grad-cam", _enlarged_cam, tensor)
    return _with_layer(found, tensor)


def layer_grad_cam(
    explainer: Explainer, images: Images, *, target: Question = None, layer: str | None = None
) -> Attribution:
    """Grad-CAM as large as the layer's planes, and with both signs.

    Parameters
    ----------
    explainer, images, target, layer
        As for `grad_cam`.

    Returns
    -------
    An `Attribution` with one channel, as large as the layer's planes.  Its details hold "layer" and
    "layer_shape".

    Raises
    ------
    InputError
        As `grad_cam`.
    """
    tensor = layer_named(explainer, images, layer, target)

    def with_a_channel(run: Run, questions: Questions, tensor: Tensor) -> NDArray[np.float32]:
        return _cam(run, questions, tensor)[:, :, None]

    found = _explained(explainer, images, target, "vanilla", "layer-grad-cam", with_a_channel, tensor)
    layout = of_layer(replace(tensor, channels=0))
    return _with_layer(replace(found, layout=layout, channels="RGB"), tensor)


def guided_grad_cam(
    explainer: Explainer, images: Images, *, target: Question = None, layer: str | None = None
) -> Attribution:
    """Guided Grad-CAM: guided backpropagation, times Grad-CAM (Selvaraju et al. 2016, arXiv:1610.02391).

    Parameters
    ----------
    explainer, images, target, layer
        As for `grad_cam`.

    Returns
    -------
    An `Attribution` with a map like the input.  Its details hold "layer" and "layer_shape".

    Raises
    ------
    InputError
        As `grad_cam`, and for a network without a rectifier.
    """
    tensor = layer_named(explainer, images, layer, target)

    def times_guided(run: Run, questions: Questions, tensor: Tensor) -> NDArray[np.float32]:
        return _enlarged_cam(run, questions, tensor) * questions.gradient(run, "guided")

    found = _explained(
        explainer, images, target, "guided", "guided-grad-cam", times_guided, tensor, to_input=True
    )
    return _with_layer(found, tensor)


def _explained(
    explainer: Explainer,
    images: Images,
    target: Question,
    rule: str,
    method: str,
    maps: Callable[[Run, Questions, Tensor], NDArray[np.float32]],
    tensor: Tensor,
    *,
    to_input: bool = False,
) -> Attribution:
    """Run images, with what `maps` makes of a run, its questions and the planes of a tensor.

    Backward passes end at the tensor, or `to_input`.
    """

    def compute(run: Run, questions: Questions) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        return maps(run, questions, tensor), {}

    kept = _kept(tensor)
    return explained(
        explainer, images, target, rule, method, compute, kept, looks_at_image=True, to_input=to_input
    )


def _cam(run: Run, questions: Questions, tensor: Tensor) -> NDArray[np.float32]:
    """Σ_c w_c · A_c: float32 (n, K, *sides).

    Where the layer is read by a mean of its planes alone, ∂s/∂A_c is the gradient of the mean in each pixel,
    over the number of pixels.  So w_c is, too, and the planes of gradients are never made.
    """
    assert tensor.channels is not None  # it has planes
    pixels = spatial(tensor)
    sides = [axis for axis in range(len(tensor.shape)) if axis != tensor.channels]
    order = *sides, tensor.channels

    # Channels last, the order of arrays on a CPU; and no BLAS, whose threads cost more than the sums.
    def means(gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        last = gradient.transpose(0, 1, *(2 + axis for axis in order))
        sums = np.add.reduce(last.reshape(*last.shape[:2], -1, last.shape[-1]), axis=2)
        return np.asarray(sums / np.float32(elements(pixels)))

    of_means = _gradient_of_means(run, questions, tensor)
    if of_means is None:
        weights = questions.gradient(run, wrt=tensor.name, reduce=means)
    else:
        weights = of_means.reshape(*of_means.shape[:2], -1) / np.float32(elements(pixels))

    def weighted(planes: NDArray[np.float32]) -> NDArray[np.float32]:
        last = planes.transpose(0, *(1 + axis for axis in order))
        last = last.reshape(len(last), -1, last.shape[-1])
        parts = (slice(c, c + _CHANNELS) for c in range(0, last.shape[-1], _CHANNELS))
        sums = [np.einsum("nkc,npc->nkp", weights[..., part], last[..., part]) for part in parts]
        return np.asarray(reduce(np.add, sums))

    cam = run.value(tensor.name, reduce=weighted)
    return cam.reshape(*cam.shape[:2], *pixels)


def _gradient_of_means(run: Run, questions: Questions, tensor: Tensor) -> NDArray[np.float32] | None:
    """The gradient of the mean of each channel: float32 (n, K, …); None where no tensor holds the means."""
    if tensor.means is None or questions.of is not None:
        return None
    return questions.seeds if tensor.means == run.scores_name else questions.gradient(run, wrt=tensor.means)


def _kept(tensor: Tensor) -> tuple[str, ...]:
    """The tensors that a run keeps for Grad-CAM."""
    return (tensor.name,) if tensor.means is None else (tensor.name, tensor.means)


def _enlarged_cam(run: Run, questions: Questions, tensor: Tensor) -> NDArray[np.float32]:
    """Grad-CAM with one channel, in the layout of the input: float32 (n, K, 1, *sides)."""
    last = run.layout == "NHWC"
    sides = run.x.shape[1:-1] if last else run.x.shape[2:]
    if len(sides) != len(tensor.shape) - 1:
        raise InputError(
            f"layer {tensor.name!r} has planes with {len(tensor.shape) - 1} sides, and the input "
            f"{len(sides)}."
        )
    cam = interpolated(np.maximum(_cam(run, questions, tensor), 0), sides, "bilinear", "float32")
    return cam[..., None] if last else cam[:, :, None]


_NOTES = {
    "grad-cam": "one of its pixels stands for a region of the image.  It shows what speaks for the class, "
    "and nothing that speaks against it",
    "layer-grad-cam": "one of its pixels stands for a region of the image",
    "guided-grad-cam": "it tells roughly where.  The detail is that of guided backpropagation, which hardly "
    "depends on the class",
}


def _with_layer(found: Attribution, tensor: Tensor) -> Attribution:
    """The result, which says which layer it is of."""
    size = " × ".join(map(str, spatial(tensor)))
    notes = [f"Grad-CAM is of the tensor {tensor.name!r} ({size}): {_NOTES[found.method]}."]
    return with_details(found, notes, layer=tensor.name, layer_shape=list(tensor.shape))
