"""`Projector`: projects units back to the image, and cuts out what they see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import Explainer, Tensor
from ..graph.graph import Graph
from ..pictures import render
from ..pictures.layout import channels_first
from .field import field_of
from .page import draw_channel
from .strongest import Hit

PARTS = ("effective", "field")
#: The share of a map's magnitude that an effective field holds; and the grey beyond an image.
_HELD_SHARE, _BEYOND = 0.9, 128


class Projector:
    """Projects the units of a layer.

    Parameters
    ----------
    explainer, tensor
        The model and the layer.
    graph
        The network, for receptive fields.
    rule
        The rule of the projection.
    part
        One of `PARTS`.
    """

    def __init__(self, explainer: Explainer, tensor: Tensor, graph: Graph, rule: str, part: str) -> None:
        self.explainer, self.tensor, self.graph = explainer, tensor, graph
        self.rule, self.part = rule, part
        middle = tuple(n // 2 for n in self._plane())
        top, bottom, left, right = self._box(0, middle)
        #: (H, W) of the receptive field of a unit in the middle.
        self.field = bottom - top, right - left

    def picture(self, title: str, channel: int, hits: Sequence[Hit]) -> Image.Image:
        """The picture of one channel."""
        values = f", activations {hits[0].value:.3g} to {hits[-1].value:.3g}"
        maps, patches = zip(*(self._project(channel, hit) for hit in hits), strict=True)
        size = maps[0].shape[1:]
        if self.part == "effective":
            share = float(np.median([_share(m) for m in maps]))
            size = tuple(max(1, round(share * n)) for n in size)
            values += f", {size[0]} × {size[1]} of {maps[0].shape[1]} × {maps[0].shape[2]} pixels"
        drawn = [Image.fromarray(render.rgb(_middle(m, size))) for m in maps]
        seen = [None if p is None else Image.fromarray(_middle(p, size).transpose(1, 2, 0)) for p in patches]
        return draw_channel(title + values, drawn, seen)

    def _project(self, channel: int, hit: Hit) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The map of a unit and its image, (channels, H, W) of what it sees."""
        with self.explainer.run([hit.image], [self.tensor.name]) as run:
            value = run.value(self.tensor.name)
            seed = np.zeros_like(value)
            unit = (0, *self._unit(channel, hit.at))
            seed[unit] = value[unit]
            gradient = run.vjp(seed, self.rule, of=self.tensor.name)
            pictures = run.pictures
        preprocess = self.explainer.preprocess
        channels = preprocess.channels if preprocess else "RGB"
        planes = channels_first(gradient, self.explainer.layout, channels, 1)
        box = self._box(channel, hit.at)
        if not pictures:
            return _cut(planes[0], box, 0), None
        pixels = np.asarray(pictures[0].convert("RGB")).transpose(2, 0, 1)
        return _cut(planes[0], box, 0), _cut(pixels, box, _BEYOND)

    def _plane(self) -> tuple[int, ...]:
        return tuple(n for axis, n in enumerate(self.tensor.shape) if axis != (self.tensor.channels or 0))

    def _unit(self, channel: int, at: Sequence[int]) -> tuple[int, ...]:
        place = list(at)
        place.insert(self.tensor.channels or 0, channel)
        return tuple(place)

    def _box(self, channel: int, at: Sequence[int]) -> tuple[int, int, int, int]:
        """Top, bottom, left, right: what a unit sees, within the image and its padding."""
        seen = field_of(self.graph, self.tensor.name, self._unit(channel, at))
        sizes = self.graph.shapes[self.graph.input][1:]
        where = slice(0, 2) if self.explainer.layout == "NHWC" else slice(1, 3)
        height, width = seen[where]
        if set(self._plane()) <= {1}:  # the only unit of its channel: padding around it is of no interest
            height, width = ((0, n) for n in sizes[where])
        return *height, *width


def _cut(planes: NDArray[Any], box: tuple[int, int, int, int], beyond: int) -> NDArray[Any]:
    """A part of planes (C, H, W); pixels outside them have the value `beyond`."""
    top, bottom, left, right = box
    _, height, width = planes.shape
    part = np.full((len(planes), bottom - top, right - left), beyond, planes.dtype)
    a, b, c, d = max(0, top), min(height, bottom), max(0, left), min(width, right)
    part[:, a - top : b - top, c - left : d - left] = planes[:, a:b, c:d]
    return part


def _share(m: NDArray[np.float32]) -> float:
    """How much of each side the smallest square in the middle has that holds most of a map's magnitude."""
    magnitude = np.abs(m).sum(axis=0, dtype=np.float64)
    ys, xs = (np.abs(2 * np.arange(n) + 1 - n) / n for n in magnitude.shape)
    distance = np.maximum(ys[:, None], xs).reshape(-1)
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(magnitude.reshape(-1)[order])
    if not held[-1]:
        return 1.0
    return float(distance[order][np.searchsorted(held, _HELD_SHARE * held[-1])])


def _middle(planes: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """The middle of planes (C, H, W), of this (H, W)."""
    top, left = ((n - k) // 2 for n, k in zip(planes.shape[1:], size, strict=True))
    return np.ascontiguousarray(planes[:, top : top + size[0], left : left + size[1]])
