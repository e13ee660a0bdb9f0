"""gbp: explain a trained CNN from its ONNX file, without a deep-learning framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import GbpError, InputError, ModelError, OutOfMemoryError, UnsupportedError
from .rules import RULES, Rule
from .version import VERSION

if TYPE_CHECKING:
    from .bulk.run import batch
    from .engine.run import Run
    from .explainer import Explainer
    from .graph.tensors import Tensor
    from .importer.outputs import PROBABILITY
    from .importer.proto import Model
    from .inputs import Images
    from .pictures.preprocess import Preprocess
    from .questions.questions import Channel, Contrast, Question, Several, Unit
    from .questions.targets import At, Top
    from .result.attribution import Attribution
    from .result.sample import Sample

__version__ = VERSION

__all__ = [
    "PROBABILITY",
    "RULES",
    "At",
    "Attribution",
    "Channel",
    "Contrast",
    "Explainer",
    "GbpError",
    "InputError",
    "ModelError",
    "OutOfMemoryError",
    "Preprocess",
    "Rule",
    "Run",
    "Sample",
    "Several",
    "Tensor",
    "Top",
    "Unit",
    "UnsupportedError",
    "__version__",
    "batch",
    "explain",
]

#: Public name → its module.  They are imported on first use, so that `gbp --help` needs no Numba and no onnx.
_LAZY = {
    "PROBABILITY": "importer.outputs",
    "At": "questions.targets",
    "Attribution": "result.attribution",
    "Channel": "questions.questions",
    "Contrast": "questions.questions",
    "Explainer": "explainer",
    "Preprocess": "pictures.preprocess",
    "Run": "engine.run",
    "Sample": "result.sample",
    "Several": "questions.questions",
    "Tensor": "graph.tensors",
    "Top": "questions.targets",
    "Unit": "questions.questions",
    "batch": "bulk.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gbp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def explain(
    model: Model, images: Images, *, rule: str | Rule = "guided", target: Question = None, **options: Any
) -> Attribution:
    """Explain once: `Explainer(model, **options).explain(images, rule=rule, target=target)`.

    Parameters
    ----------
    model, options
        As for `Explainer`.
    images, rule, target
        As for `Explainer.explain`.
    """
    from .explainer import Explainer

    return Explainer(model, **options).explain(images, rule=rule, target=target)


def __dir__() -> list[str]:
    return __all__
