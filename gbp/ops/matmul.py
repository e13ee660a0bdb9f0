"""Matrix products in any rank (ONNX MatMul).

    y[…, m, p]  = Σ_k a[…, m, k] · b[…, k, p]       leading axes broadcast; a vector lacks one of the last two
    ga = gy · bᵀ,   gb = aᵀ · gy                    summed over the axes along which a, or b, was repeated

A computed tensor with two axes times a constant matrix is a dense layer.  With more axes it is a 1×1
convolution whose pixels are all axes but the last.  If the constant is on the left, both are transposed.
Other products, as in attention, are computed sample by sample through NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.geometry import Window
from ..graph.op import Op, Target
from ..graph.shapes import Order, Shape, row_major
from ..limits import ELEMENT, OPERAND, elements
from .conv.conv import Conv
from .facts import Fact
from .folded import as_product
from .gemm import dense_matmul
from .node import Node
from .shape import Reshape, Transpose
from .step import Clipped, Context, Floats, GradientSlot, NumpyStep, Step, view
from .window import MAX_PIXELS


@dataclass(frozen=True, eq=False)
class MatMul(Op):
    """The product of two tensors of one rank; or of a tensor and a constant without a batch axis."""

    constant: NDArray[np.float32] | None = None
    constant_first: bool = False

    @property
    def planning(self) -> int:
        return 3

    @property
    def parameters(self) -> int:
        return 0 if self.constant is None else self.constant.size

    def _factors(self, x: tuple[Shape, ...]) -> tuple[Shape, Shape]:
        if self.constant is None:
            return x[0], x[1]
        constant = (1, *self.constant.shape)
        return (constant, x[0]) if self.constant_first else (x[0], constant)

    def shape(self, *x: Shape) -> Shape:
        a, b = self._factors(x)
        return *(int(n) for n in np.broadcast_shapes(a[:-2], b[:-2])), a[-2], b[-1]

    def work(self, x: tuple[Shape, ...], y: Shape) -> int:
        a, b = self._factors(x)
        repeats = any(elements(f[1:-2]) != elements(y[1:-2]) for f in (a, b))
        each = OPERAND if repeats else 2**5 * ELEMENT
        return super().work(x, y) + 3 * elements(y) * a[-1] + each * elements(y[1:-2])

    def orders(self, x: tuple[Shape, ...], given: tuple[Order, ...]) -> tuple[tuple[Order, ...], Order]:
        order = row_major(len(x[0]))
        return (order,) * len(x), order

    def lower(self, x: tuple[Shape, ...], y: Shape, order: Order, target: Target) -> Step:
        if self.constant is None:
            return MatMulStep(x)
        return ConstantMatMulStep(self.constant, self.constant_first, x[0])


def _pixelwise(shape: Shape, w: NDArray[np.float32]) -> tuple[Op, ...]:
    """(N, …, K) @ w (K, P) as a 1×1 convolution over all axes but the last."""
    pixels = elements(shape[1:-1])
    conv = Conv(
        np.ascontiguousarray(w.T)[..., None, None],
        np.zeros(w.shape[1]),
        Window.resolve((1, pixels), (1, 1)),
        group=1,
    )
    return (
        Reshape((shape[0], 1, pixels, shape[-1])),
        Transpose((0, 3, 1, 2)),
        conv,
        Transpose((0, 2, 3, 1)),
        Reshape((*shape[:-1], w.shape[1])),
    )


def _by_constant(node: Node, shape: Shape, c: NDArray[np.float32], constant_first: bool) -> tuple[Op, ...]:
    """A tensor (N, …, M, K) @ c (…, K, P), or c (…, M, K) @ a tensor (N, …, K, P)."""
    if len(shape) < 3 and (constant_first or c.ndim > 2):
        node.refuse(
            f"shapes {list(shape)} and {list(c.shape)} of the constant would mix the batch.",
            supported="the batch as an axis of its own",
        )
    if c.ndim == 2:
        if len(shape) == 2:
            return (dense_matmul(c),)
        if elements(shape[1:]) > MAX_PIXELS:
            node.refuse(
                f"the tensor has shape {list(shape)}.", supported=f"up to {MAX_PIXELS} numbers a sample"
            )
        if not constant_first:
            return _pixelwise(shape, c)
        swapped = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        ops = _pixelwise(tuple(shape[axis] for axis in swapped), c.T)
        return Transpose(swapped), *ops, Transpose(swapped)
    try:
        if c.ndim >= len(shape):
            raise ValueError
        np.broadcast_shapes(shape[1:-2], c.shape[:-2])
    except ValueError:
        node.refuse(
            f"a constant of shape {list(c.shape)} times a tensor of shape {list(shape)}.",
            supported="leading axes that broadcast, 1 on the batch axis",
        )
    c = c.reshape((1,) * (len(shape) - 1 - c.ndim) + c.shape)
    return (MatMul(c, constant_first),)


def _of_two(node: Node) -> Op:
    """The product of two computed tensors."""
    a, b = node.shape(0), node.shape(1)
    if not len(a) == len(b) >= 3:
        node.refuse(
            f"tensors of shapes {list(a)} and {list(b)} would mix the batch.",
            supported="one rank of at least 3, the batch first",
        )
    try:
        np.broadcast_shapes(a[1:-2], b[1:-2])
        fits = a[-1] == b[-2] and a[0] == b[0]
    except ValueError:
        fits = False
    if not fits:
        node.invalid(f"shapes {list(a)} and {list(b)} do not multiply.")
    return MatMul()


def parse(node: Node) -> tuple[Op, ...]:
    """A product; a constant vector becomes a matrix, and the axis that it adds is dropped behind."""
    constant_first = node.is_constant(0)
    if not constant_first and not node.is_constant(1):
        return (_of_two(node),)
    shape, c = node.shape(int(constant_first)), node.constant(int(not constant_first))
    if len(shape) < 2 or not c.size or not c.ndim:
        node.invalid(f"a constant of shape {list(c.shape)} does not fit a tensor of shape {list(shape)}.")
    vector = c.ndim == 1
    if vector:
        c = c[None] if constant_first else c[:, None]
    while c.ndim > 2 and c.shape[0] == 1:
        c = c[0]
    inner = (c.shape[-1], shape[-2]) if constant_first else (shape[-1], c.shape[-2])
    if inner[0] != inner[1]:
        node.invalid(f"a constant of shape {list(c.shape)} does not fit a tensor of shape {list(shape)}.")
    ops = _by_constant(node, shape, c, constant_first)
    if not vector:
        return ops
    kept = (*shape[:-2], shape[-1]) if constant_first else shape[:-1]
    return *ops, Reshape(kept)


PARSERS = {"MatMul": parse}

FACTS = {"MatMul": Fact("read", folds=as_product)}


def _put_product(g: Floats, a: Floats, b: Floats, accumulate: bool, scratch: Floats) -> None:
    """g (+)= a @ b, summed over the leading axes along which g's tensor was repeated.

    These sums are computed one product at a time, because all products at once may not fit into memory.
    `scratch`: (floats,), at least as many as g has.
    """
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if g.shape[:-2] == lead:
        if accumulate:
            product = np.matmul(a, b, out=view(scratch[: g.size], *g.shape))
            np.add(g, product, out=g)
        else:
            np.matmul(a, b, out=g)
        return
    if not accumulate:
        g.fill(0)
    a, b = (np.broadcast_to(f, (*lead, *f.shape[-2:])) for f in (a, b))
    g = np.broadcast_to(g, (*lead, *g.shape[-2:]))
    g.flags.writeable = True
    product = view(scratch[: elements(g.shape[-2:])], *g.shape[-2:])
    for index in np.ndindex(lead):
        np.matmul(a[index], b[index], out=product)
        np.add(g[index], product, out=g[index])


class MatMulStep(NumpyStep):
    """`x`: the shapes of the inputs.  Multiplies each sample alone, so that its bits depend on no other."""

    algorithm = "numpy"
    wants_whole = True
    saves_x = True

    def __init__(self, x: tuple[Shape, ...]) -> None:
        super().__init__((max(elements(shape[1:]) for shape in x),))

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        a, b = x
        for n in range(len(y)):
            np.matmul(a[n], b[n], out=y[n])

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        a, b = context.x
        (scratch,) = self.temporaries(context)
        targets = len(gy) // len(a)
        for n, g in enumerate(gy):
            m = n // targets
            _put_product(gx[0].array[n], g, b[m].swapaxes(-1, -2), gx[0].accumulate, scratch)
            _put_product(gx[1].array[n], a[m].swapaxes(-1, -2), g, gx[1].accumulate, scratch)


class ConstantMatMulStep(NumpyStep):
    """`x`: the shape of the input."""

    algorithm = "numpy"
    wants_whole = True

    def __init__(self, constant: NDArray[np.float32], constant_first: bool, x: Shape) -> None:
        super().__init__((elements(x[1:]),))
        self.constant, self.constant_first = constant, constant_first

    def forward(self, x: tuple[Floats, ...], r: Floats, y: Floats, clip: Clipped, context: Context) -> None:
        for n in range(len(y)):
            a, b = (self.constant, x[0][n]) if self.constant_first else (x[0][n], self.constant)
            np.matmul(a, b, out=y[n])

    def vjp(self, gy: Floats, gx: tuple[GradientSlot, ...], context: Context) -> None:
        (g,), transposed = gx, self.constant.swapaxes(-1, -2)
        (scratch,) = self.temporaries(context)
        for n, given in enumerate(gy):
            a, b = (transposed, given) if self.constant_first else (given, transposed)
            _put_product(g.array[n], a, b, g.accumulate, scratch)
