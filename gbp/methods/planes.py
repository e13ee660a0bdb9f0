"""The planes of inner tensors: which tensor has them, and planes of another size."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..explainer import Explainer
from ..graph.tensors import Tensor, find
from ..inputs import Images
from ..limits import elements
from ..pictures.layout import Layout
from ..questions.questions import Question
from .common import tensors_of

#: Stands in a hint where gbp knows no layer to name.
_NO_NAME = "layer='…'"


def spatial(tensor: Tensor) -> tuple[int, ...]:
    """The sides of a tensor's planes."""
    axis = tensor.channels
    return tensor.shape if axis is None else tensor.shape[:axis] + tensor.shape[axis + 1 :]


def has_plane(tensor: Tensor) -> bool:
    """Whether a tensor has planes of several pixels."""
    return tensor.channels is not None and len(tensor.shape) > 1 and elements(spatial(tensor)) > 1


def last_plane(tensors: Sequence[Tensor], rank: int) -> Tensor | None:
    """The last convolution with a plane of several pixels, or what follows it pixel by pixel.

    Parameters
    ----------
    tensors
        In order of computation.
    rank
        Axes of a sample of the input.
    """
    later: list[Tensor] = []  # what was computed later and may follow pixel by pixel, the last first
    for tensor in reversed(tensors):
        if len(tensor.shape) != rank or tensor.planes not in ("made", "kept") or not has_plane(tensor):
            continue
        if tensor.planes == "made":
            return next((each for each in later if spatial(each) == spatial(tensor)), tensor)
        later.append(tensor)
    return None


def _refuse_scores(tensors: Sequence[Tensor], last: Tensor, rank: int) -> None:
    """Raise InputError if `last`, the last plane, makes the scores of a detector or a segmenter.

    Grad-CAM of such a tensor is the plane of the class itself: it shows the answer, and no reason for it.
    """
    scores = tensors[-1]
    behind = tensors[tensors.index(last) + 1 :]
    if any(tensor.planes == "read" for tensor in behind):
        return
    # All scores behind whole planes, which a convolution or a pool as large as the plane has read.
    size = elements(scores.shape)
    if any(t.channels is not None and not has_plane(t) and elements(t.shape) == size for t in behind):
        return
    # Pixels → the last activation or sum with such planes, from large planes to small ones.
    before: dict[int, Tensor] = {}
    convolutions = [tensor for tensor in tensors if tensor.planes == "made" and has_plane(tensor)]
    for tensor in tensors[: tensors.index(convolutions[-1])]:
        if len(tensor.shape) == rank and tensor.planes == "kept" and has_plane(tensor):
            pixels = elements(spatial(tensor))
            if pixels > min(before, default=pixels):
                break
            before[pixels] = tensor
    named = [
        f"layer={tensor.name!r} ({' × '.join(map(str, spatial(tensor)))})"
        for tensor in list(before.values())[:-3:-1]
    ]
    raise InputError(
        f"the last planes, {last.name!r}, make the scores of places: their Grad-CAM is the answer itself.",
        hint=f"Name a layer before the heads: {' or '.join(named) or _NO_NAME}.",
    )


def default_layer(tensors: Sequence[Tensor], rank: int, *, is_hidden: bool = False) -> Tensor:
    """The last planes, or an InputError where there are none or they are scores.

    Parameters
    ----------
    tensors
        In order of computation, up to what is explained.
    rank
        Axes of a sample of the input.
    is_hidden
        Whether a hidden tensor is explained, not the scores.
    """
    last = last_plane(tensors, rank)
    if last is None:
        raise InputError(
            "the network has no convolution with a plane of several pixels.",
            hint=f"Name a tensor with planes: {_NO_NAME}.",
        )
    if not is_hidden:
        _refuse_scores(tensors, last, rank)
    return last


def layer_named(
    explainer: Explainer,
    images: Images,
    layer: str | None,
    target: Question = None,
    *,
    needs_plane: bool = True,
) -> Tensor:
    """The tensor that `layer` means; by default of the last with a plane.

    Parameters
    ----------
    explainer
        The model.
    images
        The samples, whose sizes fix those of a model with open sizes.
    layer
        A name that `tensors.find` knows, or None.
    target
        The target; of a hidden tensor, only what is computed before it can be the last plane.
    needs_plane
        Whether a tensor without a plane is refused.

    Raises
    ------
    InputError
        For a name that no tensor has, where there is no plane, and without a name where the last planes are
        scores.
    """
    tensors = before = explainer.tensors_for(images)
    for hidden in tensors_of(target):
        before = before[: tensors.index(find(tensors, hidden)) + 1]
    rank = len(explainer.input_shape) - 1
    if layer is None:
        return default_layer(before, rank, is_hidden=before is not tensors)
    named = find(tensors, layer)
    if named not in before:
        raise InputError(
            f"layer {named.name!r} is computed after the hidden tensor that is explained, "
            "which does not depend on it.",
            hint="Name a layer before it, or explain a class.",
        )
    if needs_plane and not has_plane(named):
        last = last_plane(before, rank)
        raise InputError(
            f"layer {named.name!r} has no plane, its shape is {list(named.shape)}.",
            hint=f"The last one with a plane is layer={last.name!r}." if last else None,
        )
    return named


def of_layer(tensor: Tensor) -> Layout:
    """The meaning of a tensor's axes."""
    rank = len(tensor.shape)
    if rank == 3 and tensor.channels in (0, 2):
        return "NCHW" if tensor.channels == 0 else "NHWC"
    return "NC" if rank == 1 else "NCL" if rank == 2 else "ND"
