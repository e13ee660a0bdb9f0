"""Elements picked and put by constant indices, and Einsum."""

from __future__ import annotations

from typing import Any

import numpy as np
from builder import Builder

from .case import Case, Net, chain, conv, node

ONE = (1, 4, 5, 3)


def _indices(high: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-high, high, shape)


def _tuples(*highs: int, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """`count` different places, as rows."""
    places = np.stack(np.unravel_index(range(int(np.prod(highs))), highs), axis=1)
    return np.random.default_rng(seed).permutation(places)[:count]


def put(op: str, indices: Any, shape: tuple[int, ...], how: str = "computed", **attributes: Any) -> Net:
    """The updates of this `shape` are computed from x, constant, or computed for constant data."""

    def net(b: Builder, x: str) -> str:
        if how == "constant":
            return b.node(op, x, b.constant(indices), b.constant(b.noise(*shape)), **attributes)
        N, *rest = b.shapes[x]
        made = b.reshape(b.gemm(b.flatten(x), int(np.prod(shape[1:]))), 0, *shape[1:])
        data = b.constant(b.noise(N, *rest)) if how == "of a constant" else x
        return b.node(op, data, b.constant(indices), made, **attributes)

    return net


def einsum(equation: str, *shapes: tuple[int, ...], first: bool = False) -> Net:
    """With constants of these shapes behind x, or before it."""

    def net(b: Builder, x: str) -> str:
        constants = [b.constant(b.noise(*shape)) for shape in shapes]
        return b.node("Einsum", *((*constants, x) if first else (x, *constants)), equation=equation)

    return net


def attended(b: Builder, x: str) -> str:
    """Two computed tensors and a constant, every letter in two of them at most."""
    a, c = b.conv(x, 6, 1), b.conv(x, 5, 1)
    return b.node("Einsum", a, c, b.constant(b.noise(6, 4)), equation="bihw,bjhw,ik->bjk")


DOWN = _tuples(4, 5, count=6)
FULL = np.concatenate([np.zeros((7, 1), np.int64), _tuples(4, 5, 3, count=7)], axis=1)
TWICE = np.concatenate([np.zeros((1, 6, 1), np.int64), _indices(4, 1, 6, 1) % 4], axis=2)
BATCH_FIRST = np.concatenate([np.zeros((1, 5, 1), np.int64), _tuples(4, 5, count=5)[None]], axis=2)

CASES = {
    **{
        f"GatherElements along {axis}": Case(
            node("GatherElements", _indices(ONE[axis], 1, 3, 4, 2), axis=axis),
            ONE,
            reference="takes indices as wide as x alone",
        )
        for axis in (1, 2, -1)
    },
    "GatherND of the batch's axes": Case(node("GatherND", BATCH_FIRST), ONE),
    "GatherND in each sample": Case(node("GatherND", DOWN[None], batch_dims=1), ONE),
    "GatherND of planes": Case(node("GatherND", np.array([[[3], [-4], [1]]]), batch_dims=1), ONE),
    "GatherND of single elements": Case(node("GatherND", FULL[None]), ONE),
    "GatherND in rows of a sample": Case(node("GatherND", _indices(5, 1, 4, 2, 1), batch_dims=2), ONE),
    **{
        f"ScatterElements, updates {how}": Case(
            put("ScatterElements", _indices(3, 1, 2, 3, 3), (1, 2, 3, 3), how, axis=3), ONE
        )
        for how in ("computed", "constant", "of a constant")
    },
    **{
        f"ScatterElements {reduction}, updates {how}": Case(
            put("ScatterElements", _indices(5, 1, 2, 3, 3), (1, 2, 3, 3), how, axis=2, reduction=reduction),
            ONE,
            opset=18,
        )
        for how in ("computed", "constant")
        for reduction in ("add", "mul", "max", "min")
    },
    "Scatter": Case(
        put("Scatter", _tuples(4, count=3).T[..., None, None], (1, 3, 1, 1), axis=1),
        ONE,
        opset=9,
        reference="knows no Scatter",
    ),
    **{
        f"ScatterND of planes, updates {how}": Case(put("ScatterND", BATCH_FIRST, (1, 5, 3), how), ONE)
        for how in ("computed", "constant", "of a constant")
    },
    "ScatterND of elements": Case(put("ScatterND", FULL, (7,), "constant"), ONE),
    "ScatterND add": Case(put("ScatterND", TWICE, (1, 6, 5, 3), reduction="add"), ONE, opset=16),
    "Einsum of pixels": Case(einsum("bchw,oc->bohw", (6, 5))),
    "Einsum, constant first": Case(einsum("oc,bchw->bohw", (6, 5), first=True)),
    "Einsum of rows": Case(einsum("ni,io->no", (9, 4)), (3, 9)),
    "Einsum by sample": Case(einsum("nchw->nwc")),
    "Einsum without arrow": Case(einsum("ai,io", (9, 4)), (3, 9), ends=True),
    "Einsum of dots": Case(einsum("...i,io->...o", (9, 4))),
    "Einsum of a diagonal": Case(einsum("nciic->nic"), (2, 3, 4, 4, 3)),
    "Einsum, a diagonal of a constant": Case(einsum("nc,cc->nc", (5, 5)), (3, 5)),
    "Einsum, sums on either side": Case(einsum("nchw,hk->nc", (7, 3))),
    "Einsum, letters of a batch": Case(einsum("nchw,chk->nkch", (5, 7, 3))),
    "Einsum of an outer product": Case(einsum("nc,d->ncd", (4,)), (3, 5)),
    "Einsum of three": Case(chain(conv(6), attended)),
    "Einsum of a square": Case(lambda b, x: b.node("Einsum", x, x, equation="nchw,ndhw->ncd"), (2, 5, 3, 4)),
}
