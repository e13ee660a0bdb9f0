"""The base of Captum's attributions: samples, targets and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ... import Explainer, InputError, Run
from ...arguments import array_of, fits
from ...errors import counted
from ..core import AnyModel, Floats, Seeds, floats, loaded, vjps

#: An array (N, …), or a tuple of one; a tuple gives a tuple.
Inputs: TypeAlias = ArrayLike | tuple[ArrayLike]
#: An index, indices along the axes of the output, one of these for each sample, or None for a single output.
Target: TypeAlias = int | tuple[int, ...] | Sequence[Any] | NDArray[Any] | None
#: An index, or indices and slices along the axes of the layer; what a slice holds is summed.
Selector: TypeAlias = int | tuple[int | slice, ...]


class Attribution:
    """The base of all attributions.

    Parameters
    ----------
    model
        An ONNX file, its bytes, a ModelProto, or an `Explainer`.

    Raises
    ------
    GbpError
        Where the model cannot be explained.
    """

    _rule = "vanilla"

    def __init__(self, model: AnyModel) -> None:
        self.model: Explainer = loaded(model)

    def _gradient(self, x: Floats, target: Any) -> Floats:
        """The gradient for samples with their target."""
        return vjps(self.model, x, class_seeds(target, len(x)), self._rule)


def opened(inputs: Inputs, additional_forward_args: Any) -> tuple[Floats, Callable[[Floats], Any]]:
    """The samples, and what puts a result into a tuple where they came in one."""
    if additional_forward_args is not None:
        raise InputError(
            "gbp does not support additional_forward_args.",
            hint="An Explainer takes the model's other inputs: Explainer(…, given={name: value}).",
        )
    if not isinstance(inputs, tuple):
        return floats(inputs), lambda y: y
    if len(inputs) != 1:
        raise InputError(f"inputs holds {len(inputs)} arrays.", supported="one, which is explained")
    return floats(inputs[0]), lambda y: (y,)


def refuse_inputs(**given: bool) -> None:
    """Refuse options that ask for the input of a layer in place of its output, where they are True."""
    for name, value in given.items():
        if value:
            raise InputError(
                f"gbp does not support {name}=True.", hint="Name the tensor before the layer instead."
            )


def baseline_of(baselines: Any, x: Floats) -> Floats:
    """The baseline of each sample, in the shape of x; by default 0.  Raises InputError."""
    given = baselines[0] if isinstance(baselines, tuple) else baselines
    found = floats(0.0 if given is None else given, "baselines")
    if not fits(found, x.shape):
        raise InputError(
            f"baselines have shape {list(found.shape)}, or are not finite in float32.",
            supported=f"numbers, finite in float32, that broadcast to {list(x.shape)}",
        )
    return np.broadcast_to(found, x.shape)


def _is_one(target: Target) -> bool:
    """Whether it is one target for all samples, and not one for each.  An array of one number is one."""
    if hasattr(target, "__array__"):
        return np.size(np.asarray(target)) == 1
    return isinstance(target, (int, tuple)) or np.ndim(np.asarray(target)) == 0


def classes_of(target: Target, n: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Flat indices into outputs of `shape`, one for each of n samples."""
    sizes = tuple(size for size in shape if size != 1) or (1,)
    if target is None:
        if sizes != (1,):
            raise InputError(f"target is None, and a sample has outputs {list(shape)}.", supported="an index")
        return np.zeros(n, np.int64)
    rows = [target] * n if _is_one(target) else list(target)  # type: ignore[arg-type]
    if len(rows) != n:
        raise InputError(f"target holds {counted(len(rows), 'entry', 'entries')} for {counted(n, 'sample')}.")
    found = []
    for row in rows:
        given = np.atleast_1d(array_of(row))
        if given.dtype.kind not in "iu":
            raise InputError(f"target holds {row!r:.80}.", supported="whole numbers, and tuples of them")
        index = tuple(int(i) for i in given.reshape(-1))
        axes = sizes if len(index) == len(sizes) else shape
        if len(index) != len(axes) or not all(-size <= i < size for i, size in zip(index, axes, strict=True)):
            raise InputError(f"target {row!r} is no output.", supported=f"indices into {list(shape)}")
        found.append(np.ravel_multi_index([i % size for i, size in zip(index, axes, strict=True)], axes))
    return np.array(found, np.int64)


def class_seeds(target: Target, n: int) -> Seeds:
    """Seeds of the scores: 1 at the target of each of n samples."""

    def seeds(run: Run) -> NDArray[np.float32]:
        made = np.zeros(run.scores.shape, np.float32)
        classes = classes_of(target, n, run.score_shape)[run.samples]
        np.put_along_axis(made, classes[:, None], 1, axis=1)
        return made

    return seeds


def neuron_seeds(layer: str, selector: Selector) -> Seeds:
    """Seeds of a layer's output: 1 at the neuron, or at each of those that slices select."""
    index = selector if isinstance(selector, tuple) else (selector,)
    if not all(isinstance(i, (int, np.integer, slice)) and not isinstance(i, bool) for i in index):
        raise InputError(f"neuron_selector is {selector!r:.80}.", supported="an index, or indices and slices")

    def seeds(run: Run) -> NDArray[np.float32]:
        made = np.zeros(run.value(layer).shape, np.float32)
        whole = len(index) == made.ndim - 1 or any(isinstance(i, slice) for i in index)
        try:
            if not whole:
                raise IndexError
            made[(slice(None), *index)] = 1
        except IndexError:
            raise InputError(
                f"neuron_selector {selector!r} is no neuron of {layer!r}.",
                supported=f"indices into {list(made.shape[1:])}",
            ) from None
        return made

    return seeds


def targets_of(target: Any, i: int, n: int, copies: int) -> Any:
    """The target of sample i, for copies of it."""
    if target is None or _is_one(target):
        return target
    if len(target) != n:
        raise InputError(
            f"target holds {counted(len(target), 'entry', 'entries')} for {counted(n, 'sample')}."
        )
    return [target[i]] * copies


def repeated(target: Target, n: int, copies: int) -> Any:
    """The targets of samples, for copies of each, one after another."""
    return target if _is_one(target) else [t for i in range(n) for t in targets_of(target, i, n, copies)]


def selected(scores: Floats, target: Target) -> NDArray[np.float64]:
    """The score of each sample's target, from scores (N, …)."""
    classes = classes_of(target, len(scores), scores.shape[1:])
    return np.asarray(np.take_along_axis(scores, classes[:, None], 1)[:, 0], np.float64)
