"""The ops, one file a family.  `PARSERS` says which ONNX ops gbp knows and what each of them means."""

from collections.abc import Callable
from typing import Any

from . import (
    binary,
    concat,
    conv,
    conv_transpose,
    elementwise,
    functions,
    gemm,
    legacy,
    lp_pool,
    matmul,
    norm,
    normalize,
    pointwise,
    pool,
    quantize,
    rectifier,
    reduce,
    resample,
    select,
    shape,
    softmax,
    unpool,
)
from .node import Node

_FAMILIES = (
    binary,
    concat,
    conv,
    conv_transpose,
    elementwise,
    functions,
    gemm,
    legacy,
    lp_pool,
    matmul,
    norm,
    normalize,
    pointwise,
    pool,
    quantize,
    rectifier,
    reduce,
    resample,
    select,
    shape,
    softmax,
    unpool,
)

#: ONNX op → parser.  A parser returns an op, a tuple of ops applied one after another, or a list with one of
#: these for each output.
PARSERS: dict[str, Callable[[Node], Any]] = {}
for _family in _FAMILIES:
    PARSERS.update(_family.PARSERS)
