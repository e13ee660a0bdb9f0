"""Attribution: what an explanation is, how it is reduced to a picture, and how it is saved."""

from __future__ import annotations

import io
import os
import secrets
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .pictures import render as picture
from .pictures.image import Channels

#: Of the network's input: images, rows of numbers, series (either axis may be time), more axes.
Layout = Literal["NCHW", "NHWC", "NC", "NCL", "ND"]
Reduction = Literal["abs-max", "abs-mean", "positive", "negative", "norm", "sum"]
Panel = Literal["overlay", "diverging", "gray", "rgb"]
Style = Literal["overlay", "diverging", "gray", "rgb", "strip"]

FORMATS: dict[str, tuple[str, dict[str, int]]] = {
    ".png": ("PNG", {"compress_type": zlib.Z_RLE}),  # a fifth of the usual time for 5 % more bytes
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),  # full colour resolution: maps are one pixel fine
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}


@dataclass(frozen=True, eq=False)
class Attribution:
    """The relevance of every input number for one or more scores of N samples.

    `map` is float32, shaped like the network's input (N, …), or (N, K, …) when K targets were asked for.
    `scores` is float32 (N, classes) and `target` int64 (N,) or (N, K): the classes that were explained.
    `notes` says what a reader of the map should know, `images` is what the network saw of each sample, RGB or
    L and as large as the map (of series: their values, from black to white), `channels` is the order of the
    map's colours, and `head` the op by which the model turns the scores into probabilities: "Softmax",
    "LogSoftmax", "Sigmoid", None where it has none, "" where the scores are behind it.

    Every picture takes `index`, the sample, and `target`, a position among its K targets (not a class).
    `limit` is the magnitude drawn at full strength, by default `picture.robust_limit` of the map drawn.
    All of them raise `InputError` for an index out of range and for an input that is not an image.
    """

    map: NDArray[np.float32]
    scores: NDArray[np.float32]
    target: NDArray[np.int64]
    rule: str
    notes: tuple[str, ...] = ()
    layout: Layout = "NCHW"
    labels: tuple[str, ...] | None = None
    images: tuple[Image.Image, ...] | None = None
    channels: Channels = "RGB"
    head: str | None = None

    # ------------------------------------------------------------------------------------------ scores

    @property
    def has_probabilities(self) -> bool:
        """Whether the scores are of classes: several of them, or one with a head of its own."""
        return self.scores.shape[1] > 1 or self.head is not None

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """What the model's own head makes of the scores, (N, classes).

        The logistic function of each score for a `head` of "Sigmoid", else the softmax of all; the scores
        themselves where they are probabilities already.
        Raises `InputError` for a single score without a head, which a softmax would turn into 1.
        """
        if not self.has_probabilities:
            raise InputError("a single score is no probability over classes.")
        scores = self.scores.astype(np.float64)
        if self.head == "Sigmoid":
            return np.asarray(0.5 * (1 + np.tanh(0.5 * scores)), dtype=np.float32)
        if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
            return self.scores
        weight = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(weight / weight.sum(axis=1, keepdims=True), dtype=np.float32)

    def label(self, index: int = 0, target: int = 0) -> str:
        """Name the class that was explained; "class 7" where there are no labels."""
        return self._name(self._class(index, target))

    def top(self, k: int = 5, index: int = 0) -> list[tuple[int, str, float]]:
        """List the k highest scores of a sample, best first, as (class, label, score); ties by class."""
        self._check(index, 0)
        scores = self.scores[index]
        best = np.argsort(-scores, kind="stable")[:k]
        return [(int(number), self._name(int(number)), float(scores[number])) for number in best]

    # -------------------------------------------------------------------------------------------- maps

    def reduce(self, how: Reduction = "abs-max") -> NDArray[np.float32]:
        """Reduce the channels m of each pixel to one number: (N, H, W), or (N, K, H, W), float32.

        Rows of numbers count as planes (1, W) and series as planes (C, L), of one channel each.

        "abs-max" max |m|, "abs-mean" mean |m|, "norm" √Σm², "positive" Σ max(m, 0), "negative"
        Σ max(-m, 0): all at least 0.  "sum" Σm keeps the sign.
        """
        return _reduced(self._channels_first(), how)

    def gray(self, index: int = 0, target: int = 0, *, limit: float | None = None) -> Image.Image:
        """Largest magnitude among the channels, white on black (L)."""
        return Image.fromarray(picture.gray(_reduced(self._one(index, target), "abs-max"), limit=limit))

    def diverging(self, index: int = 0, target: int = 0, *, limit: float | None = None) -> Image.Image:
        """Sum of the channels with its sign: positive red, negative blue, on white (RGB)."""
        return Image.fromarray(picture.diverging(_reduced(self._one(index, target), "sum"), limit=limit))

    def overlay(
        self, index: int = 0, target: int = 0, *, limit: float | None = None, alpha: float = 0.95
    ) -> Image.Image:
        """Largest magnitude among the channels as heat over the image (RGB).

        Raises `InputError` when the images are unknown.
        """
        m = _reduced(self._one(index, target), "abs-max")
        if self.images is None:
            raise InputError(
                "there is no image to lay the map over.", hint="The styles gray and diverging do without."
            )
        base = self.images[index].convert("RGB").resize((m.shape[1], m.shape[0]), Image.Resampling.BILINEAR)
        return Image.fromarray(picture.overlay(m, np.asarray(base), alpha=alpha, limit=limit))

    def rgb(self, index: int = 0, target: int = 0, *, limit: float | None = None) -> Image.Image:
        """The map's own colours around mid-grey (RGB), as in the guided backpropagation paper.

        Raises `InputError` unless the input has 1 or 3 channels.
        """
        return Image.fromarray(picture.rgb(self._one(index, target), limit=limit))

    def strip(self, index: int = 0) -> Image.Image:
        """Show the input beside its maps, with captions: every style for one target, one style for K."""
        images, captions = self._input_panel(index)
        where, *others = self._panels()
        if self.target.ndim == 2:
            for k in range(self.target.shape[1]):
                images.append(self.draw(where, index, k))
                captions.append(f"{self.rule}\n{self._explained(index, k)}")
            return picture.strip(images, captions)
        told = {"overlay": "where", "gray": "where", "rgb": "in colour", "diverging": "by sign"}
        for style in (where, *others):
            images.append(self.draw(style, index))
            captions.append(f"{self.rule}: {told[style]}\n{self._explained(index, 0)}")
        return picture.strip(images, captions)

    def draw(self, style: Style = "overlay", index: int = 0, target: int = 0) -> Image.Image:
        """Draw by the name of the style; a strip shows all targets.  Raises `InputError`, as the styles."""
        if style == "strip":
            return self.strip(index)
        drawings: dict[str, Callable[[int, int], Image.Image]] = {
            "overlay": self.overlay,
            "diverging": self.diverging,
            "gray": self.gray,
            "rgb": self.rgb,
        }
        if style not in drawings:
            raise InputError(f"unknown style {style!r}.", supported=", ".join(get_args(Style)))
        return drawings[style](index, target)

    def save(
        self, path: str | os.PathLike[str], style: Style | None = None, index: int = 0, target: int = 0
    ) -> None:
        """Write one picture (.png, .jpg, .jpeg), or everything as arrays (.npz), replacing the file.

        `style`: by default "overlay" where the image is known, else "gray".

        An .npz holds map, scores, target, rule, notes and layout of all samples; style, index and target
        do not matter to it.  A file appears complete or not at all.
        Raises `InputError` when the suffix is unknown or the file cannot be written.
        """
        check_path(path)
        if Path(path).suffix.lower() != ".npz":
            save_picture(self.draw(style or self._panels()[0], index, target), path)
            return
        arrays: dict[str, Any] = {
            "map": self.map,
            "scores": self.scores,
            "target": self.target,
            "rule": np.array(self.rule),
            "notes": np.array(self.notes, dtype=np.str_),
            "layout": np.array(self.layout),
        }
        _write(path, lambda file: np.savez(file, **arrays))

    # ----------------------------------------------------------------------------------------- helpers

    def _check(self, index: int, target: int) -> None:
        for what, given, count in (
            ("sample", index, len(self.scores)),
            ("target", target, self.target.shape[1] if self.target.ndim == 2 else 1),
        ):
            if not 0 <= given < count:
                raise InputError(f"there is no {what} {given}.", supported=f"0 to {count - 1}")

    def _class(self, index: int, target: int) -> int:
        self._check(index, target)
        return int(self.target.reshape(len(self.scores), -1)[index, target])

    def _name(self, number: int) -> str:
        if self.labels is None or number >= len(self.labels):
            return f"class {number}"
        return self.labels[number]

    def _told(self, index: int, number: int) -> str:
        """A class as a caption: the number first, because long names lose their ends."""
        if not self.has_probabilities:
            return f"{self.scores[index, number]:.4g} {self._name(number)}"
        return f"{self.probabilities[index, number]:.1%} {self._name(number)}"

    def _explained(self, index: int, target: int) -> str:
        return self._told(index, self._class(index, target))

    def _channels_first(self) -> NDArray[np.float32]:
        """Return the map as (N, C, H, W) or (N, K, C, H, W), colours red first.

        A series is one channel of a plane, (1, C, L), and a row of numbers a plane of one row.
        """
        if self.layout == "ND":
            raise InputError("the network's input is not an image.", hint="Use the array `map` itself.")
        if self.layout == "NC":
            return self.map[..., None, None, :]
        if self.layout == "NCL":
            return self.map[..., None, :, :]
        m = np.moveaxis(self.map, -1, -3) if self.layout == "NHWC" else self.map
        return m[..., ::-1, :, :] if self.channels == "BGR" else m

    def _one(self, index: int, target: int) -> NDArray[np.float32]:
        """Return one map (C, H, W)."""
        self._check(index, target)
        one: NDArray[np.float32] = self._channels_first()[index]
        return one[target] if self.target.ndim == 2 else one

    def _panels(self) -> list[Panel]:
        """List the styles that this map can be drawn in, the most telling first."""
        where: Panel = "overlay" if self.images else "gray"
        coloured: list[Panel] = ["rgb"] if self._channels_first().shape[-3] == 3 else []
        return [where, *coloured, "diverging"]

    def _input_panel(self, index: int) -> tuple[list[Image.Image], list[str]]:
        """Start a strip: the image over what the network takes it for, or nothing where it is unknown."""
        best = self.top(1, index)[0][0]
        return ([self.images[index]], [f"input\n{self._told(index, best)}"]) if self.images else ([], [])


