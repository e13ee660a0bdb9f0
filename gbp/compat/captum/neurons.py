"""Attributions of the neurons of a layer."""

from __future__ import annotations

from typing import Any

from ...arguments import at_least_one
from .common import Inputs, Selector, baseline_of, opened, refuse_inputs
from .layers import OfLayer, TimesInput
from .path import path_integral


class NeuronGradient(OfLayer):
    """The gradient of neurons of a layer.  Parameters as `OfLayer`."""

    def attribute(
        self,
        inputs: Inputs,
        neuron_selector: Selector,
        additional_forward_args: None = None,
        attribute_to_neuron_input: bool = False,
    ) -> Any:
        """Explain neurons.

        Parameters
        ----------
        inputs, additional_forward_args
            As `Saliency.attribute`.
        neuron_selector
            An index; or indices and slices, one for each axis of the layer: what a slice holds is summed.
        attribute_to_neuron_input
            Must be False: name the tensor before the layer instead.

        Returns
        -------
        float32, shaped like the inputs.

        Raises
        ------
        InputError
            For what does not fit the model, and for a function as selector.
        """
        x, wrap = opened(inputs, additional_forward_args)
        refuse_inputs(attribute_to_neuron_input=attribute_to_neuron_input)
        return wrap(self._neuron_gradient(x, neuron_selector))


class NeuronGuidedBackprop(NeuronGradient):
    """Guided backpropagation from neurons of a layer.  Parameters as `OfLayer`."""

    _rule = "guided"


class NeuronDeconvolution(NeuronGradient):
    """A DeconvNet from neurons of a layer.  Parameters as `OfLayer`."""

    _rule = "deconvnet"


class NeuronIntegratedGradients(TimesInput):
    """Integrated Gradients of neurons of a layer.  Parameters as `TimesInput`."""

    def attribute(
        self,
        inputs: Inputs,
        neuron_selector: Selector,
        baselines: Any = None,
        additional_forward_args: None = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        attribute_to_neuron_input: bool = False,
    ) -> Any:
        """Explain neurons.  Parameters as `NeuronGradient.attribute` and `IntegratedGradients.attribute`."""
        x, wrap = opened(inputs, additional_forward_args)
        refuse_inputs(attribute_to_neuron_input=attribute_to_neuron_input)
        return wrap(
            path_integral(
                lambda points, _: self._neuron_gradient(points, neuron_selector),
                x,
                baseline_of(baselines, x),
                n_steps,
                method,
                self.multiply_by_inputs,
                at_least_one("internal_batch_size", internal_batch_size),
            )
        )
