"""PAIR's saliency: a `call_model_function` for its methods (`saliency.core`).

    import saliency.core as saliency
    from gbp.compat.saliency import call_model_function

    call = call_model_function("model.onnx", layer="relu4")
    mask = saliency.GradientSaliency().GetMask(x, call, {"class_idx_str": 5})

PAIR's package computes its methods from what this function returns.  Checked against `saliency` 0.2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import InputError, Run
from .core import AnyModel, ChannelsLast, floats, layer_of, loaded

#: The keys of PAIR's dictionaries.
CONVOLUTION_LAYER_VALUES = "CONVOLUTION_LAYER_VALUES"
CONVOLUTION_OUTPUT_GRADIENTS = "CONVOLUTION_OUTPUT_GRADIENTS"
INPUT_OUTPUT_GRADIENTS = "INPUT_OUTPUT_GRADIENTS"
OUTPUT_LAYER_VALUES = "OUTPUT_LAYER_VALUES"
_KEYS = (
    CONVOLUTION_LAYER_VALUES,
    CONVOLUTION_OUTPUT_GRADIENTS,
    INPUT_OUTPUT_GRADIENTS,
    OUTPUT_LAYER_VALUES,
)

CallModel: TypeAlias = Callable[..., dict[str, NDArray[np.float32]]]


def call_model_function(
    model: AnyModel,
    *,
    target: int | None = None,
    layer: str | int | None = None,
    rule: str = "vanilla",
) -> CallModel:
    """A function that PAIR's methods call.

    Parameters
    ----------
    model
        An ONNX file, its bytes, a ModelProto, or an `Explainer`.
    target
        The class, where the call's `call_model_args` do not name one.
    layer
        The tensor or node whose values and gradients Grad-CAM is made of.
    rule
        The rule of the backward pass.

    Returns
    -------
    f(x_value_batch, call_model_args=None, expected_keys=None) → a dictionary of the expected keys, of all
    that are known where none are named.  Samples are (N, H, W, C), whatever the layout of the file, or as the
    file has them where they are no images; so are the layer's planes and gradients.  `call_model_args` is a
    dictionary whose only value, under any key, is the class.

    Raises
    ------
    GbpError
        Where the model cannot be explained, and for a layer that it has not.  The function raises InputError.
    """
    explainer = loaded(model)
    layout = ChannelsLast(explainer)
    inner = None if layer is None else layer_of(explainer, layer).name

    def call(
        x_value_batch: ArrayLike,
        call_model_args: Mapping[str, Any] | None = None,
        expected_keys: Sequence[str] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        chosen = _class(call_model_args, target)
        keys = [key for key in _KEYS if inner is not None or not key.startswith("CONV")]
        wanted = keys if expected_keys is None else list(expected_keys)
        for key in wanted:
            if key not in keys:
                hint = "Name the layer: call_model_function(…, layer='…')." if key in _KEYS else None
                raise InputError(f"gbp does not know {key!r}.", supported=", ".join(keys), hint=hint)
        x = layout.into(floats(x_value_batch, "x_value_batch"))
        parts = [
            _parts(run, wanted, chosen, inner, rule) for run in explainer.runs(x, [inner] if inner else [])
        ]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in wanted}
        return {
            key: value if key == OUTPUT_LAYER_VALUES else _last(layout, key, value)
            for key, value in joined.items()
        }

    return call


def _parts(
    run: Run, wanted: Sequence[str], chosen: int, inner: str | None, rule: str
) -> dict[str, NDArray[np.float32]]:
    """The values of `wanted`, by their keys, for one class of all samples of a run."""
    classes = run.scores.shape[1]
    if not 0 <= chosen < classes:
        raise InputError(f"class {chosen} is none.", supported=f"0 to {classes - 1}")
    seeds = np.zeros(run.scores.shape, np.float32)
    seeds[:, chosen] = 1
    made: dict[str, Callable[[], NDArray[np.float32]]] = {
        CONVOLUTION_LAYER_VALUES: lambda: run.value(inner or ""),
        CONVOLUTION_OUTPUT_GRADIENTS: lambda: run.vjp(seeds, rule, wrt=inner),
        INPUT_OUTPUT_GRADIENTS: lambda: run.vjp(seeds, rule),
        OUTPUT_LAYER_VALUES: lambda: run.scores[:, chosen],
    }
    return {key: made[key]() for key in wanted}


def _last(layout: ChannelsLast, key: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
    """With the channels last.  Inner planes have them first in ONNX, whatever the input's layout."""
    if key == INPUT_OUTPUT_GRADIENTS:
        return layout.back(value)
    return np.ascontiguousarray(np.moveaxis(value, 1, -1)) if value.ndim == 4 else value


def _class(given: Mapping[str, Any] | None, target: int | None) -> int:
    values = list((given or {}).values()) or [target]
    if len(values) != 1 or not isinstance(values[0], (int, np.integer)) or isinstance(values[0], bool):
        raise InputError(
            f"call_model_args is {given!r:.80}.",
            supported="a dictionary that holds a class index, as {'class_idx_str': 5}",
        )
    return int(values[0])
