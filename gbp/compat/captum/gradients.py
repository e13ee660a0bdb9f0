"""Attributions to the input: Saliency, GuidedBackprop, Deconvolution, InputXGradient, IntegratedGradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...arguments import at_least_one
from ..core import AnyModel
from .common import Attribution, Inputs, Target, baseline_of, opened, selected, targets_of
from .path import path_integral


class Saliency(Attribution):
    """The gradient, or its magnitude.  Parameters as `Attribution`."""

    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        abs: bool = True,
        additional_forward_args: None = None,
    ) -> Any:
        """Explain samples.

        Parameters
        ----------
        inputs
            (N, …), or a tuple of one such array, which gives a tuple.
        target
            The output: an index; indices along its axes; one of these for each sample; or None where there is
            one output.
        abs
            Whether the magnitude is returned.
        additional_forward_args
            Must be None: an `Explainer` takes the other inputs of a model by `given`.

        Returns
        -------
        float32, shaped like the inputs.

        Raises
        ------
        InputError
            For what does not fit the model.
        """
        x, wrap = opened(inputs, additional_forward_args)
        gradient = self._gradient(x, target)
        return wrap(np.abs(gradient) if abs else gradient)


class Plain(Attribution):
    """A gradient under a rule, or its product with the input.  Parameters as `Attribution`."""

    _times_input = False

    def attribute(self, inputs: Inputs, target: Target = None, additional_forward_args: None = None) -> Any:
        """Explain samples.  Parameters as `Saliency.attribute`."""
        x, wrap = opened(inputs, additional_forward_args)
        gradient = self._gradient(x, target)
        return wrap(gradient * x if self._times_input else gradient)


class GuidedBackprop(Plain):
    """Guided backpropagation.  Parameters as `Attribution`."""

    _rule = "guided"


class Deconvolution(Plain):
    """A DeconvNet.  Parameters as `Attribution`."""

    _rule = "deconvnet"


class InputXGradient(Plain):
    """The gradient times the input.  Parameters as `Attribution`."""

    _times_input = True


class IntegratedGradients(Attribution):
    """Integrated Gradients.

    Parameters
    ----------
    model
        As `Attribution`.
    multiply_by_inputs
        Whether the mean gradient is multiplied by the difference from the baseline.
    """

    def __init__(self, model: AnyModel, multiply_by_inputs: bool = True) -> None:
        super().__init__(model)
        self.multiply_by_inputs = multiply_by_inputs

    def attribute(
        self,
        inputs: Inputs,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: None = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Explain samples.

        Parameters
        ----------
        inputs, target, additional_forward_args
            As `Saliency.attribute`.
        baselines
            A number, or an array that broadcasts to the inputs; by default 0.
        n_steps
            Points on the way.
        method
            "gausslegendre", "riemann_left", "riemann_right", "riemann_middle" or "riemann_trapezoid".
        internal_batch_size
            How many points are computed at once; results do not depend on it.
        return_convergence_delta
            Whether the sum of each map minus the score's difference is returned too.

        Returns
        -------
        The maps; or (maps, float64 (N,)).

        Raises
        ------
        InputError
            For what does not fit the model.
        """
        x, wrap = opened(inputs, additional_forward_args)
        start = baseline_of(baselines, x)
        maps = path_integral(
            lambda points, i: self._gradient(points, targets_of(target, i, len(x), len(points))),
            x,
            start,
            n_steps,
            method,
            self.multiply_by_inputs,
            at_least_one("internal_batch_size", internal_batch_size),
        )
        if not return_convergence_delta:
            return wrap(maps)
        scores = [selected(self.model.predict(at), target) for at in (x, start)]
        delta = maps.reshape(len(x), -1).sum(axis=1, dtype=np.float64) - (scores[0] - scores[1])
        return wrap(maps), delta
