"""`Job`: all that the result for an image depends on, but the image; and `Task`, one image to explain."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from ..explainer import Explainer
from ..methods import METHODS
from ..pictures.look import Look
from ..questions.questions import Channel, Contrast, Question, Score, Several, Unit, is_hidden
from ..questions.targets import At, Top
from ..result.attribution import Attribution
from ..rules import RULE_NAMES, RULES
from ..version import VERSION

#: Arguments of `Explainer` that change no bit, and those that `settings` looks at by themselves.
_FREE = ("model", "threads", "memory", "cache", "preprocess", "labels")
#: Formats whose files hold no time at which they were written.
PICTURES = ("png", "jpg", "webp", "svg")
_TARGETS = (int, np.integer, str, At, Top, Unit, Channel, Contrast, Several)
STYLES = ("overlay", "diverging", "gray", "rgb", "strip", "none")


@dataclass(frozen=True)
class Job:
    """How each image is explained and written.  It is pickled to other processes.

    Parameters
    ----------
    model
        The path of the model.
    out
        The folder that files are written to.
    rule
        The name of a rule, "all", or None for "guided" or the method's own.
    target, score
        As for `Explainer.explain`, the same for all images.
    method, method_options
        The name of a method or None, and its arguments.
    style, format
        How pictures are drawn, or "none"; the suffix of their files, without the dot.
    look, bare
        Arguments of `Sample.save`.
    arrays
        Whether maps are also written as numbers, and how.
    options
        Arguments of `Explainer`.

    Raises
    ------
    InputError
        For arguments that cannot be used, or contradict each other.
    """

    model: str
    out: str
    rule: str | None
    target: Question
    score: Score | None
    method: str | None
    method_options: Mapping[str, Any]
    style: str
    format: str
    look: Mapping[str, Any]
    bare: bool
    arrays: Literal["npz", "zarr"] | None
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, value, known in (
            ("rule", self.rule, [None, *RULE_NAMES, "all"]),
            ("method", self.method, [None, *METHODS]),
            ("style", self.style, STYLES),
            ("format", self.format, PICTURES),
            ("arrays", self.arrays, [None, "npz", "zarr"]),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}.", supported=", ".join(map(str, known)))
        Look(**self.look)
        if not (self.target is None or isinstance(self.target, _TARGETS)):
            raise InputError(
                f"target is {self.target!r:.80}.",
                supported="one for all images: an index, a label, Top, At, Unit, Channel, Contrast, Several",
            )
        if self.score is not None and (self.method is not None or callable(self.score)):
            raise InputError(
                f"score is {self.score!r:.80}.", supported="a name, without a method, which explains logits"
            )
        several = self.score != "sum" and isinstance(self.target, (Top, Several))
        if self.rule == "all" and (self.arrays or several):
            raise InputError(
                "rule 'all' draws one target.", hint="For several targets or arrays, choose one rule."
            )
        if several and self.style not in ("strip", "none"):
            raise InputError(f"{self.target} is drawn as a strip.", hint="Leave the style out.")
        if self.bare and (self.style in ("strip", "none") or self.rule == "all"):
            raise InputError("bare writes one picture.", hint="Choose a style and one rule.")
        if self.style == "none" and self.arrays is None:
            raise InputError("style is 'none' without arrays.", hint="There would be nothing to write.")
        self._check_method()

    def _check_method(self) -> None:
        if self.method:
            METHODS[self.method].check(self.method_options, has_rule=self.rule is not None)
        elif self.method_options:
            raise InputError(f"{min(self.method_options)} is an argument of methods, and there is none.")

    @property
    def rules(self) -> tuple[str | None, ...]:
        """The rules that are computed; None is the method's own."""
        if self.rule == "all":
            return tuple(RULES)
        return (self.rule or (METHODS[self.method].rule if self.method else "guided"),)

    @property
    def is_of_one(self) -> bool:
        """Whether what is said of an image would depend on others that are explained with it."""
        is_more = isinstance(self.target, (Top, Several)) or is_hidden(self.target)
        return self.method is not None or self.score is not None or is_more

    def explain(self, explainer: Explainer, images: Any) -> tuple[Attribution, ...]:
        """Explain images under each rule."""
        call: Any = partial(explainer.explain, score=self.score)
        if self.method:
            call = partial(METHODS[self.method].call, explainer)
        rules: list[dict[str, Any]] = [{} if rule is None else {"rule": rule} for rule in self.rules]
        return tuple(call(images, target=self.target, **self.method_options, **rule) for rule in rules)

    def settings(self, explainer: Explainer) -> dict[str, Any]:
        """All that decides what the files hold, in JSON's types.  Threads, memory and engines do not."""
        return settings_of(
            self.model,
            explainer,
            rule=self.rule or self.rules[0],
            target=None if self.target is None else repr(self.target),
            **({} if self.score is None else {"score": self.score}),
            method=self.method,
            **{name: _plain(value) for name, value in self.method_options.items()},
            style=self.style,
            format=self.format,
            **self.look,
            bare=self.bare,
            arrays=self.arrays,
        )


@dataclass(frozen=True)
class Task:
    """One image to explain.

    Parameters
    ----------
    path
        Where it is.
    name
        The path as the index has it; by default as `name_of` makes it.
    row
        Its row in the arrays of all maps, where there are such.
    """

    path: str
    name: str = ""
    row: int | None = None

    def file(self, folder: str, suffix: str) -> str:
        """The path of a file for this image within the output folder.  256 folders share the files.

        It ends in 16 hexadecimal digits of the name's SHA-256, so it never changes, whatever other images
        there are.
        """
        stem = re.sub(r"[^\w.-]", "_", os.path.splitext(os.path.basename(self.name))[0])[:40].lstrip(".")
        key = digest_of(self.name)[:16]
        return f"{folder}/{key[:2]}/{stem or '_'}-{key}.{suffix}"


def settings_of(model: str, explainer: Explainer, **others: Any) -> dict[str, Any]:
    """All that decides what maps hold, in JSON's types: the model, arguments of `Explainer`, and others."""
    options = {key: value for key, value in explainer._arguments.items() if key not in _FREE}
    given = options.pop("given") or {}
    settings = {
        "gbp": VERSION,
        "model": model_digest(model, explainer._engine.files),
        **others,
        "preprocess": asdict(explainer.preprocess) if explainer.preprocess else None,
        "labels": digest_of(json.dumps(explainer.labels)) if explainer.labels else None,
        "given": {name: _plain(np.asarray(value)) for name, value in given.items()},
        **{key: None if value is None else str(value) for key, value in options.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def name_of(path: str) -> str:
    """A path as the index has it: as it was given, without "./" and the like, and valid Unicode."""
    short = path if ".." in path else os.path.normpath(path)
    return short.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def model_digest(model: str, files: Iterable[Path]) -> str:
    """The SHA-256 of a model's file and of the other files that it was read from, which hold weights."""
    digest = hashlib.sha256()
    for path in (model, *sorted({str(file) for file in files} - {str(Path(model))})):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def digest_of(text: str) -> str:
    """The SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A value in JSON's types: of an array, its digest."""
    if not isinstance(value, np.ndarray):
        return value
    return hashlib.sha256(f"{value.dtype} {value.shape} ".encode() + value.tobytes()).hexdigest()
