"""Fold scale and shift (BatchNormalization, a separate bias) into the neighbouring Conv or dense layer.

    after    a·(w∗x + b) + c   = (a·w)∗x + (a·b + c)          always
    before   w∗(a·x + c) + b   = (w·a)∗x + (b + Σ w·c)        where no window sees padding, or c = 0:
                                                              padding is 0 after the shift, not before it
    twice    a₂·(a₁·x + c₁) + c₂

All these ops are linear.  So the rectifiers and their inputs stay the same, and so do the maps of every rule.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph.graph import Graph, Layer
from ..ops.affine import Affine
from ..ops.conv.conv import Conv
from ..ops.gemm import Dense, scaled


def _after(op: object, affine: Affine) -> Conv | Dense | Affine | None:
    """`affine` ∘ `op` as one op."""
    if isinstance(op, Conv) and affine.axis == 1:
        a = affine.a.reshape(-1, *(1,) * (op.w.ndim - 1))
        return replace(op, w=op.w * a, b=affine.a * op.b + affine.b)
    if isinstance(op, Dense) and affine.axis == 1:
        w = op.w if np.all(affine.a == 1) else scaled(op.w, affine.a[:, None])
        return replace(op, w=w, b=affine.a * op.b + affine.b)
    if isinstance(op, Affine) and affine.axis == op.axis:
        return Affine(affine.a * op.a, affine.a * op.b + affine.b, op.axis)
    return None


def _before(affine: Affine, op: object) -> Conv | Dense | None:
    """`op` ∘ `affine` as one op."""
    if affine.axis != 1 or not np.isfinite(affine.b).all():
        return None
    if isinstance(op, Conv):
        if op.is_padded and np.any(affine.b != 0):
            return None
        # Input channel c of group g is element g·C/group + c of a.
        a, b = (v.reshape(op.group, 1, -1, *(1,) * (op.w.ndim - 2)) for v in (affine.a, affine.b))
        w = op.w.reshape(op.group, -1, *op.w.shape[1:])
        shift = (w * b).sum(axis=tuple(range(2, w.ndim))).reshape(-1)
        return replace(op, w=(w * a).reshape(op.w.shape), b=op.b + shift)
    if isinstance(op, Dense):
        # Row by row, because a float64 copy of all weights could take a gigabyte.
        shift = [row.astype(np.float64) @ affine.b for row in op.w]
        return replace(op, w=scaled(op.w, affine.a), b=op.b + np.array(shift))
    return None


def fold_affine(graph: Graph) -> Graph:
    """The same graph; every `Affine` that can be folded is folded."""
    readers = {name: len(layers) for name, layers in graph.consumers().items()}
    readers[graph.output] += 1
    kept: dict[str, Layer] = {}  # tensor → the layer that makes it, in order of computation
    for layer in graph.layers:
        merged = layer
        # A folded layer may be folded again, into the layer before it.
        while (folded := _folded(kept.get(merged.inputs[0]), merged, readers)) is not None:
            del kept[merged.inputs[0]]
            merged = folded
        kept[merged.output] = merged
    return graph.with_layers(kept.values())


def _folded(first: Layer | None, second: Layer, readers: dict[str, int]) -> Layer | None:
    """`first` and `second` as one layer, or None.  `first` makes the only input of `second`."""
    if first is None or len(second.inputs) != 1 or readers[first.output] != 1:
        return None
    if isinstance(second.op, Affine) and (after := _after(first.op, second.op)) is not None:
        return Layer(first.name, after, first.inputs, second.output, first.kind)
    if isinstance(first.op, Affine) and (before := _before(first.op, second.op)) is not None:
        return Layer(second.name, before, first.inputs, second.output, second.kind)
    return None
