"""Shapes, and the orders in which the axes of a tensor can lie in memory."""

from __future__ import annotations

#: Sizes of all axes, batch first.
Shape = tuple[int, ...]

#: The memory order of a tensor's axes behind the batch, outermost first: (1, 2, 3) is as in the file,
#: CHANNELS_LAST is N, H, W, C.
Order = tuple[int, ...]
CHANNELS_LAST: Order = (2, 3, 1)


def row_major(rank: int) -> Order:
    """The order as in the file."""
    return tuple(range(1, rank))


def innermost(axis: int, rank: int) -> Order:
    """The order as in the file, but with `axis` innermost."""
    return (*(a for a in row_major(rank) if a != axis), axis)
