"""`Explainer`: loads and plans a model once, then explains many images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from numpy.typing import ArrayLike

from .engine.asking import explained
from .engine.engine import Engine, opened
from .engine.network import Network
from .engine.settings import Settings
from .engine.warming import warm_up
from .importer.outputs import PROBABILITY, Probability
from .importer.proto import Model
from .importer.subgraph import Choice
from .inputs import Images
from .pictures.labels import read_labels
from .pictures.preprocess import Preprocess
from .pictures.sidecar import Sidecar, read_sidecar
from .questions.questions import Question, Score, checked_score, is_hidden
from .result.attribution import Attribution
from .result.provenance import Provenance
from .rules import Rule, rule_named


class Explainer(Network):
    """Explains the decisions of one ONNX model.  Threads may share it.  It is pickled as its arguments.

    Parameters
    ----------
    model
        A path, the bytes of a file, or a ModelProto.
    preprocess
        How images become input: a preset ("imagenet", "caffe", "tf", "unit", "raw"), a table, or a
        `Preprocess`; by default from the file `<model>.toml` beside the model.
    labels
        A file of class names or a sequence of them; by default from the same .toml file.
    output
        The tensor to explain.  None: the logits of the model's only output.  `PROBABILITY`: that output
        itself.  A string: the tensor of this name, or the one that the node of this name makes; a part of a
        name is enough where no other name has it.
    input
        The input to explain, where there are several.
    given
        The values of the other inputs, {name: array}, the same for all samples.
    threads
        How many threads a kernel may use; by default all cores.
    device
        "cpu", or "cuda" (extra gbp-explain[cuda12] or gbp-explain[cuda13]).
    activations
        How rules with a gradient gate treat activations that no paper's rule covers (Sigmoid, SiLU, …).
        "gradient" takes their true gradient; "clamp" clamps the gradient to its positive part first.
    algorithm
        How convolutions are computed on the CPU.  "auto" computes the forward pass directly, so that equal
        windows give equal values.  "fast" uses Winograd's transforms there too where they cost less, which
        breaks ties.  "direct", "winograd" and "lists" (of the gradient's nonzero values) are used wherever
        they apply.
    memory
        Bytes that activations and gradients of one slice of a batch may take; by default 160 MiB, or half of
        the free memory of a card.  Weights and maps come on top, and as much may be kept for the next call.
    tf32
        Whether convolutions multiply numbers of 11 bits, on a card of compute capability 8.0 and up: faster,
        and a thousand times less exact.
    cache
        Whether the plan with its packed weights is kept on this machine, so that the next process opens the
        model faster and shares the memory.  It is on the CPU, for files and bytes of a MiB or more.

    Raises
    ------
    ModelError
        For a damaged model.
    UnsupportedError
        Where the model holds something that gbp does not support; the message lists all of it.
    InputError
        For an argument that cannot be used.
    """

    def __init__(
        self,
        model: Model,
        *,
        preprocess: Preprocess | Mapping[str, Any] | str | None = None,
        labels: str | os.PathLike[str] | Sequence[str] | None = None,
        output: str | Probability | None = None,
        input: str | None = None,
        given: Mapping[str, ArrayLike] | None = None,
        threads: int | None = None,
        device: str = "cpu",
        activations: str = "gradient",
        algorithm: str = "auto",
        memory: int | None = None,
        tf32: bool = False,
        cache: bool = True,
    ) -> None:
        if isinstance(model, os.PathLike):
            model = os.fsdecode(model)
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        settings = Settings.checked(device, threads, memory, algorithm, activations, tf32, cache)
        source, reader = opened(model, Choice(output, input, given or {}))
        sidecar = read_sidecar(model) if isinstance(model, str) else Sidecar()
        self.preprocess = Preprocess.parse(preprocess) or sidecar.preprocess
        # The labels of the .toml file name the model's own scores.  A hidden tensor has none.
        self.labels = read_labels(labels) or (sidecar.labels if source.is_output else None) or source.labels
        self._engine = Engine(source, settings, self.preprocess, self.labels, reader)
        self._engine.provenance = Provenance.of(model, self.preprocess, self._arguments, self._engine.digest)

    @property
    def suggestion(self) -> str:
        """A sentence: the preprocessing that the model's file suggests; "" where it suggests none."""
        return self._engine.inputs.suggestion

    def __repr__(self) -> str:
        model = self._arguments["model"]
        name = model if isinstance(model, str) else "a model in memory"
        return f"<Explainer of {name}, input {list(self.input_shape)}, {self._engine.settings.device.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Explainer, **self._arguments), ()

    def __enter__(self) -> Explainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def with_output(self, output: str | Probability | None) -> Explainer:
        """Another Explainer of the same model, which explains another tensor.

        Parameters
        ----------
        output
            As for `Explainer`.  The labels are those of the model's own scores, so for a tensor that is named
            they are dropped.

        Raises
        ------
        GbpError
            As `Explainer`.
        """
        own = output is None or output is PROBABILITY
        labels = self._arguments["labels"] if own else None
        return Explainer(**self._arguments | {"output": output, "labels": labels})

    def close(self) -> None:
        """Free the plans and their memory.  Later calls raise InputError."""
        self._engine.sessions.close()

    def explain(
        self,
        images: Images,
        *,
        rule: str | Rule = "guided",
        target: Question = None,
        score: Score | None = None,
        batch_size: int | None = None,
    ) -> Attribution:
        """Explain one class of each image, or several, or a hidden unit.

        Parameters
        ----------
        images
            One picture or a list of them: a path, the bytes of a file, a binary file object, a PIL image, or
            pixels, uint8 (H, W, 3), (H, W, 4), (H, W) or (H, W, 1).  Or samples that are preprocessed
            already: a float array (N, …) in the model's own input layout (uint8 where the model takes
            bytes), or paths of .npy files with one sample each.
        rule
            "guided", "deconvnet", "vanilla", "input-x-gradient", "lrp-epsilon", "lrp-epsilon-plus" or
            "rectgrad"; or a `Rule`.
        target
            None for each sample's own best class; a class index; a label; `Top(5)`; `At(5763, 1)` where a
            sample's scores have several axes; an array (N,) of indices or a list of labels, one a sample;
            (N, K) of indices or labels for several a sample; one-hot (N, C), float or bool; a `Unit` or
            `Channel` of a hidden tensor; `Contrast("lion", "chow")`; or `Several(…)` of these, the same for
            each sample.
        score
            The explained number of a class: "logit" (default), the score itself; "probability" or
            "log-probability", by the model's head; "margin" to the best other class; "sum" over the targets.
            Or a function of the scores, float64 (N, classes), that returns (values (N,), gradient (N,
            classes)), which is compared with finite differences.
        batch_size
            Samples that are computed at a time; by default as many as `memory` holds, but at most 32 (on a
            card 256).  Where the Explainer has an explicit `memory`, never more than that holds.

        Returns
        -------
        An `Attribution`.  Its map is float32 (N, …) in the layout of the input, or (N, K, …) for K targets.
        One image gives the same bits in any batch and with any number of threads.

        Raises
        ------
        InputError
            For arguments that cannot be used.
        ModelError
            Where the network's values overflow.
        """
        score, chosen = checked_score(score), rule_named(rule)
        if score is not None or is_hidden(target):
            return explained(self, images, chosen, target, score, batch_size)
        return self._engine.explain(images, chosen, target, batch_size)

    def warmup(self, size: tuple[int, int] | None = None) -> int:
        """Compile every kernel that this model needs, under any rule, and store them on this machine.

        Parameters
        ----------
        size
            (H, W) where the model leaves it open; by default the size in `preprocess`.

        Returns
        -------
        How many kernels were compiled; 0 where all were stored before.

        Raises
        ------
        InputError
            Where a size is missing, or where kernels cannot be stored.
        """
        return warm_up(self._engine, size)
