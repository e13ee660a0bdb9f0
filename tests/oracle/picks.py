"""Elements picked and put by indices, and Einsum: element by element, as the specification writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from naive import Array

from .node import Kinked, Node, Operator, Vjp, margin

BufferSlice = tuple[int, ...]


def _of_elements(n: Node, x: Array, indices: Array) -> Iterator[tuple[BufferSlice, BufferSlice]]:
    """(where in the indices, where in x)."""
    axis = n.get("axis", 0) % x.ndim
    for at in np.ndindex(indices.shape):
        yield at, (*at[:axis], int(indices[at]) % x.shape[axis], *at[axis + 1 :])


def _of_tuples(n: Node, x: Array, indices: Array) -> Iterator[tuple[BufferSlice, BufferSlice]]:
    """(where in the result or the updates, where in x)."""
    b = n.get("batch_dims", 0)
    for at in np.ndindex(indices.shape[:-1]):
        first = (*at[:b], *(int(i) % size for i, size in zip(indices[at], x.shape[b:], strict=False)))
        for rest in np.ndindex(x.shape[len(first) :]):
            yield (*at, *rest), (*first, *rest)


Pairs = Callable[[Node, Array, Array], Iterator[tuple[BufferSlice, BufferSlice]]]


def _gather(pairs: Pairs) -> Operator:
    def gather(n: Node, x: Array, indices: Array) -> tuple[Array, Vjp]:
        found = list(pairs(n, x, indices))
        y = np.zeros([1 + max(axis) for axis in zip(*(to for to, _ in found), strict=True)])
        for to, place in found:
            y[to] = x[place]

        def vjp(gy: Array) -> list[Array]:
            gx = np.zeros(x.shape)
            for to, place in found:
                gx[place] += gy[to]
            return [gx]

        return y, vjp

    return gather


def _scatter(pairs: Pairs) -> Operator:
    def scatter(n: Node, x: Array, indices: Array, updates: Array) -> tuple[Array, Kinked]:
        found = [(place, to) for to, place in pairs(n, x, indices)]
        reduction = n.get("reduction", "none")
        y, distances = x.copy(), [math.inf]
        # What y[place] depends on, with its slopes; of x (None) or of an update.
        slopes: dict[BufferSlice, list[tuple[BufferSlice | None, float]]] = {}
        for place, to in found:
            old, new = slopes.get(place, [(None, 1.0)]), updates[to]
            match reduction:
                case "none":
                    slopes[place] = [(to, 1.0)]
                    y[place] = new
                case "add":
                    slopes[place] = [*old, (to, 1.0)]
                    y[place] += new
                case "mul":
                    slopes[place] = [*((who, by * new) for who, by in old), (to, y[place])]
                    y[place] *= new
                case _:
                    sign = 1 if reduction == "max" else -1
                    distances.append(abs(float(new - y[place])))
                    if sign * new > sign * y[place]:
                        slopes[place], y[place] = [(to, 1.0)], new

        def vjp(gy: Array) -> list[Array]:
            gx, gu = gy.copy(), np.zeros(updates.shape)
            for place, parts in slopes.items():
                gx[place] = 0
                for who, by in parts:
                    if who is None:
                        gx[place] += by * gy[place]
                    else:
                        gu[who] += by * gy[place]
            return [gx, np.zeros(()), gu]

        return y, Kinked(vjp, lambda: margin(np.array(distances), x))

    return scatter


def einsum(n: Node, *xs: Array) -> tuple[Array, Vjp]:
    """A loop over all values of all letters."""
    left, arrow, right = n.get("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    dots = (
        max(x.ndim - len(t.replace("...", "")) for x, t in zip(xs, terms, strict=True) if "..." in t)
        if ("..." in left)
        else 0
    )
    hidden = "ABCDEFGH"[:dots]
    terms = [
        t.replace("...", hidden[dots - (x.ndim - len(t.replace("...", ""))) :] if "..." in t else "")
        for x, t in zip(xs, terms, strict=True)
    ]
    letters = sorted(set("".join(terms)))
    out = (
        right.replace("...", hidden)
        if arrow
        else hidden + "".join(c for c in letters if "".join(terms).count(c) == 1 and c not in hidden)
    )
    sizes = {c: max(x.shape[t.index(c)] for x, t in zip(xs, terms, strict=True) if c in t) for c in letters}
    values = np.array(list(product(*(range(sizes[c]) for c in letters)))).T
    at = dict(zip(letters, values, strict=True))
    places = [tuple(at[c] % x.shape[i] for i, c in enumerate(t)) for x, t in zip(xs, terms, strict=True)]
    to = tuple(at[c] for c in out)
    factors = [x[place] for x, place in zip(xs, places, strict=True)]
    y = np.zeros([sizes[c] for c in out])
    np.add.at(y, to, np.prod(factors, axis=0))

    def vjp(gy: Array) -> list[Array]:
        result = []
        for i, (x, place) in enumerate(zip(xs, places, strict=True)):
            others = [gy[to], *factors[:i], *factors[i + 1 :]]
            gx = np.zeros(x.shape)
            np.add.at(gx, place, np.prod(others, axis=0))
            result.append(gx)
        return result

    return y, vjp


OPERATORS: dict[str, Operator] = {
    "Einsum": einsum,
    "GatherElements": _gather(_of_elements),
    "GatherND": _gather(_of_tuples),
    "Scatter": _scatter(_of_elements),
    "ScatterElements": _scatter(_of_elements),
    "ScatterND": _scatter(_of_tuples),
}
