"""gbp: explain a trained CNN from its ONNX file, without a deep-learning framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import GbpError, InputError, ModelError, OutOfMemoryError, UnsupportedError
from .first_use import imported_on_first_use
from .rules import RULES, Rule
from .version import VERSION

if TYPE_CHECKING:
    from . import compat as compat
    from . import doubt as doubt
    from . import methods as methods
    from .bulk.run import BatchSummary, batch
    from .engine.run import Run
    from .explainer import Explainer
    from .graph.tensors import Tensor
    from .importer.outputs import PROBABILITY, Probability
    from .importer.proto import Model
    from .inputs import Images, Picture
    from .pictures.drawing import Panel, Reduction, Style
    from .pictures.layout import Layout
    from .pictures.look import LookOptions
    from .pictures.preprocess import ChannelOrder, Preprocess, Resize
    from .questions.head import Head
    from .questions.questions import Channel, Contrast, Question, Score, Several, Unit, UnitSeed
    from .questions.targets import At, Target, Top
    from .result.attribution import Attribution
    from .result.provenance import Provenance
    from .result.sample import Sample

__version__ = VERSION

__all__ = [
    "PROBABILITY",
    "RULES",
    "At",
    "Attribution",
    "BatchSummary",
    "Channel",
    "ChannelOrder",
    "Contrast",
    "Explainer",
    "GbpError",
    "Head",
    "Images",
    "InputError",
    "Layout",
    "LookOptions",
    "Model",
    "ModelError",
    "OutOfMemoryError",
    "Panel",
    "Picture",
    "Preprocess",
    "Probability",
    "Provenance",
    "Question",
    "Reduction",
    "Resize",
    "Rule",
    "Run",
    "Sample",
    "Score",
    "Several",
    "Style",
    "Target",
    "Tensor",
    "Top",
    "Unit",
    "UnitSeed",
    "UnsupportedError",
    "__version__",
    "batch",
    "explain",
]

#: Public name → its module, which is imported on first use.
_LAZY = {
    "PROBABILITY": "importer.outputs",
    "At": "questions.targets",
    "Attribution": "result.attribution",
    "BatchSummary": "bulk.run",
    "Channel": "questions.questions",
    "ChannelOrder": "pictures.preprocess",
    "Contrast": "questions.questions",
    "Explainer": "explainer",
    "Head": "questions.head",
    "Images": "inputs",
    "Layout": "pictures.layout",
    "LookOptions": "pictures.look",
    "Model": "importer.proto",
    "Panel": "pictures.drawing",
    "Picture": "inputs",
    "Preprocess": "pictures.preprocess",
    "Probability": "importer.outputs",
    "Provenance": "result.provenance",
    "Question": "questions.questions",
    "Reduction": "pictures.drawing",
    "Resize": "pictures.preprocess",
    "Run": "engine.run",
    "Sample": "result.sample",
    "Score": "questions.questions",
    "Several": "questions.questions",
    "Style": "pictures.drawing",
    "Target": "questions.targets",
    "Tensor": "graph.tensors",
    "Top": "questions.targets",
    "Unit": "questions.questions",
    "UnitSeed": "questions.questions",
    "batch": "bulk.run",
}

#: Public packages: `gbp.methods.smoothgrad` needs no import of its own.
_FOLDERS = ("compat", "doubt", "methods")

if not TYPE_CHECKING:  # for a type checker, any name would be there
    __getattr__ = imported_on_first_use(__name__, _LAZY, _FOLDERS)


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
    return [*__all__, *_FOLDERS]
