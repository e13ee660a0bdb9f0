"""`Case`: one op in a tiny network; and how to say such networks in a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from builder import NEWEST, Builder

Net = Callable[[Builder, str], str]


@dataclass(frozen=True)
class Case:
    """`net` appends the op in question to a tensor of `shape`.

    `ends`: the op's output is the model's; else a dense layer makes scores of it. `reference`: why onnx's
    reference implementation is no reference here.
    """

    net: Net
    shape: tuple[int, ...] = (2, 5, 7, 9)
    opset: int = NEWEST
    ends: bool = False
    reference: str | None = None


def node(op: str, *constants: Any, **attributes: Any) -> Net:
    """The op with constant operands behind x."""
    return lambda b, x: b.node(op, x, *map(b.constant, constants), **attributes)


def conv(channels: int, kernel: int | tuple[int, ...] = 3, **options: Any) -> Net:
    return lambda b, x: b.conv(x, channels, kernel, **options)


def conv_transpose(channels: int, kernel: int | tuple[int, ...] = 3, **options: Any) -> Net:
    return lambda b, x: b.conv_transpose(x, channels, kernel, **options)


def gemm(outputs: int = 6, **options: Any) -> Net:
    return lambda b, x: b.gemm(x, outputs, **options)


def with_noise(op: str, *shape: int, first: bool = False) -> Net:
    """The op with x and a random constant of this shape, which comes first or second."""

    def net(b: Builder, x: str) -> str:
        c = b.constant(b.noise(*shape))
        return b.node(op, *((c, x) if first else (x, c)))

    return net


def chain(*nets: Net) -> Net:
    def net(b: Builder, x: str) -> str:
        for each in nets:
            x = each(b, x)
        return x

    return net


def batchnorm(b: Builder, x: str) -> str:
    return b.batchnorm(x)


def relu(b: Builder, x: str) -> str:
    return b.relu(x)


def pool(op: str, *kernel: int, **attributes: Any) -> Net:
    return node(op, kernel_shape=kernel, **attributes)
