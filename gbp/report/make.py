"""Makes a report: explains images chunk by chunk, and writes the page as it goes."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from .. import Attribution, Explainer, InputError, Sample, Top
from ..errors import counted
from ..methods import METHODS
from ..methods.planes import default_layer
from ..pictures import render
from ..pictures.drawing import prepared
from ..pictures.files import check_writable, write
from ..pictures.legend import UNLIKELY, meaning
from ..pictures.look import Look
from ..pictures.palettes import HEAT
from ..pictures.percent import with_percent
from ..result.doubts import empty_notes, likeness_notes
from ..rules import rule_named

#: Images explained together, and most pixels of the longer side of a photo in the page.
_CHUNK, _SIDE = 8, 480
_PAGE = Path(__file__).with_name("page.html")
_MARK = "<!-- images -->"


@dataclass
class Summary:
    """The content of a report.

    Parameters
    ----------
    images
        How many images are in it.
    skipped
        Name → why it was left out.
    seconds
        Rule or method → the seconds that it took for all images.
    """

    images: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def report(
    explainer: Explainer,
    images: Sequence[str | os.PathLike[str]],
    file: str | os.PathLike[str],
    *,
    rules: Sequence[str] = ("guided", "vanilla"),
    methods: Sequence[str] = (),
    classes: int = 3,
    title: str = "",
    skip_broken: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> Summary:
    """Write a page with images, their best classes, and a map of each of these under rules and methods.

    Parameters
    ----------
    explainer
        The model.
    images
        Paths of pictures.
    file
        The .html file.
    rules, methods
        Names of rules, and of methods of `gbp.methods`, which are called with their defaults.
    classes
        How many of each image's best classes get a map.
    title
        The page's title; by default the model's name.
    skip_broken
        Whether an image that cannot be read is left out, and named in the page, or stops the report.
    progress
        Called with the number of images that were done in each step.

    Raises
    ------
    InputError
        For arguments that cannot be used, images that cannot be read, and a file that cannot be written.
    """
    if not images:
        raise InputError("there are no images.")
    check_file(file)
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise InputError(f"no method is called {unknown[0]!r}.", supported=", ".join(METHODS))
    incomplete = [name for name in methods if METHODS[name].needs]
    if incomplete:
        name = incomplete[0]
        raise InputError(f"method {name!r} needs {METHODS[name].needs}.", hint="Leave it out.")
    if any("layer" in METHODS[name].options for name in methods):
        tensors = explainer.tensors
        try:
            default_layer(tensors, len(explainer.input_shape) - 1)
        except InputError as error:  # it advises to name a layer
            raise InputError(error.found, hint="Leave Grad-CAM out: a report names no layer.") from error
    if not 1 <= classes <= 20:
        raise InputError(f"classes is {classes}.", supported="1 to 20")
    if not (*rules, *methods):
        raise InputError("there is neither a rule nor a method.")
    making = _Making(explainer, tuple(rules), tuple(methods), classes, skip_broken, progress)
    head, tail = with_percent(_PAGE.read_text(encoding="utf-8")).split(_MARK)
    write(file, lambda to: making.fill(to, images, title, head, tail))
    return making.summary


def check_file(file: str | os.PathLike[str]) -> None:
    """Raise InputError unless a report can be written to this file."""
    file = os.fsdecode(file)
    if Path(file).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"a report is written to {file!r}.", supported="a name that ends in .html")
    check_writable(file)


class _Making:
    """One report that is being written; the parameters are those of `report`."""

    def __init__(
        self,
        explainer: Explainer,
        rules: tuple[str, ...],
        methods: tuple[str, ...],
        classes: int,
        skip_broken: bool,
        progress: Callable[[int], object],
    ) -> None:
        self.explainer, self.rules, self.methods = explainer, rules, methods
        self.classes, self.skip_broken, self.progress = classes, skip_broken, progress
        self.summary = Summary(seconds=dict.fromkeys((*rules, *methods), 0.0))
        self.rows: list[dict[str, Any]] = []
        self.notes: dict[str, None] = {}
        self.about: dict[str, Any] = {}
        self.prefix = 0

    def fill(
        self, to: IO[bytes], images: Sequence[str | os.PathLike[str]], title: str, head: str, tail: str
    ) -> None:
        """Write the page: its head, a script for each image, what is known of all, and its end."""
        began = time.perf_counter()
        # Names begin where they differ: a folder that all share says nothing, and may say whose it is.
        folders = [os.path.join(os.path.dirname(os.fsdecode(image)), "") for image in images]
        self.prefix = len(os.path.commonprefix(folders).rpartition(os.sep)[0])  # noqa: RUF071  # whole parts
        self.prefix += bool(self.prefix)
        to.write(head.encode())
        for start in range(0, len(images), _CHUNK):
            part = [os.fsdecode(image) for image in images[start : start + _CHUNK]]
            for content in self._explained(part):
                to.write(content)
            self.progress(len(part))
        if not self.rows:
            raise InputError(f"none of {counted(len(images), 'image')} could be read.")
        about = self.about | {
            "title": title or self.about["provenance"]["model"] or "A model",
            "images": self.rows,
            "skipped": self.summary.skipped,
            "notes": list(self.notes),
            "seconds": {name: round(value, 3) for name, value in self.summary.seconds.items()},
            "total": round(time.perf_counter() - began, 3),
            "unlikely": UNLIKELY,
            "heat": base64.b64encode(HEAT.tobytes()).decode(),
        }
        to.write(b'<script type="application/json" id="about">' + _json(about) + b"</script>\n")
        to.write(tail.encode())
        self.summary.images = len(self.rows)

    def _explained(self, part: list[str]) -> list[bytes]:
        """The part of the page for some images."""
        try:
            found = self._attributions(part)
        except InputError as error:
            if not self.skip_broken:
                if len(part) + len(self.rows) > 1 and any(repr(image) in error.found for image in part):
                    hint = " ".join(filter(None, (error.hint, "skip_broken=True leaves such images out.")))
                    raise InputError(error.found, supported=error.supported, hint=hint) from error
                raise
            if len(part) > 1:
                return [content for image in part for content in self._explained([image])]
            self.summary.skipped[part[0][self.prefix :]] = str(error)
            return []
        return [
            self._image(part[i], {name: made[i] for name, made in found.items()}) for i in range(len(part))
        ]

    def _attributions(self, part: list[str]) -> dict[str, Attribution]:
        """The maps of some images by each rule and method, and how long they took."""
        target, found = Top(self.classes), {}
        for name in (*self.rules, *self.methods):
            began = time.perf_counter()
            if name in self.rules:
                made = self.explainer.explain(part, rule=name, target=target)
            else:
                made = METHODS[name].call(self.explainer, part, target=target)
            self.summary.seconds[name] += time.perf_counter() - began
            beside = {*likeness_notes(made), *empty_notes(made)}  # are beside each image
            self.notes.update(dict.fromkeys(f"{name}: {note}" for note in made.notes if note not in beside))
            found[name] = made
        return found

    def _image(self, path: str, samples: dict[str, Sample]) -> bytes:
        """The script with the pictures of one image; what can be sorted by goes into `rows`."""
        first = next(iter(samples.values()))
        number = len(self.rows)
        if not self.about:
            self.about = {
                "provenance": first.provenance.to_dict() if first.provenance else {"gbp": "", "model": ""},
                "maps": [
                    {
                        "name": name,
                        "means": meaning("overlay", sample.rule, sample.method),
                        "caution": rule_named(name).caution if name in self.rules else "",
                    }
                    for name, sample in samples.items()
                ],
            }
        photo, box = _photo(first)
        data = {
            "photo": _uri(photo, quality=80),
            "size": list(photo.size),
            "box": box,
            "maps": {name: [_map(one) for one in sample.each_target()] for name, sample in samples.items()},
        }
        self.rows.append(
            {
                "name": path[self.prefix :],
                "explained": [int(c) for c in np.atleast_1d(first.target)],
                "top": [first.row(c) for c, _, _ in first.top(5)],
                "how": first.photo.description() if first.photo else "",
                "doubts": {name: sample.doubts() for name, sample in samples.items()},
            }
        )
        return f'<script type="application/json" id="d{number}">'.encode() + _json(data) + b"</script>\n"


def _photo(sample: Sample) -> tuple[Image.Image, list[float]]:
    """The photo, and what the network saw of it as shares of its width and height."""
    if sample.photo is None or not sample.photo.is_there():
        if sample.image is None:
            raise InputError("a sample is no picture.", hint="Reports are of pictures.")
        return sample.image.convert("RGB"), [0, 0, 1, 1]
    width, height = sample.photo.size
    factor = min(1.0, _SIDE / max(width, height))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    left, top, right, bottom = sample.photo.box
    box = [left / width, top / height, right / width, bottom / height]
    return sample.photo.open(size).convert("RGB"), [round(edge, 5) for edge in box]


def _map(sample: Sample) -> str:
    """The map of one target in grey, from 0 to the limit at which it is drawn at full strength."""
    m, look = sample.planes(), Look()
    size = sample.image.size if sample.image else (m.shape[2], m.shape[1])
    (plane,) = prepared(m, "overlay", look, size)
    pixels = render.gray(plane, limit=render.robust_limit(plane, look.percentile))
    return _uri(Image.fromarray(pixels), quality=60)


def _uri(image: Image.Image, quality: int) -> str:
    encoded = io.BytesIO()
    image.convert("RGB").save(encoded, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()


def _json(content: Any) -> bytes:
    """JSON in which no name can end the script that it stands in."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").encode()
