"""Gradients as they are: Saliency, and the gradient with respect to an inner tensor.

saliency        m = |∂s/∂x|           Simonyan, Vedaldi & Zisserman 2013, section 3
layer-gradient  m = ∂s/∂a, or a · ∂s/∂a, for an inner tensor a under any rule
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.run import Run
from ..explainer import Explainer
from ..inputs import Images
from ..pictures.layout import Layout
from ..questions.questions import Question
from ..result.attribution import Attribution
from ..rules import Rule
from .common import Questions, explained, with_details
from .planes import has_plane, layer_named, of_layer


def saliency(explainer: Explainer, images: Images, *, target: Question = None) -> Attribution:
    """Saliency: the magnitude of the gradient (Simonyan, Vedaldi & Zisserman 2013, arXiv:1312.6034).

    Parameters
    ----------
    explainer
        The model.
    images, target
        As for `Explainer.explain`.

    Returns
    -------
    An `Attribution` with a map of at least 0.

    Raises
    ------
    InputError
        For arguments that cannot be used.
    """

    def compute(run: Run, questions: Questions) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        return np.abs(questions.gradient(run)), {}

    found = explained(explainer, images, target, "vanilla", "saliency", compute)
    return with_details(
        found,
        (
            "Saliency drops the sign: it tells what would change the score, and not whether up or down. "
            "What the score rests on may be flat, and then gets 0.",
        ),
    )


def layer_gradient(
    explainer: Explainer,
    images: Images,
    *,
    layer: str,
    rule: str | Rule = "vanilla",
    target: Question = None,
    times_activation: bool = False,
) -> Attribution:
    """The gradient of a score with respect to an inner tensor.

    Parameters
    ----------
    explainer
        The model.
    images, target
        As for `Explainer.explain`.
    layer
        The tensor, by a name that `Explainer.run` takes.
    rule
        The rule of the backward pass, which ends at the tensor.
    times_activation
        Whether the gradient is multiplied by the tensor's values.

    Returns
    -------
    An `Attribution` whose map has the tensor's shape, (N, …) in the file's order of axes, or (N, K, …).  Its
    details hold "layer" and "times_activation".

    Raises
    ------
    InputError
        For arguments that cannot be used.
    """
    tensor = layer_named(explainer, images, layer, target, needs_plane=False)
    name, layout = tensor.name, of_layer(tensor)

    def compute(run: Run, questions: Questions) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        gradient = questions.gradient(run, rule, name)
        return gradient * run.value(name)[:, None] if times_activation else gradient, {}

    found = explained(
        explainer,
        images,
        target,
        rule,
        "layer-gradient-x-activation" if times_activation else "layer-gradient",
        compute,
        (name,),
        looks_at_image=times_activation,
        to_input=False,
    )
    is_plane = layout in ("NCHW", "NHWC")
    found = replace(found, layout=layout, channels="RGB")
    if not is_plane:
        found = replace(found, images=None, photos=None)
    notes = []
    if is_plane:
        notes.append(
            f"The map is of the tensor {name!r}, and not of the image: one of its pixels sees a region of "
            "the image, which may be larger than its square in the picture."
        )
        if has_plane(tensor) and _is_flat(found.map, layout):
            notes.append("It is the same in each pixel: it tells which channels count, and not where.")
    return with_details(found, notes, layer=name, times_activation=times_activation)


def _is_flat(maps: NDArray[np.float32], layout: Layout) -> bool:
    """Whether all pixels of a plane are equal and not all 0, as where a mean is all that reads them."""
    sides = (-2, -1) if layout == "NCHW" else (-3, -2)
    return bool(maps.any() and (np.ptp(maps, axis=sides) == 0).all())
