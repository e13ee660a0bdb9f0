"""The ops, one file a family.  `PARSERS` says which ONNX ops gbp knows and what each of them means."""

from collections.abc import Callable
from typing import Any

from . import (
    concat,
    conv,
    conv_transpose,
    elementwise,
    gemm,
    lp_pool,
    norm,
    pointwise,
    pool,
    rectifier,
    shape,
    softmax,
    unpool,
)
from .node import Node

#: ONNX op → parser.  A parser returns an op, a tuple of ops applied one after another, or a list with one of
#: these for each output.
PARSERS: dict[str, Callable[[Node], Any]] = {}
for _family in (
    concat,
    conv,
    conv_transpose,
    elementwise,
    gemm,
    lp_pool,
    norm,
    pointwise,
    pool,
    rectifier,
    shape,
    softmax,
    unpool,
):
    PARSERS.update(_family.PARSERS)
