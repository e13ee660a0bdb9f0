"""keras-explainable's gradients: `logits, maps = ke.gradients(model, x, y)`.

Inputs are (N, H, W, C), whatever the layout of the ONNX file; maps are (N, H, W, K), one for each unit.  A
final Softmax or Sigmoid is left out, as the original asks its users to do.  Without units all are explained,
some at a time.  Checked against the formula of version 0.0.2.  It may import what `gbp.compat` may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ... import InputError
from ...arguments import array_of, at_least_one, numbers_of
from ...errors import calling
from ...methods.interpolation import interpolated
from ..core import AnyModel, ChannelsLast, Floats, floats, loaded, refuse
from . import filters, utils

__all__ = ["explain", "filters", "gradients", "methods", "partial_explain", "utils"]

Maps: TypeAlias = NDArray[Any]
#: Maps, axis=… → maps.
Postprocessing: TypeAlias = Callable[..., Maps]

_SPATIAL = (-3, -2)
#: Units that are explained at a time.
_UNITS = 16


def _gradients(
    model: AnyModel,
    inputs: ArrayLike,
    indices: ArrayLike | None = None,
    indices_axis: int = -1,
    indices_batch_dims: int = -1,
    spatial_axis: Sequence[int] = _SPATIAL,
    gradient_filter: Callable[[Maps], Maps] = np.abs,
) -> tuple[Floats, Floats]:
    """The gradient of units, filtered, and its mean over the channels (Simonyan et al. 2013).

    Parameters
    ----------
    model
        An ONNX file, its bytes, a ModelProto, or an `Explainer`.
    inputs
        (N, H, W, C).
    indices
        int (N, K): the units of each sample; by default all.
    indices_axis, indices_batch_dims, spatial_axis
        As in the original; gbp takes their defaults alone.
    gradient_filter
        A function of the gradient (n, K, H, W, C), before the channels' mean is taken.

    Returns
    -------
    logits (N, K) and maps (N, H, W, K), float32.

    Raises
    ------
    InputError
        For what does not fit the model, and for a function that fails or returns another shape.
    """
    refuse(indices_axis=(indices_axis, -1), indices_batch_dims=(indices_batch_dims, -1))
    _check_axes(spatial_axis)
    return _explained(model, inputs, indices, None, gradient_filter)


#: `methods.gradient.gradients`, the method without postprocessing.
methods = SimpleNamespace(gradient=SimpleNamespace(gradients=_gradients))


def explain(
    method: Callable[..., Any],
    model: AnyModel,
    x: ArrayLike,
    y: ArrayLike | None = None,
    batch_size: int | None = None,
    verbose: str | int = "auto",
    steps: int | None = None,
    callbacks: Sequence[Any] | None = None,
    max_queue_size: int = 10,
    workers: int = 1,
    use_multiprocessing: bool = False,
    force: bool = True,
    *,
    postprocessing: Postprocessing | None = None,
    resizing: bool | Sequence[int] | None = True,
    spatial_axis: Sequence[int] = _SPATIAL,
    gradient_filter: Callable[[Maps], Maps] = np.abs,
) -> tuple[Floats, Floats]:
    """Explain units of a model.

    Parameters
    ----------
    method
        `methods.gradient.gradients`.
    model
        An ONNX file, its bytes, a ModelProto, or an `Explainer`.
    x
        (N, H, W, C).
    y
        int (N, K): the units to explain; by default all.
    batch_size
        How many samples are computed at once; by default as many as memory holds.
    verbose, max_queue_size, workers, use_multiprocessing, force
        Accepted and not needed: they change no result.
    steps, callbacks
        Must be None.
    postprocessing
        A function of maps (n, H, W, K) and `axis`, such as `filters.absolute_normalize`.
    resizing
        Whether maps get the input's size, which gradients have; or another size, (H, W).
    spatial_axis
        The axes of the planes: the default alone.
    gradient_filter
        As for `methods.gradient.gradients`.

    Returns
    -------
    logits (N, K) and maps (N, H, W, K), float32.

    Raises
    ------
    InputError
        For what does not fit the model, and for a function that fails or returns another shape.
    """
    if method is not _gradients:
        name = getattr(method, "__name__", repr(method))
        raise InputError(f"gbp does not support the method {name!r}.", supported="methods.gradient.gradients")
    refuse(steps=(steps, None), callbacks=(callbacks, None))
    _check_axes(spatial_axis)
    logits, maps = _explained(model, x, y, batch_size, gradient_filter, postprocessing)
    if resizing is None or isinstance(resizing, bool):
        return logits, maps
    planes = interpolated(np.moveaxis(maps, -1, 1), tuple(resizing), "bilinear")
    return logits, np.ascontiguousarray(np.moveaxis(planes, 1, -1), np.float32)


def gradients(
    model: AnyModel,
    x: ArrayLike,
    y: ArrayLike | None = None,
    batch_size: int | None = 32,
    postprocessing: Postprocessing | None = filters.absolute_normalize,
    resizing: bool | Sequence[int] | None = False,
    **options: Any,
) -> tuple[Floats, Floats]:
    """The gradient of units: `explain` with `methods.gradient.gradients`, normalised to 0..1.

    Parameters
    ----------
    model, x, y, batch_size, postprocessing, resizing
        As for `explain`.
    **options
        The other arguments of `explain`.

    Returns
    -------
    logits (N, K) and maps (N, H, W, K), float32.

    Raises
    ------
    InputError
        As `explain`.
    """
    return explain(
        _gradients, model, x, y, batch_size, postprocessing=postprocessing, resizing=resizing, **options
    )


def partial_explain(method: Callable[..., Any], **defaults: Any) -> Callable[..., tuple[Floats, Floats]]:
    """`explain` of a method, with other defaults.

    Parameters
    ----------
    method
        `methods.gradient.gradients`.
    **defaults
        Arguments of `explain`.
    """

    def explained(*args: Any, **options: Any) -> tuple[Floats, Floats]:
        return explain(method, *args, **{**defaults, **options})

    return explained


def _explained(
    model: AnyModel,
    x: ArrayLike,
    y: ArrayLike | None,
    batch_size: int | None,
    gradient_filter: Callable[[Maps], Maps],
    postprocessing: Postprocessing | None = None,
) -> tuple[Floats, Floats]:
    """The logits (N, K) and the maps (N, H, W, K) of K units of each sample; of all where `y` is None."""
    at_least_one("batch_size", batch_size)
    explainer = loaded(model)
    layout = ChannelsLast(explainer)
    samples = layout.into(floats(x))
    if samples.ndim != 4:
        raise InputError(f"the model takes {samples.ndim} axes.", supported="images, (N, H, W, C)")
    units = None if y is None else _units(y, len(samples))
    all_logits: list[Floats] = []
    all_maps = np.empty(0, np.float32)  # may be most of the memory, so it is filled in place
    for run in explainer.runs(samples, batch_size=batch_size):
        n, classes = run.scores.shape
        of = np.tile(np.arange(classes), (n, 1)) if units is None else units[run.samples]
        if of.min() < 0 or of.max() >= classes:
            raise InputError("y holds an index that is no unit.", supported=f"0 to {classes - 1}")
        if not all_maps.size:
            all_maps = np.empty((len(samples), *layout.back(run.x).shape[1:-1], of.shape[1]), np.float32)
        for start in range(0, of.shape[1], _UNITS):
            some = of[:, start : start + _UNITS]
            seeds = np.zeros((*some.shape, classes), np.float32)
            np.put_along_axis(seeds, some[..., None], 1, axis=-1)
            gradient = layout.back(run.vjp(seeds), axis=2)
            with calling("gradient_filter"):
                filtered = gradient_filter(gradient)
            filtered = numbers_of("gradient_filter returned", filtered, (*gradient.shape[:-1], None))
            maps = np.moveaxis(filtered.mean(axis=-1), 1, -1)
            if postprocessing is not None:
                with calling("postprocessing"):
                    processed = postprocessing(maps, axis=_SPATIAL)
                maps = numbers_of("postprocessing returned", processed, maps.shape)
            all_maps[run.samples, ..., start : start + maps.shape[-1]] = maps
        all_logits.append(np.take_along_axis(run.scores, of, 1))
    return np.concatenate(all_logits), all_maps


def _units(y: ArrayLike, n: int) -> NDArray[np.int64]:
    units = array_of(y)
    if units.dtype.kind not in "iu" or units.ndim != 2 or len(units) != n or not units.size:
        raise InputError(
            f"y has shape {list(units.shape)} and holds {units.dtype}.", supported=f"whole numbers [{n}, K]"
        )
    return units.astype(np.int64)


def _check_axes(spatial_axis: Sequence[int]) -> None:
    if tuple(spatial_axis) not in ((-3, -2), (1, 2)):
        raise InputError(f"gbp does not support spatial_axis={tuple(spatial_axis)}.", supported="(-3, -2)")
