"""The bars that gbp aims at, on the figures of `measure`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from measure import (
    CAPTUM_BEST,
    COMMAND_LINE,
    COMPILE,
    FIVE_TARGETS,
    MEMORY,
    MORE_THREADS,
    RUNTIME,
    XPLIQUE,
    Row,
    Selection,
)


class Bar(NamedTuple):
    """A bound on a figure of the row of one network and batch: a least value, or with `is_most` a largest."""

    section: str
    network: str
    batch: int
    figure: str
    bound: float
    is_most: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.is_most else '≥'} {self.bound:g}"

    def passes(self, value: float) -> bool:
        return value <= self.bound if self.is_most else value >= self.bound


BARS: tuple[Bar, ...] = (
    Bar("speed", "vgg16", 1, CAPTUM_BEST, 2.8),
    Bar("speed", "vgg16", 8, CAPTUM_BEST, 4.0),
    Bar("speed", "resnet50", 1, CAPTUM_BEST, 2.6),
    Bar("speed", "resnet50", 8, CAPTUM_BEST, 2.5),
    Bar("speed", "mobilenet_v2", 1, CAPTUM_BEST, 3.0),
    Bar("speed", "mobilenet_v2", 8, CAPTUM_BEST, 3.5),
    Bar("speed", "efficientnet_b0", 1, CAPTUM_BEST, 2.5),
    Bar("keras", "xception", 1, XPLIQUE, 2.0),
    Bar("keras", "densenet201", 1, XPLIQUE, 2.0),
    Bar("speed", "vgg19", 1, RUNTIME, 1.0),
    Bar("speed", "resnet50", 1, RUNTIME, 0.6),
    Bar("speed", "densenet121", 1, RUNTIME, 0.65),
    Bar("speed", "inception_v1", 1, RUNTIME, 0.75),
    Bar("speed", "squeezenet", 1, RUNTIME, 0.6),
    Bar("scaling", "vgg16", 1, FIVE_TARGETS, 2.5, is_most=True),
    Bar("scaling", "resnet50", 1, FIVE_TARGETS, 2.5, is_most=True),
    Bar("scaling", "mobilenet_v2", 1, FIVE_TARGETS, 2.5, is_most=True),
    Bar("scaling", "squeezenet", 1, FIVE_TARGETS, 2.5, is_most=True),
    Bar("scaling", "vgg16", 1, MORE_THREADS, 1.8),
    Bar("memory", "vgg16", 16, MEMORY, 8.0),
    Bar("memory", "resnet50", 16, MEMORY, 8.0),
    Bar("start", "squeezenet", 1, COMMAND_LINE, 3.0),
    Bar("start", "squeezenet", 1, COMPILE, 30.0, is_most=True),
)


def bar_of(row: Row, figure: str) -> Bar | None:
    """The bar on a figure of a row; bars hold for the most threads that are measured."""
    if not row["all_threads"]:
        return None
    key = (row["section"], row["network"], row["batch"], figure)
    return next((bar for bar in BARS if bar[:4] == key), None)


def selections(bars: Iterable[Bar]) -> list[Selection]:
    """The measurements that these bars need."""
    wanted: dict[tuple[str, str], dict[int, None]] = {}
    for bar in bars:
        wanted.setdefault((bar.section, bar.network), {})[bar.batch] = None
    return [Selection(section, name, tuple(batches)) for (section, name), batches in wanted.items()]
