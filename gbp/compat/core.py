"""The base of all drop-ins: the model, the layout of arrays, and gradients of seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import PROBABILITY, Explainer, InputError, Model, Probability, Run, Tensor
from ..arguments import array_of, sizes_fit
from ..graph.tensors import find

#: An ONNX file, its bytes, a ModelProto, or an Explainer.
AnyModel: TypeAlias = Explainer | Model
Floats: TypeAlias = NDArray[np.float32]
#: From a run to its seeds.
Seeds: TypeAlias = Callable[[Run], NDArray[Any]]


def loaded(model: AnyModel, output: str | Probability | None = None) -> Explainer:
    """The Explainer of a model, of this output where one is named.

    Parameters
    ----------
    model
        The model.
    output
        As for `Explainer`; None keeps the output of an Explainer.

    Raises
    ------
    GbpError
        Where the model cannot be explained.
    """
    if not isinstance(model, Explainer):
        return Explainer(model, output=output)
    return model if output is None else model.with_output(output)


def last_output(model: AnyModel) -> Explainer:
    """The Explainer of a model's own last output, as frameworks have it: probabilities, where it ends so."""
    if isinstance(model, Explainer):
        return model
    try:
        return Explainer(model, output=PROBABILITY)
    except InputError:
        return Explainer(model)


def layer_of(explainer: Explainer, layer: str | int) -> Tensor:
    """The tensor that a layer makes.

    Parameters
    ----------
    explainer
        The model.
    layer
        The name of a tensor or of a node, or a part that no other has; or its index among
        `Explainer.tensors`, from the end where it is negative.

    Raises
    ------
    InputError
        Where there is none.
    """
    tensors = explainer.tensors
    if isinstance(layer, bool) or not isinstance(layer, (int, str)):
        raise InputError(f"layer is {layer!r}.", supported="the name of a tensor or of a node, or an index")
    if isinstance(layer, str):
        return find(tensors, layer)
    if not -len(tensors) <= layer < len(tensors):
        raise InputError(f"there is no layer {layer}; the network has {len(tensors)}.")
    return tensors[layer]


def floats(values: ArrayLike, what: str = "inputs") -> Floats:
    """An array of float32.  Raises InputError for what holds no numbers."""
    array = array_of(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what} holds {array.dtype}.", supported="arrays of numbers")
    with np.errstate(over="ignore"):  # infinity is refused later
        return np.ascontiguousarray(array, np.float32)


def vjps(
    explainer: Explainer,
    x: Floats,
    seeds: Seeds,
    rule: str = "vanilla",
    *,
    batch_size: int | None = None,
    of: str | None = None,
    wrt: str | None = None,
) -> Floats:
    """The gradient of seeds, for any number of samples.

    Parameters
    ----------
    explainer
        The model.
    x
        float32 (N, …) in the model's own layout.
    seeds
        From a run of some of the samples, `run.samples`, to their seeds.
    rule, of, wrt
        As for `Run.vjp`.
    batch_size
        As for `Explainer.explain`.
    """
    keep = [name for name in (of, wrt) if name is not None]
    runs = explainer.runs(x, keep, batch_size=batch_size)
    return np.concatenate([run.vjp(seeds(run), rule, of=of, wrt=wrt) for run in runs])


def deviation(name: str, value: Any) -> float:
    """A standard deviation.  Raises InputError unless it is a finite number of at least 0."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value < np.inf:
        raise InputError(f"{name} is {value!r:.80}.", supported="numbers of at least 0")
    return float(value)


def refuse(**given: Any) -> None:
    """Raise InputError for the first argument that has another value than its default, which is given too.

    Parameters
    ----------
    **given
        The name of an argument → (its value, its default).
    """
    for name, (value, default) in given.items():
        if value is not default and value != default:
            raise InputError(f"gbp does not support {name}={value!r:.80}.", supported=f"{name}={default!r}")


class ChannelsLast:
    """Samples as Keras has them, (N, H, W, C), for a model of any layout.

    Parameters
    ----------
    explainer
        The model.
    """

    def __init__(self, explainer: Explainer) -> None:
        self.moves = explainer.layout == "NCHW"
        self._shape = explainer.input_shape

    def into(self, x: Floats) -> Floats:
        """The samples in the model's own layout.

        Parameters
        ----------
        x
            float32 (N, H, W, C), or as the model has it where that is no image.

        Raises
        ------
        InputError
            Where they do not fit the model.
        """
        y = np.ascontiguousarray(np.moveaxis(x, -1, 1)) if self.moves and x.ndim == 4 else x
        if y.ndim == 0 or not sizes_fit(y.shape[1:], self._shape[1:]):
            sizes = list(self._shape[1:])
            sizes = [*sizes[1:], sizes[0]] if self.moves else sizes
            text = ", ".join("?" if n is None else str(n) for n in sizes)
            raise InputError(f"inputs have shape {list(x.shape)}.", supported=f"[N, {text}]")
        return y

    def back(self, y: NDArray[Any], axis: int = 1) -> NDArray[Any]:
        """Arrays of the model's layout with the channels last.

        Parameters
        ----------
        y
            (N, C, H, W), say.
        axis
            The axis of the channels.
        """
        return np.ascontiguousarray(np.moveaxis(y, axis, -1)) if self.moves and y.ndim >= 4 else y
