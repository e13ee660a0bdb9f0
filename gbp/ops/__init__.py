"""The ops, one file a family.  `PARSERS` says which ONNX ops gbp knows and what each of them means."""

from collections.abc import Callable
from typing import Any

from . import (
    concat,
    conv,
    elementwise,
    gemm,
    matmul,
    norm,
    normalize,
    pointwise,
    pool,
    rectifier,
    reduce,
    resample,
    select,
    shape,
    softmax,
)
from .node import Node

#: ONNX op → parser.  A parser returns an op, a tuple of ops applied one after another, or a list with one op
#: for each output.
PARSERS: dict[str, Callable[[Node], Any]] = {}
for _family in (
    concat, conv, elementwise, gemm, matmul, norm, normalize, pointwise, pool, rectifier, reduce, resample,
    select, shape, softmax,
):  # fmt: skip
    PARSERS.update(_family.PARSERS)
