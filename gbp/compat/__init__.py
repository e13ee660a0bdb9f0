"""Drop-ins: the calls of Xplique, keras-explainable, Captum and PAIR's saliency, on an ONNX file.

Arrays come in and arrays come out, as the originals have them; only the import and the model change.
Arguments that gbp cannot honour are refused by name.  It may import what gbp exports, the errors, what
makes pictures, methods and first_use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..first_use import imported_on_first_use

if TYPE_CHECKING:
    from . import captum, keras_explainable, saliency, xplique

__all__ = ["captum", "keras_explainable", "saliency", "xplique"]

if not TYPE_CHECKING:  # for a type checker, any name would be there
    __getattr__ = imported_on_first_use(__name__, {}, __all__)


def __dir__() -> list[str]:
    return __all__
