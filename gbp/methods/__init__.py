"""Methods that are built of explanations: SmoothGrad, Integrated Gradients, Grad-CAM and others.

An `Explainer` and images come in; an `Attribution` comes out, which names the method and has notes on the
method's limits.  A file is one method or one family; it states the equations on top.  It may
import the explainer, engine, questions, result, rules, pictures, inputs, graph, arguments, limits, errors
and first_use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..first_use import imported_on_first_use
from .table import METHODS, Method, method_named

if TYPE_CHECKING:
    from .cam import grad_cam, guided_grad_cam, layer_grad_cam
    from .gradient import layer_gradient, saliency
    from .noise import Noise, smoothgrad, smoothgrad_squared, vargrad
    from .path import integrated_gradients

__all__ = [
    "METHODS",
    "Method",
    "Noise",
    "grad_cam",
    "guided_grad_cam",
    "integrated_gradients",
    "layer_grad_cam",
    "layer_gradient",
    "method_named",
    "saliency",
    "smoothgrad",
    "smoothgrad_squared",
    "vargrad",
]

#: Name → its module, which is imported on first use.
_LAZY = {
    "Noise": "noise",
    "grad_cam": "cam",
    "guided_grad_cam": "cam",
    "integrated_gradients": "path",
    "layer_grad_cam": "cam",
    "layer_gradient": "gradient",
    "saliency": "gradient",
    "smoothgrad": "noise",
    "smoothgrad_squared": "noise",
    "vargrad": "noise",
}

if not TYPE_CHECKING:  # for a type checker, any name would be there
    __getattr__ = imported_on_first_use(__name__, _LAZY)


def __dir__() -> list[str]:
    return __all__
