"""The ops, one file for each family: the meaning of each op, and the `Step` that computes it.

`PARSERS` lists the ONNX ops that gbp supports.  A `Node` comes in; an `Op` comes out, and later its `Step`.
It may import kernels, graph, limits and errors.
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
