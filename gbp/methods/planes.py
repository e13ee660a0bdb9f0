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

#: Ops that slide a window over a plane.
_CONVOLUTIONS = ("Conv", "ConvTranspose", "FusedConv")
#: Ops that compute each pixel of a plane of the same size, or put planes together.
_POINTWISE = (
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "Affine", "Scale"),
    *("Relu", "Clip", "ThresholdedRelu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh"),
    *("HardSigmoid", "HardSwish", "Swish", "Mish", "Gelu", "Softplus", "Softsign", "Max", "Min"),
    *("Add", "Sub", "Sum", "Mean", "Mul", "Div", "Concat"),
)


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
        if len(tensor.shape) != rank or not (tensor.op in _CONVOLUTIONS or tensor.op in _POINTWISE):
            continue
        if not has_plane(tensor):
            continue
        if tensor.op in _CONVOLUTIONS:
            return next((each for each in later if spatial(each) == spatial(tensor)), tensor)
        later.append(tensor)
    return None


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
        For a name that no tensor has, and where there is no plane.
    """
    tensors = before = explainer.tensors_for(images)
    for hidden in tensors_of(target):
        before = before[: tensors.index(find(tensors, hidden)) + 1]
    last = last_plane(before, len(explainer.input_shape) - 1)
    if layer is None:
        if last is None:
            raise InputError(
                "the network has no convolution with a plane of several pixels.",
                hint="Name a tensor with planes: layer='…'.",
            )
        return last
    named = find(tensors, layer)
    if named not in before:
        raise InputError(
            f"layer {named.name!r} is computed after the hidden tensor that is explained, "
            "which does not depend on it.",
            hint="Name a layer before it, or explain a class.",
        )
    if needs_plane and not has_plane(named):
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
