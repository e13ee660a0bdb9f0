"""`Attribution`: the explanation of N samples."""

from __future__ import annotations

import base64
import json
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import IO, Any, Unpack, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, counted
from ..pictures.drawing import Reduction, Style, reduce
from ..pictures.files import ARRAYS, suffix_of, write
from ..pictures.layout import Layout, channels_first
from ..pictures.lazy import Pictures
from ..pictures.look import LookOptions
from ..pictures.photo import Photo
from ..pictures.preprocess import ChannelOrder
from ..questions.head import Head
from .provenance import Provenance
from .sample import Drawable, Sample
from .titles import plain, title_of

#: Samples that a notebook shows of one attribution.
_MAX_SHOWN = 16


@dataclass(frozen=True, eq=False)
class Attribution(Drawable, Sequence[Sample]):
    """The relevance of every input number for one or more scores of N samples.

    It is a sequence of `Sample`s: `len(result)`, `result[i]`, `for sample in result`.  An attribution of one
    sample has the methods of `Sample` that draw and save.

    Parameters
    ----------
    map
        float32 (N, …), in the layout of the network's input; (N, K, …) where K targets were explained.
    scores
        float32 (N, classes): the scores, flattened.
    target
        int64 (N,) or (N, K): the classes that were explained.
    rule
        The name of the rule.
    notes
        Remarks for the reader of the map, one sentence each.
    layout
        The axes of the network's input.
    labels
        The names of the classes, or None.
    images
        Each sample as a picture, mode RGB or L, as large as the map.  A series is drawn in grey.  Those of
        arrays are made when they are looked at.  None where the samples cannot be drawn.
    channels
        The order of the map's colours.
    head
        The op that turns the scores into probabilities; None where the model has none.
    score_shape
        The shape of one sample's scores before they were flattened, such as (8400, 85); () where they were
        flat.
    method
        The name of the method of `gbp.methods` that made the map, or "" for the rule alone.
    details
        The method's facts about this run, such as {"samples": 25}.  An array has one row for each sample.
        Where more than classes was asked for, such as a hidden unit, "question" has its names and "value" its
        values, both of the shape of `target`.  Then `target` has the classes that it is about; for a hidden
        unit that of the highest score.
    depends_on_image
        Whether the map of a class can differ between images.
    photos
        The whole photo of each sample, as large as it came; None where samples came as arrays.
    provenance
        Which model made the maps, and how; None where that is unknown.
    """

    map: NDArray[np.float32]
    scores: NDArray[np.float32]
    target: NDArray[np.int64]
    rule: str
    notes: tuple[str, ...] = ()
    layout: Layout = "NCHW"
    labels: tuple[str, ...] | None = None
    images: Sequence[Image.Image] | None = None
    channels: ChannelOrder = "RGB"
    head: Head | None = None
    score_shape: tuple[int, ...] = ()
    method: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    depends_on_image: bool = True
    photos: tuple[Photo, ...] | None = None
    provenance: Provenance | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"there is no sample {i}; there are {len(self)}")
        target = self.target[i]
        return Sample(
            map=self.map[i],
            scores=self.scores[i],
            target=target if target.ndim else int(target),
            rule=self.rule,
            layout=self.layout,
            labels=self.labels,
            image=self.images[i] if self.images else None,
            channels=self.channels,
            head=self.head,
            score_shape=self.score_shape,
            method=self.method,
            details={k: v[i] if isinstance(v, np.ndarray) else v for k, v in self.details.items()},
            depends_on_image=self.depends_on_image,
            photo=self.photos[i] if self.photos else None,
            provenance=self.provenance,
            notes=self.notes,
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        k = f", {counted(self.target.shape[1], 'target')} each" if self.target.ndim == 2 else ""
        title = title_of(self.method, self.rule, self.details)
        return f"<Attribution of {counted(len(self), 'sample')}{k}, {title}, map {self.map.shape}>"

    def _sample(self) -> Sample:
        if len(self) != 1:
            raise InputError(f"there are {len(self)} samples.", hint="Take one: result[0].")
        return self[0]

    def alone(self, i: int) -> Attribution:
        """The attribution of one sample alone.

        Parameters
        ----------
        i
            Its index, 0 or more.
        """
        part = slice(i, i + 1)
        return replace(
            self,
            map=self.map[part],
            scores=self.scores[part],
            target=self.target[part],
            images=self.images and self.images[part],
            photos=self.photos and self.photos[part],
            details={k: v[part] if isinstance(v, np.ndarray) else v for k, v in self.details.items()},
        )

    @property
    def has_probabilities(self) -> bool:
        """Whether the model has a head that turns scores into probabilities."""
        return self.head is not None

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """The probabilities that the model's head computes: float32 (N, classes).

        Raises
        ------
        InputError
            Where the model has no Softmax, LogSoftmax or Sigmoid behind the scores.
        """
        if self.head is None:
            raise InputError("the model has no head that makes probabilities of these scores.")
        return self.head.probabilities(self.scores)

    def reduce(self, how: Reduction = "abs-max") -> NDArray[np.float32]:
        """Reduce the channels m of each pixel to one number.

        Parameters
        ----------
        how
            "abs-max" max |m|, "abs-mean" mean |m|, "norm" √Σm², "positive" Σ max(m, 0), "negative"
            Σ max(-m, 0): these five are at least 0.  "sum" Σm keeps the sign.

        Returns
        -------
        float32 (N, H, W), or (N, K, H, W) for K targets.  A row of numbers counts as a plane (1, W), and a
        series as a plane (C, L); such planes have one channel.

        Raises
        ------
        InputError
            For another name, and where the input is not an image.
        """
        return reduce(channels_first(self.map, self.layout, self.channels, self.target.ndim), how)

    def save(
        self,
        file: str | os.PathLike[str] | IO[bytes],
        style: Style | None = None,
        *,
        format: str | None = None,
        bare: bool = False,
        **look: Unpack[LookOptions],
    ) -> None:
        """Write a picture, or an .npz of arrays: map, scores, target, rule, notes and layout of all samples.

        A method adds its name, and its details as JSON.  The array "provenance" is JSON too: the model, its
        digest, the version of gbp and the preprocessing.

        Parameters
        ----------
        file, style, format, bare, look
            As for `Sample.save`.

        Raises
        ------
        InputError
            As `Sample.save`, and for a picture of several samples.
        """
        if suffix_of(file, format) != ARRAYS:
            super().save(file, style, format=format, bare=bare, **look)
            return
        arrays: dict[str, Any] = {
            "map": self.map,
            "scores": self.scores,
            "target": self.target,
            "rule": np.array(self.rule),
            "notes": np.array(self.notes, dtype=np.str_),
            "layout": np.array(self.layout),
            "provenance": np.array(json.dumps(self.provenance.to_dict() if self.provenance else None)),
        }
        if self.method:
            details = {key: plain(value) for key, value in self.details.items()}
            arrays |= {"method": np.array(self.method), "details": np.array(json.dumps(details))}
        write(file, lambda to: np.savez(to, **arrays))

    def _repr_html_(self) -> str | None:
        """The pictures of several samples, for notebooks."""
        if len(self) == 1:
            return None  # a notebook shows the PNG
        rows = []
        for sample in self[:_MAX_SHOWN]:
            png = sample._repr_png_()
            if png is None:
                return f"<pre>{escape(repr(self))}</pre>"
            code = base64.b64encode(png).decode()
            alt = escape(repr(sample))
            rows.append(f'<img style="max-width:100%" alt="{alt}" src="data:image/png;base64,{code}">')
        return "<br>".join([escape(repr(self)), *rows])


def joined(parts: Sequence[Attribution]) -> Attribution:
    """Attributions of some samples each, as one of all; of the same model, rule and method.

    Parameters
    ----------
    parts
        At least one, with as many targets each.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    images, photos = [part.images for part in parts], [part.photos for part in parts]
    details = {
        key: np.concatenate([part.details[key] for part in parts]) if isinstance(value, np.ndarray) else value
        for key, value in first.details.items()
    }
    return replace(
        first,
        map=np.concatenate([part.map for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        images=None if None in images else Pictures.joined(part or () for part in images),
        details=details,
        photos=None if None in photos else tuple(photo for part in photos for photo in part or ()),
    )
