"""A checksum of memory, as fast as memory can be read: it finds damage, and is no help against forgery.

Memory is cut into blocks, and the words of a block go to four lanes in turn.  Each lane has two sums modulo
2⁶⁴: s = Σ w, which any single changed word changes, and t = Σ of s so far, which changes with the order of
the words too.

Source: J. G. Fletcher, "An Arithmetic Checksum for Serial Transmissions", IEEE Trans. Commun. 30(1), 1982.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .codegen.jit import INT, kernel
from .codegen.packing import Share
from .codegen.work import part_of

#: Words of a block.  A checksum has 64 bytes for each block.
BLOCK = 2**17
LANES = 4

_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
_SUMS = types.Array(types.uint64, 2, "C")


@kernel(_WORDS, _SUMS, INT)
def _sum_blocks(words: Any, sums: Any, threads: int, share: Share) -> None:
    """Write the sums of each block, (blocks, 2 · LANES); the number of words is a multiple of LANES."""
    for block in range(*part_of(len(sums), share, threads)):
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = np.uint64(0)
        for i in range(block * BLOCK, min(len(words), (block + 1) * BLOCK), LANES):
            s0, s1 = s0 + words[i], s1 + words[i + 1]
            s2, s3 = s2 + words[i + 2], s3 + words[i + 3]
            t0, t1, t2, t3 = t0 + s0, t1 + s1, t2 + s2, t3 + s3
        at = sums[block]
        at[0], at[1], at[2], at[3] = s0, s1, s2, s3
        at[4], at[5], at[6], at[7] = t0, t1, t2, t3


def checksum(data: Any, threads: int) -> bytes:
    """The checksum of memory.  It does not depend on the number of threads.

    Parameters
    ----------
    data
        A C-contiguous buffer whose bytes are a multiple of 8 · LANES.
    threads
        How many threads to use.
    """
    words = np.frombuffer(data, np.uint64)
    sums = np.zeros((-(-len(words) // BLOCK), 2 * LANES), np.uint64)
    if len(words):
        _sum_blocks(words, sums, threads)
    return sums.tobytes()
