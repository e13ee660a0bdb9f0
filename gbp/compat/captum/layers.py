"""Attributions to a layer: LayerActivation, LayerGradientXActivation, LayerGradCam; and GuidedGradCam."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import InputError
from ...methods.interpolation import interpolated
from ..core import AnyModel, Floats, layer_of, refuse, vjps
from .common import (
    Attribution,
    Inputs,
    Selector,
    Target,
    class_seeds,
    neuron_seeds,
    opened,
    refuse_inputs,
)
from .gradients import GuidedBackprop


class OfLayer(Attribution):
    """An attribution to a layer, or of its neurons.

    Parameters
    ----------
    model
        As `Attribution`.
    layer
        The name of a tensor or of a node, or a part that no other has; or an index among `Explainer.tensors`.
    device_ids
        Must be None.
    """

    def __init__(self, model: AnyModel, layer: str | int, device_ids: None = None) -> None:
        super().__init__(model)
        refuse(device_ids=(device_ids, None))
        self.layer = layer_of(self.model, layer).name

    def _values_and_gradients(
        self, x: Floats, target: Target, rule: str = "vanilla"
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        seeds, found = class_seeds(target, len(x)), []
        for run in self.model.runs(x, [self.layer]):
            found.append((run.value(self.layer), run.vjp(seeds(run), rule, wrt=self.layer)))
        values, gradients = (np.concatenate(each).astype(np.float64) for each in zip(*found, strict=True))
        return values, gradients

    def _neuron_gradient(self, x: Floats, selector: Selector) -> Floats:
        return vjps(self.model, x, neuron_seeds(self.layer, selector), self._rule, of=self.layer)


class TimesInput(OfLayer):
    """An attribution to a layer, or of its neurons, that may be a product.

    Parameters
    ----------
    model, layer, device_ids
        As `OfLayer`.
    multiply_by_inputs
        Whether gradients are multiplied by the layer's values, or by the difference from a baseline.
    """

    def __init__(
        self, model: AnyModel, layer: str | int, device_ids: None = None, multiply_by_inputs: bool = True
    ) -> None:
        super().__init__(model, layer, device_ids)
        self.multiply_by_inputs = multiply_by_inputs


class LayerActivation(OfLayer):
    """The values of a layer.  Parameters as `OfLayer`."""

    def attribute(
        self,
        inputs: Inputs,
        additional_forward_args: None = None,
        attribute_to_layer_input: bool = False,
    ) -> Floats:
        """The layer's values, float32 (N, …).  Parameters as `LayerGradCam.attribute`."""
        x, _ = opened(inputs, additional_forward_args)
        refuse_inputs(attribute_to_layer_input=attribute_to_layer_input)
        return np.concatenate([run.value(self.layer) for run in self.model.runs(x, [self.layer])])


class LayerGradientXActivation(TimesInput):
    """The gradient of a layer times its values.  Parameters as `TimesInput`."""

    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: None = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: None = None,
    ) -> Floats:
        """Explain samples by a layer, float32 (N, …).  Parameters as `LayerGradCam.attribute`."""
        x, _ = opened(inputs, additional_forward_args)
        refuse_inputs(attribute_to_layer_input=attribute_to_layer_input)
        refuse(grad_kwargs=(grad_kwargs, None))
        values, gradients = self._values_and_gradients(x, target)
        return np.asarray(gradients * values if self.multiply_by_inputs else gradients, np.float32)


class LayerGradCam(OfLayer):
    """Grad-CAM, of the size of the layer.  Parameters as `OfLayer`."""

    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: None = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: None = None,
    ) -> Floats:
        """Explain samples by a layer.

        Parameters
        ----------
        inputs, target, additional_forward_args
            As `Saliency.attribute`.
        attribute_to_layer_input
            Must be False: name the tensor before the layer instead.
        relu_attributions
            Whether what is negative becomes 0.
        attr_dim_summation
            Whether the channels are added up to one.
        grad_kwargs
            Must be None.

        Returns
        -------
        float32 (N, 1, H, W), or (N, C, H, W).

        Raises
        ------
        InputError
            For what does not fit the model.
        """
        x, _ = opened(inputs, additional_forward_args)
        refuse_inputs(attribute_to_layer_input=attribute_to_layer_input)
        refuse(grad_kwargs=(grad_kwargs, None))
        values, weights = self._values_and_gradients(x, target)
        if weights.ndim > 2:
            weights = weights.mean(axis=tuple(range(2, weights.ndim)), keepdims=True)
        cam = weights * values
        if attr_dim_summation:
            cam = cam.sum(axis=1, keepdims=True)
        return np.asarray(np.maximum(cam, 0) if relu_attributions else cam, np.float32)


class GuidedGradCam(OfLayer):
    """Guided backpropagation times Grad-CAM.  Parameters as `OfLayer`."""

    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: None = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
    ) -> Any:
        """Explain samples.

        Parameters
        ----------
        inputs, target, additional_forward_args, attribute_to_layer_input
            As `LayerGradCam.attribute`.
        interpolate_mode
            "nearest" or "bilinear".

        Returns
        -------
        float32, shaped like the inputs.

        Raises
        ------
        InputError
            For what does not fit the model.
        """
        if interpolate_mode not in ("nearest", "bilinear"):
            raise InputError(
                f"gbp does not support interpolate_mode={interpolate_mode!r}.", supported="nearest, bilinear"
            )
        x, wrap = opened(inputs, additional_forward_args)
        cam = LayerGradCam(self.model, self.layer).attribute(
            x, target, None, attribute_to_layer_input, relu_attributions=True
        )
        if cam.ndim != 4 or x.ndim != 4:
            raise InputError(f"layer {self.layer!r} makes {list(cam.shape)}.", supported="planes")
        guided = GuidedBackprop(self.model).attribute(x, target)
        return wrap(np.asarray(guided * interpolated(cam, x.shape[2:], interpolate_mode), np.float32))
