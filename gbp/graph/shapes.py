"""Shapes of tensors, and the orders of their axes in memory."""

from __future__ import annotations

#: Sizes of all axes, batch first.
Shape = tuple[int, ...]

#: The order in memory of the axes behind the batch, outermost first.  (1, 2, 3) is the file's order, and
#: (2, 3, 1) has the channels last.
Order = tuple[int, ...]


def row_major(rank: int) -> Order:
    """The file's order."""
    return tuple(range(1, rank))


def innermost(axis: int, rank: int) -> Order:
    """The file's order, but with `axis` innermost."""
    return (*(a for a in row_major(rank) if a != axis), axis)