def strip_rules(
    attributions: Sequence[Attribution], index: int = 0, target: int = 0, style: Panel | None = None
) -> Image.Image:
    """Show one sample under several rules: the input, then the map of each attribution, in their order.

    `style` is by default "rgb" where the map has three colours, else "gray".  Each map has its own limit,
    because the rules differ by orders of magnitude.
    Raises `InputError` without attributions, and as the pictures of `Attribution`.
    """
    if not attributions:
        raise InputError("there are no attributions to show.")
    first = attributions[0]
    chosen: Panel = style or ("rgb" if "rgb" in first._panels() else "gray")
    images, captions = first._input_panel(index)
    for attribution in attributions:
        images.append(attribution.draw(chosen, index, target))
        captions.append(f"{attribution.rule}\n{attribution._explained(index, target)}")
    return picture.strip(images, captions)


def _reduced(m: NDArray[np.float32], how: Reduction) -> NDArray[np.float32]:
    """Reduce axis -3, the channels; in float64, because squares of small gradients underflow."""
    x = m.astype(np.float64)
    if how == "abs-max":
        reduced = np.abs(x).max(axis=-3)
    elif how == "abs-mean":
        reduced = np.abs(x).mean(axis=-3)
    elif how == "positive":
        reduced = np.maximum(x, 0).sum(axis=-3)
    elif how == "negative":
        reduced = np.maximum(-x, 0).sum(axis=-3)
    elif how == "norm":
        reduced = np.sqrt((x * x).sum(axis=-3))
    elif how == "sum":
        reduced = x.sum(axis=-3)
    else:
        raise InputError(f"unknown reduction {how!r}.", supported=", ".join(get_args(Reduction)))
    return np.asarray(reduced, dtype=np.float32)


# ----------------------------------------------------------------------------------------------- saving


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise `InputError` unless `path` has a suffix gbp writes and lies in a folder that exists."""
    target = Path(path)
    known = (*FORMATS, ".npz")
    if target.suffix.lower() not in known:
        raise InputError(f"cannot tell the format of {str(path)!r}.", supported=", ".join(known))
    if not os.path.isdir(target.parent):
        raise InputError(f"there is no folder {str(target.parent)!r} to write {target.name!r} to.")
    if os.path.isdir(path):
        raise InputError(f"{str(path)!r} is a folder.")


def save_picture(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PNG or JPEG by its suffix, complete or not at all.  Raises `InputError` if it cannot be."""
    check_path(path)
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{str(path)!r} is not the name of a picture.", supported=", ".join(FORMATS))
    name, options = FORMATS[suffix]

    def write(file: IO[bytes]) -> None:
        encoded = io.BytesIO()  # into a file Pillow writes itself, and on a full disk a part without a word
        image.save(encoded, format=name, **options)
        file.write(encoded.getvalue())

    _write(path, write)


def _write(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Write beside `path` under another name, then rename: readers never see half a file."""
    temporary = Path(path).with_name(f".gbp-{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                write(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error
