"""Dense layers (ONNX Gemm, MatMul with a constant matrix).

y[n, m]  = Σ_k x[n, k] · w[m, k] + b[m]        Gemm: w = alpha · Bᵀ, b = beta · C
gx[n, k] = Σ_m gy[n, m] · w[m, k]

A computed C (N, M) is added like a residual, and its gradient is gy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape
from ..kernels.codegen.memory import ALIGNMENT, aligned
from ..kernels.gemm import gemm_bwd, gemm_fwd
from ..kernels.pointwise import pointwise_bwd
from .facts import Fact
from .folded import as_product
from .node import Node
from .step import NO_WEIGHTS, Clipped, Context, Floats, GradientSlot, Step, pixels


@dataclass(frozen=True, eq=False)
class Dense(Op):
    """A dense layer.

    Parameters
    ----------
    w
        float32 (M, K); the file's own memory where possible, because it may be large.
    b
        float64 (M,).
    """

    w: NDArray[np.float32]
    b: NDArray[np.float64]

    @property
    def parameters(self) -> int:
        return self.w.size + self.b.size

    def macs(self, y: Shape) -> int:
        return self.w.size

    def shape(self, *x: Shape) -> Shape:
        return x[0][0], len(self.w)

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return DenseStep(self, target)


def _aligned(w: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy of w in row-major, aligned memory."""
    copy: NDArray[np.float32] = aligned(w.shape)
    np.copyto(copy, w)
    return copy


def scaled(w: NDArray[np.float32], a: NDArray[np.float64]) -> NDArray[np.float32]:
    """w · a, multiplied in float64 without a float64 copy of w."""
    product: NDArray[np.float32] = aligned(w.shape)
    np.multiply(w, a, out=product, dtype=np.float64, casting="same_kind")
    return product


@dataclass(frozen=True)
class DenseSum(Op):
    """The dense layer of the first input, plus the second input."""

    dense: Dense

    @property
    def parameters(self) -> int:
        return self.dense.parameters

    def macs(self, y: Shape) -> int:
        return self.dense.macs(y)

    def shape(self, *x: Shape) -> Shape:
        return self.dense.shape(*x)

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        return DenseSumStep(self.dense, target)


def _weights(node: Node) -> NDArray[np.float32]:
    """Constant operand 1 as (M, K)."""
    K = node.shape(0, rank=2)[1]
    w = node.constant(1)
    if w.ndim != 2:
        node.refuse(f"weights have shape {list(w.shape)}.", supported="a matrix")
    w = w if node.integer("transB", 0) else _aligned(w.T)
    if w.shape[1] != K or w.size == 0:
        node.invalid(f"weights of shape {list(node.constant(1).shape)} do not fit {K} inputs.")
    return w


def parse_gemm(node: Node) -> Op:
    if node.integer("transA", 0):
        node.refuse("transA is 1 on a computed tensor.", supported="transA = 0 there (axis 0 is the batch)")
    node.ignore("broadcast")  # for C, before opset 7; C's shape implies it
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    w = _weights(node)
    w = w if alpha == 1 else scaled(w, np.array(alpha))
    b = np.zeros(len(w))
    if node.has(2) and not node.is_constant(2):
        if node.shape(2) != (node.shape(0)[0], len(w)) or beta != 1:
            node.refuse(
                f"C is computed, of shape {list(node.shape(2))}, and beta is {beta:.4g}.",
                supported=f"(N, {len(w)}) and beta 1",
            )
        return DenseSum(Dense(w, b))
    if node.has(2):
        c = node.constant(2).astype(np.float64)
        if c.size not in (1, len(w)) or (c.ndim and c.shape[-1] != c.size):
            node.refuse(
                f"C has shape {list(c.shape)}.", supported=f"one value, or one for each of {len(w)} outputs"
            )
        b = b + beta * c.reshape(-1)
    return Dense(w, b)


def dense_matmul(w: NDArray[np.float32]) -> Dense:
    """The dense layer x (N, K) @ w (K, M)."""
    return Dense(_aligned(w.T), np.zeros(w.shape[1]))


PARSERS = {"Gemm": parse_gemm}

FACTS = {"Gemm": Fact("read", folds=as_product)}


class DenseStep(Step):
    """Reads the weights once for all samples of a slice.  Reading them takes most of the time."""

    algorithm = "dense"
    repeats = repeats_back = True
    gates = True
    fuses_residual = True
    fuses_clip = True

    def __init__(self, op: Dense, target: Target) -> None:
        w = op.w if op.w.flags.c_contiguous and op.w.ctypes.data % ALIGNMENT == 0 else _aligned(op.w)
        self.w, self.b = target.constant(w.reshape(-1)), target.constant(op.b.astype(np.float32))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        residual = pixels(r) if r.size else r
        gemm_fwd(
            pixels(x[0]), self.w, self.b, residual, pixels(y), context.mask, clip.lo, clip.hi, context.threads
        )

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        g = gx[0]
        gemm_bwd(pixels(gy), self.w, *g.arguments, context.threads)


class DenseSumStep(DenseStep):
    fuses_residual = False

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        super().forward(x[:1], x[1], y, clip, context)

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        super().vjp(gy, gx[:1], context)
        pointwise_bwd(pixels(gy), NO_WEIGHTS, *gx[1].arguments, context.threads)
