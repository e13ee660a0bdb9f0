"""The ops, one file a family: what each means, and the `Step` that computes it.

`PARSERS` says which ONNX ops gbp knows.  In comes a `Node`, out come an `Op` and later its `Step`.  May
import kernels, graph, limits and errors.
"""

from collections.abc import Callable
from typing import Any

from . import (
    affine,
    binary,
    broadcast,
    concat,
    conv_transpose,
    einsum,
    functions,
    fused,
    gemm,
    legacy,
    lp_pool,
    lrn,
    matmul,
    normalize,
    pick,
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
from .conv import conv
from .node import Node
from .written import Rewriter

#: ONNX op → parser.  A parser returns an op, a tuple of ops applied one after another, or a list with one of
#: these for each output.
PARSERS: dict[str, Callable[[Node], Any]] = {
    **affine.PARSERS,
    **binary.PARSERS,
    **broadcast.PARSERS,
    **concat.PARSERS,
    **conv.PARSERS,
    **conv_transpose.PARSERS,
    **functions.PARSERS,
    **gemm.PARSERS,
    **legacy.PARSERS,
    **lp_pool.PARSERS,
    **lrn.PARSERS,
    **matmul.PARSERS,
    **normalize.PARSERS,
    **pool.PARSERS,
    **quantize.PARSERS,
    **rectifier.PARSERS,
    **reduce.PARSERS,
    **resample.PARSERS,
    **select.PARSERS,
    **shape.PARSERS,
    **softmax.PARSERS,
    **unpool.PARSERS,
}

#: ONNX op → what writes other nodes in its place.
REWRITERS: dict[str, Rewriter] = {**einsum.REWRITERS, **fused.REWRITERS, **pick.REWRITERS}
