"""`Served`: one model of the server, which explains requests and writes the answers."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import RULES, Attribution, Explainer, GbpError, InputError, Panel
from ..methods import METHODS
from ..pictures.files import save_picture
from ..pictures.image import read_image, read_sample
from ..pictures.legend import meaning
from ..rules import OTHER_RULES, rule_named
from .limits import Limits
from .requests import FORMATS, STYLES, Ask

#: How many pictures are one batch on a card.  On a processor a batch is hardly faster, see docs/serve.md.
TOGETHER_ON_A_CARD = 16
#: How an .npy file begins.
_ARRAY = b"\x93NUMPY"


@dataclass(frozen=True)
class Answer:
    """An answer to the client."""

    content: bytes
    media_type: str


@dataclass(frozen=True, eq=False)
class Job:
    """One accepted request.

    Parameters
    ----------
    model
        The model.
    ask
        The target, and the form of the answer.
    content
        A picture or an array, as the bytes of its file.
    received
        When the request came, on `time.perf_counter`'s clock.
    """

    model: Served
    ask: Ask
    content: bytes = field(repr=False)
    received: float

    @property
    def key(self) -> Hashable:
        """Equal for jobs that one batch may hold.

        Arrays may differ in shape, and notes on several targets speak of the whole batch, so these are alone.
        """
        if self.content.startswith(_ARRAY) or not self.ask.is_plain:
            return self
        return (self.model, self.ask.key)


class Served:
    """One model of the server.  Threads may share it.

    Parameters
    ----------
    name
        Its name in paths.
    explainer
        The model.
    limits
        Limits of a request.
    together
        How many pictures may be explained as one batch.
    """

    def __init__(self, name: str, explainer: Explainer, limits: Limits, together: int = 1) -> None:
        self.name, self.explainer, self._limits, self.together = name, explainer, limits, together

    def describe(self) -> dict[str, Any]:
        """The answer of `GET /v1/models`, in JSON's types."""
        shape = list(self.explainer.input_shape)
        return {
            "name": self.name,
            "input_shape": shape,
            "pictures": len(shape) == 4 and self.explainer.preprocess is not None,
            "channels": None if self.explainer.preprocess is None else self.explainer.preprocess.channels,
            "labels": None if self.explainer.labels is None else len(self.explainer.labels),
            "rules": [
                {"name": name, "source": rule.source, "caution": rule.caution, "gate": name in RULES}
                for name, rule in (RULES | OTHER_RULES).items()
            ],
            "tensors": self._tensors(),
            "methods": [
                {
                    "name": method.name,
                    "source": method.source,
                    "rule": method.rule,
                    "layer": "layer" in method.options,
                }
                for method in METHODS.values()
            ],
            "styles": list(STYLES),
        }

    def _tensors(self) -> list[dict[str, Any]]:
        """The hidden tensors; none where they are unknown until a first picture."""
        try:
            return [{"name": t.name, "op": t.op, "shape": list(t.shape)} for t in self.explainer.tensors]
        except InputError:
            return []

    def answer(self, jobs: Sequence[Job]) -> list[Answer | BaseException]:
        """Explain jobs with equal keys as one batch: an answer or an error for each."""
        samples: list[Any] = []
        good: list[Job] = []
        answers: dict[Job, Answer | BaseException] = {}
        began = time.perf_counter()
        for job in jobs:
            try:
                samples.append(self._sample(job.content))
                good.append(job)
            except (GbpError, MemoryError) as error:
                answers[job] = error
        if good:
            try:
                answers.update(zip(good, self._explained(good, samples, began), strict=True))
            except (GbpError, MemoryError) as error:
                if len(good) == 1:
                    answers[good[0]] = error
                else:  # it may be the fault of one of them
                    answers.update((job, self.answer([job])[0]) for job in good)
        return [answers[job] for job in jobs]

    def _sample(self, content: bytes) -> Image.Image | NDArray[Any]:
        """The picture, or the array (1, …), that a file holds."""
        if not content.startswith(_ARRAY):
            return read_image(io.BytesIO(content), max_pixels=self._limits.pixels)
        return read_sample(content, len(self.explainer.input_shape))

    def _explained(
        self, jobs: Sequence[Job], samples: Sequence[Any], began: float
    ) -> list[Answer | BaseException]:
        """Explain one batch, and write the answer to each job, or the error that it cannot be written."""
        ask = jobs[0].ask
        images = samples[0] if isinstance(samples[0], np.ndarray) else list(samples)
        result = _explain(self.explainer, images, ask)
        took = time.perf_counter() - began
        answers: list[Answer | BaseException] = []
        for i, job in enumerate(jobs):
            timing = {
                "waited_ms": round(1e3 * (began - job.received), 3),
                "explained_ms": round(1e3 * took, 3),
                "together": len(jobs),
            }
            try:
                answers.append(_answer(job, result.alone(i), timing))
            except (GbpError, MemoryError) as error:
                answers.append(error)
        return answers


def _explain(explainer: Explainer, images: Any, ask: Ask) -> Attribution:
    """Explain images by the rule or the method that is asked for."""
    if ask.method is None:
        return explainer.explain(images, rule=ask.rule, target=ask.target)
    method, options = METHODS[ask.method], {} if ask.layer is None else {"layer": ask.layer}
    if method.rule is not None:
        options["rule"] = ask.rule
    result: Attribution = method.call(explainer, images, target=ask.target, **options)
    return result


def _answer(job: Job, result: Attribution, timing: dict[str, float]) -> Answer:
    """The answer to a job, from the result for its sample alone."""
    ask = job.ask
    if ask.format == "npz":
        content = _arrays(result)
    elif ask.format == "json":
        content = as_json(_report(job, result, timing))
    else:
        several = result.target.size > 1
        style = ask.style or ("strip" if several else result[0].panels()[0])
        if several and style != "strip":
            raise InputError("several targets are drawn as a strip.", hint="Leave the style out.")
        picture = result.strip() if style == "strip" else getattr(result, style)()
        content = _encoded(picture, ask.format)
    return Answer(content, FORMATS[ask.format])


def _report(job: Job, result: Attribution, timing: dict[str, float]) -> dict[str, Any]:
    """The answer in JSON's types."""
    report = {
        "model": job.model.name,
        **result.to_dict(),
        "notes": list(result.notes),
        "caution": _caution(job.ask.method, result.rule),
        "timing": timing,
    }
    if "map" in job.ask.include:
        report["map"] = base64.b64encode(_arrays(result)).decode()
        report["means"] = {style: meaning(style, result.rule, result.method) for style in get_args(Panel)}
    if "input" in job.ask.include:
        image = result[0].image
        report["input"] = None if image is None else base64.b64encode(_encoded(image, "png")).decode()
    return report


def _caution(method: str | None, rule: str) -> str:
    """The remark on a rule; empty where a method chose it, whose own remarks are notes."""
    is_chosen = method is not None and METHODS[method].rule in (None, rule)
    return "" if is_chosen else rule_named(rule).caution


def as_json(content: Any) -> bytes:
    """JSON in which no label looks like HTML, to whatever shows it."""
    text = json.dumps(content, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode()


def _arrays(result: Attribution) -> bytes:
    """The map and the scores as an .npz file."""
    buffer = io.BytesIO()
    result.save(buffer, format="npz")
    return buffer.getvalue()


def _encoded(picture: Image.Image, format: str) -> bytes:
    """A picture as a file of this format."""
    buffer = io.BytesIO()
    if format == "webp":
        picture.save(buffer, "WEBP", quality=95, method=2)
    else:
        save_picture(picture, buffer, format)
    return buffer.getvalue()
