"""Sums of products in index notation (ONNX Einsum, opset 12), computed as matrix products.

    "bchw,oc->bohw"     y[b, o, h, w] = Σ_c x[b, c, h, w] · w[o, c]

Operands are multiplied one after another.  A letter's role in the product of two operands depends on where it
is:

    in both, and needed later        an axis of the batch of products
    in both, and not needed later    an axis that is summed over
    in one, and needed later         an axis of rows or columns
    in one, and not needed later     summed over before the product

Each role is merged into one axis, so the product is a MatMul.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np

from ..limits import MAX_AXES, elements
from .facts import Fact
from .folded import Constants, Cost, makes, product
from .node import Node
from .written import Rewriter, Writer

_MAX_OPERANDS = 16


@dataclass(frozen=True)
class _Term:
    """A tensor, the letter of each axis, and the axes' sizes."""

    name: str
    letters: str
    shape: tuple[int, ...]
    is_constant: bool

    def size(self, letters: str) -> int:
        return elements([self.shape[self.letters.index(letter)] for letter in letters])


def _parsed(node: Node) -> tuple[list[str], str]:
    """The letters of each operand and of the result.  Dots are replaced by unused letters."""
    equation = node.text("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    used = set(equation)
    free = [letter for letter in string.ascii_letters if letter not in used]
    ranks = [
        node.operands[i].ndim if node.is_constant(i) else len(node.shape(i))  # type: ignore[union-attr]
        for i in range(len(node.operands))
    ]
    if len(terms) != len(ranks) or not set(equation) <= set(string.ascii_letters) | set(",->."):
        node.invalid(f"equation {equation!r} does not fit {len(ranks)} operands.")
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    longest = max((n for n, term in zip(hidden, terms, strict=True) if "..." in term), default=0)
    if longest > len(free) or longest > MAX_AXES or any(n < 0 for n in hidden):
        node.invalid(f"equation {equation!r} does not fit the axes of its operands.")
    dots = "".join(free[:longest])
    terms = [
        term.replace("...", dots[longest - n :], 1) if "..." in term else term
        for n, term in zip(hidden, terms, strict=True)
    ]
    if arrow:
        result = result.replace("...", dots, 1)
    else:  # the letters that stand once, in alphabetical order
        all_letters = "".join(terms)
        result = dots + "".join(sorted(c for c in set(all_letters) - set(dots) if all_letters.count(c) == 1))
    fits = all(len(term) == rank for term, rank in zip(terms, ranks, strict=True))
    known = set("".join(terms))
    if not fits or "." in "".join((*terms, result)) or len(set(result)) < len(result) or set(result) - known:
        node.invalid(f"equation {equation!r} does not fit the axes of its operands.")
    return terms, result


def _diagonal(term: _Term, w: Writer) -> _Term:
    """The tensor with each letter once: the diagonal of axes that have the same letter."""
    letters = "".join(dict.fromkeys(term.letters))
    if letters == term.letters:
        return term
    if not term.is_constant and term.letters.count(term.letters[0]) > 1:
        w.node.refuse("it takes a diagonal of the batch.")
    if any(n != term.size(letter) for letter, n in zip(term.letters, term.shape, strict=True)):
        w.node.invalid(f"axes of one letter differ in size: {list(term.shape)} for {term.letters!r}.")
    front = 0 if term.is_constant else 1  # the batch, which the positions leave out
    shape = term.shape[front:]
    index = {c: i for i, c in enumerate(string.ascii_letters)}
    picked = np.einsum(
        np.arange(elements(shape)).reshape(shape),
        [index[c] for c in term.letters[front:]],
        [index[c] for c in letters[front:]],
    )
    flat = w.reshaped(term.name, (*term.shape[:front], -1))
    taken = w.write("Gather", flat, w.constant(picked.reshape(-1)), axis=front)
    shape = (*term.shape[:front], *picked.shape)
    return _Term(w.reshaped(taken, shape), letters, shape, term.is_constant)


def _without(term: _Term, wanted: str, w: Writer) -> _Term:
    """The tensor, summed over the letters that are not needed later."""
    gone = [i for i, letter in enumerate(term.letters) if letter not in wanted]
    if not gone:
        return term
    kept = [i for i in range(len(term.letters)) if i not in gone]
    if not kept and term.is_constant:
        return _Term(w.summed(term.name, gone), "", (), True)
    letters = "".join(term.letters[i] for i in kept)
    return _Term(w.summed(term.name, gone), letters, tuple(term.shape[i] for i in kept), term.is_constant)


def _ordered(term: _Term, letters: str, w: Writer) -> str:
    """The tensor with its axes in this order."""
    if letters == term.letters:
        return term.name
    return w.write("Transpose", term.name, perm=[term.letters.index(c) for c in letters])


def _product(a: _Term, b: _Term, wanted: str, w: Writer) -> _Term:
    """The product of two tensors, with the letters that are needed later (`wanted`)."""
    a, b = _without(a, wanted + b.letters, w), _without(b, wanted + a.letters, w)
    if a.is_constant and not b.is_constant:  # the batch comes first
        a, b = b, a
    both = [c for c in a.letters if c in b.letters]
    batch = "".join(c for c in both if c in wanted)
    summed = "".join(c for c in both if c not in wanted)
    rows = "".join(c for c in a.letters if c not in both)
    columns = "".join(c for c in b.letters if c not in both)
    if any(a.size(c) != b.size(c) for c in summed):
        w.node.invalid("axes of one letter differ in size.")
    if not a.is_constant and a.letters:
        first, is_open = a.letters[0], w.node.batch_is_open
        if is_open and not b.is_constant and (first not in batch or b.letters[0] != first):
            w.node.refuse("it mixes the batch axes of its operands.", supported="one letter for the batch")
        if first in rows:  # the constant has no batch
            if not batch:
                sizes = (a.size(first), a.size(rows[1:]), a.size(summed))
                left = w.reshaped(_ordered(a, rows + summed, w), sizes)
                right = w.reshaped(_ordered(b, summed + columns, w), (b.size(summed), b.size(columns)))
                made = w.write("MatMul", left, right)
                shape = tuple(t.size(c) for t, cs in ((a, rows), (b, columns)) for c in cs)
                return _Term(w.reshaped(made, shape), rows + columns, shape, False)
            batch = first + batch
            rows = rows.replace(first, "")
    # Letters of a batch stay axes of their own, because ONNX broadcasts them.
    missing = "".join(c for c in batch if c not in b.letters)
    kept = "".join(c for c in batch if c in b.letters)
    left = w.reshaped(
        _ordered(a, batch + rows + summed, w), (*map(a.size, batch), a.size(rows), a.size(summed))
    )
    ones = (1,) * len(missing)
    right = w.reshaped(
        _ordered(b, kept + summed + columns, w),
        (*ones, *map(b.size, kept), b.size(summed), b.size(columns)),
    )
    made = w.write("MatMul", left, right)
    sides = {c: max(a.size(c), b.size(c) if c in b.letters else 1) for c in batch}
    shape = (*sides.values(), *map(a.size, rows), *map(b.size, columns))
    return _Term(w.reshaped(made, shape), batch + rows + columns, shape, a.is_constant and b.is_constant)


def rewrite(node: Node, w: Writer) -> None:
    """Write the products of an Einsum (ONNX Einsum, opset 12)."""
    terms, result = _parsed(node)
    if len(terms) > _MAX_OPERANDS:
        node.refuse(f"it has {len(terms)} operands.", supported=f"up to {_MAX_OPERANDS}")
    operands = []
    for i, letters in enumerate(terms):
        constant = node.is_constant(i)
        shape = node.constant(i).shape if constant else node.shape(i)
        operands.append(_diagonal(_Term(node.proto.input[i], letters, tuple(shape), constant), w))
    computed = [term for term in operands if not term.is_constant]
    first = computed[0].letters[:1]
    if not node.batch_is_open:  # a file for one sample may do with its axis 0 what it likes
        first = ""
    elif not result.startswith(first) or not first or any(term.letters[:1] != first for term in computed):
        node.refuse(
            "its result has not the batch as its first axis, or it mixes the batch.",
            supported="one letter for axis 0 of every computed operand and of the result",
        )
    if first and any(first in term.letters for term in operands if term.is_constant):
        node.refuse("a constant has the batch's letter.", supported="constants without a batch axis")
    operands.sort(key=lambda term: term.is_constant)  # stable: the batch is in the first
    total = operands[0]
    for i, term in enumerate(operands[1:], start=2):
        total = _product(total, term, result + "".join(rest.letters for rest in operands[i:]), w)
    total = _without(total, result, w)
    w.write("Identity", _ordered(total, result, w), to=node.proto.output[0])


REWRITERS: dict[str, Rewriter] = {"Einsum": rewrite}


def _folded(given: Constants) -> Cost:
    """The elements of the result and the number of products are at most the product of all letters' sizes."""
    equation = given.attributes["equation"].s.decode().replace(" ", "")
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.split("->")[0].split(","), given.shapes, strict=True):
        letters = term.replace("...", ".")
        for i, n in enumerate(shape):
            letter = letters[i] if i < len(letters) and "." not in letters else f"{len(shape) - i}"
            sizes[letter] = max(n, sizes.get(letter, 1))
    spanned = product(list(sizes.values()))
    result = equation.partition("->")[2]
    named = product([sizes[c] for c in result]) if result and "." not in result else spanned
    return makes(given, min(named, spanned), spanned)


FACTS = {"Einsum": Fact("read", folds=_folded)}
