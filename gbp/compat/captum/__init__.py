"""Captum's gradient attributions: `Saliency(model).attribute(inputs, target=3)`, and the like.

Arrays take the place of tensors, in the layout of the ONNX file; a layer is named by its tensor or node.
Explained is by default what feeds a final Softmax, as with `Explainer`.  It may import what `gbp.compat` may.
Checked against Captum 0.9.

One thing differs on purpose: `GuidedBackprop` and `Deconvolution` act at every rectifier.  Captum finds
`nn.ReLU` modules alone, and neither `F.relu` nor ReLU6.
"""

from .gradients import Deconvolution, GuidedBackprop, InputXGradient, IntegratedGradients, Saliency
from .layers import GuidedGradCam, LayerActivation, LayerGradCam, LayerGradientXActivation
from .neurons import NeuronDeconvolution, NeuronGradient, NeuronGuidedBackprop, NeuronIntegratedGradients
from .noise import NoiseTunnel

__all__ = [
    "Deconvolution",
    "GuidedBackprop",
    "GuidedGradCam",
    "InputXGradient",
    "IntegratedGradients",
    "LayerActivation",
    "LayerGradCam",
    "LayerGradientXActivation",
    "NeuronDeconvolution",
    "NeuronGradient",
    "NeuronGuidedBackprop",
    "NeuronIntegratedGradients",
    "NoiseTunnel",
    "Saliency",
]
