"""Kernels that run only where a computed value says so.

A run that decides by a computed value can be recorded all the same: what it does either way is recorded, each
under its condition, a word and the value that it must hold.  Threads look at the word when the kernel's turn
comes (`parallel.team`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from .codegen.jit import INT, kernel
from .codegen.packing import Share
from .parallel.program import Condition, under

#: Words that conditions look at.
WORDS = types.Array(types.int64, 1, "C")


@contextmanager
def only_where(word: NDArray[np.int64], value: int) -> Iterator[None]:
    """A context manager: kernels called inside run only if the word (1,) holds this value at their turn.

    Inside another such manager both conditions must hold.
    """
    with under(None) as outer:
        if outer is not None:
            # The inner word may be old where the outer condition does not hold.
            both = np.zeros(1, np.int64)
            hold_both(outer.word, outer.value, word, value, both, 1)
            word, value = both, 1
        with under(Condition(word, value)):
            yield


@kernel(WORDS, INT, WORDS, INT, WORDS, INT, split=1)
def hold_both(
    outer: Any, outer_value: int, inner: Any, inner_value: int, both: Any, threads: int, share: Share
) -> None:
    """Write 1 to both (1,) if outer[0] is outer_value and inner[0] is inner_value, else 0."""
    for _ in range(share.first, share.last):
        both[0] = 1 if outer[0] == outer_value and inner[0] == inner_value else 0


@kernel(WORDS, WORDS, WORDS, INT, split=1)
def leave_others(done: Any, none: Any, alone: Any, threads: int, share: Share) -> None:
    """Write 1 to none (1,) if no row is done, else 1 to alone[n] of each row n that is left.

    All other words become 0.
    """
    for _ in range(share.first, share.last):
        none[0] = 1
        for word in done:
            if word:
                none[0] = 0
        for n in range(len(done)):
            alone[n] = 0 if done[n] or none[0] else 1
